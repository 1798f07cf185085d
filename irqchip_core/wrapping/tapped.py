"""`TappedIrqChip`: a wrapped chip in which every interrupt that a device raises passes one method.

A device's event is registered with the wrapper. The inner chip has an event of the wrapper (the relay) on the same GSI,
which `TappedIrqChip.signalled` triggers. So an interrupt can be counted, held back, repeated or dropped on any chip,
even one in the kernel. The cost is a pass through the irq loop.

Interrupts of the chip's own parts (timers, IPIs) and direct calls of `service_irq` do not pass this method.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable

from attrs import evolve, field, frozen
from typing_extensions import override

from irqchip_core.arguments import check_type
from irqchip_core.errors import Closed
from irqchip_core.event_table import EventSlot, EventTable
from irqchip_core.eventfd import Event
from irqchip_core.events import IrqEdgeEvent, IrqEventIndex, IrqEventSource, IrqEventToken, IrqLevelEvent
from irqchip_core.hookspecs import irqchip_event_registered, irqchip_event_unregistered
from irqchip_core.wrapping.wrapped import WrappedIrqChip
from irqchip_core.x86.chip import IrqChipX86_64

_DeviceEvent = IrqEdgeEvent | IrqLevelEvent


@frozen(eq=False)
class DeviceInterrupt:
    """The interrupt of one registered event.

    Attributes:
        gsi: The line it drives.
        source: The device of the event.
        is_level: Whether it is level-triggered: asserted until the guest ends it.
        deliver: Passes the interrupt on to the inner chip, as if the device raised it now. May be called from any
            thread, any number of times; does nothing after the event is unregistered or the chip is closed.
    """

    gsi: int
    source: IrqEventSource
    is_level: bool
    deliver: Callable[[], None] = field(repr=False)


@frozen(eq=False)
class _Tap:
    """One registered event, and the event that the inner chip has instead.

    Attributes:
        interrupt: The argument of `signalled`.
        relay: The wrapper's event on the same GSI.
        index: The inner chip's index of the relay; None if the kernel serves it.
    """

    interrupt: DeviceInterrupt
    relay: _DeviceEvent
    index: IrqEventIndex | None


class _Taps:
    """The state that all handles share: the devices' events, and the tap of each."""

    def __init__(self, chip: IrqChipX86_64) -> None:
        self.chip = chip  # a handle of the inner chip, closed with the last handle of the wrapper
        self.table = EventTable()
        self.by_slot: dict[EventSlot, _Tap] = {}

    def deliver(self, relay: _DeviceEvent, index: IrqEventIndex | None) -> None:
        with contextlib.suppress(Closed):
            relay.trigger()
            if index is not None:  # else the kernel serves the relay
                self.chip.service_irq_event(index)

    def close(self) -> None:
        self.table.close()
        for tap in list(self.by_slot.values()):
            tap.relay.close()
        self.by_slot.clear()
        self.chip.close()


def _relay(event: _DeviceEvent) -> _DeviceEvent:
    """The inner chip's event for `event`. It shares the resample event: the inner chip notifies the device itself."""
    if isinstance(event, IrqLevelEvent):
        return IrqLevelEvent(Event(), event.get_resample().clone())
    return IrqEdgeEvent()


