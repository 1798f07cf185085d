"""The local APIC, register by register and mode by mode, from the Intel SDM vol. 3, chapter 12."""

from __future__ import annotations

from typing import Any

import pytest

from irqchip_core.errors import InvalidArgument
from irqchip_core.x86.effects import ApicBaseChanged, Effects, EoiBroadcast
from irqchip_core.x86.lapic import registers as reg
from irqchip_core.x86.lapic.core import COALESCED, DELIVERED, IGNORED, NO_VECTOR
from irqchip_core.x86.lapic.events import PendingEvents
from irqchip_core.x86.lapic.lapic import Lapic
from irqchip_core.x86.msi import EDGE, EXTINT, INIT, LEVEL, LOWEST_PRIORITY, NMI, REMOTE_READ, SMI, STARTUP, Message
from irqchip_core.x86.state import LapicState

MASKED = reg.LVT_MASKED
LVTS = (reg.LVT_CMCI, *range(reg.LVT_TIMER, reg.LVT_ERROR + 0x10, 0x10))
X2APIC = 0xFEE00C00


def lapic(apic_id: int = 0, *, enabled: bool = True, x2apic: bool = False, **options: Any) -> Lapic:
    made = Lapic(apic_id, timer_hz=10**9, tsc_hz=options.pop("tsc_hz", 2 * 10**9), **options)
    if enabled:
        write(made, reg.SPIV, 0x1FF)
    if x2apic:
        assert made.write_msr(reg.IA32_APIC_BASE, X2APIC, 0) == (ApicBaseChanged(X2APIC),)
    return made


def read(apic: Lapic, offset: int) -> int:
    return apic.read(offset, 4, 0)


def write(apic: Lapic, offset: int, value: int) -> Effects:
    return apic.write(offset, 4, value, 0)


def msr(offset: int) -> int:
    return 0x800 + (offset >> 4)


def esr(apic: Lapic) -> int:
    write(apic, reg.ESR, 0)
    return read(apic, reg.ESR)


def serve(apic: Lapic, *vectors: int) -> None:
    """Bring the vectors into service."""
    for vector in vectors:
        apic.accept(Message(vector))
        assert apic.acknowledge() == vector


# Registers


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (reg.ID, 0x05000000),
        (reg.VERSION, 0x01060014),
        (reg.TPR, 0),
        (reg.APR, 0),
        (reg.PPR, 0),
        (reg.RRD, 0),
        (reg.LDR, 0),
        (reg.DFR, 0xFFFFFFFF),
        (reg.SPIV, 0xFF),
        (reg.ESR, 0),
        (reg.ICR_LOW, 0),
        (reg.ICR_HIGH, 0),
        *[(lvt, MASKED) for lvt in LVTS],
        (reg.TIMER_INITIAL_COUNT, 0),
        (reg.TIMER_CURRENT_COUNT, 0),
        (reg.TIMER_DIVIDE, 0),
        *[(offset, 0) for offset in range(reg.ISR, reg.ESR, 0x10)],
    ],
)
def test_reset_values(offset: int, value: int) -> None:
    assert read(lapic(5, enabled=False), offset) == value


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (reg.TPR, 0xFF),
        (reg.LDR, 0xFF000000),
        (reg.DFR, 0xFFFFFFFF),
        (reg.SPIV, 0x13FF),
        (reg.ICR_HIGH, 0xFF000000),
        (reg.LVT_CMCI, 0x107FF),
        (reg.LVT_TIMER, 0x700FF),
        (reg.LVT_THERMAL, 0x107FF),
        (reg.LVT_PERFORMANCE, 0x107FF),
        (reg.LVT_LINT0, 0x1A7FF),
        (reg.LVT_LINT1, 0x1A7FF),
        (reg.LVT_ERROR, 0x100FF),
        (reg.TIMER_DIVIDE, 0xB),
    ],
)
def test_writable_bits(offset: int, value: int) -> None:
    apic = lapic()
    write(apic, offset, 0xFFFFFFFF)
    assert read(apic, offset) == value


def test_dfr_reads_ones_in_its_reserved_bits() -> None:
    apic = lapic()
    write(apic, reg.DFR, 0)
    assert read(apic, reg.DFR) == 0x0FFFFFFF


