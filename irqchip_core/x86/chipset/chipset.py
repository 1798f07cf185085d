"""`Chipset`: PICs, IOAPIC, PIT and the lines between them and devices, under one lock.

The parts answer with effects, and the chipset carries these out, one after another, until none are left. Messages and
the INT output of the PICs go to the local APICs (`LocalApics`), which the chip provides::

    device's event ─┐                                ┌─► Pic ──► IntChanged ─┐
    service_irq ────┼─► Lines ──► DriveLine, DrivePin┤                       ├─► LocalApics
                    │     ▲                          └─► Ioapic ─► Message ──┘       │
    Resample ◄──────┼─────┴── LineEnded, PinEnded ◄── guest's EOI                    │
                    └────────────────────────────────────────── EoiBroadcast ◄───────┘

Two locks, taken in this order:

1. `routes_lock`: which GSI leads where. Held while routes change, and while a chip registers events by its routes.
2. `lock`: all other state of the chipset, and that of the chip. Held for microseconds; on a chip that passes
   redirection entries on to a hypervisor, for as long as that takes.

An event that drives an input waits for `lock`, at most for DELAY_SECONDS, and then it is delayed (`DelayingLock`). A
message passes no controller: it is never delayed, and where the local APICs are `LocalApics.lock_free` it does not wait
for accesses to the controllers either.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from irqchip_core.bus import Bus
from irqchip_core.clock import Clock
from irqchip_core.event_table import EventSlot, EventTable
from irqchip_core.eventfd import Event
from irqchip_core.events import (
    IrqEdgeEvent,
    IrqEventIndex,
    IrqEventSource,
    IrqLevelEvent,
    PlatformDeviceId,
)
from irqchip_core.routes import X86_PINS, IrqSourceChip, RoutingTable, default_routes
from irqchip_core.x86.chipset.delaying_lock import DelayingLock
from irqchip_core.x86.chipset.devices import IOAPIC_LENGTH, PIC_RANGES, PIT_RANGES, IoapicPage, PicPorts, PitPorts
from irqchip_core.x86.chipset.lines import Lines
from irqchip_core.x86.counters import GsiCount
from irqchip_core.x86.effects import (
    DriveLine,
    DrivePin,
    Effects,
    EntriesChanged,
    EoiBroadcast,
    IntChanged,
    LineEnded,
    PinEnded,
    Resample,
    TimerRose,
    WakeAt,
)
from irqchip_core.x86.finalization import Place
from irqchip_core.x86.ioapic import Ioapic
from irqchip_core.x86.msi import Message
from irqchip_core.x86.pic import CASCADE, Pic
from irqchip_core.x86.pit import Pit
from irqchip_core.x86.state import IOAPIC_BASE, IoapicState, PicSelect, PicState, PitState

TIMER_GSI = 0
TIMER_SOURCE = IrqEventSource(PlatformDeviceId.PIT, 0, "userspace PIT")
DELAY_SECONDS = 0.001
"""How long a signal waits for `Chipset.lock` before it is delayed."""


class LocalApics(Protocol):
    """The local APICs of a machine, as its chipset uses them. All methods are called with the chipset's lock held.

    Attributes:
        lock_free: `deliver` may also be called without the lock: the local APICs are the hypervisor's.
    """

    lock_free: bool

    def deliver(self, message: Message) -> bool:
        """Deliver a message of the IOAPIC or of a route; False if no local APIC accepts it."""
        ...

    def int_changed(self, high: bool) -> None:
        """The PICs' INT output, wired to LINT0 of the boot processor, has changed."""
        ...

    def entries_changed(self, pins: int) -> None:
        """Redirection entries of these pins, as bits, have changed. Called before a message is sent by them."""
        ...

    def commit_routes(self, routes: RoutingTable) -> None:
        """Prepare for `routes`, which replaces the routing table next. An error leaves the routes as they are."""
        ...

    def expire(self, now: int) -> int | None:
        """Advance the timers to `now`; returns when to call this again, None for never."""
        ...