class TappedIrqChip(WrappedIrqChip):
    """A wrapped chip whose `signalled` is called for each interrupt that a device raises; a subclass overrides it.

    Indices of devices' events are odd, indices of the inner chip's own events are even.
    """

    name = "tapped"

    def __init__(self, inner: IrqChipX86_64) -> None:
        super().__init__(inner)
        self._taps = _Taps(inner.try_clone())

    def signalled(self, interrupt: DeviceInterrupt) -> None:
        """A device raised `interrupt`: call its `deliver` now, later, more than once, or never.

        Runs on the irq loop's thread. Several signals before one call are coalesced. A level-triggered interrupt
        that is never delivered never ends either, so its device is not resampled.
        """
        interrupt.deliver()

    @override
    def close(self) -> None:
        super().close()
        if not self._news.handles:
            self._taps.close()

    @override
    def _outer_index(self, index: IrqEventIndex) -> IrqEventIndex:
        return IrqEventIndex(index << 1)

    @override
    def register_edge_irq_event(self, irq: int, event: IrqEdgeEvent, source: IrqEventSource) -> IrqEventIndex:
        check_type(event, IrqEdgeEvent, subject=self.name, argument="event")
        return self._register(irq, event, source)

    @override
    def register_level_irq_event(self, irq: int, event: IrqLevelEvent, source: IrqEventSource) -> IrqEventIndex:
        check_type(event, IrqLevelEvent, subject=self.name, argument="event")
        return self._register(irq, event, source)

    def _register(self, irq: int, event: _DeviceEvent, source: IrqEventSource) -> IrqEventIndex:
        taps = self._taps
        with event.try_clone() as kept, self._news.silenced():  # a closed event is refused before anything is made
            relay = _relay(kept)
            try:
                inner_index = self._connect(irq, relay, source)
                try:
                    index = taps.table.append(irq, kept, source)
                except BaseException:
                    self._disconnect(irq, relay)
                    raise
            except BaseException:
                relay.close()
                raise
        slot = taps.table.slot(index)
        assert slot is not None
        deliver = functools.partial(taps.deliver, relay, inner_index)
        interrupt = DeviceInterrupt(irq, source, isinstance(event, IrqLevelEvent), deliver)
        taps.by_slot[slot] = _Tap(interrupt, relay, inner_index)
        outer = IrqEventIndex(index << 1 | 1)
        self.observers.notify(irqchip_event_registered, chip=self, gsi=irq, source=source, index=outer)
        return outer

    def _connect(self, irq: int, relay: _DeviceEvent, source: IrqEventSource) -> IrqEventIndex | None:
        if isinstance(relay, IrqLevelEvent):
            return self.inner.register_level_irq_event(irq, relay, source)
        return self.inner.register_edge_irq_event(irq, relay, source)

    def _disconnect(self, irq: int, event: _DeviceEvent) -> None:
        if isinstance(event, IrqLevelEvent):
            self.inner.unregister_level_irq_event(irq, event)
        else:
            self.inner.unregister_edge_irq_event(irq, event)

    @override
    def unregister_edge_irq_event(self, irq: int, event: IrqEdgeEvent) -> None:
        check_type(event, IrqEdgeEvent, subject=self.name, argument="event")
        self._unregister(irq, event)

    @override
    def unregister_level_irq_event(self, irq: int, event: IrqLevelEvent) -> None:
        check_type(event, IrqLevelEvent, subject=self.name, argument="event")
        self._unregister(irq, event)

    def _unregister(self, irq: int, event: _DeviceEvent) -> None:
        self._disconnect(irq, event)  # the inner chip has no such event, but refuses what is no GSI
        slot = self._taps.table.remove(irq, event.get_trigger())
        if slot is None:
            return
        tap = self._taps.by_slot.pop(slot)
        slot.close()
        with self._news.silenced():
            self._disconnect(irq, tap.relay)
        tap.relay.close()
        self.observers.notify(irqchip_event_unregistered, chip=self, gsi=irq)

    @override
    def irq_event_tokens(self) -> list[IrqEventToken]:
        relays = {tap.index for tap in list(self._taps.by_slot.values())}
        tokens = []
        for token in self.inner.irq_event_tokens():
            if token.index in relays:  # `deliver` serves these
                token.close()
            else:
                tokens.append(evolve(token, index=self._outer_index(token.index)))
        tokens += [evolve(token, index=IrqEventIndex(token.index << 1 | 1)) for token in self._taps.table.tokens()]
        return sorted(tokens, key=lambda token: token.index)

    @override
    def service_irq_event(self, index: IrqEventIndex) -> None:
        check_type(index, int, subject=self.name, argument="index")
        if not index & 1:
            self.inner.service_irq_event(IrqEventIndex(index >> 1))
            return
        slot = self._taps.table.slot(index >> 1, subject=self.name)
        tap = self._taps.by_slot.get(slot) if slot is not None else None
        if slot is not None and tap is not None and slot.trigger.reset():
            self.signalled(tap.interrupt)
