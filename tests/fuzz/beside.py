"""Random sequences of a `SequenceMachine`'s actions, beside its oracle: many, and shorter once one fails.

To be fast it compares all state only after some actions; what an action itself shows, such as a value read or a vector
taken, it compares each time. A sequence that fails is played again with a comparison after each action, and without
any action that it can do without.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from tests.fuzz.run import Deadline
from tests.x86.sequences import CHOICES, SequenceMachine

LENGTH = 60
"""Actions of a sequence, before both start anew."""
BETWEEN_COMPARISONS = 8

Kind = Callable[[], SequenceMachine]
Action = tuple[str, dict[str, Any]]


class Counted(Protocol):
    """An oracle that counts its accesses."""

    accesses: int


class Disagreement(AssertionError):
    """Two that should agree do not: after `actions`, of which none can be left out."""

    def __init__(self, actions: list[Action], reason: Exception) -> None:
        self.actions = actions
        lines = [f"{name}({', '.join(f'{key}={value!r}' for key, value in given.items())})" for name, given in actions]
        super().__init__("\n  ".join([f"{type(reason).__name__}: {reason}", *lines]))


def beside(
    kind: type[SequenceMachine], oracle: Counted, rng: random.Random, expired: Deadline, **weights: float
) -> int:
    """Play sequences until the deadline; returns how many accesses actions made, those to compare state left out.

    Args:
        kind: What to play.
        oracle: Counts the accesses.
        rng: Where the sequences come from.
        expired: The deadline.
        weights: How often to take the actions so named, where it is not 1.

    Raises:
        Disagreement: The first one.
    """
    choices = {
        name: getattr(member, CHOICES)
        for name, member in vars_of(kind).items()
        if hasattr(member, CHOICES) and name != "start"
    }
    of_start = getattr(kind.start, CHOICES)
    names, relative = list(choices), [weights.get(name, 1.0) for name in choices]
    accesses = 0
    while not expired():
        actions = [("start", draw(of_start, rng))]
        actions += [(name, draw(choices[name], rng)) for name in rng.choices(names, relative, k=LENGTH)]
        try:
            accesses += play(kind, actions, BETWEEN_COMPARISONS, oracle)
        except Exception as error:
            raise shortest(kind, actions, oracle, error) from error
    return accesses


def vars_of(kind: type) -> dict[str, Any]:
    """Attributes of a class and of those it is made from."""
    return {name: value for each in reversed(kind.__mro__) for name, value in vars(each).items()}


def draw(choices: Mapping[str, Any], rng: random.Random) -> dict[str, Any]:
    return {name: rng.choice(each) for name, each in choices.items()}


def play(kind: Kind, actions: list[Action], between: int, oracle: Counted) -> int:
    """Play one sequence, comparing all after each `between` actions; returns how many accesses the actions made."""
    machine = kind()
    machine.start(**actions[0][1])
    machine.agree()
    accesses = 0
    for number, (name, given) in enumerate(actions[1:], start=1):
        before = oracle.accesses
        getattr(machine, name)(**given)
        accesses += oracle.accesses - before
        if number % between == 0:
            machine.agree()
    machine.agree()
    return accesses


def shortest(kind: Kind, actions: list[Action], oracle: Counted, error: Exception) -> Disagreement:
    """What is left of a sequence that fails when nothing more can be left out; all of it if it fails only once."""

    def failure(attempt: list[Action]) -> Exception | None:
        try:
            play(kind, attempt, 1, oracle)
        except Exception as failed:
            return failed
        return None

    error = failure(actions) or error
    size = len(actions) // 2
    while size:
        at = 1  # the start stays
        while at < len(actions):
            attempt = actions[:at] + actions[at + size :]
            if failed := failure(attempt):
                actions, error = attempt, failed
            else:
                at += size
        size //= 2
    return Disagreement(actions, error)
