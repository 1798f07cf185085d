"""`WrappedIrqChip`: a chip that passes every call on to another chip; a subclass overrides what it changes.

To intercept each interrupt that devices raise, derive from `tapped.TappedIrqChip`.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Self

from typing_extensions import override

from irqchip_core.allocator import SystemAllocator
from irqchip_core.arguments import check_type
from irqchip_core.bus import Bus
from irqchip_core.capabilities import IrqChipCap
from irqchip_core.chip import MPState, VcpuRunState
from irqchip_core.eventfd import Event
from irqchip_core.events import IrqEdgeEvent, IrqEventIndex, IrqEventSource, IrqEventToken, IrqLevelEvent
from irqchip_core.hookspecs import (
    hookimpl,
    irqchip_event_registered,
    irqchip_event_unregistered,
    irqchip_routes_changed,
)
from irqchip_core.hypervisor.exits import MsrExit
from irqchip_core.hypervisor.vcpu import Vcpu, VcpuX86_64
from irqchip_core.routes import IrqRoute
from irqchip_core.x86.chip import IrqChipX86_64
from irqchip_core.x86.counters import ChipCounters
from irqchip_core.x86.state import IoapicState, LapicState, PicSelect, PicState, PitState


class WrappedIrqChip(IrqChipX86_64):
    """A chip whose every method calls the same method of another chip.

    A clone has the attributes of the handle it was made from: keep state that changes in an object that all share.

    Args:
        inner: The chip to wrap. The wrapper owns it, and closes it.

    Attributes:
        inner: The handle of the inner chip that belongs to this handle.

    Raises:
        WrongType: `inner` is no chip of a PC.
    """

    name = "wrapped"

    def __init__(self, inner: IrqChipX86_64) -> None:
        check_type(inner, IrqChipX86_64, subject=self.name, argument="inner")
        super().__init__()
        self.inner = inner
        self._news = _News(self)
        inner.observers.add(self._news)

    @override
    def try_clone(self) -> Self:
        clone = copy.copy(self)
        clone.inner = self.inner.try_clone()
        self._news.handles.append(clone)
        return clone

    @override
    def close(self) -> None:
        if self in self._news.handles:
            self._news.handles.remove(self)
            if not self._news.handles:
                self.inner.observers.remove(self._news)
            self.inner.close()

    def _outer_index(self, index: IrqEventIndex) -> IrqEventIndex:
        """The index that this chip gives to users for an index of the inner chip."""
        return index

    # The 22 methods

    @override
    def add_vcpu(self, vcpu_id: int, vcpu: Vcpu) -> None:
        self.inner.add_vcpu(vcpu_id, vcpu)

    @override
    def register_edge_irq_event(self, irq: int, event: IrqEdgeEvent, source: IrqEventSource) -> IrqEventIndex | None:
        return self.inner.register_edge_irq_event(irq, event, source)

    @override
    def unregister_edge_irq_event(self, irq: int, event: IrqEdgeEvent) -> None:
        self.inner.unregister_edge_irq_event(irq, event)

    @override
    def register_level_irq_event(self, irq: int, event: IrqLevelEvent, source: IrqEventSource) -> IrqEventIndex | None:
        return self.inner.register_level_irq_event(irq, event, source)

    @override
    def unregister_level_irq_event(self, irq: int, event: IrqLevelEvent) -> None:
        self.inner.unregister_level_irq_event(irq, event)

    @override
    def route_irq(self, route: IrqRoute) -> None:
        self.inner.route_irq(route)

    @override
    def set_irq_routes(self, routes: Iterable[IrqRoute]) -> None:
        self.inner.set_irq_routes(routes)

    @override
    def irq_event_tokens(self) -> list[IrqEventToken]:
        return self.inner.irq_event_tokens()

    @override
    def service_irq(self, irq: int, level: bool) -> None:
        self.inner.service_irq(irq, level)

    @override
    def service_irq_event(self, index: IrqEventIndex) -> None:
        self.inner.service_irq_event(index)

    @override
    def broadcast_eoi(self, vector: int) -> None:
        self.inner.broadcast_eoi(vector)

    @override
    def inject_interrupts(self, vcpu: Vcpu) -> None:
        self.inner.inject_interrupts(vcpu)

    @override
    def halted(self, vcpu_id: int) -> None:
        self.inner.halted(vcpu_id)

    @override
    def wait_until_runnable(self, vcpu: Vcpu) -> VcpuRunState:
        return self.inner.wait_until_runnable(vcpu)

    @override
    def kick_halted_vcpus(self) -> None:
        self.inner.kick_halted_vcpus()

    @override
    def get_mp_state(self, vcpu_id: int) -> MPState:
        return self.inner.get_mp_state(vcpu_id)

    @override
    def set_mp_state(self, vcpu_id: int, state: MPState) -> None:
        self.inner.set_mp_state(vcpu_id, state)

    @override
    def finalize_devices(self, allocator: SystemAllocator, io_bus: Bus, mmio_bus: Bus) -> None:
        self.inner.finalize_devices(allocator, io_bus, mmio_bus)

    @override
    def process_delayed_irq_events(self) -> None:
        self.inner.process_delayed_irq_events()

    @override
    def irq_delayed_event_token(self) -> Event | None:
        return self.inner.irq_delayed_event_token()

    @property
    @override
    def events_delayed(self) -> bool:
        return self.inner.events_delayed

    @override
    def check_capability(self, capability: IrqChipCap) -> bool:
        return self.inner.check_capability(capability)

    # The x86 extension

    @override
    def get_pic_state(self, select: PicSelect) -> PicState:
        return self.inner.get_pic_state(select)

    @override
    def set_pic_state(self, select: PicSelect, state: PicState) -> None:
        self.inner.set_pic_state(select, state)

    @override
    def get_ioapic_state(self) -> IoapicState:
        return self.inner.get_ioapic_state()

    @override
    def set_ioapic_state(self, state: IoapicState) -> None:
        self.inner.set_ioapic_state(state)

    @override
    def get_lapic_state(self, vcpu_id: int) -> LapicState:
        return self.inner.get_lapic_state(vcpu_id)

    @override
    def set_lapic_state(self, vcpu_id: int, state: LapicState) -> None:
        self.inner.set_lapic_state(vcpu_id, state)

    @override
    def get_pit(self) -> PitState:
        return self.inner.get_pit()

    @override
    def set_pit(self, state: PitState) -> None:
        self.inner.set_pit(state)

    @override
    def lapic_frequency(self) -> int:
        return self.inner.lapic_frequency()

    @override
    def pit_uses_speaker_port(self) -> bool:
        return self.inner.pit_uses_speaker_port()

    @override
    def lapics_in_hypervisor(self) -> bool:
        return self.inner.lapics_in_hypervisor()

    @override
    def counters(self) -> ChipCounters:
        return self.inner.counters()

    @override
    def handle_msr(self, vcpu: VcpuX86_64, access: MsrExit) -> bool:
        return self.inner.handle_msr(vcpu, access)

    @override
    def snapshot_chip_specific(self) -> Any:
        return self.inner.snapshot_chip_specific()

    @override
    def check_chip_specific(self, data: Any, vcpu_count: int) -> None:
        self.inner.check_chip_specific(data, vcpu_count)

    @override
    def restore_chip_specific(self, data: Any) -> None:
        self.inner.restore_chip_specific(data)


class _News:
    """An observer of the inner chip that notifies the observers of the wrapper, with the wrapper as the chip."""

    def __init__(self, chip: WrappedIrqChip) -> None:
        self.handles = [chip]
        self._observers = chip.observers
        self._silent = threading.local()

    @contextmanager
    def silenced(self) -> Iterator[None]:
        """A context in which calls of this thread notify no observer."""
        self._silent.now = True
        try:
            yield
        finally:
            self._silent.now = False

    def _handles(self) -> list[WrappedIrqChip]:
        """One open handle; none if all are closed, or while this thread is silenced."""
        return [] if getattr(self._silent, "now", False) else self.handles[:1]

    @hookimpl
    def irqchip_event_registered(self, gsi: int, source: IrqEventSource, index: IrqEventIndex | None) -> None:
        for handle in self._handles():
            outer = None if index is None else handle._outer_index(index)
            self._observers.notify(irqchip_event_registered, chip=handle, gsi=gsi, source=source, index=outer)

    @hookimpl
    def irqchip_event_unregistered(self, gsi: int) -> None:
        for handle in self._handles():
            self._observers.notify(irqchip_event_unregistered, chip=handle, gsi=gsi)

    @hookimpl
    def irqchip_routes_changed(self, routes: Iterable[IrqRoute]) -> None:
        for handle in self._handles():
            self._observers.notify(irqchip_routes_changed, chip=handle, routes=routes)
