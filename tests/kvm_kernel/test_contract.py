"""The 22 methods of kvm_kernel on real KVM, each with its effect on a guest or its refusal."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from irqchip_core.allocator import SystemAllocator
from irqchip_core.bus import Bus
from irqchip_core.chip import IrqChipCap, MPState, VcpuRunState
from irqchip_core.errors import (
    Closed,
    EventInUse,
    HypervisorError,
    InvalidArgument,
    IrqChipError,
    UnknownVcpu,
    WrongType,
)
from irqchip_core.events import Event, IrqEdgeEvent, IrqEventIndex, IrqEventSource, IrqLevelEvent, PlatformDeviceId
from irqchip_core.routes import IrqRoute, IrqSourceChip, PinSource
from irqchip_core.selection import create_irqchip, create_vm
from irqchip_kvm import KvmVm
from irqchip_kvm_kernel.chip import KvmKernelIrqChip
from tests.chips.taker import Taker, ioapic_entry, program_ioapic, program_pics

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("no_leaks")]

SOURCE = IrqEventSource(PlatformDeviceId.SERIAL, 0, "COM1")


@pytest.fixture
def chip(vm: KvmVm) -> Iterator[KvmKernelIrqChip]:
    with create_irqchip("kvm_kernel", vm=vm, vcpu_count=2) as chip:
        assert isinstance(chip, KvmKernelIrqChip)
        yield chip


@pytest.fixture
def taker(vm: KvmVm, chip: KvmKernelIrqChip) -> Iterator[Taker]:
    """The guest, ready, with all lines masked in PICs and IOAPIC."""
    with Taker(vm, chip) as taker:
        program_pics(chip, primary_mask=0xFF)
        program_ioapic(chip, {})
        taker.start()
        yield taker


# Construction


def test_a_chip_after_a_vcpu_is_refused_with_the_remedy(vm: KvmVm) -> None:
    vm.create_vcpu(0)
    with pytest.raises(IrqChipError, match="before the first vCPU"):
        KvmKernelIrqChip(vm, 1)


def test_a_second_chip_is_refused(vm: KvmVm, chip: KvmKernelIrqChip) -> None:
    with pytest.raises(IrqChipError) as caught:
        KvmKernelIrqChip(vm, 1)
    assert caught.value.errno == 17  # EEXIST
    chip.route_irq(IrqRoute.ioapic(5))  # the first one is as it was


def test_only_vms_of_kvm_will_do(vm: KvmVm) -> None:
    with pytest.raises(WrongType, match=r"kvm_kernel: vm: it is a object; give an irqchip_kvm\.KvmVm"):
        KvmKernelIrqChip(object(), 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("vcpu_count", [-1, 0, 10**12, "2", True])
def test_a_chip_for_an_absurd_number_of_vcpus_is_refused_before_kvm_makes_one(vm: KvmVm, vcpu_count: int) -> None:
    with pytest.raises((InvalidArgument, WrongType), match=r"kvm_kernel: vcpu_count: .*; give"):
        KvmKernelIrqChip(vm, vcpu_count)
    with pytest.raises((InvalidArgument, WrongType), match="vcpu_count: "):
        create_irqchip("kvm_kernel", vm=vm, vcpu_count=vcpu_count)
    with KvmKernelIrqChip(vm, vm.max_vcpu_id()):  # which it could not be if the VM had a chip
        pass


# add_vcpu


def test_add_vcpu_wants_a_kvm_vcpu_and_a_number_in_range(vm: KvmVm, chip: KvmKernelIrqChip) -> None:
    vcpu = vm.create_vcpu(0)
    for vcpu_id in (-1, 2, 1 << 40):
        with pytest.raises(UnknownVcpu, match="beyond the 2 the chip was made for"):
            chip.add_vcpu(vcpu_id, vcpu)

    class OtherVcpu:
        id = 0

        def kick(self) -> None: ...
        def close(self) -> None: ...

    with pytest.raises(WrongType, match=r"vcpu: it is a OtherVcpu; give an irqchip_kvm\.KvmVcpu"):
        chip.add_vcpu(0, OtherVcpu())
    with pytest.raises(UnknownVcpu):
        chip.get_mp_state(0)  # nothing was stored
    chip.add_vcpu(0, vcpu)
    chip.add_vcpu(0, vcpu)  # replaces
    assert chip.get_mp_state(0) is MPState.RUNNABLE


def test_add_vcpu_wants_the_vcpu_of_that_number_and_of_its_own_vm(vm: KvmVm, chip: KvmKernelIrqChip) -> None:
    with create_vm("kvm") as other_vm:
        for wrong, says in (
            (vm.create_vcpu(0), "it is vCPU 0, not 1; add it as its own number"),
            (other_vm.create_vcpu(1), "it is of another VM; give a vCPU of the VM the chip was made for"),
        ):
            with pytest.raises(InvalidArgument, match=f"kvm_kernel: vcpu: {says}"):
                chip.add_vcpu(1, wrong)
    with pytest.raises(UnknownVcpu):
        chip.get_mp_state(1)


# Events


# Edge events


def test_the_same_event_twice_is_refused_clones_included(chip: KvmKernelIrqChip, taker: Taker) -> None:
    program_ioapic(chip, {5: ioapic_entry(0x45), 6: ioapic_entry(0x46)})
    with IrqEdgeEvent() as event, event.try_clone() as clone, IrqLevelEvent(event.get_trigger().clone()) as level:
        chip.register_edge_irq_event(5, event, SOURCE)
        for again in (event, clone):
            for gsi in (5, 6):
                with pytest.raises(EventInUse):
                    chip.register_edge_irq_event(gsi, again, SOURCE)
        with pytest.raises(EventInUse):
            chip.register_level_irq_event(6, level, SOURCE)
        clone.trigger()
        assert taker.take() == 0x45
        assert taker.take_until_marker() == []


def test_a_descriptor_that_is_no_eventfd_is_refused(chip: KvmKernelIrqChip) -> None:
    pipe, other_end = os.pipe()
    with IrqEdgeEvent(Event.from_fd(pipe)) as event, pytest.raises(InvalidArgument):
        chip.register_edge_irq_event(5, event, SOURCE)
    os.close(other_end)


# Level events


# Routes


def test_route_irq_replaces_all_routes_of_its_gsi(chip: KvmKernelIrqChip, taker: Taker) -> None:
    program_ioapic(chip, {5: ioapic_entry(0x45), 6: ioapic_entry(0x46)})
    program_pics(chip, primary_mask=0xFF & ~(1 << 5))
    chip.route_irq(IrqRoute(5, PinSource(IrqSourceChip.IOAPIC, 6)))
    chip.service_irq(5, True)
    chip.service_irq(5, False)
    assert taker.take_until_marker() == [0x46]  # neither the PIC nor pin 5
    chip.route_irq(IrqRoute.msi(5, 0xFEE00000, 0x77))
    chip.service_irq(5, True)
    assert taker.take() == 0x77


def test_a_route_that_only_the_kernel_refuses_changes_nothing(
    vm: KvmVm, chip: KvmKernelIrqChip, taker: Taker, monkeypatch: pytest.MonkeyPatch
) -> None:
    program_ioapic(chip, {5: ioapic_entry(0x45)})

    def refuse(routes: object) -> None:
        raise HypervisorError("no", call="KVM_SET_GSI_ROUTING", errno=22)

    with monkeypatch.context() as patch:
        patch.setattr(vm, "set_gsi_routing", refuse)
        with pytest.raises(HypervisorError):
            chip.route_irq(IrqRoute.msi(5, 0xFEE00000, 0x77))
        with pytest.raises(HypervisorError):
            chip.set_irq_routes([])
    chip.route_irq(IrqRoute.msi(30, 0xFEE00000, 0x50))  # sends the whole table, as it was before
    chip.service_irq(5, True)
    assert taker.take() == 0x45


# Driving lines, and what only chips with an event table do


def test_the_kernel_serves_all_events_itself(chip: KvmKernelIrqChip, caplog: pytest.LogCaptureFixture) -> None:
    with IrqEdgeEvent() as event:
        chip.register_edge_irq_event(5, event, SOURCE)
        assert chip.irq_event_tokens() == []
    assert chip.irq_delayed_event_token() is None
    chip.process_delayed_irq_events()
    assert not caplog.records
    chip.service_irq_event(IrqEventIndex(0))
    chip.broadcast_eoi(0x45)
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]


def test_the_kernel_injects_halts_and_wakes_by_itself(chip: KvmKernelIrqChip, taker: Taker) -> None:
    program_ioapic(chip, {5: ioapic_entry(0x45)})
    chip.halted(0)
    chip.kick_halted_vcpus()
    assert chip.wait_until_runnable(taker.vcpu) is VcpuRunState.RUNNABLE  # at once, kicked or not
    chip.service_irq(5, True)
    chip.inject_interrupts(taker.vcpu)
    assert taker.take() == 0x45


# MP states


# Clones and the end


def test_clones_share_everything_and_are_closed_by_themselves(chip: KvmKernelIrqChip, taker: Taker) -> None:
    program_ioapic(chip, {5: ioapic_entry(0x45)})
    clone = chip.try_clone()
    with IrqEdgeEvent() as event:
        clone.register_edge_irq_event(5, event, SOURCE)
        with pytest.raises(EventInUse):
            chip.register_edge_irq_event(5, event, SOURCE)
        clone.route_irq(IrqRoute.msi(30, 0xFEE00000, 0x50))
        chip.route_irq(IrqRoute.msi(31, 0xFEE00000, 0x51))  # sends the clone's route, too
        assert clone.get_mp_state(0) is MPState.RUNNABLE
        clone.close()
        clone.close()
        for gsi, vector in ((30, 0x50), (31, 0x51)):
            chip.service_irq(gsi, True)
            assert taker.take() == vector
        event.trigger()
        assert taker.take() == 0x45
        chip.unregister_edge_irq_event(5, event)
        event.trigger()
        assert taker.take_until_marker() == []


def test_a_closed_handle_says_so(vm: KvmVm) -> None:
    chip = KvmKernelIrqChip(vm, 1)
    vcpu = vm.create_vcpu(0)
    chip.close()
    with IrqEdgeEvent() as event:
        for call in (
            lambda: chip.add_vcpu(0, vcpu),
            lambda: chip.register_edge_irq_event(5, event, SOURCE),
            lambda: chip.unregister_edge_irq_event(5, event),
            lambda: chip.route_irq(IrqRoute.ioapic(5)),
            lambda: chip.set_irq_routes([]),
            lambda: chip.irq_event_tokens(),
            lambda: chip.service_irq(5, True),
            lambda: chip.get_mp_state(0),
            lambda: chip.try_clone(),
            lambda: chip.check_capability(IrqChipCap.X2APIC),
            lambda: chip.get_pit(),
            lambda: chip.wait_until_runnable(vcpu),
            lambda: chip.irq_delayed_event_token(),
        ):
            with pytest.raises(Closed, match="kvm_kernel: the chip is closed"):
                call()


def test_closing_the_vm_first_is_harmless(vm: KvmVm) -> None:
    chip = KvmKernelIrqChip(vm, 1)
    with IrqEdgeEvent() as event:
        chip.register_edge_irq_event(5, event, SOURCE)
        vm.close()
        with pytest.raises(Closed):
            chip.service_irq(5, True)
        chip.close()


def test_unregistering_after_the_vm_was_closed_is_harmless(vm: KvmVm) -> None:
    with KvmKernelIrqChip(vm, 1) as chip, IrqEdgeEvent() as edge, IrqLevelEvent() as level:
        chip.register_edge_irq_event(5, edge, SOURCE)
        chip.register_level_irq_event(10, level, SOURCE)
        vm.close()
        for _ in range(2):
            chip.unregister_edge_irq_event(5, edge)
            chip.unregister_level_irq_event(10, level)


def test_a_forked_child_may_close_its_handle_and_its_parent_goes_on(
    vm: KvmVm, chip: KvmKernelIrqChip, taker: Taker
) -> None:
    program_ioapic(chip, {5: ioapic_entry(0x45)})
    with IrqEdgeEvent() as event:
        chip.register_edge_irq_event(5, event, SOURCE)
        if (child := os.fork()) == 0:
            status = 1
            try:
                with pytest.raises(HypervisorError, match="the VM belongs to the process that made it"):
                    chip.service_irq(5, True)
                chip.close()
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        event.trigger()
        assert taker.take() == 0x45


def test_finalize_devices_claims_nothing(chip: KvmKernelIrqChip) -> None:
    allocator, io_bus, mmio_bus = SystemAllocator(), Bus("I/O"), Bus("MMIO")
    chip.finalize_devices(allocator, io_bus, mmio_bus)
    assert io_bus.devices() == mmio_bus.devices() == []
    assert allocator.allocate_irq() == 9


def test_capabilities_are_those_of_kvm(vm: KvmVm, chip: KvmKernelIrqChip) -> None:
    assert chip.check_capability(IrqChipCap.X2APIC)
    assert chip.check_capability(IrqChipCap.MP_STATE_GET_SET)
    assert chip.check_capability(IrqChipCap.TSC_DEADLINE_TIMER) is (vm.check_extension(72) == 1)
