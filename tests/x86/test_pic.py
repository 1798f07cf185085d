"""The 8259 pair against its data sheet (Intel 231468): each register, command and mode."""

from __future__ import annotations

from typing import Any

import pytest
from attrs import evolve

from irqchip_core.errors import InvalidArgument, WrongType
from irqchip_core.x86.effects import IntChanged, LineEnded
from irqchip_core.x86.pic import Pic as CheckedPic
from irqchip_core.x86.state import PicInitState, PicSelect, PicState
from tests.x86.watched_pic import WatchedPic as Pic

PRIMARY, SECONDARY = PicSelect.PRIMARY, PicSelect.SECONDARY
COMMAND = (0x20, 0xA0)
DATA = (0x21, 0xA1)
ELCR = (0x4D0, 0x4D1)
BASES = (0x20, 0x70)

EOI = 0x20
SPECIFIC_EOI = 0x60
ROTATE_EOI = 0xA0
ROTATE_SPECIFIC_EOI = 0xE0
SET_PRIORITY = 0xC0
ROTATE_AUTO_ON, ROTATE_AUTO_OFF = 0x80, 0x00
POLL, READ_IRR, READ_ISR = 0x0C, 0x0A, 0x0B
SPECIAL_MASK_ON, SPECIAL_MASK_OFF = 0x68, 0x48
AUTO_EOI, SFNM = 0x02, 0x10


def initialized(icw4: int = 0, icw1: int = 0) -> Pic:
    """A pair set up as a PC's firmware does, with these bits more in ICW1 and ICW4."""
    pic = Pic()
    for select in (0, 1):
        pic.write(COMMAND[select], 1, 0x11 | icw1)
        pic.write(DATA[select], 1, BASES[select])
        if not icw1 & 0x02:
            pic.write(DATA[select], 1, (0x04, 0x02)[select])
        pic.write(DATA[select], 1, 0x01 | icw4)
    return pic


def raised(*lines: int, icw4: int = 0, icw1: int = 0) -> Pic:
    """The same with these lines high."""
    pic = initialized(icw4, icw1)
    for line in lines:
        pic.set_line(line, True)
    return pic


def irr(pic: Pic, select: int = 0) -> int:
    return pic.state(PicSelect(select)).irr


def isr(pic: Pic, select: int = 0) -> int:
    return pic.state(PicSelect(select)).isr


def command(pic: Pic, value: int, select: int = 0) -> None:
    pic.write(COMMAND[select], 1, value)


def drain(pic: Pic) -> list[int]:
    """The vectors the processor would take without ending any."""
    vectors = []
    while pic.interrupt_requested:
        vectors.append(pic.acknowledge())
        assert len(vectors) <= 16
    return vectors


# Lines and acknowledge


@pytest.mark.parametrize("line", [n for n in range(16) if n != 2])
def test_a_raised_line_gives_its_vector(line: int) -> None:
    pic = raised(line)
    assert pic.interrupt_requested
    assert pic.acknowledge() == (0x20 + line if line < 8 else 0x70 + line - 8)
    assert not pic.interrupt_requested
    assert isr(pic) == (1 << line if line < 8 else 0x04)
    assert isr(pic, 1) == (0 if line < 8 else 1 << line - 8)


def test_reset_values() -> None:
    pic = Pic()
    assert pic.state(PRIMARY) == PicState(elcr_mask=0xF8)
    assert pic.state(SECONDARY) == PicState(elcr_mask=0xDE)
    pic.set_line(0, True)
    assert pic.acknowledge() == 0


def test_fully_nested_mode_takes_the_best_line_first_and_lets_only_better_ones_interrupt() -> None:
    pic = raised(5, 3)
    assert drain(pic) == [0x23]
    pic.set_line(4, True)
    assert not pic.interrupt_requested
    pic.set_line(1, True)
    assert drain(pic) == [0x21]
    assert isr(pic) == 0x0A


