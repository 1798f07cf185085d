"""The RTC against a clock that the test moves."""

from __future__ import annotations

import calendar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from irqchip_vmm.device_loop import FEW_TIMERS, DeviceLoop
from irqchip_vmm.devices.rtc import NS, TIME_BASE, UIP_NS, Rtc, period
from tests.vmm.fakes import FakeTimers, Port

START = calendar.timegm((2024, 2, 28, 23, 59, 58))  # a Wednesday before a leap day
A, B, C, D = 0x0A, 0x0B, 0x0C, 0x0D
SET, PIE, AIE, UIE, BINARY, H24 = 0x80, 0x40, 0x20, 0x10, 0x04, 0x02
IRQF, PF, AF, UF = 0x80, 0x40, 0x20, 0x10
UIP = 0x80
PERIOD_NS = period(6) * NS // TIME_BASE


class Rig:
    def __init__(self, wall_time: int = START, memory_size: int = 0) -> None:
        self.timers = FakeTimers(now=5 * NS)
        self.irqs = 0
        self.times: list[int] = []
        self.rtc = Rtc(self._count, self.timers, wall_time=wall_time, memory_size=memory_size)
        self.port = Port(self.rtc, 0x70)

    def _count(self) -> None:
        self.irqs += 1
        self.times.append(self.timers.now())

    def __getitem__(self, register: int) -> int:
        self.port.write(0, register)
        return self.port.read(1)

    def __setitem__(self, register: int, value: int) -> None:
        self.port.write(0, register)
        self.port.write(1, value)

    def time(self) -> list[int]:
        """Century, year, month, day, weekday, hours, minutes, seconds."""
        return [self[register] for register in (0x32, 9, 8, 7, 6, 4, 2, 0)]


def test_time_in_bcd() -> None:
    assert Rig().time() == [0x20, 0x24, 0x02, 0x28, 4, 0x23, 0x59, 0x58]


def test_time_goes_on_over_the_leap_day() -> None:
    rig = Rig()
    rig.timers.advance(2 * NS)
    assert rig.time() == [0x20, 0x24, 0x02, 0x29, 5, 0, 0, 0]


@pytest.mark.parametrize(
    ("hour", "format_b", "register"),
    [
        (0, 0, 0x12), (1, 0, 0x01), (11, 0, 0x11), (12, 0, 0x92), (13, 0, 0x81), (23, 0, 0x91),
        (0, BINARY, 12), (13, BINARY, 0x81), (23, BINARY | H24, 23), (23, H24, 0x23),
    ],
)  # fmt: skip
def test_hour_formats_both_ways(hour: int, format_b: int, register: int) -> None:
    rig = Rig(calendar.timegm((2024, 1, 1, hour, 0, 0)))
    rig[B] = format_b
    assert rig[4] == register
    rig[4] = register
    rig[B] = H24 | BINARY
    assert rig[4] == hour


def test_the_guest_sets_the_time() -> None:
    rig = Rig()
    rig[B] = SET | H24
    for register, value in ((0x32, 0x19), (9, 0x99), (8, 0x12), (7, 0x31), (6, 6), (4, 0x23), (2, 0x59), (0, 0x59)):
        rig[register] = value
    rig.timers.advance(10 * NS)
    assert rig.time() == [0x19, 0x99, 0x12, 0x31, 6, 0x23, 0x59, 0x59]
    rig[B] = H24
    rig.timers.advance(NS)
    assert rig.time() == [0x20, 0x00, 0x01, 0x01, 7, 0, 0, 0]


def test_writing_while_it_runs_changes_that_field_only() -> None:
    rig = Rig()
    rig[2] = 0x10
    assert rig.time()[-3:] == [0x23, 0x10, 0x58]


RESET_DIVIDER, DIVIDER = 0x76, 0x26


def test_a_reset_divider_holds_the_clock() -> None:
    rig = Rig()
    rig[A] = RESET_DIVIDER
    rig.timers.advance(100 * NS)
    assert rig[0] == 0x58
    assert rig[C] == 0


