"""What the guest reads and writes of its local APIC: the register page, and the MSRs of x2APIC mode.

Follows the Intel SDM vol. 3, 12.4 (register page), 12.12 (x2APIC) and table 12-6 (its MSRs). The guest
can do nothing here that raises an exception of Python: an access that hardware ignores is ignored and counted, and
the answer is None where hardware raises #GP.
"""

from __future__ import annotations

from collections.abc import Callable

from irqchip_core.x86.effects import ApicBaseChanged, Effects
from irqchip_core.x86.lapic import registers as reg
from irqchip_core.x86.lapic.core import FIRST_LEGAL_VECTOR, LapicCore
from irqchip_core.x86.msi import (
    ICR_DELIVERY_STATUS,
    ICR_SHORTHAND_SHIFT,
    LOWEST_PRIORITY,
    REMOTE_READ,
    SELF,
    decode_icr,
)

_WORD = 0xFFFFFFFF
_REGISTER_OFFSETS = 0x3F0  # offsets of registers have no other bits


class LapicAccess(LapicCore):
    """A local APIC with the accesses of its guest; arguments and attributes are those of `LapicCore`."""

    __slots__ = ()

    # The register page

    def read(self, offset: int, size: int, now: int) -> int:
        """What the guest reads at `offset` of the page; `size` is 1 to 8 bytes.

        All ones while the APIC is disabled or in x2APIC mode: then it has no page.
        """
        if self.x2apic_mode or not self.hardware_enabled:
            self.ignored += 1
            return (1 << 8 * size) - 1
        if size == 4 and not offset & ~_REGISTER_OFFSETS:
            return READERS[offset >> 4](self, now)
        # Anything but an aligned word is undefined (SDM 12.4.1). As in KVM, parts of a word can be read.
        first = offset & 0xF
        if first + size > 4 or offset & ~0xF & ~_REGISTER_OFFSETS:
            self.ignored += 1
            return 0
        return READERS[offset >> 4](self, now) >> 8 * first & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int, now: int) -> Effects:
        """The guest writes `value` of `size` bytes at `offset` of the page."""
        if size != 4 or offset & ~_REGISTER_OFFSETS or self.x2apic_mode or not self.hardware_enabled:
            self.ignored += 1
            return ()
        return _WRITERS[offset >> 4](self, value & _WORD, now)

    # MSRs

    def read_msr(self, index: int, now: int) -> int | None:
        """RDMSR of IA32_APIC_BASE, IA32_TSC_DEADLINE or 0x800-0x8FF; None for #GP."""
        if index == reg.IA32_APIC_BASE:
            return self.apic_base
        if index == reg.IA32_TSC_DEADLINE:
            return self.timer.tsc_deadline if self.timer.tsc_hz else None
        offset = (index - reg.X2APIC_MSR_BASE) << 4
        if not self.x2apic_mode or offset not in _X2APIC_READABLE:
            return None
        if offset == reg.ICR_LOW:
            return self._regs[reg.ICR_HIGH >> 4] << 32 | self._regs[reg.ICR_LOW >> 4]
        if offset == reg.LVT_CMCI and offset not in self.lvt_writable:
            return None
        return READERS[offset >> 4](self, now)

    def write_msr(self, index: int, value: int, now: int, tsc: int = 0) -> Effects | None:
        """WRMSR of IA32_APIC_BASE, IA32_TSC_DEADLINE or 0x800-0x8FF; None for #GP.

        `value` has 64 bits; `tsc` is the guest's time-stamp counter now, which only IA32_TSC_DEADLINE needs.
        """
        if index == reg.IA32_APIC_BASE:
            return self._write_base(value)
        if index == reg.IA32_TSC_DEADLINE:
            return self._write_tsc_deadline(value, now, tsc)
        offset = (index - reg.X2APIC_MSR_BASE) << 4
        if not self.x2apic_mode or offset not in _X2APIC_WRITABLE:
            return None
        if offset == reg.ICR_LOW:
            if value & reg.ICR_X2APIC_RESERVED:
                return None
            self._regs[reg.ICR_HIGH >> 4] = value >> 32
            return self._command(value & _WORD)
        writable = _X2APIC_WRITABLE[offset]
        if offset == reg.SPIV:
            writable = self.spiv_writable
        elif offset in reg.LVT_WRITABLE:
            if offset not in self.lvt_writable:
                return None
            writable |= self.lvt_writable[offset]
        if value & ~writable:
            return None
        if offset == reg.SELF_IPI:
            return self._command(SELF << ICR_SHORTHAND_SHIFT | value, store=False)
        return _WRITERS[offset >> 4](self, value, now)

    def allows_base(self, value: int) -> bool:
        """Whether WRMSR of IA32_APIC_BASE takes `value`, and does not raise #GP."""
        enabled = value & reg.APIC_BASE_EN != 0
        extended = value & reg.APIC_BASE_EXTD != 0
        if value & self._base_reserved or (extended and not enabled):
            return False
        # SDM figure 12-27: x2APIC mode is entered from xAPIC mode only, and left by disabling only.
        return self.hardware_enabled if extended else not (self.x2apic_mode and enabled)

    def _write_base(self, value: int) -> Effects | None:
        if not self.allows_base(value):
            return None
        if value == self.apic_base:
            return ()
        enabled = value & reg.APIC_BASE_EN != 0
        extended = value & reg.APIC_BASE_EXTD != 0
        before = self.timer.wake_at
        if extended and not self.x2apic_mode:
            self._regs[reg.ICR_HIGH >> 4] = 0  # another format, undefined after the switch (SDM 12.12.5.1)
        self.set_base(value)
        if not enabled:  # the registers lose their contents (SDM 12.4.3)
            self._reset_registers()
        return (ApicBaseChanged(value), *self.timer_effects(before))

    def _write_tsc_deadline(self, value: int, now: int, tsc: int) -> Effects | None:
        if not self.timer.tsc_hz:
            return None
        timer = self.timer
        before = timer.wake_at
        if 0 < timer.tsc_deadline <= tsc:
            self.expire(now, tsc)
        timer.set_tsc_deadline(value, now, tsc)
        if 0 < timer.tsc_deadline <= tsc:
            self.expire(now, tsc)
        return self.timer_effects(before)

    # Registers

    def _read_reserved(self, now: int) -> int:
        self.ignored += 1
        self.report_error(reg.ESR_ILLEGAL_REGISTER)
        return 0

    def _write_reserved(self, value: int, now: int) -> Effects:
        self._read_reserved(now)
        return ()

    def _write_read_only(self, value: int, now: int) -> Effects:
        self.ignored += 1
        return ()

    def _read_id(self, now: int) -> int:
        return self.apic_id if self.x2apic_mode else (self.apic_id & reg.XAPIC_ID_MASK) << reg.XAPIC_ID_SHIFT

    def _read_ldr(self, now: int) -> int:
        return x2apic_logical_id(self.apic_id) if self.x2apic_mode else self._regs[reg.LDR >> 4]

    def _write_tpr(self, value: int, now: int) -> Effects:
        self.set_tpr(value)
        return ()

    def _write_eoi(self, value: int, now: int) -> Effects:
        return self.end_of_interrupt()

    def _write_ldr(self, value: int, now: int) -> Effects:
        self._regs[reg.LDR >> 4] = value & reg.LDR_MASK
        self.address_changed()
        return ()

    def _write_dfr(self, value: int, now: int) -> Effects:
        self._regs[reg.DFR >> 4] = value | reg.DFR_ONES
        self.address_changed()
        return ()

    def _write_spiv(self, value: int, now: int) -> Effects:
        before = self.timer.wake_at
        self.count_down(now)
        self.set_spiv(value)
        return self.timer_effects(before)

    def _write_esr(self, value: int, now: int) -> Effects:
        self._esr, self._errors = self._errors, 0
        return ()

    def _write_icr_low(self, value: int, now: int) -> Effects:
        return self._command(value)

    def _write_icr_high(self, value: int, now: int) -> Effects:
        self._regs[reg.ICR_HIGH >> 4] = value & reg.ICR_HIGH_MASK
        return ()

    def _command(self, low: int, *, store: bool = True) -> Effects:
        """Send the message of the ICR whose bits 0-31 are `low`."""
        low &= reg.ICR_LOW_MASK & ~ICR_DELIVERY_STATUS
        if store:
            self._regs[reg.ICR_LOW >> 4] = low
        message = decode_icr(self._regs[reg.ICR_HIGH >> 4] << 32 | low, self.x2apic_mode)
        mode = message.delivery_mode
        if mode <= LOWEST_PRIORITY and message.vector < FIRST_LEGAL_VECTOR:
            self.report_error(reg.ESR_SEND_ILLEGAL_VECTOR)
        if mode == REMOTE_READ:
            self.ignored += 1
            return ()
        if message.shorthand == SELF:
            self.accept(message)
            return ()
        return (message,)

    def _write_lvt(self, lvt: int, value: int, now: int) -> Effects:
        index = lvt >> 4
        value = value & self.lvt_writable[lvt] | self._regs[index] & reg.LVT_REMOTE_IRR
        if not self._regs[reg.SPIV >> 4] & reg.SPIV_SOFTWARE_ENABLE:
            value |= reg.LVT_MASKED
        if not value & reg.LVT_LEVEL:
            value &= ~reg.LVT_REMOTE_IRR
        self._regs[index] = value
        return ()

    def _write_lvt_cmci(self, value: int, now: int) -> Effects:
        if reg.LVT_CMCI not in self.lvt_writable:
            return self._write_reserved(value, now)
        return self._write_lvt(reg.LVT_CMCI, value, now)

    def _read_lvt_cmci(self, now: int) -> int:
        return self._regs[reg.LVT_CMCI >> 4] if reg.LVT_CMCI in self.lvt_writable else self._read_reserved(now)

    def _write_lvt_lint0(self, value: int, now: int) -> Effects:
        self._write_lvt(reg.LVT_LINT0, value, now)
        self.sample_lint(0)
        return ()

    def _write_lvt_lint1(self, value: int, now: int) -> Effects:
        self._write_lvt(reg.LVT_LINT1, value, now)
        self.sample_lint(1)
        return ()

    def _write_lvt_timer(self, value: int, now: int) -> Effects:
        before = self.timer.wake_at
        self.count_down(now)
        self._write_lvt(reg.LVT_TIMER, value, now)
        self.timer.set_mode(self._regs[reg.LVT_TIMER >> 4] >> reg.LVT_TIMER_MODE_SHIFT, now)
        return self.timer_effects(before)

    def _write_initial_count(self, value: int, now: int) -> Effects:
        before = self.timer.wake_at
        self.count_down(now)
        self.timer.set_initial_count(value, now)
        return self.timer_effects(before)

    def _write_divide(self, value: int, now: int) -> Effects:
        before = self.timer.wake_at
        self.count_down(now)
        self.timer.set_divide(value, now)
        return self.timer_effects(before)


