"""The local APIC's timer (Intel SDM vol. 3, 12.5.4): counts, periods and deadlines, to the nanosecond."""

from __future__ import annotations

from fractions import Fraction
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from irqchip_core.x86.effects import Effects, WakeAt
from irqchip_core.x86.lapic import registers as reg
from irqchip_core.x86.lapic.core import NO_VECTOR
from irqchip_core.x86.lapic.lapic import Lapic
from irqchip_core.x86.lapic.timer import LONGEST_SLEEP, SHORTEST_PERIOD

ONE_SHOT, PERIODIC, TSC_DEADLINE = 0x45, 0x20045, 0x40045
DIVIDE_BY_1 = 0xB


def timer(mode: int = ONE_SHOT, *, hz: int = 10**9, tsc_hz: int = 2 * 10**9, divide: int = DIVIDE_BY_1) -> Lapic:
    apic = Lapic(0, timer_hz=hz, tsc_hz=tsc_hz)
    for offset, value in ((reg.SPIV, 0x1FF), (reg.TIMER_DIVIDE, divide), (reg.LVT_TIMER, mode)):
        write(apic, offset, value)
    return apic


def write(apic: Lapic, offset: int, value: int, now: int = 0) -> Effects:
    return apic.write(offset, 4, value, now)


def count(apic: Lapic, now: int) -> int:
    return apic.read(reg.TIMER_CURRENT_COUNT, 4, now)


def ticked(apic: Lapic) -> bool:
    """Whether the timer's interrupt came; takes and ends it."""
    if apic.pending_vector() == NO_VECTOR:
        return False
    assert apic.acknowledge() == 0x45
    apic.end_of_interrupt()
    return True


@pytest.mark.parametrize(
    ("register", "divisor"), [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (10, 128), (11, 1), (4, 2), (15, 1)]
)
def test_divide_register(register: int, divisor: int) -> None:
    apic = timer(divide=register)
    assert write(apic, reg.TIMER_INITIAL_COUNT, 1000, 5) == (WakeAt(5 + 1000 * divisor),)
    assert [count(apic, 5 + t * divisor) for t in (0, 1, 999, 1000)] == [1000, 999, 1, 0]
    assert count(apic, 5 + divisor - 1) == 1000


def test_one_shot_interrupts_once() -> None:
    apic = timer()
    write(apic, reg.TIMER_INITIAL_COUNT, 1000)
    assert apic.expire(999) == ()
    assert not ticked(apic)
    assert apic.expire(1000) == (WakeAt(None),)
    assert ticked(apic)
    assert apic.expire(10_000) == ()
    assert not ticked(apic)
    assert (count(apic, 1500), apic.read(reg.TIMER_INITIAL_COUNT, 4, 0)) == (0, 1000)


def test_writing_the_count_restarts_and_zero_stops() -> None:
    apic = timer()
    write(apic, reg.TIMER_INITIAL_COUNT, 1000)
    assert write(apic, reg.TIMER_INITIAL_COUNT, 500, 800) == (WakeAt(1300),)
    assert write(apic, reg.TIMER_INITIAL_COUNT, 0, 900) == (WakeAt(None),)
    assert (count(apic, 950), apic.expire(2000)) == (0, ())


def test_periodic_reloads() -> None:
    apic = timer(PERIODIC)
    write(apic, reg.TIMER_INITIAL_COUNT, 1_000_000)
    assert [count(apic, now) for now in (0, 999_999, 1_000_000, 1_000_001)] == [1_000_000, 1, 1_000_000, 999_999]
    for n in range(1, 4):
        assert apic.expire(n * 1_000_000) == (WakeAt((n + 1) * 1_000_000),)
        assert ticked(apic)


def test_late_periodic_ticks_merge_and_are_counted() -> None:
    apic = timer(PERIODIC)
    write(apic, reg.TIMER_INITIAL_COUNT, 1_000_000)
    assert apic.expire(5_500_000) == (WakeAt(6_000_000),)
    assert ticked(apic)
    assert apic.coalesced[0x45] == 4


