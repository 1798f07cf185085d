"""The 8259 pair against QEMU's and KVM's: the same random sequences, and all state after each step."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from irqchip_core.x86.state import PicInitState, PicSelect, PicState
from tests.oracles.kvm import KvmMachine
from tests.oracles.qemu import Qemu
from tests.x86.pic_model import COMMAND, DATA, ELCR, READ_IRR, READ_ISR, Difference, PicMachine, PicOracle
from tests.x86.watched_pic import WatchedPic as Pic

SETTINGS = settings(max_examples=200, stateful_step_count=40, deadline=None, derandomize=True)


class QemuPic:
    """QEMU's pair, in the shape of `PicOracle`."""

    differences = frozenset(
        {
            Difference.NO_LTIM,
            Difference.ELCR_WAITS_FOR_LINE,
            Difference.ICW1_FORGETS_LEVELS,
            Difference.SINGLE_MODE_CASCADES,
            Difference.NON_SPECIFIC_EOI_SEES_MASKED,
            Difference.SFNM_FREES_WORSE_LINES,
            Difference.OCW3_WAITS_FOR_UPDATE,
            Difference.CASCADE_INT_STAYS_HIGH,
        }
    )

    def __init__(self, qemu: Qemu) -> None:
        self._qemu = qemu
        self.read, self.write, self.set_line = qemu.inb, qemu.outb, qemu.set_line
        self.take_interrupt = qemu.take_interrupt

    def reset(self) -> None:
        self._qemu.set_pit_interrupts(enabled=False)
        for line in range(16):
            self.set_line(line, False)

    def registers(self, read_isr: tuple[bool, bool]) -> list[tuple[int, int, int, int, int]]:
        commands = []
        for select, port in enumerate(COMMAND):
            restore = READ_ISR if read_isr[select] else READ_IRR
            commands += [f"inb {port}", f"outb {port} {READ_IRR}", f"inb {port}", f"outb {port} {READ_ISR}"]
            commands += [f"inb {port}", f"outb {port} {restore}", f"inb {DATA[select]}", f"inb {ELCR[select]}"]
        v = self._qemu.qtest(*commands)
        return [(v[at], v[at + 2], v[at + 4], v[at + 6], v[at + 7]) for at in (0, 8)]


class KvmPic:
    """KVM's pair, in the shape of `PicOracle`."""

    differences = frozenset(
        {
            Difference.NO_LTIM,
            Difference.NO_SINGLE_MODE,
            Difference.SINGLE_MODE_CASCADES,
            Difference.ELCR_WAITS_FOR_LINE,
            Difference.ICW1_FORGETS_LEVELS,
            Difference.ICW1_KEEPS_SERVICE,
            Difference.ICW1_KEEPS_ROTATE,
            Difference.ICW1_WAITS_FOR_UPDATE,
            Difference.NO_SPECIAL_MASK,
            Difference.NON_SPECIFIC_EOI_SEES_MASKED,
            Difference.SFNM_FREES_WORSE_LINES,
            Difference.OCW3_WAITS_FOR_UPDATE,
            Difference.POLL_ENDS,
        }
    )

    def __init__(self, machine: KvmMachine) -> None:
        self._vm = machine.vm
        self.read, self.write, self.set_line = machine.port_in, machine.port_out, machine.set_line
        self.take_interrupt = machine.take_interrupt

    def reset(self) -> None:
        for line in range(16):
            self.set_line(line, False)
        # The secondary first, so that what it requests is gone before the primary forgets it.
        self._vm.set_pic_state(PicSelect.SECONDARY, PicState(elcr_mask=0xDE))
        self._vm.set_pic_state(PicSelect.PRIMARY, PicState(elcr_mask=0xF8))

    def registers(self, read_isr: tuple[bool, bool]) -> list[tuple[int, int, int, int, int]]:
        states = [self._vm.get_pic_state(select) for select in PicSelect]
        assert (states[0].read_reg_select, states[1].read_reg_select) == read_isr
        return [(self.read(COMMAND[n]), s.irr, s.isr, s.imr, s.elcr) for n, s in enumerate(states)]


# Written by hand. A step is a port and a value to write, a line to raise and perhaps to drop, or to take an interrupt.

Step = tuple[str, int, int]
TAKE: Step = ("take", 0, 0)
EOI: Step = ("out", 0x20, 0x20)


def out(port: int, *values: int) -> list[Step]:
    return [("out", port, value) for value in values]


def high(*lines: int) -> list[Step]:
    return [("line", line, 1) for line in lines]


def pulse(*lines: int) -> list[Step]:
    return [("line", line, level) for line in lines for level in (1, 0)]


def initialize(select: int, icw1: int = 0x11, icw4: int = 0x01) -> list[Step]:
    icw3 = [] if icw1 & 0x02 else [(0x04, 0x02)[select]]
    return [("out", COMMAND[select], icw1), *out(DATA[select], (0x20, 0x70)[select], *icw3, icw4)]


