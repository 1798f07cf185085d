"""What the APICs' fuzzers share: a part with random things done to it, checked now and then."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable

from tests.fuzz.run import Deadline

STEPS = 5_000
"""Of one fuzzer, before the next is made."""
STEPS_BETWEEN_CHECKS = 100


class Fuzzer(ABC):
    """One part, and random things to do to it."""

    @abstractmethod
    def step(self) -> None:
        """Do one thing."""

    @abstractmethod
    def check(self) -> None:
        """Assert what must hold."""


def play_of(make: Callable[[random.Random], Fuzzer]) -> Callable[[random.Random, Deadline], int]:
    """Fuzzers one after another."""

    def play(rng: random.Random, expired: Deadline) -> int:
        accesses = 0
        while not expired():
            fuzzer = make(rng)
            for _ in range(STEPS // STEPS_BETWEEN_CHECKS):
                for _ in range(STEPS_BETWEEN_CHECKS):
                    fuzzer.step()
                fuzzer.check()
            accesses += STEPS
        return accesses

    return play


def any_value(rng: random.Random, bits: int) -> int:
    """A value of at most `bits` bits: small, large, or with few bits set."""
    choice = rng.random()
    if choice < 0.3:
        return rng.getrandbits(bits)
    if choice < 0.6:
        return rng.getrandbits(17) & (1 << bits) - 1
    if choice < 0.8:
        return (1 << rng.randrange(bits) | rng.getrandbits(8)) & (1 << bits) - 1
    return rng.choice((0, 1, (1 << bits) - 1, 0xFF, 0x10000 & (1 << bits) - 1))