@given(
    hz=st.integers(1, 10**10), initial=st.integers(1, 2**32 - 1), shift=st.integers(0, 7), start=st.integers(0, 2**62),
    late=st.lists(st.integers(0, 10**9), max_size=20),
)  # fmt: skip
def test_no_tick_drifts(hz: int, initial: int, shift: int, start: int, late: list[int]) -> None:
    register = [0xB, 0, 1, 2, 3, 8, 9, 0xA][shift]
    apic = timer(PERIODIC, hz=hz, divide=register)
    write(apic, reg.TIMER_INITIAL_COUNT, initial, start)
    period = Fraction(10**9 * initial << shift, hz)
    now = start
    for delay in late:
        assert apic.wake_at is not None
        now = max(now, apic.wake_at) + delay
        apic.expire(now)
        assert ticked(apic)
        nth = (now - start) // period + 1
        exact = ceil(start + nth * period)
        assert apic.wake_at == (exact if period >= SHORTEST_PERIOD else max(exact, now + SHORTEST_PERIOD))


def test_guest_cannot_ask_for_more_wake_ups_than_kvm_gives() -> None:
    apic = timer(PERIODIC)
    assert write(apic, reg.TIMER_INITIAL_COUNT, 1) == (WakeAt(SHORTEST_PERIOD),)
    assert apic.expire(SHORTEST_PERIOD) == (WakeAt(2 * SHORTEST_PERIOD),)
    assert ticked(apic)
    assert apic.coalesced[0x45] == SHORTEST_PERIOD - 1


def test_new_divisor_goes_on_from_the_current_count() -> None:
    apic = timer()
    write(apic, reg.TIMER_INITIAL_COUNT, 1000)
    assert write(apic, reg.TIMER_DIVIDE, 0, 400) == (WakeAt(400 + 600 * 2),)  # by 2
    assert [count(apic, now) for now in (400, 402, 1599, 1600)] == [600, 599, 1, 0]
    assert write(apic, reg.TIMER_DIVIDE, 0, 500) == ()  # no change


def test_new_divisor_of_a_periodic_timer_holds_for_the_next_period_too() -> None:
    apic = timer(PERIODIC)
    write(apic, reg.TIMER_INITIAL_COUNT, 1_000_000)
    write(apic, reg.TIMER_DIVIDE, 0, 400_000)
    assert apic.wake_at == 1_600_000
    assert apic.expire(1_600_000) == (WakeAt(3_600_000),)


def test_masked_timer_runs_and_its_interrupt_is_lost() -> None:
    apic = timer(ONE_SHOT | reg.LVT_MASKED)
    write(apic, reg.TIMER_INITIAL_COUNT, 1000)
    assert count(apic, 400) == 600
    apic.expire(1000)
    write(apic, reg.LVT_TIMER, ONE_SHOT, 1001)
    assert not ticked(apic)


def test_tick_that_was_due_before_the_timer_is_masked_still_comes() -> None:
    apic = timer()
    write(apic, reg.TIMER_INITIAL_COUNT, 1000)
    write(apic, reg.LVT_TIMER, ONE_SHOT | reg.LVT_MASKED, 1000)
    assert ticked(apic)


def test_software_disable_masks_the_timer_and_lets_it_run() -> None:
    apic = timer(PERIODIC)
    write(apic, reg.TIMER_INITIAL_COUNT, 1_000_000)
    write(apic, reg.SPIV, 0xFF, 100)
    apic.expire(1_000_000)
    assert not ticked(apic)
    assert count(apic, 1_400_000) == 600_000


def test_one_shot_becomes_periodic_while_it_runs_and_the_reverse() -> None:
    apic = timer()
    write(apic, reg.TIMER_INITIAL_COUNT, 1_000_000)
    write(apic, reg.LVT_TIMER, PERIODIC, 500_000)
    assert apic.expire(1_000_000) == (WakeAt(2_000_000),)
    write(apic, reg.LVT_TIMER, ONE_SHOT, 1_500_000)
    assert apic.expire(2_000_000) == (WakeAt(None),)


def test_reserved_timer_mode_stands_still() -> None:
    apic = timer(0x60045)
    assert write(apic, reg.TIMER_INITIAL_COUNT, 1000) == ()
    assert count(apic, 500) == 0


# TSC-deadline mode


