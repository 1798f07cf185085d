"""One thread for all that devices do by themselves: timers, resample events, input from the host.

Callbacks run on that thread, one at a time. A device that is also accessed by vCPUs locks its own state. In virtual
time there is no such thread: the clock serves the timers, and the caller of `DeviceLoop.step` the rest.
"""

from __future__ import annotations

import heapq
import itertools
import os
import selectors
import threading
from collections.abc import Callable
from typing import Any, Protocol

from irqchip_core.clock import Clock, MonotonicClock, VirtualClock
from irqchip_core.errors import InvalidArgument
from irqchip_core.eventfd import Event, PollSelector

Callback = Callable[[], object]

FEW_TIMERS = 64
"""So many may wait before cancelled ones are looked for."""
LONGEST_WAIT = 3600.0
"""Seconds to wait at once: poll(2) takes 24 days of milliseconds at most."""


class Timer:
    """A call to come. `cancel` it from any thread; it may be about to run."""

    __slots__ = ("callback", "when")

    def __init__(self, when: int, callback: Callback) -> None:
        self.when = when
        self.callback: Callback | None = callback

    def cancel(self) -> None:
        self.callback = None


class Timers(Protocol):
    """Time as a device sees it, so that a test can be its master."""

    def now(self) -> int:
        """Nanoseconds of the guest's time; it never goes back."""
        ...

    def call_at(self, when: int, callback: Callback) -> Timer:
        """Call `callback` at `when` (as `now` counts) or soon after."""
        ...


class DeviceLoop:
    """The thread, from `start` to `stop`.

    Args:
        on_error: Called with an exception of a callback, on the loop's thread; the loop goes on.
        clock: The time. With a `VirtualClock` call `step` instead of `start`.
    """

    def __init__(self, on_error: Callable[[BaseException], object], clock: Clock | None = None) -> None:
        self._on_error = on_error
        self._clock = MonotonicClock() if clock is None else clock
        self._alarm = self._clock.alarm(self._ring) if isinstance(self._clock, VirtualClock) else None
        if self._alarm is not None:
            self._alarm.start()
        self._selector = PollSelector()  # unlike epoll it takes regular files: `irqchip run < file`
        self._changed = Event()
        self._selector.register(self._changed, selectors.EVENT_READ, self._changed.reset)
        self._lock = threading.Lock()
        self._timers: list[tuple[int, int, Timer]] = []
        self._look_for_cancelled = FEW_TIMERS  # when so many wait
        self._order = itertools.count()
        self._watched: set[int] = set()  # once all changes are made
        self._changes: list[Callback] = []
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._thread_id = 0  # of the thread that polls

    def now(self) -> int:
        """Nanoseconds of the clock."""
        return self._clock.now()

    def call_at(self, when: int, callback: Callback) -> Timer:
        """Call `callback` at `when` (as `now` counts) or soon after. From any thread."""
        timer = Timer(when, callback)
        with self._lock:
            if len(self._timers) >= self._look_for_cancelled:
                self._drop_cancelled()
            heapq.heappush(self._timers, (when, next(self._order), timer))
            first = self._timers[0][2] is timer
        if first:
            if self._alarm is not None:
                self._alarm.set(when)
            self._changed.signal()
        return timer

    def _drop_cancelled(self) -> None:
        # Twice as many as are left may gather until the next time: each timer costs the same, however many there are.
        self._timers = [entry for entry in self._timers if entry[2].callback is not None]
        heapq.heapify(self._timers)
        self._look_for_cancelled = max(FEW_TIMERS, 2 * len(self._timers))

    def watch(self, source: Any, callback: Callback) -> None:
        """Call `callback` whenever `source` (a descriptor or what has one) is readable. From any thread.

        Raises:
            InvalidArgument: `source` is not open, or is watched already.
            Closed: The loop has stopped.
        """
        fd = _descriptor(source)
        with self._lock:
            if fd in self._watched:
                raise _refusal(f"descriptor {fd} is watched already", "unwatch it first")
            self._change(lambda: self._selector.register(fd, selectors.EVENT_READ, callback))
            self._watched.add(fd)
        self._apply()

    def unwatch(self, source: Any) -> None:
        """Undo `watch`, before `source` is closed. Takes effect at once on the loop's thread, else soon.

        Raises:
            InvalidArgument: `source` is not open, or is not watched.
            Closed: The loop has stopped.
        """
        fd = _descriptor(source)
        with self._lock:
            if fd not in self._watched:
                raise _refusal(f"descriptor {fd} is not watched", "watch it first")
            self._change(lambda: self._selector.unregister(fd))
            self._watched.remove(fd)
        self._apply()

    def _change(self, change: Callback) -> None:
        self._changed.signal()  # seen once the lock is free
        self._changes.append(change)

    def _apply(self) -> None:
        # The selector belongs to the thread that polls it.
        if threading.get_ident() == self._thread_id:
            with self._lock:
                changes, self._changes = self._changes, []
            for change in changes:
                change()

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._run, name="devices", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Serve what is ready, end the thread and release everything. Harmless if done before."""
        if self._thread is not None:
            self._stopping = True
            self._changed.signal()
            self._thread.join()
            self._thread = None
        if not self._changed.closed:
            if self._alarm is not None:
                self._alarm.close()
            self._selector.close()
            with self._lock:
                self._changed.close()

    def step(self, *, wait: bool = False) -> int:
        """Serve what is readable now, on this thread; with `wait` something is waited for. Returns how much it was."""
        self._thread_id = threading.get_ident()
        return self._poll(None if wait else 0)

    def wake(self) -> None:
        """End the waiting of a `step`. From any thread; harmless after `stop`."""
        with self._lock:
            if not self._changed.closed:
                self._changed.signal()

    def _run(self) -> None:
        self._thread_id = threading.get_ident()
        while not self._stopping:
            self._poll(self._serve_timers())
        self._poll(0)  # a last look: a guest's last EOI is counted although the guest has ended

    def _poll(self, timeout: float | None) -> int:
        ready = self._selector.select(timeout)
        for key, _ in ready:
            self._call(key.data)
        self._apply()
        return len(ready)

    def _serve_timers(self) -> float | None:
        """Call what is due; returns the seconds until the next timer."""
        while True:
            with self._lock:
                if not self._timers:
                    return None
                left = self._timers[0][0] - self.now()
                if left > 0:
                    return min(left / 1e9, LONGEST_WAIT)
                timer = heapq.heappop(self._timers)[2]
            if timer.callback is not None:
                self._call(timer.callback)

    def _ring(self) -> None:
        self._serve_timers()
        if self._alarm is not None and self._timers:
            self._alarm.set(self._timers[0][0])

    def _call(self, callback: Callback) -> None:
        try:
            callback()
        except Exception as error:
            self._on_error(error)


def _descriptor(source: Any) -> int:
    try:
        fd: int = source if isinstance(source, int) else source.fileno()
        if not isinstance(source, Event):  # which is a socket on some systems, and says by itself if it is closed
            os.fstat(fd)
    except (AttributeError, OSError, OverflowError, TypeError, ValueError):
        raise _refusal(f"{source!r} has no open descriptor", "give a descriptor or what has one") from None
    return fd


def _refusal(problem: str, remedy: str) -> InvalidArgument:
    return InvalidArgument(problem, subject="device loop", argument="source", remedy=remedy)