def x2apic_logical_id(apic_id: int) -> int:
    """The LDR in x2APIC mode: bits 16-31 the cluster, one of bits 0-15 the place in it (SDM 12.12.10.2)."""
    return (apic_id >> 4 & 0xFFFF) << 16 | 1 << (apic_id & 0xF)


_Reader = Callable[[LapicAccess, int], int]
_Writer = Callable[[LapicAccess, int, int], Effects]


def _stored(offset: int) -> _Reader:
    index = offset >> 4
    return lambda lapic, now: lapic._regs[index]


def _word_of(name: str, word: int) -> _Reader:
    shift = 32 * word
    if name == "irr":
        return lambda lapic, now: lapic.irr >> shift & _WORD
    if name == "isr":
        return lambda lapic, now: lapic.isr >> shift & _WORD
    return lambda lapic, now: lapic.tmr >> shift & _WORD


def _lvt_writer(lvt: int) -> _Writer:
    return lambda lapic, value, now: lapic._write_lvt(lvt, value, now)


def _readers() -> list[_Reader]:
    table: list[_Reader] = [LapicAccess._read_reserved] * 64
    for offset in (reg.SPIV, reg.DFR, reg.ICR_LOW, reg.ICR_HIGH, reg.RRD, reg.EOI, *reg.LVT_WRITABLE):
        table[offset >> 4] = _stored(offset)
    for word in range(8):
        for first, name in ((reg.ISR, "isr"), (reg.TMR, "tmr"), (reg.IRR, "irr")):
            table[(first >> 4) + word] = _word_of(name, word)
    table[reg.ID >> 4] = LapicAccess._read_id
    table[reg.VERSION >> 4] = lambda lapic, now: lapic._version
    table[reg.TPR >> 4] = lambda lapic, now: lapic._tpr
    table[reg.APR >> 4] = lambda lapic, now: lapic.arbitration_priority()
    table[reg.PPR >> 4] = lambda lapic, now: lapic._ppr
    table[reg.LDR >> 4] = LapicAccess._read_ldr
    table[reg.ESR >> 4] = lambda lapic, now: lapic._esr
    table[reg.LVT_CMCI >> 4] = LapicAccess._read_lvt_cmci
    table[reg.TIMER_INITIAL_COUNT >> 4] = lambda lapic, now: lapic.timer.initial_count
    table[reg.TIMER_CURRENT_COUNT >> 4] = lambda lapic, now: lapic.timer.current_count(now)
    table[reg.TIMER_DIVIDE >> 4] = lambda lapic, now: lapic.timer.divide
    return table


