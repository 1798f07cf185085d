"""Interrupts and exceptions reach the guest's handlers as the Intel SDM says, in each mode."""

from __future__ import annotations

import struct

import pytest

from irqchip_core.errors import HypervisorError, InvalidArgument
from irqchip_core.hypervisor.exits import HltExit, InternalErrorExit, IrqWindowExit, ShutdownExit
from irqchip_core.hypervisor.registers import Segment
from irqchip_unicorn import UnicornVm

from .guest import (
    CODE,
    ENDLESS,
    GDT,
    HALT,
    IF,
    IST_STACK,
    KERNEL_CODE,
    KERNEL_DATA,
    KERNEL_STACK,
    RF,
    STACK,
    TSS,
    USER_CODE,
    USER_DATA,
    Machine,
)

MODES = ["real", "protected", "long"]
PROTECTED = ["protected", "long"]
UD, GP, PF, NP, DF, SS = 6, 13, 14, 11, 8, 12


@pytest.mark.parametrize("mode", MODES)
def test_an_external_interrupt_and_the_way_back(vm: UnicornVm, mode: str) -> None:
    machine = Machine(vm, mode, b"\xfb\x90\xf4\xe6\x10")  # sti; nop; hlt; out
    assert machine.run() == HltExit()
    assert machine.vcpu.ready_for_interrupt()
    machine.vcpu.interrupt(0x41)
    assert machine.handler() == 0x41
    frame = machine.stack(3)
    assert frame[0] == CODE + 3
    assert frame[1] == (0 if mode == "real" else KERNEL_CODE)
    assert frame[2] & IF
    assert not machine.vcpu.get_regs().rflags & IF
    assert not machine.vcpu.ready_for_interrupt()
    assert machine.port().port == 0x10
    regs = machine.vcpu.get_regs()
    assert (regs.rsp, bool(regs.rflags & IF)) == (STACK, True)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("code", "vector", "back"),
    [
        pytest.param(b"\x0f\x0b", UD, 0, id="ud2"),
        pytest.param(b"\x31\xc9\xf7\xf1", 0, 2, id="div"),
        pytest.param(b"\xcc", 3, 1, id="int3"),
        pytest.param(b"\xcd\x40", 0x40, 2, id="int 0x40"),
        pytest.param(b"\x66\xcd\x40", 0x40, 3, id="int 0x40 with a prefix"),
    ],
)
def test_events_without_an_error_code(vm: UnicornVm, mode: str, code: bytes, vector: int, back: int) -> None:
    machine = Machine(vm, mode, code)
    assert machine.handler() == vector
    rip, _, rflags = machine.stack(3)
    assert rip == CODE + back
    if mode != "real":
        assert bool(rflags & RF) == (vector in (0, UD))


@pytest.mark.parametrize("mode", PROTECTED)
@pytest.mark.parametrize(
    ("code", "vector", "error_code", "back"),
    [
        pytest.param(b"\xb8\x38\x12\0\0\x8e\xd8", GP, 0x1238, 5, id="selector beyond the GDT"),
        pytest.param(b"\xb9\xff\xff\0\0\x0f\x32", GP, 0, 5, id="unknown MSR"),
        pytest.param(b"\xcd\x50", NP, 0x50 * 8 + 2, 0, id="gate not present"),
        pytest.param(b"\xcd\x51", GP, 0x51 * 8 + 2, 0, id="no gate"),
    ],
)
def test_error_codes(vm: UnicornVm, mode: str, code: bytes, vector: int, error_code: int, back: int) -> None:
    machine = Machine(vm, mode, code)
    machine.gate(0x50, present=False)
    machine.gate(0x51, 2)
    assert machine.handler() == vector
    assert machine.stack(3)[:3] == [error_code, CODE + back, KERNEL_CODE]


def test_page_fault(vm: UnicornVm) -> None:
    machine = Machine(vm, "long", b"\x88\x04\x25\x00\x00\x00\x40")  # mov %al, 0x40000000
    assert machine.handler() == PF
    assert machine.stack(2) == [2, CODE]
    assert machine.vcpu.get_sregs().cr2 == 0x40000000


def test_faults_in_a_row_are_delivered_each(vm: UnicornVm) -> None:
    machine = Machine(vm, "long", b"\xb8\x38\x12\0\0\x8e\xd8")
    for _ in range(3):
        assert machine.handler() == GP
        machine.drop()


@pytest.mark.parametrize("mode", PROTECTED)
def test_double_fault(vm: UnicornVm, mode: str) -> None:
    machine = Machine(vm, mode, b"\xb8\x38\x12\0\0\x8e\xd8")
    machine.gate(GP, present=False)
    assert machine.handler() == DF
    assert machine.stack(2) == [0, CODE + 5]


@pytest.mark.parametrize("mode", PROTECTED)
def test_contributory_after_benign_is_delivered_instead(vm: UnicornVm, mode: str) -> None:
    machine = Machine(vm, mode, b"\x0f\x0b")
    machine.gate(UD, present=False)
    assert machine.handler() == NP
    assert machine.stack(2) == [UD * 8 + 2 + 1, CODE]


