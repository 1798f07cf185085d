"""`BoardChip`: what all chips share whose PICs, IOAPIC and PIT are a `Board`.

Handles and their end, one alarm for all timers, and those of the 22 methods that do not depend on where the local
APICs are: events, lines, routes, and the state of the board's controllers. The rest is the chip's.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterable
from typing import Self

from typing_extensions import override

from irqchip_core.allocator import SystemAllocator
from irqchip_core.arguments import check_int, check_type
from irqchip_core.bus import Bus
from irqchip_core.chip import IrqChipCap
from irqchip_core.clock import Clock
from irqchip_core.errors import Closed
from irqchip_core.events import Event, IrqEdgeEvent, IrqEventIndex, IrqEventSource, IrqEventToken, IrqLevelEvent
from irqchip_core.routes import IrqRoute, RoutingTable
from irqchip_core.x86.board import Board
from irqchip_core.x86.chip import IrqChipX86_64
from irqchip_core.x86.counters import ChipCounters
from irqchip_core.x86.finalization import Finalization, Place
from irqchip_core.x86.msi import Message
from irqchip_core.x86.state import IoapicState, PicSelect, PicState, PitState

LAPIC_FREQUENCY = 1_000_000_000
"""Input clock of the local APICs' timers in Hz: that of KVM's, so that a guest can move between the chips."""


class _Handles:
    """How many handles of a chip are open, and when its alarm rings next."""

    def __init__(self) -> None:
        self.open = 1
        self.alarm_at: int | None = None
        self.lock = threading.Lock()  # of both; nothing else is locked meanwhile


class BoardChip(IrqChipX86_64):
    """A chip on a board.

    Args:
        pins: Number of inputs of the IOAPIC, 24 to 240.
        capabilities: What the chip can do.
        clock: Where all timers have their time from.

    A subclass has a `name`, and gives `_deliver` and `_interrupt_line_changed` to the board.
    """

    def __init__(self, pins: int, capabilities: frozenset[IrqChipCap], clock: Clock) -> None:
        super().__init__()
        self._capabilities = capabilities
        self._clock = clock
        self._handles = _Handles()
        self._board = Board(
            self.name,
            self._clock,
            pins,
            deliver=self._deliver,
            interrupt_line_changed=self._interrupt_line_changed,
            deadline_changed=self._wake_at,
            entries_changed=self._entries_changed,
            commit_routes=self._commit_routes,
        )
        self._finalization = Finalization(self.name, pins)
        self._alarm = self._clock.alarm(self._expire)
        self._open = True

    # What the board asks of the chip: see there.

    def _deliver(self, message: Message) -> bool:
        raise NotImplementedError

    def _interrupt_line_changed(self, level: bool) -> None:
        raise NotImplementedError

    def _entries_changed(self) -> None:
        pass

    def _commit_routes(self, routes: RoutingTable) -> None:
        pass

    # Handles

    def _check_open(self) -> None:
        if not self._open:
            raise Closed("the chip is closed", subject=self.name, remedy="keep the handle open, or use another clone")

    @override
    def try_clone(self) -> Self:
        self._check_open()
        clone = copy.copy(self)
        with self._handles.lock:
            self._handles.open += 1
        return clone

    @override
    def close(self) -> None:
        with self._handles.lock:
            if not self._open:
                return
            self._open = False
            self._handles.open -= 1
            if self._handles.open:
                return
        self._alarm.close()
        self._disconnect()
        self._board.close()

    def _disconnect(self) -> None:
        """The last handle was closed: let go of what only this kind of chip has."""

    # Timers

    def _wake_at(self, when: int) -> None:
        """Let `_catch_up` be called at `when`, or earlier. With any lock."""
        with self._handles.lock:
            if self._handles.alarm_at is None or when < self._handles.alarm_at:
                self._handles.alarm_at = when
                self._alarm.set(when)

    def _expire(self) -> None:
        with self._handles.lock:
            self._handles.alarm_at = None
        if (when := self._catch_up()) is not None:
            self._wake_at(when)

    def _catch_up(self) -> int | None:
        """Let every timer catch up with the time; when to do that again."""
        return self._board.expire()

    # Events

    def _check_gsi(self, irq: int) -> None:
        check_int(irq, 0, (1 << 32) - 1, subject=self.name, argument="irq")

    def _register(self, irq: int, event: IrqEdgeEvent | IrqLevelEvent, source: IrqEventSource) -> IrqEventIndex | None:
        self._check_open()
        self._check_gsi(irq)
        check_type(source, IrqEventSource, subject=self.name, argument="source")
        index = self._connect_event(irq, event, source)
        self.observers.event_registered(self, irq, source, index)
        return index

    def _unregister(self, irq: int, trigger: Event) -> None:
        self._check_open()
        self._check_gsi(irq)
        if self._disconnect_event(irq, trigger):
            self.observers.event_unregistered(self, irq)

    def _connect_event(
        self, gsi: int, event: IrqEdgeEvent | IrqLevelEvent, source: IrqEventSource
    ) -> IrqEventIndex | None:
        return self._board.register(gsi, event, source)

    def _disconnect_event(self, gsi: int, trigger: Event) -> bool:
        return self._board.unregister(gsi, trigger)

    @override
    def register_edge_irq_event(self, irq: int, event: IrqEdgeEvent, source: IrqEventSource) -> IrqEventIndex | None:
        check_type(event, IrqEdgeEvent, subject=self.name, argument="event")
        return self._register(irq, event, source)

    @override
    def unregister_edge_irq_event(self, irq: int, event: IrqEdgeEvent) -> None:
        check_type(event, IrqEdgeEvent, subject=self.name, argument="event")
        self._unregister(irq, event.get_trigger())

    @override
    def register_level_irq_event(self, irq: int, event: IrqLevelEvent, source: IrqEventSource) -> IrqEventIndex | None:
        check_type(event, IrqLevelEvent, subject=self.name, argument="event")
        return self._register(irq, event, source)

    @override
    def unregister_level_irq_event(self, irq: int, event: IrqLevelEvent) -> None:
        check_type(event, IrqLevelEvent, subject=self.name, argument="event")
        self._unregister(irq, event.get_trigger())

    @override
    def irq_event_tokens(self) -> list[IrqEventToken]:
        self._check_open()
        return self._board.events.tokens()

    @override
    def service_irq_event(self, index: IrqEventIndex) -> None:
        self._check_open()
        check_type(index, int, subject=self.name, argument="index")
        self._board.service_event(index)

    @override
    def process_delayed_irq_events(self) -> None:
        self._check_open()
        self._board.process_delayed()

    @override
    def irq_delayed_event_token(self) -> Event:
        self._check_open()
        return self._board.ioapic_lock.token()

    @property
    @override
    def events_delayed(self) -> bool:
        return self._board.events_delayed()

    # Lines and routes

    @override
    def service_irq(self, irq: int, level: bool) -> None:
        self._check_open()
        self._check_gsi(irq)
        if level is not True and level is not False:
            check_type(level, bool, subject=self.name, argument="level")
        self._board.service_irq(irq, level)

    @override
    def broadcast_eoi(self, vector: int) -> None:
        self._check_open()
        check_int(vector, 0, 0xFF, subject=self.name, argument="vector")
        self._board.broadcast_eoi(vector)

    @override
    def route_irq(self, route: IrqRoute) -> None:
        self._check_open()
        self._change_routes(lambda routes: routes.adding(route))

    @override
    def set_irq_routes(self, routes: Iterable[IrqRoute]) -> None:
        self._check_open()
        self._change_routes(lambda old: old.replaced(routes))

    def _change_routes(self, change: Callable[[RoutingTable], RoutingTable]) -> None:
        routes = self._board.change_routes(change)
        self.observers.routes_changed(self, routes)

    # Devices

    @override
    def finalize_devices(self, allocator: SystemAllocator, io_bus: Bus, mmio_bus: Bus) -> None:
        self._finalize(allocator, io_bus, mmio_bus)

    def _finalize(self, allocator: SystemAllocator, io_bus: Bus, mmio_bus: Bus, others: Iterable[Place] = ()) -> None:
        """Put the board, and `others`, on the buses, and let time count."""
        self._check_open()
        self._finalization.perform(allocator, io_bus, mmio_bus, [*self._board.places(io_bus, mmio_bus), *others])
        self._alarm.start()

    @override
    def check_capability(self, capability: IrqChipCap) -> bool:
        self._check_open()
        check_type(capability, IrqChipCap, subject=self.name, argument="capability")
        return capability in self._capabilities

    # The x86 extension

    @override
    def get_pic_state(self, select: PicSelect) -> PicState:
        self._check_open()
        return self._board.get_pic_state(select)

    @override
    def set_pic_state(self, select: PicSelect, state: PicState) -> None:
        self._check_open()
        self._board.set_pic_state(select, state)

    @override
    def get_ioapic_state(self) -> IoapicState:
        self._check_open()
        return self._board.get_ioapic_state()

    @override
    def set_ioapic_state(self, state: IoapicState) -> None:
        self._check_open()
        self._board.set_ioapic_state(state)

    @override
    def get_pit(self) -> PitState:
        self._check_open()
        return self._board.get_pit()

    @override
    def set_pit(self, state: PitState) -> None:
        self._check_open()
        self._board.set_pit(state)

    @override
    def counters(self) -> ChipCounters:
        self._check_open()
        return ChipCounters(self._board.gsi_counts())

    @override
    def lapic_frequency(self) -> int:
        self._check_open()
        return LAPIC_FREQUENCY

    @override
    def pit_uses_speaker_port(self) -> bool:
        self._check_open()
        return True