@pytest.mark.parametrize("fraction", [0, 1, NS // 3, NS - 1])
@pytest.mark.parametrize("set_meanwhile", [False, True])
def test_the_first_update_comes_half_a_second_after_the_divider_is_released(fraction: int, set_meanwhile: bool) -> None:
    rig = Rig()
    rig.timers.advance(fraction)
    rig[A] = RESET_DIVIDER
    rig.timers.advance(fraction)
    if set_meanwhile:
        rig[B] = SET | H24
    rig[A] = DIVIDER
    assert rig[C] & UF == 0
    rig[B] = UIE | H24
    rig.timers.advance(NS // 2 - UIP_NS - 1)
    assert rig[A] == DIVIDER
    rig.timers.advance(1)
    assert rig[A] == DIVIDER | UIP
    rig.timers.advance(UIP_NS - 1)
    assert (rig[0], rig.irqs) == (0x58, 0)
    rig.timers.advance(1)
    assert (rig[0], rig.irqs, rig[C] & UF) == (0x59, 1, UF)
    rig.timers.advance(NS - 1)
    assert rig[0] == 0x59
    rig.timers.advance(1)
    assert rig[0] == 0x00


@pytest.mark.parametrize("rate", [6, 15])
def test_clearing_set_starts_neither_the_second_nor_the_periodic_phase_anew(rate: int) -> None:
    rig, other = Rig(), Rig()
    for one in (rig, other):
        one[A] = 0x20 | rate
        one[B] = PIE | H24
    flags = others = 0
    for _ in range(10):
        rig[B] = SET | PIE | H24
        rig[B] = PIE | H24
        rig.timers.advance(NS * 6 // 10)
        other.timers.advance(NS * 6 // 10)
        flags |= rig[C]
        assert rig[C] == 0
        others |= other[C]
    assert flags == others == IRQF | PF | AF | UF
    assert rig.irqs == 10
    assert rig.times == other.times
    assert rig.time() == other.time() == [0x20, 0x24, 0x02, 0x29, 5, 0, 0, 0x04]


def test_an_update_while_set_is_lost_and_the_next_comes_on_the_second() -> None:
    rig = Rig()
    rig.timers.advance(NS * 9 // 10)
    rig[B] = SET | H24
    rig.timers.advance(NS * 2 // 10)
    rig[B] = H24
    assert (rig[0], rig[C] & UF) == (0x58, 0)
    rig.timers.advance(NS * 9 // 10 - 1)
    assert (rig[0], rig[C] & UF) == (0x58, 0)
    rig.timers.advance(1)
    assert (rig[0], rig[C] & UF) == (0x59, UF)


def test_setting_the_time_while_it_runs_leaves_the_phase() -> None:
    rig = Rig()
    rig.timers.advance(NS * 9 // 10)
    rig[0] = 0x30
    rig.timers.advance(NS // 10 - 1)
    assert rig[0] == 0x30
    rig.timers.advance(1)
    assert rig[0] == 0x31


def test_update_in_progress_just_before_each_second() -> None:
    rig = Rig()
    seen = []
    for nanoseconds in (0, NS - 244_001, 1, 243_999, 1):
        rig.timers.advance(nanoseconds)
        seen.append(rig[A] >> 7)
    assert seen == [0, 0, 1, 1, 0]


@pytest.mark.parametrize("seconds", [0, 3600])
@pytest.mark.parametrize(("rate", "hertz"), [(1, 256), (2, 128), (3, 8192), (6, 1024), (15, 2)])
def test_periodic_rates_do_not_drift_from_the_seconds(rate: int, hertz: int, seconds: int) -> None:
    rig = Rig()
    start = rig.timers.now() + seconds * NS
    rig[A] = 0x20 | rate
    rig[B] = PIE | H24
    rig.timers.advance(seconds * NS)
    assert rig[C] & PF == (PF if seconds else 0)
    before = rig.irqs
    for number in range(1, 4):
        rig.timers.advance(start - -number * NS // hertz - rig.timers.now() - 1)
        assert rig.irqs == before + number - 1
        rig.timers.advance(1)
        assert rig.irqs == before + number
        assert rig[C] & PF


def test_periodic_interrupt_comes_once_until_c_is_read() -> None:
    rig = Rig()
    rig[B] = PIE | H24
    rig.timers.advance(10 * PERIOD_NS)
    assert rig.irqs == 1
    assert rig.timers.armed() == []  # nothing more to do until the guest reads C
    assert rig[C] & (IRQF | PF) == IRQF | PF
    assert rig[C] & IRQF == 0
    rig.timers.advance(PERIOD_NS)
    assert rig.irqs == 2


def test_update_interrupt_each_second() -> None:
    rig = Rig()
    rig[B] = UIE | H24
    for second in range(1, 4):
        rig.timers.advance(NS)
        assert (rig.irqs, rig[C] & (IRQF | UF)) == (second, IRQF | UF)


def test_flags_are_set_without_enables_but_do_not_interrupt() -> None:
    rig = Rig()
    rig.timers.advance(NS)
    assert rig.irqs == 0
    assert rig[C] == UF | PF
    assert rig[C] == 0


def test_enabling_a_flag_that_is_set_interrupts_at_once() -> None:
    rig = Rig()
    rig.timers.advance(NS)
    rig[B] = UIE | H24
    assert rig.irqs == 1


@pytest.mark.parametrize(
    ("alarm", "seconds"),
    [
        ((0x00, 0x00, 0x00), 2), ((0x23, 0x59, 0x59), 1), ((0x23, 0x59, 0x58), 86400), ((0xFF, 0xFF, 0xFF), 1),
        ((0xC0, 0x00, 0x30), 32), ((0xC0, 0xC0, 0x57), 59), ((0x12, 0xC0, 0x00), 12 * 3600 + 2),
    ],
)  # fmt: skip
def test_alarm(alarm: tuple[int, int, int], seconds: int) -> None:
    rig = Rig()
    rig[5], rig[3], rig[1] = alarm
    rig[B] = AIE | H24
    rig.timers.advance(seconds * NS - 1)
    assert rig.irqs == 0
    rig.timers.advance(1)
    assert rig.irqs == 1
    assert rig[C] & (IRQF | AF) == IRQF | AF


@pytest.mark.parametrize("alarm", [(0x24, 0, 0), (0, 0x60, 0), (0, 0, 0x60), (0xBF, 0xBF, 0xBF)])
def test_an_alarm_that_is_no_time_never_comes(alarm: tuple[int, int, int]) -> None:
    rig = Rig()
    rig[5], rig[3], rig[1] = alarm
    rig[B] = AIE | H24
    rig.timers.advance(3 * 86400 * NS)
    assert rig.irqs == 0


def test_set_ends_the_update_interrupt() -> None:
    rig = Rig()
    rig[B] = UIE | H24
    rig[B] = UIE | SET | H24
    assert rig[B] == SET | H24


def test_d_says_that_ram_and_time_are_valid() -> None:
    rig = Rig()
    rig[D] = 0
    assert rig[D] == 0x80


@pytest.mark.parametrize(
    ("size", "above_1_mib_kib", "above_16_mib_64k"),
    [(1 << 20, 0, 0), (16 << 20, 15 << 10, 0), (32 << 20, 31 << 10, 256), (3 << 30, 0xFFFF, (3056 << 20) >> 16)],
)
def test_memory_size(size: int, above_1_mib_kib: int, above_16_mib_64k: int) -> None:
    rig = Rig(memory_size=size)
    assert rig[0x15] | rig[0x16] << 8 == 640
    assert rig[0x30] | rig[0x31] << 8 == rig[0x17] | rig[0x18] << 8 == above_1_mib_kib
    assert rig[0x34] | rig[0x35] << 8 == above_16_mib_64k


def test_a_timer_that_stays_right_stays() -> None:
    rig = Rig()
    rig[B] = UIE | H24
    timers = list(rig.timers.waiting)
    rig[0x40] = 1
    assert rig.timers.waiting == timers
    assert len(timers) == 1


def test_a_guest_that_sets_the_alarm_for_ever_fills_no_memory() -> None:
    loop = DeviceLoop(lambda error: None)
    port = Port(Rtc(lambda: None, loop, wall_time=START - 43200), 0x70)
    for register, value in ((5, 0x23), (3, 0x59), (B, AIE | H24)):
        port.write(0, register)
        port.write(1, value)
    port.write(0, 1)
    for second in range(1000):
        port.write(1, second % 50)
    assert len(loop._timers) <= FEW_TIMERS
    loop.stop()


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 0xFF), st.integers(0, 0xFFFFFFFF), st.integers(0, 10 * NS)), max_size=40))
def test_no_access_raises_and_at_most_one_timer_waits(accesses: list[tuple[int, int, int]]) -> None:
    rig = Rig()
    for register, value, nanoseconds in accesses:
        rig[register] = value
        assert 0 <= rig[register & 0x3F] <= 0xFF
        assert len(rig.timers.armed()) <= 1
        rig.timers.advance(nanoseconds)
