"""What is closed is gone: descriptors, threads, memory; and nothing goes that is still in use."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Callable
from typing import Any

import pytest

import irqchip_kvm.vcpu
import irqchip_kvm.vm
from irqchip_core.errors import Closed, HypervisorError, InvalidArgument, WrongType
from irqchip_core.hypervisor.exits import IoExit, MmioExit
from irqchip_core.hypervisor.vcpu import VcpuX86_64, Vm
from irqchip_kvm import Kvm, KvmVcpu, KvmVm

from .guest import COUNT_FOREVER, HALT, OUT_FOREVER, PATIENCE, Runner, real_mode, run_until_exit

pytestmark = pytest.mark.kvm


BIG = 64 << 20


def resident() -> int:
    """Bytes of memory the process holds."""
    with open("/proc/self/statm", encoding="ascii") as numbers:
        return int(numbers.read().split()[1]) * 4096


def touch(memory: memoryview) -> None:
    memory[::4096] = b"x" * (len(memory) // 4096)


def test_implements_the_protocols(vm: KvmVm) -> None:
    assert isinstance(vm, Vm)
    assert isinstance(vm.create_vcpu(0), VcpuX86_64)


def test_a_vm_outlives_the_device(no_leaks: None) -> None:
    with Kvm() as kvm:
        vm = kvm.create_vm()
    assert kvm.closed
    with vm:
        assert vm.supported_cpuid()
        vm.create_vcpu(0)
    assert vm.closed


def test_closing_twice(vm: KvmVm) -> None:
    vcpu = vm.create_vcpu(0)
    vcpu.close()
    vcpu.close()
    vm.close()
    vm.close()


@pytest.mark.parametrize(
    "use",
    [
        lambda kvm, vm, vcpu: kvm.create_vm(),
        lambda kvm, vm, vcpu: kvm.supported_cpuid(),
        lambda kvm, vm, vcpu: vm.create_vcpu(1),
        lambda kvm, vm, vcpu: vm.map_memory(0x100000, 0x1000),
        lambda kvm, vm, vcpu: vm.signal_msi(0xFEE00000, 0),
        lambda kvm, vm, vcpu: vm.enable_split_irqchip(),
        lambda kvm, vm, vcpu: vcpu.run(),
        lambda kvm, vm, vcpu: vcpu.get_regs(),
        lambda kvm, vm, vcpu: vcpu.inject_nmi(),
        lambda kvm, vm, vcpu: vcpu.get_msrs([0x10]),
    ],
)
def test_use_after_close(no_leaks: None, use: Callable[[Kvm, KvmVm, KvmVcpu], object]) -> None:
    with Kvm() as kvm, kvm.create_vm() as vm:
        vcpu = vm.create_vcpu(0)
    with pytest.raises(Closed):
        use(kvm, vm, vcpu)


def test_closing_the_vm_closes_its_vcpus(vm: KvmVm) -> None:
    vcpus = [vm.create_vcpu(number) for number in range(3)]
    vm.close()
    assert all(vcpu.closed for vcpu in vcpus)


def test_what_is_dropped_is_closed(no_leaks: None) -> None:
    vcpu, _ = real_mode(Kvm().create_vm(), HALT)
    vcpu.run()
    gone = weakref.ref(vcpu)
    del vcpu, _
    gc.collect()
    assert gone() is None


def test_memory_goes_with_the_vm(vm: KvmVm) -> None:
    before = resident()
    touch(vm.map_memory(0, BIG))
    assert resident() - before > BIG // 2
    vm.close()
    assert resident() - before < BIG // 2


def test_memory_stays_while_somebody_sees_it(vm: KvmVm) -> None:
    before = resident()
    memory = vm.map_memory(0, BIG)
    touch(memory)
    part = memory[0x1000:0x1004]
    del memory
    vm.close()
    part[:] = b"here"
    assert bytes(part) == b"here"
    assert resident() - before > BIG // 2
    del part
    assert resident() - before < BIG // 2


def test_memory_stays_while_the_guest_runs(vm: KvmVm, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that does not come back in time keeps what its guest uses, and releases it when it does."""
    vcpu, memory = real_mode(vm, COUNT_FOREVER)
    touch(vm.map_memory(0x100000, BIG))
    runner = Runner(vcpu)
    runner.start()
    with monkeypatch.context() as patch:
        patch.setattr(irqchip_kvm.vcpu, "CLOSE_TIMEOUT", 0.1)
        patch.setattr(KvmVcpu, "kick", lambda self: None)
        vm.close()
    assert runner.is_alive()
    before = bytes(memory[0x2000:0x2002])
    while bytes(memory[0x2000:0x2002]) == before:  # the guest still counts; the suite's timeout bounds this
        pass
    held = resident()
    vcpu.kick()
    runner.join(PATIENCE)
    assert isinstance(runner.error, Closed)
    assert held - resident() > BIG // 2
    assert repr(vm) == "<KvmVm closed, 0 vCPUs>"


