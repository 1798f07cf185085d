"""Interrupt shadows: which instruction holds interrupts back, how long, and across what (Intel SDM vol. 2, MOV, STI).

Each guest is a list of instructions; a test looks where the window opens, or where the NMI, the trap and the interrupt
come.
"""

from __future__ import annotations

import pytest

from irqchip_core.hypervisor.exits import InterruptedExit, IrqWindowExit, MmioExit, MsrExit
from irqchip_unicorn import UnicornVcpu, UnicornVm

from .guest import CODE, HALT, IF, STACK, TF, Machine

MODES = ["real", "protected", "long"]
MMIO = 0x200000
NOP, STI, CLI, OUT, PUSHF, POPF = b"\x90", b"\xfb", b"\xfa", b"\xe6\x10", b"\x9c", b"\x9d"
MOV_SS, PREFIXED_MOV_SS = b"\x8e\xd0", b"\x66\x8e\xd0"  # from AX, which has SS
PUSH_SS, POP_SS = b"\x16", b"\x17"
MOV_DS = b"\x8e\xd8"
MOV_CR0, SYSCALL = b"\x0f\x22\xc0", b"\x0f\x05"
EFER_SCE = 1
NMI, DB = 2, 1


def machine(vm: UnicornVm, mode: str, *code: bytes, rflags: int = 2) -> Machine[UnicornVcpu]:
    made = Machine(vm, mode, b"".join(code) + 8 * NOP + HALT)
    regs = made.vcpu.get_regs()
    regs.rflags, regs.rax = rflags, made.vcpu.get_sregs().ss.selector
    made.vcpu.set_regs(regs)
    return made


LATER = [
    # instructions, and before which of them the window opens
    pytest.param([STI, NOP, NOP], 2, id="sti"),
    pytest.param([STI, MOV_SS, NOP, NOP], 3, id="mov ss after sti"),
    pytest.param([STI, PREFIXED_MOV_SS, NOP, NOP], 3, id="mov ss with a prefix after sti"),
    pytest.param([PUSH_SS, STI, POP_SS, NOP, NOP], 4, id="pop ss after sti"),
    pytest.param([MOV_SS, STI, NOP, NOP], 3, id="sti after mov ss"),
    pytest.param([PUSH_SS, POP_SS, STI, NOP, NOP], 4, id="sti after pop ss"),
    pytest.param([MOV_SS, STI, MOV_SS, NOP, NOP], 4, id="mov ss after sti after mov ss"),
    pytest.param([STI, MOV_SS, CLI, STI, MOV_SS, NOP, NOP], 6, id="twice"),
    pytest.param([STI, MOV_SS, MOV_SS, NOP], 3, id="of two mov ss the first"),
    pytest.param([STI, STI, NOP], 2, id="sti with interrupts on"),
    pytest.param([STI, MOV_DS, NOP], 2, id="mov ds"),
    pytest.param([STI, CLI, NOP, STI, NOP, NOP], 5, id="cli in the shadow"),
    pytest.param([STI, PUSHF, CLI, POPF, NOP, NOP], 2, id="pushf"),
    pytest.param([b"\x50", b"\x58", PUSHF, b"\x58", b"\x80\xcc\x02", b"\x50", POPF, NOP], 7, id="popf"),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("instructions", "number"), LATER)
def test_window_opens_after_the_last_shadow(vm: UnicornVm, mode: str, instructions: list[bytes], number: int) -> None:
    if mode == "long" and {PUSH_SS, POP_SS} & set(instructions):
        pytest.skip("there is no POP SS in 64-bit mode")
    guest = machine(vm, mode, *instructions)
    expected = CODE + sum(map(len, instructions[:number]))
    for _ in range(2):  # the second time everything is translated already
        guest.vcpu.set_interrupt_window_requested(True)
        assert guest.run() == IrqWindowExit()
        assert guest.vcpu.get_regs().rip == expected
        guest.vcpu.set_interrupt_window_requested(False)
        guest.vcpu.interrupt(0x20)
        assert guest.handler() == 0x20
        assert guest.stack(1) == [expected]
        regs = guest.vcpu.get_regs()
        regs.rip, regs.rsp, regs.rflags = CODE, STACK, 2
        guest.vcpu.set_regs(regs)


