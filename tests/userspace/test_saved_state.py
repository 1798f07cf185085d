"""A snapshot taken in the middle of things, restored into another userspace chip."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from irqchip_core.chip import MPState, VcpuRunState
from irqchip_core.errors import IrqChipError
from irqchip_core.events import IrqEdgeEvent, IrqLevelEvent
from irqchip_core.routes import IrqRoute, IrqSourceChip, PinSource
from irqchip_core.testing import write_msr
from tests.userspace.test_chip import LAPIC, SOURCE, Board

pytestmark = pytest.mark.usefixtures("no_leaks")

APIC_ENABLED = 1 << 11


@pytest.fixture
def board() -> Iterator[Board]:
    board = Board()
    yield board
    board.chip.close()


@pytest.fixture
def other() -> Iterator[Board]:
    """Where the snapshot goes."""
    board = Board()
    yield board
    board.chip.close()


def enter(board: Board, vcpu_id: int = 0) -> None:
    assert board.chip.wait_until_runnable(board.vcpus[vcpu_id]) is VcpuRunState.RUNNABLE


def test_the_task_priority_reaches_the_guest_and_stays(board: Board, other: Board) -> None:
    board.write(0, 0x80, 0x55)
    other.chip.restore(board.chip.snapshot(2), 2)
    enter(other)
    assert other.vcpus[0].cr8 == 5
    assert other.inject() == []
    assert other.read(0, 0x80) == 0x55


def test_a_state_that_is_set_counts_more_than_what_the_guest_had(board: Board) -> None:
    enter(board)
    board.vcpus[0].cr8 = 3
    state = board.chip.get_lapic_state(0)
    state.regs[0x80 >> 4] = 0x70
    board.chip.set_lapic_state(0, state)
    board.inject()
    assert board.vcpus[0].cr8 == 7
    assert board.read(0, 0x80) == 0x70


def test_a_moved_local_apic_is_where_it_was_moved(board: Board, other: Board) -> None:
    board.chip.handle_msr(board.vcpus[0], write_msr(0x1B, 0xFD000000 | APIC_ENABLED | 1 << 8))
    other.chip.restore(board.chip.snapshot(2), 2)
    other.inject()
    assert other.vcpus[0].get_sregs().apic_base == 0xFD000000 | APIC_ENABLED | 1 << 8
    assert other.mmio.for_vcpu(0).read(0xFD000030, 4) == other.read(1, 0x30)
    assert other.read(0, 0x30) == 0xFFFFFFFF


@pytest.mark.parametrize("mp_state", [MPState.RUNNABLE, MPState.HALTED])
@pytest.mark.parametrize("tsc", [5_000, 10**15])
def test_a_deadline_counts_on_the_time_stamp_counter_that_the_vcpu_has_now(
    board: Board, other: Board, tsc: int, mp_state: MPState
) -> None:
    vcpu = board.vcpus[0]
    board.write(0, 0x320, 2 << 17 | 0x40)
    vcpu.tsc_value = tsc
    board.chip.handle_msr(vcpu, write_msr(0x6E0, tsc + 1000))
    board.chip.set_mp_state(0, mp_state)
    snapshot = board.chip.snapshot(2)
    other.clock.advance(10**12)  # a host that is up for longer
    other.chip.restore(snapshot, 2)
    other.vcpus[0].tsc_value = tsc
    assert other.inject() == []
    other.clock.advance(999)
    assert other.inject() == []
    other.clock.advance(1)
    assert other.inject() == [0x40]


def test_an_extint_message_that_waits_for_its_window(board: Board, other: Board) -> None:
    board.redirect(0, 0x700)
    board.vcpus[0].ready = False
    board.chip.service_irq(0, True)
    board.chip.inject_interrupts(board.vcpus[0])
    other.chip.restore(board.chip.snapshot(2), 2)
    assert len(other.inject()) == 1
    assert other.inject() == []


@pytest.mark.parametrize("early", [True, False])
def test_a_line_that_was_high_is_resampled_whenever_its_event_is_registered(
    board: Board, other: Board, early: bool
) -> None:
    board.redirect(10, 0x804A)
    with IrqLevelEvent() as event, IrqLevelEvent() as new:
        index = board.register(10, event)
        event.trigger()
        board.chip.service_irq_event(index)
        if early:
            other.chip.register_level_irq_event(10, new, SOURCE)
        other.chip.restore(board.chip.snapshot(2), 2)
        if not early:
            other.chip.register_level_irq_event(10, new, SOURCE)
        assert other.inject() == [0x4A]
        other.eoi()
        assert new.clear_resample(0)
        assert other.inject() == []
    assert other.chip.get_ioapic_state().current_interrupt_level_bitmap == 0


def test_a_line_of_a_pic_only(board: Board, other: Board) -> None:
    for chip in (board.chip, other.chip):
        chip.set_irq_routes([IrqRoute(40, PinSource(IrqSourceChip.PIC_PRIMARY, 5))])
    for port, value in ((0x20, 0x11), (0x21, 0x30), (0x21, 4), (0x21, 1), (0x21, 0), (0x4D0, 1 << 5)):
        board.io.write(port, 1, value)
    board.write(0, 0x350, 0x700)  # LINT0: ExtINT
    with IrqLevelEvent() as event, IrqLevelEvent() as new:
        index = board.register(40, event)
        event.trigger()
        board.chip.service_irq_event(index)
        other.chip.restore(board.chip.snapshot(2), 2)
        other.chip.register_level_irq_event(40, new, SOURCE)
        assert other.inject() == [0x35]
        other.io.write(0x20, 1, 0x20)
        assert new.clear_resample(0)
        assert other.inject() == []


def test_the_wire_between_the_pics_is_no_line_of_a_device(board: Board, other: Board) -> None:
    for port, value in ((0x20, 0x11), (0x21, 0x30), (0x21, 4), (0x21, 1), (0x21, 0)):
        board.io.write(port, 1, value)
    for port, value in ((0xA0, 0x11), (0xA1, 0x38), (0xA1, 2), (0xA1, 1), (0xA1, 0)):
        board.io.write(port, 1, value)
    board.chip.service_irq(12, True)
    other.chip.restore(board.chip.snapshot(2), 2)
    other.redirect(2, 0x42)
    with IrqEdgeEvent() as event:
        index = other.register(2, event)
        for _ in range(2):
            event.trigger()
            other.chip.service_irq_event(index)
            assert 0x42 in other.inject() + other.inject()
            other.eoi()


WRONG: list[Any] = [None, "state", 5]


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_state_is_refused(board: Board, wrong: Any) -> None:
    anything: Any = board.chip
    calls: list[Callable[[], object]] = [
        lambda: anything.set_pic_state(0, wrong),
        lambda: anything.get_pic_state(wrong),
        lambda: anything.set_ioapic_state(wrong),
        lambda: anything.set_lapic_state(0, wrong),
        lambda: anything.set_pit(wrong),
        lambda: anything.inject_interrupts(wrong),
        lambda: anything.wait_until_runnable(wrong),
    ]
    for call in calls:
        with pytest.raises(IrqChipError, match="userspace"):
            call()
    assert board.mmio.for_vcpu(0).read(LAPIC + 0x30, 4)
