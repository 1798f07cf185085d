"""The closed forms of the 8254 against a counter that takes each CLK pulse one by one."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from irqchip_core.x86.pit_counter import Counter
from tests.x86.pit_reference import ReferenceCounter

Action = tuple[str, int]
MAX_PULSES = 60
SMALL = st.integers(2, 12)  # counts that end within a few pulses

actions = st.one_of(
    st.tuples(st.just("pulses"), st.integers(1, MAX_PULSES)),
    st.tuples(st.just("pulses"), st.integers(1, 4)),
    st.tuples(st.just("count"), SMALL | st.sampled_from([1, 0, 0xFF, 0xFFFF, 0x1000])),
    st.tuples(st.just("byte"), SMALL),
    st.tuples(st.just("gate"), st.integers(0, 1)),
    st.tuples(st.just("control"), st.integers(0x10, 0x3F)),
    st.tuples(st.just("restore"), st.just(0)),
)


def legal(ours: Counter) -> bool:
    """Whether no count of 1 is about to be used in mode 3, which the data sheet leaves open."""
    return ours.mode != 3 or ours.count_register != 1


@given(control=st.integers(0x10, 0x3F), count=SMALL, gate=st.booleans(), steps=st.lists(actions, max_size=12))
@settings(max_examples=600, deadline=None, derandomize=True)
def test_counter_agrees_with_single_pulses(control: int, count: int, gate: bool, steps: list[Action]) -> None:
    ours, reference = Counter(gate), ReferenceCounter(gate)
    tick = 0
    for what, value in [("control", control), ("count", count), *steps]:
        if what == "pulses":
            # Each length of jump gives the same as that many single pulses.
            tick += value
            for _ in range(value):
                reference.pulse()
            ours.advance(tick)
        elif what == "control":
            ours.set_control(value)
            reference.control(value)
        elif what == "gate":
            ours.set_gate(bool(value))
            reference.set_gate(bool(value))
        elif what == "byte":
            ours.write(value)
            reference.write(value)
        elif what == "count":
            for byte in (value & 0xFF, value >> 8) if ours.access == 3 else (value & 0xFF,):
                ours.write(byte)
                reference.write(byte)
        else:
            ours = Counter.from_state(ours.state(), tick)
        if not legal(ours):
            return
        assert (ours.output, ours.rising_edges, ours.null_count) == (reference.out, reference.edges, reference.null)
        if reference.counting:
            assert ours.count() == reference.element
        check_next_rising_edge(ours, tick)


def check_next_rising_edge(counter: Counter, tick: int) -> None:
    """OUT rises at the pulse that was foretold, and at none before."""
    expected = counter.next_rising_edge()
    copy = Counter.from_state(counter.state(), tick)
    edges = copy.rising_edges
    if expected is None:
        copy.advance(tick + 200_000)
        assert copy.rising_edges == edges
        return
    assert expected > tick
    copy.advance(expected - 1)
    assert copy.rising_edges == edges
    copy.advance(expected)
    assert copy.rising_edges == edges + 1


@given(mode=st.integers(0, 5), bcd=st.booleans(), count=st.integers(2, 0xFFFF), cuts=st.lists(st.integers(1, 1 << 20)))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_one_jump_is_as_good_as_many(mode: int, bcd: bool, count: int, cuts: list[int]) -> None:
    one, many = Counter(True), Counter(True)
    for counter in (one, many):
        counter.set_control(0x30 | mode << 1 | bcd)
        counter.write(count & 0xFF)
        counter.write(count >> 8)
        if mode in (1, 5):
            counter.set_gate(False)
            counter.set_gate(True)
    for end in range(len(cuts)):
        many.advance(sum(cuts[: end + 1]))
    one.advance(sum(cuts))
    assert one.state() == many.state()
