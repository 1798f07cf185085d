"""Lines between devices and pins: which GSIs assert them, which share them, and the effects of new routes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from irqchip_core.events import IrqEdgeEvent, IrqLevelEvent
from irqchip_core.routes import IrqRoute, IrqSourceChip, PinSource, default_routes
from tests.userspace.test_chip import LAPIC, Board

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
def board() -> Iterator[Board]:
    board = Board()
    yield board
    board.chip.close()


def to_pin(gsi: int, pin: int) -> IrqRoute:
    return IrqRoute(gsi, PinSource(IrqSourceChip.IOAPIC, pin))


def levels(board: Board) -> int:
    return board.chip.get_ioapic_state().current_interrupt_level_bitmap


def test_a_level_event_whose_route_goes_is_asked_and_waits_for_the_next(board: Board) -> None:
    board.redirect(10, 0x804A)
    with IrqLevelEvent() as event:
        index = board.register(10, event)
        event.trigger()
        board.chip.service_irq_event(index)
        assert board.inject() == [0x4A]
        board.chip.set_irq_routes([])
        assert event.clear_resample(0)
        board.eoi()  # whose resample would reach no device
        assert not event.clear_resample(0)
        event.trigger()  # it still needs service
        board.chip.service_irq_event(index)
        assert (levels(board), board.inject()) == (0, [])
        board.chip.set_irq_routes(default_routes())
        assert board.inject() == [0x4A]
        board.eoi()
        assert event.clear_resample(0)
        assert levels(board) == 0


def test_a_level_event_that_comes_before_its_route_is_not_lost(board: Board) -> None:
    board.redirect(10, 0x804A)
    with IrqLevelEvent() as event, IrqLevelEvent() as gone:
        indices = [board.register(40, event), board.register(41, gone)]
        for one, index in zip((event, gone), indices, strict=True):
            one.trigger()
            board.chip.service_irq_event(index)
        board.chip.unregister_level_irq_event(41, gone)
        board.chip.route_irq(to_pin(41, 10))
        assert board.inject() == []
        board.chip.route_irq(to_pin(40, 10))
        assert board.inject() == [0x4A]
        board.eoi()
        assert event.clear_resample(0)


def test_a_level_event_whose_route_moves_is_asked_and_interrupts_there(board: Board) -> None:
    board.redirect(10, 0x804A)
    board.redirect(11, 0x804B)
    with IrqLevelEvent() as event:
        index = board.register(10, event)
        event.trigger()
        board.chip.service_irq_event(index)
        assert board.inject() == [0x4A]
        board.chip.route_irq(to_pin(10, 11))
        assert event.clear_resample(0)
        assert levels(board) == 0
        event.trigger()
        board.chip.service_irq_event(index)
        board.eoi()
        assert board.inject() == [0x4B]
        assert not event.clear_resample(0)
        board.eoi()
        assert event.clear_resample(0)


def test_a_pin_that_stays_sees_no_edge_when_others_of_its_gsi_come_and_go(board: Board) -> None:
    board.redirect(10, 0x4A)  # edge-triggered
    board.chip.service_irq(10, True)
    assert board.inject() == [0x4A]
    board.eoi()
    without_pic = [route for route in default_routes() if route.gsi != 10 or route == IrqRoute.ioapic(10)]
    for routes in (without_pic, default_routes(), [to_pin(10, 10), IrqRoute.msi(24, LAPIC, 0x50)]):
        board.chip.set_irq_routes(routes)
        assert board.inject() == []
    assert levels(board) == 1 << 10


def test_gsis_that_share_a_pin_assert_it_while_any_of_them_does(board: Board) -> None:
    board.redirect(10, 0x1804A)  # masked
    for gsi in (40, 41, 42):
        board.chip.route_irq(to_pin(gsi, 10))
    with IrqLevelEvent() as event, IrqEdgeEvent() as edge:
        level, pulse = board.register(40, event), board.register(41, edge)
        event.trigger()
        edge.trigger()
        board.chip.service_irq_event(level)
        board.chip.service_irq_event(pulse)  # must not take the level away
        board.chip.service_irq(42, True)
        board.chip.service_irq(42, False)
        assert levels(board) == 1 << 10
        board.chip.service_irq(42, True)
        board.redirect(10, 0x804A)
        assert event.clear_resample(0)  # an unmasked level entry interrupts by the present level
        board.eoi()
        board.chip.route_irq(to_pin(42, 11))
        assert levels(board) == 1 << 11


def test_level_events_that_share_a_pin_are_asked_at_its_eoi_and_interrupt_once(board: Board) -> None:
    board.redirect(10, 0x804A)
    with IrqLevelEvent() as one, IrqLevelEvent() as other:
        indices = []
        for gsi, event in ((40, one), (41, other)):
            board.chip.route_irq(to_pin(gsi, 10))
            indices.append(board.register(gsi, event))
            event.trigger()
        for index in indices:
            board.chip.service_irq_event(index)
        assert board.inject() == [0x4A]
        board.eoi()
        assert one.clear_resample(0)
        assert other.clear_resample(0)
        assert (levels(board), board.inject()) == (0, [])
