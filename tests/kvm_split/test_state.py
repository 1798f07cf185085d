"""State that goes in and comes out, and guests that move: to another VM, and from chip to chip."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from attrs import evolve

from irqchip_core.chip import MPState
from irqchip_core.errors import InvalidArgument, InvalidRoute, UnknownVcpu, WrongType
from irqchip_core.events import IrqEventSource, IrqLevelEvent, PlatformDeviceId
from irqchip_core.hypervisor.exits import InterruptedExit
from irqchip_core.routes import IrqRoute
from irqchip_core.selection import create_irqchip, create_vm
from irqchip_core.testing.guest_cpu import Eoi
from irqchip_core.x86.chip import IrqChipX86_64
from irqchip_core.x86.cpuid import vcpu_cpuid
from irqchip_core.x86.state import ChipSnapshot, LapicState, PicSelect, PicState
from irqchip_kvm import KvmVcpu, KvmVm
from irqchip_kvm_split.chip import KvmSplitIrqChip, SplitChipState
from tests.chips.machine import Machine, ioapic_entry, program_ioapic, program_pics

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("no_leaks")]

SOURCE = IrqEventSource(PlatformDeviceId.SERIAL, 0, "COM1")
LAPIC = 0xFEE00000
REMOTE_IRR = 1 << 14
NMI_VECTOR = 2
CHIPS = ["kvm_kernel", "kvm_split", "userspace"]


@contextmanager
def booted(name: str) -> Iterator[Machine]:
    """The guest on a chip of that name, with one vCPU."""
    with create_vm("kvm") as vm, create_irqchip(name, vm=vm, vcpu_count=1) as chip:
        assert isinstance(chip, IrqChipX86_64)
        with Machine(vm, chip) as machine:
            yield machine


def stop(machine: Machine) -> ChipSnapshot:
    """Let the guest's last access be over, and save its chip."""
    assert machine.cpu.pause() == InterruptedExit()
    return machine.chip.snapshot(1)


def resume(machine: Machine, other: Machine, snapshot: ChipSnapshot) -> None:
    """Let `other` be where `machine` was."""
    other.cpu.take_over(machine.cpu)
    other.chip.restore(snapshot, 1)


def test_a_guest_moves_with_its_interrupts_and_routes() -> None:
    with booted("kvm_split") as machine, booted("kvm_split") as other:
        program_pics(machine.chip, primary_mask=0xFF & ~(1 << 5))
        program_ioapic(machine.chip, {6: ioapic_entry(0x46), 10: ioapic_entry(0x4A, level=True)})
        machine.chip.route_irq(IrqRoute.msi(30, LAPIC, 0x50))
        for gsi in (5, 6):  # pending in the PIC, and in the local APIC
            machine.chip.service_irq(gsi, True)
            machine.chip.service_irq(gsi, False)
        resume(machine, other, stop(machine))
        assert {other.take(Eoi.LAPIC | Eoi.PRIMARY) for _ in range(2)} == {0x35, 0x46}
        other.chip.service_irq(30, True)
        assert other.take() == 0x50


def test_a_level_interrupt_ends_where_the_guest_has_moved_to() -> None:
    with booted("kvm_split") as machine, booted("kvm_split") as other, IrqLevelEvent() as event:
        program_pics(machine.chip, primary_mask=0xFF)
        program_ioapic(machine.chip, {10: ioapic_entry(0x4A, level=True)})
        machine.chip.service_irq(10, True)  # in the local APIC, and the IOAPIC waits for its end
        other.chip.register_level_irq_event(10, event, SOURCE)
        resume(machine, other, stop(machine))
        assert other.chip.get_ioapic_state().redirect_table[10] & REMOTE_IRR
        assert other.take() == 0x4A
        assert other.take_until_marker() == []
        assert event.clear_resample(5)
        assert not other.chip.get_ioapic_state().redirect_table[10] & REMOTE_IRR


@pytest.mark.parametrize("entered", [False, True])
def test_a_vector_of_the_pics_that_kvm_has_but_not_the_guest_moves_along(entered: bool) -> None:
    """No state of KVM's has it, so the chip keeps it."""
    with booted("kvm_split") as machine, booted("kvm_split") as other:
        program_pics(machine.chip, primary_mask=0xFF & ~(1 << 5))
        program_ioapic(machine.chip, {})
        machine.sleep()
        while machine.chip.get_mp_state(0) is not MPState.HALTED:
            machine.sleep()
        machine.chip.service_irq(5, True)
        machine.chip.service_irq(5, False)
        if entered:
            machine.vcpu.kick()
            assert machine.vcpu.run() == InterruptedExit()
        machine.chip.inject_interrupts(machine.vcpu)
        if entered:
            machine.vcpu.kick()
            assert machine.vcpu.run() == InterruptedExit()  # KVM_RUN, but not the guest
        snapshot = stop(machine)
        assert snapshot.pic_primary is not None
        assert snapshot.pic_primary.isr == 1 << 5
        assert snapshot.chip_specific.pending_extint == 0x35
        assert snapshot.mp_states == [MPState.HALTED]
        resume(machine, other, snapshot)
        assert other.take(Eoi.PRIMARY) == 0x35
        assert stop(other).chip_specific.pending_extint is None
        assert machine.take(Eoi.PRIMARY) == 0x35  # a snapshot changes nothing


