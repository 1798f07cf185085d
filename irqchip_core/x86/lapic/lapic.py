"""The local APIC: accesses, messages, pin levels and the time go in, effects and vectors come out.

It does no I/O and reads no clock. Its working part is in `core`, the guest's accesses are in `access`; here
are saved state, and the class to use.
"""

from __future__ import annotations

from irqchip_core.errors import InvalidArgument
from irqchip_core.x86.lapic import registers as reg
from irqchip_core.x86.lapic.access import READERS, LapicAccess
from irqchip_core.x86.lapic.core import BIT, FIRST_LEGAL_VECTOR
from irqchip_core.x86.lapic.events import NO_EVENTS, PendingEvents
from irqchip_core.x86.msi import ICR_DELIVERY_STATUS
from irqchip_core.x86.state import LapicState
from irqchip_core.x86.state_checks import check_lapic

_WORD = 0xFFFFFFFF
_COMPUTED = (
    reg.ID,
    reg.VERSION,
    reg.TPR,
    reg.PPR,
    reg.LDR,
    reg.ESR,
    reg.TIMER_INITIAL_COUNT,
    reg.TIMER_CURRENT_COUNT,
    reg.TIMER_DIVIDE,
    *range(reg.ISR, reg.ESR, 0x10),
)
"""Registers whose value is computed when it is read, and not kept in the list of registers."""


class Lapic(LapicAccess):
    """One local APIC; arguments and attributes are those of `LapicCore`."""

    __slots__ = ()

    def state(self, now: int) -> LapicState:
        """All state at time `now`: the registers, and what the guest will see of pending events and the timer."""
        regs = list(self._regs)
        for offset in _COMPUTED:
            regs[offset >> 4] = READERS[offset >> 4](self, now)
        events = self.events
        return LapicState(
            regs,
            apic_base=self.apic_base,
            pending_errors=self._errors,
            timer_elapsed=self.timer.elapsed(now),
            tsc_deadline=self.timer.tsc_deadline,
            lint_levels=self.lint_levels,
            nmis=events.nmis,
            smi=events.smi,
            init=events.init,
            startup_vector=events.startup_vector,
            extint=events.extint,
        )

    def set_state(self, state: LapicState, now: int, tsc: int = 0) -> None:
        """Take over `state` at time `now`; `wake_at` is then the time to call `expire`.

        `tsc` is the guest's time-stamp counter at `now`. The id stays, and bits that cannot be set are
        dropped. Without `apic_base` in the record the mode stays, too.

        Raises:
            InvalidArgument: `state` is no state of this local APIC.
        """
        subject = f"Lapic {self.apic_id}"
        check_lapic(state, self.apic_id, x2apic=self._base_reserved & reg.APIC_BASE_EXTD == 0, subject=subject)
        regs = state.regs
        base = self.apic_base if state.apic_base is None else state.apic_base
        if base & self._base_reserved:
            raise InvalidArgument(
                f"{base:#x} is beyond the physical addresses here",
                subject=subject,
                argument="state.apic_base",
                remedy="restore into a local APIC with the features of the saved one",
            )
        self.set_base(base)
        self._reset_registers()
        self.set_spiv(regs[reg.SPIV >> 4])
        for lvt, writable in self.lvt_writable.items():
            remote_irr = reg.LVT_REMOTE_IRR if writable & reg.LVT_LEVEL else 0
            self._regs[lvt >> 4] = regs[lvt >> 4] & (writable | remote_irr)
        self._lint_waiting = True
        self._regs[reg.LDR >> 4] = regs[reg.LDR >> 4] & reg.LDR_MASK
        self._regs[reg.DFR >> 4] = regs[reg.DFR >> 4] | reg.DFR_ONES
        self._regs[reg.ICR_LOW >> 4] = regs[reg.ICR_LOW >> 4] & reg.ICR_LOW_MASK & ~ICR_DELIVERY_STATUS
        self._regs[reg.ICR_HIGH >> 4] = regs[reg.ICR_HIGH >> 4] & (_WORD if self.x2apic_mode else reg.ICR_HIGH_MASK)
        legal = ~(BIT[FIRST_LEGAL_VECTOR] - 1)  # vectors 0-15 are never requested
        self.irr, self.isr, self.tmr = (_join(regs, first) & legal for first in (reg.IRR, reg.ISR, reg.TMR))
        self._esr = regs[reg.ESR >> 4] & reg.ESR_MASK
        self._errors = state.pending_errors
        self.set_tpr(regs[reg.TPR >> 4])
        self.lint_levels = state.lint_levels
        events = PendingEvents(state.nmis, state.smi, state.init, state.startup_vector, state.extint)
        self.events = NO_EVENTS if events == NO_EVENTS else events
        self._restore_timer(regs, state, now, tsc)
        self.address_changed()

    def _restore_timer(self, regs: list[int], state: LapicState, now: int, tsc: int) -> None:
        timer = self.timer
        timer.set_divide(regs[reg.TIMER_DIVIDE >> 4], now)
        timer.set_mode(self._regs[reg.LVT_TIMER >> 4] >> reg.LVT_TIMER_MODE_SHIFT, now)
        initial, current = regs[reg.TIMER_INITIAL_COUNT >> 4], regs[reg.TIMER_CURRENT_COUNT >> 4]
        timer.restore(initial, current, state.timer_elapsed, state.tsc_deadline, now, tsc)

    @classmethod
    def from_state(
        cls,
        apic_id: int,
        state: LapicState,
        now: int,
        *,
        timer_hz: int,
        tsc_hz: int = 0,
        tsc: int = 0,
        bsp: bool = False,
    ) -> Lapic:
        """A local APIC with all features and the saved `state`; see `set_state`."""
        lapic = cls(apic_id, timer_hz=timer_hz, tsc_hz=tsc_hz, bsp=bsp)
        lapic.set_state(state, now, tsc)
        return lapic


def _join(regs: list[int], first: int) -> int:
    """256 bits from eight registers."""
    return sum(regs[(first >> 4) + word] << 32 * word for word in range(8))
