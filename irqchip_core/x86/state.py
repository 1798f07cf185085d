"""State records of the x86 controllers: plain data, the same for every chip.

They hold what KVM_GET_IRQCHIP, KVM_GET_LAPIC and KVM_GET_PIT2 hold, so a guest can move from one chip to
another. The metadata of a field has the values it can hold; `state_checks`
refuses all others.
"""

from __future__ import annotations

import enum
from collections.abc import Container
from typing import Any

from attrs import define, field

from irqchip_core.chip import MPState
from irqchip_core.routes import IOAPIC_PINS

IOAPIC_BASE = 0xFEC00000
"""Reset address of the IOAPIC's registers (82093AA data sheet, 3.0)."""
LAPIC_BASE = 0xFEE00000
"""Reset address of the local APIC's registers (Intel SDM vol. 3, 12.4.1)."""
LAPIC_REGISTERS = 64
"""Number of 32-bit registers of a local APIC, 16 bytes apart, that KVM saves."""
MAXIMUM_PINS = 240
"""Maximum number of inputs of an IOAPIC."""
NARROW_SELECTOR_PINS = 120
"""Number of inputs that IOREGSEL reaches with 8 bits. With more inputs it has 9 bits."""
MODE_UNKNOWN = 0xFF
"""Mode of an 8254 counter before its first control word, as in KVM."""

ELCR_MASKS = (0xF8, 0xDE)
"""By `PicSelect`: lines that can be level-triggered: all but 0, 1, 2 (timer, keyboard, cascade), 8 and 13
(clock, coprocessor)."""
PIT_WIRED_GATES = (True, True, False)
"""By counter of a PC's 8254: whether its gate is always high. The third gate is bit 0 of port 0x61, low after reset."""
KVM_PIT_FLAGS_SPEAKER_DATA_ON = 0x2
STORM_EOIS = 10_000
"""EOIs in a row that find an IOAPIC's line still asserted, after which the next interrupt is held back (as in KVM)."""
STORM_DELAY = 10_000_000
"""For how long an interrupt is held back after STORM_EOIS, in nanoseconds."""

VALUES = "values"
"""Metadata of a field: the values that it, each element of its list, or each value of its dict can hold."""
SIZE = "size"
"""Metadata of a list: the numbers of elements that it can have."""

_BYTE, _WORD, _DWORD, _QWORD = (range(1 << bits) for bits in (8, 16, 32, 64))


def _number(values: Container[int], default: int | None = 0) -> Any:
    return field(default=default, metadata={VALUES: values})


class PicSelect(enum.IntEnum):
    """One of the two 8259As."""

    PRIMARY = 0
    SECONDARY = 1


class PicInitState(enum.IntEnum):
    """The initialization command word that an 8259A expects next; ICW1 if it is operational."""

    ICW1 = 0
    ICW2 = 1
    ICW3 = 2
    ICW4 = 3


@define
class PicState:
    """One 8259A. Registers have 8 bits, bit n for line n.

    Attributes:
        last_irr: Line levels as last seen, for edge detection. Bit 2 of the primary follows from the secondary.
        irr, imr, isr: Interrupt request, mask and in-service registers.
        priority_add: Line with the highest priority, 0-7.
        irq_base: Vector of line 0, a multiple of 8.
        read_reg_select: Command-port reads give ISR instead of IRR.
        poll: The next read is a poll.
        special_mask: Special mask mode (OCW3).
        use_4_byte_icw: ICW1 announced an ICW4 (IC4).
        elcr: Edge/level control register, bit set for level. Only bits of `elcr_mask`.
        elcr_mask: Bits of ELCR that can be set: 0xF8 of the primary, 0xDE of the secondary.
        single_mode: ICW1 selected an 8259A without cascade (SNGL). KVM has no such mode.
        level_triggered: ICW1 made all lines level-triggered (LTIM). KVM has no such mode.
    """

    last_irr: int = _number(_BYTE)
    irr: int = _number(_BYTE)
    imr: int = _number(_BYTE)
    isr: int = _number(_BYTE)
    priority_add: int = _number(range(8))
    irq_base: int = _number(range(0, 1 << 8, 8))
    read_reg_select: bool = False
    poll: bool = False
    special_mask: bool = False
    init_state: PicInitState = PicInitState.ICW1
    auto_eoi: bool = False
    rotate_on_auto_eoi: bool = False
    special_fully_nested_mode: bool = False
    use_4_byte_icw: bool = False
    elcr: int = _number(_BYTE)
    elcr_mask: int = _number(_BYTE)
    single_mode: bool = False
    level_triggered: bool = False


