"""Assembles every guest with binutils: ``python -m tests.guests.assemble`` writes the bytes beside their sources.

The bytes are checked in, so that running a guest needs no assembler; `tests/vmm/test_guests.py` compares them.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

GUESTS = Path(__file__).parent
DEMO = GUESTS.parent.parent / "vmm" / "irqchip_vmm" / "guest" / "demo.S"
EXAMPLES = GUESTS.parent.parent / "vmm" / "examples"
BENCHMARKS = GUESTS.parent.parent / "benchmarks" / "guest"
KIT = GUESTS.parent.parent / "irqchip_core" / "testing"
LOAD_ADDRESS = {
    "real": 0x7C00,
    "examples": 0x7C00,
    "multiboot": 0x100000,
    "stress": 0x100000,
    "guest": 0x100000,
    "testing": 0x1000,
    "features": 0x1000,
}


def sources() -> list[Path]:
    """The source of each guest."""
    others = (folder.glob("*.S") for folder in (EXAMPLES, KIT, BENCHMARKS))
    return [DEMO, *sorted(GUESTS.glob("*/*.S")), *(source for found in others for source in sorted(found))]


def binary_of(source: Path) -> Path:
    """Where the bytes of `source` are kept."""
    return source.with_suffix(".bin")


def assemble(source: Path) -> bytes:
    """The bytes of `source`, linked where its folder (or `demo.ld`) says."""
    with tempfile.TemporaryDirectory() as scratch:
        object_file, binary = Path(scratch, "guest.o"), Path(scratch, "guest.bin")
        where = ["-T", str(DEMO.with_suffix(".ld"))]
        if source != DEMO:
            where = ["-N", "-e", "0", "-Ttext", hex(LOAD_ADDRESS[source.parent.name])]
        includes = ["-I", str(source.parent), "-I", str(GUESTS)]
        subprocess.run(["as", "--64", "-mx86-used-note=no", *includes, "-o", object_file, source], check=True)
        subprocess.run(["ld", "-m", "elf_x86_64", *where, "--oformat", "binary", "-o", binary, object_file], check=True)
        return binary.read_bytes()


if __name__ == "__main__":
    for source in sources():
        binary_of(source).write_bytes(assemble(source))
