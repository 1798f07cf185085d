"""Scenarios: interrupts that processors send one another by the interrupt command register (SDM vol. 3, 12.6)."""

from __future__ import annotations

from irqchip_core.capabilities import IrqChipCap
from irqchip_core.chip import MPState
from irqchip_core.testing import agent
from irqchip_core.testing.bench import Bench
from irqchip_core.testing.conformance.base import Scenarios, needs
from irqchip_core.testing.conformance.messages import CLUSTER_MODEL, expect_only, set_flat_ids
from irqchip_core.testing.guest_cpu import NMI_VECTOR
from irqchip_core.testing.verdict import check, check_equal
from irqchip_core.x86 import msi
from irqchip_core.x86.lapic import registers as reg

ASSERT, LOGICAL = 1 << msi.ICR_LEVEL_SHIFT, 1 << msi.ICR_DESTINATION_MODE_SHIFT
LEVEL = 1 << msi.ICR_TRIGGER_MODE_SHIFT


def command(
    vector: int, *, mode: int = msi.FIXED, shorthand: int = msi.NO_SHORTHAND, logical: bool = False, bits: int = ASSERT
) -> int:
    """Bits 0-31 of the interrupt command register."""
    return vector | mode << 8 | shorthand << msi.ICR_SHORTHAND_SHIFT | logical * LOGICAL | bits


def start(machine: Bench, init: int) -> None:
    """Let vCPU 1 be started by vCPU 0, and give it the guest; `init` is level and trigger of the INIT."""
    target = machine.cpus[1]
    machine.cpu.send_ipi(command(0, mode=msi.INIT, bits=init), destination=1)
    machine.cpu.send_ipi(command(agent.STARTUP_VECTOR, mode=msi.STARTUP), destination=1)
    rule = f"{command(0, mode=msi.INIT, bits=init):#x} in ICR is an INIT, after which a start-up IPI starts a vCPU"
    check_equal(target.run_until_started(), agent.STARTUP_VECTOR, rule)
    target.enter_agent()
    target.enable_apic()


def expect_every_form_of_init(machine: Bench) -> None:
    """Demand that each INIT resets vCPU 1."""
    for bits in (0, ASSERT, ASSERT | LEVEL):
        machine.cpus[1].apic_write(reg.TPR, 0x70)
        start(machine, bits)
        check_equal(machine.cpus[1].apic_read(reg.TPR), 0, "INIT clears TPR")


def expect_no_init(machine: Bench) -> None:
    """Demand that the INIT level de-assert does nothing to vCPU 1."""
    target, rule = machine.cpus[1], "the INIT level de-assert does nothing"
    target.apic_write(reg.TPR, 0x70)
    machine.cpu.send_ipi(command(0, mode=msi.INIT, bits=LEVEL), destination=1)
    machine.send_msi(0x91, destination=1)
    target.expect(0x91, rule=rule)
    check_equal(target.apic_read(reg.TPR), 0x70, rule)


