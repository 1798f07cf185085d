"""The 8254 against QEMU's and KVM's: the same random sequences, and what they show, within an access's time."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from irqchip_core.x86.pit import FREQUENCY, Pit
from irqchip_core.x86.state import PitState
from tests.oracles.kvm import KvmMachine
from tests.oracles.qemu import HPET_PERIOD_NS, Qemu
from tests.x86.pit_model import CONTROL, SECOND, PitMachine, PitOracle, Window

SETTINGS = settings(max_examples=100, stateful_step_count=25, deadline=None, derandomize=True)
COMPARED = (
    "count", "count_latched", "status_latched", "read_state", "write_state", "rw_mode", "mode", "bcd", "gate"
)  # fmt: skip
KVM_PIT_SPEAKER_DUMMY = 1  # the kernel answers port 0x61


class QemuPit:
    """QEMU's 8254, in the shape of `PitOracle`. Its clock stands, but in `let_pass`."""

    counters: tuple[int, ...] = (0, 1, 2)

    def __init__(self, qemu: Qemu) -> None:
        self._qemu = qemu
        self._clock = qemu.clock()

    def _window(self) -> Window:
        return self._clock, self._clock + HPET_PERIOD_NS

    def read(self, port: int) -> tuple[int, Window]:
        return self._qemu.inb(port), self._window()

    def write(self, port: int, value: int) -> Window:
        self._qemu.outb(port, value)
        return self._window()

    def let_pass(self, ns: int) -> None:
        self._clock = self._qemu.run_until(self._clock + ns)

    def check(self, ours: PitState) -> None:
        pass  # its ports show all it has


class KvmPit:
    """KVM's 8254, in the shape of `PitOracle`. Its clock is CLOCK_MONOTONIC.

    Counter 0 is left out: KVM counts it by a host timer, with a lower limit on its period.
    """

    counters: tuple[int, ...] = (1, 2)

    def __init__(self, machine: KvmMachine) -> None:
        machine.vm.create_pit2(KVM_PIT_SPEAKER_DUMMY)
        self._machine = machine

    def read(self, port: int) -> tuple[int, Window]:
        before = time.monotonic_ns()
        value = self._machine.port_in(port)
        return value, (before, time.monotonic_ns())

    def write(self, port: int, value: int) -> Window:
        before = time.monotonic_ns()
        self._machine.port_out(port, value)
        return before, time.monotonic_ns()

    def let_pass(self, ns: int) -> None:
        until = time.monotonic_ns() + ns
        while time.monotonic_ns() < until:
            pass

    def check(self, ours: PitState) -> None:
        theirs = self._machine.vm.get_pit()
        for number in self.counters:
            a, b = ours.channels[number], theirs.channels[number]
            for name in COMPARED:
                assert getattr(a, name) == getattr(b, name), f"{name} of counter {number}"
        assert ours.flags & 2 == theirs.flags & 2


@pytest.fixture(params=[pytest.param("qemu", marks=pytest.mark.qemu), pytest.param("kvm", marks=pytest.mark.kvm)])
def oracle(request: pytest.FixtureRequest) -> Iterator[PitOracle]:
    if request.param == "qemu":
        yield QemuPit(request.getfixturevalue("qemu"))
    else:
        with KvmMachine() as machine:
            yield KvmPit(machine)


@pytest.mark.timeout(300)
def test_pit_agrees_in_random_sequences(oracle: PitOracle) -> None:
    Machine = type("Machine", (PitMachine,), {"oracle": oracle})  # noqa: N806
    run_state_machine_as_test(Machine, settings=SETTINGS)


TIMER_GRACE = 2_000_000
"""QEMU may stop before it has served a timer that came due so many ns ago; it then does when it runs again."""


@pytest.mark.qemu
@pytest.mark.parametrize(("mode", "count"), [(0, 12000), (2, 12000), (2, 60000), (3, 12000), (3, 0), (4, 12000)])
def test_counter_0_interrupts_when_qemus_does(mode: int, count: int, qemu: Qemu) -> None:
    """QEMU's line 0 rises exactly when OUT of ours does."""
    qemu.set_pit_interrupts(enabled=True)
    try:
        for port, value in ((0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1)):
            qemu.outb(port, value)
        started = now = qemu.clock()
        pit = Pit(started)
        for port, value in ((CONTROL, 0x30 | mode << 1), (0x40, count & 0xFF), (0x40, count >> 8)):
            qemu.outb(port, value)
            pit.write(port, 1, value, started)
        carried, seen = False, set()
        for part in (0.3, 0.6, 0.8, 1.4, 1.7, 1.8, 2.4, 2.7):
            take_line_0(qemu)
            now = qemu.run_until(started + int((count or 65536) * part * SECOND / FREQUENCY))
            certain = pit.take_rising_edges(now - TIMER_GRACE) > 0
            possible = pit.take_rising_edges(now) > 0 or certain or carried
            requested = take_line_0(qemu)
            assert certain <= requested <= possible, f"at {part} of {count} in mode {mode}"
            carried = possible and not requested
            seen.add((requested, possible))
        assert {(True, True), (False, False)} <= seen
    finally:
        qemu.set_pit_interrupts(enabled=False)


def take_line_0(qemu: Qemu) -> bool:
    """Acknowledge and end line 0 of QEMU's 8259, if it is requested."""
    requested = qemu.inb(0x20) & 0x01 != 0
    qemu.qtest("outb 0x20 0x0c", "inb 0x20", "outb 0x20 0x60")
    return requested
