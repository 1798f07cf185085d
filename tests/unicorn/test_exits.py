"""Every kind of exit, from guests of a few bytes; each access is seen once, and before a read is answered."""

from __future__ import annotations

import pytest

from irqchip_core.clock import VirtualClock
from irqchip_core.errors import InvalidArgument
from irqchip_core.hypervisor.exits import (
    HltExit,
    InternalErrorExit,
    InterruptedExit,
    MmioExit,
    MsrExit,
    SetTprExit,
)
from irqchip_core.hypervisor.registers import CpuidEntry
from irqchip_unicorn import UnicornVcpu, UnicornVm
from irqchip_unicorn.vcpu import NS_PER_INSTRUCTION

from .guest import CODE, HALT, PAGE_TABLES, Machine

MMIO = 0x200000  # mapped there in long mode; the other modes see it as it is
MODES = ["real", "protected", "long"]
FLAT = ["protected", "long"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("code", "size", "rax"),
    [
        pytest.param(b"\xe4\x60", 1, 0xFFFFFFFFFFFFFF88, id="in al"),
        pytest.param(b"\x66\xe5\x60", 2, 0xFFFFFFFFFFFF7788, id="in ax"),
        pytest.param(b"\xe5\x60", 4, 0x55667788, id="in eax"),
    ],
)
def test_in(vm: UnicornVm, mode: str, code: bytes, size: int, rax: int) -> None:
    if mode == "real" and size > 1:
        code = code[1:] if code[0] == 0x66 else b"\x66" + code
    machine = Machine(vm, mode, code + b"\xe6\x61")
    regs = machine.vcpu.get_regs()
    regs.rax = (1 << 64) - 1
    machine.vcpu.set_regs(regs)
    exit_ = machine.port()
    assert (exit_.port, exit_.size, len(exit_.data), exit_.is_write) == (0x60, size, size, False)
    exit_.data[:] = b"\x88\x77\x66\x55"[:size]
    exit_ = machine.port()
    assert (exit_.port, exit_.is_write, bytes(exit_.data)) == (0x61, True, b"\x88")
    assert machine.vcpu.get_regs().rax == rax


@pytest.mark.parametrize("mode", FLAT)
def test_out_of_each_size(vm: UnicornVm, mode: str) -> None:
    machine = Machine(vm, mode, b"\xb8\x44\x33\x22\x11\xe6\x70\x66\xe7\x71\xe7\x72" + HALT)
    seen = [(e.port, bytes(e.data)) for e in (machine.port(), machine.port(), machine.port())]
    assert seen == [(0x70, b"\x44"), (0x71, b"\x44\x33"), (0x72, b"\x44\x33\x22\x11")]
    assert machine.run() == HltExit()


@pytest.mark.parametrize("mode", MODES)
def test_rep_insb(vm: UnicornVm, mode: str) -> None:
    machine = Machine(vm, mode, b"\xf3\x6c" + HALT)
    regs = machine.vcpu.get_regs()
    regs.rcx, regs.rdx, regs.rdi = 5, 0x60, 0x7FF0
    machine.vcpu.set_regs(regs)
    for number in range(5):
        exit_ = machine.port()
        assert (exit_.port, exit_.size, exit_.is_write) == (0x60, 1, False)
        exit_.data[0] = 0x30 + number
    assert machine.run() == HltExit()
    assert bytes(machine.memory[0x7FF0:0x7FF5]) == b"01234"
    regs = machine.vcpu.get_regs()
    assert (regs.rcx, regs.rdi) == (0, 0x7FF5)


@pytest.mark.parametrize("mode", FLAT)
def test_rep_outsl_backwards(vm: UnicornVm, mode: str) -> None:
    machine = Machine(vm, mode, b"\xfd\xf3\x6f" + HALT)
    machine.memory[0x7000:0x700C] = bytes(range(12))
    regs = machine.vcpu.get_regs()
    regs.rcx, regs.rdx, regs.rsi = 3, 0x1F0, 0x7008
    machine.vcpu.set_regs(regs)
    assert [bytes(machine.port().data)[0] for _ in range(3)] == [8, 4, 0]
    assert machine.run() == HltExit()


def test_kick_between_the_halves_of_in(vm: UnicornVm) -> None:
    machine = Machine(vm, "real", b"\xe4\x60\xe6\x61")
    exit_ = machine.port()
    exit_.data[0] = 0x99
    machine.vcpu.kick()
    assert machine.vcpu.run() == InterruptedExit()
    assert bytes(machine.port().data) == b"\x99"


