"""State records of the x86 controllers: plain data, the same for every chip.

They hold what KVM_GET_IRQCHIP, KVM_GET_LAPIC and KVM_GET_PIT2 hold, so a guest can move from one chip to
another. The binary layouts are in `kvm_layout`.
"""

from __future__ import annotations

import enum
from typing import Any

from attrs import define, field

from irqchip_core.chip import MPState
from irqchip_core.routes import IOAPIC_PINS

IOAPIC_BASE = 0xFEC00000
"""Reset address of the IOAPIC's registers (82093AA data sheet, 3.0)."""
LAPIC_BASE = 0xFEE00000
"""Reset address of the local APIC's registers (Intel SDM vol. 3, 12.4.1)."""
LAPIC_REGISTERS = 64
"""32-bit registers of a local APIC, 16 bytes apart, that KVM saves."""


class PicSelect(enum.IntEnum):
    """Which of the two 8259s."""

    PRIMARY = 0
    SECONDARY = 1


class PicInitState(enum.IntEnum):
    """Which initialization command word the 8259 waits for; ICW1 means it is operational."""

    ICW1 = 0
    ICW2 = 1
    ICW3 = 2
    ICW4 = 3


@define
class PicState:
    """One 8259. Registers have 8 bits, bit n for line n.

    Attributes:
        last_irr: Line levels as last seen, for edge detection.
        irr, imr, isr: Interrupt request, mask and in-service registers.
        priority_add: Line with the highest priority, 0-7.
        irq_base: Vector of line 0, a multiple of 8.
        read_reg_select: Command-port reads give ISR instead of IRR.
        poll: The next read is a poll.
        special_mask: Special mask mode (OCW3).
        use_4_byte_icw: ICW1 announced an ICW4.
        elcr: Edge/level control register, bit set for level.
        elcr_mask: Bits of ELCR that can be set.
        single_mode: ICW1 said that there is no cascade. KVM has no such mode, nor the next one.
        level_triggered: ICW1 made all lines level-triggered (LTIM).
    """

    last_irr: int = 0
    irr: int = 0
    imr: int = 0
    isr: int = 0
    priority_add: int = 0
    irq_base: int = 0
    read_reg_select: bool = False
    poll: bool = False
    special_mask: bool = False
    init_state: PicInitState = PicInitState.ICW1
    auto_eoi: bool = False
    rotate_on_auto_eoi: bool = False
    special_fully_nested_mode: bool = False
    use_4_byte_icw: bool = False
    elcr: int = 0
    elcr_mask: int = 0
    single_mode: bool = False
    level_triggered: bool = False


@define
class IoapicState:
    """The IOAPIC.

    Attributes:
        base_address: Physical address of its registers.
        ioregsel: Selected register, 8 bits.
        ioapicid: Id register; the id is in bits 24-27.
        current_interrupt_level_bitmap: Bit n is the level of pin n.
        redirect_table: One 64-bit redirection entry a pin.
        successive_eois: By pin, EOIs in a row that found its line still asserted. KVM does not tell.
        held_back: Bit n: the interrupt of pin n is held back, since its guest never lowers the line.
        held_back_for: Nanoseconds until those are sent; None if there are none.
    """

    base_address: int = 0
    ioregsel: int = 0
    ioapicid: int = 0
    current_interrupt_level_bitmap: int = 0
    redirect_table: list[int] = field(factory=lambda: [0] * IOAPIC_PINS)
    successive_eois: dict[int, int] = field(factory=dict[int, int])
    held_back: int = 0
    held_back_for: int | None = None


