"""Page tables as the announced features have them: SMEP, SMAP, NX, pages of 1 GiB, PSE and PSE-36, PAE.

Each for the guest's own accesses, which the emulator translates, and for the delivery of events, which is done here.
"""

from __future__ import annotations

import struct

import pytest

from irqchip_core.hypervisor.exits import ShutdownExit
from irqchip_unicorn import UnicornVcpu, UnicornVm

from .guest import CODE, HALT, PAGE_TABLES, STACK, Machine

PF = 14
PRESENT, WRITE, RESERVED, FETCH = 1, 2, 8, 0x10  # of a page fault's error code
NX = 1 << 63
CR4_PSE, CR4_PAE, CR4_PGE, CR4_SMEP, CR4_SMAP = (1 << bit for bit in (4, 5, 7, 20, 21))
PG, NXE, AC = 1 << 31, 1 << 11, 1 << 18
ALIAS = 0x400000  # another linear address of the memory at 0
RET, NOP = b"\xc3", b"\x90"
CALL_RBX, READ_RBX, WRITE_RBX, STAC, CLAC = b"\xff\xd3", b"\x8b\x03", b"\x89\x03", b"\x0f\x01\xcb", b"\x0f\x01\xca"


def long_mode(vm: UnicornVm, code: bytes, entry: int, *, cr4: int = 0, efer: int = 0) -> Machine[UnicornVcpu]:
    """Long mode with the kernel's memory at 0, and `entry` of the page directory at `ALIAS`, where RBX points."""
    made = Machine(vm, "long", code + HALT)
    made.memory[0x7000:0x7001] = RET
    struct.pack_into("<Q", made.memory, PAGE_TABLES + 0x2000, 0x83)
    struct.pack_into("<Q", made.memory, PAGE_TABLES + 0x2000 + 8 * (ALIAS >> 21), entry)
    sregs = made.vcpu.get_sregs()
    sregs.cr4 |= cr4
    sregs.efer |= efer
    made.vcpu.set_sregs(sregs)
    regs = made.vcpu.get_regs()
    regs.rbx = ALIAS + 0x7000
    made.vcpu.set_regs(regs)
    return made


USER, KERNEL = 0x87, 0x83


@pytest.mark.parametrize(
    ("code", "entry", "cr4", "efer", "error_code"),
    [
        pytest.param(CALL_RBX, USER, 0, 0, None, id="kernel executes the user's page"),
        pytest.param(CALL_RBX, USER, CR4_SMEP, 0, PRESENT | FETCH, id="SMEP"),
        pytest.param(READ_RBX, USER, CR4_SMEP, 0, None, id="SMEP lets data be read"),
        pytest.param(CALL_RBX, KERNEL, CR4_SMEP, 0, None, id="SMEP and the kernel's page"),
        pytest.param(READ_RBX, USER, 0, 0, None, id="kernel reads the user's page"),
        pytest.param(READ_RBX, USER, CR4_SMAP, 0, PRESENT, id="SMAP, read"),
        pytest.param(WRITE_RBX, USER, CR4_SMAP, 0, PRESENT | WRITE, id="SMAP, write"),
        pytest.param(STAC + READ_RBX + CLAC, USER, CR4_SMAP, 0, None, id="SMAP and STAC"),
        pytest.param(STAC + CLAC + READ_RBX, USER, CR4_SMAP, 0, PRESENT, id="SMAP and CLAC"),
        pytest.param(READ_RBX, KERNEL, CR4_SMAP, 0, None, id="SMAP and the kernel's page"),
        pytest.param(CALL_RBX, NX | KERNEL, 0, NXE, PRESENT | FETCH, id="NX"),
        pytest.param(READ_RBX, NX | KERNEL, 0, NXE, None, id="NX lets data be read"),
        pytest.param(READ_RBX, NX | KERNEL, 0, 0, PRESENT | RESERVED, id="NX is reserved without EFER.NXE"),
        pytest.param(READ_RBX, KERNEL | 1 << 40, 0, 0, PRESENT | RESERVED, id="beyond the physical address"),
        pytest.param(READ_RBX, KERNEL | 1 << 8, CR4_PGE, 0, None, id="global"),
    ],
)
def test_access(vm: UnicornVm, code: bytes, entry: int, cr4: int, efer: int, error_code: int | None) -> None:
    made = long_mode(vm, code, entry, cr4=cr4, efer=efer)
    made.run()
    regs = made.vcpu.get_regs()
    if error_code is None:
        assert regs.rip == CODE + len(code) + 1
        return
    assert made.handler_entered() == PF
    if error_code & FETCH:
        assert made.stack(2) == [error_code, ALIAS + 0x7000]
    else:
        assert made.stack(2) == [error_code, CODE + code.index(code[-2:])]
    assert made.vcpu.get_sregs().cr2 == ALIAS + 0x7000