@pytest.mark.parametrize("mode", FLAT)
@pytest.mark.parametrize(
    ("code", "size"),
    [
        pytest.param(b"\x8a\x06", 1, id="byte"),
        pytest.param(b"\x66\x8b\x06", 2, id="word"),
        pytest.param(b"\x8b\x06", 4, id="dword"),
        pytest.param(b"\x8b\x46\x01", 4, id="unaligned"),
    ],
)
def test_mmio_read(vm: UnicornVm, mode: str, code: bytes, size: int) -> None:
    machine = Machine(vm, mode, b"\xbe\0\0\x20\0" + code + b"\xe7\x61")
    exit_ = machine.run()
    assert isinstance(exit_, MmioExit)
    assert (exit_.address, len(exit_.data), exit_.is_write) == (0x200000 + (code[-1] == 1), size, False)
    assert machine.vcpu.get_regs().rip == CODE + 5  # not done yet
    exit_.data[:] = b"\x11\x22\x33\x44"[:size]
    assert bytes(machine.port().data)[:size] == b"\x11\x22\x33\x44"[:size]


@pytest.mark.parametrize("mode", FLAT)
@pytest.mark.parametrize("offset", [0, 1, 0xFFF])
def test_mmio_write(vm: UnicornVm, mode: str, offset: int) -> None:
    code = b"\xc7\x05" + (offset + MMIO).to_bytes(4, "little")
    if mode == "long":
        code = b"\xc7\x04\x25" + code[2:]
    machine = Machine(vm, mode, code + b"\x44\x33\x22\x11" + HALT)
    exit_ = machine.run()
    assert isinstance(exit_, MmioExit)
    assert (exit_.address, bytes(exit_.data), exit_.is_write) == (MMIO + offset, b"\x44\x33\x22\x11", True)
    assert machine.run() == HltExit()


def test_mmio_of_eight_bytes(vm: UnicornVm) -> None:
    machine = Machine(vm, "long", b"\x48\x8b\x06\x48\x89\x46\x08" + HALT)  # mov (%rsi), %rax; mov %rax, 8(%rsi)
    regs = machine.vcpu.get_regs()
    regs.rsi = MMIO
    machine.vcpu.set_regs(regs)
    exit_ = machine.run()
    assert isinstance(exit_, MmioExit)
    exit_.data[:] = b"\x01\x02\x03\x04\x05\x06\x07\x88"
    exit_ = machine.run()
    assert isinstance(exit_, MmioExit)
    assert (exit_.address, bytes(exit_.data)) == (MMIO + 8, b"\x01\x02\x03\x04\x05\x06\x07\x88")


READ, WRITE = False, True