@define
class LapicState:
    """A local APIC.

    Attributes:
        regs: 64 registers of 32 bits; the one at byte offset n of the register page is ``regs[n // 16]``.
            In x2APIC mode the id has all its 32 bits (KVM_X2APIC_API_USE_32BIT_IDS), and the upper half of
            the interrupt command register is at 0x310.

    KVM_GET_LAPIC does not tell the rest:

    Attributes:
        apic_base: IA32_APIC_BASE; None where the record came from KVM, which has it in the vCPU's MSRs.
        pending_errors: What ESR will show when it is written next.
        timer_elapsed: Time since the timer's count was the initial one, in 10**-9 cycles of its input
            clock; None if it stands still, or if only the current count in `regs` is known.
        tsc_deadline: IA32_TSC_DEADLINE.
        lint_levels: Bit n: LINTn is asserted.
        nmis: Pending NMIs, 0 to 2.
        smi, init, extint: Whether one is pending.
        startup_vector: That of a pending start-up IPI, or None.
    """

    regs: list[int] = field(factory=lambda: [0] * LAPIC_REGISTERS)
    apic_base: int | None = None
    pending_errors: int = 0
    timer_elapsed: int | None = None
    tsc_deadline: int = 0
    lint_levels: int = 0
    nmis: int = 0
    smi: bool = False
    init: bool = False
    startup_vector: int | None = None
    extint: bool = False


class PitRwState(enum.IntEnum):
    """Which byte of a PIT counter the next access moves."""

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
    """What goes on inside an 8254 counter, between the registers a program sees. KVM keeps none of it.

    Attributes:
        control: The last control word's bits 0-5, as written.
        count_register: CR, the count as written, 16 bits, in BCD if so programmed.
        count_written: A whole count was written since the control word.
        null_count: CR is not loaded into the counting element yet.
        load: The next CLK pulse loads it.
        element: CE, as it was when last loaded.
        elapsed: CLK pulses it has counted since; in mode 3 since the half cycle began.
        running: It counts, if the gate lets it.
        armed: It has not reached 0 yet (modes 0, 1, 4, 5).
        output: Level of OUT.
        rising_edges: Of OUT, since the owner last took them.
        write_latch: The byte that waits for its other half.
    """

    control: int = 0
    count_register: int = 0
    count_written: bool = False
    null_count: bool = False
    load: bool = False
    element: int = 0
    elapsed: int = 0
    running: bool = False
    armed: bool = False
    output: bool = True
    rising_edges: int = 0
    write_latch: int = 0


@define
class PitChannelState:
    """One 8254 counter.

    Attributes:
        count: Count it was last loaded with, 1-65536.
        latched_count: What a count latch holds, 16 bits.
        count_latched: Which byte of the latch is read next; NONE if not latched.
        status_latched: A read-back holds `status`.
        read_state, write_state: Which byte is moved next.
        reload_value: The count as written, 16 bits.
        mode: Mode 0-5; KVM has 0xFF before the first control word.
        gate: Level of the gate input.
        count_load_time: Nanoseconds on the chip's clock when counting began.
        counting: The rest of its state; None in a record of KVM's, whose counters start anew when restored.
    """

    count: int = 0
    latched_count: int = 0
    count_latched: PitRwState = PitRwState.NONE
    status_latched: bool = False
    status: int = 0
    read_state: PitRwState = PitRwState.NONE
    write_state: PitRwState = PitRwState.NONE
    reload_value: int = 0
    rw_mode: PitRwMode = PitRwMode.NONE
    mode: int = 0
    bcd: bool = False
    gate: bool = False
    count_load_time: int = 0
    counting: PitCounting | None = None


@define
class PitState:
    """The 8254.

    Attributes:
        channels: Its three counters.
        flags: KVM_PIT_FLAGS_*.
        age: Nanoseconds since the first CLK pulse. It places the record between two pulses.
    """

    channels: list[PitChannelState] = field(factory=lambda: [PitChannelState() for _ in range(3)])
    flags: int = 0
    age: int = 0


@define
class ChipSnapshot:
    """All state of an x86 chip.

    Attributes:
        lapics: One per vCPU, from 0.
        chip_specific: What only chips of this backend understand.
        mp_states: One per vCPU; empty if the chip has no MP_STATE_GET_SET.
    """

    ioapic: IoapicState
    lapics: list[LapicState]
    pic_primary: PicState
    pic_secondary: PicState
    pit: PitState
    chip_specific: Any
    mp_states: list[MPState]
