"""The event table of a chip that serves events in user space.

Keeps a chip's registrations and gives out its tokens. What a signal does is the chip's business.
"""

from __future__ import annotations

import threading

from attrs import frozen

from irqchip_core.errors import Closed, InvalidArgument
from irqchip_core.eventfd import Event
from irqchip_core.events import (
    IrqEdgeEvent,
    IrqEventIndex,
    IrqEventSource,
    IrqEventToken,
    IrqLevelEvent,
)


@frozen(eq=False)
class EventSlot:
    """One registration: the GSI it drives, clones of its events, and its owner."""

    gsi: int
    trigger: Event
    resample: Event | None
    source: IrqEventSource

    def close(self) -> None:
        self.trigger.close()
        if self.resample is not None:
            self.resample.close()


class EventTable:
    """Registrations by index. Indices count up and are never used again. Safe for use by threads."""

    def __init__(self) -> None:
        self._slots: dict[int, EventSlot] = {}
        self._level: dict[int, list[EventSlot]] = {}  # by GSI, those with a resample event
        self._next = 0
        self._closed = False
        self._lock = threading.Lock()

    def append(self, gsi: int, event: IrqEdgeEvent | IrqLevelEvent, source: IrqEventSource) -> IrqEventIndex:
        """Register clones of `event`; raises `Closed` if it or the table is closed."""
        clone = event.try_clone()
        resample = clone.get_resample() if isinstance(clone, IrqLevelEvent) else None
        with self._lock:
            if self._closed:
                raise Closed("the chip is closed", subject="EventTable", remedy="register events before the last close")
            index = self._next
            self._next += 1
            slot = self._slots[index] = EventSlot(gsi, clone.get_trigger(), resample, source)
            if resample is not None:
                self._level[gsi] = [*self._level.get(gsi, ()), slot]
            return IrqEventIndex(index)

    def remove(self, gsi: int, trigger: Event) -> EventSlot | None:
        """Take out the first registration of `trigger` on `gsi`; None if there is none."""
        with self._lock:
            for index, slot in self._slots.items():
                if slot.gsi == gsi and slot.trigger == trigger:
                    del self._slots[index]
                    if slot.resample is not None:
                        self._level[gsi] = [other for other in self._level[gsi] if other is not slot]
                        if not self._level[gsi]:
                            del self._level[gsi]
                    return slot
        return None

    def slot(self, index: int, *, subject: str = "") -> EventSlot | None:
        """The registration at `index`; None if it was taken out.

        Raises:
            InvalidArgument: There never was one.
        """
        if not 0 <= index < self._next:
            raise InvalidArgument(
                f"no event was registered with index {index}",
                subject=subject,
                argument="index",
                remedy="use an index that a registration returned",
            )
        return self._slots.get(index)

    def take(self, index: int, *, subject: str = "") -> tuple[EventSlot | None, int]:
        """The registration at `index` and how often its trigger was signalled since; nothing of one taken out.

        Raises:
            InvalidArgument: There never was one.
        """
        with self._lock:  # so that nothing closes the trigger meanwhile
            slot = self.slot(index, subject=subject)
            return slot, 0 if slot is None else slot.trigger.reset()

    def resample(self, gsi: int) -> None:
        """Signal the resample events of `gsi`."""
        with self._lock:
            for slot in self._level.get(gsi, ()):
                assert slot.resample is not None
                slot.resample.signal()

    def slots(self) -> list[EventSlot]:
        """All registrations, by index."""
        with self._lock:
            return list(self._slots.values())

    def tokens(self) -> list[IrqEventToken]:
        """A token for each registration, by index; their events are clones that belong to the caller."""
        with self._lock:
            return [
                IrqEventToken(IrqEventIndex(index), slot.source, slot.trigger.clone())
                for index, slot in self._slots.items()
            ]

    def close(self) -> None:
        """Close all clones. Indices given out stay valid and name empty slots."""
        with self._lock:
            self._closed = True
            slots = list(self._slots.values())
            self._slots.clear()
            self._level.clear()
        for slot in slots:
            slot.close()