@pytest.mark.parametrize(
    ("code", "accesses"),
    [
        pytest.param(b"\x83\x06\x05", [(0, READ, 4, 7), (0, WRITE, 4, 12)], id="add"),
        pytest.param(b"\xf0\x83\x06\x05", [(0, READ, 4, 7), (0, WRITE, 4, 12)], id="lock add"),
        pytest.param(b"\xf0\x0f\xb1\x0e", [(0, READ, 4, 0), (0, WRITE, 4, 0xC)], id="cmpxchg that exchanges"),
        pytest.param(b"\xf0\x0f\xb1\x0e", [(0, READ, 4, 1), (0, WRITE, 4, 1)], id="cmpxchg that does not"),
        pytest.param(b"\x87\x06", [(0, READ, 4, 9), (0, WRITE, 4, 0)], id="xchg"),
        pytest.param(b"\xff\x36", [(0, READ, 8, 5)], id="push from MMIO"),
        pytest.param(b"\x8f\x06", [(0, WRITE, 8, 0)], id="pop to MMIO"),
        pytest.param(b"\x48\x89\xf7\x83\xc7\x10\xa5", [(0, READ, 4, 3), (0x10, WRITE, 4, 3)], id="movs inside MMIO"),
        pytest.param(b"\x48\x89\xf7\xf3\xab", [(4 * n, WRITE, 4, 0) for n in range(0xC)], id="rep stos"),
        pytest.param(b"\x48\x8d\x66\x40\x53", [(0x38, WRITE, 8, 0xB)], id="push to MMIO"),
        pytest.param(b"\x48\x8d\x66\x40\xe8\0\0\0\0", [(0x38, WRITE, 8, CODE + 9)], id="call with the stack in MMIO"),
        pytest.param(b"\x0f\x10\x06", [(0, READ, 8, 1), (8, READ, 8, 2)], id="movups"),
        pytest.param(b"\x0f\x11\x06", [(0, WRITE, 8, 0), (8, WRITE, 8, 0)], id="movups to MMIO"),
        pytest.param(
            b"\x48\x8d\x66\x40\x48\x8d\x6e\x20\xc8\0\0\x02",
            [
                (0x38, WRITE, 8, MMIO + 0x20),
                (0x18, READ, 8, 0x55),
                (0x30, WRITE, 8, 0x55),
                (0x28, WRITE, 8, MMIO + 0x38),
            ],
            id="enter: write, read, write",
        ),
    ],
)
def test_each_access_of_an_instruction_once(
    vm: UnicornVm, code: bytes, accesses: list[tuple[int, bool, int, int]]
) -> None:
    machine = Machine(vm, "long", code + HALT)
    regs = machine.vcpu.get_regs()
    regs.rsi, regs.rcx, regs.rbx = MMIO, 0xC, 0xB
    machine.vcpu.set_regs(regs)
    seen: list[object] = []
    for offset, is_write, size, value in accesses:
        exit_ = machine.run()
        assert isinstance(exit_, MmioExit), (exit_, seen)
        if not exit_.is_write:
            exit_.data[:] = value.to_bytes(len(exit_.data), "little")
        seen.append((exit_.address - MMIO, exit_.is_write, len(exit_.data), int.from_bytes(exit_.data, "little")))
        assert seen[-1] == (offset, is_write, size, value)
    assert machine.run() == HltExit()
    assert machine.vcpu.get_regs().rip == CODE + len(code) + 1


def test_interrupt_after_an_mmio_read_finds_it_done(vm: UnicornVm) -> None:
    machine = Machine(vm, "long", b"\x8b\x06\x90" + HALT)
    regs = machine.vcpu.get_regs()
    regs.rsi, regs.rflags = MMIO, 0x202
    machine.vcpu.set_regs(regs)
    exit_ = machine.run()
    assert isinstance(exit_, MmioExit)
    exit_.data[:] = b"\x78\x56\x34\x12"
    machine.vcpu.interrupt(0x30)
    assert machine.handler() == 0x30
    assert machine.stack(1) == [CODE + 2]
    assert machine.vcpu.get_regs().rax == 0x12345678


def test_new_rip_abandons_the_access(vm: UnicornVm) -> None:
    machine = Machine(vm, "long", b"\x8b\x06" + HALT)
    regs = machine.vcpu.get_regs()
    regs.rsi = MMIO
    machine.vcpu.set_regs(regs)
    assert isinstance(machine.run(), MmioExit)
    regs.rip = CODE + 2
    machine.vcpu.set_regs(regs)
    assert machine.run() == HltExit()
    assert machine.vcpu.get_regs().rax == 0


@pytest.mark.parametrize("mode", FLAT)
def test_code_outside_of_memory(vm: UnicornVm, mode: str) -> None:
    machine = Machine(vm, mode, b"\xff\xe6")  # jmp *%rsi
    regs = machine.vcpu.get_regs()
    regs.rsi = MMIO
    machine.vcpu.set_regs(regs)
    for _ in range(2):
        assert machine.run() == InternalErrorExit(1, (MMIO,))


def test_memory_added_while_it_runs(vm: UnicornVm) -> None:
    machine = Machine(vm, "long", b"\x8b\x06\x8b\x06" + HALT)
    regs = machine.vcpu.get_regs()
    regs.rsi, regs.rbx = MMIO, 0x1234567890ABCDEF
    machine.vcpu.set_regs(regs)
    exit_ = machine.run()
    assert isinstance(exit_, MmioExit)
    vm.map_memory(MMIO, 0x1000)[:4] = b"\x04\x03\x02\x01"
    assert machine.run() == HltExit()
    regs = machine.vcpu.get_regs()
    assert (regs.rax, regs.rbx) == (0x01020304, 0x1234567890ABCDEF)


# --- MSRs, CR8, CPUID, TSC

RDMSR = b"\x0f\x32" + HALT
WRMSR = b"\x0f\x30" + HALT
APIC_BASE, TSC, EFER, LSTAR = 0x1B, 0x10, 0xC0000080, 0xC0000082


