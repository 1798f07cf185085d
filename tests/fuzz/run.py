"""What all fuzzers are made of: phases, each with its share of the time, and the table of what they have played."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from typing import TextIO

import attrs

Deadline = Callable[[], bool]
"""Whether the time is over."""


@attrs.frozen
class Phase:
    """One part, alone or beside an oracle.

    Attributes:
        part: Its name.
        beside: What it is compared with: "alone" for nothing but what must hold.
        play: Plays random accesses until the deadline says so, and returns how many. Raises at the first thing that
            is wrong.
        share: Of the time.
        needs: What the machine must have, a key of `tests.conftest.NEEDS`.
    """

    part: str
    beside: str
    play: Callable[[random.Random, Deadline], int]
    share: float = 1.0
    needs: str | None = None


def run(phases: Iterable[Phase], seconds: float, seed: int, output: TextIO) -> int:
    """Play `phases` within `seconds` all together; write a table, and return how many accesses there were."""
    phases = list(phases)
    unit = seconds / sum(phase.share for phase in phases)
    total: dict[str, int] = {}
    output.write(f"seed {seed}\n")
    for phase in phases:
        started = time.monotonic()
        end = started + unit * phase.share
        accesses = phase.play(random.Random(seed), lambda end=end: time.monotonic() >= end)  # type: ignore[misc]
        took = time.monotonic() - started
        total[phase.beside] = total.get(phase.beside, 0) + accesses
        output.write(f"{phase.part:8}{phase.beside:22}{accesses:12,} accesses{took:8.1f} s\n")
        output.flush()
    for beside, accesses in total.items():
        output.write(f"all     {beside:22}{accesses:12,}\n")
    output.write(f"all     {sum(total.values()):34,}\n")
    return sum(total.values())
