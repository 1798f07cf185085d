"""What the fuzzers share: a time box divided among phases, and a report of how many accesses each made."""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Sequence

Deadline = Callable[[], bool]
Phase = Callable[[random.Random, Deadline], int]
"""Plays random accesses until the deadline says so, and returns how many. Raises at the first thing that is wrong."""


def main(description: str, phases: Sequence[tuple[str, Phase]]) -> None:
    """Run `phases` for equal shares of ``--seconds``, from ``--seed``."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--seconds", type=float, default=60, help="how long to run, all phases together")
    parser.add_argument("--seed", type=int, default=None, help="repeat a run; the default is a new one each time")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().getrandbits(32)
    sys.stdout.write(f"seed {seed}\n")
    for label, phase in phases:
        end = time.monotonic() + arguments.seconds / len(phases)
        accesses = phase(random.Random(seed), lambda end=end: time.monotonic() >= end)  # type: ignore[misc]
        sys.stdout.write(f"{label}: {accesses:,} accesses\n")
        sys.stdout.flush()