def test_buffer_of_an_exit_outlives_the_vcpu(vm: KvmVm) -> None:
    vcpu, _ = real_mode(vm, OUT_FOREVER)
    exit_ = vcpu.run()
    assert isinstance(exit_, IoExit)
    vm.close()
    exit_.data[0] = 7
    assert exit_.data[0] == 7


def test_unmapped_memory_becomes_mmio(vm: KvmVm) -> None:
    # mov $0x2000, %ax; mov %ax, %ds; 1: mov %al, 0; out %al, $0x10; jmp 1b
    vcpu, _ = real_mode(vm, b"\xb8\x00\x20\x8e\xd8\xa2\x00\x00\xe6\x10\xeb\xf9")
    view = vm.map_memory(0x20000, 0x1000)
    assert isinstance(run_until_exit(vcpu), IoExit)
    vm.unmap_memory(0x20000)
    exit_ = run_until_exit(vcpu)
    assert isinstance(exit_, MmioExit)
    assert exit_.address == 0x20000
    view[0] = 1  # the VM is closed, but the memory is still mapped
    again = vm.map_memory(0x20000, 0x1000)
    assert again[0] == 0
    assert isinstance(run_until_exit(vcpu), IoExit)
    assert isinstance(run_until_exit(vcpu), IoExit)
    assert again[0] == 0x00


@pytest.mark.parametrize(
    ("address", "size"),
    [
        (1, 4096), (0, 0), (0, 100), (-4096, 4096), (0x1000, -4096), (1 << 64, 4096), (0, (1 << 64) + 4096),
        ((1 << 64) - 4096, 8192), (1 << 60, 1 << 64),
    ],
)  # fmt: skip
def test_memory_that_cannot_be_is_not_taken_from_the_host(
    vm: KvmVm, monkeypatch: pytest.MonkeyPatch, address: int, size: int
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(irqchip_kvm.vm, "anonymous_pages", pytest.fail)
        with pytest.raises(InvalidArgument, match=r"give a number from|use multiples of 4096"):
            vm.map_memory(address, size)
    assert vm.map_memory(0, 0x1000)[0] == 0


def test_memory_that_overlaps(vm: KvmVm) -> None:
    vm.map_memory(0, 0x10000)
    with pytest.raises(InvalidArgument, match="overlaps"):
        vm.map_memory(0x8000, 0x1000)
    assert vm.map_memory(0x10000, 0x1000)[0] == 0


@pytest.mark.parametrize("number", [4096.0, "4096", None, True])
def test_memory_of_no_number(vm: KvmVm, monkeypatch: pytest.MonkeyPatch, number: Any) -> None:
    monkeypatch.setattr(irqchip_kvm.vm, "anonymous_pages", pytest.fail)
    for call in (
        lambda: vm.map_memory(0, number),
        lambda: vm.map_memory(number, 4096),
        lambda: vm.unmap_memory(number),
        lambda: vm.create_vcpu(number),
    ):
        with pytest.raises(WrongType, match=r"KVM VM: \w+: .* give it as int"):
            call()


def test_unmapping_what_is_not_mapped(vm: KvmVm) -> None:
    with pytest.raises(InvalidArgument, match="0x5000"):
        vm.unmap_memory(0x5000)


def test_more_memory_than_there_is(vm: KvmVm) -> None:
    with pytest.raises(HypervisorError, match="not enough memory"):
        vm.map_memory(0, 1 << 60)


def test_a_forked_child_is_told_whose_the_vm_is(no_leaks: None) -> None:
    script = """
import os
from irqchip_core.errors import HypervisorError
from irqchip_kvm import Kvm

vm = Kvm().create_vm()
vcpu = vm.create_vcpu(0)
if child := os.fork():
    raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
for call in (vcpu.run, vcpu.get_regs, vm.create_irqchip, lambda: vm.create_vcpu(1), lambda: vm.map_memory(0, 4096)):
    try:
        call()
    except HypervisorError as error:
        assert "the VM belongs to the process that made it (EIO); create VM and vCPUs after fork" in str(error), error
        print(error.call)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
    calls = ["KVM_RUN", "KVM_GET_REGS", "KVM_CREATE_IRQCHIP", "KVM_CREATE_VCPU", "KVM_SET_USER_MEMORY_REGION"]
    assert done.stdout.split() == calls
