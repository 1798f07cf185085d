"""The 22 methods of kvm_kernel on real KVM, each with its effect on a guest or its refusal."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from irqchip_core.allocator import SystemAllocator
from irqchip_core.bus import Bus
from irqchip_core.chip import IrqChipCap, MPState, VcpuRunState
from irqchip_core.errors import (
    Closed,
    EventInUse,
    HypervisorError,
    InvalidArgument,
    InvalidRoute,
    IrqChipError,
    UnknownVcpu,
    WrongType,
)
from irqchip_core.events import Event, IrqEdgeEvent, IrqEventIndex, IrqEventSource, IrqLevelEvent, PlatformDeviceId
from irqchip_core.routes import IrqRoute, IrqSourceChip, PinSource, default_routes
from irqchip_core.selection import create_irqchip
from irqchip_core.x86.state import LapicState
from irqchip_kvm import KvmVm
from irqchip_kvm_kernel.chip import KvmKernelIrqChip
from tests.kvm_kernel.taker import HIGH_MARKER, Eoi, Taker, ioapic_entry, open_vm, program_ioapic, program_pics

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("no_leaks")]

SOURCE = IrqEventSource(PlatformDeviceId.SERIAL, 0, "COM1")


@pytest.fixture
def vm() -> Iterator[KvmVm]:
    with open_vm() as vm:
        yield vm


@pytest.fixture
def chip(vm: KvmVm) -> Iterator[KvmKernelIrqChip]:
    with create_irqchip("kvm_kernel", vm=vm, vcpu_count=2) as chip:
        assert isinstance(chip, KvmKernelIrqChip)
        yield chip


@pytest.fixture
def taker(vm: KvmVm, chip: KvmKernelIrqChip) -> Taker:
    """The guest, ready, with all lines masked in PICs and IOAPIC."""
    taker = Taker(vm, chip)
    program_pics(chip, primary_mask=0xFF)
    program_ioapic(chip, {})
    taker.start()
    return taker


@pytest.mark.binutils
def test_the_guest_is_what_its_source_says(tmp_path: Path) -> None:
    here = Path(__file__).parent
    object_file, binary = tmp_path / "taker.o", tmp_path / "taker.bin"
    subprocess.run(["as", "-o", object_file, here / "taker.S"], check=True)
    subprocess.run(["ld", "-Ttext", "0x1000", "--oformat", "binary", "-o", binary, object_file], check=True)
    assert binary.read_bytes() == (here / "taker.bin").read_bytes()


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
    with open_vm() as other_vm:
        for wrong, says in (
            (vm.create_vcpu(0), "it is vCPU 0, not 1; add it as its own number"),
            (other_vm.create_vcpu(1), "it is of another VM; give a vCPU of the VM the chip was made for"),
        ):
            with pytest.raises(InvalidArgument, match=f"kvm_kernel: vcpu: {says}"):
                chip.add_vcpu(1, wrong)
    with pytest.raises(UnknownVcpu):
        chip.get_mp_state(1)


# What is of another type altogether

NOT_A_NUMBER: list[Any] = ["4", None, 4.0, True]


@pytest.mark.parametrize("number", NOT_A_NUMBER)
def test_what_is_no_number_is_refused(vm: KvmVm, chip: KvmKernelIrqChip, number: Any) -> None:
    vcpu = vm.create_vcpu(1)
    with IrqEdgeEvent() as edge, IrqLevelEvent() as level:
        calls: list[tuple[str, Callable[[], object]]] = [
            ("irq", lambda: chip.register_edge_irq_event(number, edge, SOURCE)),
            ("irq", lambda: chip.unregister_edge_irq_event(number, edge)),
            ("irq", lambda: chip.register_level_irq_event(number, level, SOURCE)),
            ("irq", lambda: chip.unregister_level_irq_event(number, level)),
            ("irq", lambda: chip.service_irq(number, True)),
            ("index", lambda: chip.service_irq_event(number)),
            ("vector", lambda: chip.broadcast_eoi(number)),
            ("vcpu_id", lambda: chip.add_vcpu(number, vcpu)),
            ("vcpu_id", lambda: chip.get_mp_state(number)),
            ("vcpu_id", lambda: chip.get_lapic_state(number)),
        ]
        for argument, call in calls:
            with pytest.raises(WrongType, match=f"kvm_kernel: {argument}: .* give it as int"):
                call()


def test_what_is_of_another_kind_is_refused(chip: KvmKernelIrqChip) -> None:
    anything: Any = chip
    with IrqEdgeEvent() as edge, IrqLevelEvent() as level:
        calls: list[tuple[str, str, Callable[[], object]]] = [
            ("event", "IrqEdgeEvent", lambda: anything.register_edge_irq_event(10, level, SOURCE)),
            ("event", "IrqLevelEvent", lambda: anything.register_level_irq_event(10, edge, SOURCE)),
            ("event", "IrqEdgeEvent", lambda: anything.unregister_edge_irq_event(10, level)),
            ("event", "IrqLevelEvent", lambda: anything.unregister_level_irq_event(10, edge)),
            ("event", "IrqEdgeEvent", lambda: anything.register_edge_irq_event(10, edge.get_trigger(), SOURCE)),
            ("route", "IrqRoute", lambda: anything.route_irq(None)),
            ("route", "IrqRoute", lambda: anything.set_irq_routes([None])),
            ("routes", "Iterable", lambda: anything.set_irq_routes(None)),
            ("capability", "IrqChipCap", lambda: anything.check_capability("x2apic")),
        ]
        for argument, kind, call in calls:
            with pytest.raises(WrongType, match=f"kvm_kernel: {argument}: .* give it as {kind}"):
                call()
        chip.register_edge_irq_event(10, edge, SOURCE)  # both triggers are free still
        chip.register_level_irq_event(10, level, SOURCE)


# Edge events


def test_an_edge_event_reaches_the_guest_through_the_ioapic(chip: KvmKernelIrqChip, taker: Taker) -> None:
    program_ioapic(chip, {5: ioapic_entry(0x45)})
    with IrqEdgeEvent() as event:
        assert chip.register_edge_irq_event(5, event, SOURCE) is None
        for _ in range(3):
            event.trigger()
            assert taker.take() == 0x45
        assert taker.take_until_marker() == []


@pytest.mark.parametrize(
    ("gsi", "primary_mask", "secondary_mask", "eoi", "vector"),
    [
        (5, 0xFF & ~(1 << 5), 0xFF, Eoi.PRIMARY, 0x35),
        (12, 0xFF & ~(1 << 2), 0xFF & ~(1 << 4), Eoi.PRIMARY | Eoi.SECONDARY, 0x3C),
    ],
)
def test_an_edge_event_reaches_the_guest_through_the_pics(
    chip: KvmKernelIrqChip, taker: Taker, gsi: int, primary_mask: int, secondary_mask: int, eoi: Eoi, vector: int
) -> None:
    program_pics(chip, primary_mask=primary_mask, secondary_mask=secondary_mask)
    with IrqEdgeEvent() as event:
        chip.register_edge_irq_event(gsi, event, SOURCE)
        for _ in range(3):
            event.trigger()
            assert taker.take(eoi) == vector


def test_an_event_signalled_before_it_is_registered_fires_at_once(chip: KvmKernelIrqChip, taker: Taker) -> None:
    program_ioapic(chip, {5: ioapic_entry(0x45)})
    with IrqEdgeEvent() as event:
        event.trigger()
        chip.register_edge_irq_event(5, event, SOURCE)
        assert taker.take() == 0x45


def test_several_events_share_a_gsi(chip: KvmKernelIrqChip, taker: Taker) -> None:
    program_ioapic(chip, {5: ioapic_entry(0x45)})
    with IrqEdgeEvent() as one, IrqEdgeEvent() as other:
        for event in (one, other):
            chip.register_edge_irq_event(5, event, SOURCE)
        for event in (one, other, one):
            event.trigger()
            assert taker.take() == 0x45


def test_an_event_on_an_unrouted_gsi_reaches_nothing_until_a_route_exists(chip: KvmKernelIrqChip, taker: Taker) -> None:
    with IrqEdgeEvent() as event, IrqEdgeEvent() as absurd:
        chip.register_edge_irq_event(100, event, SOURCE)
        chip.register_edge_irq_event(0xFFFFFFFF, absurd, SOURCE)
        event.trigger()
        absurd.trigger()
        assert taker.take_until_marker() == []
        chip.route_irq(IrqRoute.msi(100, 0xFEE00000, 0x51))
        event.trigger()
        assert taker.take() == 0x51


@pytest.mark.parametrize("gsi", [-1, 1 << 32])
def test_a_gsi_that_is_no_u32_is_refused(chip: KvmKernelIrqChip, gsi: int) -> None:
    with IrqEdgeEvent() as edge, IrqLevelEvent() as level:
        calls: list[Callable[[], object]] = [
            lambda: chip.register_edge_irq_event(gsi, edge, SOURCE),
            lambda: chip.unregister_edge_irq_event(gsi, edge),
            lambda: chip.register_level_irq_event(gsi, level, SOURCE),
            lambda: chip.unregister_level_irq_event(gsi, level),
            lambda: chip.service_irq(gsi, True),
        ]
        for call in calls:
            with pytest.raises(InvalidArgument, match=r"kvm_kernel: irq: .* is not from 0 to 4294967295"):
                call()


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


def test_closed_descriptors_are_refused(chip: KvmKernelIrqChip) -> None:
    event = IrqEdgeEvent()
    event.close()
    level = IrqLevelEvent()
    level.get_resample().close()
    with level:
        calls: list[Callable[[], object]] = [
            lambda: chip.register_edge_irq_event(5, event, SOURCE),
            lambda: chip.register_level_irq_event(5, level, SOURCE),
            lambda: chip.unregister_edge_irq_event(5, event),
        ]
        for call in calls:
            with pytest.raises(Closed):
                call()
    behind_our_back = IrqEdgeEvent()
    os.close(behind_our_back.get_trigger().fileno())
    try:
        with pytest.raises(OSError, match="Bad file descriptor"):
            chip.register_edge_irq_event(5, behind_our_back, SOURCE)
    finally:
        os.dup2(os.open("/dev/null", os.O_RDONLY), behind_our_back.get_trigger().fileno())


def test_a_descriptor_that_is_no_eventfd_is_refused(chip: KvmKernelIrqChip) -> None:
    pipe, other_end = os.pipe()
    with IrqEdgeEvent(Event.from_fd(pipe)) as event, pytest.raises(InvalidArgument):
        chip.register_edge_irq_event(5, event, SOURCE)
    os.close(other_end)


def test_the_device_may_close_its_own_handle(chip: KvmKernelIrqChip, taker: Taker) -> None:
    program_ioapic(chip, {5: ioapic_entry(0x45)})
    with IrqEdgeEvent() as event:
        given = event.try_clone()
        chip.register_edge_irq_event(5, given, SOURCE)
        given.close()
        event.trigger()
        assert taker.take() == 0x45


def test_an_unregistered_edge_event_reaches_nothing(chip: KvmKernelIrqChip, taker: Taker) -> None:
    program_ioapic(chip, {5: ioapic_entry(0x45)})
    with IrqEdgeEvent() as event, event.try_clone() as clone, IrqEdgeEvent() as stranger:
        chip.register_edge_irq_event(5, event, SOURCE)
        chip.unregister_edge_irq_event(6, event)  # not there: nothing happens
        chip.unregister_edge_irq_event(5, stranger)
        event.trigger()
        assert taker.take() == 0x45
        chip.unregister_edge_irq_event(5, clone)
        event.trigger()
        assert taker.take_until_marker() == []
        assert event.clear_trigger(0)  # nobody has consumed it
        chip.register_edge_irq_event(5, event, SOURCE)
        event.trigger()
        assert taker.take() == 0x45


# Level events


def test_a_level_event_through_the_ioapic_is_resampled_at_each_eoi(chip: KvmKernelIrqChip, taker: Taker) -> None:
    program_ioapic(chip, {10: ioapic_entry(0x4A, level=True)})
    with IrqLevelEvent() as event:
        assert chip.register_level_irq_event(10, event, SOURCE) is None
        for _ in range(3):  # three services of one device
            event.trigger()
            assert taker.take() == 0x4A
            assert taker.take_until_marker() == []
            assert event.clear_resample(5)
            assert chip.get_ioapic_state().current_interrupt_level_bitmap == 0
        assert not event.clear_resample(0)


def test_a_level_event_through_the_pics_is_resampled_at_each_eoi(chip: KvmKernelIrqChip, taker: Taker) -> None:
    program_pics(chip, primary_mask=0xFF & ~(1 << 2), secondary_mask=0xFF & ~(1 << 2))
    with IrqLevelEvent() as event:
        chip.register_level_irq_event(10, event, SOURCE)
        for _ in range(3):
            event.trigger()
            assert taker.take(Eoi.NONE) == 0x3A
            assert taker.take_until_marker() == []
            assert not event.clear_resample(0)
            assert taker.take_until_marker(Eoi.LAPIC | Eoi.PRIMARY | Eoi.SECONDARY) == []
            assert taker.take_until_marker() == []  # the guest has gone on to the EOIs before it takes this marker
            assert event.clear_resample(5)


def test_a_level_line_stays_asserted_until_its_eoi(chip: KvmKernelIrqChip, taker: Taker) -> None:
    if taker.ends_at_delivery():
        pytest.skip("this KVM ends interrupts at delivery (kvm_pvm); run it on kvm_intel or kvm_amd")
    program_ioapic(chip, {10: ioapic_entry(0x4A, level=True)})
    with IrqLevelEvent() as event:
        chip.register_level_irq_event(10, event, SOURCE)
        event.trigger()
        assert taker.take(Eoi.NONE) == 0x4A
        assert taker.take_until_marker(marker=HIGH_MARKER) == []  # 0x4A is still in service, and blocks a low one
        assert not event.clear_resample(0)
        assert chip.get_ioapic_state().current_interrupt_level_bitmap == 1 << 10
        event.trigger()  # merges with the assertion that is not yet ended
        assert taker.take_until_marker(marker=HIGH_MARKER) == []


def test_an_unregistered_level_event_reaches_nothing(chip: KvmKernelIrqChip, taker: Taker) -> None:
    program_ioapic(chip, {10: ioapic_entry(0x4A, level=True)})
    with IrqLevelEvent() as event, event.try_clone() as clone:
        chip.register_level_irq_event(10, event, SOURCE)
        chip.unregister_level_irq_event(11, event)
        event.trigger()
        assert taker.take() == 0x4A
        assert taker.take_until_marker() == []
        assert event.clear_resample(5)
        chip.unregister_level_irq_event(10, clone)
        chip.unregister_level_irq_event(10, clone)
        event.trigger()
        assert taker.take_until_marker() == []


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


@pytest.mark.parametrize(
    "route",
    [
        IrqRoute(5, PinSource(IrqSourceChip.IOAPIC, 24)),
        IrqRoute(5, PinSource(IrqSourceChip.PIC_PRIMARY, 8)),
        IrqRoute(5, PinSource(IrqSourceChip.GIC, 0)),
        IrqRoute.msi(4096, 0xFEE00000, 0x77),
        IrqRoute.msi(-1, 0xFEE00000, 0x77),
        IrqRoute.msi(5, 1 << 64, 0x77),
    ],
)
def test_a_refused_route_changes_nothing(chip: KvmKernelIrqChip, taker: Taker, route: IrqRoute) -> None:
    program_ioapic(chip, {5: ioapic_entry(0x45)})
    with pytest.raises(InvalidRoute, match="kvm_kernel: route: ") as caught:
        chip.route_irq(route)
    assert caught.value.remedy
    with pytest.raises(InvalidRoute):
        chip.set_irq_routes([*default_routes(), route])
    chip.service_irq(5, True)
    assert taker.take() == 0x45


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


def test_set_irq_routes_replaces_everything_and_none_is_legal(chip: KvmKernelIrqChip, taker: Taker) -> None:
    program_ioapic(chip, {5: ioapic_entry(0x45)})
    chip.set_irq_routes([])
    chip.service_irq(5, True)
    assert taker.take_until_marker() == []
    chip.service_irq(5, False)
    chip.set_irq_routes([IrqRoute.ioapic(5), IrqRoute.msi(4095, 0xFEE00000, 0x60)])
    chip.service_irq(4095, True)
    assert taker.take() == 0x60
    chip.service_irq(5, True)
    assert taker.take() == 0x45


# Driving lines, and what only chips with an event table do


def test_service_irq_drives_the_line(chip: KvmKernelIrqChip, taker: Taker) -> None:
    program_ioapic(chip, {10: ioapic_entry(0x4A, level=True)})
    chip.service_irq(10, True)
    assert taker.take() == 0x4A
    assert taker.take() == 0x4A  # still high at the EOI
    chip.service_irq(10, False)
    assert taker.take_until_marker() in ([], [0x4A])  # the one that the EOI before had already sent
    assert taker.take_until_marker() == []


def test_service_irq_sends_an_msi_on_assert_only(chip: KvmKernelIrqChip, taker: Taker) -> None:
    chip.route_irq(IrqRoute.msi(30, 0xFEE00000, 0x50))
    chip.service_irq(30, False)
    assert taker.take_until_marker() == []
    chip.service_irq(30, True)
    assert taker.take_until_marker() == [0x50]


def test_service_irq_of_an_unrouted_gsi_does_nothing(chip: KvmKernelIrqChip, taker: Taker) -> None:
    for gsi in (24, 4095, 4096, 0xFFFFFFFF):
        chip.service_irq(gsi, True)
    assert taker.take_until_marker() == []


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


def test_mp_states(vm: KvmVm, chip: KvmKernelIrqChip) -> None:
    for vcpu_id in (0, 1):
        chip.add_vcpu(vcpu_id, vm.create_vcpu(vcpu_id))
    assert [chip.get_mp_state(vcpu_id) for vcpu_id in (0, 1)] == [MPState.RUNNABLE, MPState.UNINITIALIZED]
    for state in (MPState.HALTED, MPState.INIT_RECEIVED, MPState.RUNNABLE):
        chip.set_mp_state(1, state)
        assert chip.get_mp_state(1) is state
    with pytest.raises(InvalidArgument):
        chip.set_mp_state(1, MPState.STOPPED)
    assert chip.get_mp_state(1) is MPState.RUNNABLE


@pytest.mark.parametrize("vcpu_id", [-1, 0, 2, 1 << 40])
def test_mp_and_lapic_state_of_a_missing_vcpu(chip: KvmKernelIrqChip, vcpu_id: int) -> None:
    for call in (
        lambda: chip.get_mp_state(vcpu_id),
        lambda: chip.set_mp_state(vcpu_id, MPState.RUNNABLE),
        lambda: chip.get_lapic_state(vcpu_id),
        lambda: chip.set_lapic_state(vcpu_id, LapicState()),
    ):
        with pytest.raises(UnknownVcpu, match=f"there is no vCPU {vcpu_id}; give it to add_vcpu first") as caught:
            call()
        assert caught.value.errno == 2  # ENOENT


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


def test_closing_the_last_handle_disconnects_all_events(vm: KvmVm) -> None:
    chip = KvmKernelIrqChip(vm, 1)
    taker = Taker(vm, chip)
    program_pics(chip, primary_mask=0xFF)
    program_ioapic(chip, {5: ioapic_entry(0x45)})
    taker.start()
    clone = chip.try_clone()
    with IrqEdgeEvent() as event:
        chip.register_edge_irq_event(5, event, SOURCE)
        chip.close()
        event.trigger()
        assert taker.take() == 0x45
        clone.close()
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
