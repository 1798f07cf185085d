"""Scenarios: MSIs in all delivery and destination modes (Intel SDM vol. 3, 12.11), and what is no message."""

from __future__ import annotations

from irqchip_core.capabilities import IrqChipCap
from irqchip_core.chip import MPState
from irqchip_core.routes import IrqRoute
from irqchip_core.testing import agent
from irqchip_core.testing.bench import MSI_GSI, Bench
from irqchip_core.testing.conformance.base import Scenarios, needs
from irqchip_core.testing.guest_cpu import EXTINT_MODE, MASKED, NMI_VECTOR
from irqchip_core.testing.verdict import NotApplicable, check, check_equal, vectors
from irqchip_core.x86 import msi
from irqchip_core.x86.lapic import registers as reg

CLUSTER_MODEL = reg.DFR_ONES


def expect_only(machine: Bench, receivers: set[int], vector: int, rule: str) -> None:
    """Demand that these vCPUs take `vector`, and the others nothing."""
    for cpu in machine.cpus:
        if cpu.id in receivers:
            cpu.expect(vector, rule=rule)
        else:
            cpu.expect_nothing(rule=rule)


def set_flat_ids(machine: Bench) -> None:
    """Give each local APIC one bit of the flat model as its logical id."""
    for cpu in machine.cpus:
        cpu.apic_write(reg.LDR, 1 << 24 + cpu.id)


