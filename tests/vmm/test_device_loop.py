"""The devices' thread."""

from __future__ import annotations

import os
import threading
from functools import partial
from typing import Self

import pytest

from irqchip_core.errors import Closed, InvalidArgument
from irqchip_core.eventfd import Event
from irqchip_vmm.device_loop import DeviceLoop

pytestmark = [pytest.mark.usefixtures("no_leaks"), pytest.mark.timeout(20)]


class Loop(DeviceLoop):
    """Started, with its errors kept."""

    def __init__(self) -> None:
        self.errors: list[BaseException] = []
        super().__init__(self.errors.append)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()


class Pipe:
    """What has a descriptor."""

    def __init__(self, fd: int) -> None:
        self.fileno = lambda: fd


def test_timers_come_in_order_and_not_early() -> None:
    done = threading.Event()
    calls: list[tuple[int, int]] = []

    def note(milliseconds: int) -> None:
        calls.append((milliseconds, loop.now()))

    with Loop() as loop:
        start = loop.now()
        for milliseconds in (20, 10, 0):
            loop.call_at(start + milliseconds * 1_000_000, partial(note, milliseconds))
        loop.call_at(start + 21_000_000, done.set)
        assert done.wait(10)
    assert [ms for ms, _ in calls] == [0, 10, 20]
    assert all(now - start >= ms * 1_000_000 for ms, now in calls)


def test_a_cancelled_timer_does_not_come() -> None:
    done, calls = threading.Event(), []
    with Loop() as loop:
        loop.call_at(loop.now() + 1_000_000, lambda: calls.append(1)).cancel()
        loop.call_at(loop.now() + 2_000_000, done.set)
        assert done.wait(10)
    assert calls == []


def test_cancelled_timers_are_dropped_and_the_others_are_not() -> None:
    loop = Loop()
    calls: list[int] = []
    kept = [loop.call_at(n, partial(calls.append, n)) for n in range(0, 1000, 10)]
    for n in range(10_000):
        loop.call_at(2**62 + n, lambda: None).cancel()
    assert len(loop._timers) <= 2 * len(kept)
    done = threading.Event()
    loop.call_at(1000, done.set)
    with loop:
        assert done.wait(10)
    assert calls == list(range(0, 1000, 10))


def test_a_timer_in_a_century_is_waited_for() -> None:
    done = threading.Event()
    reader, writer = os.pipe()
    with Loop() as loop:
        loop.call_at(loop.now() + 100 * 365 * 86400 * 10**9, lambda: None)
        loop.watch(reader, done.set)  # wakes the loop, which then has to wait for the timer
        os.write(writer, b"x")
        assert done.wait(10)
    os.close(reader)
    os.close(writer)


def test_what_is_watched_is_called_until_it_is_unwatched() -> None:
    seen: list[bytes] = []
    turn = threading.Semaphore(0)
    reader, writer = os.pipe()

    def read() -> None:
        seen.append(os.read(reader, 1))
        if seen[-1] == b"c":
            loop.unwatch(reader)
        turn.release()

    with Loop() as loop:
        loop.watch(reader, read)
        for byte in (b"a", b"b", b"c"):
            os.write(writer, byte)
            assert turn.acquire(timeout=10)
        os.write(writer, b"d")
        done = threading.Event()
        loop.call_at(loop.now(), done.set)
        assert done.wait(10)
    os.close(reader)
    os.close(writer)
    assert seen == [b"a", b"b", b"c"]


@pytest.mark.parametrize("started", [True, False])
def test_what_cannot_be_watched_is_refused_to_the_caller(started: bool) -> None:
    loop = Loop()
    reader, writer = os.pipe()
    if started:
        loop.start()
    loop.watch(reader, lambda: None)
    for source in (reader, Pipe(reader), 10**6, -1, 10**30, "reader", None):
        with pytest.raises(InvalidArgument, match="source"):
            loop.watch(source, lambda: None)
    for source in (writer, 10**6):
        with pytest.raises(InvalidArgument, match="source"):
            loop.unwatch(source)
    loop.unwatch(Pipe(reader))
    loop.watch(reader, lambda: None)
    loop.stop()
    with pytest.raises(Closed):
        loop.watch(writer, lambda: None)
    os.close(reader)
    os.close(writer)
    assert loop.errors == []


def test_watching_anew_in_a_callback() -> None:
    done = threading.Event()
    reader, writer = os.pipe()

    def again() -> None:
        loop.unwatch(reader)
        loop.watch(reader, done.set)

    with Loop() as loop:
        loop.watch(reader, again)
        os.write(writer, b"x")
        assert done.wait(10)
    os.close(reader)
    os.close(writer)
    assert loop.errors == []


def test_a_callback_that_fails_is_told_and_the_loop_goes_on() -> None:
    done = threading.Event()
    with Loop() as loop:
        loop.call_at(0, lambda: 1 // 0)
        loop.call_at(1, done.set)
        assert done.wait(10)
        assert [type(error) for error in loop.errors] == [ZeroDivisionError]


def test_stop_serves_what_is_ready() -> None:
    calls: list[int] = []
    with Event() as event:
        with Loop() as loop:
            done = threading.Event()
            loop.watch(event, lambda: calls.append(event.reset()))
            loop.call_at(0, done.set)
            assert done.wait(10)
            event.signal()
        assert calls == [1]


def test_stop_without_start_and_twice() -> None:
    loop = Loop()
    loop.stop()
    loop.stop()