def test_the_secondary_ranks_between_lines_1_and_3() -> None:
    pic = raised(3, 8, 1, icw4=AUTO_EOI)
    assert drain(pic) == [0x21, 0x70, 0x23]


def test_an_edge_requests_once() -> None:
    pic = raised(5)
    assert drain(pic) == [0x25]
    command(pic, EOI)
    pic.set_line(5, True)
    assert not pic.interrupt_requested
    pic.set_line(5, False)
    pic.set_line(5, True)
    assert drain(pic) == [0x25]


def test_an_edge_outlives_its_line() -> None:
    pic = raised(5)
    pic.set_line(5, False)
    assert drain(pic) == [0x25]


def test_a_level_line_requests_while_it_is_high() -> None:
    pic = initialized()
    pic.write(ELCR[0], 1, 0x20)
    pic.set_line(5, True)
    assert drain(pic) == [0x25]
    assert irr(pic) == 0x20
    command(pic, EOI)
    assert drain(pic) == [0x25]
    pic.set_line(5, False)
    command(pic, EOI)
    assert not pic.interrupt_requested
    assert irr(pic) == 0


def test_a_level_line_that_falls_before_the_acknowledge_is_spurious() -> None:
    pic = initialized()
    pic.write(ELCR[0], 1, 0x20)
    pic.set_line(5, True)
    pic.set_line(5, False)
    assert not pic.interrupt_requested
    assert pic.acknowledge() == 0x27
    assert isr(pic) == 0


def test_spurious_irq_7_sets_no_in_service_bit() -> None:
    pic = initialized()
    pic.report_all_ends()
    assert pic.acknowledge() == 0x27
    assert isr(pic) == 0
    assert pic.ended == 0


def test_spurious_irq_15_is_in_service_on_the_primary_only() -> None:
    pic = initialized()
    pic.write(ELCR[1], 1, 0x10)
    pic.set_line(12, True)
    pic.set_line(12, False)  # the primary has latched the cascade's edge
    assert pic.acknowledge() == 0x77
    assert (isr(pic), isr(pic, 1)) == (0x04, 0)


def test_line_2_alone_is_a_spurious_irq_15() -> None:
    assert raised(2).acknowledge() == 0x77


def test_the_secondary_asks_again_for_each_of_its_lines() -> None:
    pic = raised(8, 9, 15, icw4=AUTO_EOI)
    assert drain(pic) == [0x70, 0x71, 0x77]


def test_no_such_line_is_refused() -> None:
    pic = initialized()
    for line in (-1, 16):
        with pytest.raises(InvalidArgument, match=f"no line {line}"):
            pic.set_line(line, True)
    assert irr(pic) == irr(pic, 1) == 0


# Initialization command words


@pytest.mark.parametrize("select", [0, 1])
def test_icw1_forgets_edges_masks_service_and_modes(select: int) -> None:
    pic = raised(4, 5, 12, 13, icw4=SFNM)
    drain(pic)
    command(pic, SET_PRIORITY | 3, select)
    command(pic, SPECIAL_MASK_ON, select)
    command(pic, READ_ISR, select)
    command(pic, ROTATE_AUTO_ON, select)
    pic.write(DATA[select], 1, 0xFF)
    pic.report_all_ends()
    command(pic, 0x11, select)
    lines = (0x34, 0x30)[select]
    assert pic.state(PicSelect(select)) == PicState(
        last_irr=lines & ~(0x04 if select == 0 else 0),
        irq_base=BASES[select],
        init_state=PicInitState.ICW2,
        use_4_byte_icw=True,
        elcr_mask=(0xF8, 0xDE)[select],
    )
    # Each interrupt thrown away will have no EOI, so it is reported as ended.
    assert pic.ended == (0x0034, 0x3000)[select]


def test_after_icw1_a_high_edge_line_must_fall_before_it_requests() -> None:
    pic = raised(5)
    command(pic, 0x11)
    for value in (0x20, 0x04, 0x01):
        pic.write(DATA[0], 1, value)
    pic.set_line(5, True)
    assert irr(pic) == 0
    pic.set_line(5, False)
    pic.set_line(5, True)
    assert irr(pic) == 0x20


