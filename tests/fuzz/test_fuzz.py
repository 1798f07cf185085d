"""Each fuzzer, for a moment; and the one beside oracles finds what it should."""

from __future__ import annotations

import io
import random
from itertools import count

import pytest

from tests.fuzz.__main__ import PHASES
from tests.fuzz.beside import Disagreement, beside
from tests.fuzz.run import Deadline, Phase, run
from tests.x86.sequences import SequenceMachine, action, beginning


def rounds(number: int) -> Deadline:
    past = count()
    return lambda: next(past) >= number


@pytest.mark.parametrize(
    "phase",
    [
        pytest.param(
            phase, id=f"{phase.part} {phase.beside}", marks=[getattr(pytest.mark, phase.needs)] if phase.needs else []
        )
        for phase in PHASES
    ],
)
def test_nothing_is_wrong_in(phase: Phase) -> None:
    assert phase.play(random.Random(1), rounds(3)) > 100


class Adder:
    """An oracle that cannot count beyond 2 after a `third`."""

    def __init__(self) -> None:
        self.accesses = 0
        self.value = 0
        self.limit = 100

    def add(self, number: int) -> None:
        self.accesses += 1
        self.value = min(self.limit, self.value + number)


class AdderMachine(SequenceMachine):
    oracle = Adder()

    @beginning(value=(0, 1))
    def start(self, value: int) -> None:
        self.value = self.oracle.value = value
        self.oracle.limit = 100

    @action(number=range(2))
    def add(self, number: int) -> None:
        self.value += number
        self.oracle.add(number)

    @action()
    def third(self) -> None:
        self.oracle.limit = 2

    def agree(self) -> None:
        assert self.value == self.oracle.value


def test_a_disagreement_is_shortened_until_every_action_counts() -> None:
    with pytest.raises(Disagreement) as caught:
        beside(AdderMachine, AdderMachine.oracle, random.Random(1), rounds(100))
    (first, *rest) = caught.value.actions
    assert first[0] == "start"
    assert sorted(rest, key=str) == [("add", {"number": 1})] * (3 - first[1]["value"]) + [("third", {})]
    assert "third()" in str(caught.value)


def test_weights_say_how_often_an_action_comes() -> None:
    oracle = AdderMachine.oracle
    before = oracle.accesses
    accesses = beside(AdderMachine, oracle, random.Random(1), rounds(5), third=0)
    assert accesses == oracle.accesses - before == 5 * 60


def test_time_is_divided_by_shares_and_accesses_are_summed() -> None:
    output = io.StringIO()
    phases = [Phase("a", "alone", lambda rng, expired: 7), Phase("a", "KVM", lambda rng, expired: 5, share=2)]
    assert run(phases, 0.0, 1, output) == 12
    assert [line.split() for line in output.getvalue().splitlines()][-3:] == [
        ["all", "alone", "7"],
        ["all", "KVM", "5"],
        ["all", "12"],
    ]