@pytest.mark.parametrize("mode", MODES)
def test_triple_fault(vm: UnicornVm, mode: str) -> None:
    machine = Machine(vm, mode, b"\x0f\x0b")
    machine.idt_limit(0)
    assert machine.run() == ShutdownExit()


@pytest.mark.parametrize("mode", PROTECTED)
def test_interrupt_of_the_user_switches_stacks(vm: UnicornVm, mode: str) -> None:
    machine = Machine(vm, mode, ENDLESS, user=True)
    machine.flags(IF | 2)
    assert machine.vcpu.ready_for_interrupt()
    machine.vcpu.interrupt(0x42)
    assert machine.handler() == 0x42
    assert machine.stack(5) == [CODE, USER_CODE, IF | 2, STACK, USER_DATA]
    assert machine.vcpu.get_regs().rsp == KERNEL_STACK - 5 * machine.width
    sregs = machine.vcpu.get_sregs()
    assert (sregs.cs.selector, sregs.cs.dpl) == (KERNEL_CODE, 0)
    assert sregs.ss.selector == (KERNEL_DATA if mode == "protected" else 0)
    machine.memory[CODE : CODE + 2] = b"\xcd\x43"  # int 0x43, after the return
    assert machine.handler() == 0x43
    assert machine.stack(5) == [CODE + 2, USER_CODE, IF | 2, STACK, USER_DATA]


@pytest.mark.parametrize("mode", PROTECTED)
@pytest.mark.parametrize(
    ("code", "error_code"),
    [
        pytest.param(b"\xcd\x40", 0x40 * 8 + 2, id="int"),
        pytest.param(b"\xfa", 0, id="cli"),
        pytest.param(b"\xf4", 0, id="hlt"),
        pytest.param(b"\xe6\x10", 0, id="out"),
        pytest.param(b"\xe4\x10", 0, id="in"),
        pytest.param(b"\x0f\x32", 0, id="rdmsr"),
    ],
)
def test_what_the_user_must_not(vm: UnicornVm, mode: str, code: bytes, error_code: int) -> None:
    machine = Machine(vm, mode, code, user=True)
    machine.gate(0x40, dpl=0)
    assert machine.handler() == GP
    assert machine.stack(3) == [error_code, CODE, USER_CODE]
    assert machine.vcpu.get_regs().rax == 0


@pytest.mark.parametrize("mode", PROTECTED)
@pytest.mark.parametrize(("port", "allowed"), [(0x10, True), (0x11, False)])
def test_io_permission_map(vm: UnicornVm, mode: str, port: int, allowed: bool) -> None:
    machine = Machine(vm, mode, bytes((0xE6, port)), user=True)
    machine.memory[TSS + 104 + 2] = 0xFE
    if allowed:
        assert machine.port().port == port
    else:
        assert machine.handler() == GP


def test_ist(vm: UnicornVm) -> None:
    machine = Machine(vm, "long", b"\x0f\x0b")
    machine.gate(UD, ist=1)
    assert machine.handler() == UD
    assert machine.vcpu.get_regs().rsp == IST_STACK - 40
    assert machine.stack(5)[3:] == [STACK, KERNEL_DATA]


def test_long_mode_aligns_the_stack(vm: UnicornVm) -> None:
    machine = Machine(vm, "long", b"\x6a\x01\x0f\x0b")  # push $1; ud2
    assert machine.handler() == UD
    assert machine.vcpu.get_regs().rsp == STACK - 16 - 40


@pytest.mark.parametrize("mode", PROTECTED)
def test_trap_gate_leaves_interrupts_on(vm: UnicornVm, mode: str) -> None:
    machine = Machine(vm, mode, b"\xfb\xcd\x40")
    machine.gate(0x40, 15)
    assert machine.handler() == 0x40
    assert machine.vcpu.get_regs().rflags & IF


def test_stack_without_room_is_a_stack_fault_on_the_inner_stack(vm: UnicornVm) -> None:
    machine = Machine(vm, "protected", b"\x0f\x0b", user=True)
    machine.gate(UD)
    struct.pack_into("<HHBBBB", machine.memory, GDT + 0x30, 0x10, 0, 0, 0x93, 0x40, 0)  # a limit of 16 bytes
    struct.pack_into("<II", machine.memory, TSS + 4, KERNEL_STACK, 0x30)
    assert machine.run() == ShutdownExit()


def test_task_gates_are_not_emulated(vm: UnicornVm) -> None:
    machine = Machine(vm, "protected", b"\x0f\x0b")
    machine.gate(UD, 5)
    assert machine.run() == InternalErrorExit(1, (CODE,))


