"""While a vCPU has the IOAPIC: messages and PIC lines pass, events of its pins wait without a spinning irq loop."""

from __future__ import annotations

import pytest

from irqchip_core.events import IrqEdgeEvent, IrqEventSource, IrqLevelEvent, PlatformDeviceId
from irqchip_core.routes import IrqRoute, IrqSourceChip
from irqchip_core.testing.guest_cpu import Eoi
from irqchip_core.x86.board_chip import BoardChip
from irqchip_core.x86.chip import IrqChipX86_64
from tests.chips.machine import MARKER_ROUTES, PATIENCE, Machine, ioapic_entry, program_ioapic, program_pics

pytestmark = pytest.mark.usefixtures("no_leaks")

SOURCE = IrqEventSource(PlatformDeviceId.SERIAL, 0, "COM1")
PASSING = [IrqRoute.msi(24, 0xFEE00000, 0x51), IrqRoute.pic(IrqSourceChip.PIC_PRIMARY, 6)]
REPEATS = 20


@pytest.fixture
def board_chip(chip: IrqChipX86_64) -> BoardChip:
    if not isinstance(chip, BoardChip):
        pytest.skip("the IOAPIC is the hypervisor's, which delays no event")
    return chip


def test_messages_and_pic_lines_pass_and_what_is_delayed_is_served_once(
    board_chip: BoardChip, machine: Machine
) -> None:
    chip, loop = board_chip, machine.loop
    program_ioapic(chip, {5: ioapic_entry(0x45), 10: ioapic_entry(0x4A, level=True)})
    program_pics(chip, primary_mask=0xBF)
    chip.set_irq_routes([*MARKER_ROUTES, *(IrqRoute.ioapic(gsi) for gsi in (5, 10)), *PASSING])
    with IrqEdgeEvent() as edge, IrqLevelEvent() as level, IrqEdgeEvent() as message, IrqEdgeEvent() as pic_line:
        chip.register_edge_irq_event(5, edge, SOURCE)
        chip.register_level_irq_event(10, level, SOURCE)
        served = [chip.register_edge_irq_event(gsi, event, SOURCE) for gsi, event in ((24, message), (6, pic_line))]
        machine.settle()
        before = loop.handled
        with chip.irq_delayed_event_token() as token:
            with chip._board.ioapic_lock:  # as a vCPU in the middle of an access has it
                edge.trigger()
                level.trigger()
                for _ in range(REPEATS):
                    message.trigger()
                    assert machine.take() == 0x51
                    chip.service_irq(24, True)
                    assert machine.take() == 0x51
                    pic_line.trigger()
                    assert machine.take(Eoi.PRIMARY) == 0x36
                assert chip.events_delayed
                assert not token.wait(0)
                assert not loop.flush(0)
            machine.settle()
            assert not chip.events_delayed
            assert not token.wait(0)
        rounds = loop.handled - before - sum(REPEATS for index in served if index is not None)
        assert rounds == 3  # two events are delayed, and then served together
        assert machine.take_until_marker() == [0x4A, 0x45]
        assert level.clear_resample(PATIENCE)
