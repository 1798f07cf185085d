"""``python -m benchmarks.plot results.json docs/growth.svg``: what a ``--json`` file says about growth, as a drawing.

One panel for each group of rows that have a size: size from left to right, logarithmic; upward from 0 the lowest time,
which other work on the machine disturbs least.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from benchmarks.measuring import OURS, Row
from benchmarks.results import load, quantity

WIDTH, HEIGHT, MARGIN, GAP = 300, 170, 60, 90
COLORS = ("#1b6ac9", "#c2571a", "#1d8a4e", "#7a3fb0")


def panel(title: str, rows: Sequence[Row], left: int) -> Iterable[str]:
    """The parts of one panel, whose plot begins at `left`."""
    largest = max(row.size or 1 for row in rows)
    highest = max(row.samples[OURS].low for row in rows) * 1.1
    top, bottom = MARGIN, MARGIN + HEIGHT

    def place(row: Row) -> tuple[float, float]:
        across = math.log(row.size or 1) / math.log(max(largest, 2))
        return left + across * WIDTH, bottom - row.samples[OURS].low / highest * HEIGHT

    yield f'<text x="{left}" y="{top - 34}" font-weight="bold">{escape(title)}</text>'
    yield f'<path d="M{left} {top}V{bottom}H{left + WIDTH}" fill="none" stroke="#888"/>'
    for part in (0.0, 0.5, 1.0):
        y = bottom - part * HEIGHT / 1.1
        yield f'<text x="{left - 6}" y="{y + 4:.0f}" text-anchor="end">{quantity(part * highest / 1.1, "s")}</text>'
    for size in sorted({row.size or 1 for row in rows}):
        x = left + math.log(size) / math.log(max(largest, 2)) * WIDTH
        yield f'<text x="{x:.0f}" y="{bottom + 16}" text-anchor="middle">{size}</text>'
    for number, series in enumerate(dict.fromkeys(row.name.rsplit(":", 1)[0] for row in rows)):
        points = [place(row) for row in rows if row.name.rsplit(":", 1)[0] == series]
        color = COLORS[number % len(COLORS)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        yield f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2"/>'
        yield from (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>' for x, y in points)
        yield f'<text x="{left}" y="{bottom + 36 + 15 * number}" fill="{color}">{escape(series)}</text>'


def drawing(rows: Iterable[Row]) -> str:
    """The SVG of all rows that have a size and a time."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row.size and row.unit == "s" and OURS in row.samples:
            groups.setdefault(row.group, []).append(row)
    parts: list[str] = []
    for number, (title, found) in enumerate(groups.items()):
        across, down = number % 2, number // 2
        parts.append(f'<g transform="translate(0 {down * (HEIGHT + 2 * MARGIN + 30)})">')
        parts += panel(title, found, MARGIN + GAP // 3 + across * (WIDTH + GAP + 20))
        parts.append("</g>")
    height = -(-len(groups) // 2) * (HEIGHT + 2 * MARGIN + 30)
    size = f'width="{2 * (WIDTH + GAP) + MARGIN}" height="{height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="#fff"/>', *parts, "</svg>\n"])


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(drawing(load(Path(sys.argv[1]))))