def test_virtual_8086_mode(vm: UnicornVm) -> None:
    machine = Machine(vm, "protected", ENDLESS)
    sregs = machine.vcpu.get_sregs()
    for name in ("cs", "ds", "es", "fs", "gs", "ss"):
        setattr(sregs, name, Segment(0x100 * 16, 0xFFFF, 0x100, 3, 1, 3))
    machine.vcpu.set_sregs(sregs)
    regs = machine.vcpu.get_regs()
    regs.rip, regs.rflags, regs.rsp = 0, IF | 1 << 17 | 2, 0x500
    machine.vcpu.set_regs(regs)
    machine.vcpu.interrupt(0x44)
    assert machine.handler() == 0x44
    assert machine.stack(9) == [0, 0x100, IF | 1 << 17 | 2, 0x500, 0x100, 0x100, 0x100, 0x100, 0x100]
    assert machine.vcpu.get_sregs().ds.selector == 0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("code", "at"),
    [
        pytest.param(b"\xe6\x10\xfb\x90\x90\x90", 4, id="sti shadows one instruction"),
        pytest.param(b"\xe6\x10\x9c\x58\x80\xcc\x02\x50\x9d\x90\x90", 9, id="popf shadows none"),
        pytest.param(b"\xe6\x10\xfb\xfa\x90\xfb\x90\x90", 7, id="cli in the shadow of sti"),
    ],
)
def test_window_opens_where_the_shadow_ends(vm: UnicornVm, mode: str, code: bytes, at: int) -> None:
    machine = Machine(vm, mode, code + HALT)
    assert machine.port().port == 0x10
    with pytest.raises(HypervisorError, match="window"):
        machine.vcpu.interrupt(0x20)
    machine.vcpu.set_interrupt_window_requested(True)
    assert machine.run() == IrqWindowExit()
    assert machine.vcpu.get_regs().rip == CODE + at
    assert machine.run() == IrqWindowExit()  # as long as it is requested
    machine.vcpu.interrupt(0x20)
    machine.vcpu.set_interrupt_window_requested(False)
    assert machine.handler() == 0x20
    assert machine.stack(1) == [CODE + at]


def test_mov_ss_shadows_one_instruction(vm: UnicornVm) -> None:
    machine = Machine(vm, "real", b"\x8e\xd0\x90\x90" + HALT)
    machine.flags(IF | 2)
    machine.vcpu.set_interrupt_window_requested(True)
    assert machine.run() == IrqWindowExit()
    assert machine.vcpu.get_regs().rip == CODE
    machine.vcpu.set_interrupt_window_requested(False)
    machine.vcpu.inject_nmi()
    assert machine.handler() == 2


@pytest.mark.parametrize("mode", MODES)
def test_nmis_one_at_a_time(vm: UnicornVm, mode: str) -> None:
    machine = Machine(vm, mode, b"\x90\x90" + HALT)
    for _ in range(5):
        machine.vcpu.inject_nmi()
    assert machine.handler() == 2
    assert machine.stack(1) == [CODE]
    assert machine.handler() == 2  # after the IRET, one more and no others
    assert machine.stack(1) == [CODE]
    assert machine.run() == HltExit()
    assert machine.vcpu.get_regs().rip == CODE + 3


@pytest.mark.parametrize("mode", MODES)
def test_nmi_wakes_from_hlt_with_interrupts_off(vm: UnicornVm, mode: str) -> None:
    machine = Machine(vm, mode, HALT)
    assert machine.run() == HltExit()
    machine.vcpu.inject_nmi()
    assert machine.handler() == 2
    assert machine.stack(1) == [CODE + 1]


@pytest.mark.parametrize("vector", [-1, 256])
def test_vector_out_of_range(vm: UnicornVm, vector: int) -> None:
    with pytest.raises(InvalidArgument):
        Machine(vm, "real", HALT).vcpu.interrupt(vector)


@pytest.mark.parametrize("mode", MODES)
def test_single_step(vm: UnicornVm, mode: str) -> None:
    machine = Machine(vm, mode, b"\x90\x90" + HALT)
    machine.flags(1 << 8 | 2)
    for number in (1, 2, 3)[:2]:
        assert machine.handler() == 1
        assert machine.stack(1) == [CODE + number]


def test_injected_interrupt_shows_in_sregs(vm: UnicornVm) -> None:
    machine = Machine(vm, "real", ENDLESS)
    machine.flags(IF | 2)
    machine.vcpu.interrupt(0x77)
    assert machine.vcpu.get_sregs().interrupt_bitmap == 1 << 0x77
    assert not machine.vcpu.ready_for_interrupt()
    assert machine.handler() == 0x77
    assert machine.vcpu.get_sregs().interrupt_bitmap == 0


@pytest.mark.parametrize("mode", MODES)
def test_an_interrupt_that_was_injected_before_an_nmi_does_not_interrupt_its_handler(vm: UnicornVm, mode: str) -> None:
    machine = Machine(vm, mode, b"\xfb\x90\xf4\xe6\x10")  # sti; nop; hlt; out
    assert machine.run() == HltExit()
    machine.vcpu.interrupt(0x41)
    machine.vcpu.inject_nmi()
    assert machine.handler() == 2
    assert not machine.stack(3)[2] & IF  # it came in the handler of the interrupt, which is next
    assert machine.handler() == 0x41
    assert machine.stack(3)[2] & IF
    assert machine.port().port == 0x10
