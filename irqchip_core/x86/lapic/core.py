"""The working part of a local APIC: from messages, pins and the timer to the vector the processor takes next.

Follows the Intel SDM vol. 3, chapter 12, for processors since the Pentium 4. The class to use is in `lapic`;
the guest's accesses are in `access`, the timer's counters in `timer`, and which local APICs receive a
message in `destinations`.

Left out: focus processors, arbitration on the APIC bus, remote read (none exists since the Pentium).
Levels of LINT0 and LINT1 say whether the pin is asserted, so the polarity bits are only stored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from irqchip_core.errors import InvalidArgument
from irqchip_core.x86.effects import EOI_BROADCASTS, Effects, WakeAt
from irqchip_core.x86.lapic import registers as reg
from irqchip_core.x86.lapic.events import NO_EVENTS, PendingEvents
from irqchip_core.x86.lapic.timer import LapicTimer
from irqchip_core.x86.msi import EDGE, EXTINT, FIXED, INIT, LEVEL, LOWEST_PRIORITY, NMI, SMI, Message

if TYPE_CHECKING:
    from irqchip_core.x86.destinations import Destinations

# What `LapicCore.accept` answers, with the numbers of KVM_IRQ_LINE_STATUS.
IGNORED = -1
COALESCED = 0
DELIVERED = 1

BIT = tuple(1 << vector for vector in range(256))
NO_VECTOR = -1
FIRST_LEGAL_VECTOR = 16
_LINT_LVTS = (reg.LVT_LINT0, reg.LVT_LINT1)
_CLASS, _SUBCLASS, _CLASS_SHIFT = reg.PRIORITY_CLASS, reg.PRIORITY_SUBCLASS, 4
_PRIORITY = _CLASS | _SUBCLASS


class LapicCore:
    """One local APIC, without its registers' accesses.

    Args:
        apic_id: The initial APIC id, 32 bits. In xAPIC mode the guest sees its low 8 bits.
        timer_hz: Frequency of the timer's input clock.
        tsc_hz: Frequency of the guest's time-stamp counter; 0: no TSC-deadline mode.
        bsp: Whether this is the boot processor's.
        x2apic: Whether x2APIC mode exists (else switching to it faults).
        cmci: Whether the LVT has an entry for corrected machine checks.
        eoi_suppression: Whether software may suppress EOI broadcasts.
        virtual_wire: Start with LINT0 as an unmasked ExtINT, as firmware leaves the boot processor's.
        address_bits: Width of physical addresses (CPUID leaf 0x80000008), for the faults of
            IA32_APIC_BASE.

    Attributes:
        irr, isr, tmr: 256 bits each; bit n is vector n.
        alone: The tuple of only this APIC, as a set of receivers.
        lvt_writable: The entries of this APIC's local vector table, and their writable bits.
        spiv_writable: Writable bits of the spurious-interrupt vector register.
        apic_base: IA32_APIC_BASE.
        raised, delivered, coalesced, ended: Number of interrupts of each vector: requested, taken by the processor,
            coalesced with a pending one, ended by software. ``raised - delivered - coalesced`` are pending, or were
            discarded by an INIT.
        spurious: Number of acknowledgements while no interrupt was pending.
        ignored: Number of messages and accesses that have no meaning for the hardware.

    Raises:
        InvalidArgument: The id or a frequency is out of range.
    """

    __slots__ = (
        "_accepting", "_base_reserved", "_errors", "_esr", "_floor", "_lint_waiting", "_ppr", "_regs",
        "_suppressing", "_tpr", "_version", "_virtual_wire", "alone", "apic_base", "apic_id", "bsp",
        "coalesced", "delivered", "destinations", "ended", "events", "hardware_enabled", "ignored", "irr",
        "isr", "lint_levels", "lvt_writable", "raised", "spiv_writable", "spurious", "timer", "tmr", "x2apic_mode",
    )  # fmt: skip

    def __init__(
        self,
        apic_id: int,
        *,
        timer_hz: int,
        tsc_hz: int = 0,
        bsp: bool = False,
        x2apic: bool = True,
        cmci: bool = True,
        eoi_suppression: bool = True,
        virtual_wire: bool = False,
        address_bits: int = 52,
    ) -> None:
        if not 0 <= apic_id < 0xFFFFFFFF:
            raise InvalidArgument(
                f"{apic_id:#x} is no APIC id", subject="Lapic", argument="apic_id", remedy="give 0 to 0xFFFFFFFE"
            )
        if timer_hz <= 0 or tsc_hz < 0:
            raise InvalidArgument(
                f"frequencies of {timer_hz} Hz and {tsc_hz} Hz", subject=f"Lapic {apic_id}", argument="timer_hz, tsc_hz"
            )
        self.apic_id = apic_id
        self.bsp = bsp
        self.timer = LapicTimer(timer_hz, tsc_hz)
        self.destinations: Destinations | None = None
        self.alone = (self,)
        self.lvt_writable = dict(reg.LVT_WRITABLE)
        if not cmci:
            del self.lvt_writable[reg.LVT_CMCI]
        if not tsc_hz:
            self.lvt_writable[reg.LVT_TIMER] = reg.LVT_TIMER_WITHOUT_TSC_DEADLINE
        self.spiv_writable = reg.SPIV_MASK | (reg.SPIV_SUPPRESS_EOI_BROADCAST if eoi_suppression else 0)
        self._virtual_wire = virtual_wire
        allowed = (1 << address_bits) - 1 & ~0xFFF | reg.APIC_BASE_BSP | reg.APIC_BASE_EN
        self._base_reserved = ~(allowed | (reg.APIC_BASE_EXTD if x2apic else 0))
        self._version = (
            reg.VERSION_INTEGRATED
            | (6 if cmci else 5) << reg.VERSION_MAXIMUM_LVT_SHIFT
            | (reg.VERSION_EOI_BROADCAST_SUPPRESSION if eoi_suppression else 0)
        )
        self._regs = [0] * 64
        self.lint_levels = 0  # bit n: LINTn is asserted
        self.raised = [0] * 256
        self.delivered = [0] * 256
        self.coalesced = [0] * 256
        self.ended = [0] * 256
        self.spurious = 0
        self.ignored = 0
        self.reset()

    def reset(self) -> None:
        """Return to the state after power-up (SDM 12.4.7.1). Counters and pin levels stay."""
        self.events = NO_EVENTS
        self.set_base(reg.APIC_BASE_RESET | (reg.APIC_BASE_BSP if self.bsp else 0))
        self._reset_registers()

    def init(self) -> Effects:
        """The processor takes an INIT: all but id, mode and, in x2APIC mode, LDR is reset (SDM 12.4.7.3)."""
        before = self.timer.wake_at
        self._reset_registers()
        return self.timer_effects(before)

    def _reset_registers(self) -> None:
        self._regs = [0] * 64
        self._regs[reg.DFR >> 4] = reg.DFR_FLAT << reg.DFR_SHIFT | reg.DFR_ONES
        self._esr = 0  # what the register shows
        self._errors = 0  # errors since the last write of ESR
        self._lint_waiting = False  # some LINT entry may have its remote IRR set
        self.irr = self.isr = self.tmr = 0
        self.set_spiv(reg.SPIV_RESET)  # masks the LVT, too
        if self._virtual_wire and self.bsp:
            self._regs[reg.LVT_LINT0 >> 4] = reg.LVT_EXTINT
        self.set_tpr(0)
        self.timer.reset()
        self.address_changed()

    # Modes

    def set_base(self, value: int) -> None:
        """Set IA32_APIC_BASE to a valid value."""
        self.apic_base = value
        self.hardware_enabled = value & reg.APIC_BASE_EN != 0
        self.x2apic_mode = value & reg.APIC_BASE_EXTD != 0
        self._update_accepting()
        self.address_changed()

    def _update_accepting(self) -> None:
        self._accepting = self.hardware_enabled and self._regs[reg.SPIV >> 4] & reg.SPIV_SOFTWARE_ENABLE != 0

    def address_changed(self) -> None:
        """The destinations that name this APIC may have changed."""
        if self.destinations is not None:
            self.destinations.forget()

    def set_spiv(self, value: int) -> None:
        """Write the spurious-interrupt vector register; clearing the enable bit masks the whole LVT (SDM 12.4.7.2)."""
        value &= self.spiv_writable
        self._regs[reg.SPIV >> 4] = value
        self._suppressing = value & reg.SPIV_SUPPRESS_EOI_BROADCAST != 0
        self._update_accepting()
        if not value & reg.SPIV_SOFTWARE_ENABLE:
            for lvt in self.lvt_writable:
                self._regs[lvt >> 4] |= reg.LVT_MASKED

    def logical_address(self) -> tuple[int, int]:
        """In xAPIC mode: the logical id, 8 bits, and the model by which it is compared (SDM 12.6.2.2)."""
        return self._regs[reg.LDR >> 4] >> reg.LDR_SHIFT, self._regs[reg.DFR >> 4] >> reg.DFR_SHIFT

    def software_enabled(self) -> bool:
        """Whether this APIC accepts fixed interrupts, and takes part in lowest-priority delivery."""
        return self._accepting

    # Priorities

    def set_tpr(self, value: int) -> None:
        """Write the task priority, 8 bits."""
        self._tpr = value & _PRIORITY
        self._update_ppr()

    @property
    def cr8(self) -> int:
        """What the processor's CR8 reads: the class of the task priority, 0-15 (SDM 12.8.6)."""
        return self._tpr >> _CLASS_SHIFT

    @cr8.setter
    def cr8(self, value: int) -> None:
        self.set_tpr(value << _CLASS_SHIFT & _CLASS)

    @property
    def ppr(self) -> int:
        """The processor priority: the processor takes an interrupt whose class is above the class of this."""
        return self._ppr

    @property
    def tpr(self) -> int:
        """The task priority, 8 bits."""
        return self._tpr

    def _update_ppr(self) -> None:
        tpr = self._tpr
        isr = self.isr
        in_service = isr.bit_length() - 1 & _CLASS if isr else 0
        self._ppr = ppr = tpr if tpr & _CLASS >= in_service else in_service
        self._floor = (ppr | _SUBCLASS) + 1  # the lowest vector that the processor takes

    def arbitration_priority(self) -> int:
        """The APR, by which lowest-priority delivery chooses (SDM 12.6.2.4)."""
        tpr = self._tpr
        requested = self.irr.bit_length() - 1 & _CLASS if self.irr else 0
        in_service = self.isr.bit_length() - 1 & _CLASS if self.isr else 0
        if tpr & _CLASS >= requested and tpr & _CLASS > in_service:
            return tpr
        return max(tpr & _CLASS, requested, in_service)

    # Messages

    def accept(self, message: Message) -> int:
        """Take a message that is addressed to this APIC.

        Returns:
            DELIVERED; COALESCED if the same interrupt is pending already; IGNORED if the APIC is disabled or has no
            such interrupt. `take_events` has what came besides fixed interrupts.
        """
        mode = message.delivery_mode
        if mode > LOWEST_PRIORITY:
            if message.level == 0 and message.trigger_mode == LEVEL:
                # INIT level de-assert: no effect since the Pentium 4. An edge is an INIT at either level (SDM 12.6.1).
                self.ignored += 1
                return IGNORED
            return self._accept_event(mode, message.vector)
        if not self._accepting:
            self.ignored += 1
            return IGNORED
        return self._request(message.vector, message.trigger_mode)

    def _request(self, vector: int, trigger_mode: int) -> int:
        if vector < FIRST_LEGAL_VECTOR:
            self.report_error(reg.ESR_RECEIVE_ILLEGAL_VECTOR)
            return IGNORED
        bit = BIT[vector]
        self.raised[vector] += 1
        if trigger_mode:
            self.tmr |= bit
        elif self.tmr & bit:
            self.tmr ^= bit
        if self.irr & bit:
            self.coalesced[vector] += 1
            return COALESCED
        self.irr |= bit
        return DELIVERED

    def _accept_event(self, mode: int, vector: int) -> int:
        events = self.events
        after = events.adding(mode, vector) if self.hardware_enabled else None
        if after is None:
            self.ignored += 1
            return IGNORED
        self.events = after
        return COALESCED if after is events else DELIVERED

    def take_events(self) -> PendingEvents | None:
        """Remove and return the pending events (NMI, SMI, INIT, start-up, ExtINT); None if there are none."""
        events = self.events
        if events is NO_EVENTS:
            return None
        self.events = NO_EVENTS
        return events

    # The processor's side

    def pending_vector(self) -> int:
        """The vector the processor would get now, or NO_VECTOR.

        A software-disabled APIC still delivers what it accepted before (SDM 12.4.7.2).
        """
        vector = self.irr.bit_length() - 1
        return vector if vector >= self._floor else NO_VECTOR

    def acknowledge(self) -> int:
        """The processor takes the pending vector, which is then in service.

        Returns:
            The vector; the spurious vector if no interrupt is pending (SDM 12.9).
        """
        vector = self.irr.bit_length() - 1
        if vector < self._floor:
            self.spurious += 1
            return self._regs[reg.SPIV >> 4] & reg.SPIV_VECTOR
        bit = BIT[vector]
        self.irr ^= bit
        self.isr |= bit
        # Its class is above that of the task priority and of all else in service.
        self._ppr = vector & _CLASS
        self._floor = (vector | _SUBCLASS) + 1
        self.delivered[vector] += 1
        return vector

    def end_of_interrupt(self) -> Effects:
        """A write of the EOI register ends the vector of highest priority in service."""
        isr = self.isr
        if not isr:
            return ()
        vector = isr.bit_length() - 1
        bit = BIT[vector]
        self.isr = isr = isr ^ bit
        if isr:
            self._update_ppr()
        else:
            self._ppr = self._tpr
            self._floor = (self._tpr | _SUBCLASS) + 1
        self.ended[vector] += 1
        if self._lint_waiting:
            self._end_lint(vector)
        return EOI_BROADCASTS[vector] if self.tmr & bit and not self._suppressing else ()

    # Local interrupts

    def deliver_lvt(self, lvt: int) -> int:
        """An event of the local vector table happened: `lvt` is its register, LVT_CMCI to LVT_ERROR.

        Returns:
            As `accept`.
        """
        entry = self._regs[lvt >> 4]
        if entry & reg.LVT_MASKED or not self.hardware_enabled:
            return IGNORED
        if lvt == reg.LVT_PERFORMANCE:
            self._regs[lvt >> 4] = entry | reg.LVT_MASKED  # SDM 12.5.1: the handler unmasks it
        mode = _delivery_mode(entry)
        if mode == FIXED:
            return self._request(entry & reg.LVT_VECTOR, EDGE)
        if mode in (SMI, NMI, INIT, EXTINT):
            return self._accept_event(mode, entry & reg.LVT_VECTOR)
        self.ignored += 1
        return IGNORED

    def report_error(self, bit: int) -> None:
        """Record ESR `bit`; the first since the last write of ESR interrupts (SDM 12.5.3)."""
        armed = not self._errors
        self._errors |= bit
        if armed:
            self.deliver_lvt(reg.LVT_ERROR)

    def set_lint(self, pin: int, level: int) -> int:
        """Drive LINT0 or LINT1 (`pin` 0 or 1) to `level`. Returns as `accept`.

        An ExtINT pin raises nothing here: see `extint_requested`.
        """
        rising = level and not self.lint_levels >> pin & 1
        self.lint_levels = self.lint_levels | 1 << pin if level else self.lint_levels & ~(1 << pin)
        if not self.hardware_enabled:
            # While the APIC is disabled the pins are INTR and NMI (SDM 7.3.1).
            if rising and pin == 1:
                self.events = self.events.adding(NMI, 0) or self.events
                return DELIVERED
            return IGNORED
        lvt = _LINT_LVTS[pin]
        entry = self._regs[lvt >> 4]
        mode = _delivery_mode(entry)
        if mode == FIXED and entry & reg.LVT_LEVEL:
            return self.sample_lint(pin)
        if mode == EXTINT or not rising:
            return IGNORED
        return self.deliver_lvt(lvt)

    def sample_lint(self, pin: int) -> int:
        """Interrupt if LINT `pin` is asserted, unmasked, level-triggered and fixed, and not waiting for its EOI."""
        index = _LINT_LVTS[pin] >> 4
        entry = self._regs[index]
        fixed_level = entry & (reg.LVT_MASKED | reg.LVT_DELIVERY_MODE | reg.LVT_LEVEL) == reg.LVT_LEVEL
        if not self.lint_levels >> pin & 1 or not fixed_level:
            return IGNORED
        if entry & reg.LVT_REMOTE_IRR:
            return COALESCED
        if (outcome := self._request(entry & reg.LVT_VECTOR, LEVEL)) != IGNORED:
            self._regs[index] = entry | reg.LVT_REMOTE_IRR
            self._lint_waiting = True
        return outcome

    def _end_lint(self, vector: int) -> None:
        self._lint_waiting = False
        for pin, lvt in enumerate(_LINT_LVTS):
            entry = self._regs[lvt >> 4]
            if not entry & reg.LVT_REMOTE_IRR:
                continue
            if entry & reg.LVT_VECTOR == vector:
                self._regs[lvt >> 4] = entry & ~reg.LVT_REMOTE_IRR
                self.sample_lint(pin)
            else:
                self._lint_waiting = True

    def extint_requested(self) -> bool:
        """Whether the 8259A at LINT0 interrupts the processor, which then acknowledges it there."""
        return self.lint_levels & 1 != 0 and self.takes_extint()

    def takes_extint(self) -> bool:
        """Whether LINT0 passes the INT of the 8259A on: unmasked in ExtINT mode, or the APIC is disabled."""
        entry = self._regs[reg.LVT_LINT0 >> 4]
        return not self.hardware_enabled or (not entry & reg.LVT_MASKED and _delivery_mode(entry) == EXTINT)

    # Timer

    @property
    def wake_at(self) -> int | None:
        """When to call `expire`, nanoseconds on the owner's clock; None for never."""
        return self.timer.wake_at

    def expire(self, now: int, tsc: int = 0) -> Effects:
        """Advance the timer to `now`, when the guest's time-stamp counter is `tsc`."""
        before = self.timer.wake_at
        if ticks := self.timer.expire(now, tsc):
            self._timer_ticked(ticks)
        return self.timer_effects(before)

    def count_down(self, now: int) -> None:
        """Raise the interrupts of a count-down up to `now`, before the timer's registers change."""
        if ticks := self.timer.count_down(now):
            self._timer_ticked(ticks)

    def _timer_ticked(self, ticks: int) -> None:
        vector = self._regs[reg.LVT_TIMER >> 4] & reg.LVT_VECTOR
        if self.deliver_lvt(reg.LVT_TIMER) != IGNORED:
            self.raised[vector] += ticks - 1
            self.coalesced[vector] += ticks - 1

    def timer_effects(self, before: int | None) -> Effects:
        """The effect if `wake_at` is no longer `before`."""
        after = self.timer.wake_at
        return () if after == before else (WakeAt(after),)


def _delivery_mode(entry: int) -> int:
    """Delivery mode of an entry of the local vector table."""
    return (entry & reg.LVT_DELIVERY_MODE) >> reg.LVT_DELIVERY_MODE_SHIFT
