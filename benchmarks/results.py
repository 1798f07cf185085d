"""Rows as a table and as JSON, and beside those of an earlier run."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from attrs import asdict

from benchmarks.measuring import OURS, Row, Sample
from irqchip_core.table import format_table


def quantity(value: float, unit: str) -> str:
    """`value` with three digits or so, and a prefix."""
    if unit == "B":
        return f"{value / 1024:,.0f} KiB"
    for factor, name in ((1e9, "ns"), (1e6, "us"), (1e3, "ms")):
        if value * factor < 1000:
            return f"{value * factor:.3g} {name}"
    return f"{value:.3g} s"


def _beside(sample: Sample, limit: Sample, unit: str) -> str:
    """The limit, and how much more `sample` is: by the medians, and by the lowest, which others disturb least."""
    ratios = f"x {sample.median / limit.median:.2f}, lowest x {sample.low / limit.low:.2f}"
    return f"{quantity(limit.median, unit)} ({ratios})"


def _cells(row: Row, columns: Sequence[str], before: Mapping[tuple[str, str], Row] | None) -> list[str]:
    sample = row.samples.get(OURS)
    if sample is None:
        others = [f"{name} {quantity(found.median, row.unit)}" for name, found in row.samples.items()]
        reason = "; ".join([f"not measured: {row.reason}", *others])
        return [row.name, reason, *[""] * (len(columns) + 1 + (before is not None))]
    cells = [
        row.name,
        quantity(sample.median, row.unit),
        f"{quantity(sample.low, row.unit)} - {quantity(sample.high, row.unit)}",
    ]
    for column in columns:
        limit = row.samples.get(column)
        cells.append(row.reason if limit is None else _beside(sample, limit, row.unit))
    if before is not None:
        earlier = before.get((row.group, row.name))
        found = earlier.samples.get(OURS) if earlier is not None else None
        cells.append("" if found is None else f"{sample.median / found.median:.2f}")
    return cells


def tables(rows: Sequence[Row], before: Sequence[Row] | None = None) -> str:
    """A table for each group.

    Args:
        rows: What was measured.
        before: What an earlier run measured: adds a column with the ratio of the medians, now / then.
    """
    known = None if before is None else {(row.group, row.name): row for row in before}
    parts = []
    for group in dict.fromkeys(row.group for row in rows):
        chosen = [row for row in rows if row.group == group]
        columns = list(dict.fromkeys(name for row in chosen for name in row.samples if name != OURS))
        if not columns and any(row.reason and row.samples for row in chosen):
            columns = ["beside it"]
        heading = [group, "median", "lowest - highest", *columns, *(["now / then"] if known is not None else [])]
        parts.append(format_table([heading, *(_cells(row, columns, known) for row in chosen)]))
    return "\n\n".join(parts)


def machine() -> dict[str, str]:
    """Where and when: what figures are worth nothing without."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "processors": str(os.cpu_count()),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "architecture": platform.machine(),
    }


def save(rows: Iterable[Row], path: Path) -> None:
    """Write rows as JSON, with the machine."""
    path.write_text(json.dumps({"machine": machine(), "rows": [asdict(row) for row in rows]}, indent=1) + "\n")


def load(path: Path) -> list[Row]:
    """The rows of a file of `save`."""
    return [
        Row(**{**row, "samples": {name: Sample(**sample) for name, sample in row["samples"].items()}})
        for row in json.loads(path.read_text())["rows"]
    ]
