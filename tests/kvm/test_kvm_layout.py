"""State records to KVM's bytes and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from irqchip_core.errors import InvalidArgument
from irqchip_core.x86.pit import Pit
from irqchip_core.x86.state import (
    IoapicState,
    LapicState,
    PicInitState,
    PicState,
    PitChannelState,
    PitRwMode,
    PitRwState,
    PitState,
)
from irqchip_kvm.kvm_layout import (
    ioapic_from_kvm,
    ioapic_to_kvm,
    lapic_from_kvm,
    lapic_to_kvm,
    pic_from_kvm,
    pic_to_kvm,
    pit_from_kvm,
    pit_to_kvm,
)
from tests.x86.test_pit import at, programmed


def unsigned(bits: int) -> st.SearchStrategy[int]:
    return st.integers(0, (1 << bits) - 1)


BYTE = unsigned(8)
PICS = st.builds(
    PicState,
    last_irr=BYTE, irr=BYTE, imr=BYTE, isr=BYTE, priority_add=BYTE, irq_base=BYTE, read_reg_select=st.booleans(),
    poll=st.booleans(), special_mask=st.booleans(), init_state=st.sampled_from(PicInitState), auto_eoi=st.booleans(),
    rotate_on_auto_eoi=st.booleans(), special_fully_nested_mode=st.booleans(), use_4_byte_icw=st.booleans(),
    elcr=BYTE, elcr_mask=BYTE,
)  # fmt: skip
IOAPIC_IDS = unsigned(4).map(lambda number: number << 24)
IOAPICS = st.builds(
    IoapicState, unsigned(64), BYTE, IOAPIC_IDS, unsigned(32), st.lists(unsigned(64), min_size=24, max_size=24)
)
LAPICS = st.builds(LapicState, st.lists(unsigned(32), min_size=64, max_size=64))
BOTH = (PitRwState.WORD0, PitRwState.WORD1)
CHANNELS = st.builds(
    PitChannelState,
    count=unsigned(32), latched_count=unsigned(16), count_latched=st.sampled_from(PitRwState),
    status_latched=st.booleans(), status=BYTE, read_state=st.sampled_from(BOTH),
    write_state=st.just(PitRwState.WORD1), reload_value=BYTE, rw_mode=st.just(PitRwMode.BOTH), mode=BYTE,
    bcd=st.booleans(), gate=st.booleans(), count_load_time=st.integers(-(1 << 63), (1 << 63) - 1),
)  # fmt: skip
PITS = st.builds(PitState, st.lists(CHANNELS, min_size=3, max_size=3), unsigned(32))


@given(PICS, IOAPICS, LAPICS, PITS)
def test_records_survive_the_way_to_kvm_and_back(
    pic: PicState, ioapic: IoapicState, lapic: LapicState, pit: PitState
) -> None:
    assert pic_from_kvm(pic_to_kvm(pic)) == pic
    assert ioapic_from_kvm(ioapic_to_kvm(ioapic)) == ioapic
    assert lapic_from_kvm(lapic_to_kvm(lapic)) == lapic
    assert pit_from_kvm(pit_to_kvm(pit)) == pit
    assert [len(data) for data in (pic_to_kvm(pic), ioapic_to_kvm(ioapic), lapic_to_kvm(lapic), pit_to_kvm(pit))] == [
        16, 216, 1024, 112,
    ]  # fmt: skip


@given(st.binary(min_size=1024, max_size=1024))
def test_any_bytes_of_the_kernel_can_be_read(data: bytes) -> None:
    for read in (pic_from_kvm, ioapic_from_kvm, lapic_from_kvm, pit_from_kvm):
        read(data)


def test_fields_are_where_asm_kvm_h_has_them() -> None:
    pic = pic_to_kvm(PicState(last_irr=1, imr=2, poll=True, init_state=PicInitState.ICW4, elcr_mask=0xF8))
    assert pic == bytes([1, 0, 2, 0, 0, 0, 0, 1, 0, 3, 0, 0, 0, 0, 0, 0xF8])
    ioapic = ioapic_to_kvm(IoapicState(0xFEC00000, 5, 6 << 24, 7, [*range(24)]))
    assert ioapic[:24].hex() == "0000c0fe00000000050000000600000007000000" + "00000000"
    assert ioapic[24 + 8 * 23] == 23
    lapic = lapic_to_kvm(LapicState([*range(64)]))
    assert lapic[0x350] == 0x35
    pit = pit_to_kvm(PitState([PitChannelState(count=i, mode=i + 3, count_load_time=-1) for i in range(3)], 9))
    assert (pit[24], pit[24 + 13], pit[40:48], pit[72]) == (1, 4, b"\xff" * 8, 9)


def test_kernel_values_nobody_knows_are_read_as_reset_values() -> None:
    data = bytearray(pic_to_kvm(PicState()))
    data[9] = 7
    assert pic_from_kvm(data).init_state is PicInitState.ICW1
    data = bytearray(pit_to_kvm(PitState()))
    data[6] = 200
    assert pit_from_kvm(data).channels[0].count_latched is PitRwState.NONE


def test_a_latched_byte_that_the_kernel_has_used_is_no_part_of_a_record() -> None:
    half = PitChannelState(rw_mode=PitRwMode.BOTH, write_state=PitRwState.WORD1, reload_value=0x34)
    whole = evolve(half, write_state=PitRwState.WORD0)
    channels = pit_from_kvm(pit_to_kvm(PitState([half, whole, whole]))).channels
    assert [channel.reload_value for channel in channels] == [0x34, 0, 0]


def test_the_next_byte_is_the_first_of_the_access_mode_if_the_record_does_not_say() -> None:
    modes = (PitRwMode.LEAST, PitRwMode.MOST, PitRwMode.BOTH)
    channels = pit_from_kvm(pit_to_kvm(PitState([PitChannelState(rw_mode=mode) for mode in modes]))).channels
    assert [channel.write_state.name for channel in channels] == ["LSB", "MSB", "WORD0"]
    assert [channel.read_state.name for channel in channels] == ["LSB", "MSB", "WORD0"]


def test_records_that_do_not_fit_are_refused() -> None:
    cases: list[tuple[Callable[[Any], bytes], object]] = [
        (pic_to_kvm, PicState(irr=256)),
        (pic_to_kvm, PicState(irr=-1)),
        (ioapic_to_kvm, IoapicState(redirect_table=[0] * 25)),
        (ioapic_to_kvm, IoapicState(ioapicid=1 << 32)),
        (lapic_to_kvm, LapicState([0] * 63)),
        (lapic_to_kvm, LapicState([1 << 32] * 64)),
        (pit_to_kvm, PitState(channels=[])),
        (pit_to_kvm, PitState(flags=-1)),
    ]
    for convert, state in cases:
        with pytest.raises(InvalidArgument):
            convert(state)


def test_a_record_through_kvms_layout_starts_its_count_anew() -> None:
    pit = programmed(0x34, 0x34, 0x12, counter=0)
    record = pit_from_kvm(pit_to_kvm(pit.state(at(500))))
    assert record.channels[0].counting is None
    restored = Pit.from_state(record, 0)
    assert restored.next_rising_edge(0) == at(1 + 0x1234)
    assert [restored.read(0x40, 1, at(1)), restored.read(0x40, 1, at(1))] == [0x34, 0x12]
    assert restored.state(at(1)).channels[1].rw_mode == PitRwMode.NONE
