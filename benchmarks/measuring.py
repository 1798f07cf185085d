"""What a benchmark measures: samples of a few ways to do the same thing, taken in turn, and a row for the table."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping

from attrs import field, frozen

OURS, C, IOCTL = "ours", "C", "ioctl"
"""What is measured: this project; the same system calls from C; the bare system calls from Python."""


@frozen
class Sample:
    """What one thing costs, from several measurements.

    Attributes:
        median, low, high: Seconds, or what the row's unit says.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Sample:
        values = list(values)
        return cls(statistics.median(values), min(values), max(values))


@frozen
class Row:
    """One line of the table.

    Attributes:
        group: What is measured.
        name: Which case of it.
        samples: By what is measured. Empty if it cannot be measured here.
        unit: ``s`` or ``B``.
        reason: Why there is no sample.
        size: What the case grows with (vCPUs, routes, events), for the plot.
    """

    group: str
    name: str
    samples: Mapping[str, Sample] = field(factory=dict)
    unit: str = "s"
    reason: str = ""
    size: int | None = None


Way = Callable[[], float]
"""Does something, and returns what once of it has cost."""


def timed(do: Callable[[], object], times: int = 1) -> Way:
    """A way that calls `do` so many times and divides."""

    def way() -> float:
        start = time.perf_counter()
        for _ in range(times):
            do()
        return (time.perf_counter() - start) / times

    return way


def in_turn(ways: Mapping[str, Way], repeats: int) -> dict[str, Sample]:
    """Measure each way so many times, one after the other and again: what disturbs, disturbs all of them."""
    values: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            values[name].append(way())
    return {name: Sample.of(found) for name, found in values.items()}
