"""Records of state that hypothesis damages: each chip refuses one and has not changed, or goes on from it."""

from __future__ import annotations

import copy
import enum
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from attrs import fields, has
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from irqchip_core.allocator import SystemAllocator
from irqchip_core.bus import Bus
from irqchip_core.chip import MPState
from irqchip_core.errors import InvalidArgument, WrongType
from irqchip_core.hypervisor.vcpu import VcpuX86_64, Vm
from irqchip_core.x86.chip import IrqChipX86_64
from irqchip_core.x86.state import IOAPIC_BASE, LAPIC_BASE, PicInitState, PicSelect, PitRwMode, PitRwState

EDGES = [0, 1, 7, 8, 0xF8, 0xFF, 0x100, 0xFFFF, 0x10000, 0xFEE00D00, 0xFEE00400, 1 << 31, 1 << 32, 1 << 63, 1 << 64]
NUMBERS = st.sampled_from(EDGES) | st.integers(0, 0xFF) | st.integers(-(1 << 70), 1 << 70)
ANYTHING: st.SearchStrategy[Any] = (
    NUMBERS
    | st.none()
    | st.booleans()
    | st.sampled_from([*PicInitState, *PitRwState, *PitRwMode, *MPState, "x", 0.5, (), object])
    | st.lists(NUMBERS, max_size=4)
    | st.dictionaries(NUMBERS | st.text(max_size=1), NUMBERS, max_size=3)
)
WHERE = st.integers(0, 1 << 16)
SETTINGS = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
Place = Callable[[Any], None]


def places(record: Any) -> Iterator[Place]:
    """What puts a value into each place of a record."""
    for name in [field.name for field in fields(type(record))]:
        yield partial(setattr, record, name)
        value = getattr(record, name)
        if isinstance(value, list):
            for at, element in enumerate(value):
                yield partial(value.__setitem__, at)
                if has(type(element)):
                    yield from places(element)
            yield value.append
        elif isinstance(value, dict):
            yield partial(value.__setitem__, 3)
        elif has(type(value)) and not isinstance(value, enum.Enum) and name != "chip_specific":
            yield from places(value)


class Board:
    """A chip with two vCPUs, on buses."""

    def __init__(self, vm: Vm, chip: IrqChipX86_64) -> None:
        self.chip = chip
        self.io_bus, self.mmio_bus = Bus("I/O"), Bus("MMIO")
        self.vcpus: list[VcpuX86_64] = [vm.create_vcpu(number) for number in range(2)]
        for vcpu in self.vcpus:
            vcpu.set_cpuid(vm.supported_cpuid())
            chip.add_vcpu(vcpu.id, vcpu)
        chip.finalize_devices(SystemAllocator(), self.io_bus, self.mmio_bus)

    def state(self) -> Any:
        """All that stands still while no time passes for the guest."""
        chip = self.chip
        pit = copy.deepcopy(chip.get_pit())
        pit.age = 0
        for channel in pit.channels:
            channel.counting, channel.count_load_time = None, 0
        lapics = [chip.get_lapic_state(number).regs[:0x39] for number in range(2)]
        return [chip.get_pic_state(select) for select in PicSelect], chip.get_ioapic_state(), lapics, pit

    def use(self) -> None:
        """What devices and guests do to a chip; nothing of it may raise, hang, or break a record."""
        chip = self.chip
        for gsi in range(24):
            chip.service_irq(gsi, True)
            chip.service_irq(gsi, False)
        for vcpu in self.vcpus:
            chip.inject_interrupts(vcpu)
        for port in (0x20, 0x21, 0xA0, 0xA1, 0x40, 0x41, 0x42, 0x61, 0x4D0):
            self.io_bus.read(port, 1)
        for port, value in ((0x20, 0x20), (0xA0, 0x20), (0x43, 0xE2), (0x40, 5)):
            self.io_bus.write(port, 1, value)
        for offset in (0, 0x10):
            self.mmio_bus.read(IOAPIC_BASE + offset, 4)
        for offset in range(0, 0x400, 0x10):
            self.mmio_bus.read(LAPIC_BASE + offset, 4)
        self.mmio_bus.write(LAPIC_BASE + 0xB0, 4, 0)
        for vector in (0x20, 0x40, 0xFF):
            chip.broadcast_eoi(vector)
        for vcpu in self.vcpus:
            chip.inject_interrupts(vcpu)
        chip.restore(chip.snapshot(2), 2)


@pytest.fixture
def board(vm: Vm, chip: IrqChipX86_64) -> Board:
    return Board(vm, chip)


def damaged(record: Any, draws: list[tuple[int, Any]]) -> Any:
    record = copy.deepcopy(record)
    for where, value in draws:
        found = list(places(record))
        found[where % len(found)](value)
    return record


@pytest.mark.timeout(20)
def test_a_member_of_an_enumeration_is_a_number_like_others(board: Board) -> None:
    chip = board.chip
    lapic, pit = chip.get_lapic_state(1), chip.get_pit()
    lapic.tsc_deadline = lapic.regs[0x38] = PitRwState.NONE
    pit.age = pit.channels[2].count = pit.channels[2].count_load_time = PitRwState.WORD1
    chip.set_lapic_state(1, lapic)
    chip.set_pit(pit)
    assert chip.get_pit().channels[2].count == PitRwState.WORD1
    pit.channels[2].latched_count = MPState.HALTED
    chip.set_pit(pit)
    pit.channels[0].count = PitRwState.NONE
    with pytest.raises(InvalidArgument, match=r"channels\[0\].count"):
        chip.set_pit(pit)


DRAWS = st.lists(st.tuples(WHERE, ANYTHING), min_size=1, max_size=3)


@SETTINGS
@given(kind=st.integers(0, 4), draws=DRAWS)
def test_a_damaged_record_is_refused_or_gone_on_from(board: Board, kind: int, draws: list[tuple[int, Any]]) -> None:
    chip: Any = board.chip
    get, put = [
        (partial(chip.get_pic_state, PicSelect.PRIMARY), partial(chip.set_pic_state, PicSelect.PRIMARY)),
        (partial(chip.get_pic_state, PicSelect.SECONDARY), partial(chip.set_pic_state, PicSelect.SECONDARY)),
        (chip.get_ioapic_state, chip.set_ioapic_state),
        (partial(chip.get_lapic_state, 1), partial(chip.set_lapic_state, 1)),
        (chip.get_pit, chip.set_pit),
    ][kind]
    whole = chip.snapshot(2)
    record = damaged(get(), draws)
    before = board.state()
    try:
        put(record)
    except (WrongType, InvalidArgument):
        assert board.state() == before
        return
    put(get())
    board.use()
    chip.restore(whole, 2)


@SETTINGS
@given(draws=DRAWS)
def test_a_damaged_snapshot_is_refused_or_gone_on_from(board: Board, draws: list[tuple[int, Any]]) -> None:
    chip = board.chip
    whole = chip.snapshot(2)
    snapshot = damaged(whole, draws)
    before = board.state()
    try:
        chip.restore(snapshot, 2)
    except (WrongType, InvalidArgument):
        assert board.state() == before
        return
    board.use()
    chip.restore(whole, 2)