def with_msr(vm: UnicornVm, code: bytes, index: int, value: int = 0, mode: str = "long") -> Machine[UnicornVcpu]:
    machine = Machine(vm, mode, code)
    regs = machine.vcpu.get_regs()
    regs.rcx, regs.rax, regs.rdx = index, value & 0xFFFFFFFF, value >> 32
    machine.vcpu.set_regs(regs)
    return machine


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("index", [0x802, 0x6E0, LSTAR, APIC_BASE, 0x12345678])
@pytest.mark.parametrize("prefix", [b"", b"\x66"])
def test_msr_exit(vm: UnicornVm, mode: str, index: int, prefix: bytes) -> None:
    vm.exit_on_msrs([range(0x6E0, 0x6E1), range(0x800, 0x900), range(index, index + 1)])
    machine = with_msr(vm, prefix + b"\x0f\x32\x0f\x30" + HALT, index, mode=mode)
    exit_ = machine.run()
    assert isinstance(exit_, MsrExit)
    assert (exit_.index, exit_.value, exit_.is_write) == (index, 0, False)
    machine.vcpu.complete_msr(0x1122334455667788)
    exit_ = machine.run()
    assert isinstance(exit_, MsrExit)
    assert (exit_.index, exit_.value, exit_.is_write) == (index, 0x1122334455667788, True)
    machine.vcpu.complete_msr()
    assert machine.run() == HltExit()


@pytest.mark.parametrize("code", [RDMSR, WRMSR])
@pytest.mark.parametrize("answered", [False, True])
def test_msr_fault(vm: UnicornVm, code: bytes, answered: bool) -> None:
    vm.exit_on_msrs([range(0x800, 0x900)])
    machine = with_msr(vm, code, 0x8FF)
    assert isinstance(machine.run(), MsrExit)
    if answered:
        machine.vcpu.complete_msr(5, fault=True)
    assert machine.handler() == 13
    assert machine.stack(2) == [0, CODE]


def test_ranges_replace_each_other(vm: UnicornVm) -> None:
    vm.exit_on_msrs([range(0x800, 0x900), range(LSTAR, LSTAR + 1)])
    machine = with_msr(vm, WRMSR[:2] + RDMSR, LSTAR, 0x1234)
    vm.exit_on_msrs([])
    assert machine.run() == HltExit()
    assert machine.vcpu.get_regs().rax == 0x1234


@pytest.mark.parametrize("msrs", [range(0, 10, 2), range(-1, 3), range(1 << 32, (1 << 32) + 1)])
def test_no_range_of_msrs(vm: UnicornVm, msrs: range) -> None:
    with pytest.raises(InvalidArgument):
        vm.exit_on_msrs([msrs])


def test_complete_msr_without_one(vm: UnicornVm) -> None:
    machine = Machine(vm, "real", HALT)
    with pytest.raises(InvalidArgument, match="no MSR access"):
        machine.vcpu.complete_msr(0)


def test_perform_msr_is_what_happens_without_the_exit(vm: UnicornVm) -> None:
    vm.exit_on_msrs([range(TSC, TSC + 1), range(APIC_BASE, APIC_BASE + 1)])
    machine = with_msr(vm, WRMSR[:2] + RDMSR[:2] + b"\xb1\x10" + WRMSR, APIC_BASE, 0xFED00900)
    for index, is_write in ((APIC_BASE, True), (APIC_BASE, False), (TSC, True)):
        exit_ = machine.run()
        assert isinstance(exit_, MsrExit)
        assert (exit_.index, exit_.is_write) == (index, is_write)
        assert machine.vcpu.perform_msr(exit_)
        with pytest.raises(InvalidArgument, match="no MSR access"):  # it has its answer
            machine.vcpu.perform_msr(exit_)
    assert machine.run() == HltExit()
    assert machine.vcpu.apic_base == machine.vcpu.get_regs().rax == 0xFED00900
    assert 0 <= machine.vcpu.tsc() - 0xFED00900 < 10**9


def test_perform_msr_leaves_what_it_refuses_to_a_fault(vm: UnicornVm) -> None:
    vm.exit_on_msrs([range(APIC_BASE, APIC_BASE + 1)])
    machine = with_msr(vm, WRMSR, APIC_BASE, 0xFEE00901)
    exit_ = machine.run()
    assert isinstance(exit_, MsrExit)
    assert not machine.vcpu.perform_msr(exit_)
    assert machine.handler() == 13
    assert machine.vcpu.apic_base == 0xFEE00900