def test_icr_low_keeps_its_defined_bits_and_is_never_busy() -> None:
    apic = lapic()
    write(apic, reg.ICR_LOW, 0xFFFFFFFF & ~0x700)
    assert read(apic, reg.ICR_LOW) == 0xCC8FF | 0x4000


@pytest.mark.parametrize(
    "offset", [reg.ID, reg.VERSION, reg.APR, reg.PPR, reg.ISR, reg.TMR, reg.IRR, reg.TIMER_CURRENT_COUNT]
)
def test_read_only_registers_stay(offset: int) -> None:
    apic = lapic(3)
    before = read(apic, offset)
    assert write(apic, offset, ~before & 0xFFFFFFFF) == ()
    assert read(apic, offset) == before
    assert apic.ignored == 1
    assert esr(apic) == 0


@pytest.mark.parametrize("offset", [0x000, 0x010, 0x040, 0x070, 0x290, 0x2E0, 0x3A0, 0x3D0, 0x3F0])
def test_reserved_registers_are_an_error(offset: int) -> None:
    apic = lapic()
    assert read(apic, offset) == 0
    assert esr(apic) == reg.ESR_ILLEGAL_REGISTER
    write(apic, offset, 1)
    assert esr(apic) == reg.ESR_ILLEGAL_REGISTER


def test_without_cmci_its_entry_is_reserved_and_not_counted() -> None:
    apic = lapic(cmci=False, eoi_suppression=False)
    assert read(apic, reg.VERSION) == 0x00050014
    write(apic, reg.LVT_CMCI, 0)
    assert esr(apic) == reg.ESR_ILLEGAL_REGISTER


def test_parts_of_a_word_can_be_read_but_only_words_written() -> None:
    apic = lapic(0x5A)
    assert [apic.read(reg.ID + first, 1, 0) for first in range(4)] == [0, 0, 0, 0x5A]
    assert apic.read(reg.ID + 2, 2, 0) == 0x5A00
    for offset, size in ((reg.ID, 8), (reg.ID + 1, 4), (reg.ID + 4, 4), (0x400, 4), (0xFFF, 1), (0x1000, 4)):
        assert apic.read(offset, size, 0) == 0
    for offset, size in ((reg.TPR, 1), (reg.TPR, 2), (reg.TPR, 8), (reg.TPR + 1, 4), (0x400, 4), (0x1080, 4)):
        assert apic.write(offset, size, 0x20, 0) == ()
    assert read(apic, reg.TPR) == 0
    assert apic.ignored == 12


def test_irr_isr_and_tmr_show_256_bits() -> None:
    apic = lapic()
    apic.accept(Message(0x45, trigger_mode=LEVEL))
    apic.accept(Message(0xFF))
    assert (read(apic, reg.IRR + 0x20), read(apic, reg.IRR + 0x70)) == (0x20, 0x80000000)
    assert (read(apic, reg.TMR + 0x20), read(apic, reg.TMR + 0x70)) == (0x20, 0)
    apic.acknowledge()
    assert (read(apic, reg.IRR + 0x70), read(apic, reg.ISR + 0x70)) == (0, 0x80000000)


# Accepting, priorities, end of interrupt


def test_interrupt_from_request_to_end() -> None:
    apic = lapic()
    assert apic.accept(Message(0x45)) == DELIVERED
    assert apic.accept(Message(0x45)) == COALESCED
    assert apic.pending_vector() == 0x45
    assert apic.acknowledge() == 0x45
    assert apic.accept(Message(0x45)) == DELIVERED  # one in service, one requested
    assert apic.pending_vector() == NO_VECTOR
    assert write(apic, reg.EOI, 0) == ()
    assert apic.acknowledge() == 0x45
    assert (apic.delivered[0x45], apic.coalesced[0x45], apic.ended[0x45]) == (2, 1, 1)


def test_higher_class_interrupts_lower_and_not_the_reverse() -> None:
    apic = lapic()
    serve(apic, 0x45)
    apic.accept(Message(0x4F))  # same class
    assert apic.pending_vector() == NO_VECTOR
    serve(apic, 0x51)
    apic.end_of_interrupt()
    assert apic.pending_vector() == NO_VECTOR
    apic.end_of_interrupt()
    assert apic.acknowledge() == 0x4F


