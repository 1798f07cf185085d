"""Small ELF files, made to order."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from attrs import frozen

EHDR = {32: struct.Struct("<16sHHIIIIIHHHHHH"), 64: struct.Struct("<16sHHIQQQIHHHHHH")}
PHDR = {32: struct.Struct("<8I"), 64: struct.Struct("<2I6Q")}
MACHINE = {32: 3, 64: 62}
PT_LOAD = 1


@frozen
class Load:
    """A PT_LOAD segment: physical address, bytes, size in memory, and virtual address if it differs."""

    address: int
    data: bytes
    size: int
    virtual: int | None = None


def make_elf(bits: int, loads: Sequence[Load], entry: int, machine: int | None = None) -> bytes:
    """An ELF executable with its segments' bytes right after the headers."""
    ehdr, phdr = EHDR[bits], PHDR[bits]
    offset = ehdr.size + len(loads) * phdr.size
    ident = b"\x7fELF" + bytes((bits // 32, 1, 1)) + bytes(9)
    machine = MACHINE[bits] if machine is None else machine
    out = ehdr.pack(ident, 2, machine, 1, entry, ehdr.size, 0, 0, ehdr.size, phdr.size, len(loads), 40, 0, 0)
    for load in loads:
        virtual = load.address if load.virtual is None else load.virtual
        where = (offset, virtual, load.address, len(load.data), load.size)
        out += phdr.pack(PT_LOAD, *where, 7, 1) if bits == 32 else phdr.pack(PT_LOAD, 7, *where, 1)
        offset += len(load.data)
    return out + b"".join(load.data for load in loads)
