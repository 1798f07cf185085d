"""Flat binaries and multiboot files, good and damaged."""

from __future__ import annotations

import os
import struct
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from irqchip_core.errors import InvalidArgument
from irqchip_core.hypervisor.registers import Sregs
from irqchip_vmm.guest import demonstration_guest
from irqchip_vmm.loaders import Image, LoadError, load_file, load_image
from irqchip_vmm.memory import GuestMemory
from tests.vmm.elf import Load, make_elf

MIB = 1 << 20
MEMORY = 4 * MIB
BASE = MIB


def header(flags: int, *addresses: int) -> bytes:
    return struct.pack(f"<{3 + len(addresses)}I", 0x1BADB002, flags, -(0x1BADB002 + flags) & 0xFFFFFFFF, *addresses)


CODE = header(0) + b"\xfa\xf4"


def load(data: bytes, command_line: str = "", memory_size: int = MEMORY) -> Image:
    return load_image("guest", data, memory_size=memory_size, command_line=command_line)


def memory_of(image: Image) -> GuestMemory:
    memory = GuestMemory(memoryview(bytearray(MEMORY)))
    image.write_to(memory)
    return memory


def test_flat_is_entered_as_a_boot_sector() -> None:
    image = load(b"\xfa\xf4")
    sregs = Sregs(cr0=0x60000010)
    image.set_sregs(sregs)
    assert (image.kind, image.regs.rip, image.regs.rdx, image.regs.rflags) == ("flat", 0x7C00, 0x80, 2)
    assert (sregs.cs.base, sregs.cs.selector, sregs.cr0 & 1) == (0, 0, 0)
    assert memory_of(image).read(0x7C00, 2) == b"\xfa\xf4"


@pytest.mark.parametrize("bits", [32, 64])
def test_elf(bits: int) -> None:
    loads = [Load(BASE, CODE, len(CODE) + 100), Load(2 * MIB, b"data", 4)]
    image = load(make_elf(bits, loads, BASE + 12))
    memory = memory_of(image)
    assert (image.kind, image.regs.rip, image.regs.rax) == ("multiboot", BASE + 12, 0x2BADB002)
    assert memory.read(BASE, len(CODE) + 100) == CODE + bytes(100)
    assert memory.read(2 * MIB, 4) == b"data"


def test_entry_point_of_a_higher_half_kernel_is_made_physical() -> None:
    image = load(make_elf(64, [Load(BASE, CODE, 0x1000, virtual=0xFFFFFFFF80100000)], 0xFFFFFFFF8010000C))
    assert image.regs.rip == BASE + 12


@pytest.mark.parametrize(
    ("addresses", "start", "length", "size"),
    [
        ((BASE + 8, BASE, 0, 0, BASE + 40), 0, 48, 48),
        ((BASE, BASE, 0, 0, BASE + 32), 8, 40, 40),
        ((BASE + 8, BASE, BASE + 44, BASE + 100, BASE + 40), 0, 44, 100),
    ],
)
def test_address_fields(addresses: tuple[int, ...], start: int, length: int, size: int) -> None:
    data = bytes(8) + header(1 << 16, *addresses) + b"\xfa\xf4\x90\x90\x90\x90\x90\x90"
    image = load(data)
    segment = image.segments[0]
    assert (segment.address, segment.data, segment.size) == (BASE, data[start : start + length], size)
    assert image.regs.rip == addresses[4]


def test_protected_mode() -> None:
    sregs = Sregs()
    load(make_elf(32, [Load(BASE, CODE, 100)], BASE)).set_sregs(sregs)
    assert sregs.cr0 & 0x80000001 == 1
    for segment in (sregs.cs, sregs.ds, sregs.es, sregs.ss):
        assert (segment.base, segment.limit, segment.db, segment.g, segment.present) == (0, 0xFFFFFFFF, 1, 1, 1)
    assert sregs.cs.type & 8
    assert sregs.efer == 0


def test_boot_information() -> None:
    image = load(make_elf(32, [Load(BASE, CODE, 100)], BASE), command_line="root=ü quiet")
    memory = memory_of(image)

    def field(offset: int) -> int:
        return int.from_bytes(memory.read(image.regs.rbx + offset, 4) or b"", "little")

    def text(offset: int) -> bytes:
        return (memory.read(field(offset), 64) or b"").split(b"\0")[0]

    assert field(0) & 0b1001001101 == 0b1001001101
    assert (field(4), field(8)) == (640, 3 * 1024)
    assert text(16) == "root=ü quiet".encode()
    assert text(64) == b"irqchip-vmm"
    assert field(20) == 0
    entries = memory.read(field(48), field(44)) or b""
    assert [struct.unpack_from("<IQQI", entries, at) for at in range(0, len(entries), 24)] == [
        (20, 0, 0xA0000, 1),
        (20, 0xA0000, 0x60000, 2),
        (20, MIB, 3 * MIB, 1),
    ]


ELF32 = make_elf(32, [Load(BASE, CODE, 100)], BASE)

