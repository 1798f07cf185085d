"""Multiboot version 1 (Multiboot Specification 0.6.96): ELF32, ELF64 and the header's own address fields.

The guest is entered in 32-bit protected mode without paging, EAX holding the magic and EBX the address of the boot
information: memory size and map, command line, name of the loader. No modules, no video mode; a header that requires
what is not there is refused. An ELF64 file is entered in 32-bit mode as well.
"""

from __future__ import annotations

import io
import os
import struct

from attrs import frozen
from elftools.common.exceptions import ELFError
from elftools.construct import ConstructError
from elftools.elf.elffile import ELFFile

from irqchip_core.hypervisor.registers import Regs, Sregs
from irqchip_core.hypervisor.registers import Segment as SegmentRegister
from irqchip_vmm.loaders.image import Image, LoadError, Segment, check_segments

SEARCH_BYTES = 8192
HEADER_MAGIC = 0x1BADB002
PAGE_ALIGN, MEMORY_INFO, VIDEO_MODE = 1 << 0, 1 << 1, 1 << 2
REQUIREMENTS = 0xFFFF  # the flags a loader must refuse unless it implements them
ADDRESS_FIELDS = 1 << 16
BOOT_MAGIC = 0x2BADB002
BOOT_LOADER_NAME = b"irqchip-vmm\0"

INFO_ADDRESS = 0x90000
INFO_END = 0x9F000
INFO_MEMORY, INFO_COMMAND_LINE, INFO_MODULES, INFO_MAP, INFO_LOADER = 1 << 0, 1 << 2, 1 << 3, 1 << 6, 1 << 9
INFO = struct.Struct("<3I4xI2I16x2I12xI")  # flags, memory, command line, modules, map, loader name
INFO_SIZE = 116  # with the fields after the name, which the flags declare absent
MAP_ENTRY = struct.Struct("<IQQI")
AVAILABLE, RESERVED = 1, 2
LOW_MEMORY_END, HIGH_MEMORY = 0xA0000, 0x100000

CR0_PE, CR0_ET = 0x01, 0x10
CODE_SEGMENT, DATA_SEGMENT = 11, 3  # execute/read, read/write; both accessed


@frozen
class Header:
    """The multiboot header of a file.

    Attributes:
        offset: Where it is in the file.
        flags: What it requires.
        addresses: Its five address fields (header, load, load end, bss end, entry), or None.
    """

    offset: int
    flags: int
    addresses: tuple[int, int, int, int, int] | None


def find_header(data: bytes) -> Header | None:
    """The first header whose checksum is right, or None."""
    for offset in range(0, min(SEARCH_BYTES, len(data)) - 11, 4):
        magic, flags, checksum = struct.unpack_from("<3I", data, offset)
        if magic == HEADER_MAGIC and (magic + flags + checksum) & 0xFFFFFFFF == 0:
            if flags & ADDRESS_FIELDS and offset + 32 <= len(data):
                return Header(offset, flags, struct.unpack_from("<5I", data, offset + 12))
            return Header(offset, flags, None)
    return None


def load_multiboot(name: str, data: bytes, header: Header, *, memory_size: int, command_line: str) -> Image:
    """The image of a file that has `header`.

    Raises:
        LoadError: See `irqchip_vmm.loaders.load_image`.
    """
    if unknown := header.flags & REQUIREMENTS & ~(PAGE_ALIGN | MEMORY_INFO):
        what = "a video mode" if unknown == VIDEO_MODE else f"flags {unknown:#x}, which are not supported"
        raise LoadError(f"its multiboot header requires {what}", subject=name, remedy="clear the flag in its header")
    if header.flags & ADDRESS_FIELDS:
        segments, entry = _by_addresses(name, data, header)
    else:
        segments, entry = _by_elf(name, data)
    if not any(segment.address <= entry < segment.end for segment in segments):
        raise LoadError(f"its entry point {entry:#x} is in none of its segments", subject=name, remedy="relink it")
    segments.append(_boot_information(name, command_line, memory_size))
    check_segments(name, segments, memory_size=memory_size)
    return Image("multiboot", segments, Regs(rip=entry, rax=BOOT_MAGIC, rbx=INFO_ADDRESS), _protected_mode)


