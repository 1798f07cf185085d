"""An interrupt chip reduced to its event table, to test what serves events. It drives no guest."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

from typing_extensions import override

from irqchip_core.allocator import SystemAllocator
from irqchip_core.bus import Bus
from irqchip_core.capabilities import IrqChipCap
from irqchip_core.chip import IrqChip, MPState, VcpuRunState
from irqchip_core.event_table import EventTable
from irqchip_core.eventfd import Event
from irqchip_core.events import IrqEdgeEvent, IrqEventIndex, IrqEventSource, IrqEventToken, IrqLevelEvent
from irqchip_core.hookspecs import irqchip_event_registered, irqchip_event_unregistered, irqchip_routes_changed
from irqchip_core.hypervisor.vcpu import Vcpu
from irqchip_core.routes import IrqRoute


class TableChip(IrqChip):
    """Keeps registrations, and remembers the GSI of each event it served.

    Attributes:
        served: GSIs in the order they were served.
        on_served: Called with the GSI after each; may raise.
        delayed: Signalled by the test; counted in `delayed_rounds` when processed.
    """

    name = "table"

    def __init__(self) -> None:
        super().__init__()
        self.table = EventTable()
        self.served: list[int] = []
        self.delayed = Event()
        self.delayed_rounds = 0
        self.progress = threading.Semaphore(0)
        self.fault: Exception | None = None

    def _register(self, irq: int, event: IrqEdgeEvent | IrqLevelEvent, source: IrqEventSource) -> IrqEventIndex:
        index = self.table.append(irq, event, source)
        self.observers.notify(irqchip_event_registered, chip=self, gsi=irq, source=source, index=index)
        return index

    def _unregister(self, irq: int, trigger: Event) -> None:
        if (slot := self.table.remove(irq, trigger)) is not None:
            slot.close()
            self.observers.notify(irqchip_event_unregistered, chip=self, gsi=irq)

    @override
    def register_edge_irq_event(self, irq: int, event: IrqEdgeEvent, source: IrqEventSource) -> IrqEventIndex:
        return self._register(irq, event, source)

    @override
    def unregister_edge_irq_event(self, irq: int, event: IrqEdgeEvent) -> None:
        self._unregister(irq, event.get_trigger())

    @override
    def register_level_irq_event(self, irq: int, event: IrqLevelEvent, source: IrqEventSource) -> IrqEventIndex:
        return self._register(irq, event, source)

    @override
    def unregister_level_irq_event(self, irq: int, event: IrqLevelEvent) -> None:
        self._unregister(irq, event.get_trigger())

    @override
    def irq_event_tokens(self) -> list[IrqEventToken]:
        return self.table.tokens()

    @override
    def service_irq_event(self, index: IrqEventIndex) -> None:
        if self.fault is not None:
            self.progress.release()
            raise self.fault
        slot = self.table.slot(index, subject=self.name)
        if slot is not None and slot.trigger.reset():
            self.served.append(slot.gsi)
            self.progress.release()

    @override
    def process_delayed_irq_events(self) -> None:
        self.delayed_rounds += self.delayed.reset()
        self.progress.release()
        if self.fault is not None:
            raise self.fault

    @override
    def irq_delayed_event_token(self) -> Event:
        return self.delayed.clone()

    @override
    def close(self) -> None:
        self.table.close()
        self.delayed.close()

    def _not_here(self, *args: Any) -> Any:
        raise NotImplementedError("TableChip only serves events")

    @override
    def add_vcpu(self, vcpu_id: int, vcpu: Vcpu) -> None:
        self._not_here()

    @override
    def route_irq(self, route: IrqRoute) -> None:
        self._not_here()

    @override
    def set_irq_routes(self, routes: Iterable[IrqRoute]) -> None:
        self.observers.notify(irqchip_routes_changed, chip=self, routes=list(routes))

    @override
    def service_irq(self, irq: int, level: bool) -> None:
        self._not_here()

    @override
    def broadcast_eoi(self, vector: int) -> None:
        self._not_here()

    @override
    def inject_interrupts(self, vcpu: Vcpu) -> None:
        self._not_here()

    @override
    def halted(self, vcpu_id: int) -> None:
        self._not_here()

    @override
    def wait_until_runnable(self, vcpu: Vcpu) -> VcpuRunState:
        return VcpuRunState.RUNNABLE

    @override
    def kick_halted_vcpus(self) -> None:
        self._not_here()

    @override
    def get_mp_state(self, vcpu_id: int) -> MPState:
        return MPState.RUNNABLE

    @override
    def set_mp_state(self, vcpu_id: int, state: MPState) -> None:
        self._not_here()

    @override
    def try_clone(self) -> TableChip:
        raise NotImplementedError("TableChip has one handle")

    @override
    def finalize_devices(self, allocator: SystemAllocator, io_bus: Bus, mmio_bus: Bus) -> None:
        self._not_here()

    @override
    def check_capability(self, capability: IrqChipCap) -> bool:
        return False