def test_vectors_of_one_class_are_taken_from_the_highest() -> None:
    apic = lapic()
    for vector in (0x41, 0x4E, 0x43):
        apic.accept(Message(vector))
    taken = []
    for _ in range(3):
        taken.append(apic.acknowledge())
        apic.end_of_interrupt()
    assert taken == [0x4E, 0x43, 0x41]


@pytest.mark.parametrize(
    ("tpr", "in_service", "ppr"),
    [(0, (), 0), (0x5A, (), 0x5A), (0x35, (0x45,), 0x40), (0x45, (0x47,), 0x45), (0x5A, (0x47,), 0x5A)],
)
def test_ppr(tpr: int, in_service: tuple[int, ...], ppr: int) -> None:
    apic = lapic()
    serve(apic, *in_service)
    write(apic, reg.TPR, tpr)
    assert read(apic, reg.PPR) == ppr


def test_tpr_holds_back_its_class_and_below() -> None:
    apic = lapic()
    apic.accept(Message(0x45))
    write(apic, reg.TPR, 0x40)
    assert apic.pending_vector() == NO_VECTOR
    write(apic, reg.TPR, 0x3F)
    assert apic.pending_vector() == 0x45


def test_cr8_is_the_class_of_the_task_priority() -> None:
    apic = lapic()
    write(apic, reg.TPR, 0x5A)
    assert apic.cr8 == 5
    apic.cr8 = 7
    assert read(apic, reg.TPR) == 0x70


@pytest.mark.parametrize(
    ("tpr", "requested", "in_service", "apr"),
    [(0x5A, 0x45, (), 0x5A), (0x3A, 0x45, (), 0x40), (0x3A, 0x30, (0x51,), 0x50), (0x5A, 0x30, (0x51,), 0x50)],
)
def test_arbitration_priority(tpr: int, requested: int, in_service: tuple[int, ...], apr: int) -> None:
    apic = lapic()
    serve(apic, *in_service)
    write(apic, reg.TPR, tpr)
    apic.accept(Message(requested))
    assert read(apic, reg.APR) == apr


def test_acknowledging_nothing_gives_the_spurious_vector() -> None:
    apic = lapic()
    write(apic, reg.SPIV, 0x1E7)
    apic.accept(Message(0x45))
    write(apic, reg.TPR, 0xF0)
    assert apic.acknowledge() == 0xE7
    assert (apic.isr, apic.spurious) == (0, 1)


def test_eoi_of_a_level_interrupt_is_broadcast_and_of_an_edge_is_not() -> None:
    apic = lapic()
    apic.accept(Message(0x45, trigger_mode=LEVEL))
    apic.acknowledge()
    assert write(apic, reg.EOI, 0) == (EoiBroadcast(0x45),)
    serve(apic, 0x45)
    assert apic.tmr == 0
    assert write(apic, reg.EOI, 0) == ()
    assert write(apic, reg.EOI, 0) == ()


def test_eoi_broadcast_suppression() -> None:
    apic = lapic()
    write(apic, reg.SPIV, 0x11FF)
    apic.accept(Message(0x45, trigger_mode=LEVEL))
    apic.acknowledge()
    assert write(apic, reg.EOI, 0) == ()
    without = lapic(eoi_suppression=False)
    write(without, reg.SPIV, 0x11FF)
    assert read(without, reg.SPIV) == 0x1FF


# Events


@pytest.mark.parametrize(
    ("message", "events"),
    [
        (Message(0, NMI), PendingEvents(nmis=1)),
        (Message(0, SMI), PendingEvents(smi=True)),
        (Message(0, INIT), PendingEvents(init=True)),
        (Message(0x9A, STARTUP), PendingEvents(startup_vector=0x9A)),
        (Message(0, EXTINT), PendingEvents(extint=True)),
    ],
)
@pytest.mark.parametrize("enabled", [False, True])  # by software: they come through all the same
def test_messages_besides_vectors(message: Message, events: PendingEvents, enabled: bool) -> None:
    apic = lapic(enabled=enabled)
    assert apic.take_events() is None
    assert apic.accept(message) == DELIVERED
    assert apic.take_events() == events
    assert apic.take_events() is None


