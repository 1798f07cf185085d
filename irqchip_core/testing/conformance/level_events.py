"""Scenarios: what level events and levels of lines do, through IOAPIC and PICs, and how they end."""

from __future__ import annotations

from irqchip_core.capabilities import IrqChipCap
from irqchip_core.events import IrqLevelEvent
from irqchip_core.testing.bench import ENTRY_REMOTE_IRR, IOAPIC_VERSION, Bench
from irqchip_core.testing.conformance.base import Scenarios, needs
from irqchip_core.testing.guest_cpu import Eoi
from irqchip_core.testing.verdict import NotApplicable, accepted, check, until
from irqchip_core.x86.state import IOAPIC_BASE

ELCR_SECONDARY = 0x4D1
IOAPIC_EOI = IOAPIC_BASE + 0x40
BOTH_PICS = Eoi.PRIMARY | Eoi.SECONDARY
PER_EOI = "a level event interrupts once for each signal"
RESAMPLED = "the resample event is signalled at the EOI"
LOWERED = "the line of a level event is lowered at the EOI"


def line_is_high(machine: Bench, pin: int) -> bool:
    """Whether the IOAPIC sees this line asserted."""
    machine.need(IrqChipCap.IOAPIC)
    return bool(machine.chip.get_ioapic_state().current_interrupt_level_bitmap >> pin & 1)


def check_resampled(machine: Bench, event: IrqLevelEvent) -> None:
    check(event.clear_resample(machine.patience), RESAMPLED, "it was not: the device will never signal again")


