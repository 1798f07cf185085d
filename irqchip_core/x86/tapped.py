"""`TappedIrqChip`: a chip through which every interrupt a device raises passes one method.

A device's event is registered here, not with the inner chip; that gets an event of ours on the same GSI, and
hears what `TappedIrqChip.signalled` passes on. So an interrupt may be counted, held back, repeated or lost,
whichever chip is behind it, even one that lives in the kernel. The price is a way through the irq loop.

Interrupts of the chip's own parts (timers, IPIs) and direct calls of `service_irq` do not pass.
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
from irqchip_core.events import Event, IrqEdgeEvent, IrqEventIndex, IrqEventSource, IrqEventToken, IrqLevelEvent
from irqchip_core.hookspecs import irqchip_event_registered, irqchip_event_unregistered
from irqchip_core.x86.chip import IrqChipX86_64
from irqchip_core.x86.wrapped import WrappedIrqChip

_DeviceEvent = IrqEdgeEvent | IrqLevelEvent


@frozen(eq=False)
class DeviceInterrupt:
    """The interrupt of one registered event.

    Attributes:
        gsi: The line it drives.
        source: Whose it is.
        is_level: Whether it is level-triggered: asserted until the guest ends it.
        deliver: Gives it to the inner chip, as if the device had raised it now. From any thread, any number of
            times; does nothing once the event is unregistered or the chip closed.
    """

    gsi: int
    source: IrqEventSource
    is_level: bool
    deliver: Callable[[], None] = field(repr=False)


@frozen(eq=False)
class _Tap:
    """One registered event: the interrupt shown to `signalled`, and what the inner chip listens to instead.

    Attributes:
        interrupt: What is shown.
        relay: Our event on the same GSI.
        index: The inner chip's index of it; None if the kernel listens.
    """

    interrupt: DeviceInterrupt
    relay: _DeviceEvent
    index: IrqEventIndex | None


class _Taps:
    """What all handles share: the devices' events, and the interrupt of each."""

    def __init__(self, chip: IrqChipX86_64) -> None:
        self.chip = chip  # a handle for as long as there is one of ours
        self.table = EventTable()
        self.by_slot: dict[EventSlot, _Tap] = {}

    def deliver(self, relay: _DeviceEvent, index: IrqEventIndex | None) -> None:
        with contextlib.suppress(Closed):
            relay.trigger()
            if index is not None:  # else the kernel has heard it
                self.chip.service_irq_event(index)

    def close(self) -> None:
        self.table.close()
        for tap in list(self.by_slot.values()):
            tap.relay.close()
        self.by_slot.clear()
        self.chip.close()


def _relay(event: _DeviceEvent) -> _DeviceEvent:
    """What the inner chip listens to. It tells the device of the end of a level interrupt by itself."""
    if isinstance(event, IrqLevelEvent):
        return IrqLevelEvent(Event(), event.get_resample().clone())
    return IrqEdgeEvent()


class TappedIrqChip(WrappedIrqChip):
    """A wrapped chip that sees each interrupt a device raises. Override `signalled`.

    Indices of events are odd for those of devices, and even for the inner chip's own.
    """

    name = "tapped"

    def __init__(self, inner: IrqChipX86_64) -> None:
        super().__init__(inner)
        self._taps = _Taps(inner.try_clone())

    def signalled(self, interrupt: DeviceInterrupt) -> None:
        """A device raised `interrupt`: call its `deliver` now, later, more than once, or never.

        Runs on the irq loop's thread; that of several signals before it may see one. A level-triggered interrupt
        that is never delivered is never ended either, and its device not told to look again.
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
            if token.index in relays:  # served when they are delivered
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