def _writers() -> list[_Writer]:
    table: list[_Writer] = [LapicAccess._write_reserved] * 64
    read_only = (reg.ID, reg.VERSION, reg.APR, reg.PPR, reg.RRD, reg.TIMER_CURRENT_COUNT)
    for offset in (*read_only, *range(reg.ISR, reg.ESR, 0x10)):
        table[offset >> 4] = LapicAccess._write_read_only
    for offset in (reg.LVT_THERMAL, reg.LVT_PERFORMANCE, reg.LVT_ERROR):
        table[offset >> 4] = _lvt_writer(offset)
    for offset, writer in (
        (reg.TPR, LapicAccess._write_tpr),
        (reg.EOI, LapicAccess._write_eoi),
        (reg.LDR, LapicAccess._write_ldr),
        (reg.DFR, LapicAccess._write_dfr),
        (reg.SPIV, LapicAccess._write_spiv),
        (reg.ESR, LapicAccess._write_esr),
        (reg.LVT_CMCI, LapicAccess._write_lvt_cmci),
        (reg.ICR_LOW, LapicAccess._write_icr_low),
        (reg.ICR_HIGH, LapicAccess._write_icr_high),
        (reg.LVT_TIMER, LapicAccess._write_lvt_timer),
        (reg.LVT_LINT0, LapicAccess._write_lvt_lint0),
        (reg.LVT_LINT1, LapicAccess._write_lvt_lint1),
        (reg.TIMER_INITIAL_COUNT, LapicAccess._write_initial_count),
        (reg.TIMER_DIVIDE, LapicAccess._write_divide),
    ):
        table[offset >> 4] = writer
    return table


