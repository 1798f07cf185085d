"""What the fuzzers share: a loop with a deadline that counts, and prints how to repeat a failure."""

from __future__ import annotations

import argparse
import random
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable

STEPS_OF_ONE = 5_000
"""Steps before the next fuzzer is made."""
STEPS_BETWEEN_CHECKS = 100


class Fuzzer(ABC):
    """One part, and random things to do to it."""

    @abstractmethod
    def step(self) -> None:
        """Do one thing."""

    @abstractmethod
    def check(self) -> None:
        """Assert what must hold."""


def any_value(rng: random.Random, bits: int) -> int:
    """A value of at most `bits` bits: small, large, or with few bits set."""
    choice = rng.random()
    if choice < 0.3:
        return rng.getrandbits(bits)
    if choice < 0.6:
        return rng.getrandbits(17)
    if choice < 0.8:
        return 1 << rng.randrange(bits) | rng.getrandbits(8)
    return rng.choice((0, 1, (1 << bits) - 1, 0xFF, 0x10000))


def fuzz(make: Callable[[random.Random], Fuzzer], seconds: float, seed: int) -> int:
    """Run fuzzers one after another; returns the number of steps. A failure is raised with its seed noted."""
    end = time.monotonic() + seconds
    steps = 0
    while time.monotonic() < end:
        fuzzer = make(random.Random(seed))
        try:
            for number in range(STEPS_OF_ONE):
                fuzzer.step()
                if number % STEPS_BETWEEN_CHECKS == 0:
                    fuzzer.check()
        except Exception as error:
            error.add_note(f"repeat with --seed {seed}")
            raise
        steps += STEPS_OF_ONE
        seed += 1
    return steps


def main(make: Callable[[random.Random], Fuzzer]) -> None:
    """The command line of a fuzzer."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--seed", type=int, default=None, help="of the first one; random without it")
    arguments = parser.parse_args()
    seed = random.SystemRandom().getrandbits(32) if arguments.seed is None else arguments.seed
    steps = fuzz(make, arguments.seconds, seed)
    sys.stdout.write(f"{steps} accesses, seeds from {seed}: no exception, every invariant held\n")
