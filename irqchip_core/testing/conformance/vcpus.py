"""Scenarios: MP states, halting, waiting, kicks, and what may happen at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from irqchip_core.capabilities import IrqChipCap
from irqchip_core.chip import MPState, VcpuRunState
from irqchip_core.errors import InvalidArgument, IrqChipError, UnknownVcpu
from irqchip_core.routes import IrqRoute
from irqchip_core.testing.agent import Operation
from irqchip_core.testing.bench import Bench
from irqchip_core.testing.conformance.base import Scenarios, needs
from irqchip_core.testing.guest_cpu import NMI_VECTOR, Eoi, GuestCpu
from irqchip_core.testing.verdict import Nonconforming, NotApplicable, check, check_equal, refused, until
from irqchip_core.x86 import msi

NEVER_LOST = "an interrupt that comes while a vCPU goes to sleep wakes it"


def on_thread(call: Callable[[], Any]) -> Future[Any]:
    """Call it on a thread of its own."""
    done: Future[Any] = Future()

    def perform() -> None:
        try:
            done.set_result(call())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=perform, daemon=True).start()
    return done


def result_of(done: Future[Any], patience: float, rule: str) -> Any:
    """What it returned."""
    try:
        return done.result(patience)
    except TimeoutError:
        raise Nonconforming(f"{rule}, but it still waits after {patience:g} s") from None


def woken(cpu: GuestCpu, done: Future[bool], vector: int, rule: str) -> None:
    """Demand that the guest in the background took `vector` and came to its end."""
    fine = result_of(done, 2 * cpu.machine.patience, rule)
    check(
        fine, rule, f"vCPU {cpu.id} did not wake within {cpu.machine.patience:g} s: {vector:#x} or its wake-up was lost"
    )
    check_equal(cpu.look(), vector, rule)
    cpu.end(Eoi.LAPIC)


class MpStates(Scenarios):
    """MP states."""

    @needs(IrqChipCap.MP_STATE_GET_SET)
    def test_initial_mp_states(self) -> None:
        """At first vCPU 0 is runnable, and the others are uninitialized."""
        machine = self.boot(chip_vcpus=3)
        for vcpu_id in (1, 2):
            machine.chip.add_vcpu(vcpu_id, machine.vm.create_vcpu(vcpu_id))
        states = [machine.chip.get_mp_state(vcpu_id) for vcpu_id in range(3)]
        expected = [MPState.RUNNABLE, MPState.UNINITIALIZED, MPState.UNINITIALIZED]
        check_equal(states, expected, "at first vCPU 0 is runnable and the others are uninitialized")

    @needs(IrqChipCap.MP_STATE_GET_SET)
    def test_mp_state_is_kept(self) -> None:
        """Each MP state that x86 has reads as it was set."""
        machine = self.boot(vcpus=2)
        for state in (MPState.HALTED, MPState.INIT_RECEIVED, MPState.UNINITIALIZED, MPState.RUNNABLE):
            machine.chip.set_mp_state(1, state)
            check_equal(machine.chip.get_mp_state(1), state, "get_mp_state gives what was set")
        check_equal(machine.chip.get_mp_state(0), MPState.RUNNABLE, "set_mp_state changes one vCPU alone")

    @needs(IrqChipCap.MP_STATE_GET_SET)
    def test_mp_state_that_x86_has_not(self) -> None:
        """The MP state STOPPED, which x86 has not, is refused, and changes nothing."""
        machine = self.boot(vcpus=2)
        with refused(InvalidArgument, "set_mp_state refuses STOPPED"):
            machine.chip.set_mp_state(1, MPState.STOPPED)
        check_equal(machine.chip.get_mp_state(1), MPState.RUNNABLE, "a refused MP state changes nothing")

    @needs(IrqChipCap.MP_STATE_GET_SET)
    def test_mp_state_of_an_unknown_vcpu(self) -> None:
        """The MP state of a vCPU that was not added, or is out of range, is refused as `UnknownVcpu`."""
        machine = self.boot(chip_vcpus=2)
        for vcpu_id in (1, 2, 1 << 40, -1):
            with refused(UnknownVcpu, f"get_mp_state refuses vCPU {vcpu_id}, which was not added"):
                machine.chip.get_mp_state(vcpu_id)
            with refused(UnknownVcpu, f"set_mp_state refuses vCPU {vcpu_id}, which was not added"):
                machine.chip.set_mp_state(vcpu_id, MPState.RUNNABLE)

    @needs(IrqChipCap.MP_STATE_GET_SET)
    def test_interrupt_starts_no_processor(self) -> None:
        """A fixed interrupt does not start a processor that waits for INIT or a start-up IPI."""
        machine = self.boot(vcpus=2)
        for state in (MPState.UNINITIALIZED, MPState.INIT_RECEIVED):
            machine.chip.set_mp_state(1, state)
            machine.send_msi(0x51, destination=1)
            rule = f"a fixed interrupt does not start a processor that is {state.name}"
            check_equal(machine.chip.get_mp_state(1), state, rule)

    @needs(IrqChipCap.MP_STATE_GET_SET)
    def test_halted_shows(self) -> None:
        """HLT makes a vCPU HALTED, and an interrupt makes it RUNNABLE."""
        machine = self.boot()
        need_sleep_in_chip(machine)
        done = machine.cpu.background(Operation.HALT)
        halted = lambda: machine.chip.get_mp_state(0) is MPState.HALTED  # noqa: E731
        until(halted, machine.patience, "a vCPU that executed HLT becomes HALTED")
        machine.send_msi(0x51)
        woken(machine.cpu, done, 0x51, "an interrupt wakes a halted vCPU")
        check_equal(machine.chip.get_mp_state(0), MPState.RUNNABLE, "a vCPU that was woken is runnable")

    @needs(IrqChipCap.MP_STATE_GET_SET)
    def test_set_mp_state_wakes(self) -> None:
        """A vCPU that waits runs once its state is set to RUNNABLE."""
        machine = self.boot(vcpus=2)
        need_sleep_in_chip(machine)
        machine.chip.set_mp_state(1, MPState.UNINITIALIZED)
        done = on_thread(lambda: machine.chip.wait_until_runnable(machine.cpus[1].vcpu))
        machine.chip.set_mp_state(1, MPState.RUNNABLE)
        rule = "set_mp_state(RUNNABLE) ends wait_until_runnable"
        check_equal(result_of(done, machine.patience, rule), VcpuRunState.RUNNABLE, rule)


def need_sleep_in_chip(machine: Bench) -> None:
    """Raise `NotApplicable` where the hypervisor lets halted vCPUs sleep."""
    if not machine.apics_in_chip:
        raise NotApplicable("needs local APICs in the chip; here the hypervisor lets halted vCPUs sleep by itself")


class Waiting(Scenarios):
    """Halting, waiting and kicks."""

    def test_halted_vcpu_wakes_by_an_interrupt(self) -> None:
        """An interrupt sent from another thread wakes a halted vCPU."""
        machine = self.boot()
        for vector in (0x51, 0x52):
            done = machine.cpu.background(Operation.HALT)
            machine.send_msi(vector)
            woken(machine.cpu, done, vector, "an interrupt wakes a halted vCPU")

    def test_halted_vcpu_wakes_by_an_event(self) -> None:
        """An event wakes a halted vCPU, through the irq loop where the chip needs one."""
        machine = self.boot()
        machine.connect(5, 0x45)
        event = machine.edge(5)
        done = machine.cpu.background(Operation.HALT)
        event.trigger()
        woken(machine.cpu, done, 0x45, "an event wakes a halted vCPU")

    def test_halted_vcpu_wakes_by_the_pics(self) -> None:
        """An interrupt of the PICs wakes vCPU 0 when it is halted."""
        machine = self.boot()
        machine.unmask_pics(5)
        done = machine.cpu.background(Operation.HALT)
        machine.pulse(5)
        woken(machine.cpu, done, 0x35, "an interrupt of the PICs wakes a halted vCPU 0")

    def test_halted_vcpu_wakes_by_an_nmi(self) -> None:
        """An NMI wakes a halted vCPU."""
        machine = self.boot()
        done = machine.cpu.background(Operation.HALT)
        halted = lambda: machine.chip.get_mp_state(0) is MPState.HALTED  # noqa: E731
        until(halted, machine.patience, "a vCPU that executed HLT becomes HALTED")  # or HLT would come after the NMI
        machine.send_msi(0, mode=msi.NMI)
        woken(machine.cpu, done, NMI_VECTOR, "an NMI wakes a halted vCPU")

    def test_nmi_reaches_a_spinning_vcpu(self) -> None:
        """An NMI reaches a vCPU that executes."""
        machine = self.boot()
        done = machine.cpu.background(Operation.SPIN)
        until(machine.cpu.mailbox.result, machine.patience, "the guest executes")
        machine.send_msi(0, mode=msi.NMI)
        woken(machine.cpu, done, NMI_VECTOR, "an NMI reaches a vCPU that executes")

    def test_interrupt_reaches_a_spinning_vcpu(self) -> None:
        """An interrupt reaches a vCPU that executes and never exits by itself."""
        machine = self.boot()
        for vector in (0x51, 0x52, 0x53):
            done = machine.cpu.background(Operation.SPIN)
            until(machine.cpu.mailbox.result, machine.patience, "the guest executes")
            machine.send_msi(vector)
            woken(machine.cpu, done, vector, "an interrupt reaches a vCPU that executes")

    def test_event_reaches_a_spinning_vcpu(self) -> None:
        """An event reaches a vCPU that executes and never exits by itself."""
        machine = self.boot()
        machine.connect(5, 0x45)
        event = machine.edge(5)
        for _ in range(3):
            done = machine.cpu.background(Operation.SPIN)
            until(machine.cpu.mailbox.result, machine.patience, "the guest executes")
            event.trigger()
            woken(machine.cpu, done, 0x45, "an event reaches a vCPU that executes")

    def test_ipi_wakes_a_halted_vcpu(self) -> None:
        """An IPI wakes a halted vCPU."""
        machine = self.boot(vcpus=2)
        for _ in range(3):
            done = machine.cpus[1].background(Operation.HALT)
            machine.cpu.send_ipi(0x4000 | 0x52, destination=1)
            woken(machine.cpus[1], done, 0x52, "an IPI wakes a halted vCPU")

    def test_no_wake_up_is_lost(self) -> None:
        """None of a hundred interrupts is lost that are each sent while the vCPU goes to sleep."""
        machine = self.boot()
        machine.chip.route_irq(IrqRoute.msi(30, msi.MSI_ADDRESS_BASE, 0x51))
        for _ in range(100):
            done = machine.cpu.background(Operation.HALT)
            machine.chip.service_irq(30, True)
            woken(machine.cpu, done, 0x51, NEVER_LOST)

    def test_no_event_is_lost_at_sleep(self) -> None:
        """None of a hundred events is lost that are each signaled while the vCPU goes to sleep."""
        machine = self.boot()
        machine.connect(5, 0x45)
        event = machine.edge(5)
        for _ in range(50):
            done = machine.cpu.background(Operation.HALT)
            event.trigger()
            woken(machine.cpu, done, 0x45, NEVER_LOST)

    def test_runnable_vcpu_does_not_wait(self) -> None:
        """`wait_until_runnable` of a runnable vCPU returns RUNNABLE at once."""
        machine = self.boot()
        state = machine.chip.wait_until_runnable(machine.cpu.vcpu)
        check_equal(state, VcpuRunState.RUNNABLE, "wait_until_runnable of a runnable vCPU is RUNNABLE")

    def test_kick_interrupts_the_next_wait(self) -> None:
        """A kick lets the next `wait_until_runnable` return INTERRUPTED, once, however many kicks."""
        machine = self.boot(vcpus=2)
        need_sleep_in_chip(machine)
        for kicks in (1, 3):
            for _ in range(kicks):
                machine.chip.kick_halted_vcpus()
            for cpu in machine.cpus:
                state = machine.chip.wait_until_runnable(cpu.vcpu)
                rule = "a kick lets the next wait_until_runnable of every vCPU return INTERRUPTED"
                check_equal(state, VcpuRunState.INTERRUPTED, rule)
                state = machine.chip.wait_until_runnable(cpu.vcpu)
                check_equal(state, VcpuRunState.RUNNABLE, "kicks before one wait_until_runnable are coalesced")

    def test_kick_interrupts_a_wait(self) -> None:
        """A kick lets a `wait_until_runnable` that blocks return INTERRUPTED."""
        machine = self.boot()
        need_sleep_in_chip(machine)
        rule = "a kick lets wait_until_runnable of a halted vCPU return INTERRUPTED"
        for _ in range(20):
            machine.chip.halted(0)
            done = on_thread(lambda: machine.chip.wait_until_runnable(machine.cpu.vcpu))
            machine.chip.kick_halted_vcpus()
            state = result_of(done, machine.patience, f"{rule} (a kick was lost)")
            check_equal(state, VcpuRunState.INTERRUPTED, rule)

    def test_kicks_lose_no_interrupt(self) -> None:
        """No interrupt is lost while a thread kicks the vCPU again and again."""
        machine = self.boot()
        stop = threading.Event()

        def kick() -> None:
            while not stop.is_set():
                machine.cpu.vcpu.kick()
                machine.chip.kick_halted_vcpus()
                stop.wait(0.0005)

        kicker = threading.Thread(target=kick, daemon=True)
        kicker.start()
        try:
            for _ in range(30):
                machine.send_msi(0x51)
                machine.cpu.expect_next(0x51, rule="kicks lose no interrupt")
                machine.cpu.end(Eoi.LAPIC)
        finally:
            stop.set()
            kicker.join()
        machine.cpu.expect_nothing(rule="kicks make no interrupt")

    def test_unknown_vcpu_is_refused(self) -> None:
        """`halted` and `inject_interrupts` refuse vCPUs that the chip does not have."""
        machine = self.boot()
        need_sleep_in_chip(machine)
        with refused(UnknownVcpu, "halted refuses a vCPU out of range"):
            machine.chip.halted(7)
        other_vm = self.lab.create_vm()
        with other_vm, self.lab.create_chip(other_vm):
            stranger = other_vm.create_vcpu(0)
            with refused(IrqChipError, "inject_interrupts refuses a vCPU that was not added"):
                machine.chip.inject_interrupts(stranger)


class AtTheSameTime(Scenarios):
    """Registration and routes while vCPUs run."""

    def test_event_registered_while_a_vcpu_runs(self) -> None:
        """An event registered while a vCPU executes reaches it."""
        machine = self.boot()
        machine.connect(5, 0x45)
        done = machine.cpu.background(Operation.SPIN)
        until(machine.cpu.mailbox.result, machine.patience, "the guest executes")
        machine.edge(5).trigger()
        woken(machine.cpu, done, 0x45, "an event registered while a vCPU runs reaches it")

    def test_event_registered_while_a_vcpu_sleeps(self) -> None:
        """An event registered while a vCPU is halted reaches it."""
        machine = self.boot()
        machine.connect(5, 0x45)
        done = machine.cpu.background(Operation.HALT)
        machine.edge(5).trigger()
        woken(machine.cpu, done, 0x45, "an event registered while a vCPU sleeps wakes it")

    def test_route_changed_while_a_vcpu_runs(self) -> None:
        """A route changed while a vCPU executes counts for the next signal."""
        machine = self.boot()
        event = machine.edge(100)
        for vector in (0x51, 0x52, 0x53):
            done = machine.cpu.background(Operation.SPIN)
            until(machine.cpu.mailbox.result, machine.patience, "the guest executes")
            machine.chip.route_irq(IrqRoute.msi(100, msi.MSI_ADDRESS_BASE, vector))
            event.trigger()
            woken(machine.cpu, done, vector, "a new route counts from the next signal on")

    def test_events_come_and_go(self) -> None:
        """Registering and unregistering others, again and again, disturbs no event."""
        machine = self.boot()
        machine.connect(5, 0x45)
        event = machine.edge(5)
        stop = threading.Event()

        def churn() -> int:
            rounds = 0
            while not stop.is_set() or not rounds:
                other = machine.edge(6)
                machine.chip.route_irq(IrqRoute.msi(200, msi.MSI_ADDRESS_BASE, 0x80))
                machine.chip.unregister_edge_irq_event(6, other)
                other.close()
                rounds += 1
            return rounds

        churning = on_thread(churn)
        try:
            for _ in range(30):
                event.trigger()
                machine.cpu.expect_next(0x45, rule="an event is not disturbed by others that come and go")
                machine.cpu.end(Eoi.LAPIC)
        finally:
            stop.set()
        result_of(churning, machine.patience, "registering and unregistering come to an end")
        machine.cpu.expect_nothing(rule="events that come and go do not interrupt")

    def test_two_devices_on_two_threads(self) -> None:
        """Each signal that devices on two threads send is an interrupt."""
        machine = self.boot()
        self.lab.leave_open("in which order they come", order_only=True)
        vectors = {5: 0x45, 6: 0x56}
        events = {}
        for gsi, vector in vectors.items():
            machine.connect(gsi, vector)
            events[gsi] = machine.edge(gsi)
        for _ in range(20):
            for done in [on_thread(event.trigger) for event in events.values()]:
                result_of(done, machine.patience, "signalling an event returns")
            machine.cpu.expect_all(vectors.values(), rule="events signalled by two threads both interrupt")

    def test_interrupts_to_two_vcpus_at_once(self) -> None:
        """Two vCPUs sleep on their threads, and each wakes by its own interrupt."""
        machine = self.boot(vcpus=2)
        for _ in range(10):
            waiting = [cpu.background(Operation.HALT) for cpu in machine.cpus]
            for cpu in machine.cpus:
                machine.send_msi(0x51 + cpu.id, destination=cpu.id)
            for cpu, done in zip(machine.cpus, waiting, strict=True):
                woken(cpu, done, 0x51 + cpu.id, "each of two sleeping vCPUs wakes by its own interrupt")
