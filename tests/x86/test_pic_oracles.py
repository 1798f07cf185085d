"""The 8259 pair against QEMU's and KVM's: the same random sequences, and all state after each step."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from irqchip_core.x86.state import PicSelect, PicState
from tests.oracles.kvm import KvmMachine
from tests.oracles.qemu import Qemu
from tests.x86.pic_model import COMMAND, DATA, ELCR, READ_IRR, READ_ISR, Difference, PicMachine

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
            Difference.ELCR_WAITS_FOR_LINE,
            Difference.ICW1_FORGETS_LEVELS,
            Difference.ICW1_KEEPS_SERVICE,
            Difference.ICW1_KEEPS_ROTATE,
            Difference.NON_SPECIFIC_EOI_SEES_MASKED,
            Difference.SFNM_FREES_WORSE_LINES,
            Difference.OCW3_WAITS_FOR_UPDATE,
            Difference.POLL_ENDS,
        }
    )

    def __init__(self, machine: KvmMachine) -> None:
        self._vm = machine.vm
        self.read, self.write, self.set_line = machine.port_in, machine.port_out, machine.vm.irq_line
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


@pytest.mark.qemu
@pytest.mark.timeout(300)
def test_pic_agrees_with_qemu(qemu: Qemu) -> None:
    class Machine(PicMachine):
        oracle = QemuPic(qemu)

    run_state_machine_as_test(Machine, settings=SETTINGS)


@pytest.mark.kvm
@pytest.mark.timeout(300)
def test_pic_agrees_with_kvm() -> None:
    with KvmMachine() as machine:

        class Machine(PicMachine):
            oracle = KvmPic(machine)

        run_state_machine_as_test(Machine, settings=SETTINGS)