@pytest.mark.parametrize("mode", MODES)
def test_not_ready_between_mov_ss_and_mov_sp_after_sti(vm: UnicornVm, mode: str) -> None:
    guest = machine(vm, mode, STI, MOV_SS, b"\xbc\0\x80\0\0"[: 3 if mode == "real" else 5])
    seen = {}
    for _ in range(4):
        seen[guest.vcpu.get_regs().rip - CODE] = guest.vcpu.ready_for_interrupt()
        guest.vcpu._processor.step(1)
    assert seen[3] is False
    assert seen[6 if mode == "real" else 8] is True


def test_lss_has_no_shadow(vm: UnicornVm) -> None:
    guest = machine(vm, "real", STI, NOP, b"\x0f\xb2\x26\x00\x60", NOP)  # lss 0x6000, sp
    guest.memory[0x6000:0x6004] = b"\x00\x80\0\0"
    for _ in range(3):
        guest.vcpu._processor.step(1)
    assert (guest.vcpu.get_regs().rip, guest.vcpu.ready_for_interrupt()) == (CODE + 7, True)


@pytest.mark.parametrize("mode", MODES)
def test_iret_has_no_shadow(vm: UnicornVm, mode: str) -> None:
    guest = machine(vm, mode, NOP, NOP)
    guest.flags(IF | 2)
    guest.vcpu.interrupt(0x20)
    assert guest.handler() == 0x20
    guest.vcpu.set_interrupt_window_requested(True)
    assert guest.run() == IrqWindowExit()
    assert guest.vcpu.get_regs().rip == CODE


# --- exits in the shadow

IN_THE_SHADOW = [
    pytest.param(OUT, id="out"),
    pytest.param(b"\xe4\x10", id="in"),
    pytest.param(HALT, id="hlt"),
    pytest.param(b"\x0f\xa2", id="cpuid"),
    pytest.param(b"\x0f\x31", id="rdtsc"),
    pytest.param(b"\x0f\x01\xf9", id="rdtscp"),
    pytest.param(b"\x0f\x32", id="rdmsr"),
    pytest.param(b"\x0f\x23\xf8", id="mov dr7"),
    pytest.param(MOV_CR0, id="mov cr0"),
    pytest.param(b"\x44\x0f\x22\xc0", id="mov cr8 to 0"),
    pytest.param(b"\x89\x03", id="write to MMIO"),
    pytest.param(b"\x8b\x03", id="read from MMIO"),
    pytest.param(b"\xff\x33", id="push from MMIO"),
    pytest.param(SYSCALL, id="syscall"),
]


@pytest.mark.parametrize("code", IN_THE_SHADOW)
def test_shadow_covers_the_whole_instruction_and_no_more(vm: UnicornVm, code: bytes) -> None:
    vm.exit_on_msrs([range(0x8FF, 0x900)])
    guest = machine(vm, "long", STI, code, NOP)
    regs = guest.vcpu.get_regs()
    regs.rbx, regs.rcx, regs.rax = MMIO, 0x8FF, 0x80010011 if code == MOV_CR0 else 0
    guest.vcpu.set_regs(regs)
    sregs = guest.vcpu.get_sregs()
    sregs.cr8, sregs.efer = 1, sregs.efer | EFER_SCE
    guest.vcpu.set_sregs(sregs)
    behind = 0 if code == SYSCALL else CODE + 1 + len(code)  # LSTAR and SFMASK are 0
    guest.vcpu.set_interrupt_window_requested(True)
    while (exit_ := guest.run()) != IrqWindowExit():
        done = guest.vcpu.get_regs().rip == behind
        assert guest.vcpu.ready_for_interrupt() is done
        if isinstance(exit_, MsrExit):
            guest.vcpu.complete_msr()
    assert guest.vcpu.get_regs().rip == behind


@pytest.mark.parametrize("mode", ["protected", "long"])
def test_interrupt_injected_at_an_exit_waits_for_the_shadow_that_its_instruction_begins(
    vm: UnicornVm, mode: str
) -> None:
    guest = machine(vm, mode, b"\x8e\x13", NOP, NOP)  # mov (%ebx), %ss
    regs = guest.vcpu.get_regs()
    regs.rbx, regs.rflags = MMIO, IF | 2
    guest.vcpu.set_regs(regs)
    exit_ = guest.run()
    assert isinstance(exit_, MmioExit)
    exit_.data[:2] = b"\x10\0"
    guest.vcpu.interrupt(0x20)
    assert guest.handler() == 0x20
    assert guest.stack(1) == [CODE + 3]


