"""Scenarios: state that is taken, given back, and moved to another chip of the kind."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from attrs import evolve

from irqchip_core.capabilities import IrqChipCap
from irqchip_core.chip import MPState
from irqchip_core.errors import InvalidArgument, IrqChipError, UnknownVcpu, Unsupported, WrongType
from irqchip_core.routes import IrqRoute
from irqchip_core.testing.agent import Operation
from irqchip_core.testing.bench import Bench
from irqchip_core.testing.conformance.base import ABSENT, Scenarios, needs
from irqchip_core.testing.conformance.timers import BOTH_BYTES, MODE_2, start, start_pit, ticks
from irqchip_core.testing.conformance.vcpus import woken
from irqchip_core.testing.guest_cpu import Eoi, GuestCpu
from irqchip_core.testing.verdict import NotApplicable, accepted, check, check_equal, refused, until
from irqchip_core.x86.chip import IrqChipX86_64
from irqchip_core.x86.lapic import registers as reg
from irqchip_core.x86.msi import MSI_ADDRESS_BASE
from irqchip_core.x86.state import ELCR_MASKS, IoapicState, PicSelect, PicState, PitState

MOVED = "what was pending when the state was saved is pending where it is restored"


STATES_IN_TURN = 30


def move(saved: Bench, target: Bench) -> None:
    """Restore the chip of one machine into another."""
    count = len(saved.cpus)
    target.chip.restore(saved.chip.snapshot(count), count)
    for old, new in zip(saved.cpus, target.cpus, strict=True):
        new.x2apic = old.x2apic


def take(cpu: GuestCpu, *expected: int) -> None:
    cpu.expect(*expected, rule=MOVED, eoi=Eoi.LAPIC | Eoi.PRIMARY | Eoi.SECONDARY)


FRESH: dict[IrqChipCap, Callable[[], Any]] = {
    IrqChipCap.PIC: partial(PicState, elcr_mask=ELCR_MASKS[PicSelect.PRIMARY]),
    IrqChipCap.IOAPIC: IoapicState,
    IrqChipCap.PIT: PitState,
}
"""A record of each controller that a chip may lack."""
RECORDS = {
    "pic_primary": IrqChipCap.PIC,
    "pic_secondary": IrqChipCap.PIC,
    "ioapic": IrqChipCap.IOAPIC,
    "pit": IrqChipCap.PIT,
}
"""To which controller each record of a snapshot belongs."""
Accessors = tuple[IrqChipCap, Callable[[], Any], Callable[[Any], None]]


def every_controller(chip: IrqChipX86_64) -> list[Accessors]:
    """Each controller that a chip may lack, with what reads and sets its state."""
    pics: list[Accessors] = [
        (IrqChipCap.PIC, partial(chip.get_pic_state, select), partial(chip.set_pic_state, select))
        for select in PicSelect
    ]
    return [
        *pics,
        (IrqChipCap.IOAPIC, chip.get_ioapic_state, chip.set_ioapic_state),
        (IrqChipCap.PIT, chip.get_pit, chip.set_pit),
    ]


def controllers(chip: IrqChipX86_64) -> list[Accessors]:
    """Those that the chip has."""
    return [one for one in every_controller(chip) if chip.check_capability(one[0])]


class State(Scenarios):
    """State of the controllers."""

    def test_pic_state_is_the_guests(self) -> None:
        """The state of the PICs is what the guest programmed."""
        machine = self.boot()
        machine.unmask_pics(3, 12)
        primary, secondary = (machine.chip.get_pic_state(select) for select in PicSelect)
        check_equal((primary.irq_base, secondary.irq_base), (0x30, 0x38), "get_pic_state shows the vector bases")
        check_equal((primary.imr, secondary.imr), (0xF3, 0xEF), "get_pic_state shows the masks")

    @needs(IrqChipCap.PIC)
    def test_pic_state_round_trip(self) -> None:
        """PIC state that is read and set again changes nothing; the guest reads what was changed in it."""
        machine = self.boot()
        for select, port in ((PicSelect.PRIMARY, 0x21), (PicSelect.SECONDARY, 0xA1)):
            state = machine.chip.get_pic_state(select)
            machine.chip.set_pic_state(select, state)
            check_equal(machine.chip.get_pic_state(select), state, "set_pic_state of what get_pic_state gave")
            machine.chip.set_pic_state(select, evolve(state, imr=0x5A))
            check_equal(machine.cpu.in_(port), 0x5A, "set_pic_state is what the guest reads")

    @needs(IrqChipCap.PIC)
    def test_pic_request_survives(self) -> None:
        """A request that waits in a PIC is in its state, and interrupts where that is set."""
        machine = self.boot()
        machine.pulse(5)
        state = machine.chip.get_pic_state(PicSelect.PRIMARY)
        check(state.irr & 1 << 5, "get_pic_state shows a request", "IRR is empty")
        other = self.boot()
        other.chip.set_pic_state(PicSelect.PRIMARY, state)
        other.unmask_pics(5)
        other.cpu.expect(0x35, rule="a request in the state of a PIC interrupts", eoi=Eoi.PRIMARY)

    def test_ioapic_state_is_the_guests(self) -> None:
        """The state of the IOAPIC is what the guest programmed."""
        machine = self.boot()
        machine.pin(5, 0x45, level=True, masked=True, destination=1)
        state = machine.chip.get_ioapic_state()
        check_equal(hex(state.redirect_table[5]), hex(1 << 56 | 0x18045), "get_ioapic_state shows the entries")

    @needs(IrqChipCap.IOAPIC)
    def test_ioapic_state_round_trip(self) -> None:
        """Redirection entries that are set take effect."""
        machine = self.boot()
        state = machine.chip.get_ioapic_state()
        machine.chip.set_ioapic_state(state)
        check_equal(machine.chip.get_ioapic_state(), state, "set_ioapic_state of what get_ioapic_state gave")
        state.redirect_table[6] = 0x46
        machine.chip.set_ioapic_state(state)
        check_equal(machine.entry(6), 0x46, "set_ioapic_state is what the guest reads")
        machine.pulse(6)
        machine.cpu.expect(0x46, rule="an entry set by set_ioapic_state counts")

    def test_lapic_state_is_the_guests(self) -> None:
        """The state of a local APIC is what its guest programmed and what is pending."""
        machine = self.boot(vcpus=2)
        for cpu in machine.cpus:
            cpu.apic_write(reg.TPR, 0x20 + 0x10 * cpu.id)
            machine.send_msi(0x51 + cpu.id, destination=cpu.id)
        for cpu in machine.cpus:
            regs = machine.chip.get_lapic_state(cpu.id).regs
            check_equal(regs[reg.TPR >> 4], 0x20 + 0x10 * cpu.id, "get_lapic_state shows TPR")
            check_equal(regs[(reg.IRR >> 4) + 2], 1 << 0x11 + cpu.id, "get_lapic_state shows what is pending")

    def test_lapic_state_round_trip(self) -> None:
        """Local APIC state that is read and set again keeps what is pending; the guest reads what was changed in it."""
        machine = self.boot()
        machine.send_msi(0x51)
        state = machine.chip.get_lapic_state(0)
        state.regs[reg.TPR >> 4] = 0x30
        machine.chip.set_lapic_state(0, state)
        check_equal(machine.cpu.apic_read(reg.TPR), 0x30, "set_lapic_state is what the guest reads")
        machine.cpu.expect(0x51, rule="set_lapic_state keeps what is pending")

    def test_pending_vector_is_set(self) -> None:
        """A vector that is pending in a local APIC state interrupts when that state is set."""
        machine = self.boot()
        state = machine.chip.get_lapic_state(0)
        state.regs[(reg.IRR >> 4) + 3] |= 1 << 0x05
        machine.chip.set_lapic_state(0, state)
        machine.cpu.expect(0x65, rule="a vector pending in a state that is set comes")

    def test_pit_state(self) -> None:
        """The state of the PIT is what the guest programmed, and counts where it is set."""
        machine = self.boot()
        start_pit(machine.cpu, MODE_2, 0x4321)
        state = machine.chip.get_pit()
        check_equal(state.channels[0].mode, 2, "get_pit shows the mode")
        check_equal(state.channels[0].count, 0x4321, "get_pit shows the count")
        other = self.boot()
        other.chip.set_pit(state)
        check_equal(other.chip.get_pit().channels[0].count, 0x4321, "set_pit sets the count")
        other.cpu.out(0x43, 0xE2)
        check_equal(other.cpu.in_(0x40) & 0x3F, BOTH_BYTES | MODE_2, "set_pit is what the guest reads")

    def test_moved_pending_interrupts(self) -> None:
        """A snapshot has what is pending in PICs and local APIC."""
        machine, other = self.boot(), self.boot()
        self.lab.leave_open("whether the PIC or the local APIC comes first", order_only=True)
        machine.unmask_pics(5)
        machine.pin(6, 0x46)
        machine.pulse(5)
        machine.pulse(6)
        move(machine, other)
        other.cpu.expect_all([0x35, 0x46], rule=MOVED, eoi=Eoi.LAPIC | Eoi.PRIMARY)

    def test_moved_guest(self) -> None:
        """A guest goes on in another machine, its processor's registers moved, too, and takes what was pending."""
        machine, other = self.boot(), self.boot()
        self.lab.leave_open("whether the PIC or the local APIC comes first", order_only=True)
        pending = [0x46]
        machine.send_msi(0x46)
        if machine.has(IrqChipCap.PIC):
            machine.unmask_pics(5)
            machine.pulse(5)
            pending = [0x35, 0x46]
        other.cpu.take_over(machine.cpu)
        move(machine, other)
        other.cpu.expect_all(pending, rule=MOVED, eoi=Eoi.LAPIC | Eoi.PRIMARY)

    def test_moved_masked_line(self) -> None:
        """A snapshot has the level of a line that is still asserted."""
        machine, other = self.boot(), self.boot()
        machine.pin(10, 0x4A, level=True, masked=True)
        machine.chip.service_irq(10, True)
        move(machine, other)
        other.pin(10, 0x4A, level=True)
        other.cpu.expect_next(0x4A, rule="a line that was high when the state was saved is high")
        other.chip.service_irq(10, False)

    def test_moved_routes(self) -> None:
        """A snapshot has the routes."""
        machine, other = self.boot(), self.boot()
        machine.chip.route_irq(IrqRoute.msi(30, MSI_ADDRESS_BASE, 0x51))
        move(machine, other)
        other.pulse(30)
        other.cpu.expect(0x51, rule="a snapshot has the routes")

    def test_moved_in_service(self) -> None:
        """A snapshot has what is in service, which still blocks until its EOI."""
        machine, other = self.boot(), self.boot()
        machine.cpu.require_eoi()
        machine.send_msi(0x61)
        machine.cpu.expect_next(0x61, rule="an MSI interrupts")
        machine.send_msi(0x51)
        move(machine, other)
        other.cpu.expect_blocked(rule="what was in service when the state was saved blocks lower vectors")
        other.cpu.end(Eoi.LAPIC)
        other.cpu.expect(0x51, rule=MOVED)

    def test_moved_timer(self) -> None:
        """A timer that ran when the state was saved runs out where it is restored."""
        machine, other = self.boot(), self.boot()
        start(machine.cpu, ticks(machine, 50))
        move(machine, other)
        machine.cpu.apic_write(reg.TIMER_INITIAL_COUNT, 0)
        other.cpu.expect(0x61, rule="a timer that ran when the state was saved runs out")
        self.lab.leave_open("whether the saved machine's timer ran out, too")

    @needs(IrqChipCap.X2APIC)
    def test_moved_x2apic_mode(self) -> None:
        """A snapshot has the mode of the local APIC."""
        machine, other = self.boot(), self.boot()
        check(machine.cpu.enter_x2apic(), "a chip with x2apic lets its guest switch to x2APIC mode", "it did not")
        machine.send_msi(0x51)
        move(machine, other)
        other.cpu.expect(0x51, rule="a snapshot has the mode of the local APIC, and what is pending")

    @needs(IrqChipCap.MP_STATE_GET_SET)
    def test_moved_mp_states(self) -> None:
        """A snapshot has the MP states."""
        machine, other = self.boot(vcpus=2), self.boot(vcpus=2)
        machine.chip.set_mp_state(1, MPState.INIT_RECEIVED)
        move(machine, other)
        check_equal(other.chip.get_mp_state(1), MPState.INIT_RECEIVED, "a snapshot has the MP states")

    @needs(IrqChipCap.MP_STATE_GET_SET)
    def test_state_while_vcpus_execute(self) -> None:
        """State is read and set from another thread while one vCPU executes and another sleeps; both go on."""
        machine = self.boot(vcpus=2)
        chip = machine.chip
        spinning, asleep = machine.cpu.background(Operation.SPIN), machine.cpus[1].background(Operation.HALT)
        until(machine.cpu.mailbox.result, machine.patience, "the guest executes")
        until(
            lambda: chip.get_mp_state(1) is MPState.HALTED,
            machine.patience,
            "get_mp_state is HALTED for one that sleeps",
        )
        with accepted("state is read and set from any thread, also while vCPUs execute"):
            for _ in range(STATES_IN_TURN):
                chip.snapshot(2)
                for vcpu_id in range(2):
                    chip.set_lapic_state(vcpu_id, chip.get_lapic_state(vcpu_id))
                    chip.set_mp_state(vcpu_id, chip.get_mp_state(vcpu_id))
                for _, get, put in controllers(chip):
                    put(get())
        check(
            not spinning.done() and not asleep.done(),
            "reading and setting state interrupts no guest",
            "one came to its end",
        )
        for cpu, done in zip(machine.cpus, (spinning, asleep), strict=True):
            machine.send_msi(0x51, destination=cpu.id)
            woken(cpu, done, 0x51, "a vCPU takes interrupts after its state was read and set")

    def test_snapshot_of_another_size(self) -> None:
        """A snapshot for another number of vCPUs is refused, and changes nothing."""
        machine = self.boot(vcpus=2)
        snapshot = machine.chip.snapshot(2)
        before = machine.fingerprint()
        snapshot.lapics[0].regs[reg.TPR >> 4] ^= 0x30
        del snapshot.lapics[1]
        with refused(InvalidArgument, "restore refuses a snapshot with too few local APICs"):
            machine.chip.restore(snapshot, 2)
        check(machine.fingerprint() == before, "a refused restore changes nothing", "it did")

    def test_snapshot_of_another_backend(self) -> None:
        """A snapshot of another kind of chip is refused, and changes nothing."""
        machine = self.boot()
        snapshot = machine.chip.snapshot(1)
        snapshot.lapics[0].regs[reg.TPR >> 4] ^= 0x30
        snapshot.chip_specific = object()
        before = machine.fingerprint()
        with refused(IrqChipError, "restore refuses the chip-specific state of another backend"):
            machine.chip.restore(snapshot, 1)
        check(machine.fingerprint() == before, "a refused restore changes nothing", "it did")

    def test_state_of_an_absent_controller(self) -> None:
        """State of a controller that the chip does not have is refused as `Unsupported`, by the controller's name."""
        chip = self.boot().chip
        absent = [one for one in every_controller(chip) if not chip.check_capability(one[0])]
        if not absent:
            raise NotApplicable(ABSENT)
        for capability, get, put in absent:
            for what, call in (("read", get), ("set", lambda: put(FRESH[capability]()))):  # noqa: B023
                rule = f"state of the {capability.value}, which the chip does not have, cannot be {what}"
                try:
                    call()
                except Unsupported as error:
                    check(capability.value in str(error), f"{rule}, and the error names it", f"it says {error}")
                except Exception as error:
                    check(False, f"{rule} (Unsupported)", f"it raised {type(error).__name__}: {error}")
                else:
                    check(False, f"{rule} (Unsupported)", "it was accepted")

    def test_snapshot_has_the_controllers_of_the_chip(self) -> None:
        """A snapshot has the state of each controller that the chip has, and of no other; `restore` refuses any other.

        A refused one changes nothing.
        """
        machine = self.boot()
        snapshot = machine.chip.snapshot(1)
        snapshot.lapics[0].regs[reg.TPR >> 4] ^= 0x30
        before = machine.fingerprint()
        for name, capability in RECORDS.items():
            claimed = machine.has(capability)
            there = getattr(snapshot, name) is not None
            check_equal(there, claimed, f"a snapshot has {name} exactly if the chip has capability {capability.value}")
            damaged = evolve(snapshot)
            setattr(damaged, name, None if claimed else FRESH[capability]())
            what = f"a snapshot {'without' if claimed else 'with'} {name}"
            with refused((WrongType, InvalidArgument), f"restore refuses {what}"):
                machine.chip.restore(damaged, 1)
            check(machine.fingerprint() == before, f"a refused restore of {what} changes nothing", "it did")

    def test_restore_without_the_vcpus(self) -> None:
        """A snapshot can be restored when its vCPUs were added, and not before."""
        machine = self.boot(vcpus=2)
        snapshot = machine.chip.snapshot(2)
        vm = self.lab.create_vm()
        rule = "restore refuses while vCPUs are missing"
        with vm, self.lab.create_chip(vm, 2) as chip, refused(UnknownVcpu, rule):
            chip.restore(snapshot, 2)
