"""The guest of `taker` is what its source says."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest


@pytest.mark.binutils
def test_the_guest_is_what_its_source_says(tmp_path: Path) -> None:
    here = Path(__file__).parent
    object_file, binary = tmp_path / "taker.o", tmp_path / "taker.bin"
    subprocess.run(["as", "-o", object_file, here / "taker.S"], check=True)
    subprocess.run(["ld", "-Ttext", "0x1000", "--oformat", "binary", "-o", binary, object_file], check=True)
    assert binary.read_bytes() == (here / "taker.bin").read_bytes()
