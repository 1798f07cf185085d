"""``python -m benchmarks.guest``: one guest under irqchip's VMM and under QEMU, on the same KVM.

Each row is a run of its own of each program, in turn, so that what disturbs the machine disturbs both; ``--runs`` says
how many turns. A run that does not end in ``--limit`` seconds is killed, reported, and not tried again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.guest.breakdown import breakdown, table
from benchmarks.guest.programs import PAIRS, Program, Run, missing, run
from benchmarks.guest.rows import OPERATIONS
from benchmarks.limits import start_with_library
from benchmarks.measuring import OURS, Row, Sample
from benchmarks.results import load, machine, save, tables
from irqchip_core.selection import create_vm

QEMU = "QEMU"
BREAKDOWNS = (5, 10, 14, 15)
"""Rows whose time is broken down, if none are chosen: a port, the LAPIC page, an interrupt, HLT."""


def _measure(row: int, pair: tuple[Program, Program], options: argparse.Namespace, vcpus: int, tsc_hz: int) -> Row:
    times = max(8, OPERATIONS[row].times // (20 if options.quick else 1))
    passes: dict[str, list[float]] = {OURS: [], QEMU: []}
    reasons: dict[str, str] = {}
    for _ in range(options.runs):
        for name, program in zip(passes, pair, strict=True):
            if name not in reasons:
                done: Run = run(program, row, times, vcpus=vcpus, limit=options.limit)
                passes[name] += [cycles / tsc_hz for cycles in done.passes]
                if done.reason:
                    reasons[name] = f"{program.name}: {done.reason}"
    samples = {name: Sample.of(found) for name, found in passes.items() if found}
    group = f"{pair[0].name} / {pair[1].name}, {vcpus} vCPU{'s' if vcpus > 1 else ''}"
    return Row(group, OPERATIONS[row].name, samples, reason="; ".join(reasons.values()))


def _breakdowns(options: argparse.Namespace) -> None:
    for row in BREAKDOWNS:
        lines = []
        for pair in PAIRS:
            times = 8 * OPERATIONS[row].times  # so many that the report on COM1 is a small part
            lines += breakdown(row, times, list(pair), vcpus=1, runs=options.runs, limit=options.limit)
        print("\n" + table(OPERATIONS[row].name, lines), flush=True)


def main(arguments: Sequence[str]) -> None:
    """Measure, and print tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guest", description="Compare with QEMU on one KVM.")
    parser.add_argument("rows", nargs="*", type=int, help=f"which rows, 0 to {len(OPERATIONS) - 1}; all if none")
    parser.add_argument("--runs", type=int, default=3, help="runs of each program for each row (3)")
    parser.add_argument("--limit", type=float, default=15.0, help="seconds after which a run is killed (15)")
    parser.add_argument("--vcpus", type=int, choices=(1, 2), action="append", help="how many vCPUs (1 and 2)")
    parser.add_argument("--quick", action="store_true", help="one short run: whether it works")
    parser.add_argument("--breakdown", action="store_true", help="only where the time goes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="set them beside those of an earlier --json")
    options = parser.parse_args(arguments)
    if (reason := missing()) is not None:
        sys.exit(reason)
    before = load(options.compare) if options.compare else None
    start_with_library(["benchmarks.guest", *arguments])
    if options.quick:
        options.runs = 1
    with create_vm("kvm") as vm:
        tsc_hz = vm.tsc_hz
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    found: list[Row] = []
    for vcpus in () if options.breakdown else options.vcpus or (1, 2):
        for pair in PAIRS:
            chosen = [row for row in options.rows or range(len(OPERATIONS)) if OPERATIONS[row].vcpus <= vcpus]
            rows = [_measure(row, pair, options, vcpus, tsc_hz) for row in chosen]
            print("\n" + tables(rows, before), flush=True)
            found += rows
    if options.breakdown or not (options.quick or options.rows):
        _breakdowns(options)
    if options.json:
        save(found, options.json)


if __name__ == "__main__":
    main(sys.argv[1:])