@pytest.mark.parametrize("returned", [False, True])
def test_a_vector_of_the_pics_that_comes_after_an_nmi_is_in_the_snapshot(returned: bool) -> None:
    """Also when the NMI's handler has returned, with interrupts disabled."""
    with booted("kvm_split") as machine, booted("kvm_split") as other:
        program_pics(machine.chip, primary_mask=0xFF & ~(1 << 5))
        program_ioapic(machine.chip, {})
        machine.sleep()
        vcpu = machine.vcpu
        assert isinstance(vcpu, KvmVcpu)
        machine.chip.service_irq(5, True)
        machine.chip.service_irq(5, False)
        machine.chip.inject_interrupts(vcpu)
        assert vcpu.queued_interrupt() == 0x35
        vcpu.inject_nmi()
        assert machine.cpu.run_into_handler() == NMI_VECTOR
        if returned:
            machine.cpu.in_(0x80)
            assert not vcpu.get_vcpu_events().nmi_masked
        snapshot = stop(machine)
        assert snapshot.chip_specific.pending_extint == 0x35
        if returned:
            resume(machine, other, snapshot)
        for each in (machine, other) if returned else (machine,):
            assert each.take(Eoi.PRIMARY) == 0x35
            assert stop(each).chip_specific.pending_extint is None
            assert each.take_until_marker() == []


def test_a_chip_that_goes_back_to_its_own_snapshot_gives_a_vector_once() -> None:
    with booted("kvm_split") as machine:
        program_pics(machine.chip, primary_mask=0xFF & ~(1 << 5))
        program_ioapic(machine.chip, {})
        machine.sleep()
        machine.chip.service_irq(5, True)
        machine.chip.service_irq(5, False)
        machine.chip.inject_interrupts(machine.vcpu)
        snapshot = stop(machine)
        assert snapshot.chip_specific.pending_extint == 0x35
        machine.chip.restore(snapshot, 1)
        assert machine.take(Eoi.PRIMARY) == 0x35
        assert machine.take_until_marker() == []


@pytest.mark.parametrize("source", CHIPS)
@pytest.mark.parametrize("target", CHIPS)
def test_a_guest_moves_from_chip_to_chip(source: str, target: str) -> None:
    with booted(source) as machine, booted(target) as other:
        program_pics(machine.chip, primary_mask=0xFF & ~(1 << 5))
        program_ioapic(machine.chip, {6: ioapic_entry(0x46), 10: ioapic_entry(0x4A, level=True)})
        for gsi in (5, 6):
            machine.chip.service_irq(gsi, True)
            machine.chip.service_irq(gsi, False)
        snapshot = stop(machine)
        snapshot.chip_specific = other.chip.snapshot_chip_specific()  # what is of no use to another kind of chip
        assert snapshot.ioapic is not None
        snapshot.ioapic = evolve(snapshot.ioapic, ioregsel=0)
        resume(machine, other, snapshot)
        assert other.chip.get_lapic_state(0).apic_base == 0xFEE00D00  # x2APIC mode, as the guest has set it
        assert {other.take(Eoi.LAPIC | Eoi.PRIMARY) for _ in range(2)} == {0x35, 0x46}
        with IrqLevelEvent() as event:
            other.chip.register_level_irq_event(10, event, SOURCE)
            event.trigger()
            assert other.take() == 0x4A
            assert other.take_until_marker() == []
            assert event.clear_resample(5)


def test_lapic_state_has_what_kvm_keeps_in_msrs(vm: KvmVm, chip: KvmSplitIrqChip) -> None:
    chip.add_vcpu(0, vcpu := vm.create_vcpu(0))
    vcpu.set_cpuid(vcpu_cpuid(vm.supported_cpuid(), chip, 0, vcpu_count=1))  # with TSC-deadline mode
    state = chip.get_lapic_state(0)
    assert (state.apic_base, state.tsc_deadline) == (0xFEE00900, 0)
    state.apic_base = 0xFEE00D00
    state.regs[0x32] = 2 << 17 | 0x40  # LVT timer: TSC-deadline mode
    state.regs[0xF] |= 1 << 8
    state.tsc_deadline = 1 << 62
    chip.set_lapic_state(0, state)
    after = chip.get_lapic_state(0)
    assert (after.apic_base, after.tsc_deadline, after.regs[0x32]) == (0xFEE00D00, 1 << 62, state.regs[0x32])


