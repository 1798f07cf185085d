"""Scenarios: the local APIC's timer in its modes (Intel SDM vol. 3, 12.5.4), and the PIT (8254 data sheet)."""

from __future__ import annotations

import time

from irqchip_core.capabilities import IrqChipCap
from irqchip_core.testing.bench import Bench
from irqchip_core.testing.conformance.base import Scenarios, needs
from irqchip_core.testing.guest_cpu import Eoi, GuestCpu
from irqchip_core.testing.verdict import NotApplicable, check, check_equal, until
from irqchip_core.x86.lapic import registers as reg

DIVIDE_BY_1, DIVIDE_BY_16 = 0xB, 0x3
ONE_SHOT, PERIODIC, TSC_DEADLINE = (mode << reg.LVT_TIMER_MODE_SHIFT for mode in (0, 1, 2))
FAR = 0xFFFFFFFF
VECTOR = 0x61
TSC_HZ = 1_000_000_000  # where the hypervisor does not report it

COUNTER_0, COUNTER_2, CONTROL, SPEAKER = 0x40, 0x42, 0x43, 0x61
BOTH_BYTES = 0x30
MODE_0, MODE_2 = 0 << 1, 2 << 1
SELECT_2 = 2 << 6
READ_BACK_STATUS_0, READ_BACK_STATUS_2 = 0xE2, 0xE8
SPEAKER_GATE, SPEAKER_OUTPUT = 0x01, 0x20
CALIBRATION = 0x8000
PIT_HZ = 1_193_182


def ticks(machine: Bench, milliseconds: float) -> int:
    """That time as a count of the local APIC's timer, undivided."""
    return int(machine.chip.lapic_frequency() * milliseconds / 1000)


def start(cpu: GuestCpu, count: int, *, mode: int = ONE_SHOT, divide: int = DIVIDE_BY_1, masked: bool = False) -> None:
    """Program the local APIC's timer."""
    cpu.apic_write(reg.TIMER_DIVIDE, divide)
    cpu.apic_write(reg.LVT_TIMER, VECTOR | mode | masked * reg.LVT_MASKED)
    cpu.apic_write(reg.TIMER_INITIAL_COUNT, count)


def start_pit(cpu: GuestCpu, mode: int, count: int) -> None:
    """Program counter 0."""
    cpu.machine.need(IrqChipCap.PIT)
    cpu.out(CONTROL, BOTH_BYTES | mode)
    cpu.out(COUNTER_0, count & 0xFF)
    cpu.out(COUNTER_0, count >> 8)


def output_is_high(cpu: GuestCpu) -> bool:
    """Whether counter 0 has come to its end, in mode 0."""
    cpu.out(CONTROL, READ_BACK_STATUS_0)
    return bool(cpu.in_(COUNTER_0) & 0x80)


def let_pass(seconds: float) -> None:
    """Let so much time pass."""
    end = time.monotonic() + seconds
    until(lambda: time.monotonic() >= end, 2 * seconds + 60, "time passes")


