"""Scenarios: priorities, masks and ends of interrupts in the local APIC and the IOAPIC (Intel SDM vol. 3, 12.8)."""

from __future__ import annotations

from irqchip_core.testing.agent import Operation
from irqchip_core.testing.bench import IOAPIC_VERSION
from irqchip_core.testing.conformance.base import Scenarios
from irqchip_core.testing.guest_cpu import SPURIOUS_VECTOR, Eoi
from irqchip_core.testing.verdict import NotApplicable, check, check_equal
from irqchip_core.x86.lapic import registers as reg

HIGHEST_FIRST = "of pending interrupts the highest vector comes first"


class LocalApic(Scenarios):
    """Local APIC and IOAPIC."""

    def test_highest_vector_first(self) -> None:
        """Of pending interrupts the highest vector comes first."""
        machine = self.boot()
        for vector in (0x51, 0x91, 0x71):
            machine.send_msi(vector)
        machine.cpu.expect(0x91, 0x71, 0x51, rule=HIGHEST_FIRST)

    def test_highest_vector_first_within_a_class(self) -> None:
        """Of pending interrupts of one priority class the highest vector comes first."""
        machine = self.boot()
        for vector in (0x62, 0x6F, 0x60):
            machine.send_msi(vector)
        machine.cpu.expect(0x6F, 0x62, 0x60, rule=HIGHEST_FIRST)

    def test_simultaneous_pins(self) -> None:
        """Simultaneous IOAPIC pins come in the order of their vectors, whatever their numbers."""
        machine = self.boot()
        for pin, vector in ((3, 0x71), (4, 0x51), (5, 0x91)):
            machine.pin(pin, vector)
        for pin in (3, 4, 5):
            machine.pulse(pin)
        machine.cpu.expect(0x91, 0x71, 0x51, rule=HIGHEST_FIRST)

    def test_service_blocks_its_class(self) -> None:
        """An interrupt in service blocks its own priority class and those below until its EOI."""
        machine = self.boot()
        machine.cpu.require_eoi()
        machine.send_msi(0x61)
        rule = "an interrupt in service blocks its class and lower ones until its EOI"
        machine.cpu.expect_next(0x61, rule=rule)
        machine.send_msi(0x6F)
        machine.send_msi(0x51)
        machine.cpu.expect_blocked(rule=rule)
        machine.cpu.end(Eoi.LAPIC)
        machine.cpu.expect(0x6F, 0x51, rule=rule)

    def test_higher_class_interrupts_service(self) -> None:
        """A higher priority class interrupts the service of a lower one, and EOIs end them in reverse order."""
        machine = self.boot()
        machine.cpu.require_eoi()
        machine.send_msi(0x61)
        rule = "a higher class interrupts the service of a lower one"
        machine.cpu.expect_next(0x61, rule=rule)
        machine.send_msi(0x71)
        machine.cpu.expect_next(0x71, rule=rule)
        check_equal(machine.cpu.apic_bits(reg.ISR), {0x61, 0x71}, "ISR shows the interrupts in service")
        machine.cpu.end(Eoi.LAPIC)
        check_equal(machine.cpu.apic_bits(reg.ISR), {0x61}, "an EOI ends the highest interrupt in service")

    def test_task_priority(self) -> None:
        """The task priority blocks its class and lower ones."""
        machine = self.boot()
        machine.cpu.apic_write(reg.TPR, 0x60)
        machine.send_msi(0x6F)
        machine.cpu.expect_blocked(rule="TPR blocks vectors of its class and below")
        machine.send_msi(0x70)
        machine.cpu.expect(0x70, rule="TPR lets vectors of higher classes through")
        machine.cpu.apic_write(reg.TPR, 0)
        machine.cpu.expect(0x6F, rule="an interrupt that TPR blocked comes when TPR is lowered")

    def test_task_priority_by_cr8(self) -> None:
        """CR8 is bits 4-7 of TPR."""
        machine = self.boot()
        machine.cpu.do(Operation.WRITE_CR8, 0, 6)
        check_equal(machine.cpu.apic_read(reg.TPR), 0x60, "TPR shows what was written to CR8")
        machine.send_msi(0x6F)
        machine.cpu.expect_blocked(rule="CR8 blocks vectors of its class and below")
        machine.cpu.do(Operation.WRITE_CR8, 0, 5)
        machine.cpu.expect(0x6F, rule="an interrupt that CR8 blocked comes when CR8 is lowered")
        machine.cpu.apic_write(reg.TPR, 0x30)
        check_equal(machine.cpu.do(Operation.READ_CR8), 3, "CR8 shows what was written to TPR")

    def test_irr_shows_what_is_pending(self) -> None:
        """IRR shows what is pending and not taken."""
        machine = self.boot()
        for vector in (0x51, 0x91):
            machine.send_msi(vector)
        check_equal(machine.cpu.apic_bits(reg.IRR), {0x51, 0x91}, "IRR shows what is pending")
        machine.cpu.expect(0x91, 0x51, rule=HIGHEST_FIRST)
        check_equal(machine.cpu.apic_bits(reg.IRR), set(), "IRR is empty when all was taken")

    def test_processor_priority(self) -> None:
        """PPR is the higher of TPR and the class in service."""
        machine = self.boot()
        machine.cpu.apic_write(reg.TPR, 0x30)
        check_equal(machine.cpu.apic_read(reg.PPR), 0x30, "PPR is TPR while nothing is in service")
        machine.cpu.require_eoi()
        machine.send_msi(0x61)
        machine.cpu.expect_next(0x61, rule="an MSI interrupts")
        check_equal(machine.cpu.apic_read(reg.PPR), 0x60, "PPR is the class of what is in service")

    def test_eoi_with_nothing_in_service(self) -> None:
        """An EOI with nothing in service does nothing."""
        machine = self.boot()
        for _ in range(3):
            machine.cpu.end(Eoi.LAPIC)
        machine.cpu.expect_nothing(rule="an EOI with nothing in service does nothing")
        machine.send_msi(0x51)
        machine.cpu.expect(0x51, rule="a surplus EOI ends no later interrupt")

    def test_every_vector(self) -> None:
        """Each vector from 0x20 can be taken."""
        machine = self.boot()
        for vector in range(0x20, SPURIOUS_VECTOR):
            machine.send_msi(vector)
            machine.cpu.expect_next(vector, rule=f"vector {vector:#x} interrupts")
            machine.cpu.end(Eoi.LAPIC)

    def test_all_vectors_at_once(self) -> None:
        """All vectors pending at once are taken, the highest first."""
        machine = self.boot()
        machine.cpu.apic_write(reg.TPR, 0xF0)
        for vector in range(0x20, 0xF0):
            machine.send_msi(vector)
        machine.cpu.apic_write(reg.TPR, 0)
        machine.cpu.expect(*range(0xEF, 0x1F, -1), rule=HIGHEST_FIRST)

    def test_same_vector_merges(self) -> None:
        """An interrupt is coalesced with one of its vector that is pending already."""
        machine = self.boot()
        for _ in range(3):
            machine.send_msi(0x51)
        machine.cpu.expect(0x51, rule="interrupts of one vector that are not taken are coalesced")

    def test_vector_in_service_can_be_pending(self) -> None:
        """While an interrupt is in service, one more of its vector can wait."""
        machine = self.boot()
        machine.cpu.require_eoi()
        machine.send_msi(0x51)
        machine.cpu.expect_next(0x51, rule="an MSI interrupts")
        for _ in range(2):
            machine.send_msi(0x51)
        machine.cpu.expect_blocked(rule="an interrupt in service blocks its vector until its EOI")
        machine.cpu.end(Eoi.LAPIC)
        machine.cpu.expect(0x51, rule="one more of a vector in service waits for the EOI")

    def test_masked_edge_of_a_pin_is_lost(self) -> None:
        """An edge on a masked IOAPIC pin is lost (82093AA 3.2.4)."""
        machine = self.boot()
        machine.pin(5, 0x45, masked=True)
        machine.pulse(5)
        machine.cpu.expect_nothing(rule="a masked pin does not interrupt")
        machine.pin(5, 0x45)
        machine.cpu.expect_nothing(rule="an edge on a masked pin is lost")
        machine.pulse(5)
        machine.cpu.expect(0x45, rule="an unmasked pin interrupts")

    def test_pin_masked_again(self) -> None:
        """Masking a pin stops its interrupts, and those of no other."""
        machine = self.boot()
        machine.pin(5, 0x45)
        machine.pin(6, 0x46)
        machine.pin(5, 0x45, masked=True)
        for pin in (5, 6):
            machine.pulse(pin)
        machine.cpu.expect(0x46, rule="masking a pin stops its interrupts alone")

    def test_pin_needs_a_rising_edge(self) -> None:
        """An edge-triggered pin interrupts when its line rises, and not while it stays high."""
        machine = self.boot()
        machine.pin(5, 0x45)
        rule = "an edge-triggered line interrupts once while it stays high"
        machine.chip.service_irq(5, True)
        machine.cpu.expect(0x45, rule=rule)
        machine.chip.service_irq(5, True)
        machine.cpu.expect_nothing(rule=rule)
        machine.chip.service_irq(5, False)
        machine.cpu.expect_nothing(rule="a falling line does not interrupt")

    def test_pin_reprogrammed(self) -> None:
        """A new vector in an entry counts from the next edge on."""
        machine = self.boot()
        machine.pin(5, 0x45)
        machine.pulse(5)
        machine.pin(5, 0x55)
        machine.pulse(5)
        machine.cpu.expect(0x55, 0x45, rule="an interrupt that is pending keeps its vector when its pin gets a new one")

    def test_ioapic_registers(self) -> None:
        """Entries read as written; the version says how many there are."""
        machine = self.boot()
        version = machine.ioapic_read(IOAPIC_VERSION)
        check((version >> 16 & 0xFF) >= 23, "the IOAPIC has 24 pins or more", f"its version register is {version:#x}")
        for pin in (0, 11, 23):
            machine.pin(pin, 0x40 + pin, masked=True, level=True)
            check_equal(machine.entry(pin), 0x18040 + pin, f"entry {pin} reads as written")

    def test_apic_registers(self) -> None:
        """Each vCPU's local APIC has its id, an integrated version, and registers that read as written."""
        machine = self.boot(vcpus=2)
        for cpu in machine.cpus:
            check_equal(cpu.apic_read(reg.ID) >> 24, cpu.id, "the APIC id is the number of the vCPU")
            check_equal(cpu.apic_read(reg.VERSION) & 0xF0, 0x10, "the local APIC is an integrated one")
            cpu.apic_write(reg.TPR, 0x20 + 0x10 * cpu.id)
        for cpu in machine.cpus:
            check_equal(cpu.apic_read(reg.TPR), 0x20 + 0x10 * cpu.id, "each vCPU has a local APIC of its own")

    def test_software_disabled_apic(self) -> None:
        """A local APIC that software has disabled takes no fixed interrupt."""
        machine = self.boot()
        machine.cpu.apic_write(reg.SPIV, SPURIOUS_VECTOR)
        machine.send_msi(0x51)
        machine.cpu.expect_nothing(rule="a software-disabled local APIC takes no fixed interrupt")
        machine.cpu.enable_apic()
        machine.send_msi(0x61)
        machine.cpu.expect(0x61, rule="a local APIC that was enabled again takes what comes from then on")

    def test_eoi_broadcast_suppression(self) -> None:
        """With EOI-broadcast suppression, only a write to the IOAPIC's EOI register ends a line."""
        machine = self.boot()
        if not machine.cpu.apic_read(reg.VERSION) & reg.VERSION_EOI_BROADCAST_SUPPRESSION:
            raise NotApplicable("needs a local APIC that can suppress EOI broadcasts (version register, bit 24)")
        if not machine.apics_in_chip:
            raise NotApplicable("needs local APICs in the chip; KVM's say that they suppress EOIs, and broadcast them")
        spiv = reg.SPIV_SOFTWARE_ENABLE | reg.SPIV_SUPPRESS_EOI_BROADCAST | SPURIOUS_VECTOR
        machine.cpu.apic_write(reg.SPIV, spiv)
        machine.pin(10, 0x4A, level=True)
        event = machine.level(10)
        event.trigger()
        machine.cpu.expect(0x4A, rule="a level event interrupts")
        check(not event.clear_resample(0), "a suppressed EOI does not reach the IOAPIC", "the line was resampled")
        machine.cpu.store(0xFEC00040, 0x4A)
        check(event.clear_resample(machine.patience), "the IOAPIC's EOI register ends the line", "it did not")