def test_a_refused_lapic_state_changes_nothing(vm: KvmVm, chip: KvmSplitIrqChip) -> None:
    chip.add_vcpu(0, vcpu := vm.create_vcpu(0))
    vcpu.set_cpuid(vm.supported_cpuid())
    before = chip.get_lapic_state(0)
    wrong = chip.get_lapic_state(0)
    wrong.apic_base, wrong.regs[2] = 0xFEE00D00, 7  # the id of another one
    with pytest.raises(InvalidArgument, match=r"regs\[2\]: it is 7; give 0"):
        chip.set_lapic_state(0, wrong)
    assert chip.get_lapic_state(0) == before
    anything: Any = None
    with pytest.raises(WrongType, match="state: None is of type NoneType; give it as LapicState"):
        chip.set_lapic_state(0, anything)


def snapshot_of(vcpu_count: int) -> ChipSnapshot:
    with create_vm("kvm") as vm, KvmSplitIrqChip(vm, vcpu_count) as chip:
        for vcpu_id in range(vcpu_count):
            chip.add_vcpu(vcpu_id, vm.create_vcpu(vcpu_id))
        program_pics(chip, primary_mask=0x5A)
        program_ioapic(chip, {5: ioapic_entry(0x45)})
        return chip.snapshot(vcpu_count)


@pytest.mark.parametrize(
    ("added", "specific", "refusal", "says"),
    [
        (0, {}, UnknownVcpu, "there is no vCPU 0; give it to add_vcpu first"),
        (1, {}, UnknownVcpu, "there is no vCPU 1; give it to add_vcpu first"),
        (2, None, InvalidArgument, "not the state of a kvm_split chip of 2 vCPUs"),
        (2, {"interrupt_bitmaps": (0,)}, InvalidArgument, "not the state of a kvm_split chip of 2 vCPUs"),
        (2, {"interrupt_bitmaps": (0, 1 << 256)}, InvalidArgument, "interrupt_bitmaps: .* is not from 0 to"),
        (2, {"interrupt_bitmaps": (0, None)}, WrongType, "interrupt_bitmaps: None is of type NoneType"),
        (2, {"pending_extint": 256}, InvalidArgument, "pending_extint: 256 is not from 0 to 255"),
        (2, {"pending_extint": "5"}, WrongType, "pending_extint: '5' is of type str"),
        (2, {"routes": (IrqRoute.msi(4096, 0, 0),)}, InvalidRoute, "GSI out of range"),
        (2, {"routes": (IrqRoute.msi(9, LAPIC, 0x50),)}, InvalidRoute, "COM1 has a level event on GSI 9"),
        (2, {"routes": (None,)}, WrongType, "give it as IrqRoute"),
    ],
)
def test_a_refused_restore_changes_nothing(
    vm: KvmVm,
    chip: KvmSplitIrqChip,
    added: int,
    specific: dict[str, Any] | None,
    refusal: type[Exception],
    says: str,
) -> None:
    snapshot = snapshot_of(2)
    snapshot.chip_specific = None if specific is None else evolve(snapshot.chip_specific, **specific)
    for vcpu_id in range(added):
        chip.add_vcpu(vcpu_id, vm.create_vcpu(vcpu_id))
    with IrqLevelEvent() as event:
        chip.register_level_irq_event(9, event, SOURCE)
        before = chip.get_pic_state(PicSelect.PRIMARY), chip.get_ioapic_state()
        with pytest.raises(refusal, match=says):
            chip.restore(snapshot, 2)
        assert (chip.get_pic_state(PicSelect.PRIMARY), chip.get_ioapic_state()) == before


def test_a_snapshot_of_an_ioapic_of_another_size_is_refused_before_anything_changes(vm: KvmVm) -> None:
    snapshot = snapshot_of(1)
    with KvmSplitIrqChip(vm, 1, pins=48) as chip:
        chip.add_vcpu(0, vm.create_vcpu(0))
        before = chip.snapshot(1)
        with pytest.raises(InvalidArgument, match="it has 24 pins, not 48; restore into an IOAPIC with as many"):
            chip.restore(snapshot, 1)
        after = chip.snapshot(1)
        assert (after.chip_specific, after.pic_primary) == (before.chip_specific, before.pic_primary)


def test_reset_values_are_those_of_a_pc(vm: KvmVm, chip: KvmSplitIrqChip) -> None:
    chip.add_vcpu(0, vm.create_vcpu(0))
    assert chip.get_pic_state(PicSelect.PRIMARY).elcr_mask == 0xF8
    assert chip.get_ioapic_state().redirect_table == [0x10000] * 24
    lapic = chip.get_lapic_state(0)
    assert lapic.regs[0x35] == 0x700  # LVT LINT0: ExtINT, on the boot processor
    assert lapic.regs[0xF] == 0xFF  # spurious vector, software-disabled
    assert isinstance(lapic, LapicState)
    assert isinstance(chip.get_pic_state(PicSelect.SECONDARY), PicState)
    assert (chip.lapic_frequency(), chip.pit_uses_speaker_port()) == (1_000_000_000, True)


def test_only_its_own_kind_of_snapshot_can_be_restored(chip: KvmSplitIrqChip) -> None:
    for data in (None, SplitChipState((), (), None), SplitChipState((), (0,), None)):
        with pytest.raises(InvalidArgument, match="not the state of a kvm_split chip of 2 vCPUs"):
            chip.restore_chip_specific(data)