@define
class IoapicState:
    """The IOAPIC.

    Attributes:
        base_address: Physical address of its registers, which no chip moves.
        ioregsel: Selected register, 8 bits; 9 with more than 120 pins.
        ioapicid: Id register; the id is in bits 24-27.
        current_interrupt_level_bitmap: Bit n is the level of pin n.
        redirect_table: One 64-bit redirection entry for each pin. Reserved bits are dropped, except by KVM.

    KVM's structures have no field for the following, so it drops them:

    Attributes:
        successive_eois: By pin, number of consecutive EOIs after which its line was still asserted.
        held_back: Bit n: the interrupt of pin n is held back, since the guest does not lower the line.
        held_back_for: Nanoseconds until the interrupts held back are sent; None for at once.
    """

    base_address: int = _number((IOAPIC_BASE,), IOAPIC_BASE)
    ioregsel: int = _number(range(1 << 9))
    ioapicid: int = _number(range(0, 1 << 28, 1 << 24))
    current_interrupt_level_bitmap: int = _number(range(1 << MAXIMUM_PINS))
    redirect_table: list[int] = field(
        factory=lambda: [0] * IOAPIC_PINS, metadata={VALUES: _QWORD, SIZE: range(IOAPIC_PINS, MAXIMUM_PINS + 1)}
    )
    successive_eois: dict[int, int] = field(factory=dict[int, int], metadata={VALUES: range(STORM_EOIS)})
    held_back: int = _number(range(1 << MAXIMUM_PINS))
    held_back_for: int | None = _number(range(STORM_DELAY + 1), None)


@define
class LapicState:
    """A local APIC.

    Attributes:
        regs: 64 registers of 32 bits; the one at byte offset n of the register page is ``regs[n // 16]``.
            In x2APIC mode the id has all its 32 bits (KVM_X2APIC_API_USE_32BIT_IDS), and the upper half of
            the interrupt command register is at 0x310. Reserved bits are dropped, and so are registers that follow
            from others: version, APR, PPR, in x2APIC mode LDR, and except in KVM the id.
        apic_base: IA32_APIC_BASE; None for the present value of the vCPU, as in KVM_GET_LAPIC.
        tsc_deadline: IA32_TSC_DEADLINE. 0 unless the timer is in that mode.

    A running timer continues from the current count in `regs`; a timer whose current count is 0 is stopped, unless it
    is periodic. KVM's structures have no field for the following, so it drops them:

    Attributes:
        pending_errors: The value that ESR will show after the next write of it.
        timer_elapsed: Time since the timer's count was the initial one, in 10**-9 cycles of its input clock: the
            fraction of a cycle that the counts in `regs` do not have. If it contradicts the counts, the counts
            apply. None if the timer is stopped, or in a record of KVM's.
        lint_levels: Bit n: LINTn is asserted. LINT0 of vCPU 0 follows from the PICs.
        nmis: Number of pending NMIs, 0 to 2.
        smi, init, extint: Whether such an event is pending.
        startup_vector: Vector of a pending start-up IPI, or None.
    """

    regs: list[int] = field(factory=lambda: [0] * LAPIC_REGISTERS, metadata={VALUES: _DWORD, SIZE: (LAPIC_REGISTERS,)})
    apic_base: int | None = _number(range(1 << 52), None)
    pending_errors: int = _number(_BYTE)
    timer_elapsed: int | None = _number(range(1 << 96), None)
    tsc_deadline: int = _number(_QWORD)
    lint_levels: int = _number(range(4))
    nmis: int = _number(range(3))
    smi: bool = False
    init: bool = False
    startup_vector: int | None = _number(_BYTE, None)
    extint: bool = False


class PitRwState(enum.IntEnum):
    """The byte of a PIT counter that the next access transfers."""

    NONE = 0
    LSB = 1
    MSB = 2
    WORD0 = 3
    WORD1 = 4