def _by_addresses(name: str, data: bytes, header: Header) -> tuple[list[Segment], int]:
    if header.addresses is None:
        raise LoadError("it ends inside its multiboot header", subject=name, remedy="copy it again")
    at, load, load_end, bss_end, entry = header.addresses
    start = header.offset - (at - load)
    if at < load or start < 0:
        raise LoadError(
            f"its multiboot header says it is at {at:#x}, with loading from {load:#x}, and it is {header.offset:#x} "
            "bytes into the file",
            subject=name,
            remedy="correct header_addr and load_addr",
        )
    length = load_end - load if load_end else len(data) - start
    size = bss_end - load if bss_end else length
    if length < 0 or size < length or start + length > len(data):
        raise LoadError(
            f"its multiboot header has load_end_addr {load_end:#x} and bss_end_addr {bss_end:#x}, and the file has "
            f"{len(data) - start} bytes for {load:#x}",
            subject=name,
            remedy="correct the header, or copy the file again if it is cut off",
        )
    return [Segment(load, data[start : start + length], size)], entry


def _by_elf(name: str, data: bytes) -> tuple[list[Segment], int]:
    try:
        elf = ELFFile(io.BytesIO(data))
        little_x86 = elf["e_machine"] in ("EM_386", "EM_X86_64") and elf.little_endian
        entry: int = elf["e_entry"]
        loads = [dict(segment.header) for segment in elf.iter_segments() if segment["p_type"] == "PT_LOAD"]
    except (ELFError, ConstructError, ValueError, OverflowError, UnicodeError, KeyError, TypeError) as error:
        raise LoadError(
            f"its multiboot header has no address fields, and it is not a good ELF file: {error}",
            subject=name,
            remedy="set flag 16 and the address fields, or link an ELF file",
        ) from None
    if not little_x86:
        raise LoadError("it is not an x86 program", subject=name, remedy="compile it for i386 or x86-64")
    segments = []
    for load in loads:
        offset, file_size, size = load["p_offset"], load["p_filesz"], load["p_memsz"]
        if file_size > size or offset + file_size > len(data):
            raise LoadError(
                f"its segment at {load['p_paddr']:#x} has bytes {offset:#x} to {offset + file_size:#x} of a file of "
                f"{len(data):#x}, for {size:#x} bytes of memory",
                subject=name,
                remedy="copy it again if it is cut off",
            )
        if size:
            segments.append(Segment(load["p_paddr"], data[offset : offset + file_size], size))
    # The entry point is a virtual address (ELF, "ELF header"); before paging the physical one is needed.
    for load in loads:
        if load["p_vaddr"] <= entry < load["p_vaddr"] + load["p_memsz"]:
            return segments, entry - load["p_vaddr"] + load["p_paddr"]
    return segments, entry


def _boot_information(name: str, command_line: str, memory_size: int) -> Segment:
    memory_map = [(0, LOW_MEMORY_END, AVAILABLE), (LOW_MEMORY_END, HIGH_MEMORY - LOW_MEMORY_END, RESERVED)]
    if memory_size > HIGH_MEMORY:
        memory_map.append((HIGH_MEMORY, memory_size - HIGH_MEMORY, AVAILABLE))
    entries = b"".join(MAP_ENTRY.pack(MAP_ENTRY.size - 4, *entry) for entry in memory_map)
    map_at = INFO_ADDRESS + INFO_SIZE
    loader_at = map_at + len(entries)
    command_at = loader_at + len(BOOT_LOADER_NAME)
    info = INFO.pack(
        INFO_MEMORY | INFO_COMMAND_LINE | INFO_MODULES | INFO_MAP | INFO_LOADER,
        LOW_MEMORY_END >> 10,
        max(memory_size - HIGH_MEMORY, 0) >> 10,
        command_at,
        0,
        0,
        len(entries),
        map_at,
        loader_at,
    )
    try:
        command = os.fsencode(command_line) + b"\0"
    except UnicodeEncodeError as error:
        raise LoadError(
            f"the command line cannot be encoded: {error}", subject=name, remedy="give it as text"
        ) from None
    data = info.ljust(INFO_SIZE, b"\0") + entries + BOOT_LOADER_NAME + command
    if len(data) > INFO_END - INFO_ADDRESS or b"\0" in command[:-1]:
        raise LoadError(
            "the command line is too long, or has a zero byte in it",
            subject=name,
            remedy=f"give it up to {INFO_END - command_at - 1} bytes of text",
        )
    return Segment(INFO_ADDRESS, data, len(data))


def _protected_mode(sregs: Sregs) -> None:
    sregs.cs = SegmentRegister(type=CODE_SEGMENT, limit=0xFFFFFFFF, selector=0x08, db=1, g=1)
    data = SegmentRegister(type=DATA_SEGMENT, limit=0xFFFFFFFF, selector=0x10, db=1, g=1)
    sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data
    sregs.cr0 = CR0_PE | CR0_ET
