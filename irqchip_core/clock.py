"""Time for chips: a clock that counts nanoseconds and rings an alarm.

A chip reads its clock and sets one alarm. With `MonotonicClock` that is a thread; with `VirtualClock` time
stands still until a caller advances it: a test, or a VMM in which the guest's instructions are the time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol

from typing_extensions import override

from irqchip_core.errors import InvalidArgument

_log = logging.getLogger(__name__)


class Alarm(Protocol):
    """Calls a function when a time has come."""

    def set(self, when: int | None) -> None:
        """Ring at `when`, in nanoseconds on the clock, or soon after; None for never. From any thread.

        Replaces what was set before. Early and repeated calls of the function must do no harm.
        """
        ...

    def start(self) -> None:
        """Begin to ring. Before, `set` is only remembered."""
        ...

    def close(self) -> None:
        """Never ring again, and end a call in progress. Closing twice is harmless."""
        ...


class Clock(Protocol):
    """Where a chip has its time from."""

    def now(self) -> int:
        """Nanoseconds since some fixed instant."""
        ...

    def alarm(self, ring: Callable[[], None]) -> Alarm:
        """An alarm that calls `ring`."""
        ...


class MonotonicClock:
    """The host's monotonic clock. Each alarm has a thread, from `start` to `close`."""

    def now(self) -> int:
        return time.monotonic_ns()

    def alarm(self, ring: Callable[[], None]) -> Alarm:
        return _ThreadAlarm(ring)


class _ThreadAlarm(Alarm):
    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._when: int | None = None
        self._changed = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None

    @override
    def set(self, when: int | None) -> None:
        with self._changed:
            earlier = when is not None and (self._when is None or when < self._when)
            self._when = when
            if earlier:  # a later time is noticed when the thread wakes up for the old one
                self._changed.notify()

    @override
    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="irqchip timers", daemon=True)
        self._thread.start()

    @override
    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._closed and (left := self._left()) != 0:
                    self._changed.wait(left)
                if self._closed:
                    return
                self._when = None
            try:
                self._ring()
            except Exception:  # the thread serves other timers, too
                _log.exception("a timer failed")

    def _left(self) -> float | None:
        """Seconds until the alarm, 0 if it is due, None if it is not set."""
        if self._when is None:
            return None
        return min(max(0, self._when - time.monotonic_ns()) / 1e9, threading.TIMEOUT_MAX)


class VirtualClock:
    """A clock that only its callers advance. What happens by it depends on nothing else, and can happen again.

    Alarms ring inside `advance`, on the caller's thread. For use by one thread at a time.
    """

    def __init__(self, now: int = 0) -> None:
        self._now = now
        self._alarms: list[_VirtualAlarm] = []

    def now(self) -> int:
        return self._now

    def alarm(self, ring: Callable[[], None]) -> Alarm:
        return _VirtualAlarm(ring, self._alarms)

    def next_alarm(self) -> int | None:
        """The earliest time an alarm is set to, which may be past; None if none is."""
        return min((alarm.when for alarm in self._alarms if alarm.when is not None), default=None)

    def elapse(self, nanoseconds: int) -> None:
        """Let time pass, and leave alarms that are due to the next `advance`: for a caller in which no alarm may ring.

        Raises:
            InvalidArgument: `nanoseconds` is below 0.
        """
        self._now = self._then(nanoseconds)

    def advance(self, nanoseconds: int = 0) -> None:
        """Let time pass, and ring what is due by then: each at its own time, at one time in the order of their making.

        Raises:
            InvalidArgument: `nanoseconds` is below 0.
        """
        end = self._then(nanoseconds)
        while (when := self.next_alarm()) is not None and when <= end:
            self._now = max(self._now, when)
            for alarm in list(self._alarms):
                if alarm.when is not None and alarm.when <= self._now:
                    alarm.when = None
                    alarm.ring()
        self._now = end

    def _then(self, nanoseconds: int) -> int:
        if nanoseconds < 0:
            raise InvalidArgument("time does not go back", subject="VirtualClock", argument="nanoseconds")
        return self._now + nanoseconds


class _VirtualAlarm(Alarm):
    def __init__(self, ring: Callable[[], None], alarms: list[_VirtualAlarm]) -> None:
        self.ring = ring
        self.when: int | None = None
        self._alarms = alarms  # those that were started

    @override
    def set(self, when: int | None) -> None:
        self.when = when

    @override
    def start(self) -> None:
        self._alarms.append(self)

    @override
    def close(self) -> None:
        if self in self._alarms:
            self._alarms.remove(self)
