"""Output to readers that are slow, asleep or gone."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator
from fcntl import F_GETPIPE_SZ, fcntl
from typing import TextIO

import pytest

from irqchip_core.errors import InvalidArgument
from irqchip_core.eventfd import Event
from irqchip_vmm.output import Output

pytestmark = [pytest.mark.usefixtures("no_leaks"), pytest.mark.timeout(20)]


@pytest.fixture
def pipe() -> Iterator[tuple[int, TextIO]]:
    reader, writer = os.pipe()
    with open(writer, "w", encoding="ascii") as stream:
        yield reader, stream
    os.close(reader)


def test_a_slow_reader_gets_all(pipe: tuple[int, TextIO]) -> None:
    reader, stream = pipe
    output, sent = Output(stream), bytes(range(256)) * 1024  # four times what the pipe holds
    writing = threading.Thread(target=output.write, args=(sent,))
    writing.start()
    got = b""
    while len(got) < len(sent):
        got += os.read(reader, 777)
    writing.join()
    assert got == sent


def test_a_reader_that_does_not_read_is_waited_for_until_the_end(pipe: tuple[int, TextIO]) -> None:
    reader, stream = pipe
    output, room = Output(stream), fcntl(stream, F_GETPIPE_SZ)
    with Event() as end:
        results: list[bool] = []
        assert output.write(bytes(room), until=end)
        writing = threading.Thread(target=lambda: results.append(output.write(b"x", until=end)))
        writing.start()
        end.signal()
        writing.join()
        assert results == [False]
        os.read(reader, room)
        assert output.write(b"y", until=end)  # there is room: no thread has to wait
    assert os.read(reader, 9) == b"y"


def test_a_reader_that_does_not_read_in_time(pipe: tuple[int, TextIO]) -> None:
    reader, stream = pipe
    output = Output(stream)
    assert not output.print("x" * fcntl(stream, F_GETPIPE_SZ), timeout=0.01)
    assert not output.gone
    assert set(os.read(reader, 99)) == set(b"x")


def test_a_reader_that_is_gone() -> None:
    reader, writer = os.pipe()
    with open(writer, "w", encoding="ascii") as stream:
        output = Output(stream)
        os.close(reader)
        assert not output.write(b"x")
        assert output.gone
        assert not output.write(b"x")


def test_a_stream_without_descriptor_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="descriptor"):
        Output(io.StringIO())


def test_print_takes_any_text(pipe: tuple[int, TextIO]) -> None:
    reader, stream = pipe
    stream.write("before, ")
    assert Output(stream).print("é \ud800")
    assert os.read(reader, 99) == b"before, \\xe9 \\ud800\n"
