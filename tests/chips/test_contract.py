"""What the contract says of every chip, each with its effect on a guest or its refusal."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from irqchip_core.chip import MPState
from irqchip_core.errors import Closed, InvalidArgument, InvalidRoute, UnknownVcpu, WrongType
from irqchip_core.events import IrqEdgeEvent, IrqEventSource, IrqLevelEvent, PlatformDeviceId
from irqchip_core.exits import InterruptedExit
from irqchip_core.routes import IrqRoute, IrqSourceChip, PinSource, default_routes
from irqchip_core.selection import create_irqchip, create_vm
from irqchip_core.vcpu import Vm
from irqchip_core.x86.chip import IrqChipX86_64
from irqchip_core.x86.state import LapicState
from tests.chips.taker import HIGH_MARKER, MARKER_ROUTES, Eoi, Taker, ioapic_entry, program_ioapic, program_pics

pytestmark = pytest.mark.usefixtures("no_leaks")

SOURCE = IrqEventSource(PlatformDeviceId.SERIAL, 0, "COM1")


@pytest.mark.binutils
def test_the_guest_is_what_its_source_says(tmp_path: Path) -> None:
    here = Path(__file__).parent
    object_file, binary = tmp_path / "taker.o", tmp_path / "taker.bin"
    subprocess.run(["as", "-o", object_file, here / "taker.S"], check=True)
    subprocess.run(["ld", "-Ttext", "0x1000", "--oformat", "binary", "-o", binary, object_file], check=True)
    assert binary.read_bytes() == (here / "taker.bin").read_bytes()


# What is of another type altogether

NOT_A_NUMBER: list[Any] = ["4", None, 4.0, True]


@pytest.mark.parametrize("number", NOT_A_NUMBER)
def test_what_is_no_number_is_refused(vm: Vm, chip: IrqChipX86_64, number: Any) -> None:
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
            ("vcpu_count", lambda: chip.snapshot(number)),
        ]
        for argument, call in calls:
            with pytest.raises(WrongType, match=f"{argument}: .* give it as int"):
                call()


def test_what_is_of_another_kind_is_refused(chip: IrqChipX86_64) -> None:
    anything: Any = chip
    with IrqEdgeEvent() as edge, IrqLevelEvent() as level:
        calls: list[tuple[str, str, Callable[[], object]]] = [
            ("event", "IrqEdgeEvent", lambda: anything.register_edge_irq_event(10, level, SOURCE)),
            ("event", "IrqLevelEvent", lambda: anything.register_level_irq_event(10, edge, SOURCE)),
            ("event", "IrqEdgeEvent", lambda: anything.unregister_edge_irq_event(10, level)),
            ("event", "IrqLevelEvent", lambda: anything.unregister_level_irq_event(10, edge)),
            ("event", "IrqEdgeEvent", lambda: anything.register_edge_irq_event(10, edge.get_trigger(), SOURCE)),
            ("source", "IrqEventSource", lambda: anything.register_edge_irq_event(10, edge, "COM1")),
            ("source", "IrqEventSource", lambda: anything.register_level_irq_event(10, level, None)),
            ("route", "IrqRoute", lambda: anything.route_irq(None)),
            ("route", "IrqRoute", lambda: anything.set_irq_routes([None])),
            ("routes", "Iterable", lambda: anything.set_irq_routes(None)),
            ("capability", "IrqChipCap", lambda: anything.check_capability("x2apic")),
        ]
        for argument, kind, call in calls:
            with pytest.raises(WrongType, match=f"{argument}: .* give it as {kind}"):
                call()
        chip.register_edge_irq_event(10, edge, SOURCE)  # both triggers are free still
        chip.register_level_irq_event(10, level, SOURCE)


def test_a_vcpu_is_added_as_its_own_number(vm: Vm, chip: IrqChipX86_64) -> None:
    vcpu = vm.create_vcpu(0)
    with pytest.raises(InvalidArgument, match="vcpu: it is vCPU 0, not 1; add it as its own number"):
        chip.add_vcpu(1, vcpu)
    for vcpu_id in (-1, 2, 1 << 40):
        with pytest.raises(UnknownVcpu, match="beyond the 2 the chip was made for"):
            chip.add_vcpu(vcpu_id, vcpu)


@pytest.mark.parametrize("vcpu_id", [-1, 0, 2, 1 << 40])
def test_mp_and_lapic_state_of_a_missing_vcpu(chip: IrqChipX86_64, vcpu_id: int) -> None:
    for call in (
        lambda: chip.get_mp_state(vcpu_id),
        lambda: chip.set_mp_state(vcpu_id, MPState.RUNNABLE),
        lambda: chip.get_lapic_state(vcpu_id),
        lambda: chip.set_lapic_state(vcpu_id, LapicState()),
    ):
        with pytest.raises(UnknownVcpu, match=f"there is no vCPU {vcpu_id}; give it to add_vcpu first") as caught:
            call()
        assert caught.value.errno == 2  # ENOENT


# Edge events


def test_an_edge_event_reaches_the_guest_through_the_ioapic(chip: IrqChipX86_64, taker: Taker) -> None:
    program_ioapic(chip, {5: ioapic_entry(0x45)})
    with IrqEdgeEvent() as event:
        chip.register_edge_irq_event(5, event, SOURCE)
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
    chip: IrqChipX86_64, taker: Taker, gsi: int, primary_mask: int, secondary_mask: int, eoi: Eoi, vector: int
) -> None:
    program_pics(chip, primary_mask=primary_mask, secondary_mask=secondary_mask)
    with IrqEdgeEvent() as event:
        chip.register_edge_irq_event(gsi, event, SOURCE)
        for _ in range(3):
            event.trigger()
            assert taker.take(eoi) == vector


def test_an_event_signalled_before_it_is_registered_fires_at_once(chip: IrqChipX86_64, taker: Taker) -> None:
    program_ioapic(chip, {5: ioapic_entry(0x45)})
    with IrqEdgeEvent() as event:
        event.trigger()
        chip.register_edge_irq_event(5, event, SOURCE)
        assert taker.take() == 0x45


def test_several_events_share_a_gsi(chip: IrqChipX86_64, taker: Taker) -> None:
    program_ioapic(chip, {5: ioapic_entry(0x45)})
    with IrqEdgeEvent() as one, IrqEdgeEvent() as other:
        for event in (one, other):
            chip.register_edge_irq_event(5, event, SOURCE)
        for event in (one, other, one):
            event.trigger()
            assert taker.take() == 0x45


def test_an_event_on_an_unrouted_gsi_reaches_nothing_until_a_route_exists(chip: IrqChipX86_64, taker: Taker) -> None:
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
def test_a_gsi_that_is_no_u32_is_refused(chip: IrqChipX86_64, gsi: int) -> None:
    with IrqEdgeEvent() as edge, IrqLevelEvent() as level:
        calls: list[Callable[[], object]] = [
            lambda: chip.register_edge_irq_event(gsi, edge, SOURCE),
            lambda: chip.unregister_edge_irq_event(gsi, edge),
            lambda: chip.register_level_irq_event(gsi, level, SOURCE),
            lambda: chip.unregister_level_irq_event(gsi, level),
            lambda: chip.service_irq(gsi, True),
        ]
        for call in calls:
            with pytest.raises(InvalidArgument, match=r"irq: .* is not from 0 to 4294967295"):
                call()


def test_closed_descriptors_are_refused(chip: IrqChipX86_64) -> None:
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


def test_the_device_may_close_its_own_handle(chip: IrqChipX86_64, taker: Taker) -> None:
    program_ioapic(chip, {5: ioapic_entry(0x45)})
    with IrqEdgeEvent() as event:
        given = event.try_clone()
        chip.register_edge_irq_event(5, given, SOURCE)
        given.close()
        event.trigger()
        assert taker.take() == 0x45


def test_an_unregistered_edge_event_reaches_nothing(chip: IrqChipX86_64, taker: Taker) -> None:
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


def test_a_level_event_through_the_ioapic_is_resampled_at_each_eoi(chip: IrqChipX86_64, taker: Taker) -> None:
    program_ioapic(chip, {10: ioapic_entry(0x4A, level=True)})
    with IrqLevelEvent() as event:
        chip.register_level_irq_event(10, event, SOURCE)
        for _ in range(3):  # three services of one device
            event.trigger()
            assert taker.take() == 0x4A
            assert taker.take_until_marker() == []
            assert event.clear_resample(5)
            assert chip.get_ioapic_state().current_interrupt_level_bitmap == 0
        assert not event.clear_resample(0)


def test_a_level_event_through_the_pics_is_resampled_at_each_eoi(chip: IrqChipX86_64, taker: Taker) -> None:
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


def test_a_level_line_stays_asserted_until_its_eoi(chip: IrqChipX86_64, taker: Taker) -> None:
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


def test_an_unregistered_level_event_reaches_nothing(chip: IrqChipX86_64, taker: Taker) -> None:
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
def test_a_refused_route_changes_nothing(chip: IrqChipX86_64, taker: Taker, route: IrqRoute) -> None:
    program_ioapic(chip, {5: ioapic_entry(0x45)})
    with pytest.raises(InvalidRoute, match="route: ") as caught:
        chip.route_irq(route)
    assert caught.value.remedy
    with pytest.raises(InvalidRoute):
        chip.set_irq_routes([*default_routes(), route])
    chip.service_irq(5, True)
    assert taker.take() == 0x45


def test_set_irq_routes_replaces_everything_and_none_is_legal(chip: IrqChipX86_64, taker: Taker) -> None:
    program_ioapic(chip, {5: ioapic_entry(0x45)})
    chip.set_irq_routes([])
    chip.service_irq(5, True)
    chip.service_irq(5, False)
    chip.set_irq_routes([*MARKER_ROUTES, IrqRoute.msi(4095, 0xFEE00000, 0x60)])
    assert taker.take_until_marker() == []
    chip.service_irq(4095, True)
    assert taker.take() == 0x60
    chip.set_irq_routes([*MARKER_ROUTES, IrqRoute.ioapic(5)])
    chip.service_irq(5, True)
    chip.service_irq(4095, True)
    assert taker.take_until_marker() == [0x45]


# Driving lines, and what only chips with an event table do


def test_service_irq_drives_the_line(chip: IrqChipX86_64, taker: Taker) -> None:
    program_ioapic(chip, {10: ioapic_entry(0x4A, level=True)})
    chip.service_irq(10, True)
    assert taker.take() == 0x4A
    assert taker.take() == 0x4A  # still high at the EOI
    chip.service_irq(10, False)
    assert taker.take_until_marker() in ([], [0x4A])  # the one that the EOI before had already sent
    assert taker.take_until_marker() == []


def test_service_irq_sends_an_msi_on_assert_only(chip: IrqChipX86_64, taker: Taker) -> None:
    chip.route_irq(IrqRoute.msi(30, 0xFEE00000, 0x50))
    chip.service_irq(30, False)
    assert taker.take_until_marker() == []
    chip.service_irq(30, True)
    assert taker.take_until_marker() == [0x50]


def test_service_irq_of_an_unrouted_gsi_does_nothing(chip: IrqChipX86_64, taker: Taker) -> None:
    for gsi in (24, 4095, 4096, 0xFFFFFFFF):
        chip.service_irq(gsi, True)
    assert taker.take_until_marker() == []


# Clones and the end


def test_clones_share_everything_and_are_closed_by_themselves(chip: IrqChipX86_64, taker: Taker) -> None:
    program_ioapic(chip, {5: ioapic_entry(0x45)})
    clone = chip.try_clone()
    with IrqEdgeEvent() as event:
        clone.register_edge_irq_event(5, event, SOURCE)
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


def test_closing_the_last_handle_disconnects_all_events(names: tuple[str, str], vm: Vm) -> None:
    chip = create_irqchip(names[0], vm=vm)
    clone = chip.try_clone()
    with IrqEdgeEvent() as event:
        chip.register_edge_irq_event(100, event, SOURCE)
        chip.close()
        chip.close()
        with pytest.raises(Closed, match=f"{names[0]}: the chip is closed"):
            chip.service_irq(5, True)
        clone.service_irq(5, True)
        clone.close()
        event.trigger()
        assert event.clear_trigger(0)  # nobody has consumed it


def test_mp_states(vm: Vm, chip: IrqChipX86_64) -> None:
    for vcpu_id in (0, 1):
        chip.add_vcpu(vcpu_id, vm.create_vcpu(vcpu_id))
    assert [chip.get_mp_state(vcpu_id) for vcpu_id in (0, 1)] == [MPState.RUNNABLE, MPState.UNINITIALIZED]
    for state in (MPState.HALTED, MPState.INIT_RECEIVED, MPState.RUNNABLE):
        chip.set_mp_state(1, state)
        assert chip.get_mp_state(1) is state
    with pytest.raises(InvalidArgument):
        chip.set_mp_state(1, MPState.STOPPED)
    assert chip.get_mp_state(1) is MPState.RUNNABLE


def test_masked_lines_reach_nothing(chip: IrqChipX86_64, taker: Taker) -> None:
    program_ioapic(chip, {5: ioapic_entry(0x45, masked=True)})
    with IrqEdgeEvent() as event:
        chip.register_edge_irq_event(5, event, SOURCE)
        event.trigger()
        assert taker.take_until_marker() == []


def test_a_new_snapshot_of_a_chip_is_taken_by_another(
    names: tuple[str, str], chip: IrqChipX86_64, taker: Taker
) -> None:
    program_ioapic(chip, {6: ioapic_entry(0x46)})
    program_pics(chip, primary_mask=0xFF & ~(1 << 5))
    chip.add_vcpu(1, taker.vm.create_vcpu(1))
    chip.service_irq(5, True)  # pending in the PIC
    chip.service_irq(6, True)  # pending in the local APIC
    chip.service_irq(6, False)
    assert taker.vcpu.complete_io() == InterruptedExit()  # else the other VM repeats the OUT that said READY
    snapshot = chip.snapshot(2)
    with create_vm(names[1]) as vm, create_irqchip(names[0], vm=vm, vcpu_count=2) as other_chip:
        assert isinstance(other_chip, IrqChipX86_64)
        with Taker(vm, other_chip) as other:
            other.vcpu.set_sregs(taker.vcpu.get_sregs())
            other.vcpu.set_regs(taker.vcpu.get_regs())
            other_chip.add_vcpu(1, vm.create_vcpu(1))
            other_chip.restore(snapshot, 2)
            assert {other.take(Eoi.LAPIC | Eoi.PRIMARY) for _ in range(2)} == {0x35, 0x46}
