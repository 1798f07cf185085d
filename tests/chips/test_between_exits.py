"""What a guest does between two exits, of which no exit reports anything: the chip must not see it late."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from irqchip_core.hypervisor.exits import IoExit
from irqchip_core.hypervisor.vcpu import Vm
from irqchip_core.testing import agent
from irqchip_core.testing.agent import Operation
from irqchip_core.testing.bench import Bench
from irqchip_core.testing.guest_cpu import SPURIOUS_VECTOR
from irqchip_core.x86.chip import IrqChipX86_64
from irqchip_core.x86.lapic import registers as reg
from irqchip_core.x86.state import LAPIC_BASE
from irqchip_kvm import KvmVcpu

pytestmark = pytest.mark.usefixtures("no_leaks")

XAPIC = reg.APIC_BASE_RESET | reg.APIC_BASE_BSP
DISABLED = XAPIC & ~reg.APIC_BASE_EN
MOVED = 0xFED40000


@pytest.fixture
def bench(vm: Vm, chip: IrqChipX86_64) -> Iterator[Bench]:
    with Bench(vm, chip) as bench:
        yield bench


def needs_a_tsc_that_can_be_written(bench: Bench) -> None:
    """Skip on a KVM whose guests always read the host's counter, as kvm_pvm's do (seen on Linux 6.18)."""
    vcpu = bench.cpu.vcpu
    if isinstance(vcpu, KvmVcpu):
        vcpu.set_msrs({reg.IA32_TSC: 1 << 60})
        if vcpu.tsc() < 1 << 60:
            pytest.skip("this KVM ignores writes of the time-stamp counter: run it on kvm_intel or kvm_amd")


def needs_its_own_apics(names: tuple[str, str]) -> None:
    if names[0] != "userspace":
        pytest.skip(
            "its local APICs are KVM's, which keeps registers while disabled, and deadlines when the counter is written"
        )


def perform_without_a_look(bench: Bench, operation: Operation, first: int, second: int) -> None:
    """Let the guest perform `operation`; the chip is not called at the exit after it."""
    cpu = bench.cpu
    assert cpu._command is not None
    cpu.mailbox.put(first, second)
    cpu._command[:] = int(operation).to_bytes(4, "little")
    while not isinstance(exit_ := cpu.vcpu.run(), IoExit):
        pass
    assert exit_.port == agent.COMMAND
    cpu._command = exit_.data


@pytest.mark.parametrize("priority", [9, 5, 0])
def test_saved_state_has_the_cr8_of_the_last_exit(bench: Bench, priority: int) -> None:
    perform_without_a_look(bench, Operation.WRITE_CR8, 0, priority)
    assert bench.chip.get_lapic_state(0).regs[reg.TPR >> 4] == priority << 4


def test_an_interrupt_is_not_let_in_at_a_priority_that_the_guest_has_left(bench: Bench) -> None:
    perform_without_a_look(bench, Operation.WRITE_CR8, 0, 6)
    bench.send_msi(0x61)
    bench.cpu.expect_blocked(rule="CR8 blocks")
    perform_without_a_look(bench, Operation.WRITE_CR8, 0, 5)
    bench.cpu.expect(0x61, rule="CR8 lets it through")


def test_an_apic_that_is_disabled_for_a_moment_is_as_after_reset(names: tuple[str, str], bench: Bench) -> None:
    needs_its_own_apics(names)
    bench.cpu.apic_write(reg.TPR, 0x70)
    assert bench.cpu.switch_base(DISABLED, XAPIC, LAPIC_BASE + reg.TPR) == 0
    assert bench.cpu.apic_read(reg.SPIV) == reg.SPIV_RESET


def test_saved_state_has_the_base_of_the_last_exit(bench: Bench) -> None:
    bench.cpu.switch_base(MOVED | reg.APIC_BASE_BSP, MOVED | reg.APIC_BASE_BSP | reg.APIC_BASE_EN, agent.ENTRY)
    state = bench.chip.get_lapic_state(0)
    assert state.apic_base == bench.cpu.read_msr(reg.IA32_APIC_BASE) == MOVED | reg.APIC_BASE_BSP | reg.APIC_BASE_EN


def test_cpuid_announces_the_apic_while_it_is_enabled(bench: Bench) -> None:
    cpu = bench.cpu
    for base, announced in ((XAPIC, 1), (DISABLED, 0), (XAPIC, 1)):  # SDM vol. 3, 12.4.3
        assert cpu.write_msr(reg.IA32_APIC_BASE, base)
        assert cpu.cpuid(1)[3] >> 9 & 1 == announced


def test_a_base_that_no_way_leads_to_faults_and_changes_nothing(bench: Bench) -> None:
    refused = [XAPIC | 1, XAPIC | 0x200, DISABLED | reg.APIC_BASE_EXTD, XAPIC | 1 << 52, XAPIC | 1 << 63]
    for value in refused:
        assert not bench.cpu.write_msr(reg.IA32_APIC_BASE, value), hex(value)
    assert bench.cpu.read_msr(reg.IA32_APIC_BASE) == XAPIC
    bench.cpu.apic_write(reg.SPIV, reg.SPIV_SOFTWARE_ENABLE | SPURIOUS_VECTOR)
    bench.send_msi(0x51)
    bench.cpu.expect(0x51, rule="the local APIC goes on as before")


def test_an_address_wider_than_the_processor_faults(vm: Vm, bench: Bench) -> None:
    widths = [entry.eax & 0xFF for entry in vm.supported_cpuid() if entry.function == 0x80000008]
    width = widths[0] if widths else 36  # SDM vol. 2, CPUID
    assert not bench.cpu.write_msr(reg.IA32_APIC_BASE, XAPIC | 1 << width)
    assert bench.cpu.read_msr(reg.IA32_APIC_BASE) == XAPIC
    assert bench.cpu.write_msr(reg.IA32_APIC_BASE, XAPIC | 1 << width - 1)


@pytest.mark.parametrize("change", [-(10**9), -1000, 1000, 10**8, 10**12])
def test_the_tsc_is_what_the_guest_has_written(bench: Bench, change: int) -> None:
    needs_a_tsc_that_can_be_written(bench)
    cpu = bench.cpu
    assert cpu.write_msr(reg.IA32_TSC, 1 << 61)
    assert cpu.write_msr(reg.IA32_TSC, (1 << 61) + change)
    between = cpu.read_tsc(), cpu.read_msr(reg.IA32_TSC), cpu.read_tsc()
    assert sorted((value or 0) - (1 << 61) - change for value in between) == [
        (value or 0) - (1 << 61) - change for value in between
    ]
    assert between[0] - (1 << 61) - change >= 0


@pytest.mark.parametrize("index", [reg.IA32_TSC, reg.IA32_TSC_ADJUST])
def test_a_deadline_comes_when_the_guest_sets_its_tsc_to_it(names: tuple[str, str], bench: Bench, index: int) -> None:
    needs_its_own_apics(names)
    needs_a_tsc_that_can_be_written(bench)
    cpu = bench.cpu
    adjust = cpu.read_msr(reg.IA32_TSC_ADJUST)
    if index == reg.IA32_TSC_ADJUST and adjust is None:
        pytest.skip("this processor has no IA32_TSC_ADJUST")
    cpu.apic_write(reg.LVT_TIMER, reg.TSC_DEADLINE << reg.LVT_TIMER_MODE_SHIFT | 0x61)
    hour = 3600 * bench.vm.tsc_hz
    deadline = cpu.read_tsc() + hour
    assert cpu.write_msr(reg.IA32_TSC_DEADLINE, deadline)
    bench.cpu.expect_nothing(rule="an hour has not passed")
    assert cpu.write_msr(index, deadline if index == reg.IA32_TSC else (adjust or 0) + hour)
    cpu.expect(0x61, rule="the time-stamp counter has reached the deadline")
    assert cpu.read_msr(reg.IA32_TSC_DEADLINE) == 0