READERS = _readers()
_WRITERS = _writers()

_X2APIC_READABLE = frozenset(
    (
        reg.ID, reg.VERSION, reg.TPR, reg.PPR, reg.LDR, reg.SPIV, *range(reg.ISR, reg.ESR, 0x10), reg.ESR,
        reg.ICR_LOW, *reg.LVT_WRITABLE, reg.TIMER_INITIAL_COUNT, reg.TIMER_CURRENT_COUNT, reg.TIMER_DIVIDE,
    )
)  # fmt: skip

_X2APIC_WRITABLE = {
    reg.TPR: reg.PRIORITY_CLASS | reg.PRIORITY_SUBCLASS,
    reg.EOI: 0,
    reg.SPIV: 0,  # and the bits of this APIC: `spiv_writable`
    reg.ESR: 0,
    reg.ICR_LOW: 0,  # checked by ICR_X2APIC_RESERVED
    **dict.fromkeys(reg.LVT_WRITABLE, reg.LVT_DELIVERY_STATUS),  # read-only bits are not reserved
    reg.LVT_LINT0: reg.LVT_READ_ONLY,
    reg.LVT_LINT1: reg.LVT_READ_ONLY,
    reg.TIMER_INITIAL_COUNT: _WORD,
    reg.TIMER_DIVIDE: reg.TIMER_DIVIDE_MASK,
    reg.SELF_IPI: reg.SELF_IPI_VECTOR,
}
"""MSRs that can be written in x2APIC mode, and bits that may be set in them; any other bit raises #GP."""
