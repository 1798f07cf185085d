"""What a guest reads with CPUID on each chip and hypervisor, and whether what it finds of KVM's works."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from irqchip_core.capabilities import IrqChipCap
from irqchip_core.selection import create_irqchip, create_vm
from irqchip_core.testing.bench import Bench
from irqchip_core.x86 import cpuid
from irqchip_core.x86.chip import IrqChipX86_64

pytestmark = pytest.mark.usefixtures("no_leaks")

VCPUS = 4
UNLIKE_WHAT_WAS_SET = {
    # Hypervisor: leaf: bits of EAX, EBX, ECX and EDX that the guest reads otherwise
    "kvm": {
        (0x01, 0): (0, 0, cpuid.ALL, 0),  # CR4.OSXSAVE; kvm_pvm (seen on Linux 6.18) answers the processor's own here
        (0x07, 0): (0, cpuid.ALL, cpuid.ALL, cpuid.ALL),  # CR4.PKE, and the same
        (0x07, 1): (cpuid.ALL, 0, 0, 0),
        (0x0D, 0): (0, cpuid.ALL, 0, 0),  # XCR0
        (0x0D, 1): (cpuid.ALL, cpuid.ALL, 0, 0),
    },
    "unicorn": {(0x01, 0): (0, 0, 1 << 27, 0)},
}
KVM_MSRS = {
    # Bit in EAX of leaf 0x40000001: MSR, value that switches the feature on (Linux, Documentation/virt/kvm/x86/msr.rst)
    0: (0x12, 0x3C000 | 1),
    3: (0x4B564D01, 0x3C000 | 1),
    4: (0x4B564D02, 0x3C040 | 1 << 3 | 1),
    5: (0x4B564D03, 0x3C080 | 1),
    6: (0x4B564D04, 0x3C0C0 | 1),
    12: (0x4B564D05, 1),
    14: (0x4B564D06, 0xEC),
}


@pytest.fixture
def machine(names: tuple[str, str]) -> Iterator[Bench]:
    vm = create_vm(names[1])
    with vm:
        chip = create_irqchip(names[0], vm=vm, vcpu_count=VCPUS)
        assert isinstance(chip, IrqChipX86_64)
        with Bench(vm, chip, vcpus=VCPUS) as machine:
            yield machine


def test_each_vcpu_reads_what_was_made_for_it(machine: Bench) -> None:
    unlike = UNLIKE_WHAT_WAS_SET[machine.vm.hypervisor]
    for cpu in (machine.cpus[0], machine.cpus[3]):
        for entry in cpuid.vcpu_cpuid(machine.vm.supported_cpuid(), machine.chip, cpu.id, VCPUS):
            leaf = entry.function, entry.index
            own = unlike.get(leaf, (0, 0, 0, 0))
            found = [value & ~bits for value, bits in zip(cpu.cpuid(*leaf), own, strict=True)]
            made = (entry.eax, entry.ebx, entry.ecx, entry.edx)
            expected = [value & ~bits for value, bits in zip(made, own, strict=True)]
            assert found == expected, f"leaf {leaf[0]:#x}, subleaf {leaf[1]} of vCPU {cpu.id}"


def test_topology_that_the_guest_finds(machine: Bench) -> None:
    for cpu in machine.cpus:
        basic, features = cpu.cpuid(0), cpu.cpuid(1)
        assert (features[1] >> 24, features[1] >> 16 & 0xFF, features[3] >> 28 & 1) == (cpu.id, VCPUS, 1)
        threads, cores, *ends = (cpu.cpuid(0xB, index) for index in (0, 1, 2, 3, 0x105))
        assert threads == (0, 1, 0x100, cpu.id)
        assert cores == (2, VCPUS, 0x201, cpu.id)
        assert ends == [(0, 0, index, cpu.id) for index in (2, 3, 5)]
        if (basic[1], basic[3], basic[2]) in cpuid.AMD_VENDORS:
            assert cpu.cpuid(0x80000008)[2] & 0xFFFF == 2 << 12 | VCPUS - 1
            extended = cpu.cpuid(0x80000001)[2]
            assert extended >> 1 & 1 == 1  # cores, not threads
            if extended >> 22 & 1:
                assert cpu.cpuid(0x8000001E) == (cpu.id, cpu.id, 0, 0)


def test_features_of_the_chip_that_the_guest_finds(machine: Bench) -> None:
    ecx = machine.cpu.cpuid(1)[2]
    assert ecx >> 21 & 1 == machine.chip.check_capability(IrqChipCap.X2APIC)
    assert ecx >> 24 & 1 == machine.chip.check_capability(IrqChipCap.TSC_DEADLINE_TIMER)
    assert machine.cpu.cpuid(6)[0] >> 2 & 1 == 1
    assert machine.cpu.cpuid(0x15)[2] == machine.chip.lapic_frequency()


@pytest.mark.kvm
def test_features_of_kvm_that_the_guest_finds_can_be_switched_on(machine: Bench) -> None:
    if machine.vm.hypervisor != "kvm":
        pytest.skip("the hypervisor is not KVM")
    cpu = machine.cpus[3]
    assert cpu.cpuid(0x40000000)[1:] == cpuid.KVM_SIGNATURE
    features = cpu.cpuid(0x40000001)[0]
    in_kernel = machine.chip.name != "userspace"
    assert bool(features & cpuid.KVM_NEEDS_HYPERVISOR_LAPICS) == in_kernel
    refused = [bit for bit, (msr, value) in KVM_MSRS.items() if features >> bit & 1 and not cpu.write_msr(msr, value)]
    assert refused == []
