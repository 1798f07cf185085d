"""Tables: as wide as they are, or as the terminal is."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from irqchip_core.table import format_table

WORDS = [
    ("NAME", "REASON"),
    ("kvm", "/dev/kvm: no such file; load kvm_intel or kvm_amd, or enable nested virtualization in the host"),
    ("unicorn", "usable"),
]
NUMBERS = [("SOURCE", "GSI", *(f"CPU{number}" for number in range(40))), ("com1", "4", *("12345" for _ in range(40)))]


def test_without_a_width_each_row_is_one_line() -> None:
    lines = format_table(WORDS).splitlines()
    assert len(lines) == 3
    assert lines[1].startswith("kvm      /dev/kvm: no such file; load")


@pytest.mark.parametrize("rows", [WORDS, NUMBERS])
@pytest.mark.parametrize("width", [200, 80, 40])
def test_a_table_fits_and_nothing_is_lost(rows: list[tuple[str, ...]], width: int) -> None:
    text = format_table(rows, width)
    assert max(map(len, text.splitlines())) <= width
    for row in rows:
        for cell in row:
            for word in cell.split():
                assert word in text


def test_words_are_wrapped_in_their_column() -> None:
    lines = format_table(WORDS, 40).splitlines()
    assert lines[1] == "kvm      /dev/kvm: no such file; load"
    assert lines[2].startswith(" " * 9 + "kvm_intel or")


def test_columns_that_are_left_come_in_a_table_below_with_the_first_again() -> None:
    blocks = format_table(NUMBERS, 80).split("\n\n")
    assert [block.split()[0] for block in blocks] == ["SOURCE"] * len(blocks)
    numbers = [cell for block in blocks for cell in block.splitlines()[0].split() if cell.startswith("CPU")]
    assert numbers == list(NUMBERS[0][2:])


@pytest.mark.parametrize("command", [["list"], ["select", "--explain"], ["run", "--vcpus", "16"]])
def test_the_command_fits_its_terminal(command: list[str]) -> None:
    ours, theirs = pty.openpty()
    argv = [sys.executable, "-m", "irqchip_core", *command]
    environment = os.environ | {"COLUMNS": "60"}
    with subprocess.Popen(argv, stdout=theirs, stderr=subprocess.DEVNULL, env=environment) as process:
        os.close(theirs)
        text = b""
        while True:
            try:
                some = os.read(ours, 4096)
            except OSError:  # the other end is closed
                break
            text += some
        assert process.wait(50) == 0
    os.close(ours)
    table = text.decode().splitlines()
    start = next(number for number, line in enumerate(table) if line.startswith(("KIND", "BACKEND", "SOURCE")))
    assert max(map(len, table[start:-1])) <= 60
    assert len(table) > start + 1
