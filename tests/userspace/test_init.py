"""INIT to the boot processor of the userspace chip."""

from __future__ import annotations

import pytest

from irqchip_core.chip import MPState, VcpuRunState
from tests.userspace.test_chip import Board

pytestmark = pytest.mark.usefixtures("no_leaks")


def test_the_boot_processor_begins_at_the_reset_vector_and_waits_for_nobody() -> None:
    board = Board()
    vcpu, chip = board.vcpus[0], board.chip
    board.write(1, 0x300, 0x4500)  # INIT to APIC 0
    chip.inject_interrupts(vcpu)
    assert chip.get_mp_state(0) is MPState.RUNNABLE
    assert chip.wait_until_runnable(vcpu) is VcpuRunState.RUNNABLE
    assert vcpu.get_sregs().cs.base + vcpu.get_regs().rip == 0xFFFFFFF0
    board.write(1, 0x300, 0x4608)  # a start-up does nothing to it
    chip.inject_interrupts(vcpu)
    assert vcpu.get_sregs().cs.base + vcpu.get_regs().rip == 0xFFFFFFF0
    chip.close()