@pytest.mark.parametrize(
    ("value", "accepted"),
    [
        (0xFEE00900, True),
        (0xFEE00100, True),
        (0xFED00900, True),
        (0xFEE00901, False),
        (0xFEE00500, False),
        (1 << 45 | 0x900, False),
    ],
)
def test_apic_base(vm: UnicornVm, value: int, accepted: bool) -> None:
    machine = with_msr(vm, WRMSR, APIC_BASE, value)
    assert machine.vcpu.apic_base == 0xFEE00900
    if accepted:
        assert machine.run() == HltExit()
        assert machine.vcpu.apic_base == machine.vcpu.get_sregs().apic_base == value
    else:
        assert machine.handler() == 13
        assert machine.vcpu.apic_base == 0xFEE00900


@pytest.mark.parametrize("has_x2apic", [True, False])
def test_x2apic_needs_cpuid(vm: UnicornVm, has_x2apic: bool) -> None:
    machine = with_msr(vm, WRMSR, APIC_BASE, 0xFEE00D00)
    machine.vcpu.set_cpuid([CpuidEntry(1, ecx=1 << 21 if has_x2apic else 0)])
    if has_x2apic:
        assert machine.run() == HltExit()
        assert machine.vcpu.apic_base == 0xFEE00D00
    else:
        assert machine.handler() == 13


@pytest.mark.parametrize(("value", "accepted"), [(0xD01, True), (0x501, True), (0x1D01, False), (0xC01, False)])
def test_efer_in_long_mode(vm: UnicornVm, value: int, accepted: bool) -> None:
    machine = with_msr(vm, WRMSR, EFER, value)
    if accepted:
        assert machine.run() == HltExit()
        assert machine.vcpu.get_sregs().efer == value | 0x400
    else:
        assert machine.handler() == 13


def test_cr8(vm: UnicornVm) -> None:
    # mov $5, %eax; mov %rax, %cr8; mov $2, %eax; mov %rax, %cr8; xor; mov %cr8, %rbx; mov $16, %eax; mov %rax, %cr8
    code = b"\xb8\x05\0\0\0\x44\x0f\x22\xc0\xb8\x02\0\0\0\x44\x0f\x22\xc0\x31\xdb\x44\x0f\x20\xc3"
    machine = Machine(vm, "long", code + HALT + b"\xb8\x10\0\0\0\x44\x0f\x22\xc0")
    machine.vcpu.cr8 = 9
    assert machine.run() == SetTprExit()
    assert machine.vcpu.cr8 == 5
    assert machine.run() == SetTprExit()
    assert (machine.vcpu.cr8, machine.vcpu.get_sregs().cr8) == (2, 2)
    assert machine.run() == HltExit()
    assert machine.vcpu.get_regs().rbx == 2
    assert machine.handler() == 13
    with pytest.raises(InvalidArgument):
        machine.vcpu.cr8 = 16


def test_dr7_enables_nothing(vm: UnicornVm) -> None:
    machine = Machine(vm, "long", b"\xb8\xff\x07\0\0\x0f\x23\xf8\x0f\x23\xc0\x0f\x21\xfb" + HALT)
    assert machine.run() == HltExit()
    assert machine.vcpu.get_regs().rbx == 0x700


def test_cpuid(vm: UnicornVm) -> None:
    machine = Machine(vm, "long", b"\x0f\xa2" + HALT)
    machine.vcpu.set_cpuid([CpuidEntry(0x40000000, eax=1, ebx=2, ecx=3, edx=4), CpuidEntry(7, 1, True, eax=9)])
    for leaf, subleaf, answer in ((0x40000000, 5, (1, 2, 3, 4)), (7, 1, (9, 0, 0, 0)), (7, 0, (0,) * 4)):
        regs = machine.vcpu.get_regs()
        regs.rip, regs.rax, regs.rcx = CODE, leaf, subleaf
        machine.vcpu.set_regs(regs)
        assert machine.run() == HltExit()
        regs = machine.vcpu.get_regs()
        assert (regs.rax, regs.rbx, regs.rcx, regs.rdx) == answer


def test_supported_cpuid_is_of_a_virtual_x86_64_without_a_chip(vm: UnicornVm) -> None:
    features = next(entry for entry in vm.supported_cpuid() if entry.function == 1)
    assert features.ecx & 1 << 31
    assert not features.ecx & (1 << 21 | 1 << 24)
    extended = next(entry for entry in vm.supported_cpuid() if entry.function == 0x80000001)
    assert extended.edx & 1 << 29
    assert not extended.ecx & 1 << 2


