"""The timers of the userspace chip, and what a guest cannot make them do to the host."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from irqchip_core.clock import MonotonicClock
from tests.userspace.test_chip import Board

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
def board() -> Iterator[Board]:
    board = Board()
    yield board
    board.chip.close()


def test_a_pit_that_ticks_too_fast_for_anybody_does_not_keep_the_host_busy(board: Board) -> None:
    (token,) = board.chip.irq_event_tokens()
    for port, value in ((0x43, 0x34), (0x40, 2), (0x40, 0)):  # mode 2: every other pulse of 1.19 MHz
        board.io.write(port, 1, value)
    board.clock.advance(10_000)
    assert token.event.reset()
    when = board.clock.next_alarm()
    assert when is not None
    assert when - board.clock.now() > 150_000
    board.clock.advance(200_000)
    assert token.event.reset()  # it does tick
    token.close()


def test_a_short_count_after_a_tick_is_on_time(board: Board) -> None:
    (token,) = board.chip.irq_event_tokens()
    for _ in range(3):
        for port, value in ((0x43, 0x30), (0x40, 12), (0x40, 0)):  # mode 0: once, after some 10 us
            board.io.write(port, 1, value)
        board.clock.advance(15_000)
        assert token.event.reset()
    token.close()


def test_an_alarm_beyond_what_a_thread_can_wait_is_none_that_kills_it() -> None:
    rung = threading.Event()
    clock = MonotonicClock()
    alarm = clock.alarm(rung.set)
    alarm.set(1 << 80)
    alarm.start()
    try:
        alarm.set(clock.now())
        assert rung.wait(10)
    finally:
        alarm.close()