def test_icw1_keeps_the_requests_of_high_level_lines() -> None:
    pic = initialized()
    pic.write(ELCR[0], 1, 0x20)
    pic.set_line(5, True)
    command(pic, 0x11)
    assert (irr(pic), pic.state(PRIMARY).elcr) == (0x20, 0x20)


def test_icw1_during_an_initialization_starts_it_anew() -> None:
    pic = Pic()
    for port, value in ((0x20, 0x11), (0x21, 0x40), (0x20, 0x11), (0x21, 0x50), (0x21, 4), (0x21, 1), (0x21, 0xAA)):
        pic.write(port, 1, value)
    state = pic.state(PRIMARY)
    assert (state.irq_base, state.imr, state.init_state) == (0x50, 0xAA, PicInitState.ICW1)


@pytest.mark.parametrize(
    ("icw1", "words"),
    [
        (0x10, [PicInitState.ICW2, PicInitState.ICW3]),
        (0x11, [PicInitState.ICW2, PicInitState.ICW3, PicInitState.ICW4]),
        (0x12, [PicInitState.ICW2]),
        (0x13, [PicInitState.ICW2, PicInitState.ICW4]),
    ],
    ids=["cascade", "cascade with ICW4", "single", "single with ICW4"],
)
def test_icw1_announces_the_words_that_follow(icw1: int, words: list[PicInitState]) -> None:
    pic = Pic()
    command(pic, icw1)
    for word in words:
        assert pic.state(PRIMARY).init_state == word
        pic.write(DATA[0], 1, 0x28)
    assert pic.state(PRIMARY).init_state == PicInitState.ICW1
    assert (pic.state(PRIMARY).irq_base, pic.state(PRIMARY).imr) == (0x28, 0)


@pytest.mark.parametrize("icw3", [0x00, 0x10, 0xFF])
def test_icw3_changes_nothing_as_the_wiring_is_fixed(icw3: int) -> None:
    pic = initialized()
    for port, word in ((0x20, 0x11), (0x21, 0x20), (0x21, icw3), (0x21, 0x01)):
        pic.write(port, 1, word)
    assert pic.state(PRIMARY) == initialized().state(PRIMARY)
    pic.set_line(12, True)
    assert pic.acknowledge() == 0x74


def test_icw4_sets_automatic_eoi_and_special_fully_nested_mode_only() -> None:
    pic = initialized(icw4=0xFF)  # the other bits: buffered mode and 8086 mode
    assert (pic.state(PRIMARY).auto_eoi, pic.state(PRIMARY).special_fully_nested_mode) == (True, True)
    assert pic.state(PRIMARY) == initialized(icw4=AUTO_EOI | SFNM).state(PRIMARY)
    assert initialized(icw4=0xFF & ~(AUTO_EOI | SFNM)).state(PRIMARY) == initialized().state(PRIMARY)


@pytest.mark.parametrize(("value", "base"), [(0x00, 0x00), (0x2F, 0x28), (0xFF, 0xF8)])
def test_icw2_gives_bits_3_to_7_of_the_vector(value: int, base: int) -> None:
    pic = Pic()
    for port, word in ((0x20, 0x11), (0x21, value), (0x21, 4), (0x21, 1)):
        pic.write(port, 1, word)
    pic.set_line(6, True)
    assert pic.acknowledge() == base + 6


def test_single_mode_has_no_cascade() -> None:
    pic = raised(2, icw1=0x02)
    assert pic.acknowledge() == 0x22


def test_single_level_triggered_line_2_in_special_fully_nested_mode_interrupts_itself() -> None:
    pic = initialized(icw1=0x0A, icw4=SFNM)
    pic.set_line(2, True)
    assert (pic.acknowledge(), pic.interrupt_requested, pic.acknowledge()) == (0x22, True, 0x22)


