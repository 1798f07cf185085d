"""Standard output and standard error of the `irqchip` command.

A reader that goes away, as in `irqchip list | head -1`, is no error: what it would have read is dropped, and the
command ends as it would have. A write that fails for another reason, as on a full disk, raises `OSError` once.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from typing import TextIO

from typing_extensions import Buffer, override


class _ForReader(io.FileIO):
    error: OSError | None = None

    @override
    def write(self, data: Buffer, /) -> int:
        if self.error is None:
            try:
                return super().write(data)
            except OSError as error:
                self.error = error  # what is buffered is written again at exit, and must not fail again
                if not isinstance(error, BrokenPipeError):
                    raise
        return memoryview(data).nbytes


@contextlib.contextmanager
def unread_is_dropped() -> Iterator[None]:
    """Let the process's own `sys.stdout` and `sys.stderr` do so meanwhile; both are flushed in the end.

    Raises:
        OSError: A write has failed, even if what was called has dealt with that.
    """
    with contextlib.ExitStack() as stack:
        for name in ("stderr", "stdout"):
            stream = getattr(sys, name)
            if stream is getattr(sys, f"__{name}__"):
                stack.enter_context(_copied(name, stream))
        yield


@contextlib.contextmanager
def _copied(name: str, stream: TextIO) -> Iterator[None]:
    stream.flush()
    raw = _ForReader(stream.fileno(), "w", closefd=False)
    copy = io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=stream.errors,
        newline="\n",
        line_buffering=stream.isatty() or name == "stderr",
    )
    setattr(sys, name, copy)
    try:
        yield
    finally:
        setattr(sys, name, stream)
        copy.flush()
        if raw.error is not None and not isinstance(raw.error, BrokenPipeError):
            raise raw.error
