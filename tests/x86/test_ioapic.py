"""The IOAPIC, register by register, from the 82093AA data sheet (and the ICH's for version 0x20)."""

from __future__ import annotations

import pytest

from irqchip_core.errors import InvalidArgument
from irqchip_core.x86.effects import Effects, EntriesChanged, PinEnded, WakeAt
from irqchip_core.x86.ioapic import Ioapic
from irqchip_core.x86.msi import LEVEL, LOWEST_PRIORITY, NMI, Message
from irqchip_core.x86.state import STORM_DELAY, STORM_EOIS, IoapicState

IOREGSEL, IOWIN, EOIR = 0x00, 0x10, 0x40
MASKED, TRIGGER_LEVEL, REMOTE_IRR, POLARITY_LOW = 1 << 16, 1 << 15, 1 << 14, 1 << 13


def read(ioapic: Ioapic, register: int) -> int:
    ioapic.write(IOREGSEL, 4, register, 0)
    return ioapic.read(IOWIN, 4, 0)


def write(ioapic: Ioapic, register: int, value: int) -> Effects:
    """The effects of a write, but for the first, that an entry has changed, if it has."""
    ioapic.write(IOREGSEL, 4, register, 0)
    pin = (register - 0x10) >> 1
    before = ioapic.entries[pin] if 0 <= pin < ioapic.pins else 0
    effects = ioapic.write(IOWIN, 4, value, 0)
    if 0 <= pin < ioapic.pins and ioapic.entries[pin] & ~REMOTE_IRR != before & ~REMOTE_IRR:
        assert effects[0] == EntriesChanged(1 << pin)
        return effects[1:]
    return effects


DELIVERED, COALESCED, IGNORED = 1, 0, -1


def drive(ioapic: Ioapic, pin: int, level: int) -> tuple[int, Message | None]:
    """What became of a line change, and the message."""
    coalesced, delivered = ioapic.coalesced[pin], ioapic.delivered[pin]
    message, *more = ioapic.set_line(pin, level) or (None,)
    assert not more
    assert message is None or isinstance(message, Message)
    assert ioapic.delivered[pin] == delivered + (message is not None)
    if message is not None or not level:
        return DELIVERED, message
    return COALESCED if ioapic.coalesced[pin] > coalesced else IGNORED, message


def with_entry(pin: int, low: int, **options: bool) -> Ioapic:
    ioapic = Ioapic(**options)
    assert write(ioapic, 0x10 + 2 * pin, low) == ()
    return ioapic


# Registers


def test_reset_values() -> None:
    ioapic = Ioapic()
    assert ioapic.read(IOREGSEL, 4, 0) == 0
    assert (read(ioapic, 0), read(ioapic, 1), read(ioapic, 2)) == (0, 0x00170020, 0)
    assert {read(ioapic, 0x10 + 2 * pin) for pin in range(24)} == {0x00010000}
    assert {read(ioapic, 0x11 + 2 * pin) for pin in range(24)} == {0}


@pytest.mark.parametrize(
    ("pins", "version", "value"), [(24, 0x11, 0x170011), (120, 0x20, 0x770020), (240, 0x20, 0xEF0020)]
)
def test_version_register_has_the_highest_entry(pins: int, version: int, value: int) -> None:
    ioapic = Ioapic(pins, version)
    write(ioapic, 1, 0xFFFFFFFF)
    assert read(ioapic, 1) == value


def test_id_register_keeps_bits_24_to_27_and_arbitration_follows() -> None:
    ioapic = Ioapic()
    write(ioapic, 0, 0xFFFFFFFF)
    write(ioapic, 2, 0)
    assert (read(ioapic, 0), read(ioapic, 2)) == (0x0F000000, 0x0F000000)


def test_reserved_and_absent_registers() -> None:
    ioapic = Ioapic()
    for register in (3, 0xF, 0x40, 0xFF):
        write(ioapic, register, 0x12345678)
    assert [read(ioapic, register) for register in (3, 0xF, 0x40, 0xFF)] == [0, 0, 0xFFFFFFFF, 0xFFFFFFFF]
    assert ioapic.ignored == 8


def test_select_register_has_8_bits_and_any_size() -> None:
    ioapic = Ioapic()
    ioapic.write(IOREGSEL, 1, 0x101, 0)
    assert ioapic.read(IOREGSEL, 8, 0) == 1