def test_ltim_makes_all_lines_level_triggered() -> None:
    pic = raised(0, icw1=0x08)
    assert pic.acknowledge() == 0x20
    assert irr(pic) == 0x01
    pic.set_line(0, False)
    assert irr(pic) == 0
    # The cascade too: the secondary takes INT down at INTA.
    pic.set_line(8, True)
    command(pic, EOI)
    assert pic.acknowledge() == 0x70
    assert (irr(pic), irr(pic, 1)) == (0, 0x01)


def test_icw1_without_ltim_gives_the_elcr_its_say_again() -> None:
    pic = initialized(icw1=0x08)
    pic.write(ELCR[0], 1, 0x20)
    command(pic, 0x11)
    pic.set_line(4, True)
    pic.set_line(4, False)
    pic.set_line(5, True)
    pic.set_line(5, False)
    assert irr(pic) == 0x10


def test_auto_eoi_ends_at_the_acknowledge() -> None:
    pic = raised(5, 12, icw4=AUTO_EOI)
    pic.report_all_ends()
    assert drain(pic) == [0x74, 0x25]
    assert (isr(pic), isr(pic, 1)) == (0, 0)
    assert pic.ended == 0x1024


def test_special_fully_nested_mode_lets_better_lines_of_a_slave_in_service_interrupt() -> None:
    pic = raised(12, icw4=SFNM)
    assert drain(pic) == [0x74]
    pic.set_line(8, True)
    assert drain(pic) == [0x70]
    assert (isr(pic), isr(pic, 1)) == (0x04, 0x11)


def test_special_fully_nested_mode_keeps_worse_lines_of_the_primary_out() -> None:
    pic = raised(12, icw4=SFNM)
    drain(pic)
    pic.set_line(3, True)
    pic.set_line(14, True)
    assert not pic.interrupt_requested


def test_special_fully_nested_mode_does_not_let_a_slave_into_a_better_line() -> None:
    pic = raised(1, icw4=SFNM)
    drain(pic)
    pic.set_line(8, True)
    assert not pic.interrupt_requested


def test_without_special_fully_nested_mode_a_slave_waits_for_both_eois() -> None:
    pic = raised(12)
    drain(pic)
    pic.set_line(8, True)
    assert not pic.interrupt_requested
    command(pic, EOI)
    assert drain(pic) == [0x70]
    command(pic, EOI, 1)
    assert isr(pic, 1) == 0x10


# OCW1


def test_ocw1_masks_and_a_masked_line_stays_requested() -> None:
    pic = initialized()
    pic.write(DATA[0], 1, 0x20)
    pic.set_line(5, True)
    assert not pic.interrupt_requested
    assert (irr(pic), pic.read(DATA[0], 1)) == (0x20, 0x20)
    pic.write(DATA[0], 1, 0)
    assert drain(pic) == [0x25]


def test_a_masked_cascade_line_blocks_the_secondary() -> None:
    pic = initialized()
    pic.write(DATA[0], 1, 0x04)
    pic.set_line(12, True)
    assert not pic.interrupt_requested
    pic.write(DATA[0], 1, 0)
    assert drain(pic) == [0x74]


# OCW2: (lines in service, best last) -> command -> (ISR, priority_add, ended)


@pytest.mark.parametrize(
    ("ocw2", "expected"),
    [
        (EOI, (0x20, 0, 0x08)),
        (SPECIFIC_EOI | 5, (0x08, 0, 0x20)),
        (SPECIFIC_EOI | 6, (0x28, 0, 0x40)),
        (ROTATE_EOI, (0x20, 4, 0x08)),
        (ROTATE_SPECIFIC_EOI | 5, (0x08, 6, 0x20)),
        (SET_PRIORITY | 2, (0x28, 3, 0)),
        (SET_PRIORITY | 7, (0x28, 0, 0)),
        (0x40 | 5, (0x28, 0, 0)),
    ],
    ids=["eoi", "specific", "specific not in service", "rotate", "rotate specific", "set priority", "wraps", "no-op"],
)
@pytest.mark.parametrize("select", [0, 1])
def test_ocw2(select: int, ocw2: int, expected: tuple[int, int, int]) -> None:
    pic = initialized()
    for line in (5, 3):
        pic.set_line(line + 8 * select, True)
        drain(pic)
        command(pic, SPECIFIC_EOI | 2)  # so that the primary lets the secondary through again
    pic.report_all_ends()
    command(pic, ocw2, select)
    state = pic.state(PicSelect(select))
    assert (state.isr, state.priority_add, pic.ended >> 8 * select) == expected


