"""Observers of a chip: notified when it is created, events are registered or unregistered, and routes change.

Observers are for the cold path. Single interrupts are not reported.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from irqchip_core.chip import IrqChip
    from irqchip_core.events import IrqEventIndex, IrqEventSource
    from irqchip_core.routes import IrqRoute

_log = logging.getLogger(__name__)


class ChipObserver:
    """Does nothing; a subclass overrides the methods it needs. Calls come on the thread that made the change."""

    def chip_created(self, chip: IrqChip) -> None:
        """`chip` was made by `create_irqchip`."""

    def event_registered(self, chip: IrqChip, gsi: int, source: IrqEventSource, index: IrqEventIndex | None) -> None:
        """An event now drives `gsi`; `index` is None if the kernel waits for it itself."""

    def event_unregistered(self, chip: IrqChip, gsi: int) -> None:
        """An event of `gsi` was taken out."""

    def routes_changed(self, chip: IrqChip, routes: Iterable[IrqRoute]) -> None:
        """The chip's routes are now `routes`."""


class ChipObservers(ChipObserver):
    """The observers of one chip and its clones. One that raises is logged and does not disturb."""

    def __init__(self) -> None:
        self._observers: tuple[ChipObserver, ...] = ()
        self._lock = threading.Lock()

    def add(self, observer: ChipObserver) -> None:
        with self._lock:
            self._observers = (*self._observers, observer)

    def remove(self, observer: ChipObserver) -> None:
        """Take `observer` out; harmless if it is not there."""
        with self._lock:
            self._observers = tuple(kept for kept in self._observers if kept is not observer)

    def _tell(self, method: str, *args: object) -> None:
        for observer in self._observers:
            try:
                getattr(observer, method)(*args)
            except Exception:
                _log.exception("observer %r failed in %s", observer, method)

    def chip_created(self, chip: IrqChip) -> None:
        self._tell("chip_created", chip)

    def event_registered(self, chip: IrqChip, gsi: int, source: IrqEventSource, index: IrqEventIndex | None) -> None:
        self._tell("event_registered", chip, gsi, source, index)

    def event_unregistered(self, chip: IrqChip, gsi: int) -> None:
        self._tell("event_unregistered", chip, gsi)

    def routes_changed(self, chip: IrqChip, routes: Iterable[IrqRoute]) -> None:
        self._tell("routes_changed", chip, routes)