def test_tsc_deadline_interrupts_when_the_counter_gets_there() -> None:
    apic = timer(TSC_DEADLINE)
    assert apic.write_msr(reg.IA32_TSC_DEADLINE, 10_000, 100, tsc=4_001) == (WakeAt(100 + 3000),)  # 2,999.5 ns
    assert apic.read_msr(reg.IA32_TSC_DEADLINE, 200) == 10_000
    assert apic.expire(3099, tsc=9_999) == (WakeAt(3100),) or apic.wake_at == 3100
    assert not ticked(apic)
    assert apic.expire(3100, tsc=10_001) == (WakeAt(None),)
    assert ticked(apic)
    assert apic.read_msr(reg.IA32_TSC_DEADLINE, 3200) == 0


def test_tsc_deadline_in_the_past_interrupts_at_once_and_zero_disarms() -> None:
    apic = timer(TSC_DEADLINE)
    assert apic.write_msr(reg.IA32_TSC_DEADLINE, 10_000, 0, tsc=10_000) == ()
    assert ticked(apic)
    apic.write_msr(reg.IA32_TSC_DEADLINE, 20_000, 0, tsc=10_000)
    assert apic.write_msr(reg.IA32_TSC_DEADLINE, 0, 0, tsc=11_000) == (WakeAt(None),)


def test_far_tsc_deadline_is_slept_for_in_parts() -> None:
    apic = timer(TSC_DEADLINE)
    assert apic.write_msr(reg.IA32_TSC_DEADLINE, 2**64 - 1, 0) == (WakeAt(LONGEST_SLEEP),)
    assert apic.expire(LONGEST_SLEEP, tsc=2 * LONGEST_SLEEP) == (WakeAt(2 * LONGEST_SLEEP),)
    assert not ticked(apic)


def test_tsc_deadline_and_counts_do_not_meet() -> None:
    apic = timer(TSC_DEADLINE)
    write(apic, reg.TIMER_INITIAL_COUNT, 1000)
    assert (apic.read(reg.TIMER_INITIAL_COUNT, 4, 0), count(apic, 10)) == (0, 0)
    one_shot = timer()
    assert one_shot.write_msr(reg.IA32_TSC_DEADLINE, 5, 0, tsc=10) == ()
    assert one_shot.read_msr(reg.IA32_TSC_DEADLINE, 0) == 0
    assert not ticked(one_shot)


@pytest.mark.parametrize(("first", "second"), [(ONE_SHOT, TSC_DEADLINE), (TSC_DEADLINE, PERIODIC)])
def test_changing_between_tsc_deadline_and_another_mode_disarms(first: int, second: int) -> None:
    apic = timer(first)
    write(apic, reg.TIMER_INITIAL_COUNT, 1000)
    apic.write_msr(reg.IA32_TSC_DEADLINE, 10_000, 0, tsc=0)
    assert apic.wake_at is not None
    assert write(apic, reg.LVT_TIMER, second, 10) == (WakeAt(None),)
    write(apic, reg.LVT_TIMER, first, 20)
    assert apic.wake_at is None


def test_without_tsc_deadline_its_bit_is_reserved_and_its_msr_faults() -> None:
    apic = timer(TSC_DEADLINE, tsc_hz=0)
    assert apic.read(reg.LVT_TIMER, 4, 0) == 0x45
    assert apic.write_msr(reg.IA32_TSC_DEADLINE, 1, 0) is None
    assert apic.read_msr(reg.IA32_TSC_DEADLINE, 0) is None


# State


@pytest.mark.parametrize("mode", [ONE_SHOT, PERIODIC])
def test_restored_count_goes_on_within_its_tick(mode: int) -> None:
    old = timer(mode, hz=3, divide=0)
    write(old, reg.TIMER_INITIAL_COUNT, 10)
    new = Lapic.from_state(0, old.state(1_234_567_891), 42, timer_hz=3, tsc_hz=2 * 10**9)
    assert old.wake_at is not None
    assert new.wake_at == old.wake_at - 1_234_567_891 + 42
    for later in range(0, 10**10, 123_456_789):
        assert count(new, 42 + later) == count(old, 1_234_567_891 + later)


def test_restored_tsc_deadline_asks_for_the_time_left() -> None:
    old = timer(TSC_DEADLINE)
    old.write_msr(reg.IA32_TSC_DEADLINE, 10_000, 0, tsc=0)
    new = Lapic.from_state(0, old.state(1000), 7, timer_hz=10**9, tsc_hz=2 * 10**9, tsc=2000)
    assert new.wake_at == 7 + 4000