def test_two_nmis_are_kept_and_no_more() -> None:
    apic = lapic()
    assert [apic.accept(Message(0, NMI)) for _ in range(4)] == [DELIVERED, DELIVERED, COALESCED, COALESCED]
    assert apic.take_events() == PendingEvents(nmis=2)


def test_init_forgets_an_earlier_startup_and_the_newest_startup_counts() -> None:
    apic = lapic()
    for message in (Message(1, STARTUP), Message(0, INIT), Message(2, STARTUP), Message(3, STARTUP)):
        apic.accept(message)
    assert apic.take_events() == PendingEvents(init=True, startup_vector=3)


def test_init_forgets_an_earlier_nmi_and_keeps_a_later_one() -> None:
    apic = lapic()
    for message in (Message(0, NMI), Message(0, EXTINT), Message(0, INIT), Message(0, NMI)):
        assert apic.accept(message) == DELIVERED
    assert apic.take_events() == PendingEvents(init=True, nmis=1)
    assert [apic.accept(Message(0, INIT)) for _ in range(2)] == [DELIVERED, COALESCED]


@pytest.mark.parametrize(("trigger_mode", "level"), [(EDGE, 0), (EDGE, 1), (LEVEL, 1)])
def test_an_init_of_each_form(trigger_mode: int, level: int) -> None:
    apic = lapic()
    assert apic.accept(Message(0, INIT, trigger_mode=trigger_mode, level=level)) == DELIVERED
    assert apic.take_events() == PendingEvents(init=True)


def test_init_deassert_and_remote_read_mean_nothing() -> None:
    apic = lapic()
    assert apic.accept(Message(0, INIT, trigger_mode=LEVEL, level=0)) == IGNORED
    assert apic.accept(Message(0, REMOTE_READ)) == IGNORED
    assert apic.take_events() is None
    assert apic.ignored == 2


def test_init_resets_all_but_id_and_base() -> None:
    apic = lapic(5, bsp=True)
    serve(apic, 0x45)
    for offset in (reg.TPR, reg.LDR, reg.DFR, reg.LVT_TIMER, reg.TIMER_DIVIDE, reg.TIMER_INITIAL_COUNT):
        write(apic, offset, 0x010000EB)
    apic.write_msr(reg.IA32_APIC_BASE, 0xFED00900, 0)
    apic.accept(Message(0, NMI))
    apic.init()
    fresh = lapic(5, enabled=False, bsp=True)
    assert [read(apic, offset) for offset in range(0x20, 0x3F0, 0x10)] == [
        read(fresh, offset) for offset in range(0x20, 0x3F0, 0x10)
    ]
    assert apic.apic_base == 0xFED00900
    assert apic.wake_at is None
    assert apic.take_events() == PendingEvents(nmis=1)


# Software and hardware disable


def test_software_disabled_apic_masks_its_lvt_and_refuses_interrupts_but_keeps_pending_ones() -> None:
    apic = lapic()
    write(apic, reg.LVT_LINT0, 0x700)
    apic.accept(Message(0x45))
    write(apic, reg.SPIV, 0xFF)
    assert read(apic, reg.LVT_LINT0) == 0x700 | MASKED
    write(apic, reg.LVT_LINT0, 0x700)
    assert read(apic, reg.LVT_LINT0) == 0x700 | MASKED
    assert apic.accept(Message(0x46)) == IGNORED
    assert apic.pending_vector() == 0x45
    assert write(apic, reg.ICR_LOW, 0x4045) == (Message(0x45),)  # it can still send


def test_clearing_en_loses_everything_and_the_page_is_gone() -> None:
    apic = lapic(bsp=True)
    serve(apic, 0x45)
    assert apic.write_msr(reg.IA32_APIC_BASE, 0xFEE00100, 0) == (ApicBaseChanged(0xFEE00100),)
    assert read(apic, reg.ID) == 0xFFFFFFFF
    assert write(apic, reg.SPIV, 0x1FF) == ()
    assert apic.accept(Message(0, NMI)) == IGNORED
    apic.write_msr(reg.IA32_APIC_BASE, 0xFEE00900, 0)
    assert (read(apic, reg.SPIV), apic.isr) == (0xFF, 0)


