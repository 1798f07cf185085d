"""Chips that lack controllers: the kit plays what they can have, and finds the ones that pretend."""

from __future__ import annotations

import re

import pytest

from irqchip_core.capabilities import PC_CONTROLLERS, IrqChipCap
from irqchip_core.errors import InvalidArgument, InvalidRoute, Unsupported
from irqchip_core.routes import IrqRoute
from irqchip_core.selection import create_vm
from irqchip_core.testing.conformance import Conformance, Nonconforming, NotApplicable
from irqchip_core.testing.lab import Lab
from irqchip_core.x86.cpuid import vcpu_cpuid
from tests.conformance import lacking_chips as lacking
from tests.conformance.lacking_chips import LackingChip

CHIPS = [LackingChip, lacking.WithoutPics, lacking.WithoutIoapic, lacking.WithoutPit]
ABOUT_ABSENCE = ["state_of_an_absent_controller", "snapshot_has_the_controllers_of_the_chip"]
OPEN_TO_ALL = [
    *ABOUT_ABSENCE,
    "edge_through_an_msi_route",
    "registered_again",
    "clone_shares_events_and_routes",
    "clone_shares_state",
    "use_after_close",
    "every_argument_of_every_method",
    "damaged_records",
    "damaged_snapshots",
    "moved_guest",
    "state_while_vcpus_execute",
    "set_irq_routes_replaces_all",
    "no_routes",
    "event_registered_while_a_vcpu_runs",
    "devices_find_their_place_taken",
]
NEEDS = {
    "edge_through_the_primary_pic": IrqChipCap.PIC,
    "pic_vector_base": IrqChipCap.PIC,
    "pic_state_round_trip": IrqChipCap.PIC,
    "edge_through_the_ioapic": IrqChipCap.IOAPIC,
    "ioapic_state_round_trip": IrqChipCap.IOAPIC,
    "broadcast_eoi": IrqChipCap.IOAPIC,
    "pit_state": IrqChipCap.PIT,
    "pit_speaker_port": IrqChipCap.PIT,
}

WRONG = [
    (
        lacking.RecordInvented,
        "state_of_an_absent_controller",
        r"the pit, .* cannot be read .Unsupported., but it was ac",
    ),
    (lacking.AbsentStateIgnored, "state_of_an_absent_controller", "the ioapic, .* cannot be set .Unsupported., but it"),
    (lacking.OtherControllerNamed, "state_of_an_absent_controller", "the error names it, but it says"),
    (lacking.InventedRecordSaved, "snapshot_has_the_controllers_of_the_chip", "has pit exactly if .* but it is True"),
    (lacking.AbsentRecordTaken, "snapshot_has_the_controllers_of_the_chip", "snapshot with ioapic .* it was accepted"),
    (lacking.PinsTaken, "route_to_a_controller_that_is_absent", "route_irq refuses a pin of pic_primary.* accepted"),
]


def kit_for(chip: type[LackingChip]) -> Conformance:
    kit = Conformance()
    kit.lab = Lab(lambda: create_vm("unicorn"), chip)
    return kit


def play(kit: Conformance, scenario: str) -> None:
    kit.lab.perform(getattr(kit, f"test_{scenario}"))


@pytest.mark.parametrize("scenario", OPEN_TO_ALL)
@pytest.mark.parametrize("chip", CHIPS)
def test_what_only_needs_some_interrupt_is_played(chip: type[LackingChip], scenario: str) -> None:
    play(kit_for(chip), scenario)


@pytest.mark.parametrize("chip", CHIPS)
def test_scenarios_open_by_controllers(chip: type[LackingChip]) -> None:
    for scenario, controller in NEEDS.items():
        kit = kit_for(chip)
        if controller in chip.lacking:
            with pytest.raises(NotApplicable, match=f"needs capability {controller.value}, which the chip does not cl"):
                play(kit, scenario)
        else:
            play(kit, scenario)


@pytest.mark.parametrize(("chip", "scenario", "message"), WRONG)
def test_a_chip_that_pretends_fails(chip: type[LackingChip], scenario: str, message: str) -> None:
    with pytest.raises(Nonconforming) as caught:
        play(kit_for(chip), scenario)
    assert re.search(message, str(caught.value)), caught.value


def test_an_absent_controller_is_refused_by_name() -> None:
    with create_vm("unicorn") as vm, LackingChip(vm, 1) as chip:
        assert {one for one in PC_CONTROLLERS if chip.check_capability(one)} == {
            IrqChipCap.LOCAL_APIC,
            IrqChipCap.MSI,
        }
        with pytest.raises(Unsupported, match=r"the chip has no pit; choose one with it: require={IrqChipCap.PIT}"):
            chip.get_pit()
        with pytest.raises(InvalidRoute, match="there is no ioapic here; controllers of this chip: none"):
            chip.route_irq(IrqRoute.ioapic(5))
        chip.add_vcpu(0, vm.create_vcpu(0))
        snapshot = chip.snapshot(1)
        assert (snapshot.ioapic, snapshot.pic_primary, snapshot.pic_secondary, snapshot.pit) == (None,) * 4
        chip.restore(snapshot, 1)
        with create_vm("unicorn") as other_vm, lacking.WithoutPit(other_vm, 1) as other:
            other.add_vcpu(0, other_vm.create_vcpu(0))
            with pytest.raises(InvalidArgument, match=r"snapshot\.pic_primary: the chip has no pic; restore into"):
                chip.restore(other.snapshot(1), 1)


def test_cpuid_announces_no_local_apic_that_is_absent() -> None:
    class WithoutApics(LackingChip):
        lacking = LackingChip.lacking | {IrqChipCap.LOCAL_APIC}

    for chip, announced in ((LackingChip, 1), (WithoutApics, 0)):
        with create_vm("unicorn") as vm, chip(vm, 1) as made:
            leaves = {entry.function: entry for entry in vcpu_cpuid(vm.supported_cpuid(), made, 0, 1)}
            assert (leaves[1].edx >> 9 & 1, leaves[0x15].eax, bool(leaves[0x15].ecx)) == (announced,) * 2 + (
                bool(announced),
            )
