"""Scenarios: the PICs' masks, priorities, rotation and commands (8259A data sheet)."""

from __future__ import annotations

from irqchip_core.capabilities import IrqChipCap
from irqchip_core.testing.bench import Bench
from irqchip_core.testing.conformance.base import Scenarios, needs
from irqchip_core.testing.guest_cpu import EXTINT_MODE, MASKED, Eoi
from irqchip_core.testing.verdict import check, check_equal
from irqchip_core.x86.lapic.registers import LVT_LINT0
from irqchip_core.x86.state import PicSelect

COMMAND, DATA, ELCR = 0x20, 0x21, 0x4D0
SPECIFIC_EOI, ROTATE_ON_EOI, SET_PRIORITY = 0x60, 0xA0, 0xC0  # OCW2
READ_IRR, READ_ISR, POLL = 0x0A, 0x0B, 0x0C  # OCW3
POLL_LINE = 7  # some KVMs leave out bit 7, which says that there is one


def raise_lines(machine: Bench, *lines: int) -> None:
    """Give each of these lines an edge, in this order."""
    for line in lines:
        machine.pulse(line)


class Pics(Scenarios):
    """The PICs."""

    @needs(IrqChipCap.PIC)
    def test_wide_access_to_the_pics(self) -> None:
        """An access of a word or double word to the PICs is an access of a byte to each of its ports."""
        machine = self.boot()
        machine.need_on_bus(COMMAND, "PICs")
        cpu = machine.cpu
        rule = "a wide access to the PICs is one of a byte to each of its ports"
        cpu.out(COMMAND, 0x5A00 | READ_ISR, size=2)
        check_equal(cpu.in_(DATA), 0x5A, rule)
        check_equal(cpu.in_(COMMAND, size=2), 0x5A00, rule)
        cpu.out(COMMAND - 2, 0xA5 << 24 | READ_ISR << 16, size=4)  # there is nothing at its first two ports
        check_equal(cpu.in_(DATA), 0xA5, rule)
        check_equal(cpu.in_(COMMAND, size=4) & 0xFFFF, 0xA500, rule)
        cpu.out(ELCR, 0x0620, size=2)
        check_equal(cpu.in_(ELCR, size=2), 0x0620, rule)

    @needs(IrqChipCap.PIC)
    def test_masked_pic_line_stays_latched(self) -> None:
        """An edge on a masked PIC line waits in IRR and interrupts when the line is unmasked."""
        machine = self.boot()
        machine.pulse(5)
        machine.cpu.expect_nothing(rule="a masked PIC line does not interrupt")
        machine.unmask_pics(5)
        machine.cpu.expect(0x35, rule="an edge latched while masked interrupts when unmasked", eoi=Eoi.PRIMARY)

    def test_pic_line_of_lower_number_comes_first(self) -> None:
        """Of simultaneous PIC lines the one with the lowest number comes first."""
        machine = self.boot()
        machine.unmask_pics(3, 5, 6)
        raise_lines(machine, 6, 3, 5)
        rule = "of simultaneous PIC lines the lowest number comes first"
        machine.cpu.expect(0x33, 0x35, 0x36, rule=rule, eoi=Eoi.PRIMARY)

    def test_cascade_has_the_priority_of_line_2(self) -> None:
        """PIC lines 8-15 have a priority below lines 0 and 1 and above lines 3-7."""
        machine = self.boot()
        machine.unmask_pics(1, 3, 8, 15)
        raise_lines(machine, 3, 15, 8, 1)
        rule = "lines 8-15 have the priority of the cascade line 2"
        both = Eoi.PRIMARY | Eoi.SECONDARY
        for vector, eoi in ((0x31, Eoi.PRIMARY), (0x38, both), (0x3F, both), (0x33, Eoi.PRIMARY)):
            machine.cpu.expect_next(vector, rule=rule)
            machine.cpu.end(eoi)

    def test_pic_service_blocks_lower_lines(self) -> None:
        """A PIC line in service blocks those of lower priority until its EOI."""
        machine = self.boot()
        machine.unmask_pics(3, 5)
        raise_lines(machine, 3)
        rule = "a PIC line in service blocks lower ones until its EOI"
        machine.cpu.expect_next(0x33, rule=rule)
        raise_lines(machine, 5)
        machine.cpu.expect_blocked(rule=rule)
        machine.cpu.end(Eoi.PRIMARY)
        machine.cpu.expect(0x35, rule=rule, eoi=Eoi.PRIMARY)

    def test_pic_line_of_higher_priority_interrupts_service(self) -> None:
        """A PIC line of higher priority interrupts the service of a lower one."""
        machine = self.boot()
        machine.unmask_pics(3, 5)
        raise_lines(machine, 5)
        rule = "a PIC line of higher priority interrupts the service of a lower one"
        machine.cpu.expect_next(0x35, rule=rule)
        raise_lines(machine, 3)
        machine.cpu.expect_next(0x33, rule=rule)
        for _ in range(2):
            machine.cpu.end(Eoi.PRIMARY)
        machine.cpu.expect_nothing(rule=rule)

    def test_pic_specific_eoi(self) -> None:
        """A specific EOI to a PIC ends the line it names, whichever was taken last."""
        machine = self.boot()
        machine.unmask_pics(3, 5)
        raise_lines(machine, 5)
        machine.cpu.expect_next(0x35, rule="a PIC line interrupts")
        raise_lines(machine, 3)
        machine.cpu.expect_next(0x33, rule="a PIC line of higher priority interrupts the service of a lower one")
        machine.cpu.out(COMMAND, SPECIFIC_EOI | 5)
        machine.cpu.out(COMMAND, READ_ISR)
        check_equal(machine.cpu.in_(COMMAND), 1 << 3, "a specific EOI clears the ISR bit of its line alone")

    def test_pic_auto_eoi(self) -> None:
        """In automatic-EOI mode no PIC line stays in service."""
        machine = self.boot()
        machine.init_pics(auto_eoi=True)
        machine.unmask_pics(3, 5)
        raise_lines(machine, 3)
        machine.cpu.expect_next(0x33, rule="a PIC line interrupts")
        raise_lines(machine, 5)
        machine.cpu.expect_next(0x35, rule="with automatic EOI nothing is blocked")

    def test_pic_rotation(self) -> None:
        """Rotation on EOI gives the PIC line just served the lowest priority."""
        machine = self.boot()
        machine.unmask_pics(3, 5, 6)
        raise_lines(machine, 3)
        machine.cpu.expect_next(0x33, rule="a PIC line interrupts")
        machine.cpu.out(COMMAND, ROTATE_ON_EOI)
        raise_lines(machine, 3, 5)
        machine.cpu.expect(0x35, 0x33, rule="rotation on EOI makes the line served the lowest", eoi=Eoi.PRIMARY)

    def test_pic_set_priority(self) -> None:
        """The set-priority command gives the PIC line it names the lowest priority."""
        machine = self.boot()
        machine.unmask_pics(3, 5)
        machine.cpu.out(COMMAND, SET_PRIORITY | 4)
        raise_lines(machine, 3, 5)
        machine.cpu.expect(0x35, 0x33, rule="set-priority makes its line the lowest", eoi=Eoi.PRIMARY)

    def test_pic_irr_and_isr(self) -> None:
        """IRR of a PIC shows what is requested, ISR what is in service."""
        machine = self.boot()
        machine.unmask_pics(3)
        raise_lines(machine, 3, 5)
        machine.cpu.expect_next(0x33, rule="a PIC line interrupts")
        machine.cpu.out(COMMAND, READ_IRR)
        check_equal(machine.cpu.in_(COMMAND) & (1 << 3 | 1 << 5), 1 << 5, "IRR shows the requested lines")
        machine.cpu.out(COMMAND, READ_ISR)
        check_equal(machine.cpu.in_(COMMAND), 1 << 3, "ISR shows the line in service")

    @needs(IrqChipCap.PIC)
    def test_pic_poll(self) -> None:
        """A poll of a PIC acknowledges the line of highest priority and names it."""
        machine = self.boot()
        machine.pulse(5)
        machine.unmask_pics(5)
        machine.cpu.out(COMMAND, POLL)
        check_equal(machine.cpu.in_(COMMAND) & POLL_LINE, 5, "a poll names the line requested")
        machine.cpu.out(COMMAND, READ_IRR)
        check(not machine.cpu.in_(COMMAND) & 1 << 5, "a poll acknowledges the line", "it is requested still")

    @needs(IrqChipCap.PIC)
    def test_pic_mask_reads_back(self) -> None:
        """The mask registers of both PICs read as written."""
        machine = self.boot()
        for port, mask in ((0x21, 0xA5), (0xA1, 0x5A)):
            machine.cpu.out(port, mask)
            check_equal(machine.cpu.in_(port), mask, "a mask register reads as written")

    @needs(IrqChipCap.PIC)
    def test_pic_vector_base(self) -> None:
        """ICW2 sets the vectors of a PIC."""
        machine = self.boot()
        for value in (0x11, 0x60, 0x04, 0x01):
            machine.cpu.out(COMMAND if value == 0x11 else DATA, value)
        machine.unmask_pics(6)
        machine.pulse(6)
        machine.cpu.expect(0x66, rule="ICW2 sets the vectors of a PIC", eoi=Eoi.PRIMARY)

    @needs(IrqChipCap.PIC)
    def test_pic_initialization_forgets_masks(self) -> None:
        """ICW1 clears the mask register of a PIC and the requests of its edge-triggered lines."""
        machine = self.boot()
        machine.pulse(5)
        machine.init_pics()
        machine.unmask_pics(5)
        machine.cpu.expect_nothing(rule="ICW1 forgets edges")
        machine.pulse(5)
        machine.cpu.expect(0x35, rule="a PIC line interrupts after initialization", eoi=Eoi.PRIMARY)

    def test_lint0_masks_the_pics(self) -> None:
        """The PICs reach the processor through LINT0, unless LINT0 is masked."""
        machine = self.boot()
        self.lab.leave_open("whether the PIC or the local APIC comes first", order_only=True)
        machine.unmask_pics(5)
        machine.cpu.apic_write(LVT_LINT0, EXTINT_MODE | MASKED)
        machine.pulse(5)
        machine.cpu.expect_nothing(rule="a masked LINT0 keeps the PICs' interrupts out")
        machine.cpu.apic_write(LVT_LINT0, EXTINT_MODE)
        machine.send_msi(0x51)  # KVM of Linux 6.1 looks at LINT0 when something else happens, too
        rule = "an unmasked LINT0 lets the PICs' interrupts in"
        machine.cpu.expect_all([0x35, 0x51], rule=rule, eoi=Eoi.PRIMARY | Eoi.LAPIC)

    def test_every_pic_line_has_its_vector(self) -> None:
        """GSI 0-15 but the cascade reach lines 0-15, primary base plus 0-7 and secondary base plus 0-7."""
        machine = self.boot()
        lines = [line for line in range(16) if line != 2]
        machine.unmask_pics(*lines)
        for line in lines:
            machine.pulse(line)
            eoi = Eoi.PRIMARY if line < 8 else Eoi.PRIMARY | Eoi.SECONDARY
            machine.cpu.expect(0x30 + line, rule=f"GSI {line} reaches line {line} of the PICs alone", eoi=eoi)

    def test_pic_state_in_service(self) -> None:
        """The state of a PIC shows what is requested and in service."""
        machine = self.boot()
        machine.unmask_pics(3)
        raise_lines(machine, 3, 5)
        machine.cpu.expect_next(0x33, rule="a PIC line interrupts")
        state = machine.chip.get_pic_state(PicSelect.PRIMARY)
        check_equal((state.irr & 0x28, state.isr), (1 << 5, 1 << 3), "get_pic_state shows IRR and ISR")