@pytest.mark.parametrize(
    ("entry", "cr4", "ac", "taken"),
    [
        pytest.param(USER, 0, False, True, id="the user's stack"),
        pytest.param(USER, CR4_SMAP, False, False, id="SMAP"),
        pytest.param(USER, CR4_SMAP, True, True, id="SMAP and AC"),
        pytest.param(KERNEL, CR4_SMAP, False, True, id="SMAP and the kernel's stack"),
        pytest.param(KERNEL | NX, 0, False, False, id="reserved"),
    ],
)
def test_event_is_pushed_where_the_kernel_may_write(vm: UnicornVm, entry: int, cr4: int, ac: bool, taken: bool) -> None:
    made = long_mode(vm, b"\xcd\x40", entry, cr4=cr4)
    regs = made.vcpu.get_regs()
    regs.rsp, regs.rflags = ALIAS + STACK, 2 | (AC if ac else 0)
    made.vcpu.set_regs(regs)
    if taken:
        assert made.handler() == 0x40
        assert struct.unpack_from("<Q", made.memory, STACK - 40) == (CODE + 2,)
    else:
        assert made.run() == ShutdownExit()  # the page fault finds no stack, and the double fault neither


def test_page_of_1_gib(vm: UnicornVm) -> None:
    made = long_mode(vm, READ_RBX + b"\xcd\x40", KERNEL)
    struct.pack_into("<Q", made.memory, PAGE_TABLES + 0x1000 + 8, 0x83)
    made.memory[0x7000:0x7004] = b"\x44\x33\x22\x11"
    regs = made.vcpu.get_regs()
    regs.rbx, regs.rsp = 0x40007000, 0x40000000 + STACK
    made.vcpu.set_regs(regs)
    assert made.handler() == 0x40
    assert made.vcpu.get_regs().rax == 0x11223344
    assert struct.unpack_from("<Q", made.memory, STACK - 40) == (CODE + 4,)


HIGH = 0x1_0000_0000


@pytest.mark.parametrize("kind", ["4 KiB", "PSE", "PSE-36", "PAE"])
def test_paging_of_32_bit_modes(vm: UnicornVm, kind: str) -> None:
    made = Machine(vm, "protected", READ_RBX + b"\xcd\x40" + HALT)
    high = vm.map_memory(HIGH, 0x10000)
    memory = high if kind == "PSE-36" else made.memory
    memory[0x7000:0x7004] = b"\x44\x33\x22\x11"
    directory = PAGE_TABLES
    if kind == "PAE":
        struct.pack_into("<Q", made.memory, directory, directory + 0x1001)
        for at, entry in ((0, 0x83), (ALIAS >> 21, 0x83)):
            struct.pack_into("<Q", made.memory, directory + 0x1000 + 8 * at, entry)
    else:
        alias = {"4 KiB": directory + 0x1003, "PSE": 0x83, "PSE-36": 0x83 | 1 << 13}[kind]
        struct.pack_into("<I", made.memory, directory, directory + 0x1003)
        struct.pack_into("<I", made.memory, directory + 4 * (ALIAS >> 22), alias)
        for page in range(0x40):
            struct.pack_into("<I", made.memory, directory + 0x1000 + 4 * page, page << 12 | 3)
    sregs = made.vcpu.get_sregs()
    sregs.cr3, sregs.cr4 = directory, CR4_PAE if kind == "PAE" else 0 if kind == "4 KiB" else CR4_PSE
    sregs.cr0 |= PG
    made.vcpu.set_sregs(sregs)
    regs = made.vcpu.get_regs()
    regs.rbx, regs.rsp = ALIAS + 0x7000, ALIAS + STACK
    made.vcpu.set_regs(regs)
    assert made.handler() == 0x40
    assert made.vcpu.get_regs().rax == 0x11223344
    assert struct.unpack_from("<I", memory, STACK - 12) == (CODE + 4,)
