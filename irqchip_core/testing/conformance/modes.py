"""Scenarios: xAPIC mode, x2APIC mode, disabled, and the ways between them (Intel SDM vol. 3, 12.4.3 and 12.12.5)."""

from __future__ import annotations

from irqchip_core.capabilities import IrqChipCap
from irqchip_core.testing import agent
from irqchip_core.testing.bench import Bench
from irqchip_core.testing.conformance.base import Scenarios, needs
from irqchip_core.testing.guest_cpu import SPURIOUS_VECTOR, GuestCpu
from irqchip_core.testing.verdict import check, check_equal
from irqchip_core.x86 import cpuid, msi
from irqchip_core.x86.lapic import registers as reg
from irqchip_core.x86.state import LAPIC_BASE

SWITCH = "a chip with x2apic lets its guest switch to x2APIC mode"
APIC_ID_SHIFT = 24  # of the register in xAPIC mode, and in EBX of CPUID leaf 1
MOVED = 0xFED40000
"""Where the guest moves its register page to."""
NO_REGISTER = reg.X2APIC_MSR_BASE + 0x01  # reserved in SDM table 12-6


def base_of(cpu: GuestCpu) -> int:
    value = cpu.read_msr(reg.IA32_APIC_BASE)
    check(value is not None, "IA32_APIC_BASE can be read", "that raised #GP")
    return value or 0