class Chipset:
    """PICs, IOAPIC, PIT and lines of one machine.

    Args:
        name: Name of the chip, for error messages.
        clock: The clock of PIT and IOAPIC.
        pins: Number of inputs of the IOAPIC, 24 to 240.

    Attributes:
        lock, routes_lock: The two locks; the module's docstring has their order.
        pic, ioapic, pit, lines: The parts. To be used with `lock` held.
        events: The event table.
    """

    apics: LocalApics
    """The local APICs. To be set before any method is called."""

    def __init__(self, name: str, clock: Clock, pins: int) -> None:
        self.name = name
        self.clock = clock
        self.lock = DelayingLock()
        self.routes_lock = threading.Lock()
        self.pic = Pic()
        self.ioapic = Ioapic(pins)
        self.pit = Pit(clock.now())
        controllers = {**X86_PINS, IrqSourceChip.IOAPIC: pins}
        self.lines = Lines(RoutingTable(default_routes(pins), pins=controllers, subject=name))
        self.events = EventTable()
        self._timer = IrqEdgeEvent()
        self.events.append(TIMER_GSI, self._timer, TIMER_SOURCE)
        self._alarm = clock.alarm(self._expire)
        self._alarm_at: int | None = None
        self._expiring = False
        self._carriers: dict[type[NamedTuple], Callable[[Any], object]] = {
            Message: self._message,
            DriveLine: lambda effect: self.carry_out(self.pic.set_line(*effect)),
            DrivePin: lambda effect: self.carry_out(self.ioapic.set_line(*effect)),
            Resample: lambda effect: self.events.resample(effect.gsi),
            IntChanged: lambda effect: self.apics.int_changed(effect.high),
            LineEnded: lambda effect: self.carry_out(self.lines.line_ended(*effect)),
            PinEnded: lambda effect: self.carry_out(self.lines.pin_ended(effect.pin)),
            EntriesChanged: lambda effect: self.apics.entries_changed(effect.pins),
            EoiBroadcast: self._eoi_broadcast,
            TimerRose: lambda effect: self._timer.trigger(),
            WakeAt: lambda effect: self.wake_at(effect.time),
        }

    # Effects

    def carry_out(self, effects: Effects) -> None:
        """Carry out effects, and the effects that follow from them. Call it with `lock` held.

        An error does not stop the rest; the first one is raised at the end.
        """
        failure: Exception | None = None
        carriers = self._carriers
        for effect in effects:
            try:
                carriers[type(effect)](effect)
            except Exception as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def _message(self, message: Message) -> None:
        if not self.apics.deliver(message):
            self.ioapic.refused(message)

    def _eoi_broadcast(self, effect: EoiBroadcast) -> None:
        self.carry_out(self.ioapic.end_of_interrupt(effect.vector, self.clock.now()))

    # Events

    def register(self, gsi: int, event: IrqEdgeEvent | IrqLevelEvent, source: IrqEventSource) -> IrqEventIndex:
        """Add an event to the event table."""
        with self.lock:
            index = self.events.append(gsi, event, source)
            if isinstance(event, IrqLevelEvent):
                self.lines.add_level_event(gsi)
                self._resample_lines_changed()
        return index

    def unregister(self, gsi: int, trigger: Event) -> bool:
        """Remove an event from the event table; False if it is not there. The last level event of a GSI releases it."""
        slot = self.events.remove(gsi, trigger)
        if slot is None:
            return False
        if slot.resample is not None:
            with self.lock:
                effects = self.lines.remove_level_event(gsi)
                self._resample_lines_changed()
                self.carry_out(effects)
        slot.close()
        return True

    def _resample_lines_changed(self) -> None:
        self.pic.resample_lines = self.lines.resample_lines
        self.ioapic.resample_lines = self.lines.resample_pins

    def service_event(self, index: IrqEventIndex) -> None:
        """Serve the token of an event. Without a signal it does nothing."""
        slot, signals = self.events.take(index, subject=self.name)
        if slot is None or not signals:
            return
        if slot.resample is None and self.lines.messages(slot.gsi):
            self._send(slot.gsi, lambda: self.lines.edge(slot.gsi, signals))
            return
        lock = self.lock
        if lock.acquire(timeout=DELAY_SECONDS):
            try:
                self._signalled(index, slot, signals)
            finally:
                lock.release()
        else:
            lock.delayed.append((index, signals))
            if lock.acquire(blocking=False):
                lock.release()

    def process_delayed(self) -> None:
        """Serve the delayed events. If the lock is still taken they stay, and the trigger becomes readable again."""
        lock = self.lock
        lock.reset()
        if not lock.acquire(timeout=DELAY_SECONDS):
            return
        try:
            delayed: dict[IrqEventIndex, int] = {}
            while lock.delayed:
                index, signals = lock.delayed.popleft()
                delayed[index] = delayed.get(index, 0) + signals
            failure: Exception | None = None
            for index, signals in delayed.items():
                try:
                    if (slot := self.events.slot(index)) is not None:
                        self._signalled(index, slot, signals)
                except Exception as error:  # the others are not delayed any more
                    failure = failure or error
            if failure is not None:
                raise failure
        finally:
            lock.release()

    def delayed_token(self) -> Event:
        """A clone of `DelayingLock.trigger`."""
        return self.lock.token()

    def _signalled(self, index: IrqEventIndex, slot: EventSlot, signals: int) -> None:
        """Raise the one interrupt of an event that was signalled. Call it with `lock` held."""
        if self.events.slot(index) is not slot:
            return  # unregistered meanwhile: nothing would lower the line that it asserts
        if slot.resample is None:
            self.carry_out(self.lines.edge(slot.gsi, signals))
        else:
            self.carry_out(self.lines.level(slot.gsi, signals))

    # Lines and routes

    def service_irq(self, gsi: int, level: bool) -> None:
        """Drive a GSI directly; its messages are sent if `level` is true."""
        if level and self.lines.messages(gsi):
            self._send(gsi, lambda: self.lines.drive(gsi, True))
            return
        with self.lock:
            self.carry_out(self.lines.drive(gsi, level))

    def _send(self, gsi: int, asserted: Callable[[], Effects]) -> None:
        """Send the messages of a GSI; `asserted` counts it, and returns effects, these messages among them."""
        sent: tuple[Message, ...] = ()
        if self.apics.lock_free:
            sent = self.lines.messages(gsi)
            for message in sent:
                self.apics.deliver(message)
        with self.lock:
            # Other messages than those sent are of routes that have changed since.
            self.carry_out(tuple(effect for effect in asserted() if effect not in sent))

    def broadcast_eoi(self, vector: int) -> None:
        """A local APIC ended level-triggered interrupt `vector`."""
        with self.lock:
            self.carry_out(self.ioapic.end_of_interrupt(vector, self.clock.now()))

    def change_routes(self, change: Callable[[RoutingTable], RoutingTable]) -> RoutingTable:
        """Replace the routing table by `change` of it, and return the new one.

        An error of `change` or `LocalApics.commit_routes` leaves everything as it was.
        """
        with self.routes_lock:
            routes = change(self.lines.routes)
            with self.lock:
                self.apics.commit_routes(routes)
                effects = self.lines.change_routes(routes)
                self._resample_lines_changed()
                self.carry_out(effects)
        return routes

    def gsi_counts(self) -> tuple[GsiCount, ...]:
        """The counters of each GSI that was asserted so far."""
        slots = self.events.slots()
        with self.lock:
            raised, coalesced = dict(self.lines.raised), dict(self.lines.coalesced)
        names: dict[int, list[str]] = {}
        for slot in slots:
            names.setdefault(slot.gsi, []).append(slot.source.device_name)
        return tuple(
            GsiCount(gsi, tuple(names.get(gsi, ())), raised[gsi], coalesced.get(gsi, 0)) for gsi in sorted(raised)
        )

    # Time

    def start(self) -> None:
        """Start the alarm of the timers."""
        self._alarm.start()

    def wake_at(self, when: int | None) -> None:
        """Advance the timers at `when`, or earlier. Call it with `lock` held."""
        if when is not None and (self._alarm_at is None or when < self._alarm_at):
            self._alarm_at = when
            if not self._expiring:
                self._alarm.set(when)

    def _expire(self) -> None:
        with self.lock:
            now = self.clock.now()
            self._alarm_at, self._expiring = None, True
            try:
                try:
                    self.carry_out((*self.ioapic.expire(now), *self.pit.expire(now)))
                finally:  # an error of one interrupt stops no timer
                    self.wake_at(self.ioapic.wake_at)
                    self.wake_at(self.apics.expire(now))
            finally:
                self._expiring = False
                if self._alarm_at is not None:
                    self._alarm.set(self._alarm_at)

    # Buses

    def places(self, io_bus: Bus, mmio_bus: Bus) -> list[Place]:
        """The devices of PICs, PIT and IOAPIC, with their ranges on the buses."""
        return [
            *((io_bus, PicPorts(self), base, length) for base, length in PIC_RANGES),
            *((io_bus, PitPorts(self), base, length) for base, length in PIT_RANGES),
            (mmio_bus, IoapicPage(self), IOAPIC_BASE, IOAPIC_LENGTH),
        ]

    # State

    def get_pic_state(self, select: PicSelect) -> PicState:
        with self.lock:
            return self.pic.state(select)

    def set_pic_state(self, select: PicSelect, state: PicState) -> None:
        with self.lock:
            self.carry_out(self.pic.set_state(select, state))

    def get_ioapic_state(self) -> IoapicState:
        with self.lock:
            return self.ioapic.state(self.clock.now())

    def set_ioapic_state(self, state: IoapicState) -> None:
        """Set the state of the IOAPIC. Then any device of a high input, of the PICs too, counts as asserting it."""
        with self.lock:
            effects = self.ioapic.set_state(state, self.clock.now())
            primary, secondary = (self.pic.state(select).last_irr for select in PicSelect)
            # The level of the cascade is the secondary's INT, and no device's.
            self.lines.restore(primary & ~(1 << CASCADE) | secondary << 8, state.current_interrupt_level_bitmap)
            self.carry_out(effects)

    def get_pit(self) -> PitState:
        with self.lock:
            return self.pit.state(self.clock.now())

    def set_pit(self, state: PitState) -> None:
        with self.lock:
            now = self.clock.now()
            self.pit = Pit.from_state(state, now)
            self.carry_out(self.pit.expire(now))

    def close(self) -> None:
        """Stop the timers and close all events. Call it without `lock`."""
        self._alarm.close()
        with self.lock:
            self._carriers = dict.fromkeys(self._carriers, lambda effect: None)  # guests may go on to use the buses
            self.events.close()
            self.lock.delayed.clear()
            self._timer.close()
        self.lock.close()
