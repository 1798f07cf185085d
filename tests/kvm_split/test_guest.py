"""Whole guests: the demonstration, with the table that other chips give, and one that writes anything anywhere."""

from __future__ import annotations

from typing import Any

import pytest
from attrs import asdict
from hypothesis import given, settings
from hypothesis import strategies as st

from irqchip_core.allocator import SystemAllocator
from irqchip_core.bus import Bus
from irqchip_core.capabilities import IrqChipCap
from irqchip_core.cli.main import main
from irqchip_core.events import IrqEventSource, IrqLevelEvent, PlatformDeviceId
from irqchip_core.hypervisor.exits import InterruptedExit
from irqchip_core.routes import IrqRoute
from irqchip_core.testing import FakeClock
from irqchip_kvm import Kvm, KvmVm
from irqchip_kvm_split.chip import KvmSplitIrqChip
from irqchip_vmm import Machine
from irqchip_vmm.guest import demonstration_guest
from irqchip_vmm.report import demonstration_problems, totals

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("no_leaks")]

IOAPIC = 0xFEC00000
SOURCE = IrqEventSource(PlatformDeviceId.SERIAL, 0, "COM1")


def interrupts(chip: str, vcpu_count: int) -> list[dict[str, Any]]:
    """What the demonstration guest took, by source; without the periodic timer, which may tick until it is stopped."""
    with Machine(hypervisor="kvm", chip=chip, vcpu_count=vcpu_count) as machine:
        machine.load(demonstration_guest(memory_size=machine.memory.size, vcpu_count=vcpu_count))
        result = machine.run(50)
        deadline = machine.chip.check_capability(IrqChipCap.TSC_DEADLINE_TIMER)
    assert demonstration_problems(result, vcpu_count, deadline) == []
    if chip == "kvm_split":
        assert result.exits.get("IoapicEoiExit", 0) >= 30 * vcpu_count  # each level interrupt's end
    return [asdict(line) for line in totals(result, vcpu_count) if line.source != "timer-periodic"]


@pytest.mark.parametrize("vcpu_count", [1, 2, 8])
def test_the_demonstration_takes_what_it_takes_on_the_kernels_chip(vcpu_count: int) -> None:
    assert interrupts("kvm_split", vcpu_count) == interrupts("kvm_kernel", vcpu_count)


@pytest.mark.parametrize("vcpu_count", [1, 2, 8])
def test_irqchip_run(capfd: pytest.CaptureFixture[str], vcpu_count: int) -> None:
    assert main(["run", "--chip", "kvm_split", "--vcpus", str(vcpu_count)]) == 0
    out, err = capfd.readouterr()
    assert out.splitlines()[-1] == "Every interrupt was taken exactly as often as it was raised."
    assert f"on chip kvm_split (asked for), hypervisor kvm (the first on which it fits), vCPUs: {vcpu_count}" in err


PORTS = st.sampled_from([0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1, *range(0x40, 0x48), 0x61])
REGISTERS = st.one_of(st.sampled_from([0x00, 0x10, 0x10, 0x40]), st.integers(0, 0xFF))
WORD = st.one_of(st.integers(0, 0xFF), st.integers(0, 0xFFFFFFFF))
ACTIONS = st.one_of(
    st.tuples(st.just("read"), REGISTERS, st.sampled_from([1, 2, 4, 8])),
    st.tuples(st.just("write"), REGISTERS, st.sampled_from([1, 2, 4, 8]), WORD),
    st.tuples(st.just("program"), st.integers(0x10, 0x40), WORD),
    st.tuples(st.just("in_"), PORTS, st.sampled_from([1, 2, 4])),
    st.tuples(st.just("out"), PORTS, st.sampled_from([1, 2, 4]), WORD),
    st.tuples(st.just("message"), st.integers(0, (1 << 64) - 1), WORD),
    st.tuples(st.just("line"), st.integers(0, 30), st.booleans()),
    st.tuples(st.just("level_event")),
    st.tuples(st.just("eoi"), st.integers(0, 0xFF)),
    st.tuples(st.just("time"), st.integers(0, 10**7)),
    st.tuples(st.just("look"), st.integers(0, 1)),
)


class Guest:
    """What a guest, and its devices in its name, can do to the chip: one method each."""

    def __init__(self, vm: KvmVm, event: IrqLevelEvent) -> None:
        self.clock, self.io_bus, self.mmio_bus = FakeClock(), Bus("I/O"), Bus("MMIO")
        self.chip = KvmSplitIrqChip(vm, 2, clock=self.clock)
        self.chip.finalize_devices(SystemAllocator(), self.io_bus, self.mmio_bus)
        self.vcpus = [vm.create_vcpu(vcpu_id) for vcpu_id in (0, 1)]
        for vcpu in self.vcpus:
            self.chip.add_vcpu(vcpu.id, vcpu)
        self.event = event
        self.index = self.chip.register_level_irq_event(10, event, SOURCE)

    def read(self, register: int, size: int) -> None:
        self.mmio_bus.read(IOAPIC + register, size)

    def write(self, register: int, size: int, value: int) -> None:
        self.mmio_bus.write(IOAPIC + register, size, value)

    def program(self, register: int, value: int) -> None:
        self.write(0x00, 4, register)
        self.write(0x10, 4, value)

    def in_(self, port: int, size: int) -> None:
        self.io_bus.read(port, size)

    def out(self, port: int, size: int, value: int) -> None:
        self.io_bus.write(port, size, value)

    def message(self, address: int, data: int) -> None:
        self.chip.route_irq(IrqRoute.msi(30, address, data))

    def line(self, gsi: int, level: bool) -> None:
        self.chip.service_irq(gsi, level)

    def level_event(self) -> None:
        assert self.index is not None
        self.event.trigger()
        self.chip.service_irq_event(self.index)

    def eoi(self, vector: int) -> None:
        self.chip.broadcast_eoi(vector)

    def time(self, nanoseconds: int) -> None:
        self.clock.advance(nanoseconds)

    def look(self, vcpu_id: int) -> None:
        vcpu = self.vcpus[vcpu_id]
        vcpu.kick()
        assert vcpu.run() == InterruptedExit()
        self.chip.inject_interrupts(vcpu)


@settings(max_examples=150, deadline=None)
@given(st.lists(ACTIONS, max_size=60))
def test_a_guest_may_write_anything_anywhere(actions: list[tuple[Any, ...]]) -> None:
    with Kvm() as kvm, kvm.create_vm() as vm, IrqLevelEvent() as event:
        guest = Guest(vm, event)
        with guest.chip:
            for action, *arguments in actions:
                getattr(guest, action)(*arguments)
            assert guest.io_bus.errors == guest.mmio_bus.errors == 0
            guest.chip.snapshot(2)
