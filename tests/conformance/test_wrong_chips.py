"""The conformance kit bites: each chip with a fault fails a scenario, with a message that names the fault."""

from __future__ import annotations

import inspect
import re

import pytest

from irqchip_core.capabilities import IrqChipCap
from irqchip_core.selection import create_vm
from irqchip_core.testing.conformance import Conformance, Nonconforming
from irqchip_core.testing.lab import Lab
from tests.conformance import wrong_chips as wrong
from tests.conformance.wrong_chips import Maker, with_parts

PATIENCE = 1.0
CLAIMS = frozenset(IrqChipCap)
"""Of the userspace chip on Unicorn."""

FAULTS: list[tuple[Maker, str, str]] = [
    # Events
    (
        with_parts(Chipset=wrong.EveryOtherEdgeLost),
        "edge_through_the_ioapic",
        "each signal of an edge event interrupts once, but on vCPU 0 0x45 was lost",
    ),
    (
        with_parts(Chipset=wrong.DeliveredTwice, UserspaceApics=wrong.DeliveredTwiceApics),
        "edge_through_the_ioapic",
        "each signal of an edge event interrupts once, but on vCPU 0 0x45 came 2 times",
    ),
    (
        wrong.UnregistrationIgnored,
        "unregistered_event_reaches_nothing",
        "an unregistered edge event reaches nothing, but on vCPU 0 0x45 came, which was not sent",
    ),
    (
        with_parts(EventTable=wrong.ClosedEventKept),
        "unregistration_of_a_closed_event",
        "a closed event that is unregistered reaches nothing, but on vCPU 0 0x45 came",
    ),
    (
        with_parts(EventTable=wrong.UnregistrationOfAnyGsi),
        "unregistration_of_a_stranger",
        "unregistering an event on another GSI leaves it registered, but on vCPU 0 0x45 was lost",
    ),
    (
        wrong.AllOfAGsiUnregistered,
        "one_of_two_is_unregistered",
        "the other event of a GSI stays registered, but on vCPU 0 0x45 was lost",
    ),
    (
        with_parts(Chipset=wrong.EveryEventDelayedAndLost),
        "events_while_the_ioapic_is_busy",
        "no event is lost while the IOAPIC is busy .is it delayed, and served later.., but on vCPU 0 0x45 was lost",
    ),
    (
        with_parts(Chipset=wrong.MessagesAreDelayed),
        "messages_while_the_ioapic_is_busy",
        "service_irq_event sends a message at once .does it wait for the IOAPIC.., but on vCPU 0 0x51 was lost",
    ),
    (
        wrong.ServiceWaitsForASignal,
        "service_of_an_unsignalled_event",
        "every call comes back, but this one hangs:[^$]*service_irq_event",
    ),
    (with_parts(EventTable=wrong.IndexUsedAgain), "indices_are_never_used_again", "an index is never used again"),
    # Level events
    (
        with_parts(Lines=wrong.ResampleForgotten),
        "level_through_the_ioapic",
        "the resample event is signalled at the EOI, but it was not",
    ),
    (
        with_parts(Lines=wrong.ResampleForgotten),
        "level_through_the_pics",
        "the resample event is signalled at the EOI, but it was not",
    ),
    (
        with_parts(Lines=wrong.LevelNeverLowered),
        "unregistration_lowers_the_line",
        "unregistering the level event that asserts a line lowers it, but IOAPIC pin 10 is still high",
    ),
    (
        with_parts(Ioapic=wrong.LineStaysHigh, Lines=wrong.LineLeftHigh),
        "level_through_the_ioapic",
        "a level event interrupts once for each signal, but on vCPU 0 0x4a came 9 times",
    ),
    (
        with_parts(Ioapic=wrong.EoiOfTheNextPin),
        "level_through_the_ioapic",
        "the resample event is signalled at the EOI, but it was not",
    ),
    (
        with_parts(Lines=wrong.EveryLineResampled),
        "eoi_ends_its_own_line_only",
        "the EOI of one vector ends no other's line, but GSI 11 was resampled at the EOI of pin 10",
    ),
    (
        with_parts(Lapic=wrong.EveryInterruptEndsAtOnce),
        "service_blocks_its_class",
        "an interrupt in service blocks its class and lower ones until its EOI, but vCPU 0 took 0x6f",
    ),
    # Controllers
    (
        with_parts(Lapic=wrong.LowestVectorFirst),
        "highest_vector_first",
        "of pending interrupts the highest vector comes first, but on vCPU 0 the order is wrong",
    ),
    (
        with_parts(Lapic=wrong.TaskPriorityIgnored),
        "task_priority",
        "TPR blocks vectors of its class and below, but vCPU 0 took 0x6f",
    ),
    (
        with_parts(Ioapic=wrong.MaskIgnored),
        "masked_edge_of_a_pin_is_lost",
        "a masked pin does not interrupt, but on vCPU 0 0x45 came, which was not sent",
    ),
    (
        with_parts(Ioapic=wrong.EdgeWhileHigh),
        "pin_needs_a_rising_edge",
        "an edge-triggered line interrupts once while it stays high, but on vCPU 0 0x45 came, which was not sent",
    ),
    (
        with_parts(Pic=wrong.MaskedPicLineForgotten),
        "masked_pic_line_stays_latched",
        "an edge latched while masked interrupts when unmasked, but on vCPU 0 0x35 was lost",
    ),
    (
        with_parts(Pic=wrong.PicPriorityReversed),
        "pic_line_of_lower_number_comes_first",
        "of simultaneous PIC lines the lowest number comes first, but on vCPU 0 the order is wrong",
    ),
    (
        with_parts(Chipset=wrong.SecondaryPicIsThePrimary),
        "secondary_pic_pin",
        "pin 4 of the secondary PIC is its line 12, but on vCPU 0 0x3c was lost and 0x34 came",
    ),
    (
        with_parts(Pit=wrong.SpeakerPortConstant),
        "pit_counter_2_measures_time",
        "bit 0 of port 0x61 reads as it was written, but it is 0",
    ),
    (
        with_parts(Pit=wrong.Counter2Early),
        "pit_counter_2_measures_time",
        r"32768 pulses of counter 2 take 27\.46 ms, but they took 1",
    ),
    (
        with_parts(Chipset=wrong.WideAccessesIgnored),
        "wide_access_to_the_pics",
        "a wide access to the PICs is one of a byte to each of its ports, but it is 255 and not 90",
    ),
    (
        with_parts(Chipset=wrong.WideAccessesIgnored),
        "wide_access_to_the_pit",
        "a wide access to the PIT is one of a byte to each of its ports, but it is",
    ),
    (with_parts(Lapic=wrong.TimerEarly), "one_shot_is_not_early", "a timer of 100 ms takes 100 ms, but it took"),
    (
        with_parts(Lapic=wrong.OneShotRepeats),
        "one_shot",
        "a one-shot timer interrupts once, but on vCPU 0 0x61 came|a one-shot timer stays at 0, but it is",
    ),
    # Routes and messages
    (
        with_parts(Lines=wrong.RouteLeaks),
        "gsi_reaches_its_own_route_only",
        "GSI 38 sends its own message alone, but on vCPU 0 0x77 came, which was not sent",
    ),
    (
        with_parts(Lines=wrong.GsiInsteadOfPin),
        "pin_of_the_route_counts",
        "a GSI drives the pin of its route, but on vCPU 0 0x47 was lost and 0x45 came",
    ),
    (
        with_parts(Lines=wrong.MessageOnDeassertion),
        "deassertion_sends_nothing",
        "deasserting an MSI route sends nothing, but on vCPU 0 0x51 came",
    ),
    (
        with_parts(Destinations=wrong.ShorthandIgnoresTheSender),
        "ipi_shorthand_others",
        "an IPI to all excluding self reaches all the others, but on vCPU 1 0x52 came",
    ),
    (
        with_parts(Destinations=wrong.LogicalIsPhysical),
        "msi_logical_flat",
        "a logical MSI interrupts each APIC whose bit is set, but on vCPU 0 0x50 was lost",
    ),
    (
        with_parts(Destinations=wrong.LowestPriorityToAll),
        "msi_lowest_priority",
        "a lowest-priority MSI interrupts exactly one, but of two vCPUs 2 took",
    ),
    (
        wrong.RefusedTableHalfTaken,
        "bad_tables_are_refused",
        "a refused set_irq_routes .a pin that the IOAPIC does not have. adds nothing, but on vCPU 0 0x52 came",
    ),
    (
        wrong.RouteReplacesItsGsi,
        "pin_replaces_the_pin_of_its_controller",
        "route_irq replaces the routes of its GSI that it conflicts with.*, but on vCPU 0 0x35 was lost",
    ),
    (
        wrong.MessageBesidePinsRefused,
        "message_replaces_all_pins",
        "route_irq takes MsiSource.* in place of what conflicts with it, but it raised InvalidRoute",
    ),
    (
        wrong.MessageBesidePinsRefused,
        "pin_replaces_a_message",
        "route_irq takes PinSource.* in place of what conflicts with it, but it raised InvalidRoute",
    ),
    (
        wrong.TwoMessagesOnAGsi,
        "conflicting_routes_are_refused",
        "set_irq_routes refuses two messages on one GSI, but it was accepted",
    ),
    # vCPUs
    (
        wrong.KickIgnored,
        "kick_interrupts_the_next_wait",
        "a kick lets the next wait_until_runnable of every vCPU return INTERRUPTED, but it is .*RUNNABLE",
    ),
    (
        with_parts(Processor=wrong.KickDoesNotWake),
        "kick_interrupts_a_wait",
        "a kick lets wait_until_runnable of a halted vCPU return INTERRUPTED .a kick was lost., but it still waits",
    ),
    (
        wrong.KicksPileUp,
        "kick_interrupts_the_next_wait",
        "kicks before one wait_until_runnable are coalesced, but it is .*INTERRUPTED",
    ),
    (
        with_parts(Processor=wrong.SleepersNotWoken),
        "set_mp_state_wakes",
        "set_mp_state.RUNNABLE. ends wait_until_runnable, but it still waits",
    ),
    (
        with_parts(Processor=wrong.RunnersNotKicked),
        "interrupt_reaches_a_spinning_vcpu",
        "an interrupt reaches a vCPU that executes, but vCPU 0 did not wake within 1 s: 0x51 or its wake-up was lost",
    ),
    (
        wrong.MpStateNotKept,
        "mp_state_is_kept",
        "get_mp_state gives what was set, but it is <MPState.RUNNABLE: 0> and not <MPState.HALTED: 3>",
    ),
    (
        with_parts(UserspaceApics=wrong.InterruptStartsAnyProcessor),
        "interrupt_starts_no_processor",
        "a fixed interrupt does not start a processor that is UNINITIALIZED, but it is <MPState.RUNNABLE",
    ),
    (
        wrong.BaseSeenLate,
        "back_to_xapic_mode_at_once",
        "two writes of IA32_APIC_BASE in a row lead from x2APIC mode to xAPIC mode, but it is 4294967295 and not",
    ),
    (
        wrong.BaseSeenLate,
        "from_disabled_to_x2apic_mode_at_once",
        "0x1ff can be written to APIC register 0xf0 in x2APIC mode, but it raised #GP",
    ),
    (
        wrong.BaseSeenLate,
        "moved_page",
        "the register page is where IA32_APIC_BASE says, but it is 4294967295 and not",
    ),
    (
        with_parts(Lapic=wrong.InitNeedsItsLevel),
        "every_form_of_init",
        "0x500 in ICR is an INIT, after which a start-up IPI starts a vCPU, but it is None and not 3",
    ),
    (
        with_parts(Lapic=wrong.DeassertIsAnInit),
        "init_level_deassert",
        "the INIT level de-assert does nothing, but on vCPU 1 0x91 was lost",
    ),
    (
        with_parts(Processor=wrong.NmisBlockedAfterInit),
        "init_unblocks_nmis",
        "INIT unblocks NMIs, but on vCPU 1 the NMI was lost",
    ),
    (
        with_parts(Lapic=wrong.NmisAreAFlag),
        "nmis_before_the_first_is_taken",
        r"of three NMIs at once one is taken, and one is held, but it is \[2, None, None\]",
    ),
    (
        with_parts(Lapic=wrong.OneNmiALook),
        "nmis_while_one_is_handled",
        r"of the NMIs that come while one is handled, one is held, but it is \[2, 2\]",
    ),
    # Handles, state and arguments
    (
        wrong.BusyWhileItExecutes,
        "state_while_vcpus_execute",
        "state is read and set from any thread, also while vCPUs execute, but it raised HypervisorError: .*it executes",
    ),
    (
        wrong.NumberBurnt,
        "numbers_of_pins_are_kept",
        "the first number after finalize_devices is the number of pins, but it is 25 and not 24",
    ),
    (
        wrong.PinsGivenOut,
        "numbers_of_pins_are_kept",
        "the first number after finalize_devices is the number of pins, but it is 9 and not 24",
    ),
    (
        wrong.RefusedAllocatorEmptied,
        "allocator_without_a_number_above_the_pins",
        "a refused finalize_devices leaves the allocator as it was, but it is .None",
    ),
    (
        wrong.RefusedDevicesStay,
        "allocator_without_a_number_above_the_pins",
        "a refused finalize_devices leaves nothing on the buses, but",
    ),
    (
        wrong.FinalizedTwice,
        "devices_are_put_on_buses_once",
        "a second finalize_devices is refused .InvalidArgument., but it was accepted",
    ),
    (
        wrong.StaleClone,
        "clone_made_before_sees_what_comes_after",
        "a clone sees routes that are made after it, but on vCPU 0 0x51 was lost",
    ),
    (
        wrong.CloneClosesAll,
        "clone_is_closed_by_itself",
        "closing a clone leaves the chip at work, but on vCPU 0 0x45 was lost",
    ),
    (wrong.UsableAfterClose, "use_after_close", "of a closed chip is refused .Closed., but it was accepted"),
    (
        wrong.CapabilityNotAdmitted,
        "capabilities_are_those_claimed",
        "check_capability agrees with the backend's probe, but they differ in tsc_deadline_timer",
    ),
    (
        with_parts(Lapic=wrong.CapabilityLied),
        "x2apic_registers",
        "is readable in x2APIC mode, but it raised #GP|lets its guest switch to x2APIC mode, but",
    ),
    (
        with_parts(Lapic=wrong.LapicIdsFromOne),
        "announced_apic_id",
        "CPUID of vCPU 0 announces its local APIC's id, but it is .0, 0. and not .1, 1.",
    ),
    (
        wrong.LapicsDenied,
        "lapics_in_hypervisor",
        "exactly if the chip puts the local APICs' page on the bus, but it is True and not False",
    ),
    (wrong.RoutesNotSaved, "moved_routes", "a snapshot has the routes, but on vCPU 0 0x51 was lost"),
    (
        with_parts(Lapic=wrong.PendingNotSaved),
        "moved_pending_interrupts",
        "what was pending when the state was saved is pending where it is restored, but on vCPU 0 0x46 was lost",
    ),
    (
        wrong.AnyGsiTaken,
        "gsi_out_of_range",
        "on GSI -1 is refused .InvalidArgument., but it was accepted",
    ),
    (
        wrong.WrongKindOfError,
        "gsi_out_of_range",
        "on GSI -1 is refused .InvalidArgument., but it raised RuntimeError: bad GSI",
    ),
    (
        wrong.RefusedRegistrationStays,
        "closed_events",
        "registering a closed edge event is refused and changes nothing, but it changed tokens",
    ),
    # Records
    (
        wrong.EditedCountLost,
        "edited_pit_is_read_back",
        "count of PIT counter 0 is what was set, but it is",
    ),
    (wrong.EditedPitStandsStill, "edited_pit_counts", "a counter set to mode 2 interrupts, but"),
    (
        wrong.CascadeOfTheRecord,
        "edited_secondary_pic_interrupts",
        "a request that is put into the secondary PIC interrupts, but",
    ),
    (
        with_parts(Lapic=wrong.CurrentCountIgnored),
        "edited_lapic_timer_counts",
        "a timer that is set to count runs out, but",
    ),
    (
        wrong.DamagedRecordIgnored,
        "damaged_records",
        "PitState = .* is refused .WrongType or InvalidArgument., but it was accepted",
    ),
    (
        wrong.HalfRestored,
        "damaged_snapshots",
        "ChipSnapshot.* is refused and changes nothing, but it changed PICs",
    ),
    (
        wrong.AnyoneHalts,
        "every_argument_of_every_method",
        "halted with vcpu_id = None is refused .IrqChipError., but it was accepted",
    ),
    (wrong.AnyoneHalts, "vcpu_of_a_stranger", "halted.1. of a vCPU that was not added is refused"),
]
"""A maker of chips, the scenario that finds the fault, and what it says."""


def name_of(maker: Maker) -> str:
    parts = inspect.getclosurevars(maker).nonlocals.get("parts") if inspect.isfunction(maker) else None
    return next(iter(parts.values())).__name__ if parts else maker.__name__


@pytest.mark.parametrize(
    ("maker", "scenario", "message"), FAULTS, ids=[f"{name_of(maker)}-{scenario}" for maker, scenario, _ in FAULTS]
)
def test_a_wrong_chip_fails(maker: Maker, scenario: str, message: str, caplog: pytest.LogCaptureFixture) -> None:
    lab = Lab(lambda: create_vm("unicorn"), maker, claims=CLAIMS, patience=PATIENCE)
    kit = Conformance()
    kit.lab = lab
    with pytest.raises(Nonconforming) as caught:
        lab.perform(getattr(kit, f"test_{scenario}"))
    assert re.search(message, str(caught.value)), caught.value
    assert not caplog.records  # it is wrong as it is meant to be, and not by an accident


def test_there_are_at_least_20_wrong_chips() -> None:
    assert len({name_of(maker) for maker, _, _ in FAULTS}) >= 20