class ApicTimer(Scenarios):
    """The local APIC's timer."""

    def test_one_shot(self) -> None:
        """A one-shot timer interrupts once, and its count stays 0 then."""
        machine = self.boot()
        start(machine.cpu, ticks(machine, 1))
        machine.cpu.expect(VECTOR, rule="a one-shot timer interrupts once")
        check_equal(machine.cpu.apic_read(reg.TIMER_CURRENT_COUNT), 0, "a one-shot timer stays at 0")

    def test_one_shot_is_not_early(self) -> None:
        """A one-shot timer interrupts when its time is over, and not before."""
        machine = self.boot()
        began = time.monotonic()
        start(machine.cpu, ticks(machine, 100))
        machine.cpu.expect(VECTOR, rule="a one-shot timer interrupts once")
        took = time.monotonic() - began
        check(took >= 0.0999, "a timer of 100 ms takes 100 ms", f"it took {took * 1000:.1f} ms")

    def test_one_shot_started_again(self) -> None:
        """A write to the initial count starts a one-shot timer anew."""
        machine = self.boot()
        for _ in range(3):
            start(machine.cpu, ticks(machine, 0.5))
            machine.cpu.expect(VECTOR, rule="each initial count of a one-shot timer is one interrupt")

    def test_periodic(self) -> None:
        """A periodic timer interrupts until its initial count is set to 0."""
        machine = self.boot()
        self.lab.leave_open("how many ticks come before it is stopped")
        start(machine.cpu, ticks(machine, 2), mode=PERIODIC)
        for _ in range(4):
            machine.cpu.expect_next(VECTOR, rule="a periodic timer goes on")
            machine.cpu.end(Eoi.LAPIC)
        machine.cpu.apic_write(reg.TIMER_INITIAL_COUNT, 0)
        if machine.cpu.look() is not None:
            machine.cpu.end(Eoi.LAPIC)
        check_equal(machine.cpu.apic_read(reg.TIMER_CURRENT_COUNT), 0, "an initial count of 0 stops the timer")
        machine.cpu.expect_nothing(rule="a stopped timer does not interrupt")

    def test_masked_timer(self) -> None:
        """A masked timer counts, but does not interrupt."""
        machine = self.boot()
        start(machine.cpu, ticks(machine, 0.5), masked=True)
        over = lambda: machine.cpu.apic_read(reg.TIMER_CURRENT_COUNT) == 0  # noqa: E731
        until(over, machine.patience, "a masked timer counts down")
        machine.cpu.expect_nothing(rule="a masked timer does not interrupt")

    def test_current_count(self) -> None:
        """The current count of a timer falls from the initial count."""
        machine = self.boot()
        start(machine.cpu, FAR)
        counts = [machine.cpu.apic_read(reg.TIMER_CURRENT_COUNT) for _ in range(3)]
        falls = FAR >= counts[0] > counts[1] > counts[2] > 0
        check(falls, "the current count falls from the initial count on", f"it was {counts}")

    def test_divide(self) -> None:
        """A timer with divisor 16 counts 16 times as slowly as one with divisor 1."""
        machine = self.boot()
        falls = []
        for divide in (DIVIDE_BY_1, DIVIDE_BY_16):
            start(machine.cpu, FAR, divide=divide)
            first = machine.cpu.apic_read(reg.TIMER_CURRENT_COUNT)
            began = time.monotonic()
            let_pass(0.01)
            second = machine.cpu.apic_read(reg.TIMER_CURRENT_COUNT)
            falls.append((first - second) / (time.monotonic() - began))
        ratio = falls[0] / max(falls[1], 1)
        check(8 < ratio < 32, "a timer divided by 16 is 16 times as slow", f"it is {ratio:.1f} times as slow")

    def test_timer_vector_changed(self) -> None:
        """A timer interrupts with the vector that its entry has at expiry."""
        machine = self.boot()
        start(machine.cpu, ticks(machine, 50))
        machine.cpu.apic_write(reg.LVT_TIMER, 0x71)
        machine.cpu.expect(0x71, rule="a timer interrupts with the vector it has when it runs out")

    def test_timers_of_two_vcpus(self) -> None:
        """The timer of a local APIC interrupts its own vCPU only."""
        machine = self.boot(vcpus=2)
        start(machine.cpus[1], ticks(machine, 1))
        machine.cpus[1].expect(VECTOR, rule="a timer interrupts its own vCPU")
        machine.cpus[0].expect_nothing(rule="a timer interrupts its own vCPU alone")
        check_equal(machine.cpus[0].apic_read(reg.TIMER_CURRENT_COUNT), 0, "each vCPU has a timer of its own")