def test_eoi_with_nothing_in_service_does_nothing() -> None:
    pic = initialized()
    pic.report_all_ends()
    command(pic, EOI)
    command(pic, ROTATE_EOI)
    assert (pic.ended, pic.state(PRIMARY).priority_add) == (0, 0)


def test_priorities_rotate() -> None:
    pic = initialized(icw4=AUTO_EOI)
    command(pic, SET_PRIORITY | 4)
    for line in (0, 4, 5, 7):
        pic.set_line(line, True)
    assert drain(pic) == [0x25, 0x27, 0x20, 0x24]


def test_non_specific_eoi_follows_the_rotated_priorities() -> None:
    pic = raised(1)
    drain(pic)
    pic.set_line(0, True)
    drain(pic)
    command(pic, SET_PRIORITY | 0)
    command(pic, EOI)
    assert isr(pic) == 0x01


def test_rotation_in_auto_eoi_mode() -> None:
    pic = initialized(icw4=AUTO_EOI)
    command(pic, ROTATE_AUTO_ON)
    pic.set_line(5, True)
    drain(pic)
    assert pic.state(PRIMARY).priority_add == 6
    command(pic, ROTATE_AUTO_OFF)
    pic.set_line(3, True)
    drain(pic)
    assert pic.state(PRIMARY).priority_add == 6


def test_a_line_that_ended_stays_at_the_level_its_device_drives() -> None:
    pic = initialized()
    pic.write(ELCR[1], 1, 0x08)
    pic.set_line(11, True)
    for _ in range(3):
        assert drain(pic) == [0x73]
        command(pic, EOI, 1)
        command(pic, EOI)


# OCW3


def test_ocw3_selects_irr_or_isr() -> None:
    pic = raised(5)
    drain(pic)
    pic.set_line(6, True)
    assert pic.read(COMMAND[0], 1) == 0x40
    for value, expected in ((READ_ISR, 0x20), (0x08, 0x20), (READ_IRR, 0x40), (0x09, 0x40)):
        command(pic, value)
        assert pic.read(COMMAND[0], 1) == expected


def test_poll_acknowledges_with_bit_7() -> None:
    pic = raised(5, 6)
    command(pic, POLL)
    assert pic.read(COMMAND[0], 1) == 0x85
    assert (irr(pic), isr(pic), pic.interrupt_requested) == (0x40, 0x20, False)
    assert pic.read(COMMAND[0], 1) == 0x40


def test_poll_of_nothing_has_no_bit_7() -> None:
    pic = initialized()
    command(pic, POLL)
    assert pic.read(COMMAND[0], 1) & 0x80 == 0
    assert isr(pic) == 0


def test_poll_takes_a_read_of_the_data_port_too() -> None:
    pic = raised(5)
    command(pic, POLL)
    assert pic.read(DATA[0], 1) == 0x85
    assert pic.read(DATA[0], 1) == 0x00


def test_poll_overrides_a_register_selected_with_it() -> None:
    pic = raised(5)
    command(pic, POLL | 0x03)
    assert pic.read(COMMAND[0], 1) == 0x85
    assert pic.read(COMMAND[0], 1) == 0x20


def test_poll_of_both_controllers() -> None:
    pic = raised(12, 13)
    command(pic, POLL)
    assert pic.read(COMMAND[0], 1) == 0x82
    command(pic, POLL, 1)
    assert pic.read(COMMAND[1], 1) == 0x84
    assert (isr(pic), isr(pic, 1), irr(pic)) == (0x04, 0x10, 0)