class Ipis(Scenarios):
    """IPIs in xAPIC mode."""

    def test_ipi_to_another(self) -> None:
        """A fixed IPI to an id reaches that processor."""
        machine = self.boot(vcpus=3)
        machine.cpu.send_ipi(command(0x52), destination=2)
        expect_only(machine, {2}, 0x52, "an IPI reaches the APIC with that id alone")
        machine.cpus[2].send_ipi(command(0x53), destination=0)
        expect_only(machine, {0}, 0x53, "an IPI reaches the APIC with that id alone")

    def test_ipi_to_self_by_id(self) -> None:
        """A fixed IPI to the sender's own id reaches the sender."""
        machine = self.boot(vcpus=2)
        machine.cpus[1].send_ipi(command(0x52), destination=1)
        expect_only(machine, {1}, 0x52, "an IPI to the sender's id reaches the sender")

    def test_ipi_broadcast(self) -> None:
        """An IPI to destination 0xFF reaches every processor, the sender too."""
        machine = self.boot(vcpus=3)
        machine.cpu.send_ipi(command(0x52), destination=0xFF)
        expect_only(machine, {0, 1, 2}, 0x52, "a broadcast IPI reaches every APIC")

    def test_ipi_shorthand_self(self) -> None:
        """An IPI with shorthand "self" reaches the sender only."""
        self._shorthand(msi.SELF, {1}, "an IPI with shorthand self reaches the sender alone")

    def test_ipi_shorthand_all(self) -> None:
        """An IPI with shorthand "all including self" reaches every processor."""
        self._shorthand(msi.ALL_INCLUDING_SELF, {0, 1, 2}, "an IPI to all including self reaches all")

    def test_ipi_shorthand_others(self) -> None:
        """Shorthand all excluding self."""
        self._shorthand(msi.ALL_EXCLUDING_SELF, {0, 2}, "an IPI to all excluding self reaches all the others")

    def _shorthand(self, shorthand: int, receivers: set[int], rule: str) -> None:
        machine = self.boot(vcpus=3)
        machine.cpus[1].send_ipi(command(0x52, shorthand=shorthand))
        expect_only(machine, receivers, 0x52, rule)

    def test_ipi_logical_flat(self) -> None:
        """A logical IPI in the flat model reaches each APIC whose bit is set."""
        machine = self.boot(vcpus=3)
        set_flat_ids(machine)
        machine.cpu.send_ipi(command(0x52, logical=True), destination=0b110)
        expect_only(machine, {1, 2}, 0x52, "a logical IPI reaches each APIC whose bit is set")

    def test_ipi_logical_cluster(self) -> None:
        """A logical IPI in the cluster model reaches the members it names of the cluster it names."""
        machine = self.boot(vcpus=3)
        for cpu in machine.cpus:
            cpu.apic_write(reg.DFR, CLUSTER_MODEL)
            cpu.apic_write(reg.LDR, (0x10 | 1 << cpu.id) << 24)
        machine.cpu.send_ipi(command(0x52, logical=True), destination=0x15)
        expect_only(machine, {0, 2}, 0x52, "in the cluster model an IPI reaches the members named")

    def test_ipi_lowest_priority(self) -> None:
        """A lowest-priority IPI reaches exactly one of its destinations."""
        machine = self.boot(vcpus=3)
        self.lab.leave_open("which APIC of equal priority takes it")
        set_flat_ids(machine)
        machine.cpu.send_ipi(command(0x52, mode=msi.LOWEST_PRIORITY, logical=True), destination=0b110)
        count = sum(cpu.look() == 0x52 for cpu in machine.cpus)
        check(count == 1, "a lowest-priority IPI reaches exactly one", f"{count} vCPUs took it")

    def test_ipi_nmi(self) -> None:
        """An IPI of delivery mode NMI reaches its destination as an NMI."""
        machine = self.boot(vcpus=2)
        machine.cpu.send_ipi(command(0, mode=msi.NMI), destination=1)
        machine.cpus[1].expect_nmi(rule="an NMI IPI is an NMI at its destination")
        machine.cpus[0].expect_nothing(rule="an NMI IPI is an NMI at its destination alone")

    @needs(IrqChipCap.MP_STATE_GET_SET)
    def test_ipi_init_and_startup(self) -> None:
        """INIT, STARTUP, STARTUP, as kernels send them, start a processor once, at the page that STARTUP names."""
        machine = self.boot(vcpus=2)
        target = machine.cpus[1]
        machine.cpu.send_ipi(command(0, mode=msi.INIT, bits=ASSERT | LEVEL), destination=1)
        machine.cpu.send_ipi(command(0, mode=msi.INIT, bits=LEVEL), destination=1)  # INIT level de-assert
        for _ in range(2):
            machine.cpu.send_ipi(command(agent.STARTUP_VECTOR, mode=msi.STARTUP), destination=1)
        rule = "a vCPU that got an INIT executes at the page of the start-up IPI"
        check_equal(target.run_until_started(), agent.STARTUP_VECTOR, rule)
        check_equal(machine.chip.get_mp_state(1), MPState.RUNNABLE, "a vCPU that was started is runnable")
        target.enter_agent()
        target.enable_apic()
        machine.cpu.send_ipi(command(0x52), destination=1)
        target.expect(0x52, rule="a vCPU that was started takes interrupts")
        check_equal(len(target.started), 1, "the second start-up IPI is ignored")

    @needs(IrqChipCap.MP_STATE_GET_SET)
    def test_every_form_of_init(self) -> None:
        """An INIT IPI resets if it is edge-triggered or asserted (Intel SDM vol. 3, 12.6.1)."""
        expect_every_form_of_init(self.boot(vcpus=2))

    @needs(IrqChipCap.MP_STATE_GET_SET)
    def test_init_level_deassert(self) -> None:
        """An INIT level de-assert IPI does nothing (SDM vol. 3, 12.6.1)."""
        expect_no_init(self.boot(vcpus=2))

    @needs(IrqChipCap.MP_STATE_GET_SET)
    def test_init_unblocks_nmis(self) -> None:
        """A processor that gets an INIT in its NMI handler takes the next NMI after it was started."""
        machine = self.boot(vcpus=2)
        target = machine.cpus[1]
        machine.cpu.send_ipi(command(0, mode=msi.NMI), destination=1)
        check_equal(target.run_into_handler(), NMI_VECTOR, "an NMI IPI is an NMI at its destination")
        start(machine, ASSERT)
        machine.cpu.send_ipi(command(0, mode=msi.NMI), destination=1)
        target.expect_nmi(rule="INIT unblocks NMIs")

    @needs(IrqChipCap.MP_STATE_GET_SET)
    def test_init_resets_the_local_apic(self) -> None:
        """INIT leaves the local APIC software-disabled, with nothing pending."""
        machine = self.boot(vcpus=2)
        target = machine.cpus[1]
        target.apic_write(reg.TPR, 0x70)
        machine.send_msi(0x51, destination=1)
        machine.cpu.send_ipi(command(0, mode=msi.INIT), destination=1)
        machine.cpu.send_ipi(command(agent.STARTUP_VECTOR, mode=msi.STARTUP), destination=1)
        target.run_until_started()
        target.enter_agent()
        check_equal(target.apic_read(reg.TPR), 0, "INIT clears TPR")
        check_equal(target.apic_read(reg.SPIV), reg.SPIV_RESET, "INIT disables the local APIC by software")
        check_equal(target.apic_bits(reg.IRR), set(), "INIT clears what is pending")

    def test_ipi_to_an_absent_apic(self) -> None:
        """An IPI of any kind to an absent processor is dropped."""
        machine = self.boot(vcpus=2)
        for mode in (msi.FIXED, msi.LOWEST_PRIORITY, msi.NMI, msi.INIT, msi.STARTUP):
            machine.cpu.send_ipi(command(0x52, mode=mode), destination=0x44)
        for cpu in machine.cpus:
            cpu.expect_nothing(rule="an IPI to an absent APIC reaches no processor")

    def test_ipi_is_delivered_at_once(self) -> None:
        """The delivery status of an IPI is idle after the write that sends it."""
        machine = self.boot(vcpus=2)
        machine.cpu.send_ipi(command(0x52), destination=1)
        status = machine.cpu.apic_read(reg.ICR_LOW)
        check(not status & msi.ICR_DELIVERY_STATUS, "delivery status is idle after an IPI", f"ICR is {status:#x}")
        machine.cpus[1].expect(0x52, rule="an IPI reaches its destination")

    def test_ipis_from_everybody(self) -> None:
        """IPIs of several senders to one processor all come."""
        machine = self.boot(vcpus=3)
        for cpu in machine.cpus:
            cpu.send_ipi(command(0x51 + 0x10 * cpu.id), destination=0)
        machine.cpu.expect(0x71, 0x61, 0x51, rule="IPIs of several senders all come, the highest vector first")

    def test_ipi_ping_pong(self) -> None:
        """Twenty IPIs that two processors send each other in turn all come."""
        machine = self.boot(vcpus=2)
        for turn in range(20):
            sender, receiver = machine.cpus[turn & 1], machine.cpus[~turn & 1]
            sender.send_ipi(command(0x52), destination=receiver.id)
            receiver.expect(0x52, rule="each IPI reaches its destination once")