REFUSED = {
    "empty": (b"", "empty"),
    "flat too large": (bytes(0xA0000 - 0x7C00 + 1), "room"),
    "ELF without header": (make_elf(32, [Load(BASE, b"\xf4", 1)], BASE), "without a multiboot header"),
    "header too late": (make_elf(32, [Load(BASE, bytes(8192) + CODE, 9000)], BASE), "without a multiboot header"),
    "unknown requirement": (header(1 << 3) + bytes(99), "not supported"),
    "video mode": (header(1 << 2) + bytes(99), "video mode"),
    "neither ELF nor addresses": (CODE, "not a good ELF"),
    "cut off inside the header": (header(1 << 16, BASE, BASE), "inside its multiboot header"),
    "header_addr below load_addr": (header(1 << 16, BASE, BASE + 4, 0, 0, BASE), "header_addr"),
    "load_end_addr behind the file": (header(1 << 16, BASE, BASE, BASE + 999, 0, BASE), "cut off"),
    "bss_end_addr below load_end_addr": (header(1 << 16, BASE, BASE, 0, BASE + 8, BASE), "bss_end_addr"),
    "entry outside": (make_elf(32, [Load(BASE, CODE, 100)], BASE + 100), "entry point"),
    "no segment": (make_elf(32, [], BASE) + bytes(4) + CODE, "entry point"),
    "segments overlap": (make_elf(32, [Load(BASE, CODE, 100), Load(BASE + 99, b"x", 1)], BASE), "overlap"),
    "segment over the boot information": (make_elf(32, [Load(0x80000, CODE, 0x20000)], 0x80000), "overlap"),
    "segment outside memory": (make_elf(32, [Load(BASE, CODE, MEMORY)], BASE), "memory ends at"),
    "segment at the end of the address space": (
        make_elf(64, [Load(2**64 - 4096, CODE, 100)], 2**64 - 4096),
        "memory ends at",
    ),
    "file size above memory size": (make_elf(32, [Load(BASE, CODE, 4)], BASE), "cut off"),
    "truncated": (ELF32[:-2], "cut off"),
    "not x86": (make_elf(32, [Load(BASE, CODE, 100)], BASE, machine=40), "not an x86"),
}


@pytest.mark.parametrize(("data", "problem"), REFUSED.values(), ids=REFUSED)
def test_refused(data: bytes, problem: str) -> None:
    with pytest.raises(LoadError, match=problem) as caught:
        load(data)
    assert caught.value.subject == "guest"
    assert caught.value.remedy


@pytest.mark.parametrize("command_line", ["x" * 70000, "a\0b", "\ud800"])
def test_command_line_that_cannot_be_given(command_line: str) -> None:
    with pytest.raises(LoadError, match="command line"):
        load(ELF32, command_line=command_line)


def test_a_flat_binary_takes_no_command_line() -> None:
    with pytest.raises(LoadError, match="command line"):
        load(b"\xf4", command_line="x")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(MIB + 1))
    for path, problem in ((tmp_path / "none", "No such file"), (tmp_path, "directory"), (tmp_path / "large", "larger")):
        with pytest.raises(LoadError, match=problem) as caught:
            load_file(path, memory_size=MIB)
        assert caught.value.subject == str(path)


def test_a_file_is_read_by_its_size(tmp_path: Path) -> None:
    (tmp_path / "guest").write_bytes(ELF32)
    tracemalloc.start()
    load_file(tmp_path / "guest", memory_size=3 << 30)
    with pytest.raises(LoadError, match="larger than the 64 MiB of what is read"):
        load_file("/dev/zero", memory_size=3 << 30)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200 << 20


def test_a_pipe_is_a_file(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.write(writer, ELF32)
    os.close(writer)
    assert load_file(f"/proc/self/fd/{reader}", memory_size=MEMORY).kind == "multiboot"
    os.close(reader)


@pytest.mark.parametrize("memory_size", [-1, 0, MIB - 4096, MIB + 1, (3 << 30) + 4096, 99999999 << 20])
def test_memory_no_machine_can_have(memory_size: int, tmp_path: Path) -> None:
    (tmp_path / "guest").write_bytes(ELF32)
    with pytest.raises(InvalidArgument, match="memory_size"):
        load(ELF32, memory_size=memory_size)
    with pytest.raises(InvalidArgument, match="memory_size"):
        load_file(tmp_path / "guest", memory_size=memory_size)


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_a_damaged_file_loads_or_is_refused(data: st.DataObject) -> None:
    good = data.draw(st.sampled_from((ELF32, make_elf(64, [Load(BASE, CODE, 100)], BASE))))
    damaged = bytearray(good[: data.draw(st.integers(0, len(good)))])
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, len(good) - 1), st.integers(0, 255)), max_size=8)):
        if at < len(damaged):
            damaged[at] = value
    try:
        image = load(bytes(damaged))
    except LoadError:
        return
    memory_of(image)


@settings(deadline=None)
@given(st.binary(max_size=300), st.integers(0, 0xFFFFFFFF), st.lists(st.integers(0, 0xFFFFFFFF), max_size=5))
def test_any_header_loads_or_is_refused(data: bytes, flags: int, addresses: list[int]) -> None:
    for value in (flags, 1 << 16, 0):
        try:
            image = load(header(value, *addresses) + data)
        except LoadError:
            continue
        memory_of(image)


def test_the_demonstration_guest_fits_into_2_mib() -> None:
    image = demonstration_guest(memory_size=2 * MIB, vcpu_count=64)
    assert (image.kind, image.regs.rip & ~0xFFF) == ("multiboot", MIB)
