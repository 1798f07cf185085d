"""The 8254 against its data sheet (Intel 231164): each mode, register and command."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import attrs
import pytest

from irqchip_core.errors import InvalidArgument, WrongType
from irqchip_core.x86.effects import TimerRose, WakeAt
from irqchip_core.x86.lapic.timer import SHORTEST_PERIOD
from irqchip_core.x86.pit import FREQUENCY, Pit
from irqchip_core.x86.state import PitChannelState, PitCounting, PitRwMode, PitRwState, PitState

SECOND = 10**9
YEAR = 365 * 86400 * SECOND
CONTROL, SPEAKER = 0x43, 0x61
STATUS_OUT, STATUS_NULL = 0x80, 0x40
LATCH_STATUS, LATCH_COUNT, LATCH_BOTH = 0xE0, 0xD0, 0xC0


def at(pulse: float) -> int:
    """A time at which CLK pulse `pulse` has just come; with .5, between two."""
    return -int(-Fraction(pulse) * SECOND // FREQUENCY)


def bits(text: str) -> list[bool]:
    """Levels as the data sheet draws them, high and low."""
    return ["_-".index(level) == 1 for level in text]


def programmed(control: int, *count: int, counter: int = 2, gate: bool = True, pulse: float = 0.5) -> Pit:
    """A counter that is given its control word and count between CLK pulses 0 and 1."""
    pit = Pit()
    pit.write(SPEAKER, 1, int(gate), at(pulse))
    pit.write(CONTROL, 1, counter << 6 | control, at(pulse))
    for byte in count:
        pit.write(0x40 + counter, 1, byte, at(pulse))
    return pit


def set_gate(pit: Pit, high: bool, pulse: float) -> None:
    pit.write(SPEAKER, 1, int(high), at(pulse))


def trigger(pit: Pit, pulse: float) -> None:
    set_gate(pit, False, pulse)
    set_gate(pit, True, pulse)


def outputs(pit: Pit, pulses: Sequence[int], counter: int = 2) -> list[bool]:
    return [pit.output(counter, at(pulse)) for pulse in pulses]


def count(pit: Pit, pulse: float, counter: int = 2) -> int:
    """The count, through a latch of both bytes or of the only one."""
    pit.write(CONTROL, 1, counter << 6, at(pulse))
    low = pit.read(0x40 + counter, 1, at(pulse))
    return low | pit.read(0x40 + counter, 1, at(pulse)) << 8


def status(pit: Pit, pulse: float, counter: int = 2) -> int:
    pit.write(CONTROL, 1, LATCH_STATUS | 2 << counter, at(pulse))
    return pit.read(0x40 + counter, 1, at(pulse))


# Waveforms. Column n is the state after CLK pulse n; the control word and the count come between pulses 0 and 1.


@pytest.mark.parametrize(
    ("mode", "n", "out", "counts"),
    [
        (0, 4, "____---", [4, 3, 2, 1, 0, 0xFFFF, 0xFFFE]),
        (1, 3, "___----", [3, 2, 1, 0, 0xFFFF, 0xFFFE, 0xFFFD]),
        (2, 3, "--_--_--_", [3, 2, 1, 3, 2, 1, 3, 2, 1]),
        (2, 2, "-_-_", [2, 1, 2, 1]),
        (3, 4, "--__--__-", [4, 2, 4, 2, 4, 2, 4, 2, 4]),
        (3, 5, "---__---__-", [4, 2, 0, 4, 2, 4, 2, 0, 4, 2, 4]),
        (3, 2, "-_-_", [2, 2, 2, 2]),
        (3, 3, "--_--_", [2, 0, 2, 2, 0, 2]),
        (4, 3, "---_---", [3, 2, 1, 0, 0xFFFF, 0xFFFE, 0xFFFD]),
        (5, 3, "---_---", [3, 2, 1, 0, 0xFFFF, 0xFFFE, 0xFFFD]),
    ],
)
def test_waveform(mode: int, n: int, out: str, counts: list[int]) -> None:
    pit = programmed(0x30 | mode << 1, n, 0)
    if mode in (1, 5):
        trigger(pit, 0.5)
    for pulse, (level, value) in enumerate(zip(bits(out), counts, strict=False), start=1):
        assert (pit.output(2, at(pulse)), count(pit, pulse)) == (level, value), f"pulse {pulse}"


@pytest.mark.parametrize(("mode", "alias"), [(6, 2), (7, 3)])
def test_modes_6_and_7_are_2_and_3(mode: int, alias: int) -> None:
    pits = [programmed(0x30 | m << 1, 6, 0) for m in (mode, alias)]
    assert outputs(pits[0], range(1, 30)) == outputs(pits[1], range(1, 30))
    assert status(pits[0], 30) & 0x3F == 0x30 | mode << 1  # as it was written


@pytest.mark.parametrize(("mode", "level"), [(0, False), (1, True), (2, True), (3, True), (4, True), (5, True)])
def test_a_control_word_sets_out_at_once(mode: int, level: bool) -> None:
    pit = programmed(0x30 | mode << 1)
    assert pit.output(2, at(0.5)) is level
    assert pit.output(2, at(1000)) is level


@pytest.mark.parametrize("mode", [2, 3])
def test_a_rate_longer_than_the_longest_count_is_65536(mode: int) -> None:
    pit = programmed(0x30 | mode << 1, 0, 0, counter=0)
    assert pit.next_rising_edge(at(0.5)) == at(1 + 65536)


def test_a_count_of_1_in_mode_2_never_falls_and_in_mode_3_counts_as_2() -> None:
    assert outputs(programmed(0x34, 1, 0), range(1, 9)) == bits("--------")
    assert outputs(programmed(0x36, 1, 0), range(1, 9)) == bits("-_-_-_-_")


# A new count while counting


@pytest.mark.parametrize(("mode", "out"), [(0, "______-"), (4, "------_")])
def test_modes_0_and_4_take_a_new_count_at_once(mode: int, out: str) -> None:
    pit = programmed(0x10 | mode << 1, 9)
    assert count(pit, 3) & 0xFF == 7
    pit.write(0x42, 1, 3, at(3.5))
    assert outputs(pit, range(1, 4)) == bits(out[:3])
    assert outputs(pit, range(4, 8)) == bits(out[3:])
    assert count(pit, 7) & 0xFF == 0


def test_mode_0_stops_at_the_first_byte_of_two_and_lowers_out() -> None:
    pit = programmed(0x30, 2, 0)
    assert pit.output(2, at(3)) is True
    pit.write(0x42, 1, 4, at(3.5))
    assert pit.output(2, at(3.5)) is False
    assert count(pit, 100) == 0
    pit.write(0x42, 1, 0, at(100.5))
    assert outputs(pit, range(101, 106)) == bits("____-")


def test_mode_4_ignores_the_first_byte_of_two() -> None:
    pit = programmed(0x38, 4, 0)
    pit.write(0x42, 1, 9, at(3.5))
    assert outputs(pit, range(4, 7)) == bits("-_-")


def test_mode_2_takes_a_new_count_at_the_end_of_the_period() -> None:
    pit = programmed(0x14, 4)
    pit.write(0x42, 1, 2, at(2.5))
    assert outputs(pit, range(3, 10)) == bits("-_-_-_-")
    assert outputs(programmed(0x14, 4), range(3, 10)) == bits("-_---_-")


def test_mode_3_takes_a_new_count_at_the_end_of_the_half_cycle() -> None:
    pit = programmed(0x16, 8)
    pit.write(0x42, 1, 4, at(2.5))
    assert outputs(pit, range(3, 11)) == bits("--__--__")
    assert outputs(programmed(0x16, 8), range(1, 11)) == bits("----____--")


@pytest.mark.parametrize(("mode", "running", "retriggered"), [(1, "__-----", "___-"), (5, "--_----", "---_")])
def test_modes_1_and_5_take_a_new_count_at_the_next_trigger(mode: int, running: str, retriggered: str) -> None:
    pit = programmed(0x10 | mode << 1, 2)
    trigger(pit, 0.5)
    assert outputs(pit, [1]) == bits(running[:1])
    pit.write(0x42, 1, 3, at(1.5))
    assert outputs(pit, range(2, 8)) == bits(running[1:])
    trigger(pit, 7.5)
    assert outputs(pit, range(8, 12)) == bits(retriggered)


# Gate


@pytest.mark.parametrize("mode", [0, 4])
def test_a_low_gate_stops_modes_0_and_4_where_they_are(mode: int) -> None:
    pit = programmed(0x30 | mode << 1, 6, 0)
    set_gate(pit, False, 3.5)
    assert count(pit, 500) == 4
    set_gate(pit, True, 500.5)
    assert count(pit, 501) == 3
    assert outputs(pit, [503, 504, 505]) == (bits("_--") if mode == 0 else bits("-_-"))


@pytest.mark.parametrize("mode", [2, 3])
def test_a_low_gate_stops_modes_2_and_3_with_out_high_and_a_rising_one_starts_anew(mode: int) -> None:
    pit = programmed(0x30 | mode << 1, 4, 0)
    assert outputs(pit, [4]) == [False]
    set_gate(pit, False, 4.5)
    assert outputs(pit, [5, 100]) == [True, True]
    set_gate(pit, True, 100.5)
    assert count(pit, 101) == 4
    assert outputs(pit, range(101, 106)) == (bits("---_-") if mode == 2 else bits("--__-"))


@pytest.mark.parametrize(("mode", "out"), [(1, "__-"), (5, "--_")])
def test_modes_1_and_5_wait_for_a_trigger_and_do_not_mind_a_low_gate(mode: int, out: str) -> None:
    pit = programmed(0x30 | mode << 1, 2, 0)
    assert outputs(pit, [1, 50]) == [True, True]
    trigger(pit, 50.5)
    set_gate(pit, False, 50.5)
    assert outputs(pit, [51, 52, 53]) == bits(out)


def test_mode_1_is_retriggerable() -> None:
    pit = programmed(0x32, 3, 0)
    trigger(pit, 0.5)
    trigger(pit, 2.5)
    assert outputs(pit, range(1, 8)) == bits("_____--")


def test_a_count_is_loaded_with_the_gate_low() -> None:
    pit = programmed(0x30, 5, 0, gate=False)
    assert count(pit, 10) == 5
    assert status(pit, 10) & STATUS_NULL == 0
    set_gate(pit, True, 10.5)
    assert count(pit, 11) == 4


def test_a_trigger_before_a_count_does_nothing() -> None:
    pit = programmed(0x32)
    trigger(pit, 0.5)
    pit.write(0x42, 1, 2, at(5.5))
    pit.write(0x42, 1, 0, at(5.5))
    assert outputs(pit, [6, 7, 8]) == [True, True, True]


# BCD


def test_bcd_counts_in_decimal() -> None:
    pit = programmed(0x31, 0x00, 0x10)
    assert [count(pit, pulse) for pulse in (1, 2, 11, 12, 101, 1001)] == [0x1000, 0x0999, 0x0990, 0x0989, 0x0900, 0]


def test_bcd_zero_is_10000_and_wraps_to_9999() -> None:
    pit = programmed(0x31, 0, 0)
    assert count(pit, 2) == 0x9999
    assert outputs(pit, [10000, 10001]) == [False, True]
    assert count(pit, 10002) == 0x9999


def test_a_bcd_digit_above_9_counts_down_as_it_is() -> None:
    pit = programmed(0x31, 0x1F, 0)
    assert [count(pit, 1 + pulses) for pulses in (0, 15, 16, 25)] == [0x1F, 0x10, 0x09, 0x00]
    assert outputs(programmed(0x31, 0x1F, 0), [25, 26]) == [False, True]


# Access modes, latches and read-back


def test_low_byte_access() -> None:
    pit = programmed(0x10, 0x34)
    assert pit.read(0x42, 1, at(1)) == 0x34
    assert pit.read(0x42, 1, at(2)) == 0x33
    assert status(pit, 2) & 0x30 == 0x10


def test_high_byte_access() -> None:
    pit = programmed(0x20, 0x12)
    assert pit.read(0x42, 1, at(1)) == 0x12
    assert pit.read(0x42, 1, at(2)) == 0x11


def test_word_access_alternates_and_reads_do_not_disturb_writes() -> None:
    pit = programmed(0x38, 0x34, 0x12)
    assert pit.read(0x42, 1, at(1)) == 0x34
    pit.write(0x42, 1, 0x78, at(1))
    assert pit.read(0x42, 1, at(1)) == 0x12
    pit.write(0x42, 1, 0x56, at(1))
    assert count(pit, 2) == 0x5678


def test_a_control_word_starts_with_the_low_byte_again() -> None:
    pit = programmed(0x34, 0x34)
    pit.write(CONTROL, 1, 0xB4, at(0.5))
    pit.write(0x42, 1, 0x78, at(0.5))
    pit.write(0x42, 1, 0x56, at(0.5))
    assert count(pit, 1) == 0x5678


def test_a_latched_count_stays_until_it_is_read() -> None:
    pit = programmed(0x34, 0x34, 0x12)
    pit.write(CONTROL, 1, 0x80, at(1))
    pit.write(CONTROL, 1, 0x80, at(101))  # ignored
    assert pit.read(0x42, 1, at(200)) == 0x34
    assert pit.read(0x42, 1, at(300)) == 0x12
    assert count(pit, 301) == 0x1234 - 300


def test_a_control_word_drops_a_latch() -> None:
    pit = programmed(0x30, 0x34, 0x12)
    pit.write(CONTROL, 1, LATCH_BOTH | 8, at(1))
    pit.write(CONTROL, 1, 0x90, at(1))
    pit.write(0x42, 1, 0x99, at(1))
    assert pit.read(0x42, 1, at(2)) == 0x99


def test_read_back_of_count_and_status_gives_the_status_first() -> None:
    pit = programmed(0x34, 0x34, 0x12)
    pit.write(CONTROL, 1, LATCH_BOTH | 8, at(1))
    assert [pit.read(0x42, 1, at(9)) for _ in range(3)] == [STATUS_OUT | 0x34, 0x34, 0x12]


def test_read_back_of_several_counters() -> None:
    pit = Pit()
    for counter, n in ((0, 0x10), (1, 0x20), (2, 0x30)):
        pit.write(CONTROL, 1, counter << 6 | 0x10, at(0.5))
        pit.write(0x40 + counter, 1, n, at(0.5))
    pit.write(CONTROL, 1, LATCH_COUNT | 2 | 8, at(1))
    assert [pit.read(0x40 + counter, 1, at(5)) for counter in range(3)] == [0x10, 0x1C, 0x30]


def test_a_second_status_latch_is_ignored_until_the_first_is_read() -> None:
    pit = programmed(0x30, 2, 0)
    pit.write(CONTROL, 1, LATCH_STATUS | 8, at(1))
    pit.write(CONTROL, 1, LATCH_STATUS | 8, at(9))
    assert pit.read(0x42, 1, at(9)) == 0x30
    assert status(pit, 9) == STATUS_OUT | 0x30


def test_a_read_back_of_nothing_latches_nothing() -> None:
    pit = programmed(0x10, 0x34)
    pit.write(CONTROL, 1, 0xF8, at(1))
    assert pit.read(0x42, 1, at(2)) == 0x33


@pytest.mark.parametrize("mode", range(6))
def test_null_count_until_the_count_is_in_the_counting_element(mode: int) -> None:
    pit = programmed(0x30 | mode << 1)
    assert status(pit, 0.5) & STATUS_NULL
    pit.write(0x42, 1, 5, at(0.5))
    pit.write(0x42, 1, 0, at(0.5))
    assert status(pit, 0.5) & STATUS_NULL
    if mode in (1, 5):
        assert status(pit, 100) & STATUS_NULL
        trigger(pit, 100.5)
    assert status(pit, 101) & STATUS_NULL == 0
    pit.write(0x42, 1, 5, at(101))
    assert status(pit, 101) & STATUS_NULL == 0  # the first byte of two is not yet a count
    pit.write(0x42, 1, 0, at(101))
    assert status(pit, 101) & STATUS_NULL


@pytest.mark.parametrize("control", [0x10, 0x22, 0x35, 0x37, 0x18, 0x2B, 0x3D, 0x3F])
def test_status_has_the_control_word(control: int) -> None:
    assert status(programmed(control), 0.5) & 0x3F == control


def test_a_counter_without_a_control_word_reads_0_and_takes_no_count() -> None:
    pit = Pit()
    pit.write(0x40, 1, 0x55, 0)
    pit.write(0x40, 1, 0x55, 0)
    assert pit.read(0x40, 1, SECOND) == 0
    assert pit.next_rising_edge(SECOND) is None


# Speaker port


def test_speaker_port_bits() -> None:
    pit = programmed(0x30, 2, 0, gate=False)
    assert pit.read(SPEAKER, 1, at(1)) & 0x2F == 0x00
    pit.write(SPEAKER, 1, 0xFF, at(1.5))
    assert pit.read(SPEAKER, 1, at(2)) & 0xEF == 0x03
    assert pit.read(SPEAKER, 1, at(3)) & 0xEF == 0x23
    pit.write(SPEAKER, 1, 0x02, at(4))
    assert pit.read(SPEAKER, 1, at(4)) & 0xEF == 0x22


def test_refresh_bit_toggles_every_18_pulses() -> None:
    pit = Pit()
    levels = [pit.read(SPEAKER, 1, at(pulse)) >> 4 & 1 for pulse in (0, 17, 18, 35, 36, 54)]
    assert levels == [0, 0, 1, 1, 0, 1]


# Time


def test_the_nth_expiry_is_computed_from_the_start() -> None:
    """1,193,182 Hz is no whole number of ns, and 11932 pulses are 10.000151 ms: no error may add up."""
    pit = programmed(0x34, 11932 & 0xFF, 11932 >> 8, counter=0)
    now = at(0.5)
    for n in range(1, 2000):
        edge = pit.next_rising_edge(now)
        assert edge is not None
        assert Fraction(edge) - 1 < Fraction((1 + n * 11932) * SECOND, FREQUENCY) <= edge
        assert pit.take_rising_edges(edge - 1) == 0
        assert pit.take_rising_edges(edge) == 1
        now = edge


@pytest.mark.parametrize("mode", [2, 3])
def test_a_late_owner_learns_how_many_edges_it_missed(mode: int) -> None:
    pit = programmed(0x30 | mode << 1, 100, 0, counter=0)
    assert pit.take_rising_edges(at(1 + 100 * 7 + 99)) == 7
    assert pit.take_rising_edges(at(1 + 100 * 8)) == 1
    assert pit.take_rising_edges(at(1 + 100 * 8)) == 0


@pytest.mark.parametrize("mode", range(6))
@pytest.mark.parametrize("bcd", [0, 1])
def test_ten_years_are_one_step(mode: int, bcd: int) -> None:
    pit = programmed(0x30 | mode << 1 | bcd, 0x34, 0x12, counter=0)
    period = 1234 if bcd else 0x1234
    pulses = 10 * YEAR * FREQUENCY // SECOND
    expected = {0: 1, 1: 0, 2: (pulses - 1) // period, 3: (pulses - 1) // period, 4: 1, 5: 0}[mode]
    assert pit.take_rising_edges(10 * YEAR) == expected
    edge = pit.next_rising_edge(10 * YEAR)
    assert (edge is not None) == (mode in (2, 3))
    pit.write(CONTROL, 1, 0x34, 20 * YEAR)
    assert pit.next_rising_edge(20 * YEAR) is None


@pytest.mark.parametrize(("mode", "pulse"), [(0, 11), (2, 11), (3, 11), (4, 12)])
def test_counter_0_tells_when_it_rises(mode: int, pulse: int) -> None:
    pit = programmed(0x30 | mode << 1, 10, 0, counter=0)
    assert pit.next_rising_edge(at(0.5)) == at(pulse)
    assert pit.next_rising_edge(at(5)) == at(pulse)


def test_time_that_goes_back_stands_still() -> None:
    pit = programmed(0x34, 100, 0)
    assert count(pit, 50) == 51
    assert count(pit, 20) == 51
    assert count(pit, 51) == 50


def test_time_begins_when_the_part_is_made() -> None:
    pit = Pit(now=7 * YEAR)
    pit.write(CONTROL, 1, 0x30, 7 * YEAR)
    pit.write(0x40, 1, 3, 7 * YEAR)
    pit.write(0x40, 1, 0, 7 * YEAR)
    assert pit.next_rising_edge(7 * YEAR) == 7 * YEAR + at(4)


# Accesses that no register takes, and state


@pytest.mark.parametrize(
    ("port", "size"), [(0x40, 2), (0x43, 4), (0x61, 0), (0x44, 1), (0x3F, 1), (-1, 1), (1 << 64, 1)]
)
def test_other_accesses_are_ignored_and_counted(port: int, size: int) -> None:
    pit = programmed(0x34, 100, 0)
    before = pit.state(at(5))
    pit.write(port, size, 0x34, at(5))
    assert pit.read(port, size, at(5)) == 0
    assert (pit.state(at(5)), pit.ignored) == (before, 2)


def test_the_control_port_cannot_be_read() -> None:
    pit = Pit()
    assert pit.read(CONTROL, 1, 0) == 0
    assert pit.ignored == 1


@pytest.mark.parametrize("mode", range(6))
def test_a_restored_timer_goes_on_with_the_remaining_time_on_any_clock(mode: int) -> None:
    pit = programmed(0x30 | mode << 1, 0x10, 0x01)
    trigger(pit, 0.5)
    pit.write(0x42, 1, 0x77, at(100))
    pit.write(CONTROL, 1, LATCH_BOTH | 8, at(100))
    saved, moved = at(100.5), 5 * YEAR
    restored = Pit.from_state(pit.state(saved), moved)
    assert restored.state(moved).age == pit.state(saved).age
    for later in (0, 1000, 50_000, 10**6, 10**10):
        assert [restored.read(0x42, 1, moved + later) for _ in range(4)] == [
            pit.read(0x42, 1, saved + later) for _ in range(4)
        ]
        assert restored.read(SPEAKER, 1, moved + later) == pit.read(SPEAKER, 1, saved + later)
        assert restored.output(2, moved + later) is pit.output(2, saved + later)


def test_edges_not_taken_yet_are_saved() -> None:
    pit = programmed(0x34, 100, 0, counter=0)
    assert Pit.from_state(pit.state(at(350)), 0).take_rising_edges(0) == 3


def test_the_speaker_is_saved() -> None:
    pit = programmed(0x36, 100, 0)
    pit.write(SPEAKER, 1, 0x03, at(1))
    assert Pit.from_state(pit.state(at(2)), at(2)).read(SPEAKER, 1, at(2)) & 0x03 == 0x03


@pytest.mark.parametrize(
    "change",
    [
        {"count": 65537},
        {"latched_count": -1},
        {"count": 0},
        {"mode": 6},
        {"status": 256},
        {"reload_value": 1},
        {"rw_mode": 3},
        {"rw_mode": PitRwMode.MOST},
        {"read_state": PitRwState.LSB},
        {"gate": False},
        {"counting": PitCounting(elapsed=-1)},
    ],
    ids=str,
)
def test_a_record_that_no_8254_can_hold_is_refused(change: dict[str, Any]) -> None:
    state = PitState()
    state.channels[1] = attrs.evolve(state.channels[1], **change)
    with pytest.raises((InvalidArgument, WrongType), match=rf"PIT: state.channels\[1\].{next(iter(change))}"):
        Pit.from_state(state, 0)


def test_a_record_of_two_counters_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="channels: it has 2 elements; give 3"):
        Pit.from_state(PitState([PitChannelState()] * 2), 0)


def test_the_owner_gets_the_timers_interrupts_and_the_next_moment_as_effects() -> None:
    pit = Pit()
    assert pit.write(CONTROL, 1, 0x34, 0) == (WakeAt(None),)
    assert pit.write(0x40, 1, 0xA9, 0) == (WakeAt(None),)
    (wake_at,) = pit.write(0x40, 1, 0x04, 0)  # 1193 pulses, 1 ms
    first = at(1 + 1193)
    assert wake_at == WakeAt(first)
    assert pit.expire(first - 1) == (wake_at,)
    assert pit.expire(first) == (TimerRose(1), WakeAt(at(1 + 2 * 1193)))
    assert pit.write(0x42, 1, 0, first) == pit.write(SPEAKER, 1, 1, first) == ()
    after = pit.write(CONTROL, 1, 0x30, at(1 + 3 * 1193))  # mode 0: the count is awaited
    assert after == (TimerRose(2), WakeAt(None))


def test_a_timer_faster_than_its_owner_can_be_is_looked_at_again_later() -> None:
    pit = programmed(0x34, 2, 0, counter=0)
    now = at(100)
    assert pit.expire(now) == (TimerRose(49), WakeAt(now + SHORTEST_PERIOD))