@pytest.mark.parametrize("code", [b"\x0f\x31", b"\x0f\x01\xf9"], ids=["rdtsc", "rdtscp"])
def test_tsc_is_the_clock(code: bytes) -> None:
    clock = VirtualClock(0x1_0000_0005)
    with UnicornVm(clock) as vm:
        machine = Machine(vm, "long", code + HALT)
        assert machine.run() == HltExit()
        regs = machine.vcpu.get_regs()
        assert (regs.rdx, regs.rip) == (1, CODE + len(code) + 1)
        assert 5 <= regs.rax <= 5 + NS_PER_INSTRUCTION
        assert machine.vcpu.tsc() == clock.now() > 0x1_0000_0005
        clock.advance(1_000)
        assert machine.vcpu.tsc() == clock.now()


def test_tsc_can_be_written() -> None:
    clock = VirtualClock(1_000_000)
    with UnicornVm(clock) as vm:
        machine = with_msr(vm, WRMSR[:2] + RDMSR, TSC, 77)
        assert machine.run() == HltExit()
        assert 77 <= machine.vcpu.get_regs().rax <= machine.vcpu.tsc() < 77 + 10 * NS_PER_INSTRUCTION


def test_unmapped_physical_memory_beyond_4_gib(vm: UnicornVm) -> None:
    machine = Machine(vm, "long", b"\x8b\x06" + HALT)
    machine.memory[PAGE_TABLES + 0x2008 : PAGE_TABLES + 0x2010] = (0xFF_FFE0_0087).to_bytes(8, "little")
    regs = machine.vcpu.get_regs()
    regs.rsi = MMIO + 0x10
    machine.vcpu.set_regs(regs)
    exit_ = machine.run()
    assert isinstance(exit_, MmioExit)
    assert exit_.address == 0xFF_FFE0_0010


def test_io_exit_of_a_debugger_is_left_alone(vm: UnicornVm) -> None:
    machine = Machine(vm, "real", b"\xe4\x60" + HALT)
    exit_ = machine.port()
    exit_.data[0] = 5
    regs = machine.vcpu.get_regs()
    regs.rbx = 6
    machine.vcpu.set_regs(regs)
    assert machine.run() == HltExit()
    regs = machine.vcpu.get_regs()
    assert (regs.rax, regs.rbx) == (5, 6)


@pytest.mark.parametrize(
    ("register", "value"),
    [
        pytest.param(0, 1 << 31, id="paging without protection"),
        pytest.param(0, 0x20000011, id="NW without CD"),
        pytest.param(0, 1 << 32 | 0x80010011, id="beyond 32 bits"),
        pytest.param(4, 0, id="long mode without PAE"),
    ],
)
def test_control_registers_that_cannot_be(vm: UnicornVm, register: int, value: int) -> None:
    machine = Machine(vm, "long", bytes((0x0F, 0x22, 0xC0 | register << 3)))
    regs = machine.vcpu.get_regs()
    regs.rax = value
    machine.vcpu.set_regs(regs)
    assert machine.handler() == 13
    assert machine.stack(2) == [0, CODE]


def test_lmsw_from_mmio(vm: UnicornVm) -> None:
    machine = Machine(vm, "long", b"\x0f\x01\x36" + HALT)  # an access of an instruction that is intercepted too
    regs = machine.vcpu.get_regs()
    regs.rsi = MMIO
    machine.vcpu.set_regs(regs)
    exit_ = machine.run()
    assert isinstance(exit_, MmioExit)
    exit_.data[:] = b"\x0b\x00"
    assert machine.run() == HltExit()
    assert machine.vcpu.get_sregs().cr0 & 0xF == 0xB


def test_kick_before_the_answer_is_taken(vm: UnicornVm) -> None:
    machine = Machine(vm, "long", b"\x8b\x06" + HALT)
    regs = machine.vcpu.get_regs()
    regs.rsi = MMIO
    machine.vcpu.set_regs(regs)
    exit_ = machine.run()
    assert isinstance(exit_, MmioExit)
    exit_.data[:] = b"\x01\x02\x03\x04"
    machine.vcpu.kick()
    assert machine.vcpu.run() == InterruptedExit()
    assert machine.run() == HltExit()
    assert machine.vcpu.get_regs().rax == 0x04030201