class Modes(Scenarios):
    """Modes of the local APIC."""

    def _switched(self, vcpus: int = 1) -> Bench:
        machine = self.boot(vcpus=vcpus)
        for cpu in machine.cpus:
            check(cpu.enter_x2apic(), SWITCH, "that raised #GP")
        return machine

    def test_base_after_reset(self) -> None:
        """IA32_APIC_BASE after reset: enabled, at 0xFEE00000, and only vCPU 0 is the boot processor."""
        machine = self.boot(vcpus=2)
        for cpu in machine.cpus:
            expected = reg.APIC_BASE_RESET | (0 if cpu.id else reg.APIC_BASE_BSP)
            check_equal(hex(base_of(cpu)), hex(expected), f"IA32_APIC_BASE of vCPU {cpu.id} after reset")

    def test_x2apic_registers_fault_in_xapic_mode(self) -> None:
        """The MSRs of x2APIC mode raise #GP in xAPIC mode."""
        cpu = self.boot().cpu
        rule = "the registers of x2APIC mode raise #GP in xAPIC mode"
        check(cpu.read_msr(reg.X2APIC_MSR_BASE + (reg.ID >> 4)) is None, rule, "the id could be read")
        check(not cpu.write_msr(reg.X2APIC_MSR_BASE + (reg.EOI >> 4), 0), rule, "EOI could be written")

    def test_announced_apic_id(self) -> None:
        """CPUID of each vCPU announces the id of its local APIC."""
        machine = self.boot(vcpus=2)
        for cpu in machine.cpus:
            apic_id = cpu.apic_read(reg.ID) >> APIC_ID_SHIFT
            announced = (cpu.cpuid(cpuid.FEATURES)[1] >> APIC_ID_SHIFT, cpu.cpuid(cpuid.TOPOLOGY)[3])
            check_equal(announced, (apic_id, apic_id), f"CPUID of vCPU {cpu.id} announces its local APIC's id")

    def test_lapics_in_hypervisor(self) -> None:
        """`lapics_in_hypervisor` is false exactly if the chip has the local APICs: CPUID depends on it."""
        machine = self.boot()
        rule = "lapics_in_hypervisor is false exactly if the chip puts the local APICs' page on the bus"
        check_equal(machine.chip.lapics_in_hypervisor(), not machine.apics_in_chip, rule)

    @needs(IrqChipCap.X2APIC)
    def test_x2apic_registers(self) -> None:
        """In x2APIC mode the registers are MSRs; the id has 32 bits."""
        machine = self._switched(2)
        for cpu in machine.cpus:
            check_equal(cpu.apic_read(reg.ID), cpu.id, "the x2APIC id is the number of the vCPU")
            cpu.apic_write(reg.TPR, 0x30 + 0x10 * cpu.id)
            check_equal(cpu.apic_read(reg.TPR), 0x30 + 0x10 * cpu.id, "TPR reads as written in x2APIC mode")

    @needs(IrqChipCap.X2APIC)
    def test_interrupts_in_x2apic_mode(self) -> None:
        """Interrupts come and are ended in x2APIC mode."""
        machine = self._switched()
        machine.connect(5, 0x45)
        for _ in range(3):
            machine.pulse(5)
            machine.cpu.expect(0x45, rule="an edge interrupts in x2APIC mode")

    @needs(IrqChipCap.X2APIC)
    def test_level_in_x2apic_mode(self) -> None:
        """In x2APIC mode an EOI by MSR lowers and resamples the line."""
        machine = self._switched()
        machine.pin(10, 0x4A, level=True)
        event = machine.level(10)
        for _ in range(2):
            event.trigger()
            machine.cpu.expect(0x4A, rule="a level event interrupts once for each signal")
            rule = "an EOI in x2APIC mode signals the resample event"
            check(event.clear_resample(machine.patience), rule, "it was not signalled")

    @needs(IrqChipCap.X2APIC)
    def test_switch_keeps_what_is_pending(self) -> None:
        """What is pending, and registers that both modes have, stay when a local APIC switches to x2APIC mode."""
        machine = self.boot()
        machine.cpu.apic_write(reg.TPR, 0x20)
        machine.send_msi(0x51)
        check(machine.cpu.enter_x2apic(), SWITCH, "that raised #GP")
        check_equal(machine.cpu.apic_read(reg.TPR), 0x20, "TPR stays when the mode changes")
        machine.cpu.expect(0x51, rule="a pending interrupt stays when the mode changes")

    @needs(IrqChipCap.X2APIC)
    def test_page_is_dead_in_x2apic_mode(self) -> None:
        """The register page is not the local APIC's in x2APIC mode."""
        cpu = self._switched().cpu
        cpu.apic_write(reg.TPR, 0x20)
        cpu.store(LAPIC_BASE + reg.TPR, 0x70)
        rule = "the register page is dead in x2APIC mode"
        check_equal(cpu.apic_read(reg.TPR), 0x20, rule)
        check(cpu.load(LAPIC_BASE + reg.TPR) != 0x20, rule, "TPR can be read there")

    @needs(IrqChipCap.X2APIC)
    def test_no_way_back_but_by_disabling(self) -> None:
        """A switch from x2APIC mode straight to xAPIC mode raises #GP and changes nothing."""
        cpu = self._switched().cpu
        base = base_of(cpu)
        rule = "the way from x2APIC mode to xAPIC mode is by disabling"
        check(not cpu.write_msr(reg.IA32_APIC_BASE, base & ~reg.APIC_BASE_EXTD), rule, "EXTD could be cleared alone")
        check_equal(hex(base_of(cpu)), hex(base), rule)
        check(cpu.write_msr(reg.IA32_APIC_BASE, LAPIC_BASE | base & reg.APIC_BASE_BSP), rule, "that raised #GP")
        check(cpu.write_msr(reg.IA32_APIC_BASE, base & ~reg.APIC_BASE_EXTD), rule, "enabling again raised #GP")
        cpu.x2apic = False
        check_equal(cpu.apic_read(reg.ID) >> 24, cpu.id, "the register page is back in xAPIC mode")

    @needs(IrqChipCap.X2APIC)
    def test_x2apic_not_from_disabled(self) -> None:
        """A switch from disabled straight to x2APIC mode raises #GP."""
        cpu = self.boot().cpu
        base = base_of(cpu)
        check(cpu.write_msr(reg.IA32_APIC_BASE, base & ~reg.APIC_BASE_EN), "the APIC can be disabled", "it raised #GP")
        refused = not cpu.write_msr(reg.IA32_APIC_BASE, base | reg.APIC_BASE_EXTD)
        check(refused, "x2APIC mode is entered from xAPIC mode only", "it was entered from disabled")

    @needs(IrqChipCap.X2APIC)
    def test_x2apic_bit_without_enable(self) -> None:
        """Setting EXTD without EN in IA32_APIC_BASE raises #GP."""
        cpu = self.boot().cpu
        base = base_of(cpu)
        refused = not cpu.write_msr(reg.IA32_APIC_BASE, base & ~reg.APIC_BASE_EN | reg.APIC_BASE_EXTD)
        check(refused, "IA32_APIC_BASE with EXTD and without EN raises #GP", "it was accepted")

    @needs(IrqChipCap.X2APIC)
    def test_reserved_registers_in_x2apic_mode(self) -> None:
        """In x2APIC mode reserved registers, reading EOI and writing the id raise #GP."""
        cpu = self._switched().cpu
        rule = "a register that x2APIC mode does not have raises #GP"
        check(cpu.read_msr(NO_REGISTER) is None, rule, "a reserved one could be read")
        check(not cpu.write_msr(reg.X2APIC_MSR_BASE + (reg.ID >> 4), 0), rule, "the id could be written")
        check(cpu.read_msr(reg.X2APIC_MSR_BASE + (reg.DFR >> 4)) is None, rule, "DFR could be read")

    @needs(IrqChipCap.X2APIC)
    def test_esr_must_be_zero_in_x2apic_mode(self) -> None:
        """In x2APIC mode a write to ESR of anything but 0 raises #GP."""
        cpu = self._switched().cpu
        refused = not cpu.write_msr(reg.X2APIC_MSR_BASE + (reg.ESR >> 4), 1)
        check(refused, "ESR takes only 0 in x2APIC mode", "1 was accepted")

    @needs(IrqChipCap.X2APIC)
    def test_back_to_xapic_mode_at_once(self) -> None:
        """A guest can switch from x2APIC mode to disabled to xAPIC mode with nothing between the two writes."""
        cpu = self.boot().cpu
        version = cpu.load(LAPIC_BASE + reg.VERSION)
        check(cpu.enter_x2apic(), SWITCH, "that raised #GP")
        xapic = reg.APIC_BASE_RESET | reg.APIC_BASE_BSP
        disabled = xapic & ~reg.APIC_BASE_EN
        rule = "two writes of IA32_APIC_BASE in a row lead from x2APIC mode to xAPIC mode"
        check_equal(cpu.switch_base(disabled, xapic, LAPIC_BASE + reg.VERSION), version, rule)
        cpu.x2apic = False
        self._takes(cpu, 0x51, rule)

    @needs(IrqChipCap.X2APIC)
    def test_from_disabled_to_x2apic_mode_at_once(self) -> None:
        """A guest can switch from disabled to xAPIC mode to x2APIC mode with nothing between the two writes."""
        cpu = self.boot().cpu
        xapic = reg.APIC_BASE_RESET | reg.APIC_BASE_BSP
        rule = "two writes of IA32_APIC_BASE in a row lead from disabled to x2APIC mode"
        check(cpu.write_msr(reg.IA32_APIC_BASE, xapic & ~reg.APIC_BASE_EN), "the APIC can be disabled", "it raised #GP")
        check(cpu.switch_base(xapic, xapic | reg.APIC_BASE_EXTD, agent.ENTRY) is not None, rule, "that raised #GP")
        cpu.x2apic = True
        self._takes(cpu, 0x51, rule)

    def test_moved_page(self) -> None:
        """The register page moves with IA32_APIC_BASE, and answers the first access where it is now."""
        cpu = self.boot().cpu
        version = cpu.load(LAPIC_BASE + reg.VERSION)
        disabled = MOVED | base_of(cpu) & reg.APIC_BASE_BSP
        rule = "the register page is where IA32_APIC_BASE says"
        at = MOVED + reg.VERSION
        check_equal(cpu.switch_base(disabled, disabled | reg.APIC_BASE_EN, at), version, rule)
        check_equal(cpu.load(at), version, rule)
        check(cpu.load(LAPIC_BASE + reg.VERSION) != version, rule, "it is where it was, too")

    def _takes(self, cpu: GuestCpu, vector: int, rule: str) -> None:
        cpu.apic_write(reg.SPIV, reg.SPIV_SOFTWARE_ENABLE | SPURIOUS_VECTOR)
        cpu.machine.send_msi(vector)
        cpu.expect(vector, rule=rule)

    def test_disabled_apic(self) -> None:
        """A local APIC disabled by IA32_APIC_BASE takes no message; enabled again, it does."""
        machine = self.boot()
        cpu = machine.cpu
        base = base_of(cpu)
        check(cpu.write_msr(reg.IA32_APIC_BASE, base & ~reg.APIC_BASE_EN), "the APIC can be disabled", "it raised #GP")
        machine.send_msi(0x51)
        cpu.expect_nothing(rule="a disabled local APIC takes no message")
        check(cpu.write_msr(reg.IA32_APIC_BASE, base), "the APIC can be enabled again", "it raised #GP")
        cpu.apic_write(reg.SPIV, reg.SPIV_SOFTWARE_ENABLE | SPURIOUS_VECTOR)
        machine.send_msi(0x61)
        cpu.expect(0x61, rule="a local APIC that was enabled again takes messages")

    def test_nmi_while_software_disabled(self) -> None:
        """A software-disabled local APIC still takes NMIs."""
        machine = self.boot()
        machine.cpu.apic_write(reg.SPIV, SPURIOUS_VECTOR)
        machine.send_msi(0, mode=msi.NMI)
        machine.cpu.expect_nmi(rule="a software-disabled local APIC takes NMIs")

    def test_masks_of_a_software_disabled_apic(self) -> None:
        """While a local APIC is software-disabled, all entries of its local vector table are masked and stay so."""
        cpu = self.boot().cpu
        cpu.apic_write(reg.SPIV, SPURIOUS_VECTOR)
        cpu.apic_write(reg.LVT_ERROR, 0x50)
        rule = "a software-disabled local APIC keeps its local vector table masked"
        check(cpu.apic_read(reg.LVT_ERROR) & reg.LVT_MASKED, rule, "an entry could be unmasked")