def test_relocation() -> None:
    apic = lapic()
    assert apic.write_msr(reg.IA32_APIC_BASE, 0x12345800, 0) == (ApicBaseChanged(0x12345800),)
    assert apic.read_msr(reg.IA32_APIC_BASE, 0) == 0x12345800
    assert read(apic, reg.SPIV) == 0x1FF


# Mode switches (SDM figure 12-27)

DISABLED, XAPIC, X2, INVALID = 0xFEE00000, 0xFEE00800, 0xFEE00C00, 0xFEE00400


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ((XAPIC,), True),
        ((X2,), True),
        ((DISABLED,), True),
        ((INVALID,), False),
        ((X2, X2), True),
        ((X2, XAPIC), False),
        ((X2, DISABLED), True),
        ((X2, INVALID), False),
        ((X2, DISABLED, XAPIC), True),
        ((DISABLED, X2), False),
        ((DISABLED, INVALID), False),
    ],
)
def test_mode_switches(path: tuple[int, ...], allowed: bool) -> None:
    apic = lapic()
    *before, last = path
    for value in before:
        assert apic.write_msr(reg.IA32_APIC_BASE, value, 0) is not None
    base = apic.apic_base
    assert (apic.write_msr(reg.IA32_APIC_BASE, last, 0) is not None) == allowed
    assert apic.apic_base == (last if allowed else base)


@pytest.mark.parametrize("value", [XAPIC | 1, XAPIC | 1 << 9, XAPIC | 1 << 36, XAPIC | 1 << 63])
def test_reserved_bits_of_the_base_fault(value: int) -> None:
    assert lapic(address_bits=36).write_msr(reg.IA32_APIC_BASE, value, 0) is None


def test_without_x2apic_its_bit_is_reserved() -> None:
    assert lapic(x2apic=False).write_msr(reg.IA32_APIC_BASE, X2, 0) is not None  # the helper's argument: no switch
    made = Lapic(0, timer_hz=1, x2apic=False)
    assert made.write_msr(reg.IA32_APIC_BASE, X2, 0) is None


# x2APIC


def test_x2apic_registers_are_msrs_and_the_page_is_gone() -> None:
    apic = lapic(x2apic=True)
    assert apic.write_msr(msr(reg.TPR), 0x5A, 0) == ()
    assert apic.read_msr(msr(reg.TPR), 0) == 0x5A
    assert read(apic, reg.TPR) == 0xFFFFFFFF
    assert lapic().read_msr(msr(reg.TPR), 0) is None
    assert lapic().write_msr(msr(reg.TPR), 0, 0) is None


def test_x2apic_id_and_logical_id_have_32_bits() -> None:
    apic = lapic(0x12345, x2apic=True)
    assert apic.read_msr(msr(reg.ID), 0) == 0x12345
    assert apic.read_msr(msr(reg.LDR), 0) == 0x1234_0020


def test_switch_to_x2apic_keeps_pending_interrupts() -> None:
    apic = lapic()
    apic.accept(Message(0x45))
    apic.write_msr(reg.IA32_APIC_BASE, X2, 0)
    assert apic.pending_vector() == 0x45
    assert apic.read_msr(msr(reg.SPIV), 0) == 0x1FF


READABLE = {0x2, 0x3, 0x8, 0xA, 0xD, 0xF, *range(0x10, 0x29), 0x2F, 0x30, *range(0x32, 0x3A), 0x3E}
WRITABLE = {0x8, 0xB, 0xF, 0x28, 0x2F, 0x30, *range(0x32, 0x39), 0x3E, 0x3F}


def test_x2apic_address_space_is_that_of_table_12_6() -> None:
    assert {n for n in range(0x100) if lapic(x2apic=True).read_msr(0x800 + n, 0) is not None} == READABLE
    assert {n for n in range(0x100) if lapic(x2apic=True).write_msr(0x800 + n, 0, 0) is not None} == WRITABLE


