"""A stream of the process, written without being held up by a reader that does not read.

The descriptor's mode is left alone (others may share it): what is written at once is never more than will not block
once poll(2) says so.
"""

from __future__ import annotations

import os
import select
import selectors
import threading
from typing import TextIO

from irqchip_core.errors import InvalidArgument
from irqchip_core.eventfd import Event, PollSelector

PIPE_BUF: int = getattr(select, "PIPE_BUF", 512)
"""Bytes that a pipe takes at once if it takes any; 512 everywhere at least."""


class Output:
    """What is written here goes to the descriptor of `stream`, which must not be written to in other ways meanwhile.

    Raises:
        InvalidArgument: `stream` has no descriptor.

    Attributes:
        gone: No reader will ever get what is written: it is dropped.
        failure: Why, if it is not that the reader went away; None if nothing failed.
    """

    def __init__(self, stream: TextIO) -> None:
        try:
            self._fd = stream.fileno()
        except (AttributeError, OSError, ValueError):
            raise InvalidArgument(
                f"{stream!r} has no descriptor", subject="output", remedy="use a Machine, and its console"
            ) from None
        stream.flush()
        self.gone = False
        self.failure: OSError | None = None
        self._encoding = stream.encoding
        self._lock = threading.Lock()

    def write(self, data: bytes, *, until: Event | None = None, timeout: float | None = None) -> bool:
        """Write `data`, at the pace of its reader. From any thread.

        Args:
            data: As many bytes as you like.
            until: Once it is signaled, the reader is not waited for.
            timeout: Seconds that the reader may go without reading; None waits without limit.

        Returns:
            False if not all was written.
        """
        left = memoryview(data)
        with self._lock, PollSelector() as selector:
            selector.register(self._fd, selectors.EVENT_WRITE)
            if until is not None:
                selector.register(until, selectors.EVENT_READ)
            while left and not self.gone:
                if self._fd not in [key.fd for key, _ in selector.select(timeout)]:
                    return False
                try:
                    left = left[os.write(self._fd, left[:PIPE_BUF]) :]
                except BlockingIOError:  # the descriptor is non-blocking, and another process was faster
                    continue
                except OSError as error:
                    self.gone = True
                    if not isinstance(error, BrokenPipeError):
                        self.failure = error
        return not left

    def print(self, text: str, *, timeout: float | None = None) -> bool:
        """Write `text` as a line, in the stream's encoding; see `write`."""
        return self.write(f"{text}\n".encode(self._encoding, "backslashreplace"), timeout=timeout)
