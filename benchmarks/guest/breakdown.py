"""Where the time of a row goes: inside KVM_RUN, and between two of them; and that in Python, by function.

The library of limits.c counts in either program, in LD_PRELOAD; the functions are cProfile's, whose own cost is in
their shares.
"""

from __future__ import annotations

import re

from benchmarks.guest.programs import Program, ours, run
from benchmarks.guest.rows import PASSES
from benchmarks.limits import path_of_library
from irqchip_core.table import format_table

SHOWN = 6
_COUNTS = re.compile(r"runs (\d+) inside ([\d.]+) between ([\d.]+)")


def _counted(program: Program, row: int, times: int, vcpus: int, limit: float) -> tuple[int, float, float] | None:
    library = path_of_library()
    if library is None:
        return None
    environment = {"LD_PRELOAD": library, "IRQCHIP_COUNT_RUNS": "1"}
    done = run(program, row, times, vcpus=vcpus, limit=limit, environment=environment)
    found = _COUNTS.search(done.errors)
    return None if found is None else (int(found[1]), float(found[2]), float(found[3]))


def breakdown(row: int, times: int, programs: list[Program], *, vcpus: int, runs: int, limit: float) -> list[list[str]]:
    """For each program a line: exits of vCPU 0, time in KVM_RUN and between, each for one exit; functions if ours.

    Of so many runs the one that took least: these are means, which one disturbance spoils. A program in which the row
    causes no exits has no line.
    """
    lines = []
    for program in programs:
        found = [_counted(program, row, times, vcpus, limit) for _ in range(runs)]
        counts = min((one for one in found if one is not None), key=lambda one: one[1] + one[2], default=None)
        if counts is None or counts[0] < times * PASSES:
            continue
        exits, inside, between = counts
        functions = ""
        if "benchmarks.guest.ours" in program.command:
            profiled = run(ours(program.name, "--profile"), row, times, vcpus=vcpus, limit=2 * limit)
            shares = re.findall(r"^function ([\d.]+) (.+)$", profiled.errors, re.MULTILINE)[:SHOWN]
            functions = ", ".join(f"{name} {100 * float(share):.0f} %" for share, name in shares)
        lines.append(
            [program.name, str(exits), f"{inside / exits * 1e6:.2f} us", f"{between / exits * 1e6:.2f} us", functions]
        )
    return lines


def table(title: str, lines: list[list[str]]) -> str:
    """The lines under a heading."""
    return format_table([[title, "exits", "in KVM_RUN", "between", "of that in Python"], *lines])