class LevelEvents(Scenarios):
    """Level events and lines."""

    def test_level_through_the_ioapic(self) -> None:
        """Each signal asserts the line; the EOI lowers it and signals the resample event."""
        machine = self.boot()
        machine.pin(10, 0x4A, level=True)
        event = machine.level(10)
        for _ in range(3):
            event.trigger()
            machine.cpu.expect(0x4A, rule=PER_EOI)
            check_resampled(machine, event)
            check(not line_is_high(machine, 10), LOWERED, "IOAPIC pin 10 is still high")
        check(not event.clear_resample(0), "an EOI resamples once", "the event was signalled again")

    def test_level_through_the_pics(self) -> None:
        """Through the PICs, the line is lowered and resampled at the PICs' EOI and not before."""
        machine = self.boot()
        machine.unmask_pics(10)
        event = machine.level(10)
        for _ in range(3):
            event.trigger()
            machine.cpu.expect_next(0x3A, rule=PER_EOI)
            check(not event.clear_resample(0), "nothing is resampled before the EOI", "it was")
            machine.cpu.end(BOTH_PICS)
            check_resampled(machine, event)
            machine.cpu.expect_nothing(rule=PER_EOI)

    def test_level_through_a_level_triggered_pic_line(self) -> None:
        """Where ELCR makes a PIC's input level-triggered, the line is lowered and resampled at the PICs' EOI."""
        machine = self.boot()
        machine.cpu.out(ELCR_SECONDARY, 1 << 2)
        machine.unmask_pics(10)
        event = machine.level(10)
        for _ in range(2):
            event.trigger()
            machine.cpu.expect(0x3A, rule=PER_EOI, eoi=BOTH_PICS)
            check_resampled(machine, event)

    def test_line_stays_asserted_until_the_eoi(self) -> None:
        """Between the interrupt and its EOI the line is high, and nothing is resampled."""
        machine = self.boot()
        machine.cpu.require_eoi()
        machine.pin(10, 0x4A, level=True)
        event = machine.level(10)
        event.trigger()
        machine.cpu.expect_next(0x4A, rule=PER_EOI)
        check(line_is_high(machine, 10), "the line is high until the EOI", "it is low while 0x4a is in service")
        check(not event.clear_resample(0), "nothing is resampled before the EOI", "it was")
        machine.cpu.end(Eoi.LAPIC)
        check_resampled(machine, event)

    def test_signals_merge_until_the_eoi(self) -> None:
        """Signals of an asserted line are coalesced: one EOI ends them all."""
        machine = self.boot()
        machine.cpu.require_eoi()
        machine.pin(10, 0x4A, level=True)
        event = machine.level(10)
        event.trigger()
        machine.cpu.expect_next(0x4A, rule=PER_EOI)
        event.trigger()
        machine.settle()
        machine.cpu.end(Eoi.LAPIC)
        machine.cpu.expect_nothing(rule="signals of a line that is asserted already are coalesced")

    def test_remote_irr(self) -> None:
        """Remote IRR is set from the interrupt to its EOI."""
        machine = self.boot()
        machine.cpu.require_eoi()
        machine.pin(10, 0x4A, level=True)
        event = machine.level(10)
        event.trigger()
        machine.cpu.expect_next(0x4A, rule=PER_EOI)
        check(
            machine.entry(10) & ENTRY_REMOTE_IRR, "remote IRR is set while a level interrupt is in service", "it is 0"
        )
        machine.cpu.end(Eoi.LAPIC)
        check(not machine.entry(10) & ENTRY_REMOTE_IRR, "the EOI clears remote IRR", "it is still set")

    def test_device_that_wants_more_service(self) -> None:
        """A device that signals again at each resample is served again."""
        machine = self.boot()
        machine.pin(10, 0x4A, level=True)
        event = machine.level(10)
        event.trigger()
        for _ in range(5):
            machine.cpu.expect_next(0x4A, rule=PER_EOI)
            machine.cpu.end(Eoi.LAPIC)
            check_resampled(machine, event)
            event.trigger()
        machine.cpu.expect(0x4A, rule=PER_EOI)

    def test_level_events_share_a_gsi(self) -> None:
        """All level events of a GSI are resampled at its EOI."""
        machine = self.boot()
        machine.pin(10, 0x4A, level=True)
        events = [machine.level(10), machine.level(10)]
        events[1].trigger()
        machine.cpu.expect(0x4A, rule=PER_EOI)
        for event in events:
            check_resampled(machine, event)

    def test_eoi_ends_its_own_line_only(self) -> None:
        """The EOI of one line lowers and resamples that line, and no other."""
        machine = self.boot()
        machine.pin(10, 0x4A, level=True)
        machine.pin(11, 0x5B, level=True, masked=True)
        one, other = machine.level(10), machine.level(11)
        other.trigger()
        until(lambda: line_is_high(machine, 11), machine.patience, "a signal asserts a masked line")
        one.trigger()
        machine.cpu.expect(0x4A, rule=PER_EOI)
        check_resampled(machine, one)
        rule = "the EOI of one vector ends no other's line"
        check(not other.clear_resample(0), rule, "GSI 11 was resampled at the EOI of pin 10")
        check(line_is_high(machine, 11), rule, "GSI 11 was lowered at the EOI of pin 10")

    def test_pic_eoi_ends_its_own_line_only(self) -> None:
        """The EOI of one line of the PICs lowers and resamples that line, and no other."""
        machine = self.boot()
        machine.unmask_pics(10)
        one, other = machine.level(10), machine.level(11)
        other.trigger()
        until(lambda: line_is_high(machine, 11), machine.patience, "a signal asserts a masked line")
        one.trigger()
        machine.cpu.expect(0x3A, rule=PER_EOI, eoi=BOTH_PICS)
        check_resampled(machine, one)
        check(not other.clear_resample(0), "an EOI of the PICs ends no other line", "GSI 11 was resampled")

    def test_pins_with_one_vector(self) -> None:
        """An EOI ends all level-triggered pins that have its vector."""
        machine = self.boot()
        machine.pin(10, 0x4A, level=True)
        machine.pin(11, 0x4A, level=True)
        one, other = machine.level(10), machine.level(11)
        for event in (one, other):
            event.trigger()
            machine.cpu.expect(0x4A, rule=PER_EOI)
            check_resampled(machine, event)

    def test_raised_while_masked(self) -> None:
        """A line raised while its pin is masked is not forgotten: it counts, or is resampled, when unmasked."""
        machine = self.boot()
        machine.pin(10, 0x4A, level=True, masked=True)
        event = machine.level(10)
        event.trigger()
        until(lambda: line_is_high(machine, 10), machine.patience, "a signal asserts a masked line")
        machine.cpu.expect_nothing(rule="a masked level line does not interrupt")
        machine.pin(10, 0x4A, level=True)
        if event.clear_resample(0):
            event.trigger()
        machine.cpu.expect(0x4A, rule="a level that rose while masked interrupts when unmasked")

    def test_unregistered_level_event_reaches_nothing(self) -> None:
        """After unregistration by a clone, the event neither interrupts nor is resampled."""
        machine = self.boot()
        machine.pin(10, 0x4A, level=True)
        event = machine.level(10)
        event.trigger()
        machine.cpu.expect(0x4A, rule=PER_EOI)
        check_resampled(machine, event)
        with event.try_clone() as clone, accepted("unregistering what is not registered is harmless"):
            machine.chip.unregister_level_irq_event(11, clone)
            machine.chip.unregister_level_irq_event(10, clone)
            machine.chip.unregister_level_irq_event(10, clone)
        event.trigger()
        machine.cpu.expect_nothing(rule="an unregistered level event reaches nothing")
        machine.pulse(10)
        machine.cpu.expect(0x4A, rule="a line interrupts without an event")
        check(not event.clear_resample(0), "an unregistered level event is not resampled", "it was")

    def test_unregistration_lowers_the_line(self) -> None:
        """Unregistering the event that asserts a line lowers it."""
        machine = self.boot()
        machine.pin(10, 0x4A, level=True, masked=True)
        event = machine.level(10)
        event.trigger()
        until(lambda: line_is_high(machine, 10), machine.patience, "a signal asserts a masked line")
        machine.chip.unregister_level_irq_event(10, event)
        rule = "unregistering the level event that asserts a line lowers it"
        check(not line_is_high(machine, 10), rule, "IOAPIC pin 10 is still high")

    def test_driven_line_interrupts_until_lowered(self) -> None:
        """A line that is driven high interrupts again after each EOI, until it is lowered."""
        machine = self.boot()
        machine.pin(10, 0x4A, level=True)
        machine.chip.service_irq(10, True)
        for _ in range(3):
            machine.cpu.expect_next(0x4A, rule="a line that is high interrupts again after its EOI")
            machine.cpu.end(Eoi.LAPIC)
        machine.chip.service_irq(10, False)
        if machine.cpu.look() is not None:  # sent at the EOI before
            machine.cpu.end(Eoi.LAPIC)
        machine.cpu.expect_nothing(rule="a line that was lowered does not interrupt")

    def test_line_lowered_before_the_eoi(self) -> None:
        """A line that is lowered before the EOI has interrupted once."""
        machine = self.boot()
        machine.cpu.require_eoi()
        machine.pin(10, 0x4A, level=True)
        machine.chip.service_irq(10, True)
        machine.cpu.expect_next(0x4A, rule="a line that is high interrupts")
        machine.chip.service_irq(10, False)
        machine.cpu.end(Eoi.LAPIC)
        machine.cpu.expect_nothing(rule="a line lowered before its EOI interrupts once")

    def test_line_lowered_while_masked(self) -> None:
        """A line that rose and fell while masked has never interrupted."""
        machine = self.boot()
        machine.pin(10, 0x4A, level=True, masked=True)
        machine.pulse(10)
        machine.pin(10, 0x4A, level=True)
        machine.cpu.expect_nothing(rule="a level that fell before it was unmasked does not interrupt")

    def test_driven_level_triggered_pic_line(self) -> None:
        """A level-triggered PIC line interrupts again after each EOI, until it is lowered."""
        machine = self.boot()
        machine.cpu.out(ELCR_SECONDARY, 1 << 2)
        machine.unmask_pics(10)
        machine.chip.service_irq(10, True)
        for _ in range(2):
            machine.cpu.expect_next(0x3A, rule="a level-triggered PIC line that is high interrupts again")
            machine.cpu.end(BOTH_PICS)
        machine.cpu.expect_next(0x3A, rule="a level-triggered PIC line that is high interrupts again")
        machine.chip.service_irq(10, False)
        machine.cpu.end(BOTH_PICS)
        machine.cpu.expect_nothing(rule="a level-triggered PIC line that was lowered does not interrupt")

    def test_ioapic_eoi_register(self) -> None:
        """A write to the IOAPIC's EOI register ends the line as the local APIC's EOI does."""
        machine = self.boot()
        machine.cpu.require_eoi()
        if machine.ioapic_read(IOAPIC_VERSION) & 0xFF < 0x20:
            raise NotApplicable("needs an IOAPIC of version 0x20, with an EOI register")
        machine.pin(10, 0x4A, level=True)
        event = machine.level(10)
        event.trigger()
        machine.cpu.expect_next(0x4A, rule=PER_EOI)
        machine.cpu.store(IOAPIC_EOI, 0x4A)
        check_resampled(machine, event)
        check(not line_is_high(machine, 10), LOWERED, "IOAPIC pin 10 is still high after its EOI register was written")
        machine.cpu.end(Eoi.LAPIC)

    @needs(IrqChipCap.IOAPIC)
    def test_broadcast_eoi(self) -> None:
        """`broadcast_eoi` of a level interrupt lowers and resamples its line."""
        machine = self.boot()
        if not machine.ioapic_in_chip:
            raise NotApplicable("needs an IOAPIC in the chip; this one's is the hypervisor's and receives EOIs itself")
        machine.cpu.require_eoi()
        machine.pin(10, 0x4A, level=True)
        event = machine.level(10)
        event.trigger()
        machine.settle()
        machine.chip.broadcast_eoi(0x4B)
        check(line_is_high(machine, 10), "the EOI of another vector changes nothing", "pin 10 was lowered")
        machine.chip.broadcast_eoi(0x4A)
        check_resampled(machine, event)
        check(not line_is_high(machine, 10), LOWERED, "IOAPIC pin 10 is still high")
