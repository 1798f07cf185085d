"""The x86 extension of kvm_kernel: state in and out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from attrs import evolve

from irqchip_core.chip import MPState
from irqchip_core.errors import InvalidArgument, InvalidRoute, UnknownVcpu, WrongType
from irqchip_core.routes import IrqRoute
from irqchip_core.selection import create_vm
from irqchip_core.x86.state import ChipSnapshot, PicInitState, PicSelect, PicState, PitRwMode
from irqchip_kvm import KvmVm
from irqchip_kvm_kernel.chip import KernelChipState, KvmKernelIrqChip

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("no_leaks")]


@pytest.fixture
def chip(vm: KvmVm) -> Iterator[KvmKernelIrqChip]:
    with KvmKernelIrqChip(vm, 1) as chip:
        yield chip


def test_reset_values_are_those_of_a_pc(chip: KvmKernelIrqChip, vm: KvmVm) -> None:
    assert chip.get_pic_state(PicSelect.PRIMARY) == PicState(elcr_mask=0xF8)
    assert chip.get_pic_state(PicSelect.SECONDARY) == PicState(elcr_mask=0xDE)
    ioapic = chip.get_ioapic_state()
    assert ioapic.base_address == 0xFEC00000
    assert ioapic.redirect_table == [0x10000] * 24
    pit = chip.get_pit()
    assert [channel.count for channel in pit.channels] == [0x10000] * 3
    assert [channel.gate for channel in pit.channels] == [True, True, False]
    chip.add_vcpu(0, vm.create_vcpu(0))
    lapic = chip.get_lapic_state(0)
    assert lapic.regs[0x35] == 0x700  # LVT LINT0: ExtINT, on the boot processor
    assert lapic.regs[0xF] == 0xFF  # spurious vector, software-disabled


def test_pic_state_goes_in_and_comes_out(chip: KvmKernelIrqChip) -> None:
    state = PicState(
        irr=0x01, imr=0x5A, isr=0x10, priority_add=3, irq_base=0x70, special_mask=True,
        init_state=PicInitState.ICW3, auto_eoi=True, rotate_on_auto_eoi=True,
        special_fully_nested_mode=True, use_4_byte_icw=True, elcr=0x20, elcr_mask=0xF8,
    )  # fmt: skip
    chip.set_pic_state(PicSelect.PRIMARY, state)
    assert chip.get_pic_state(PicSelect.PRIMARY) == state
    assert chip.get_pic_state(PicSelect.SECONDARY) == PicState(elcr_mask=0xDE)


def test_ioapic_lapic_and_pit_state_go_in_and_come_out(chip: KvmKernelIrqChip, vm: KvmVm) -> None:
    ioapic = evolve(chip.get_ioapic_state(), ioapicid=0x0F000000, ioregsel=0x12)
    ioapic.redirect_table[7] = 0x0100_0000_0000_8047
    chip.set_ioapic_state(ioapic)
    assert chip.get_ioapic_state() == ioapic

    chip.add_vcpu(0, vm.create_vcpu(0))
    lapic = chip.get_lapic_state(0)
    lapic.regs[0x8] = 0x20  # TPR
    lapic.regs[0xF] = 0x1FF
    chip.set_lapic_state(0, lapic)
    taken = chip.get_lapic_state(0)
    assert (taken.regs[0x8], taken.regs[0xF]) == (0x20, 0x1FF)

    pit = chip.get_pit()
    pit.channels[2] = evolve(pit.channels[2], count=1234, mode=3, rw_mode=PitRwMode.BOTH, gate=True)
    chip.set_pit(pit)
    channel = chip.get_pit().channels[2]
    assert (channel.count, channel.mode, channel.rw_mode, channel.gate) == (1234, 3, PitRwMode.BOTH, True)


def test_state_that_does_not_fit_is_refused_and_changes_nothing(chip: KvmKernelIrqChip) -> None:
    before = chip.get_ioapic_state()
    with pytest.raises(InvalidArgument, match="redirect_table: it has 3 elements"):
        chip.set_ioapic_state(evolve(before, redirect_table=[0, 0, 0]))
    with pytest.raises(InvalidArgument, match=r"kvm_kernel: state\.irr: it is 256; give 0 to 255"):
        chip.set_pic_state(PicSelect.PRIMARY, PicState(irr=256))
    assert chip.get_ioapic_state() == before
    assert chip.get_pic_state(PicSelect.PRIMARY).irr == 0


def test_what_the_vmm_must_know(chip: KvmKernelIrqChip) -> None:
    assert chip.lapic_frequency() == 1_000_000_000
    assert chip.pit_uses_speaker_port() is False


def test_a_snapshot_of_another_size_is_refused_before_anything_changes(chip: KvmKernelIrqChip, vm: KvmVm) -> None:
    with pytest.raises(UnknownVcpu):
        chip.snapshot(1)  # its vCPU was never added
    chip.add_vcpu(0, vm.create_vcpu(0))
    snapshot = chip.snapshot(1)
    pit = chip.get_pit()
    assert snapshot.pit is not None
    snapshot.pit.channels[0].count = 77
    with pytest.raises(InvalidArgument, match="it has 1 local APICs, not 2; restore into a machine with as many as"):
        chip.restore(snapshot, 2)
    snapshot.mp_states.append(MPState.RUNNABLE)
    with pytest.raises(InvalidArgument, match="it has 2 MP states, not 1"):
        chip.restore(snapshot, 1)
    assert chip.get_pit().channels[0].count == pit.channels[0].count
    for data in (None, KernelChipState((), ()), KernelChipState((), (0, 0))):
        with pytest.raises(InvalidArgument, match="not the state of a kvm_kernel chip of 1 vCPUs"):
            chip.restore_chip_specific(data)


def two_vcpu_snapshot() -> ChipSnapshot:
    """Of a chip whose PIC, IOAPIC and PIT are not as they are after reset."""
    with create_vm("kvm") as vm, KvmKernelIrqChip(vm, 2) as chip:
        for vcpu_id in (0, 1):
            chip.add_vcpu(vcpu_id, vm.create_vcpu(vcpu_id))
        chip.set_pic_state(PicSelect.PRIMARY, PicState(imr=0x5A, elcr_mask=0xF8))
        ioapic = chip.get_ioapic_state()
        ioapic.redirect_table[5] = 0x45
        chip.set_ioapic_state(ioapic)
        snapshot = chip.snapshot(2)
        assert snapshot.pit is not None
        snapshot.pit.channels[2] = evolve(snapshot.pit.channels[2], count=1234, mode=3)
        return snapshot


@pytest.mark.parametrize(
    ("chip_vcpus", "added", "specific", "refusal", "says"),
    [
        (
            3,
            3,
            {},
            InvalidArgument,
            "not the state of a kvm_kernel chip of 3 vCPUs; restore what a chip of this backend",
        ),
        (2, 0, {}, UnknownVcpu, "there is no vCPU 0; give it to add_vcpu first"),
        (2, 1, {}, UnknownVcpu, "there is no vCPU 1; give it to add_vcpu first"),
        (2, 2, None, InvalidArgument, "not the state of a kvm_kernel chip of 2 vCPUs"),
        (2, 2, {"interrupt_bitmaps": (0,)}, InvalidArgument, "not the state of a kvm_kernel chip of 2 vCPUs"),
        (2, 2, {"routes": (IrqRoute.msi(4096, 0, 0),)}, InvalidRoute, "GSI out of range"),
        (2, 2, {"routes": (None,)}, WrongType, "give it as IrqRoute"),
    ],
)
def test_a_refused_restore_changes_nothing(
    vm: KvmVm, chip_vcpus: int, added: int, specific: dict[str, Any] | None, refusal: type[Exception], says: str
) -> None:
    snapshot = two_vcpu_snapshot()
    snapshot.chip_specific = None if specific is None else evolve(snapshot.chip_specific, **specific)
    with KvmKernelIrqChip(vm, chip_vcpus) as chip:
        for vcpu_id in range(added):
            chip.add_vcpu(vcpu_id, vm.create_vcpu(vcpu_id))

        def state() -> object:
            modes = [channel.mode for channel in chip.get_pit().channels]
            return modes, chip.get_pic_state(PicSelect.PRIMARY), chip.get_ioapic_state()

        before = state()
        with pytest.raises(refusal, match=says):
            chip.restore(snapshot, 2)
        assert state() == before


def test_only_a_snapshot_can_be_restored(chip: KvmKernelIrqChip) -> None:
    with pytest.raises(WrongType, match="kvm_kernel: snapshot: None is of type NoneType; give it as ChipSnapshot"):
        chip.restore(None, 1)  # type: ignore[arg-type]