def test_window_is_written_as_a_word_only_and_read_in_part() -> None:
    ioapic = Ioapic()
    ioapic.write(IOREGSEL, 4, 0x10, 0)
    for size in (1, 2, 8):
        assert ioapic.write(IOWIN, size, 0, 0) == ()
    assert [ioapic.read(IOWIN, size, 0) for size in (1, 2, 4, 8)] == [0, 0, 0x10000, 0x10000]
    assert ioapic.ignored == 3


def test_other_offsets_are_ignored() -> None:
    ioapic = Ioapic()
    for offset in (0x04, 0x08, 0x20, 0xFC, 0x100, 0xFFF):
        assert ioapic.write(offset, 4, 0xFFFFFFFF, 0) == ()
        assert ioapic.read(offset, 4, 0) == 0
    assert ioapic.ignored == 12


def test_entry_keeps_its_defined_bits_and_read_only_bits_do_not_change() -> None:
    ioapic = Ioapic()
    write(ioapic, 0x10, 0xFFFFFFFF)
    write(ioapic, 0x11, 0xFFFFFFFF)
    assert (read(ioapic, 0x10), read(ioapic, 0x11)) == (0x0001AFFF, 0xFF000000)


def test_pins_beyond_120_have_a_selector_of_9_bits() -> None:
    ioapic = Ioapic(240)
    write(ioapic, 0x10 + 2 * 239, 0x45)
    assert read(ioapic, 0x10 + 2 * 239) == 0x45
    assert drive(ioapic, 239, 1)[1] == Message(0x45)


@pytest.mark.parametrize(("pins", "version"), [(23, 0x20), (241, 0x20), (24, 0x12)])
def test_impossible_ioapics(pins: int, version: int) -> None:
    with pytest.raises(InvalidArgument):
        Ioapic(pins, version)


def test_line_that_does_not_exist() -> None:
    with pytest.raises(InvalidArgument, match="no pin 24"):
        Ioapic().set_line(24, 1)


# Lines


def test_edge_interrupts_on_each_rise() -> None:
    ioapic = with_entry(3, 0x45)
    assert drive(ioapic, 3, 1) == (DELIVERED, Message(0x45))
    assert drive(ioapic, 3, 1) == (IGNORED, None)
    assert drive(ioapic, 3, 0) == (DELIVERED, None)
    assert drive(ioapic, 3, 1) == (DELIVERED, Message(0x45))
    assert read(ioapic, 0x16) == 0x45  # no remote IRR
    assert ioapic.delivered[3] == 2


def test_message_has_the_destination_of_the_high_half() -> None:
    ioapic = with_entry(3, 0x8945)
    write(ioapic, 0x17, 0x03000000)
    assert drive(ioapic, 3, 1)[1] == Message(0x45, LOWEST_PRIORITY, 3, 1, LEVEL)


def test_level_sets_remote_irr_and_coalesces_until_eoi() -> None:
    ioapic = with_entry(3, 0x45 | TRIGGER_LEVEL)
    assert drive(ioapic, 3, 1) == (DELIVERED, Message(0x45, trigger_mode=LEVEL))
    assert read(ioapic, 0x16) == 0x45 | TRIGGER_LEVEL | REMOTE_IRR
    assert drive(ioapic, 3, 1)[0] == COALESCED
    drive(ioapic, 3, 0)
    assert drive(ioapic, 3, 1)[0] == COALESCED
    assert ioapic.coalesced[3] == 2


def test_eoi_of_a_level_interrupt_fires_again_while_the_line_is_high() -> None:
    ioapic = with_entry(3, 0x45 | TRIGGER_LEVEL)
    drive(ioapic, 3, 1)
    assert ioapic.end_of_interrupt(0x44, 0) == ()
    assert ioapic.end_of_interrupt(0x45, 0) == (Message(0x45, trigger_mode=LEVEL),)
    drive(ioapic, 3, 0)
    assert ioapic.end_of_interrupt(0x45, 0) == ()
    assert read(ioapic, 0x16) == 0x45 | TRIGGER_LEVEL


def test_eoi_reaches_every_entry_with_the_vector() -> None:
    ioapic = Ioapic()
    for pin in (2, 7, 23):
        write(ioapic, 0x10 + 2 * pin, 0x45 | TRIGGER_LEVEL)
        drive(ioapic, pin, 1)
        drive(ioapic, pin, 0)
    write(ioapic, 0x10 + 2 * 7, 0x46 | TRIGGER_LEVEL)  # moved away meanwhile
    ioapic.end_of_interrupt(0x45, 0)
    assert [read(ioapic, 0x10 + 2 * pin) & REMOTE_IRR for pin in (2, 7, 23)] == [0, REMOTE_IRR, 0]