def test_poll_in_auto_eoi_mode_ends() -> None:
    pic = raised(5, icw4=AUTO_EOI)
    pic.report_all_ends()
    command(pic, POLL)
    assert pic.read(COMMAND[0], 1) == 0x85
    assert (isr(pic), pic.ended) == (0, 0x20)


def test_special_mask_mode_lets_worse_lines_pass_a_masked_line_in_service() -> None:
    pic = raised(3)
    drain(pic)
    pic.set_line(6, True)
    pic.write(DATA[0], 1, 0x08)
    assert not pic.interrupt_requested
    command(pic, SPECIAL_MASK_ON)
    assert drain(pic) == [0x26]
    command(pic, SPECIAL_MASK_OFF)
    pic.set_line(5, True)
    assert not pic.interrupt_requested


def test_special_mask_mode_hides_a_masked_line_from_non_specific_eoi() -> None:
    pic = raised(3)
    drain(pic)
    pic.write(DATA[0], 1, 0x08)
    command(pic, SPECIAL_MASK_ON)
    pic.report_all_ends()
    command(pic, EOI)
    assert (isr(pic), pic.ended) == (0x08, 0)
    command(pic, SPECIFIC_EOI | 3)
    assert (isr(pic), pic.ended) == (0, 0x08)


def test_ocw3_without_esmm_leaves_the_special_mask_alone() -> None:
    pic = initialized()
    command(pic, SPECIAL_MASK_ON)
    command(pic, 0x08)
    assert pic.state(PRIMARY).special_mask
    command(pic, 0x28)
    assert pic.state(PRIMARY).special_mask


# ELCR


@pytest.mark.parametrize(("select", "mask"), [(0, 0xF8), (1, 0xDE)])
def test_elcr_takes_only_the_lines_of_its_mask(select: int, mask: int) -> None:
    pic = initialized()
    for value in (0xFF, 0xFF, 0x00, 0x21):
        pic.write(ELCR[select], 1, value)
        assert pic.read(ELCR[select], 1) == value & mask


def test_elcr_makes_the_request_of_a_line_its_level() -> None:
    pic = raised(5, 6)
    pic.set_line(6, False)
    pic.write(ELCR[0], 1, 0xE0)
    assert irr(pic) == 0x20


# Accesses that no register takes, and state


@pytest.mark.parametrize(
    ("port", "size"),
    [(0x20, 2), (0xA1, 4), (0x4D0, 8), (0x20, 0), (0x22, 1), (0, 1), (-1, 1), (0x4D2, 1), (1 << 64, 1)],
)
def test_other_accesses_are_ignored_and_counted(port: int, size: int) -> None:
    pic = raised(5)
    before = (pic.state(PRIMARY), pic.state(SECONDARY))
    pic.write(port, size, 0x13)
    assert pic.read(port, size) == 0
    assert (pic.state(PRIMARY), pic.state(SECONDARY), pic.ignored) == (*before, 2)


def test_a_value_is_cut_to_a_byte() -> None:
    pic = initialized()
    pic.write(DATA[0], 1, 0x1AB)
    assert pic.read(DATA[0], 1) == 0xAB
    pic.write(DATA[0], 1, -1)
    assert pic.read(DATA[0], 1) == 0xFF


SAVED: dict[str, list[tuple[int, int]]] = {
    "after ICW1": [(0x20, 0x1B)],
    "before ICW4": [(0xA0, 0x11), (0xA1, 0x70), (0xA1, 0x02)],
    "polling": [(0x20, POLL)],
    "special mask, ISR selected": [(0x21, 0x08), (0x20, SPECIAL_MASK_ON), (0xA0, READ_ISR)],
    "rotated": [(0x20, SET_PRIORITY | 4), (0xA0, ROTATE_AUTO_ON)],
    "level-triggered": [(0x4D0, 0x20), (0x4D1, 0x10)],
}


