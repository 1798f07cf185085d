"""Clocks: virtual time passes by calls, real time by itself; both ring alarms."""

from __future__ import annotations

import threading
from functools import partial

import pytest

from irqchip_core.clock import MonotonicClock, VirtualClock
from irqchip_core.errors import InvalidArgument

pytestmark = pytest.mark.usefixtures("no_leaks")


def test_virtual_alarms_ring_in_order_each_at_its_own_time() -> None:
    clock = VirtualClock(100)
    rung: list[tuple[str, int]] = []

    def ring(name: str) -> None:
        rung.append((name, clock.now()))

    for name, when in (("c", 300), ("a", 200), ("b", 200), ("past", 50), ("never", None)):
        alarm = clock.alarm(partial(ring, name))
        alarm.set(when)
        alarm.start()
    assert clock.next_alarm() == 50
    clock.advance(99)
    assert rung == [("past", 100)]
    clock.advance(1)
    assert rung[1:] == [("a", 200), ("b", 200)]
    clock.advance(1000)
    assert rung[3:] == [("c", 300)]
    assert (clock.now(), clock.next_alarm()) == (1200, None)


def test_time_that_elapses_rings_at_the_next_advance() -> None:
    clock = VirtualClock()
    rung: list[int] = []
    alarm = clock.alarm(lambda: rung.append(clock.now()))
    alarm.set(10)
    alarm.start()
    clock.elapse(25)
    assert (rung, clock.now(), clock.next_alarm()) == ([], 25, 10)
    clock.advance()
    assert (rung, clock.now(), clock.next_alarm()) == ([25], 25, None)


def test_an_alarm_set_again_while_it_rings() -> None:
    clock = VirtualClock()
    rung: list[int] = []

    def ring() -> None:
        rung.append(clock.now())
        alarm.set(clock.now() + 10)

    alarm = clock.alarm(ring)
    alarm.set(10)
    clock.advance(5)
    alarm.start()
    clock.advance(30)
    assert rung == [10, 20, 30]
    alarm.close()
    alarm.close()
    clock.advance(30)
    assert rung == [10, 20, 30]


def test_virtual_time_does_not_go_back() -> None:
    clock = VirtualClock(7)
    rung: list[int] = []
    alarm = clock.alarm(lambda: rung.append(1))
    alarm.set(1)
    alarm.start()
    for move in (clock.advance, clock.elapse):
        with pytest.raises(InvalidArgument, match="time does not go back"):
            move(-1)
    assert (clock.now(), rung) == (7, [])


def test_real_time_goes_on_after_a_ring_that_failed(caplog: pytest.LogCaptureFixture) -> None:
    clock = MonotonicClock()
    rung = threading.Semaphore(0)

    def ring() -> None:
        rung.release()
        raise ValueError("broken")

    alarm = clock.alarm(ring)
    alarm.start()
    for _ in range(2):
        alarm.set(clock.now())
        assert rung.acquire(timeout=10)
    alarm.close()
    assert caplog.text.count("ValueError: broken") == 2


def test_real_time_rings_on_a_thread_of_its_own() -> None:
    clock = MonotonicClock()
    rung = threading.Event()
    threads: list[str] = []

    def ring() -> None:
        threads.append(threading.current_thread().name)
        rung.set()

    alarm = clock.alarm(ring)
    alarm.set(clock.now() + 10**12)
    alarm.start()
    alarm.set(clock.now())
    assert rung.wait(10)
    alarm.close()
    assert threads == ["irqchip timers"]