class Messages(Scenarios):
    """MSIs."""

    def test_msi_to_one(self) -> None:
        """A fixed MSI with a physical destination interrupts the APIC with that id, and no other."""
        machine = self.boot(vcpus=3)
        for destination in (0, 2, 1):
            machine.send_msi(0x50 + destination, destination=destination)
            rule = "a physical MSI interrupts the APIC with that id alone"
            expect_only(machine, {destination}, 0x50 + destination, rule)

    def test_msi_broadcast(self) -> None:
        """A fixed MSI to physical destination 0xFF interrupts every APIC."""
        machine = self.boot(vcpus=3)
        machine.send_msi(0x50, destination=0xFF)
        expect_only(machine, {0, 1, 2}, 0x50, "a broadcast MSI interrupts every APIC")

    def test_msi_logical_flat(self) -> None:
        """A fixed MSI with a logical destination in the flat model interrupts each APIC whose bit is set."""
        machine = self.boot(vcpus=3)
        set_flat_ids(machine)
        machine.send_msi(0x50, destination=0b101, logical=True)
        expect_only(machine, {0, 2}, 0x50, "a logical MSI interrupts each APIC whose bit is set")
        machine.send_msi(0x51, destination=0b010, logical=True)
        expect_only(machine, {1}, 0x51, "a logical MSI interrupts each APIC whose bit is set")

    def test_msi_logical_cluster(self) -> None:
        """A fixed MSI with a logical destination in the cluster model interrupts the members that it names."""
        machine = self.boot(vcpus=3)
        for cpu in machine.cpus:
            cluster, member = divmod(cpu.id, 2)
            cpu.apic_write(reg.DFR, CLUSTER_MODEL)
            cpu.apic_write(reg.LDR, (cluster << 4 | 1 << member) << 24)
        machine.send_msi(0x50, destination=0x03, logical=True)
        rule = "in the cluster model an MSI interrupts the members named of the cluster named"
        expect_only(machine, {0, 1}, 0x50, rule)
        machine.send_msi(0x51, destination=0x11, logical=True)
        expect_only(machine, {2}, 0x51, rule)

    def test_msi_lowest_priority(self) -> None:
        """A lowest-priority MSI interrupts exactly one of its destinations."""
        self._one_of_two(0x50, {"mode": msi.LOWEST_PRIORITY}, "a lowest-priority MSI interrupts exactly one")

    def test_msi_redirection_hint(self) -> None:
        """A lowest-priority MSI with redirection hint and logical destination interrupts exactly one APIC."""
        self._one_of_two(0x51, {"mode": msi.LOWEST_PRIORITY, "hint": True}, "a redirected MSI interrupts exactly one")

    def _one_of_two(self, vector: int, options: dict[str, int], rule: str) -> None:
        machine = self.boot(vcpus=2)
        self.lab.leave_open("which APIC of equal priority takes it")
        set_flat_ids(machine)
        machine.send_msi(vector, destination=0b11, logical=True, **options)  # type: ignore[arg-type]
        taken = [taker for cpu in machine.cpus if (taker := cpu.look()) is not None]
        check(taken == [vector], rule, f"of two vCPUs {len(taken)} took {vectors(taken)}")

    def test_msi_nmi(self) -> None:
        """An MSI of delivery mode NMI comes though interrupts are disabled, with vector 2."""
        machine = self.boot()
        machine.send_msi(0, mode=msi.NMI)
        machine.cpu.expect_nmi(rule="an NMI message is an NMI")

    def test_nmi_to_another(self) -> None:
        """An MSI of delivery mode NMI interrupts its destination only."""
        machine = self.boot(vcpus=2)
        machine.send_msi(0, mode=msi.NMI, destination=1)
        machine.cpus[1].expect_nmi(rule="an NMI message is an NMI")
        machine.cpus[0].expect_nothing(rule="an NMI message reaches its destination alone")

    def test_nmis_before_the_first_is_taken(self) -> None:
        """Of NMIs that come before a vCPU executes, two are taken: one that is due and one that is held."""
        machine = self.boot()
        for _ in range(3):
            machine.send_msi(0, mode=msi.NMI)
        taken = [machine.cpu.look() for _ in range(3)]
        check_equal(taken, [NMI_VECTOR, NMI_VECTOR, None], "of three NMIs at once one is taken, and one is held")

    def test_nmis_while_one_is_handled(self) -> None:
        """Of NMIs that come in the NMI handler, one is held until its IRET (Intel SDM vol. 3, 7.7.1)."""
        machine = self.boot()
        machine.send_msi(0, mode=msi.NMI)
        check_equal(machine.cpu.run_into_handler(), NMI_VECTOR, "an NMI message is an NMI")
        for _ in range(3):
            machine.send_msi(0, mode=msi.NMI)
        taken = [machine.cpu.look() for _ in range(2)]
        check_equal(taken, [NMI_VECTOR, None], "of the NMIs that come while one is handled, one is held")

    @needs(IrqChipCap.MP_STATE_GET_SET)
    def test_msi_init_and_startup(self) -> None:
        """An INIT message resets the processor, which waits; a STARTUP message starts it at the page that it names."""
        machine = self.boot(vcpus=2)
        cpu = machine.cpus[1]
        machine.send_msi(0, mode=msi.INIT, destination=1)
        machine.chip.inject_interrupts(cpu.vcpu)
        rule = "a vCPU that got an INIT waits for a start-up IPI"
        check_equal(machine.chip.get_mp_state(1), MPState.INIT_RECEIVED, rule)
        machine.send_msi(agent.STARTUP_VECTOR, mode=msi.STARTUP, destination=1)
        started = cpu.run_until_started()
        check_equal(started, agent.STARTUP_VECTOR, "a start-up message lets a vCPU execute at its page")
        check_equal(machine.chip.get_mp_state(1), MPState.RUNNABLE, "a vCPU that was started is runnable")

    def test_startup_without_init(self) -> None:
        """A STARTUP message to a processor that does not wait for one is ignored."""
        machine = self.boot(vcpus=2)
        machine.send_msi(agent.STARTUP_VECTOR, mode=msi.STARTUP, destination=1)
        machine.send_msi(0x50, destination=1)
        machine.cpus[1].expect(0x50, rule="a start-up message to a running vCPU is ignored")
        check(not machine.cpus[1].started, "a start-up message to a running vCPU is ignored", "it was started")

    def test_msi_extint(self) -> None:
        """An ExtINT message causes no interrupt but one that the PICs have pending."""
        machine = self.boot()
        self.lab.leave_open("whether an ExtINT message acknowledges an interrupt of the PICs (KVM ignores it)")
        machine.unmask_pics(5)
        machine.cpu.apic_write(reg.LVT_LINT0, EXTINT_MODE | MASKED)
        machine.pulse(5)
        machine.send_msi(0x51, mode=msi.EXTINT)
        vector = machine.cpu.look()
        check(
            vector in (None, 0x35), "an ExtINT message brings the PICs' vector", f"it brought {vectors([vector or 0])}"
        )

    def test_msi_smi(self) -> None:
        """An SMI message does not disturb the guest."""
        machine = self.boot()
        if not machine.apics_in_chip:
            raise NotApplicable("needs local APICs in the chip; a hypervisor may enter system management mode")
        machine.send_msi(0, mode=msi.SMI)
        machine.send_msi(0x51)
        machine.cpu.expect(0x51, rule="an SMI does not disturb the guest")

    def test_msi_reserved_delivery_mode(self) -> None:
        """A message of the reserved delivery mode 3 is dropped."""
        machine = self.boot()
        machine.send_msi(0x51, mode=msi.REMOTE_READ)
        machine.cpu.expect_nothing(rule="a message of the reserved delivery mode interrupts no vCPU")

    def test_msi_level_triggered(self) -> None:
        """A level-triggered MSI interrupts once, and sets TMR."""
        machine = self.boot()
        machine.send_msi(0x51, level=True)
        check_equal(machine.cpu.apic_bits(reg.TMR) & {0x51}, {0x51}, "TMR shows a level-triggered interrupt")
        machine.cpu.expect(0x51, rule="a level-triggered MSI interrupts once")
        machine.send_msi(0x51)
        check_equal(machine.cpu.apic_bits(reg.TMR) & {0x51}, set(), "TMR shows an edge-triggered interrupt")

    def test_msi_to_an_absent_apic(self) -> None:
        """A message to an APIC that does not exist is dropped."""
        machine = self.boot()
        for mode in (msi.FIXED, msi.LOWEST_PRIORITY, msi.NMI, msi.INIT, msi.STARTUP):
            machine.send_msi(0x51, mode=mode, destination=0x33)
        machine.cpu.expect_nothing(rule="a message to an absent APIC interrupts no vCPU")

    def test_msi_to_an_absent_logical_id(self) -> None:
        """A message to a logical id that no APIC has is dropped."""
        machine = self.boot()
        set_flat_ids(machine)
        machine.send_msi(0x51, destination=0x80, logical=True)
        machine.cpu.expect_nothing(rule="a message to a logical id that no APIC has interrupts no vCPU")

    def test_write_that_is_no_message(self) -> None:
        """A write to an address outside 0xFEExxxxx is dropped."""
        machine = self.boot()
        if not machine.apics_in_chip:
            raise NotApplicable("needs local APICs in the chip; a hypervisor may take any address for a message")
        for address in (0xFED00000, 0x1000, 0):
            machine.write_msi(address, 0x51)
        machine.cpu.expect_nothing(rule="a write outside of 0xFEExxxxx is no message")

    def test_deassertion_sends_nothing(self) -> None:
        """An MSI route sends when its GSI is asserted, and not when it is deasserted."""
        machine = self.boot()
        machine.chip.route_irq(IrqRoute.msi(30, msi.MSI_ADDRESS_BASE, 0x51))
        machine.chip.service_irq(30, False)
        machine.cpu.expect_nothing(rule="deasserting an MSI route sends nothing")
        machine.pulse(30)
        machine.cpu.expect(0x51, rule="asserting an MSI route sends its message once")

    def test_each_assertion_sends(self) -> None:
        """Asserting an MSI's GSI again sends it again: a message has no level."""
        machine = self.boot()
        machine.chip.route_irq(IrqRoute.msi(30, msi.MSI_ADDRESS_BASE, 0x51))
        for _ in range(3):
            machine.chip.service_irq(30, True)
            machine.cpu.expect(0x51, rule="each assertion of an MSI route sends its message")

    def test_message_after_its_route_is_gone(self) -> None:
        """A message that is on its way is not taken back with its route."""
        machine = self.boot()
        machine.send_msi(0x51)
        machine.chip.route_irq(IrqRoute.msi(MSI_GSI, msi.MSI_ADDRESS_BASE, 0x61))
        machine.cpu.expect(0x51, rule="a pending interrupt stays when its route changes")

    def test_pin_with_each_destination(self) -> None:
        """A redirection entry reaches the APIC it names, physically and logically."""
        machine = self.boot(vcpus=2)
        set_flat_ids(machine)
        for logical, destination, receivers in ((False, 1, {1}), (True, 0b10, {1}), (True, 0b11, {0, 1})):
            machine.pin(5, 0x45, destination=destination, logical=logical)
            machine.pulse(5)
            expect_only(machine, receivers, 0x45, "a redirection entry reaches the APICs it names")

    def test_pin_with_nmi(self) -> None:
        """A redirection entry of delivery mode NMI sends an NMI."""
        machine = self.boot()
        machine.pin(5, 0, mode=msi.NMI)
        machine.pulse(5)
        machine.cpu.expect_nmi(rule="a pin of delivery mode NMI sends an NMI")

    def test_pin_with_lowest_priority(self) -> None:
        """A redirection entry of lowest priority reaches exactly one APIC."""
        machine = self.boot(vcpus=2)
        self.lab.leave_open("which APIC of equal priority takes it")
        set_flat_ids(machine)
        machine.pin(5, 0x45, mode=msi.LOWEST_PRIORITY, destination=0b11, logical=True)
        machine.pulse(5)
        taken = [taker for cpu in machine.cpus if (taker := cpu.look()) is not None]
        check(taken == [0x45], "a pin of lowest priority interrupts exactly one", f"{len(taken)} of two vCPUs took it")