@pytest.mark.parametrize("writes", SAVED.values(), ids=SAVED)
def test_a_restored_pic_goes_on_where_the_old_one_was(writes: list[tuple[int, int]]) -> None:
    old = raised(3, 5, 12)
    old.acknowledge()
    for port, value in writes:
        old.write(port, 1, value)
    new = Pic.from_state(*(old.state(select) for select in PicSelect))
    assert isr(new) == isr(old)
    for pic in (old, new):
        for port, value in ((0x21, 0x28), (0x21, 0x04), (0x21, 0x01), (0xA1, 0x01)):
            pic.write(port, 1, value)
        for line in (3, 5, 1):
            pic.set_line(line, False)
        pic.set_line(1, True)
    seen = [
        [(pic.interrupt_requested, pic.read(0x20, 1), pic.read(0xA0, 1), pic.acknowledge()) for _ in range(4)]
        for pic in (old, new)
    ]
    assert seen[0] == seen[1]


@pytest.mark.parametrize(
    "change",
    [
        {"irr": 256},
        {"isr": -1},
        {"imr": None},
        {"priority_add": 8},
        {"irq_base": 0x31},
        {"last_irr": 1 << 40},
        {"elcr": 0x07},
        {"elcr_mask": 0xFF},
    ],
    ids=str,
)
def test_a_record_that_no_8259_can_hold_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises((InvalidArgument, WrongType), match=f"primary.{next(iter(change))}"):
        Pic.from_state(evolve(PicState(elcr_mask=0xF8), **change), PicState(elcr_mask=0xDE))
    with pytest.raises((InvalidArgument, WrongType), match=f"secondary.{next(iter(change))}"):
        Pic.from_state(PicState(elcr_mask=0xF8), evolve(PicState(elcr_mask=0xDE), **change))


# Effects


def test_each_access_says_that_int_has_changed_and_which_interrupts_have_ended() -> None:
    pic = initialized().pic
    pic.resample_lines = 1 << 5 | 1 << 6
    assert pic.set_line(5, True) == (IntChanged(True),)
    assert pic.set_line(6, True) == ()
    assert pic.acknowledge() == (0x25, (IntChanged(False),))
    assert pic.write(COMMAND[0], 1, EOI) == (LineEnded(5, False), IntChanged(True))
    assert pic.write(COMMAND[0], 1, POLL) == ()
    assert pic.read(COMMAND[0], 1) == (0x86, (IntChanged(False),))
    assert pic.write(COMMAND[0], 1, 0x11) == (LineEnded(6, False),)
    pic = raised(5).pic
    pic.acknowledge()
    assert pic.write(COMMAND[0], 1, EOI) == ()  # not one of resample_lines


@pytest.mark.parametrize("level", [False, True])
def test_the_end_of_a_level_triggered_line_that_is_driven_anew_lowers_it_before_int_follows(level: bool) -> None:
    pic = initialized().pic
    pic.resample_lines = 1 << 5 | 1 << 12
    pic.write(ELCR[0], 1, level << 5)
    pic.write(ELCR[1], 1, level << 4)
    for line, select in ((5, 0), (12, 1)):
        pic.set_line(line, True)
        pic.acknowledge()
        assert LineEnded(line, level) in pic.write(COMMAND[select], 1, EOI)
        assert bool(pic.state(PicSelect(select)).last_irr >> (line & 7) & 1) is not level
        pic.write(COMMAND[0], 1, EOI)
        assert not pic.interrupt_requested


def test_automatic_eoi_ends_and_lowers_at_the_acknowledge() -> None:
    pic = initialized(AUTO_EOI).pic
    pic.resample_lines = 1 << 5
    pic.write(ELCR[0], 1, 1 << 5)
    pic.set_line(5, True)
    assert pic.acknowledge() == (0x25, (LineEnded(5, True), IntChanged(False)))


def test_a_restored_pair_says_only_what_changes_afterwards() -> None:
    old = raised(5)
    new = CheckedPic.from_state(*(old.state(select) for select in PicSelect))
    assert new.set_line(6, True) == ()
    assert new.acknowledge() == (0x25, (IntChanged(False),))
