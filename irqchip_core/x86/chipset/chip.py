"""`ChipsetIrqChip`: the base of chips whose PICs, IOAPIC and PIT are a `Chipset`.

It has those of the 22 methods that do not depend on where the local APICs are. The chip has the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from typing_extensions import override

from irqchip_core.arguments import check_int, check_type
from irqchip_core.bus import Bus
from irqchip_core.capabilities import IrqChipCap
from irqchip_core.eventfd import Event
from irqchip_core.events import IrqEdgeEvent, IrqEventIndex, IrqEventSource, IrqEventToken, IrqLevelEvent
from irqchip_core.routes import RoutingTable
from irqchip_core.x86.chipset.chipset import Chipset
from irqchip_core.x86.counters import ChipCounters
from irqchip_core.x86.finalization import Place
from irqchip_core.x86.shared_chip import PcIrqChip

LAPIC_FREQUENCY = 1_000_000_000
"""Input clock of the local APICs' timers in Hz: the same as in KVM, so that a guest can move between the chips."""


class ChipsetIrqChip(PcIrqChip):
    """A chip with a chipset.

    Args:
        chipset: The chipset, with its `apics` set.
        capabilities: The capabilities of the chip.
    """

    def __init__(self, chipset: Chipset, capabilities: frozenset[IrqChipCap]) -> None:
        super().__init__(chipset.ioapic.pins, capabilities, chipset)
        self._chipset = chipset

    @override
    def _connect_event(
        self, gsi: int, event: IrqEdgeEvent | IrqLevelEvent, source: IrqEventSource
    ) -> IrqEventIndex | None:
        return self._chipset.register(gsi, event, source)

    @override
    def _disconnect_event(self, gsi: int, trigger: Event) -> bool:
        return self._chipset.unregister(gsi, trigger)

    @override
    def _change_routes(self, change: Callable[[RoutingTable], RoutingTable]) -> RoutingTable:
        return self._chipset.change_routes(change)

    @override
    def _places(self, io_bus: Bus, mmio_bus: Bus) -> Iterable[Place]:
        return self._chipset.places(io_bus, mmio_bus)

    @override
    def _finalized(self, places: Sequence[Place]) -> None:
        self._chipset.start()

    @override
    def _release(self) -> None:
        self._chipset.close()

    # Events and lines

    @override
    def irq_event_tokens(self) -> list[IrqEventToken]:
        return self._chipset.events.tokens()

    @override
    def service_irq_event(self, index: IrqEventIndex) -> None:
        if type(index) is not int:  # called for each interrupt: the quick test first
            check_type(index, int, subject=self.name, argument="index")
        self._chipset.service_event(index)

    @override
    def process_delayed_irq_events(self) -> None:
        self._chipset.process_delayed()

    @override
    def irq_delayed_event_token(self) -> Event:
        return self._chipset.delayed_token()

    @property
    @override
    def events_delayed(self) -> bool:
        return bool(self._chipset.lock.delayed)

    @override
    def service_irq(self, irq: int, level: bool) -> None:
        self._check_gsi(irq)
        if level is not True and level is not False:
            check_type(level, bool, subject=self.name, argument="level")
        self._chipset.service_irq(irq, level)

    @override
    def broadcast_eoi(self, vector: int) -> None:
        check_int(vector, 0, 0xFF, subject=self.name, argument="vector")
        self._chipset.broadcast_eoi(vector)

    # The x86 extension

    @override
    def counters(self) -> ChipCounters:
        return ChipCounters(self._chipset.gsi_counts())

    @override
    def lapic_frequency(self) -> int:
        return LAPIC_FREQUENCY

    @override
    def pit_uses_speaker_port(self) -> bool:
        return True
