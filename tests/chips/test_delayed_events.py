"""While the chipset is busy: events of inputs are delayed without a spinning irq loop, and messages just wait."""

from __future__ import annotations

import pytest

from irqchip_core.events import IrqEdgeEvent, IrqEventSource, IrqLevelEvent, PlatformDeviceId
from irqchip_core.routes import IrqRoute
from irqchip_core.x86.chip import IrqChipX86_64
from irqchip_core.x86.chipset.chip import ChipsetIrqChip
from tests.chips.machine import MARKER_ROUTES, PATIENCE, Machine, ioapic_entry, program_ioapic

pytestmark = pytest.mark.usefixtures("no_leaks")

SOURCE = IrqEventSource(PlatformDeviceId.SERIAL, 0, "COM1")
MESSAGE = IrqRoute.msi(24, 0xFEE00000, 0x51)


@pytest.fixture
def chipset_chip(chip: IrqChipX86_64) -> ChipsetIrqChip:
    if not isinstance(chip, ChipsetIrqChip):
        pytest.skip("the controllers are the hypervisor's, which delays no event")
    return chip


def test_what_is_delayed_is_served_once_and_messages_are_not_delayed(
    chipset_chip: ChipsetIrqChip, machine: Machine
) -> None:
    chip, loop = chipset_chip, machine.loop
    program_ioapic(chip, {5: ioapic_entry(0x45), 10: ioapic_entry(0x4A, level=True)})
    chip.set_irq_routes([*MARKER_ROUTES, *(IrqRoute.ioapic(gsi) for gsi in (5, 10)), MESSAGE])
    with IrqEdgeEvent() as edge, IrqLevelEvent() as level, IrqEdgeEvent() as message:
        chip.register_edge_irq_event(5, edge, SOURCE)
        chip.register_level_irq_event(10, level, SOURCE)
        served = chip.register_edge_irq_event(24, message, SOURCE) is not None
        machine.settle()
        before = loop.handled
        with chip.irq_delayed_event_token() as token:
            with chip._chipset.lock:  # as a vCPU in the middle of an access has it
                edge.trigger()
                level.trigger()
                while loop.handled < before + 2:
                    assert not token.wait(0)
                assert chip.events_delayed
                message.trigger()
                assert not loop.flush(0)
            machine.settle()
            assert not chip.events_delayed
            assert not token.wait(0)
        # Two events are delayed, and then served together; the release of the lock may cost a round in vain.
        assert 3 <= loop.handled - before - served <= 4
        taken = machine.take_until_marker()
        assert taken == [0x51, 0x4A, 0x45]
        assert level.clear_resample(PATIENCE)
