"""An event where there is no eventfd: each signal is a byte from one socket to another."""

from __future__ import annotations

import contextlib
import socket
from typing import Self

from typing_extensions import override

from irqchip_core.events import Event, _open_file_identity

_MOST_SIGNALS = 1 << 16
"""Bytes to read at once."""


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