class TscDeadlineTimer(Scenarios):
    """The local APIC's timer in TSC-deadline mode."""

    def _arm(self, machine: Bench, milliseconds: float) -> int:
        cpu = machine.cpu
        cpu.apic_write(reg.LVT_TIMER, VECTOR | TSC_DEADLINE)
        deadline = cpu.read_tsc() + int((machine.vm.tsc_hz or TSC_HZ) * milliseconds / 1000)
        fine = cpu.write_msr(reg.IA32_TSC_DEADLINE, deadline)
        check(fine, "a chip with tsc_deadline_timer has IA32_TSC_DEADLINE", "writing it raised #GP")
        return deadline

    @needs(IrqChipCap.TSC_DEADLINE_TIMER)
    def test_tsc_deadline(self) -> None:
        """A TSC deadline interrupts once, when the time-stamp counter reaches it; then its MSR reads 0."""
        machine = self.boot()
        deadline = self._arm(machine, 2)
        machine.cpu.expect(VECTOR, rule="a TSC deadline is one interrupt")
        check(machine.cpu.read_tsc() >= deadline, "a TSC deadline is not early", "the counter has not reached it")
        check_equal(machine.cpu.read_msr(reg.IA32_TSC_DEADLINE), 0, "IA32_TSC_DEADLINE is 0 when it has fired")

    @needs(IrqChipCap.TSC_DEADLINE_TIMER)
    def test_tsc_deadline_in_the_past(self) -> None:
        """A TSC deadline that has passed when it is written interrupts at once."""
        machine = self.boot()
        machine.cpu.apic_write(reg.LVT_TIMER, VECTOR | TSC_DEADLINE)
        machine.cpu.write_msr(reg.IA32_TSC_DEADLINE, 1)
        machine.cpu.expect(VECTOR, rule="a TSC deadline in the past fires at once")

    @needs(IrqChipCap.TSC_DEADLINE_TIMER)
    def test_tsc_deadline_disarmed(self) -> None:
        """A write of 0 disarms the TSC deadline."""
        machine = self.boot()
        deadline = self._arm(machine, 1_000_000)
        check_equal(machine.cpu.read_msr(reg.IA32_TSC_DEADLINE), deadline, "IA32_TSC_DEADLINE reads as written")
        machine.cpu.write_msr(reg.IA32_TSC_DEADLINE, 0)
        check_equal(machine.cpu.read_msr(reg.IA32_TSC_DEADLINE), 0, "0 disarms the TSC deadline")
        machine.cpu.expect_nothing(rule="a disarmed TSC deadline does not interrupt")

    @needs(IrqChipCap.TSC_DEADLINE_TIMER)
    def test_tsc_deadline_and_another_mode(self) -> None:
        """Another mode of the timer disarms the TSC deadline, and ignores writes of one."""
        machine = self.boot()
        self._arm(machine, 1_000_000)
        machine.cpu.apic_write(reg.LVT_TIMER, VECTOR | ONE_SHOT)
        machine.cpu.write_msr(reg.IA32_TSC_DEADLINE, 1)
        machine.cpu.expect_nothing(rule="a TSC deadline is ignored in the other modes of the timer")
        check_equal(machine.cpu.read_msr(reg.IA32_TSC_DEADLINE), 0, "another mode disarms the TSC deadline")

    @needs(IrqChipCap.TSC_DEADLINE_TIMER)
    def test_initial_count_in_tsc_deadline_mode(self) -> None:
        """The initial count is ignored in TSC-deadline mode."""
        machine = self.boot()
        machine.cpu.apic_write(reg.LVT_TIMER, VECTOR | TSC_DEADLINE)
        machine.cpu.apic_write(reg.TIMER_INITIAL_COUNT, 1)
        machine.cpu.expect_nothing(rule="the initial count is ignored in TSC-deadline mode")
        check_equal(machine.cpu.apic_read(reg.TIMER_CURRENT_COUNT), 0, "the count is 0 in TSC-deadline mode")


