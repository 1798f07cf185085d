"""What `run` returns, for every exit a guest can be made to cause, and decoders for those it cannot."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from attrs import evolve

from irqchip_core.errors import HypervisorError, InvalidArgument, Unsupported
from irqchip_core.eventfd import Event
from irqchip_core.hypervisor.exits import (
    Exit,
    FailEntryExit,
    HltExit,
    InternalErrorExit,
    InterruptedExit,
    IoapicEoiExit,
    IoExit,
    IrqWindowExit,
    MmioExit,
    MsrExit,
    SetTprExit,
    ShutdownExit,
    SystemEventExit,
)
from irqchip_core.routes import IrqRoute
from irqchip_kvm import KvmVcpu, KvmVm, MsrRange
from irqchip_kvm.abi import Cap
from irqchip_kvm.exits import DECODERS

from .guest import CODE, ENDLESS, HALT, long_mode, long_mode_taker, real_mode, run_until_exit, taken

pytestmark = pytest.mark.kvm

MSR = 0x4B564D99  # no MSR of anybody
# mov $MSR, %ecx; then rdmsr or wrmsr; then out %eax, $0x10
READ_MSR = b"\x66\xb9" + MSR.to_bytes(4, "little") + b"\x0f\x32" + b"\x66\xe7\x10"
WRITE_MSR = b"\x66\xb9" + MSR.to_bytes(4, "little") + b"\x66\xb8\x44\x33\x22\x11\x66\xba\x88\x77\x66\x55\x0f\x30" + HALT
OUT_IVT_13 = b"\xb0\x0d\xe6\x13\xf4"  # handler of #GP: mov $13, %al; out %al, $0x13; hlt


def expect_io(vcpu: KvmVcpu) -> IoExit:
    exit_ = run_until_exit(vcpu)
    assert isinstance(exit_, IoExit), exit_
    return exit_


def set_real_mode_handler(memory: memoryview, vector: int, code: bytes) -> None:
    address = 0x3000 + 0x10 * vector
    memory[address : address + len(code)] = code
    struct.pack_into("<HH", memory, 4 * vector, address, 0)


def test_out(vm: KvmVm) -> None:
    vcpu, _ = real_mode(vm, b"\xb8\x34\x12\xe7\x42" + HALT)  # mov $0x1234, %ax; out %ax, $0x42
    exit_ = expect_io(vcpu)
    assert (exit_.port, exit_.size, bytes(exit_.data), exit_.is_write) == (0x42, 2, b"\x34\x12", True)
    assert vcpu.run() == HltExit()


def test_in_takes_what_is_put_into_the_buffer(vm: KvmVm) -> None:
    vcpu, _ = real_mode(vm, b"\x66\xe5\x42\x66\xe7\x43")  # in $0x42, %eax; out %eax, $0x43
    exit_ = expect_io(vcpu)
    assert (exit_.port, exit_.size, exit_.is_write) == (0x42, 4, False)
    exit_.data[:] = b"\xef\xbe\xad\xde"
    assert bytes(expect_io(vcpu).data) == b"\xef\xbe\xad\xde"


@pytest.mark.parametrize(("opcode", "size"), [(b"\x6c", 1), (b"\x6d", 2)])
def test_rep_ins_asks_for_several_at_once(vm: KvmVm, opcode: bytes, size: int) -> None:
    # mov $0x2000, %di; mov $5, %cx; mov $0x1234, %dx; rep ins; hlt
    vcpu, memory = real_mode(vm, b"\xbf\x00\x20\xb9\x05\x00\xba\x34\x12\xf3" + opcode + HALT)
    answer = bytes(range(1, 5 * size + 1))
    given, counts = 0, []
    while not isinstance(exit_ := run_until_exit(vcpu), HltExit):
        assert isinstance(exit_, IoExit)
        assert (exit_.port, exit_.size, exit_.is_write) == (0x1234, size, False)
        exit_.data[:] = answer[given : given + len(exit_.data)]
        given += len(exit_.data)
        counts.append(len(exit_.data) // size)
    assert bytes(memory[0x2000 : 0x2000 + 5 * size]) == answer
    assert sum(counts) == 5
    assert max(counts) > 1


def test_rep_outs(vm: KvmVm) -> None:
    # mov $0x2000, %si; mov $3, %cx; mov $0x1234, %dx; rep outsw; hlt
    vcpu, memory = real_mode(vm, b"\xbe\x00\x20\xb9\x03\x00\xba\x34\x12\xf3\x6f" + HALT)
    memory[0x2000:0x2006] = b"abcdef"
    seen = b""
    while not isinstance(exit_ := run_until_exit(vcpu), HltExit):
        assert isinstance(exit_, IoExit)
        assert (exit_.port, exit_.size, exit_.is_write) == (0x1234, 2, True)
        seen += exit_.data
    assert seen == b"abcdef"


def test_mmio(vm: KvmVm) -> None:
    # mov $0x2000, %ax; mov %ax, %ds; mov 0x1234, %ax; inc %ax; mov %ax, 0x1238; hlt
    vcpu, _ = real_mode(vm, b"\xb8\x00\x20\x8e\xd8\xa1\x34\x12\x40\xa3\x38\x12" + HALT)
    read = run_until_exit(vcpu)
    assert isinstance(read, MmioExit)
    assert (read.address, len(read.data), read.is_write) == (0x21234, 2, False)
    read.data[:] = b"\x41\x42"
    write = run_until_exit(vcpu)
    assert isinstance(write, MmioExit)
    assert (write.address, bytes(write.data), write.is_write) == (0x21238, b"\x42\x42", True)
    assert vcpu.run() == HltExit()


def test_hlt_without_a_chip(vm: KvmVm) -> None:
    vcpu, _ = real_mode(vm, HALT)
    assert vcpu.run() == HltExit()
    assert vcpu.get_regs().rip == CODE + 1


def test_triple_fault(vm: KvmVm) -> None:
    vcpu = long_mode(vm, b"\x0f\x0b")  # ud2
    sregs = vcpu.get_sregs()
    sregs.idt.limit = 0
    vcpu.set_sregs(sregs)
    assert run_until_exit(vcpu) == ShutdownExit()


def test_executing_where_nothing_is_mapped(vm: KvmVm) -> None:
    vcpu, _ = real_mode(vm, b"\xea\x00\x00\x00\x20")  # ljmp $0x2000, $0
    exit_ = run_until_exit(vcpu)
    assert isinstance(exit_, InternalErrorExit)
    assert exit_.suberror == 1
    assert all(0 <= word < 1 << 64 for word in exit_.data)


def test_msr_read(vm: KvmVm) -> None:
    vm.enable_user_space_msr()
    vcpu, _ = real_mode(vm, READ_MSR)
    exit_ = run_until_exit(vcpu)
    assert isinstance(exit_, MsrExit)
    assert (exit_.index, exit_.value, exit_.is_write) == (MSR, 0, False)
    vcpu.complete_msr(0x1122334455667788)
    assert bytes(expect_io(vcpu).data) == b"\x88\x77\x66\x55"
    assert vcpu.get_regs().rdx == 0x11223344


def test_msr_write(vm: KvmVm) -> None:
    vm.enable_user_space_msr()
    vcpu, _ = real_mode(vm, WRITE_MSR)
    exit_ = run_until_exit(vcpu)
    assert isinstance(exit_, MsrExit)
    assert (exit_.index, exit_.value, exit_.is_write) == (MSR, 0x5566778811223344, True)
    vcpu.complete_msr()
    assert run_until_exit(vcpu) == HltExit()


@pytest.mark.parametrize("code", [READ_MSR, WRITE_MSR], ids=["read", "write"])
@pytest.mark.parametrize("answered", [False, True])
def test_msr_fault(vm: KvmVm, code: bytes, answered: bool) -> None:
    vm.enable_user_space_msr()
    vcpu, memory = real_mode(vm, code)
    set_real_mode_handler(memory, 13, OUT_IVT_13)
    assert isinstance(run_until_exit(vcpu), MsrExit)
    if answered:
        vcpu.complete_msr(1, fault=True)
    assert expect_io(vcpu).port == 0x13


def test_msr_filter_takes_what_the_kernel_would_answer(vm: KvmVm) -> None:
    vm.enable_user_space_msr()
    vm.set_msr_filter([MsrRange(0x100, 3), MsrRange(0x6E0, write=False)])
    code = b"\x66\xb9\xe0\x06\x00\x00\x0f\x32\x66\xe7\x10" + HALT  # mov $0x6e0, %ecx; rdmsr; out %eax, $0x10
    vcpu, _ = real_mode(vm, code)
    exit_ = run_until_exit(vcpu)
    assert isinstance(exit_, MsrExit)
    assert exit_.index == 0x6E0
    vcpu.complete_msr(5)
    assert bytes(expect_io(vcpu).data) == b"\x05\x00\x00\x00"


def test_msr_filter_undone(vm: KvmVm) -> None:
    vm.enable_user_space_msr()
    vm.set_msr_filter([MsrRange(0x277)])
    vm.set_msr_filter([])
    vcpu, _ = real_mode(vm, b"\x66\xb9\x77\x02\x00\x00\x0f\x32\x66\xe7\x10")  # rdmsr of IA32_PAT; out
    assert expect_io(vcpu).port == 0x10


@pytest.mark.parametrize(
    "ranges",
    [
        [MsrRange(0x6E0, 0)],
        [MsrRange(0, 12289)],
        [MsrRange(1, read=False, write=False)],
        [MsrRange(n) for n in range(17)],
        [MsrRange(-1)],
    ],
)
def test_msr_filter_refused(vm: KvmVm, ranges: list[MsrRange]) -> None:
    with pytest.raises(InvalidArgument):
        vm.set_msr_filter(ranges)


def test_complete_msr_without_one(vm: KvmVm) -> None:
    vcpu, _ = real_mode(vm, HALT)
    assert vcpu.run() == HltExit()
    with pytest.raises(InvalidArgument, match="no MSR access"):
        vcpu.complete_msr(0)


# mov $0x1b, %ecx; mov $VALUE, %eax; xor %edx, %edx; wrmsr; rdmsr; out %eax, $0x10
BASE = b"\x66\xb9\x1b\x00\x00\x00\x66\xb8%b\x66\x31\xd2\x0f\x30\x0f\x32\x66\xe7\x10"


def test_perform_msr_is_what_happens_without_the_exit(vm: KvmVm) -> None:
    vm.exit_on_msrs([range(0x1B, 0x1C)])
    vcpu, _ = real_mode(vm, BASE % (0xFED00900).to_bytes(4, "little"))
    for is_write in (True, False):
        exit_ = run_until_exit(vcpu)
        assert isinstance(exit_, MsrExit)
        assert (exit_.index, exit_.is_write) == (0x1B, is_write)
        assert vcpu.perform_msr(exit_)
    assert bytes(expect_io(vcpu).data) == b"\x00\x09\xd0\xfe"
    assert vcpu.apic_base == 0xFED00900
    with pytest.raises(InvalidArgument, match="no MSR access"):
        vcpu.perform_msr(MsrExit(0x1B, 0, is_write=False))


def test_perform_msr_leaves_what_it_refuses_to_a_fault(vm: KvmVm) -> None:
    vm.exit_on_msrs([range(0x1B, 0x1C)])
    vcpu, memory = real_mode(vm, BASE % (0xFEE00901).to_bytes(4, "little"))
    set_real_mode_handler(memory, 13, OUT_IVT_13)
    exit_ = run_until_exit(vcpu)
    assert isinstance(exit_, MsrExit)
    assert not vcpu.perform_msr(exit_)
    assert expect_io(vcpu).port == 0x13
    assert vcpu.apic_base == 0xFEE00900


@pytest.mark.parametrize("index", [0x10, 0x3B])
def test_the_tsc_is_not_let_go_of_by_a_kernel_that_cannot_set_it_exactly(
    vm: KvmVm, index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_extension = vm.check_extension
    monkeypatch.setattr(vm, "check_extension", lambda cap: cap != Cap.VCPU_ATTRIBUTES and check_extension(cap))
    vm.exit_on_msrs([range(0x1B, 0x1C)])
    with pytest.raises(Unsupported, match="VCPU_ATTRIBUTES"):
        vm.exit_on_msrs([range(index, index + 1)])


def test_window_and_injection(vm: KvmVm) -> None:
    vcpu, memory = real_mode(vm, b"\xe6\x11\xfb\x90" + ENDLESS)  # out %al, $0x11; sti; nop; jmp .
    set_real_mode_handler(memory, 0x21, b"\xe6\x12\xcf")  # out %al, $0x12; iret
    assert expect_io(vcpu).port == 0x11
    assert not vcpu.ready_for_interrupt()
    with pytest.raises(HypervisorError, match="window") as caught:
        vcpu.interrupt(0x21)
    assert caught.value.call == "KVM_INTERRUPT"
    vcpu.set_interrupt_window_requested(True)
    assert run_until_exit(vcpu) == IrqWindowExit()
    vcpu.set_interrupt_window_requested(False)
    assert vcpu.ready_for_interrupt()
    vcpu.interrupt(0x21)
    assert expect_io(vcpu).port == 0x12


def until_ready(vcpu: KvmVcpu) -> KvmVcpu:
    """Run the guest until an interrupt can be injected."""
    vcpu.set_interrupt_window_requested(True)
    assert run_until_exit(vcpu) == IrqWindowExit()
    vcpu.set_interrupt_window_requested(False)
    assert vcpu.ready_for_interrupt()
    return vcpu


def split_taker(vm: KvmVm) -> KvmVcpu:
    """The guest with a PIC in user space connected to LINT0, ready for its interrupt."""
    vm.enable_split_irqchip()
    vcpu = long_mode_taker(vm)
    lapic = vcpu.get_lapic_state()
    lapic.regs[0x35] = 0x700  # LVT LINT0: ExtINT
    vcpu.set_lapic_state(lapic)
    return until_ready(vcpu)


@pytest.mark.parametrize("split", [True, False])
def test_one_injection_at_a_time(vm: KvmVm, split: bool) -> None:
    """Without a chip in the kernel a second one would replace the first."""
    vcpu = split_taker(vm) if split else until_ready(real_mode(vm, b"\xfb" + ENDLESS)[0])  # sti; jmp .
    vcpu.interrupt(0x61)
    assert not vcpu.ready_for_interrupt()
    with pytest.raises(HypervisorError, match="try at the next exit"):
        vcpu.interrupt(0x62)
    if split:
        assert taken(vcpu) == 0x61


def test_a_queued_interrupt_is_told_until_the_guest_takes_it(vm: KvmVm) -> None:
    vcpu = split_taker(vm)
    assert vcpu.queued_interrupt() is None
    vcpu.interrupt(0x61)
    assert vcpu.queued_interrupt() == 0x61
    vcpu.kick()
    assert vcpu.run() == InterruptedExit()  # before it has executed anything
    assert vcpu.get_sregs().interrupt_bitmap == 0
    assert vcpu.queued_interrupt() == 0x61
    vcpu.set_regs(evolve(vcpu.get_regs(), rflags=2))
    vcpu.kick()
    assert vcpu.run() == InterruptedExit()
    assert vcpu.queued_interrupt() == 0x61  # IF does not tell
    assert not vcpu.ready_for_interrupt()
    vcpu.set_regs(evolve(vcpu.get_regs(), rflags=2 | 1 << 9))
    assert taken(vcpu) == 0x61  # its handler runs with IF clear
    assert vcpu.queued_interrupt() == 0x61  # for all that can be found out during an access
    vcpu.kick()
    assert vcpu.complete_io() == InterruptedExit()
    before = vcpu.get_regs(), vcpu.get_vcpu_events()
    assert vcpu.queued_interrupt() is None
    assert (vcpu.get_regs(), vcpu.get_vcpu_events()) == before
    assert not vcpu.ready_for_interrupt()
    assert vcpu.run() == InterruptedExit()  # the kick is still there


def test_readiness_is_known_from_one_run_until_the_host_sets_state(vm: KvmVm) -> None:
    vm.enable_split_irqchip()
    vcpu = long_mode(vm, HALT)
    assert not vcpu.readiness_known
    vcpu.kick()
    vcpu.run()
    assert vcpu.readiness_known
    setters: list[Callable[[], None]] = [
        lambda: vcpu.set_regs(vcpu.get_regs()),
        lambda: vcpu.set_sregs(vcpu.get_sregs()),
        lambda: vcpu.set_lapic_state(vcpu.get_lapic_state()),
        lambda: vcpu.set_mp_state(vcpu.get_mp_state()),
        lambda: vcpu.set_vcpu_events(vcpu.get_vcpu_events()),
    ]
    for setter in setters:
        setter()
        assert not vcpu.readiness_known
        vcpu.kick()
        vcpu.run()
        assert vcpu.readiness_known


@pytest.mark.parametrize("vector", [-1, 256])
def test_vector_out_of_range(vm: KvmVm, vector: int) -> None:
    vcpu, _ = real_mode(vm, HALT)
    with pytest.raises(InvalidArgument):
        vcpu.interrupt(vector)


def test_nmi(vm: KvmVm) -> None:
    vcpu, memory = real_mode(vm, ENDLESS)
    set_real_mode_handler(memory, 2, b"\xe6\x12\xcf")
    vcpu.inject_nmi()
    assert expect_io(vcpu).port == 0x12


def test_cr8_and_apic_base_of_the_run_area(vm: KvmVm) -> None:
    vcpu, _ = real_mode(vm, HALT)
    vcpu.cr8 = 9
    assert vcpu.run() == HltExit()
    assert vcpu.cr8 == 9
    assert vcpu.get_sregs().cr8 == 9
    assert vcpu.apic_base == vcpu.get_sregs().apic_base
    with pytest.raises(InvalidArgument):
        vcpu.cr8 = 16


def test_cr8_of_the_guest_shows_in_the_run_area(vm: KvmVm) -> None:
    # mov $5, %eax; mov %rax, %cr8; mov $2, %eax; mov %rax, %cr8; hlt
    vcpu = long_mode(vm, b"\xb8\x05\0\0\0\x44\x0f\x22\xc0\xb8\x02\0\0\0\x44\x0f\x22\xc0" + HALT)
    exit_ = run_until_exit(vcpu)
    if exit_ == SetTprExit():  # real hardware reports that it was lowered; a KVM that interprets does not
        exit_ = run_until_exit(vcpu)
    assert exit_ == HltExit()
    assert vcpu.cr8 == 2


def test_eoi_of_a_level_msi_in_split_mode(vm: KvmVm) -> None:
    vm.enable_split_irqchip(24)
    vm.set_gsi_routing([IrqRoute.msi(5, 0xFEE00000, 0xC000 | 0x51)])  # level, asserted, vector 0x51
    vcpu = long_mode_taker(vm)
    with Event() as trigger:
        vm.assign_irqfd(5, trigger)
        trigger.signal()
        assert taken(vcpu) == 0x51
        assert run_until_exit(vcpu) == IoapicEoiExit(0x51)


@pytest.mark.parametrize(
    ("reason", "union", "exit_"),
    [
        (9, struct.pack("<QI", 0x80000021, 3), FailEntryExit(0x80000021)),
        (10, b"", InterruptedExit()),
        (11, b"", SetTprExit()),
        (17, struct.pack("<IIQQQ", 3, 2, 7, 8, 9), InternalErrorExit(3, (7, 8))),
        (24, struct.pack("<II", 2, 0), SystemEventExit(2)),
        (26, b"\x33", IoapicEoiExit(0x33)),
    ],
)
def test_decoders_of_rare_exits(reason: int, union: bytes, exit_: Exit) -> None:
    run = bytearray(4096)
    run[32 : 32 + len(union)] = union
    assert DECODERS[reason](memoryview(run)) == exit_
