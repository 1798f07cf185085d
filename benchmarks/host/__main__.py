"""``python -m benchmarks.host``: what the host pays, beside the same system calls from C and from bare Python.

python -m benchmarks.host                      everything, in some minutes
python -m benchmarks.host --quick exits        a glance at one topic
python -m benchmarks.host --json now.json --compare before.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.host import cold, events, exits, lifetime, routes
from benchmarks.host.scale import FULL, QUICK, Scale
from benchmarks.limits import library, start_with_library
from benchmarks.measuring import Row
from benchmarks.results import load, machine, save, tables

TOPICS: dict[str, Callable[[Scale], Iterator[Row]]] = {
    "exits": exits.rows,
    "routes": routes.rows,
    "events": events.rows,
    "growth": events.growth,
    "lifetime": lifetime.rows,
    "cold": cold.rows,
}


def main(arguments: Sequence[str]) -> None:
    """Measure, and print tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host", description="Measure what the host pays.")
    parser.add_argument("topics", nargs="*", choices=[*TOPICS, []], help="which of them; all if none is named")
    parser.add_argument("--quick", action="store_true", help="few measurements of little: whether it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="set them beside those of an earlier --json")
    options = parser.parse_args(arguments)
    before = load(options.compare) if options.compare else None
    start_with_library(["benchmarks.host", *arguments])
    library()
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    found: list[Row] = []
    for topic in options.topics or TOPICS:
        rows = list(TOPICS[topic](QUICK if options.quick else FULL))
        print("\n" + tables(rows, before), flush=True)
        found += rows
    if options.json:
        save(found, options.json)


if __name__ == "__main__":
    main(sys.argv[1:])