@pytest.mark.parametrize(
    ("offset", "reserved"),
    [
        (reg.TPR, 0x100),
        (reg.EOI, 1),
        (reg.ESR, 1),
        (reg.SPIV, 0x400),
        (reg.LVT_TIMER, 0x100),
        (reg.LVT_LINT0, 0x800),
        (reg.LVT_ERROR, 0x2000),
        (reg.TIMER_DIVIDE, 4),
        (reg.ICR_LOW, 1 << 13),
        (reg.ICR_LOW, 1 << 20),
        (reg.SELF_IPI, 0x100),
        (reg.TIMER_INITIAL_COUNT, 1 << 32),
    ],
)
def test_x2apic_reserved_bits_fault_and_change_nothing(offset: int, reserved: int) -> None:
    apic = lapic(x2apic=True)
    before = apic.state(0)
    assert apic.write_msr(msr(offset), reserved, 0) is None
    assert apic.state(0) == before


def test_x2apic_icr_has_64_bits() -> None:
    apic = lapic(x2apic=True)
    assert apic.write_msr(msr(reg.ICR_LOW), 0x12345678_00005045, 0) == (Message(0x45, destination=0x12345678),)
    assert apic.read_msr(msr(reg.ICR_LOW), 0) == 0x12345678_00004045  # bit 12 is ignored


def test_self_ipi_register() -> None:
    apic = lapic(x2apic=True)
    assert apic.write_msr(msr(reg.SELF_IPI), 0x45, 0) == ()
    assert apic.pending_vector() == 0x45
    assert apic.read_msr(msr(reg.SELF_IPI), 0) is None
    assert apic.read_msr(msr(reg.ICR_LOW), 0) == 0


def test_init_in_x2apic_mode_keeps_mode_and_ids() -> None:
    apic = lapic(0x123, x2apic=True)
    apic.init()
    assert (apic.read_msr(msr(reg.ID), 0), apic.read_msr(msr(reg.LDR), 0)) == (0x123, 0x12_0008)


# ICR


@pytest.mark.parametrize(
    ("low", "message"),
    [
        (0x4045, Message(0x45, destination=7)),
        (0x4145, Message(0x45, LOWEST_PRIORITY, 7)),
        (0x4200, Message(0, SMI, 7)),
        (0x4400, Message(0, NMI, 7)),
        (0x4500, Message(0, INIT, 7)),
        (0x8500, Message(0, INIT, 7, trigger_mode=LEVEL, level=0)),
        (0x469A, Message(0x9A, STARTUP, 7)),
        (0x4845, Message(0x45, destination=7, destination_mode=1)),
        (0x84045, Message(0x45, destination=7, shorthand=2)),
        (0xC4045, Message(0x45, destination=7, shorthand=3)),
    ],
)
def test_icr_delivery_modes_and_shorthands(low: int, message: Message) -> None:
    apic = lapic()
    write(apic, reg.ICR_HIGH, 0x07000000)
    assert write(apic, reg.ICR_LOW, low) == (message,)


def test_self_shorthand_stays_at_home() -> None:
    apic = lapic()
    assert write(apic, reg.ICR_LOW, 0x44045) == ()
    assert apic.pending_vector() == 0x45
    write(apic, reg.ICR_LOW, 0x44400)
    assert apic.take_events() == PendingEvents(nmis=1)


def test_icr_remote_read_sends_nothing() -> None:
    assert write(lapic(), reg.ICR_LOW, 0x4345) == ()


# Errors


def test_esr_shows_what_happened_since_the_last_write() -> None:
    apic = lapic()
    write(apic, reg.ICR_LOW, 0x4005)
    assert read(apic, reg.ESR) == 0
    write(apic, reg.ESR, 0)
    assert read(apic, reg.ESR) == reg.ESR_SEND_ILLEGAL_VECTOR
    write(apic, reg.ESR, 0)
    assert read(apic, reg.ESR) == 0


def test_receiving_vectors_0_to_15_is_an_error_and_sets_no_irr() -> None:
    apic = lapic()
    assert apic.accept(Message(15)) == IGNORED
    assert (apic.irr, esr(apic)) == (0, reg.ESR_RECEIVE_ILLEGAL_VECTOR)