def agrees(oracle: PicOracle, steps: list[Step]) -> bool:
    """Play `steps` to both, from a pair that was just set up."""
    oracle.reset()
    pic = Pic()
    for _, port, value in [
        *out(0x4D0, 0),
        *out(0x4D1, 0),
        *initialize(0),
        *initialize(1),
        *out(0x20, 0),
        *out(0xA0, 0),
    ]:
        pic.write(port, 1, value)
        oracle.write(port, value)
    for kind, number, value in steps:
        if kind == "out":
            pic.write(number, 1, value)
            oracle.write(number, value)
        elif kind == "in":
            if pic.read(number, 1) != oracle.read(number):
                return False
        elif kind == "line":
            pic.set_line(number, bool(value))
            oracle.set_line(number, bool(value))
        elif (pic.acknowledge() if pic.interrupt_requested else None) != oracle.take_interrupt():
            return False
        states = [pic.state(select) for select in PicSelect]
        if all(state.init_state == PicInitState.ICW1 and not state.poll for state in states):
            ours = [(s.isr if s.read_reg_select else s.irr, s.irr, s.isr, s.imr, s.elcr) for s in states]
            if ours != oracle.registers((states[0].read_reg_select, states[1].read_reg_select)):
                return False
    return True


SCENARIOS: dict[str, list[Step]] = {
    "an edge outlives its line": [*pulse(5), TAKE, TAKE],
    "level-triggered until the line falls": [*out(0x4D0, 0x20), *high(5), TAKE, EOI, TAKE, ("line", 5, 0), EOI, TAKE],
    "best first, and nesting": [*high(5, 3), TAKE, TAKE, *high(1), TAKE, EOI, TAKE, EOI, EOI, TAKE],
    "spurious 15": [*out(0x4D1, 0x10), *high(12), ("line", 12, 0), TAKE],
    "auto-EOI on both, nested": [*initialize(0, icw4=0x13), *initialize(1, icw4=0x13), *high(12), TAKE],
    "a slave interrupts itself": [
        *initialize(0, icw4=0x11),
        *initialize(1, icw4=0x11),
        *high(12),
        TAKE,
        *high(8),
        TAKE,
    ],
    "a slave waits for both EOIs": [*high(12), TAKE, *high(8), TAKE, EOI, *out(0xA0, 0x20), TAKE],
    "a masked cascade": [*out(0x21, 0x04), *high(12), TAKE, *out(0x21, 0), TAKE],
    "rotation at auto-EOI": [*initialize(0, icw4=0x03), *out(0x20, 0x80), *pulse(5), TAKE, *pulse(3, 6), TAKE, TAKE],
    "rotate on EOI": [*high(3), TAKE, *out(0x20, 0xA0), *high(4, 2), TAKE, TAKE],
    "set priority": [*out(0x20, 0xC4), *high(0, 4, 5), TAKE, *out(0x20, 0x65), TAKE, *out(0x20, 0xE0), TAKE],
    "three-step initialization": [*out(0x20, 0x10), *out(0x21, 0x28, 0x04), *high(1), TAKE],
}
DIFFERENCES: dict[Difference, list[Step]] = {
    Difference.NO_LTIM: [*initialize(0, icw1=0x19), *pulse(5)],
    Difference.SINGLE_MODE_CASCADES: [*initialize(0, icw1=0x13), *pulse(8), TAKE],
    Difference.NO_SINGLE_MODE: [*initialize(1, icw1=0x13), *out(0xA1, 0x55)],
    Difference.NO_SPECIAL_MASK: [*high(3), TAKE, *out(0x21, 0x08), *out(0x20, 0x68), *high(6), TAKE],
    Difference.NON_SPECIFIC_EOI_SEES_MASKED: [*high(3), TAKE, *out(0x21, 0x08), *out(0x20, 0x68), EOI],
    Difference.SFNM_FREES_WORSE_LINES: [*initialize(0, icw4=0x11), *pulse(8), TAKE, *pulse(3), TAKE],
    Difference.ICW1_KEEPS_SERVICE: [*pulse(5), TAKE, *initialize(0)],
    Difference.ICW1_FORGETS_LEVELS: [*high(5), TAKE, EOI, *initialize(0), *high(5)],
    Difference.ICW1_KEEPS_ROTATE: [*out(0x20, 0x80), *initialize(0, icw4=0x03), *pulse(5), TAKE, *pulse(3, 6), TAKE],
    Difference.ICW1_WAITS_FOR_UPDATE: [*high(5), *initialize(0), TAKE],
    Difference.POLL_ENDS: [*high(5), *out(0x20, 0x0C), ("in", 0x20, 0)],
    Difference.CASCADE_INT_STAYS_HIGH: [*initialize(1, icw4=0x03), *pulse(8, 9), TAKE],
    Difference.ELCR_WAITS_FOR_LINE: [*pulse(5), *out(0x4D0, 0x20)],
    Difference.OCW3_WAITS_FOR_UPDATE: [*high(0), TAKE, *pulse(1), *out(0x21, 0x01), *out(0x20, 0x68), TAKE],
}


@pytest.fixture(params=[pytest.param("qemu", marks=pytest.mark.qemu), pytest.param("kvm", marks=pytest.mark.kvm)])
def oracle(request: pytest.FixtureRequest) -> Iterator[PicOracle]:
    if request.param == "qemu":
        yield QemuPic(request.getfixturevalue("qemu"))
    else:
        with KvmMachine() as machine:
            yield KvmPic(machine)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_pic_agrees_in(scenario: str, oracle: PicOracle) -> None:
    assert agrees(oracle, SCENARIOS[scenario])


@pytest.mark.parametrize("difference", Difference, ids=lambda difference: difference.name)
def test_each_difference_is_real_and_named(difference: Difference, oracle: PicOracle) -> None:
    assert agrees(oracle, DIFFERENCES[difference]) == (difference not in oracle.differences)


@pytest.mark.timeout(300)
def test_pic_agrees_in_random_sequences(oracle: PicOracle) -> None:
    Machine = type("Machine", (PicMachine,), {"oracle": oracle})  # noqa: N806
    run_state_machine_as_test(Machine, settings=SETTINGS)
