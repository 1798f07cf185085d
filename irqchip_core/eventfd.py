"""`Event`: counts signals and has a file descriptor: an eventfd, or a pair of sockets where there is none.

Not here: what an event means. Devices, chips and loops give it that (`events`).
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import stat
import time
from typing import Any, Self

from typing_extensions import override

from irqchip_core.errors import Closed

PollSelector: type[selectors.BaseSelector] = getattr(selectors, "PollSelector", selectors.SelectSelector)
"""The best selector that takes a descriptor of any number and any kind, where the system has such a one."""

_ONE = (1).to_bytes(8, "little")
_MOST_SIGNALS = 1 << 16
"""Bytes to read at once from a socket."""


def _open_file_identity(fd: int) -> object:
    """A value that is equal for two descriptors of one open eventfd or socket, and only for those.

    Each socket has an inode. All eventfds share one, so fstat does not distinguish them; the kernel numbers them in
    /proc/<pid>/fdinfo since Linux 5.2. Without that line only the descriptor itself is known.
    """
    try:
        status = os.fstat(fd)
        if stat.S_ISSOCK(status.st_mode):
            return status.st_dev, status.st_ino
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("eventfd-id:"):
                    return int(line.split()[1])
    except OSError:
        pass
    return object()


class Event:
    """A counting wake-up object with a descriptor: a Linux eventfd, not in semaphore mode.

    Two events are equal when both are descriptors of the same counter: an event and its clones are,
    two events created separately never are.

    Where Python has no `os.eventfd`, ``Event()`` makes a pair of connected sockets that behaves the same, but for the
    count: signals beyond what the sockets hold are coalesced, uncounted.
    """

    __slots__ = ("_fd", "_identity")

    def __new__(cls) -> Self:
        kind: Any = SocketPairEvent if cls is Event and not hasattr(os, "eventfd") else cls
        event: Self = object.__new__(kind)
        return event

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._identity: object = None

    @classmethod
    def from_fd(cls, fd: int) -> Self:
        """Adopt eventfd `fd`, which this event closes from now on, and make it non-blocking."""
        event = object.__new__(cls)
        os.set_blocking(fd, False)
        event._fd = fd
        event._identity = None
        return event

    def fileno(self) -> int:
        """The descriptor, readable while the counter is not 0. Raises `Closed`."""
        if self._fd < 0:
            raise Closed("the event is closed", subject="Event", remedy="keep it open while it is registered or polled")
        return self._fd

    @property
    def closed(self) -> bool:
        return self._fd < 0

    def signal(self) -> None:
        """Add 1 to the counter. A counter at its maximum (2**64 - 2) stays there."""
        with contextlib.suppress(BlockingIOError):  # saturated: one wait consumes all signals anyway
            os.write(self.fileno(), _ONE)

    def reset(self) -> int:
        """Set the counter to 0 without blocking; returns what it was."""
        try:
            return int.from_bytes(os.read(self.fileno(), 8), "little")
        except BlockingIOError:
            return 0

    def wait(self, timeout: float | None = None) -> bool:
        """Block until the counter is not 0, then set it to 0.

        Args:
            timeout: Seconds to wait at most; None waits without limit.

        Returns:
            False if the time ran out. Any number of signals is consumed by one wait.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with PollSelector() as selector:
            selector.register(self.fileno(), selectors.EVENT_READ)
            while not self.reset():  # another waiter may have consumed what was seen
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return False
                selector.select(left)
        return True

    def clone(self) -> Self:
        """A second descriptor on the same counter."""
        copy = object.__new__(type(self))
        copy._fd = os.dup(self.fileno())
        copy._identity = self._identify()
        return copy

    def close(self) -> None:
        """Close the descriptor. Closing twice is harmless. A closed event is still equal to its clones."""
        if self._identity is None:
            self._identity = _open_file_identity(self._fd)
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def descriptors(self) -> list[int]:
        """All it takes to rebuild the event in another process."""
        return [self.fileno()]

    def _identify(self) -> object:
        if self._identity is None:
            self._identity = _open_file_identity(self.fileno())
        return self._identity

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Event):
            return NotImplemented
        return self is other or self._identify() == other._identify()

    def __hash__(self) -> int:
        return hash(self._identify())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        # An event that is dropped must not leak its descriptor; __init__ may have failed before _fd.
        if getattr(self, "_fd", -1) >= 0:
            self._identity = self._identity or object()  # there is nothing left to compare it with
            self.close()

    def __repr__(self) -> str:
        return f"<Event fd={self._fd}>" if self._fd >= 0 else "<Event closed>"


class SocketPairEvent(Event):
    """Two connected sockets. ``Event()`` makes it where Python has no `os.eventfd`."""

    __slots__ = ("_reader", "_writer")

    def __init__(self) -> None:
        self._adopt(*socket.socketpair())
        self._identity = None

    def _adopt(self, reader: socket.socket, writer: socket.socket) -> None:
        for end in (reader, writer):
            end.setblocking(False)
            if end.family == socket.AF_INET:  # where there are no others: a signal must not arrive after a reset
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader, self._writer = reader, writer
        self._fd = reader.fileno()

    @classmethod
    def from_fds(cls, reader: int, writer: int) -> Self:
        """Adopt both ends, which this event closes from now on."""
        event = object.__new__(cls)
        event._adopt(socket.socket(fileno=reader), socket.socket(fileno=writer))
        event._identity = None
        return event

    @override
    def signal(self) -> None:
        self.fileno()
        with contextlib.suppress(BlockingIOError):  # full: the reader has signals to consume anyway
            self._writer.send(b"\1")

    @override
    def reset(self) -> int:
        self.fileno()
        signals = 0
        with contextlib.suppress(BlockingIOError):
            while len(some := self._reader.recv(_MOST_SIGNALS)) == _MOST_SIGNALS:
                signals += len(some)
            signals += len(some)
        return signals

    @override
    def clone(self) -> Self:
        self.fileno()
        copy = object.__new__(type(self))
        reader = self._reader.dup()
        try:
            copy._adopt(reader, self._writer.dup())
        except BaseException:
            reader.close()
            raise
        copy._identity = self._identify()
        return copy

    @override
    def close(self) -> None:
        if self._identity is None:
            self._identity = _open_file_identity(self._fd)
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._reader.close()
            self._writer.close()

    @override
    def descriptors(self) -> list[int]:
        return [self.fileno(), self._writer.fileno()]