def test_interrupt_injected_at_an_exit_waits_when_its_instruction_clears_if(vm: UnicornVm) -> None:
    guest = machine(vm, "long", POPF, NOP, STI, NOP, NOP)
    regs = guest.vcpu.get_regs()
    regs.rsp, regs.rflags = MMIO, IF | 2
    guest.vcpu.set_regs(regs)
    exit_ = guest.run()
    assert isinstance(exit_, MmioExit)
    exit_.data[:] = (2).to_bytes(8, "little")
    guest.vcpu.interrupt(0x20)
    assert not guest.vcpu.ready_for_interrupt()
    regs = guest.vcpu.get_regs()
    guest.vcpu.complete_io()
    regs = guest.vcpu.get_regs()
    assert (regs.rip, regs.rflags & IF) == (CODE + 1, 0)
    sregs = guest.vcpu.get_sregs()
    assert sregs.interrupt_bitmap == 1 << 0x20
    regs.rsp = STACK
    guest.vcpu.set_regs(regs)
    assert guest.handler() == 0x20
    assert guest.stack(1) == [CODE + 4]


def test_interrupt_injected_at_an_exit_waits_for_the_handler_of_its_fault(vm: UnicornVm) -> None:
    vm.exit_on_msrs([range(0x8FF, 0x900)])
    guest = machine(vm, "long", b"\x0f\x32")
    regs = guest.vcpu.get_regs()
    regs.rcx, regs.rflags = 0x8FF, IF | 2
    guest.vcpu.set_regs(regs)
    guest.run()
    guest.vcpu.complete_msr(fault=True)
    guest.vcpu.interrupt(0x20)
    assert guest.handler() == 13
    guest.drop()
    assert guest.handler() == 0x20
    assert guest.stack(1) == [CODE]  # where the handler returns to


# --- NMI and #DB


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("instructions", "number"),
    [
        pytest.param([MOV_SS, NOP, NOP], 2, id="mov ss"),
        pytest.param([STI, MOV_SS, NOP, NOP], 3, id="mov ss after sti"),
        pytest.param([MOV_SS, STI, NOP, NOP], 3, id="sti after mov ss"),
    ],
)
def test_nmi_waits_for_the_shadow(vm: UnicornVm, mode: str, instructions: list[bytes], number: int) -> None:
    guest = machine(vm, mode, *instructions)
    guest.vcpu._processor.step(1)
    assert guest.vcpu.get_regs().rip > CODE
    guest.vcpu.inject_nmi()
    assert guest.handler() == NMI
    assert guest.stack(1) == [CODE + sum(map(len, instructions[:number]))]


@pytest.mark.parametrize("mode", MODES)
def test_nmi_that_waits_for_the_shadow_ends_hlt(vm: UnicornVm, mode: str) -> None:
    guest = machine(vm, mode, STI, HALT)
    guest.vcpu._processor.step(1)
    guest.vcpu.inject_nmi()
    assert guest.handler() == NMI
    assert guest.stack(1) == [CODE + 2]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("instructions", "traps"),
    [
        pytest.param([NOP, NOP], [1, 2], id="nop"),
        pytest.param([STI, NOP, NOP], [1, 2, 3], id="sti"),
        pytest.param([MOV_SS, NOP, NOP], [2, 3], id="mov ss"),
        pytest.param([STI, MOV_SS, NOP, NOP], [1, 3, 4], id="mov ss after sti"),
    ],
)
def test_mov_ss_holds_the_trap_back_and_sti_does_not(
    vm: UnicornVm, mode: str, instructions: list[bytes], traps: list[int]
) -> None:
    guest = machine(vm, mode, *instructions, rflags=TF | 2)
    for number in traps:
        assert guest.handler() == DB
        assert guest.stack(1) == [CODE + sum(map(len, instructions[:number]))]


def test_kick_in_the_shadow_leaves_it(vm: UnicornVm) -> None:
    guest = machine(vm, "real", STI, MOV_SS, NOP, NOP)
    guest.vcpu._processor.step(1)
    guest.vcpu.kick()
    assert guest.vcpu.run() == InterruptedExit()
    assert not guest.vcpu.ready_for_interrupt()
    guest.vcpu.set_interrupt_window_requested(True)
    assert guest.run() == IrqWindowExit()
    assert guest.vcpu.get_regs().rip == CODE + 4