def test_directed_eoi_register_of_version_0x20() -> None:
    ioapic = with_entry(3, 0x45 | TRIGGER_LEVEL)
    drive(ioapic, 3, 1)
    assert ioapic.write(EOIR, 4, 0x45, 0) == (Message(0x45, trigger_mode=LEVEL),)
    assert ioapic.read(EOIR, 4, 0) == 0


def test_version_0x11_has_no_eoi_register() -> None:
    ioapic = Ioapic(version=0x11)
    write(ioapic, 0x16, 0x45 | TRIGGER_LEVEL)
    drive(ioapic, 3, 1)
    assert ioapic.write(EOIR, 4, 0x45, 0) == ()
    assert ioapic.ignored == 1


def test_interrupt_that_no_local_apic_accepts_waits_for_no_eoi() -> None:
    ioapic = with_entry(3, 0x45 | TRIGGER_LEVEL)
    write(ioapic, 0x18, 0x45 | TRIGGER_LEVEL)
    message = drive(ioapic, 3, 1)[1]
    assert drive(ioapic, 4, 1)[1] == message
    assert message is not None
    ioapic.refused(message)
    assert (read(ioapic, 0x16) & REMOTE_IRR, read(ioapic, 0x18) & REMOTE_IRR) == (0, REMOTE_IRR)
    assert drive(ioapic, 3, 1)[0] == DELIVERED
    ioapic.refused(message)
    assert ioapic.end_of_interrupt(0x45, 0) == (message, message)


def test_switching_to_edge_and_back_clears_remote_irr() -> None:
    ioapic = with_entry(3, 0x45 | TRIGGER_LEVEL)
    drive(ioapic, 3, 1)
    assert write(ioapic, 0x16, 0x45 | MASKED) == ()
    assert read(ioapic, 0x16) == 0x45 | MASKED
    assert write(ioapic, 0x16, 0x45 | TRIGGER_LEVEL) == (Message(0x45, trigger_mode=LEVEL),)


def test_masked_edge_is_lost() -> None:
    ioapic = with_entry(3, 0x45 | MASKED)
    assert drive(ioapic, 3, 1)[0] == IGNORED
    assert write(ioapic, 0x16, 0x45) == ()


def test_masked_level_fires_when_it_is_unmasked() -> None:
    ioapic = with_entry(3, 0x45 | MASKED | TRIGGER_LEVEL)
    assert drive(ioapic, 3, 1)[0] == IGNORED
    assert write(ioapic, 0x16, 0x45 | TRIGGER_LEVEL) == (Message(0x45, trigger_mode=LEVEL),)


def test_mask_does_not_touch_an_interrupt_that_was_sent() -> None:
    ioapic = with_entry(3, 0x45 | TRIGGER_LEVEL)
    drive(ioapic, 3, 1)
    write(ioapic, 0x16, 0x45 | TRIGGER_LEVEL | MASKED)
    assert read(ioapic, 0x16) & REMOTE_IRR
    assert ioapic.end_of_interrupt(0x45, 0) == ()
    assert not read(ioapic, 0x16) & REMOTE_IRR


def test_level_triggered_nmi_is_an_edge() -> None:
    ioapic = with_entry(3, NMI << 8 | TRIGGER_LEVEL)
    assert drive(ioapic, 3, 1)[1] == Message(0, NMI)
    assert not read(ioapic, 0x16) & REMOTE_IRR
    assert drive(ioapic, 3, 1)[1] is None


def test_polarity_is_only_stored_where_lines_say_asserted() -> None:
    ioapic = with_entry(3, 0x45 | POLARITY_LOW)
    assert drive(ioapic, 3, 1)[1] == Message(0x45)


# Resample


def test_eoi_lowers_a_line_its_owner_holds_and_asks_for_a_new_sample() -> None:
    ioapic = with_entry(3, 0x45 | TRIGGER_LEVEL)
    ioapic.resample_lines = 1 << 3
    drive(ioapic, 3, 1)
    assert ioapic.end_of_interrupt(0x45, 0) == (PinEnded(3),)
    assert ioapic.end_of_interrupt(0x45, 0) == ()
    assert drive(ioapic, 3, 1)[0] == DELIVERED


def test_unmasking_asks_the_device_before_it_interrupts() -> None:
    ioapic = with_entry(3, 0x45 | TRIGGER_LEVEL | MASKED)
    ioapic.resample_lines = 1 << 3
    drive(ioapic, 3, 1)
    assert write(ioapic, 0x16, 0x45 | TRIGGER_LEVEL) == (PinEnded(3),)
    assert drive(ioapic, 3, 1)[0] == DELIVERED