def test_illegal_self_ipi_is_an_error_of_both_ends() -> None:
    apic = lapic(x2apic=True)
    apic.write_msr(msr(reg.SELF_IPI), 3, 0)
    apic.write_msr(msr(reg.ESR), 0, 0)
    assert apic.read_msr(msr(reg.ESR), 0) == reg.ESR_SEND_ILLEGAL_VECTOR | reg.ESR_RECEIVE_ILLEGAL_VECTOR


def test_first_error_interrupts_and_writing_esr_arms_again() -> None:
    apic = lapic()
    write(apic, reg.LVT_ERROR, 0x45)
    read(apic, 0x10)
    assert apic.acknowledge() == 0x45
    apic.end_of_interrupt()
    read(apic, 0x10)
    assert apic.pending_vector() == NO_VECTOR
    write(apic, reg.ESR, 0)
    read(apic, 0x10)
    assert apic.pending_vector() == 0x45


def test_illegal_vector_of_the_error_entry_does_not_recurse() -> None:
    apic = lapic()
    write(apic, reg.LVT_ERROR, 3)
    read(apic, 0x10)
    assert esr(apic) == reg.ESR_ILLEGAL_REGISTER | reg.ESR_RECEIVE_ILLEGAL_VECTOR


# Local vector table


@pytest.mark.parametrize("lvt", [reg.LVT_CMCI, reg.LVT_THERMAL, reg.LVT_PERFORMANCE])
@pytest.mark.parametrize(
    ("mode", "events"),
    [(0, None), (SMI, PendingEvents(smi=True)), (NMI, PendingEvents(nmis=1)), (INIT, PendingEvents(init=True))],
)
def test_lvt_delivery_modes(lvt: int, mode: int, events: PendingEvents | None) -> None:
    apic = lapic()
    assert apic.deliver_lvt(lvt) == IGNORED  # masked
    write(apic, lvt, 0x45 | mode << 8)
    assert apic.deliver_lvt(lvt) == DELIVERED
    assert apic.take_events() == events
    assert apic.pending_vector() == (NO_VECTOR if events else 0x45)


def test_reserved_lvt_delivery_mode_is_ignored() -> None:
    apic = lapic()
    write(apic, reg.LVT_THERMAL, 0x345)
    assert apic.deliver_lvt(reg.LVT_THERMAL) == IGNORED


def test_performance_interrupt_masks_its_entry() -> None:
    apic = lapic()
    write(apic, reg.LVT_PERFORMANCE, 0x45)
    apic.deliver_lvt(reg.LVT_PERFORMANCE)
    assert read(apic, reg.LVT_PERFORMANCE) == 0x45 | MASKED


@pytest.mark.parametrize(("pin", "lvt"), [(0, reg.LVT_LINT0), (1, reg.LVT_LINT1)])
def test_lint_edge(pin: int, lvt: int) -> None:
    apic = lapic()
    write(apic, lvt, 0x45)
    assert [apic.set_lint(pin, level) for level in (1, 1, 0)] == [DELIVERED, IGNORED, IGNORED]
    assert apic.acknowledge() == 0x45
    assert apic.end_of_interrupt() == ()


@pytest.mark.parametrize(("pin", "lvt"), [(0, reg.LVT_LINT0), (1, reg.LVT_LINT1)])
def test_lint_level_has_a_remote_irr(pin: int, lvt: int) -> None:
    apic = lapic()
    write(apic, lvt, 0x8045)
    assert apic.set_lint(pin, 1) == DELIVERED
    assert read(apic, lvt) == 0xC045
    assert apic.set_lint(pin, 1) == COALESCED
    assert apic.acknowledge() == 0x45
    write(apic, reg.EOI, 0)
    assert (apic.pending_vector(), read(apic, lvt)) == (0x45, 0xC045)  # the pin is still asserted
    apic.acknowledge()
    apic.set_lint(pin, 0)
    write(apic, reg.EOI, 0)
    assert (apic.pending_vector(), read(apic, lvt)) == (NO_VECTOR, 0x8045)


def test_lint_level_fires_when_it_is_unmasked() -> None:
    apic = lapic()
    apic.set_lint(0, 1)
    write(apic, reg.LVT_LINT0, 0x8045)
    assert apic.pending_vector() == 0x45


