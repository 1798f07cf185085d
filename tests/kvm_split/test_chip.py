"""The chip as its host has it: how it is made, what it refuses, how it is shared and closed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from irqchip_core.allocator import SystemAllocator
from irqchip_core.bus import Bus, BusDevice
from irqchip_core.capabilities import IrqChipCap
from irqchip_core.chip import VcpuRunState
from irqchip_core.errors import Closed, InvalidArgument, IrqChipError, UnknownVcpu, WrongType
from irqchip_core.events import IrqEdgeEvent, IrqEventSource, PlatformDeviceId
from irqchip_core.routes import IrqRoute, IrqSourceChip, PinSource
from irqchip_core.selection import create_irqchip
from irqchip_core.testing import FakeClock, FakeVm
from irqchip_kvm import Kvm, KvmVm
from irqchip_kvm.abi import Cap
from irqchip_kvm_split.chip import KvmSplitIrqChip, probe
from tests.chips.machine import Machine, ioapic_entry, program_ioapic

pytestmark = pytest.mark.kvm

SOURCE = IrqEventSource(PlatformDeviceId.SERIAL, 0, "COM1")
LAPIC, IOAPIC = 0xFEE00000, 0xFEC00000


# Construction


def test_a_chip_after_a_vcpu_or_a_second_one_is_refused_with_the_remedy(vm: KvmVm) -> None:
    with KvmSplitIrqChip(vm, 1) as chip:
        with pytest.raises(IrqChipError, match="and only one"):
            KvmSplitIrqChip(vm, 1)
        chip.service_irq(5, True)  # the first one is as it was
    with Kvm() as kvm, kvm.create_vm() as other:
        other.create_vcpu(0)
        with pytest.raises(IrqChipError, match="before the first vCPU"):
            KvmSplitIrqChip(other, 1)


def test_only_vms_of_kvm_will_do(vm: KvmVm) -> None:
    with pytest.raises(WrongType, match=r"kvm_split: vm: it is a FakeVm; give an irqchip_kvm\.KvmVm"):
        KvmSplitIrqChip(FakeVm(), 1)
    assert probe(FakeVm()).refusal == "it needs a VM of irqchip-kvm, not FakeVm"


@pytest.mark.parametrize(
    ("argument", "value"),
    [*(("vcpu_count", value) for value in (-1, 0, 10**12, "2", True)), *(("pins", value) for value in (23, 241, None))],
)
def test_an_absurd_number_is_refused_before_kvm_makes_a_chip(vm: KvmVm, argument: str, value: Any) -> None:
    arguments = {"vcpu_count": 1, argument: value}
    with pytest.raises((InvalidArgument, WrongType), match=rf"kvm_split: {argument}: .*; give"):
        KvmSplitIrqChip(vm, **arguments)
    with KvmSplitIrqChip(vm, vm.max_vcpu_id()):  # which it could not be if the VM had a chip
        pass


def test_a_kernel_without_what_the_chip_needs_is_told_by_name(vm: KvmVm, monkeypatch: pytest.MonkeyPatch) -> None:
    assert IrqChipCap.X2APIC in probe(vm).capabilities
    check = vm.check_extension
    monkeypatch.setattr(vm, "check_extension", lambda cap: 0 if cap == Cap.SPLIT_IRQCHIP else check(cap))
    refusal = probe(vm).refusal
    assert refusal is not None
    assert "KVM_CAP_SPLIT_IRQCHIP" in refusal


def test_the_chip_is_chosen_between_the_other_two(vm: KvmVm) -> None:
    with create_irqchip("kvm_split", vm=vm) as chip:
        assert isinstance(chip, KvmSplitIrqChip)
        assert chip.check_capability(IrqChipCap.MP_STATE_GET_SET)


def test_more_pins_than_a_pc_has(vm: KvmVm) -> None:
    with KvmSplitIrqChip(vm, 1, pins=240) as chip, Machine(vm, chip) as machine, IrqEdgeEvent() as event:
        assert chip.register_edge_irq_event(239, event, SOURCE) is not None
        for half, value in ((1, 0), (0, 0x51 | 1 << 15)):
            machine.mmio_bus.write(IOAPIC, 4, 0x10 + 2 * 239 + half)
            machine.mmio_bus.write(IOAPIC + 0x10, 4, value)
        chip.service_irq(239, True)
        assert machine.take() == 0x51
        assert machine.take() == 0x51  # KVM reported the end of the first
        chip.service_irq(239, False)


# Devices and threads


def test_no_thread_before_finalize_devices_one_after_and_its_devices_once(vm: KvmVm) -> None:
    before = threading.active_count()
    io, mmio, allocator = Bus("I/O"), Bus("MMIO"), SystemAllocator()
    mmio.insert(BusDevice(), IOAPIC + 0x80, 1)
    with KvmSplitIrqChip(vm, 1) as chip:
        with pytest.raises(InvalidArgument, match="overlaps"):
            chip.finalize_devices(allocator, io, mmio)
        assert (io.devices(), allocator.allocate_irq()) == ([], 9)
        assert threading.active_count() == before
        mmio.remove(IOAPIC + 0x80)
        chip.finalize_devices(allocator, io, mmio)
        assert threading.active_count() == before + 1
        assert allocator.allocate_irq() == 24
        assert [(base, length) for base, length, _ in mmio.devices()] == [(IOAPIC, 0x100)]
        with pytest.raises(InvalidArgument, match="on their buses already"):
            chip.finalize_devices(allocator, Bus(), Bus())
    assert threading.active_count() == before


def test_the_pit_raises_gsi_0_through_its_own_event(vm: KvmVm) -> None:
    clock = FakeClock()
    with KvmSplitIrqChip(vm, 1, clock=clock) as chip, Machine(vm, chip) as machine:
        program_ioapic(chip, {0: ioapic_entry(0x40)})
        for port, value in ((0x43, 0x34), (0x40, 0xA9), (0x40, 0x04)):  # counter 0, mode 2, 1 ms
            machine.io_bus.write(port, 1, value)
        for _ in range(3):
            assert machine.take_until_marker() == []
            clock.advance(2_100_000)  # two edges, one signal
            assert machine.take_until_marker() == [0x40]


# vCPUs


def test_wrong_vcpus(vm: KvmVm, chip: KvmSplitIrqChip) -> None:
    vcpu = vm.create_vcpu(0)
    for vcpu_id in (-1, 2, 1 << 40):
        with pytest.raises(UnknownVcpu, match="beyond the 2 the chip was made for"):
            chip.add_vcpu(vcpu_id, vcpu)
    with pytest.raises(InvalidArgument, match="it is vCPU 0, not 1"):
        chip.add_vcpu(1, vcpu)
    with Kvm() as kvm, kvm.create_vm() as other_vm:
        stranger = other_vm.create_vcpu(0)
        with pytest.raises(InvalidArgument, match="it is of another VM"):
            chip.add_vcpu(0, stranger)
        calls: list[Callable[[Any], object]] = [chip.inject_interrupts, chip.wait_until_runnable]
        for call in calls:
            with pytest.raises(UnknownVcpu, match="there is no vCPU 0"):
                call(vcpu)
        chip.add_vcpu(0, vcpu)
        for call in calls:
            with pytest.raises(UnknownVcpu, match="this vCPU 0 is not the chip's"):
                call(stranger)
            with pytest.raises(WrongType, match=r"vcpu: .* give it as KvmVcpu"):
                call(object())
    with pytest.raises(UnknownVcpu):
        chip.halted(1)
    assert chip.wait_until_runnable(vcpu) is VcpuRunState.RUNNABLE
    chip.kick_halted_vcpus()
    assert chip.wait_until_runnable(vcpu) is VcpuRunState.RUNNABLE


# Delayed events


def test_an_event_that_finds_the_ioapic_busy_is_delayed_and_not_lost(chip: KvmSplitIrqChip, machine: Machine) -> None:
    program_ioapic(chip, {5: ioapic_entry(0x45)})
    with IrqEdgeEvent() as event:
        index = chip.register_edge_irq_event(5, event, SOURCE)
        assert index is not None
        machine.loop.stop()  # no irq loop: this test is the one
        with chip.irq_delayed_event_token() as token, chip.try_clone() as clone:
            with chip._chipset.lock:  # as a vCPU in the middle of an access has it
                event.trigger()
                clone.service_irq_event(index)
                clone.process_delayed_irq_events()  # still busy
                assert not token.wait(0)
            assert token.wait(0)
            chip.process_delayed_irq_events()
            assert not token.wait(0)
    chip.service_irq(4000, True)  # the marker
    assert [machine.take(), machine.take()] == [0x45, 0x21]


# Handles


def test_clones_share_what_is_in_python_too(chip: KvmSplitIrqChip, machine: Machine) -> None:
    program_ioapic(chip, {10: ioapic_entry(0x4A)})
    clone = chip.try_clone()
    with IrqEdgeEvent() as event:
        chip.register_edge_irq_event(30, event, SOURCE)
        clone.route_irq(IrqRoute(30, PinSource(IrqSourceChip.IOAPIC, 10)))  # takes the irqfd over
        event.trigger()
        assert machine.take() == 0x4A
        clone.close()
        event.trigger()
        assert machine.take() == 0x4A
        chip.unregister_edge_irq_event(30, event)
        event.trigger()
        assert machine.take_until_marker() == []


def test_a_closed_handle_says_so(vm: KvmVm, chip: KvmSplitIrqChip) -> None:
    chip.add_vcpu(0, vcpu := vm.create_vcpu(0))
    clone = chip.try_clone()
    clone.close()
    calls: list[Callable[[], object]] = [
        lambda: clone.add_vcpu(0, vcpu),
        lambda: clone.service_irq(5, True),
        lambda: clone.irq_event_tokens(),
        lambda: clone.inject_interrupts(vcpu),
        lambda: clone.wait_until_runnable(vcpu),
        lambda: clone.halted(0),
        lambda: clone.kick_halted_vcpus(),
        lambda: clone.get_mp_state(0),
        lambda: clone.broadcast_eoi(5),
        lambda: clone.route_irq(IrqRoute.msi(30, LAPIC, 0x50)),
        lambda: clone.try_clone(),
        lambda: clone.get_pit(),
        lambda: clone.get_lapic_state(0),
        lambda: clone.snapshot(1),
    ]
    for call in calls:
        with pytest.raises(Closed, match="kvm_split: the chip is closed"):
            call()
    chip.service_irq(5, True)


def test_a_chip_outlives_its_vm(no_leaks: None) -> None:
    with Kvm() as kvm:
        vm = kvm.create_vm()
    chip = KvmSplitIrqChip(vm, 1)
    with IrqEdgeEvent() as event:
        chip.register_edge_irq_event(30, event, SOURCE)
        vm.close()
        with pytest.raises(Closed):
            chip.route_irq(IrqRoute.msi(30, LAPIC, 0x50))
        chip.close()
