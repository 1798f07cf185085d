"""`IoapicLock`: the IOAPIC's lock, and the events that are delayed until it is free.

A vCPU holds the lock while it accesses a register, and the irq loop waits for no vCPU: it leaves the event here
*before* it tries the lock, and a thread that releases the lock looks for events *after* that. One finds the other:

    thread that serves an event            thread that has the IOAPIC
    1. delay the event                     a. release the lock
    2. try the lock                        b. look for delayed events
       free: serve all delayed events,        none: done
             withdraw the token               some: signal the token
       busy: done

    2 finds the lock busy  =>  a comes after 2, which comes after 1  =>  b finds the event.
    2 finds the lock free  =>  2 serves the event, whether b has found it or not.

An event on its way:

    signaled --1,2--> delayed, token unreadable --a,b--> delayed, token readable --irq loop: 3,2--> served
                            ^                                     |
                            +---- 3. withdraw the token, 2. busy -+

The irq loop sleeps while a vCPU has the IOAPIC. Each release costs it one round at most, which is in vain only if
another thread has the lock since: then that thread signals the token again.
"""

from __future__ import annotations

import threading

from irqchip_core.events import Event, IrqEventIndex


class IoapicLock:
    """A lock, and the events that wait for it.

    Args:
        guard: The lock of the events. Taken after this one, and released before it.
    """

    __slots__ = ("_delayed", "_guard", "_lock", "_readable", "_token")

    def __init__(self, guard: threading.Lock) -> None:
        self._lock = threading.Lock()
        self._guard = guard
        self._delayed: dict[IrqEventIndex, int] = {}  # how many signals
        self._token = Event()
        self._readable = False

    def acquire(self, blocking: bool = True) -> bool:
        return self._lock.acquire(blocking)

    def release(self) -> None:
        self._lock.release()
        if self._delayed:  # seldom: the guard is not taken for nothing
            with self._guard:
                if self._delayed and not self._token.closed:
                    self._readable = True
                    self._token.signal()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exc_info: object) -> None:
        self.release()

    # Delayed events, with the guard held

    def delay(self, index: IrqEventIndex, signals: int) -> None:
        """Keep `signals` of an event. Then try the lock, or else they may stay here."""
        self._delayed[index] = self._delayed.get(index, 0) + signals

    def next_delayed(self) -> tuple[IrqEventIndex, int] | None:
        """Take the event that was delayed first, and its signals. None, and no token is readable, if none is left."""
        for index in self._delayed:
            return index, self._delayed.pop(index)
        self.withdraw()
        return None

    def withdraw(self) -> None:
        """Make the token unreadable. Then try the lock, or else nothing may make it readable again."""
        if self._readable:
            self._readable = False
            self._token.reset()

    def any_delayed(self) -> bool:
        return bool(self._delayed)

    def token(self) -> Event:
        """A clone of the event that is readable when there are delayed events and the lock was released since."""
        return self._token.clone()

    def close(self) -> None:
        self._token.close()