class X2apicIpis(Scenarios):
    """IPIs in x2APIC mode."""

    def _boot(self, vcpus: int = 2) -> Bench:
        machine = self.boot(vcpus=vcpus)
        for cpu in machine.cpus:
            check(cpu.enter_x2apic(), "a chip with x2apic lets its guest switch to x2APIC mode", "that raised #GP")
        return machine

    @needs(IrqChipCap.X2APIC)
    def test_x2apic_ipi_to_another(self) -> None:
        """A fixed IPI in x2APIC mode reaches the processor with that id of 32 bits."""
        machine = self._boot()
        machine.cpu.send_ipi(command(0x52), destination=1)
        expect_only(machine, {1}, 0x52, "an IPI reaches the APIC with that id alone")

    @needs(IrqChipCap.X2APIC)
    def test_x2apic_self_ipi(self) -> None:
        """A write to the self-IPI register interrupts the writing processor only."""
        machine = self._boot()
        machine.cpus[1].apic_write(reg.SELF_IPI, 0x52)
        expect_only(machine, {1}, 0x52, "the self-IPI register interrupts the writer alone")

    @needs(IrqChipCap.X2APIC)
    def test_x2apic_ipi_broadcast(self) -> None:
        """An IPI to destination 0xFFFFFFFF in x2APIC mode reaches every processor."""
        machine = self._boot()
        machine.cpu.send_ipi(command(0x52), destination=msi.BROADCAST)
        expect_only(machine, {0, 1}, 0x52, "a broadcast IPI reaches every APIC")

    @needs(IrqChipCap.X2APIC)
    def test_x2apic_ipi_logical(self) -> None:
        """A logical IPI in x2APIC mode names a cluster in bits 16-31 and its members in bits 0-15."""
        machine = self._boot(3)
        for cpu in machine.cpus:
            check_equal(cpu.apic_read(reg.LDR), 1 << cpu.id, "in x2APIC mode LDR follows from the id")
        machine.cpu.send_ipi(command(0x52, logical=True), destination=0b110)
        expect_only(machine, {1, 2}, 0x52, "a logical IPI reaches the members named of its cluster")
        machine.cpu.send_ipi(command(0x53, logical=True), destination=1 << 16 | 0b110)
        expect_only(machine, set(), 0x53, "a logical IPI to an absent cluster reaches no processor")

    @needs(IrqChipCap.X2APIC)
    def test_x2apic_ipi_shorthand_others(self) -> None:
        """Shorthand all excluding self."""
        machine = self._boot(3)
        machine.cpu.send_ipi(command(0x52, shorthand=msi.ALL_EXCLUDING_SELF))
        expect_only(machine, {1, 2}, 0x52, "an IPI to all excluding self reaches all the others")

    @needs(IrqChipCap.X2APIC)
    @needs(IrqChipCap.MP_STATE_GET_SET)
    def test_x2apic_every_form_of_init(self) -> None:
        """An INIT IPI in x2APIC mode resets if it is edge-triggered or asserted, and the mode stays."""
        expect_every_form_of_init(self._boot())

    @needs(IrqChipCap.X2APIC)
    @needs(IrqChipCap.MP_STATE_GET_SET)
    def test_x2apic_init_level_deassert(self) -> None:
        """An INIT level de-assert IPI in x2APIC mode does nothing."""
        expect_no_init(self._boot())

    @needs(IrqChipCap.X2APIC)
    def test_x2apic_ipi_to_xapic(self) -> None:
        """An IPI from a processor in x2APIC mode reaches one that is in xAPIC mode."""
        machine = self.boot(vcpus=2)
        check(machine.cpu.enter_x2apic(), "a chip with x2apic lets its guest switch to x2APIC mode", "it did not")
        machine.cpu.send_ipi(command(0x52), destination=1)
        expect_only(machine, {1}, 0x52, "an IPI reaches the APIC with that id alone, in whichever mode it is")
