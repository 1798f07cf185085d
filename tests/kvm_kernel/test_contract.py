"""The 22 methods of kvm_kernel on real KVM, each with its effect on a guest or its refusal."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from irqchip_core.allocator import SystemAllocator
from irqchip_core.bus import Bus
from irqchip_core.capabilities import IrqChipCap
from irqchip_core.chip import MPState, VcpuRunState
from irqchip_core.errors import (
    Closed,
    EventInUse,
    HypervisorError,
    InvalidArgument,
    IrqChipError,
    UnknownVcpu,
    WrongType,
)
from irqchip_core.eventfd import Event
from irqchip_core.events import IrqEdgeEvent, IrqEventIndex, IrqEventSource, IrqLevelEvent, PlatformDeviceId
from irqchip_core.routes import IrqRoute
from irqchip_core.selection import create_irqchip, create_vm
from irqchip_core.testing.bench import Bench
from irqchip_kvm import KvmVm
from irqchip_kvm_kernel.chip import KvmKernelIrqChip

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("no_leaks")]

SOURCE = IrqEventSource(PlatformDeviceId.SERIAL, 0, "COM1")


@pytest.fixture
def chip(vm: KvmVm) -> Iterator[KvmKernelIrqChip]:
    with create_irqchip("kvm_kernel", vm=vm, vcpu_count=2) as chip:
        assert isinstance(chip, KvmKernelIrqChip)
        yield chip


@pytest.fixture
def machine(vm: KvmVm, chip: KvmKernelIrqChip) -> Iterator[Bench]:
    """A guest that takes interrupts, with all lines masked in PICs and IOAPIC."""
    with Bench(vm, chip) as machine:
        yield machine


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


def test_the_same_event_twice_is_refused_clones_included(chip: KvmKernelIrqChip, machine: Bench) -> None:
    machine.pin(5, 0x45)
    machine.pin(6, 0x46)
    event = machine.edge(5)
    with chip.try_clone() as other, event.try_clone() as clone, IrqLevelEvent(event.get_trigger().clone()) as level:
        for again in (event, clone):
            for gsi in (5, 6):
                for handle in (chip, other):
                    with pytest.raises(EventInUse):
                        handle.register_edge_irq_event(gsi, again, SOURCE)
        with pytest.raises(EventInUse):
            chip.register_level_irq_event(6, level, SOURCE)
        clone.trigger()
        machine.cpu.expect(0x45, rule="a refused registration leaves the one before")


def test_a_descriptor_that_is_no_eventfd_is_refused(chip: KvmKernelIrqChip) -> None:
    pipe, other_end = os.pipe()
    with IrqEdgeEvent(Event.from_fd(pipe)) as event, pytest.raises(InvalidArgument):
        chip.register_edge_irq_event(5, event, SOURCE)
    os.close(other_end)


# Routes


def test_a_route_that_only_the_kernel_refuses_changes_nothing(
    vm: KvmVm, chip: KvmKernelIrqChip, machine: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.pin(5, 0x45)

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
    machine.cpu.expect(0x45, rule="the table is as it was")


# What only chips with an event table do


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


def test_the_kernel_injects_halts_and_wakes_by_itself(chip: KvmKernelIrqChip, machine: Bench) -> None:
    machine.pin(5, 0x45)
    chip.halted(0)
    chip.kick_halted_vcpus()
    assert chip.wait_until_runnable(machine.cpu.vcpu) is VcpuRunState.RUNNABLE  # at once, kicked or not
    chip.service_irq(5, True)
    chip.inject_interrupts(machine.cpu.vcpu)
    machine.cpu.expect(0x45, rule="the kernel injects by itself")


# The end


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
    vm: KvmVm, chip: KvmKernelIrqChip, machine: Bench
) -> None:
    machine.pin(5, 0x45)
    event = machine.edge(5)
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
    machine.cpu.expect(0x45, rule="the parent goes on")


def test_finalize_devices_claims_nothing(chip: KvmKernelIrqChip) -> None:
    allocator, io_bus, mmio_bus = SystemAllocator(), Bus("I/O"), Bus("MMIO")
    chip.finalize_devices(allocator, io_bus, mmio_bus)
    assert io_bus.devices() == mmio_bus.devices() == []
    assert allocator.allocate_irq() == 24


def test_capabilities_are_those_of_kvm(vm: KvmVm, chip: KvmKernelIrqChip) -> None:
    assert chip.check_capability(IrqChipCap.X2APIC)
    assert chip.check_capability(IrqChipCap.MP_STATE_GET_SET)
    assert chip.check_capability(IrqChipCap.TSC_DEADLINE_TIMER) is (vm.check_extension(72) == 1)
