"""PICs, IOAPIC and PIT in user space, with the lines and events between them and their devices.

What chips that emulate them have in common; where the IOAPIC's messages go is the chip's business.

Three locks, taken in this order:

1. `routes_lock`: who connects what: routes change, and a chip registers events according to them.
2. `ioapic_lock`: the IOAPIC. A vCPU holds it while it reads or writes a register of it. `service_event` never waits
   for it: a busy IOAPIC delays the event (see `IoapicLock`). Only GSIs with a pin of the IOAPIC need it, messages
   do not.
3. `lock`: all else here, and whatever the chip adds (local APICs). Held for microseconds.

`deliver` and `interrupt_line_changed` are called with `lock` held; `entries_changed` with `ioapic_lock`;
`commit_routes` with `routes_lock` and `ioapic_lock`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping

from irqchip_core.bus import Bus
from irqchip_core.clock import Clock
from irqchip_core.event_table import EventSlot, EventTable
from irqchip_core.events import (
    Event,
    IrqEdgeEvent,
    IrqEventIndex,
    IrqEventSource,
    IrqLevelEvent,
    PlatformDeviceId,
)
from irqchip_core.routes import X86_PINS, IrqSourceChip, MsiSource, PinSource, RoutingTable, default_routes
from irqchip_core.x86.board_devices import (
    IOAPIC_LENGTH,
    PIC_RANGES,
    PIT_RANGES,
    IoapicPage,
    PicPorts,
    PitPorts,
)
from irqchip_core.x86.counters import GsiCount
from irqchip_core.x86.effects import Effects, Resample
from irqchip_core.x86.finalization import Place
from irqchip_core.x86.ioapic import Ioapic
from irqchip_core.x86.ioapic_lock import IoapicLock
from irqchip_core.x86.lapic_timer import SHORTEST_PERIOD
from irqchip_core.x86.msi import Message, decode_msi
from irqchip_core.x86.pic import CASCADE, Pic
from irqchip_core.x86.pit import Pit
from irqchip_core.x86.state import IOAPIC_BASE, IoapicState, PicSelect, PicState, PitState
from irqchip_core.x86.state_checks import check_ioapic, check_pic, check_pit, check_select

TIMER_GSI = 0
TIMER_SOURCE = IrqEventSource(PlatformDeviceId.PIT, 0, "userspace PIT")

_PIC_LINES = {IrqSourceChip.PIC_PRIMARY: 0, IrqSourceChip.PIC_SECONDARY: 8}
# Who asserts a line; it is high while any of them does.
_DIRECT, _PULSED, _RESAMPLED = 1, 2, 4
_RESTORED = 8  # a restored line, of which nobody has said yet that it is his: any of the first and third can release it
_RELEASES = {_DIRECT: _DIRECT | _RESTORED, _PULSED: _PULSED, _RESAMPLED: _RESAMPLED | _RESTORED}


class Board:
    """The parts.

    Args:
        name: Of the chip, for error messages.
        clock: Where the PIT and the IOAPIC have their time from.
        pins: Number of inputs of the IOAPIC, 24 to 240.
        deliver: Takes each message of the IOAPIC and of MSI routes; says whether a local APIC accepted it.
        interrupt_line_changed: Told the level of the PICs' INT output when it changes.
        deadline_changed: Told when `expire` wants to be called, if that is new.
        entries_changed: Told that redirection entries may have changed, before anything is sent according to them.
        commit_routes: Told the next routing table before it counts. If it raises, the routes stay as they are.

    Attributes:
        pic, ioapic, pit: The controllers. Use them with their lock only.
        routes: The routing table. Replaced, never changed.
        events: The event table.
        raised: How often each GSI was asserted, by signals of events or directly.
        merged: How many of these signals an event's counter had merged with another one.
    """

    def __init__(
        self,
        name: str,
        clock: Clock,
        pins: int,
        *,
        deliver: Callable[[Message], bool],
        interrupt_line_changed: Callable[[bool], None],
        deadline_changed: Callable[[int], None],
        entries_changed: Callable[[], None] = lambda: None,
        commit_routes: Callable[[RoutingTable], None] = lambda routes: None,
    ) -> None:
        self.name = name
        self.clock = clock
        self.routes_lock = threading.Lock()
        self.lock = threading.Lock()
        self.ioapic_lock = IoapicLock(self.lock)
        self.pic = Pic()
        self.ioapic = Ioapic(pins)
        self.pit = Pit(clock.now())
        self.events = EventTable()
        self.raised: dict[int, int] = {}
        self.merged: dict[int, int] = {}
        self._deliver = deliver
        self._interrupt_line_changed = interrupt_line_changed
        self._deadline_changed = deadline_changed
        self._entries_changed = entries_changed
        self._commit_routes = commit_routes
        self._interrupt_line = False
        self._asserted: dict[int, int] = {}  # by GSI: who asserts it
        self._pins: Mapping[IrqSourceChip, int] = {**X86_PINS, IrqSourceChip.IOAPIC: pins}
        self._set_routes(RoutingTable(default_routes(pins), pins=self._pins, subject=name))
        self._level_lines = 0  # of the PICs: those with level events, as bits
        self._timer = IrqEdgeEvent()
        self.events.append(TIMER_GSI, self._timer, TIMER_SOURCE)

    # Events

    def register(self, gsi: int, event: IrqEdgeEvent | IrqLevelEvent, source: IrqEventSource) -> IrqEventIndex:
        """Add to the event table."""
        index = self.events.append(gsi, event, source)
        if isinstance(event, IrqLevelEvent):
            self._find_level_lines()
        return index

    def unregister(self, gsi: int, trigger: Event) -> bool:
        """Take out of the event table; False if it is not there. The last level event of a GSI lowers its line."""
        slot = self.events.remove(gsi, trigger)
        if slot is None:
            return False
        if slot.resample is not None:
            self._find_level_lines()
            if not any(s.gsi == gsi and s.resample for s in self.events.slots()):
                with self.ioapic_lock, self.lock:
                    self._assert(gsi, _RESAMPLED, False)
        with self.lock:  # a thread that found it in the table had the lock, and is done
            slot.close()
        return True

    def _find_level_lines(self) -> None:
        """Learn which inputs are asserted by level events, after events or routes have changed."""
        with self.ioapic_lock, self.lock:
            gsis = {slot.gsi for slot in self.events.slots() if slot.resample is not None}
            pins = [source for gsi in gsis for source in self.routes[gsi] if isinstance(source, PinSource)]
            self.ioapic.resample_pins = sum({1 << pin.pin for pin in pins if pin.chip is IrqSourceChip.IOAPIC})
            self._level_lines = sum({1 << _PIC_LINES[pin.chip] + pin.pin for pin in pins if pin.chip in _PIC_LINES})

    def service_event(self, index: IrqEventIndex) -> None:
        """Serve a token. An event that is not signalled any more does nothing."""
        with self.lock:  # so that no thread closes the event meanwhile
            slot = self.events.slot(index, subject=self.name)
            if slot is None or not (signals := slot.trigger.reset()):
                return
            if slot.gsi not in self._ioapic_gsis:
                self._signalled(slot, signals)
                return
            self.ioapic_lock.delay(index, signals)
        self._serve_delayed()

    def process_delayed(self) -> None:
        """Serve the events that found the IOAPIC busy. If it still is, its release makes the token readable again."""
        with self.lock:
            self.ioapic_lock.withdraw()
        self._serve_delayed()

    def _serve_delayed(self) -> None:
        if not self.ioapic_lock.acquire(blocking=False):
            return
        try:
            with self.lock:
                while (delayed := self.ioapic_lock.next_delayed()) is not None:
                    index, signals = delayed
                    if (slot := self.events.slot(index)) is not None:  # else it would assert a line that nothing lowers
                        self._signalled(slot, signals)
        finally:
            self.ioapic_lock.release()

    def events_delayed(self) -> bool:
        """Whether events wait for the IOAPIC."""
        with self.lock:
            return self.ioapic_lock.any_delayed()

    def _signalled(self, slot: EventSlot, signals: int) -> None:
        """Serve `signals` of an event, which are one interrupt. With `lock`, and that of an IOAPIC that it reaches."""
        self._count(slot.gsi, signals)
        if slot.resample is not None:
            self._assert(slot.gsi, _RESAMPLED, True)
        else:
            self._assert(slot.gsi, _PULSED, True)
            self._assert(slot.gsi, _PULSED, False)
        self._send(slot.gsi)

    # Lines

    def service_irq(self, gsi: int, level: bool) -> None:
        """Drive a GSI directly; an MSI is sent when `level` is true."""
        if gsi not in self._ioapic_gsis:
            with self.lock:
                if gsi not in self._ioapic_gsis:  # the routes may have changed
                    self._drive_directly(gsi, level)
                    return
        with self.ioapic_lock, self.lock:
            self._drive_directly(gsi, level)

    def _drive_directly(self, gsi: int, level: bool) -> None:
        if level:
            self._count(gsi, 1)
            self._send(gsi)
        self._assert(gsi, _DIRECT, level)

    def _count(self, gsi: int, signals: int) -> None:
        if self.routes[gsi]:  # the host may name any number
            self.raised[gsi] = self.raised.get(gsi, 0) + signals
            if signals > 1:
                self.merged[gsi] = self.merged.get(gsi, 0) + signals - 1

    def gsi_counts(self) -> tuple[GsiCount, ...]:
        """What was raised so far."""
        slots = self.events.slots()
        with self.lock:
            return tuple(
                GsiCount(
                    gsi,
                    tuple(slot.source.device_name for slot in slots if slot.gsi == gsi),
                    self.raised[gsi],
                    self.merged.get(gsi, 0),
                )
                for gsi in sorted(self.raised)
            )

    def _send(self, gsi: int) -> None:
        """Send the messages of `gsi`. With `lock`."""
        for source in self.routes[gsi]:
            if isinstance(source, MsiSource) and (message := decode_msi(source.address, source.data)) is not None:
                self._deliver(message)

    def _assert(self, gsi: int, who: int, level: bool) -> None:
        """Let `who` assert or release `gsi`, and drive its pins. With `lock`, and that of an IOAPIC that it reaches.

        A level event waits for a route; all else is lost without one.
        """
        sources = self.routes[gsi]
        if sources or who == _RESAMPLED:
            self._note(gsi, who, level)
            self._drive(sources, self._asserted.get(gsi, 0))

    def _note(self, gsi: int, who: int, level: bool) -> None:
        before = self._asserted.get(gsi, 0)
        if after := before | who if level else before & ~_RELEASES[who]:
            self._asserted[gsi] = after
        elif before:
            del self._asserted[gsi]

    def _drive(self, sources: Iterable[object], who: int) -> None:
        """Put pins high if `who` or another one asserts them. With `lock`, and for the IOAPIC's with `ioapic_lock`."""
        for source in sources:
            if not isinstance(source, PinSource):
                continue
            everybody = who | self._asserters(source)
            if source.chip is IrqSourceChip.IOAPIC:
                message = self.ioapic.set_line(source.pin, everybody != 0).message
                if message is not None and not self._deliver(message):
                    self.ioapic.refused(message)
            else:
                line = _PIC_LINES[source.chip] + source.pin
                if everybody == _RESAMPLED:
                    self.pic.event_lines |= 1 << line
                else:
                    self.pic.event_lines &= ~(1 << line)
                self.pic.set_line(line, everybody != 0)
                self.update_interrupt_line()

    def _asserters(self, source: PinSource) -> int:
        """Who asserts this pin, by any GSI. Those that were only restored do not: nobody might ever release them."""
        found = 0
        for gsi, who in self._asserted.items():
            if source in self.routes[gsi]:
                found |= who & ~_RESTORED
        return found

    def update_interrupt_line(self) -> None:
        """Tell the chip if the PICs' INT output has changed. With `lock`, after anything was done to the PICs."""
        if self.pic.interrupt_requested != self._interrupt_line:
            self._interrupt_line = self.pic.interrupt_requested
            self._interrupt_line_changed(self._interrupt_line)

    def write_ioapic(self, offset: int, size: int, value: int) -> None:
        """The guest writes a register of the IOAPIC."""
        with self.ioapic_lock:
            self._follow_ioapic(self.ioapic.write(offset, size, value, self.clock.now()))

    def _follow_ioapic(self, effects: Effects) -> None:
        """The guest has written a register, or ended an interrupt. With `ioapic_lock`."""
        try:
            self._entries_changed()
        finally:  # the IOAPIC has changed, and will not say so again
            self._carry_out(effects)

    # Ends of interrupts

    def broadcast_eoi(self, vector: int) -> None:
        """A local APIC ended `vector`."""
        with self.ioapic_lock:
            self._follow_ioapic(self.ioapic.end_of_interrupt(vector, self.clock.now()))

    def _carry_out(self, effects: Effects) -> None:
        """Do what the IOAPIC asks for. With `ioapic_lock`."""
        if not effects:
            return
        with self.lock:
            for effect in effects:
                if isinstance(effect, Message):
                    if not self._deliver(effect):
                        self.ioapic.refused(effect)
                elif isinstance(effect, Resample):
                    self._resample_source(PinSource(IrqSourceChip.IOAPIC, effect.pin))
        if self.ioapic.wake_at is not None:
            self._deadline_changed(self.ioapic.wake_at)

    def settle_pics(self) -> None:
        """Resample the lines whose interrupts the PICs have ended. With no lock, after a vCPU used the PICs."""
        if not self.pic.ended:
            return
        with self.lock:
            ended, self.pic.ended = self.pic.ended & self._level_lines, 0
        if not ended:
            return
        with self.ioapic_lock, self.lock:  # a GSI with a pin here may have one of the IOAPIC, too
            while ended:
                line = ended.bit_length() - 1
                ended ^= 1 << line
                chip = IrqSourceChip.PIC_PRIMARY if line < 8 else IrqSourceChip.PIC_SECONDARY
                self._resample_source(PinSource(chip, line & 7))

    def _resample_source(self, source: PinSource) -> None:
        """The interrupt of a pin has ended: lower the lines that level events assert, and ask their devices."""
        slots = [slot for slot in self.events.slots() if slot.resample is not None and source in self.routes[slot.gsi]]
        gsis = {slot.gsi for slot in slots}
        for gsi in gsis:  # all, before any pin is driven: they may share it
            self._note(gsi, _RESAMPLED, False)
        for gsi in gsis:
            self._drive(self.routes[gsi], gsi in self._asserted)
        self._ask(slots)

    def _ask(self, slots: Iterable[EventSlot]) -> None:
        """Let the devices of level events look whether they still want service."""
        for slot in slots:
            if slot.resample is not None:
                slot.resample.signal()

    # Routes

    def change_routes(self, change: Callable[[RoutingTable], RoutingTable]) -> RoutingTable:
        """Replace all routes by what `change` makes of them, and return that.

        A line that is high lets go of the pins it loses and asserts those it gets. A level event whose line loses a
        pin might never hear of the end of its interrupt: the line is lowered, and its device asked at once. What
        `change` or `commit_routes` raises leaves everything as it was.
        """
        with self.routes_lock:
            routes = change(self.routes)
            with self.ioapic_lock:
                self._commit_routes(routes)
                with self.lock:
                    self._exchange_routes(routes)
            self._find_level_lines()
        return routes

    def _set_routes(self, routes: RoutingTable) -> None:
        self.routes = routes
        sources = ((route.gsi, route.source) for route in routes)
        self._ioapic_gsis = frozenset(
            gsi for gsi, pin in sources if isinstance(pin, PinSource) and pin.chip is IrqSourceChip.IOAPIC
        )

    def _exchange_routes(self, routes: RoutingTable) -> None:
        old = self.routes
        self._set_routes(routes)
        moved = [gsi for gsi in self._asserted if old[gsi] != routes[gsi]]
        lost = {gsi: [source for source in old[gsi] if source not in routes[gsi]] for gsi in moved}
        asked = {gsi for gsi in moved if lost[gsi] and self._asserted[gsi] & _RESAMPLED}
        for gsi in asked:
            self._note(gsi, _RESAMPLED, False)
        for gsi in moved:
            self._drive(lost[gsi], 0)
            self._drive(routes[gsi], self._asserted.get(gsi, 0))
            if not routes[gsi]:
                self._note(gsi, _DIRECT, False)
        self._ask(slot for slot in self.events.slots() if slot.gsi in asked)

    # Time

    def expire(self) -> int | None:
        """Let PIT and IOAPIC catch up with the time; when to call this again, None for never."""
        deadlines: list[int | None] = []
        if self.ioapic.wake_at is not None:  # `deadline_changed` is called after it was set
            with self.ioapic_lock:
                now = self.clock.now()
                if self.ioapic.wake_at is not None and self.ioapic.wake_at <= now:
                    self._carry_out(self.ioapic.expire(now))
                deadlines.append(self.ioapic.wake_at)
        with self.lock:
            deadlines.append(self._follow_pit())
        return min((when for when in deadlines if when is not None), default=None)

    def _follow_pit(self) -> int | None:
        """Raise what the PIT has raised up to now; when to look again. With `lock`.

        Both at one instant: an edge between the two would be neither raised nor waited for.
        """
        now = self.clock.now()
        edges = self.pit.take_rising_edges(now)
        when = self.pit.next_rising_edge(now)
        if not edges:
            return when
        self._timer.trigger()
        return None if when is None else max(when, now + SHORTEST_PERIOD)

    def pit_written(self) -> None:
        """The guest programmed the PIT. With `lock`."""
        if (when := self._follow_pit()) is not None:
            self._deadline_changed(when)

    # Buses

    def places(self, io_bus: Bus, mmio_bus: Bus) -> list[Place]:
        """Where guests find the parts."""
        return [
            *((io_bus, PicPorts(self), base, length) for base, length in PIC_RANGES),
            *((io_bus, PitPorts(self), base, length) for base, length in PIT_RANGES),
            (mmio_bus, IoapicPage(self), IOAPIC_BASE, IOAPIC_LENGTH),
        ]

    # State

    def get_pic_state(self, select: PicSelect) -> PicState:
        check_select(select, subject=self.name)
        with self.lock:
            return self.pic.state(select)

    def set_pic_state(self, select: PicSelect, state: PicState) -> None:
        check_pic(state, select, subject=self.name)
        with self.lock:
            states = [self.pic.state(PicSelect.PRIMARY), self.pic.state(PicSelect.SECONDARY)]
            states[select] = state
            event_lines = self.pic.event_lines
            self.pic = Pic.from_state(*states)
            self.pic.event_lines = event_lines
            self.update_interrupt_line()

    def get_ioapic_state(self) -> IoapicState:
        with self.ioapic_lock:
            return self.ioapic.state(self.clock.now())

    def set_ioapic_state(self, state: IoapicState) -> None:
        check_ioapic(state, self.ioapic.pins, subject=self.name)
        with self.ioapic_lock:
            self.ioapic.set_state(state, self.clock.now())
            self._entries_changed()
            wake_at = self.ioapic.wake_at
            with self.lock:
                self._learn_lines(state.current_interrupt_level_bitmap)
        if wake_at is not None:
            self._deadline_changed(wake_at)

    def _learn_lines(self, levels: int) -> None:
        """Take the levels of restored pins for those of their lines. With both locks."""
        states = [self.pic.state(select) for select in (PicSelect.PRIMARY, PicSelect.SECONDARY)]
        high = {
            IrqSourceChip.IOAPIC: levels,
            IrqSourceChip.PIC_PRIMARY: states[0].last_irr & ~(1 << CASCADE),  # which is the secondary's
            IrqSourceChip.PIC_SECONDARY: states[1].last_irr,
        }
        self._asserted = {
            route.gsi: _RESTORED
            for route in self.routes
            if isinstance(route.source, PinSource) and high[route.source.chip] >> route.source.pin & 1
        }

    def get_pit(self) -> PitState:
        with self.lock:
            return self.pit.state(self.clock.now())

    def set_pit(self, state: PitState) -> None:
        check_pit(state, subject=self.name)
        with self.lock:
            self.pit = Pit.from_state(state, self.clock.now())
            self.pit_written()

    def close(self) -> None:
        """Close all events."""
        with self.lock:
            self.events.close()
            self.ioapic_lock.close()
        self._timer.close()