# Storms


def storming() -> Ioapic:
    ioapic = with_entry(3, 0x45 | TRIGGER_LEVEL)
    drive(ioapic, 3, 1)
    for _ in range(STORM_EOIS - 1):
        assert len(ioapic.end_of_interrupt(0x45, 1000)) == 1
    assert ioapic.end_of_interrupt(0x45, 1000) == (WakeAt(1000 + STORM_DELAY),)
    return ioapic


def test_line_that_is_never_lowered_is_held_back_for_a_while() -> None:
    ioapic = storming()
    assert drive(ioapic, 3, 1)[0] == COALESCED
    assert ioapic.expire(1000 + STORM_DELAY - 1) == ()
    assert ioapic.expire(1000 + STORM_DELAY) == (Message(0x45, trigger_mode=LEVEL),)
    assert ioapic.wake_at is None
    assert len(ioapic.end_of_interrupt(0x45, 2000)) == 1


def test_line_that_is_lowered_meanwhile_is_held_back_no_more() -> None:
    ioapic = storming()
    drive(ioapic, 3, 0)
    assert drive(ioapic, 3, 1)[0] == DELIVERED
    assert ioapic.expire(1000 + STORM_DELAY) == ()


def test_eoi_with_the_line_low_ends_a_storm() -> None:
    ioapic = with_entry(3, 0x45 | TRIGGER_LEVEL)
    for _ in range(STORM_EOIS):
        drive(ioapic, 3, 1)
        ioapic.end_of_interrupt(0x45, 0)
        drive(ioapic, 3, 0)
        ioapic.end_of_interrupt(0x45, 0)
    assert ioapic.wake_at is None


# State


def test_restored_ioapic_goes_on_where_the_old_one_was() -> None:
    old = storming()
    write(old, 0, 0x05000000)
    write(old, 0x14, 0x31 | TRIGGER_LEVEL)
    old.set_line(2, 1)
    new = Ioapic.from_state(old.state(5000), now=1_000_000)
    assert new.state(1_000_000) == old.state(5000)
    assert new.wake_at == 1_000_000 + STORM_DELAY - 4000
    for ioapic, now in ((old, 1000 + STORM_DELAY), (new, 996_000 + STORM_DELAY)):
        assert ioapic.expire(now - 1) == ()
        assert ioapic.expire(now) == (Message(0x45, trigger_mode=LEVEL),)
        assert ioapic.end_of_interrupt(0x31, now) == (Message(0x31, trigger_mode=LEVEL),)


def test_interrupt_that_was_due_when_kvm_saved_it_comes_at_once() -> None:
    state = IoapicState(current_interrupt_level_bitmap=1 << 3, redirect_table=[MASKED] * 24)
    state.redirect_table[3] = 0x45 | TRIGGER_LEVEL
    ioapic = Ioapic.from_state(state, now=77)
    assert ioapic.wake_at == 77
    assert ioapic.expire(77) == (Message(0x45, trigger_mode=LEVEL),)


def test_state_of_another_number_of_pins_is_refused_and_nothing_changes() -> None:
    ioapic = with_entry(3, 0x45)
    with pytest.raises(InvalidArgument, match="120 pins, not 24"):
        ioapic.set_state(Ioapic(120).state(0), 0)
    assert drive(ioapic, 3, 1)[1] == Message(0x45)


# Entries


def test_an_entry_that_was_written_in_service_counts_for_local_apics_from_the_end_on() -> None:
    ioapic = with_entry(3, 0x45 | TRIGGER_LEVEL)
    drive(ioapic, 3, 1)
    drive(ioapic, 3, 0)
    assert ioapic.end_of_interrupt(0x45, 0) == ()
    drive(ioapic, 3, 1)
    drive(ioapic, 3, 0)
    write(ioapic, 0x17, 5 << 24)
    assert ioapic.end_of_interrupt(0x45, 0) == (EntriesChanged(1 << 3),)


def test_an_entry_written_as_it_is_has_not_changed() -> None:
    ioapic = with_entry(3, 0x45 | TRIGGER_LEVEL)
    ioapic.write(IOREGSEL, 4, 0x16, 0)
    assert ioapic.write(IOWIN, 4, 0x45 | TRIGGER_LEVEL, 0) == ()


def test_after_set_state_every_entry_may_be_another() -> None:
    ioapic = Ioapic()
    assert ioapic.set_state(Ioapic().state(0), 5) == (EntriesChanged((1 << 24) - 1), WakeAt(None))