class PitTimer(Scenarios):
    """The PIT."""

    def _tick(self, machine: Bench, vector: int, eoi: Eoi) -> None:
        self.lab.leave_open("how many ticks come before the PIT is stopped")
        start_pit(machine.cpu, MODE_2, PIT_HZ // 200)
        for _ in range(3):
            machine.cpu.expect_next(vector, rule="the PIT's rate generator goes on")
            machine.cpu.end(eoi)

    def test_pit_through_the_pic(self) -> None:
        """The rate generator of the PIT interrupts through line 0 of the PICs, again and again."""
        machine = self.boot()
        machine.unmask_pics(0)
        self._tick(machine, 0x30, Eoi.PRIMARY)

    def test_pit_through_the_ioapic(self) -> None:
        """The rate generator of the PIT interrupts through pin 0 of the IOAPIC, again and again."""
        machine = self.boot()
        machine.pin(0, 0x40)
        self._tick(machine, 0x40, Eoi.LAPIC)

    def test_pit_one_shot(self) -> None:
        """A counter of the PIT in mode 0 interrupts once for each count written."""
        machine = self.boot()
        machine.unmask_pics(0)
        for _ in range(2):
            start_pit(machine.cpu, MODE_0, PIT_HZ // 1000)
            machine.cpu.expect(0x30, rule="the PIT's mode 0 interrupts once", eoi=Eoi.PRIMARY)

    def test_pit_count(self) -> None:
        """The count of a PIT counter can be latched, and falls."""
        cpu = self.boot().cpu
        counts = []
        for _ in range(5):  # from its end it goes on at 0xFFFF, after 55 ms
            start_pit(cpu, MODE_0, 0xFFFF)
            counts.append((self._latched(cpu), self._latched(cpu)))
        check(any(first > second for first, second in counts), "the PIT's count falls", f"it was {counts}")

    def _latched(self, cpu: GuestCpu) -> int:
        cpu.out(CONTROL, 0)
        return cpu.in_(COUNTER_0) | cpu.in_(COUNTER_0) << 8

    def test_pit_status(self) -> None:
        """The read-back command of the PIT shows the control word."""
        cpu = self.boot().cpu
        start_pit(cpu, MODE_2, 0x1234)
        cpu.out(CONTROL, READ_BACK_STATUS_0)
        check_equal(cpu.in_(COUNTER_0) & 0x3F, BOTH_BYTES | MODE_2, "read-back shows the PIT's control word")

    @needs(IrqChipCap.PIT)
    def test_pit_speaker_port(self) -> None:
        """Port 0x61 gates counter 2 and shows its output."""
        machine = self.boot()
        if not machine.chip.pit_uses_speaker_port():
            raise NotApplicable("needs a PIT with port 0x61 (pit_uses_speaker_port)")
        cpu = machine.cpu
        cpu.out(SPEAKER, 0)
        cpu.out(CONTROL, SELECT_2 | BOTH_BYTES | MODE_0)
        cpu.out(COUNTER_2, 0x00)
        cpu.out(COUNTER_2, 0x04)
        let_pass(0.002)  # more than the count takes
        check_equal(cpu.in_(SPEAKER) & 0x21, 0, "counter 2 stands still while its gate is low")
        cpu.out(SPEAKER, 1)
        until(lambda: cpu.in_(SPEAKER) & 0x20, machine.patience, "counter 2's output rises when its count is over")

    @needs(IrqChipCap.PIT)
    def test_pit_counter_2_measures_time(self) -> None:
        """A count of counter 2 takes its time from the write to the rise of port 0x61, bit 5: kernels calibrate so."""
        machine = self.boot()
        cpu, clock = machine.cpu, machine.vm.clock
        unclaimed = machine.io_bus.unclaimed
        cpu.out(SPEAKER, SPEAKER_GATE)
        gate = cpu.in_(SPEAKER) & SPEAKER_GATE
        if machine.io_bus.unclaimed != unclaimed:
            raise NotApplicable("needs port 0x61, of the chip (pit_uses_speaker_port) or of the hypervisor")
        check(gate, "bit 0 of port 0x61 reads as it was written", "it is 0")
        due = CALIBRATION * 1_000_000_000 // PIT_HZ
        times: list[int] = []

        def measured() -> bool:
            cpu.out(CONTROL, SELECT_2 | BOTH_BYTES | MODE_0)
            cpu.out(COUNTER_2, CALIBRATION & 0xFF)
            began = clock.now()
            cpu.out(COUNTER_2, CALIBRATION >> 8)
            until(lambda: cpu.in_(SPEAKER) & SPEAKER_OUTPUT, machine.patience, "counter 2's output rises")
            times.append(clock.now() - began)
            return times[-1] < 2 * due  # a busy host may be late

        rule = f"{CALIBRATION} pulses of counter 2 take {due / 1e6:.2f} ms"
        until(measured, machine.patience, rule)
        check(min(times) >= due, rule, f"they took {min(times) / 1e6:.2f} ms")

    @needs(IrqChipCap.PIT)
    def test_wide_access_to_the_pit(self) -> None:
        """An access of a word to the PIT is an access of a byte to each of its ports."""
        machine = self.boot()
        machine.need_on_bus(CONTROL, "a PIT")
        cpu = machine.cpu
        rule = "a wide access to the PIT is one of a byte to each of its ports"
        cpu.out(COUNTER_2, (BOTH_BYTES | MODE_2) << 8, size=2)  # the second byte is for the control port
        cpu.out(CONTROL, READ_BACK_STATUS_0)
        check_equal(cpu.in_(COUNTER_0) & 0x3F, BOTH_BYTES | MODE_2, rule)
        cpu.out(COUNTER_0, (SELECT_2 | BOTH_BYTES | MODE_0) << 24, size=4)
        cpu.out(CONTROL, READ_BACK_STATUS_2)
        check_equal(cpu.in_(COUNTER_0, size=4) >> 16 & 0x3F, BOTH_BYTES | MODE_0, rule)

    def test_pit_reprogrammed(self) -> None:
        """A count written in mode 0 ends the rate generator of the PIT."""
        machine = self.boot()
        self.lab.leave_open("how many ticks come before the rate generator ends")
        machine.unmask_pics(0)
        start_pit(machine.cpu, MODE_2, PIT_HZ // 500)
        machine.cpu.expect_next(0x30, rule="the PIT's rate generator interrupts")
        machine.cpu.end(Eoi.PRIMARY)
        start_pit(machine.cpu, MODE_0, PIT_HZ // 200)
        until(lambda: output_is_high(machine.cpu), machine.patience, "the PIT's mode 0 comes to its end")
        while machine.cpu.look() is not None:
            machine.cpu.end(Eoi.PRIMARY)
        let_pass(0.01)
        machine.cpu.expect_nothing(rule="a count in mode 0 ends the PIT's rate generator")
