"""State of processors and controllers: what is set is what is read, and what cannot be is refused."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from irqchip_core.chip import MPState
from irqchip_core.errors import HypervisorError, InvalidArgument, Unsupported, WrongType
from irqchip_core.hypervisor.exits import HltExit, InterruptedExit, IoapicEoiExit
from irqchip_core.hypervisor.registers import CpuidEntry, Regs
from irqchip_core.routes import IrqRoute
from irqchip_core.x86.state import PicInitState, PicSelect, PicState, PitRwMode
from irqchip_kvm import Cap, Kvm, KvmVm, abi
from irqchip_kvm.plugin import KvmHypervisor

from .guest import HALT, long_mode_taker, real_mode, run_until_exit, running, taken

pytestmark = pytest.mark.kvm

EFER, TSC, APIC_BASE, PAT = 0xC0000080, 0x10, 0x1B, 0x277


def test_regs(vm: KvmVm) -> None:
    vcpu = vm.create_vcpu(0)
    regs = Regs(*(0x0F0F0F0F0F0F0F0F * n for n in range(16)))
    regs.rip = 0x1234
    vcpu.set_regs(regs)
    assert vcpu.get_regs() == regs
    with pytest.raises(InvalidArgument, match="Regs"):
        vcpu.set_regs(Regs(rax=1 << 64))


def test_sregs(vm: KvmVm) -> None:
    vcpu = vm.create_vcpu(0)
    sregs = vcpu.get_sregs()
    sregs.ds.base, sregs.ds.selector, sregs.gdt.limit, sregs.cr2 = 0x12340, 0x1234, 0x77, 0xABCD
    sregs.interrupt_bitmap = 1 << 0x51
    vcpu.set_sregs(sregs)
    assert vcpu.get_sregs() == sregs
    sregs.interrupt_bitmap = 1 << 256
    with pytest.raises(InvalidArgument, match="interrupt_bitmap"):
        vcpu.set_sregs(sregs)
    sregs.interrupt_bitmap, sregs.cr4 = 0, 1 << 63
    with pytest.raises(InvalidArgument, match="CR4"):
        vcpu.set_sregs(sregs)


def test_cpuid_of_the_guest(vm: KvmVm) -> None:
    # mov $0x40000000, %eax; cpuid; hlt
    vcpu, _ = real_mode(vm, b"\x66\xb8\x00\x00\x00\x40\x0f\xa2" + HALT)
    vcpu.set_cpuid([CpuidEntry(0x40000000, eax=1, ebx=2, ecx=3, edx=4)])
    assert vcpu.run() == HltExit()
    regs = vcpu.get_regs()
    assert (regs.rax, regs.rbx, regs.rcx, regs.rdx) == (1, 2, 3, 4)
    with pytest.raises(InvalidArgument, match="256 is the most"):
        vcpu.set_cpuid([CpuidEntry(n) for n in range(257)])


def test_supported_cpuid(vm: KvmVm) -> None:
    entries = vm.supported_cpuid()
    assert any(entry.function == 1 and entry.edx & 1 << 9 for entry in entries)  # there is a local APIC
    assert any(entry.significant_index for entry in entries)
    entries[0].eax ^= 1
    assert vm.supported_cpuid()[0] != entries[0]


def test_msrs(vm: KvmVm) -> None:
    vcpu = vm.create_vcpu(0)
    vcpu.set_msrs({PAT: 0x0007040600070406, 0x174: 8})
    assert vcpu.get_msrs([PAT, 0x174]) == {PAT: 0x0007040600070406, 0x174: 8}
    assert vcpu.get_msrs([APIC_BASE])[APIC_BASE] == vcpu.get_sregs().apic_base
    assert vcpu.get_msrs([]) == {}
    assert len(vcpu.get_msrs([TSC] * 600)) == 1


def test_a_refused_msr_is_named(vm: KvmVm) -> None:
    vcpu = vm.create_vcpu(0)
    with pytest.raises(HypervisorError, match="0x4b564d99") as caught:
        vcpu.get_msrs([TSC, 0x4B564D99, PAT])
    assert caught.value.call == "KVM_GET_MSRS"
    with pytest.raises(HypervisorError, match="0xc0000080"):
        vcpu.set_msrs({PAT: 6, EFER: 1 << 63})
    assert vcpu.get_msrs([PAT]) == {PAT: 6}


def test_vcpu_events(vm: KvmVm) -> None:
    vcpu = vm.create_vcpu(0)
    vcpu.inject_nmi()
    events = vcpu.get_vcpu_events()
    assert events.nmi_pending == 1
    events.nmi_pending, events.nmi_masked = 0, 1
    vcpu.set_vcpu_events(events)
    assert vcpu.get_vcpu_events() == events


def test_lapic_state(vm: KvmVm) -> None:
    vm.enable_split_irqchip()
    vcpu = vm.create_vcpu(0)
    state = vcpu.get_lapic_state()
    state.regs[0xF] = 0x1FF
    state.regs[0x8] = 0x30
    state.regs[0x35] = 0x700
    vcpu.set_lapic_state(state)
    after = vcpu.get_lapic_state()
    assert (after.regs[0xF], after.regs[0x8], after.regs[0x35]) == (0x1FF, 0x30, 0x700)
    vcpu.set_lapic_state(after)
    assert vcpu.get_lapic_state() == after


def test_lapic_state_without_a_lapic(vm: KvmVm) -> None:
    vcpu = vm.create_vcpu(0)
    with pytest.raises(HypervisorError, match="no local APIC"):
        vcpu.get_lapic_state()


def test_32_bit_apic_ids(vm: KvmVm) -> None:
    vm.enable_split_irqchip()
    vm.enable_x2apic_api()
    vcpu = vm.create_vcpu(3)
    vcpu.set_cpuid(vm.supported_cpuid())
    sregs = vcpu.get_sregs()
    sregs.apic_base = 0xFEE00C00  # enabled, x2APIC mode
    vcpu.set_sregs(sregs)
    assert vcpu.get_lapic_state().regs[2] == 3


@pytest.mark.parametrize("suppressed", [False, True])
def test_eoi_exits_end_where_the_guest_suppresses_the_broadcast(vm: KvmVm, suppressed: bool) -> None:
    vm.enable_split_irqchip()
    if suppressed and not vm.check_extension(Cap.X2APIC_API) & abi.X2APIC_ENABLE_SUPPRESS_EOI_BROADCAST:
        pytest.skip("this kernel reports the EOI all the same (before Linux 6.19)")
    vm.enable_x2apic_api()
    level = 0x4A | 1 << 15 | 1 << 14
    vm.set_gsi_routing([IrqRoute.msi(10, 0xFEE00000, level)])
    vcpu = long_mode_taker(vm)
    lapic = vcpu.get_lapic_state()
    lapic.regs[0xF] |= suppressed << 12  # spurious-interrupt vector register (Intel SDM vol. 3, 12.9)
    vcpu.set_lapic_state(lapic)
    assert vm.signal_msi(0xFEE00000, level)
    assert taken(vcpu) == 0x4A
    if not suppressed:
        assert run_until_exit(vcpu) == IoapicEoiExit(0x4A)
    assert vm.signal_msi(0xFEE00000, 0x50)
    assert taken(vcpu) == 0x50


def test_pics(vm: KvmVm) -> None:
    vm.create_irqchip()
    for select in PicSelect:
        state = vm.get_pic_state(select)
        assert state.elcr_mask == (0xF8, 0xDE)[select]
        state.imr, state.irq_base, state.auto_eoi, state.init_state = 0xA5, 0x30 + 8 * select, True, PicInitState.ICW2
        vm.set_pic_state(select, state)
        assert vm.get_pic_state(select) == state
    assert vm.get_pic_state(PicSelect.PRIMARY).irq_base == 0x30


@pytest.mark.parametrize("select", [-1, 2, 7, True])
def test_there_are_two_pics(vm: KvmVm, select: Any) -> None:
    vm.create_irqchip()
    for call in (lambda: vm.get_pic_state(select), lambda: vm.set_pic_state(select, PicState())):
        with pytest.raises((InvalidArgument, WrongType), match="KVM VM: select: ") as caught:
            call()
        assert caught.value.remedy


def test_ioapic(vm: KvmVm) -> None:
    vm.create_irqchip()
    state = vm.get_ioapic_state()
    assert state.redirect_table == [0x10000] * 24
    state.redirect_table = [0x10000 | 0x30 + pin for pin in range(24)]
    state.ioapicid, state.ioregsel = 5 << 24, 0x10
    vm.set_ioapic_state(state)
    assert vm.get_ioapic_state() == state


def test_pit(vm: KvmVm) -> None:
    vm.create_irqchip()
    vm.create_pit2()
    state = vm.get_pit()
    assert [channel.mode for channel in state.channels] == [0xFF] * 3
    channel = state.channels[2]
    channel.count, channel.mode, channel.rw_mode = 1234, 3, PitRwMode.BOTH
    vm.set_pit(state)
    after = vm.get_pit()
    assert (after.channels[2].count, after.channels[2].mode, after.channels[2].rw_mode) == (1234, 3, PitRwMode.BOTH)
    vm.set_pit(after)
    assert [channel.count for channel in vm.get_pit().channels] == [channel.count for channel in after.channels]


def test_mp_state_with_a_chip(vm: KvmVm) -> None:
    vm.create_irqchip()
    first, second = vm.create_vcpu(0), vm.create_vcpu(1)
    assert first.get_mp_state() is MPState.RUNNABLE
    assert second.get_mp_state() is MPState.UNINITIALIZED
    for state in (MPState.HALTED, MPState.INIT_RECEIVED, MPState.UNINITIALIZED, MPState.RUNNABLE):
        second.set_mp_state(state)
        assert second.get_mp_state() is state
    with pytest.raises(InvalidArgument, match="this state"):
        second.set_mp_state(MPState.STOPPED)


def test_mp_state_without_a_chip(vm: KvmVm) -> None:
    vcpu = vm.create_vcpu(0)
    assert vcpu.get_mp_state() is MPState.RUNNABLE
    with pytest.raises(InvalidArgument, match="this state"):
        vcpu.set_mp_state(MPState.HALTED)


def test_mp_state_that_is_none(vm: KvmVm) -> None:
    vm.create_irqchip()
    vcpu: Any = vm.create_vcpu(0)
    for number in (-1, 1 << 32):
        with pytest.raises(InvalidArgument, match="state"):
            vcpu.set_mp_state(number)
    for other in ("x", True, None):
        with pytest.raises(WrongType, match="KVM vCPU 0: state: "):
            vcpu.set_mp_state(other)
    assert vcpu.get_mp_state() is MPState.RUNNABLE


def test_a_vcpu_that_waits_for_its_start_up_ipi_can_be_kicked(vm: KvmVm) -> None:
    vm.create_irqchip()
    vm.create_vcpu(0)
    second = vm.create_vcpu(1)
    with running(second) as runner:
        seen = runner.interrupted
        second.kick()
        assert runner.wait_for_more_than(seen)
    assert second.get_mp_state() is MPState.UNINITIALIZED


def test_a_start_up_ipi_starts_a_vcpu(vm: KvmVm) -> None:
    """By MSI: INIT, then start-up with vector 0x01, which is page 0x1000."""
    vm.create_irqchip()
    first = vm.create_vcpu(0)
    second, memory = real_mode(vm, b"\xe6\x10", vcpu_id=1)
    assert first.get_mp_state() is MPState.RUNNABLE
    second.set_lapic_state(second.get_lapic_state())  # KVM finds a new APIC only when something of it was set
    assert vm.signal_msi(0xFEE01000, 0x4500)
    assert vm.signal_msi(0xFEE01000, 0x4601)
    while (exit_ := second.run()) == InterruptedExit():  # the kernel comes back once when the state changes
        pass
    assert getattr(exit_, "port", None) == 0x10
    del memory


def test_injection_with_the_kernels_chip_is_refused(vm: KvmVm) -> None:
    vm.create_irqchip()
    vcpu = long_mode_taker(vm)
    vcpu.kick()
    vcpu.run()
    with pytest.raises(HypervisorError) as caught:
        vcpu.interrupt(0x30)
    assert caught.value.call == "KVM_INTERRUPT"


def test_limits(vm: KvmVm) -> None:
    assert 1 <= vm.recommended_vcpus() <= vm.max_vcpus() <= vm.max_vcpu_id()
    assert vm.check_extension(Cap.IRQCHIP) == 1
    assert vm.check_extension(100000) == 0
    with pytest.raises(InvalidArgument, match="args"):
        vm.enable_cap(Cap.SPLIT_IRQCHIP, 1, 2, 3, 4, 5)


def test_the_device(no_leaks: None) -> None:
    with Kvm() as kvm:
        assert kvm.vcpu_mmap_size() >= 4096
        assert TSC in kvm.msr_index_list()
        assert kvm.check_extension(Cap.USER_MEMORY) == 1


@pytest.mark.parametrize(
    ("path", "kind", "says"),
    [
        ("/dev/no-such-kvm", HypervisorError, "load kvm_intel or kvm_amd"),
        ("/dev/null", Unsupported, "not a KVM device; put the host's /dev/kvm there"),
        ("/dev", HypervisorError, "it is a directory .*; put the device there"),
    ],
)
def test_no_device(no_leaks: None, path: str, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says) as caught:
        Kvm(path)
    assert path in str(caught.value)


def test_plugin_imports_nothing_heavy() -> None:
    script = "import sys, irqchip_kvm.plugin as p; p.irqchip_hypervisor(); print('irqchip_kvm.ioctl' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout == b"False\n"


def test_plugin(no_leaks: None) -> None:
    hypervisor = KvmHypervisor()
    assert hypervisor.probe() is None
    with hypervisor.create_vm() as vm:
        assert vm.hypervisor == hypervisor.name == "kvm"
