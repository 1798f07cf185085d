"""Tables of text, for people at a terminal."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Sequence
from itertools import zip_longest

GAP = 2
NARROW = 24
"""What a column of text is not made narrower than, unless its longest word is shorter."""

_Rows = Sequence[Sequence[str]]


def terminal_width() -> int | None:
    """Columns of the terminal that standard output is, or that COLUMNS says; None if it is none."""
    size = shutil.get_terminal_size((0, 0)) if sys.stdout.isatty() else None
    return size.columns or None if size is not None else None


def format_table(rows: _Rows, width: int | None = None) -> str:
    """Rows of cells as lines with aligned columns; the first row is the heading.

    Args:
        rows: The cells.
        width: What the lines have to fit into. Columns of words are wrapped, the widest first; if that is not enough,
            the columns that are left come in a second table below, with the first column again, and so on. None for
            lines of any length.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if width is None:
        return _lines(rows, widths)
    narrowest = [_narrowest(column) for column in zip(*rows, strict=True)]
    while _total(widths) > width:
        widest = max(range(len(widths)), key=lambda column: widths[column] - narrowest[column])
        if widths[widest] <= narrowest[widest]:
            break
        widths[widest] -= 1
    blocks = []
    for columns in _blocks(widths, width):
        chosen = [[row[column] for column in columns] for row in rows]
        blocks.append(_lines(chosen, [widths[column] for column in columns]))
    return "\n\n".join(blocks)


def _narrowest(column: Sequence[str]) -> int:
    longest_word = max((len(word) for cell in column for word in cell.split()), default=0)
    return min(max(map(len, column)), max(NARROW, len(column[0])), longest_word)


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * (len(widths) - 1)


def _blocks(widths: Sequence[int], width: int) -> list[list[int]]:
    """Which columns stand beside each other: as many as fit, and one at least beside the first."""
    blocks = [[0]]
    for column in range(1, len(widths)):
        if len(blocks[-1]) > 1 and _total([widths[one] for one in (*blocks[-1], column)]) > width:
            blocks.append([0])
        blocks[-1].append(column)
    return blocks


def _lines(rows: _Rows, widths: Sequence[int]) -> str:
    lines = []
    for row in rows:
        cells = [
            [cell] if len(cell) <= size else textwrap.wrap(cell, size) for cell, size in zip(row, widths, strict=True)
        ]
        for parts in zip_longest(*cells, fillvalue=""):
            line = (" " * GAP).join(part.ljust(size) for part, size in zip(parts, widths, strict=True))
            lines.append(line.rstrip())
    return "\n".join(lines)
