"""`DelayingLock`: the lock of a chipset, which loses no signal of a device that comes while it is taken.

It keeps delayed signals and announces them. How long a signal waits before, and how it is served, is in `chipset`.
"""

from __future__ import annotations

import threading
from collections import deque

from irqchip_core.eventfd import Event
from irqchip_core.events import IrqEventIndex


class DelayingLock:
    """A lock, and the signals that are delayed because it was taken.

    ::

        signal ── lock is free ──────────────► served
           └───── taken, for DELAY_SECONDS ──► delayed ── try again ── free ───► release
                                                            └── taken: its holder releases
        release ── nothing delayed ──► done
           └────── delayed ──► trigger ──► process_delayed serves them

    The order keeps every signal: it is in `delayed` before the second try, and `release` checks `delayed` after it has
    released the lock. So the last `release` finds it; until then the trigger is not readable, and no thread spins.

    Attributes:
        delayed: The delayed signals: index of an event, and how often it was signalled.
        trigger: Readable while signals are delayed, from the moment the lock is free.
        acquire: That of `threading.Lock`.
    """

    __slots__ = ("_guard", "_mutex", "acquire", "delayed", "trigger")

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._guard = threading.Lock()  # of the trigger's end
        self.acquire = self._mutex.acquire
        self.delayed: deque[tuple[IrqEventIndex, int]] = deque()
        self.trigger = Event()

    def release(self) -> None:
        self._mutex.release()
        if self.delayed:
            with self._guard:
                if not self.trigger.closed:
                    self.trigger.signal()

    def reset(self) -> None:
        """Make the trigger unreadable. Raises `Closed`."""
        with self._guard:
            self.trigger.reset()

    def token(self) -> Event:
        """A clone of the trigger. Raises `Closed`."""
        with self._guard:
            return self.trigger.clone()

    def close(self) -> None:
        """Close the trigger. Signals that are delayed later stay so."""
        with self._guard:  # or another thread could use a file that has the descriptor next
            self.trigger.close()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *exc_info: object) -> None:
        self.release()