class PitRwMode(enum.IntEnum):
    """Access mode of a PIT counter, bits 4-5 of its control word."""

    NONE = 0
    LEAST = 1
    MOST = 2
    BOTH = 3


@define
class PitCounting:
    """State inside an 8254 counter that its registers do not show. KVM's structures have none of it.

    It belongs to one control word and one count. If the channel of the record has others, this state is ignored.

    Attributes:
        control: The control word's bits 0-5, as written.
        count_register: CR, 16 bits: the channel's `count`.
        count_written: A complete count was written since the control word.
        null_count: CR is not loaded into the counting element yet.
        load: The next CLK pulse loads CR into the counting element.
        element: CE, as of the last load.
        elapsed: CLK pulses counted since the last load; in mode 3 since the half cycle began.
        running: The counter counts, if the gate lets it.
        armed: The count has not reached 0 yet (modes 0, 1, 4, 5).
        output: Level of OUT.
        rising_edges: Rising edges of OUT since the owner last took them.
    """

    control: int = _number(range(1 << 6))
    count_register: int = _number(_WORD)
    count_written: bool = False
    null_count: bool = False
    load: bool = False
    element: int = _number(_WORD)
    elapsed: int = _number(_QWORD)
    running: bool = False
    armed: bool = False
    output: bool = True
    rising_edges: int = _number(_QWORD)


@define
class PitChannelState:
    """One 8254 counter.

    Attributes:
        count: The count as written, 1-65536 (for 0), in BCD if `bcd`.
        latched_count: The latched count, 16 bits.
        count_latched: The byte of the latched count that is read next; NONE if none is latched.
        status_latched: Whether a read-back command has latched `status`.
        read_state, write_state: The byte that is transferred next: one of those of `rw_mode`.
        reload_value: The low byte of a count whose high byte is still to be written (`write_state` is WORD1); or 0.
        rw_mode: NONE before the first control word.
        mode: Mode 0-5, or MODE_UNKNOWN before the first control word.
        gate: Level of the gate input, which is high for counters 0 and 1.
        count_load_time: Nanoseconds on the chip's clock when counting began; information only, ignored by a restore.
        counting: The rest of the state. Without it, as in a record of KVM's, or if it belongs to another count, mode,
            `rw_mode` or `bcd`, the counter loads `count` and starts anew.
    """

    count: int = _number(range(1, 0x10001), 0x10000)
    latched_count: int = _number(_WORD)
    count_latched: PitRwState = PitRwState.NONE
    status_latched: bool = False
    status: int = _number(_BYTE)
    read_state: PitRwState = PitRwState.NONE
    write_state: PitRwState = PitRwState.NONE
    reload_value: int = _number(_BYTE)
    rw_mode: PitRwMode = PitRwMode.NONE
    mode: int = _number((*range(6), MODE_UNKNOWN), MODE_UNKNOWN)
    bcd: bool = False
    gate: bool = False
    count_load_time: int = _number(range(-1 << 63, 1 << 63))
    counting: PitCounting | None = None


@define
class PitState:
    """The 8254.

    Attributes:
        channels: Its three counters.
        flags: KVM_PIT_FLAGS_SPEAKER_DATA_ON or 0.
        age: Nanoseconds since the first CLK pulse. It gives the record's place between two pulses.
    """

    channels: list[PitChannelState] = field(
        factory=lambda: [PitChannelState(gate=gate) for gate in PIT_WIRED_GATES], metadata={SIZE: (3,)}
    )
    flags: int = _number((0, KVM_PIT_FLAGS_SPEAKER_DATA_ON))
    age: int = _number(range(1 << 63))


@define
class ChipSnapshot:
    """All state of an x86 chip. What belongs to a controller that the chip does not have is None, or an empty list.

    Attributes:
        lapics: One per vCPU, from 0.
        chip_specific: State of a form that only this backend has.
        mp_states: One per vCPU; empty if the chip has no MP_STATE_GET_SET.
    """

    ioapic: IoapicState | None
    lapics: list[LapicState]
    pic_primary: PicState | None
    pic_secondary: PicState | None
    pit: PitState | None
    chip_specific: Any
    mp_states: list[MPState]