def test_lint1_as_nmi_is_an_edge_whatever_its_trigger_bit() -> None:
    apic = lapic()
    write(apic, reg.LVT_LINT1, 0x8400)
    assert [apic.set_lint(1, level) for level in (1, 1)] == [DELIVERED, IGNORED]
    assert apic.take_events() == PendingEvents(nmis=1)


def test_lint0_as_extint_passes_the_8259_on() -> None:
    apic = lapic()
    apic.set_lint(0, 1)
    assert not apic.extint_requested()
    write(apic, reg.LVT_LINT0, 0x700)
    assert apic.extint_requested()
    apic.set_lint(0, 0)
    assert not apic.extint_requested()
    assert apic.take_events() is None


def test_without_an_apic_the_pins_are_intr_and_nmi() -> None:
    apic = lapic()
    apic.write_msr(reg.IA32_APIC_BASE, DISABLED, 0)
    apic.set_lint(0, 1)
    assert apic.extint_requested()
    assert apic.set_lint(1, 1) == DELIVERED
    assert apic.take_events() == PendingEvents(nmis=1)


def test_virtual_wire_of_the_boot_processor() -> None:
    assert read(lapic(enabled=False, bsp=True, virtual_wire=True), reg.LVT_LINT0) == 0x700
    assert read(lapic(enabled=False, bsp=False, virtual_wire=True), reg.LVT_LINT0) == MASKED


# State


def test_restored_lapic_goes_on_where_the_old_one_was() -> None:
    old = lapic(5)
    serve(old, 0x45)
    for message in (Message(0x31, trigger_mode=LEVEL), Message(0x62), Message(0, NMI), Message(1, STARTUP)):
        old.accept(message)
    old.set_lint(1, 1)
    read(old, 0x10)
    for offset, value in (
        (reg.TPR, 0x20), (reg.LDR, 0x04000000), (reg.DFR, 0), (reg.ICR_HIGH, 0x07000000), (reg.ICR_LOW, 0x4045),
        (reg.LVT_TIMER, 0x20050), (reg.TIMER_DIVIDE, 0xB), (reg.TIMER_INITIAL_COUNT, 1_000_000),
    ):  # fmt: skip
        write(old, offset, value)
    new = Lapic.from_state(5, old.state(400_001), 7, timer_hz=10**9, tsc_hz=2 * 10**9)
    assert new.state(7) == old.state(400_001)
    assert new.wake_at == 7 + 600_000 - 1
    assert new.take_events() == old.take_events()
    assert new.pending_vector() == old.pending_vector() == 0x62
    for apic, now in ((old, 1_000_000), (new, 7 + 599_999)):
        assert apic.expire(now) != ()
        assert apic.acknowledge() == 0x62
        assert [apic.end_of_interrupt(), apic.acknowledge(), apic.end_of_interrupt()] == [(), 0x50, ()]


def test_state_from_kvm_keeps_the_mode_and_restarts_at_the_current_count() -> None:
    regs = lapic().state(0).regs
    regs[reg.LVT_TIMER >> 4] = 0x45
    regs[reg.TIMER_DIVIDE >> 4] = 0xB
    regs[reg.TIMER_INITIAL_COUNT >> 4] = 1000
    regs[reg.TIMER_CURRENT_COUNT >> 4] = 400
    apic = lapic(x2apic=True)
    apic.set_state(LapicState(regs), now=50)
    assert apic.x2apic_mode
    assert apic.wake_at == 450
    regs[reg.TIMER_CURRENT_COUNT >> 4] = 0  # it had run out
    apic.set_state(LapicState(regs), now=50)
    assert apic.wake_at is None


def test_impossible_base_is_refused_and_nothing_changes() -> None:
    apic = lapic()
    before = apic.state(0)
    with pytest.raises(InvalidArgument, match="IA32_APIC_BASE"):
        apic.set_state(LapicState(apic_base=0xFEE00400), 0)
    assert apic.state(0) == before


@pytest.mark.parametrize(("apic_id", "hz"), [(-1, 1), (0xFFFFFFFF, 1), (0, 0)])
def test_impossible_lapics(apic_id: int, hz: int) -> None:
    with pytest.raises(InvalidArgument):
        Lapic(apic_id, timer_hz=hz)
