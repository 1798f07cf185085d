"""The timer of a local APIC: one-shot, periodic and TSC-deadline (Intel SDM vol. 3, 12.5.4).

Time is exact. With an input clock of f Hz, instants are kept as nanoseconds times f, in which one cycle
is exactly 10**9; so the time of the n-th tick is an integer, and nothing drifts.

Not here: the local vector table and the interrupt itself. `Lapic` calls `expire` and raises the interrupt.
"""

from __future__ import annotations

from irqchip_core.x86.lapic.registers import ONE_SHOT, PERIODIC, TIMER_DIVIDE_MASK, TSC_DEADLINE

NANOSECONDS = 1_000_000_000
SHORTEST_PERIOD = 200_000
"""Nanoseconds: the wake-ups of a faster periodic timer are this far apart, and its ticks are coalesced (as in KVM)."""
LONGEST_SLEEP = 3600 * NANOSECONDS
"""Nanoseconds: the longest time to the next wake-up of a timer with a TSC deadline, which may be later."""


class LapicTimer:
    """The counters of one local APIC.

    Args:
        hz: Frequency of the input clock, before the divider.
        tsc_hz: Frequency of the guest's time-stamp counter; 0 if there is no TSC-deadline mode.

    Attributes:
        mode: ONE_SHOT, PERIODIC, TSC_DEADLINE or 3, which is reserved.
        initial_count: The register, 32 bits.
        divide: The divide configuration register: bits 0, 1 and 3.
        tsc_deadline: The value of the time-stamp counter at which the timer expires; 0 if it is disarmed.
        wake_at: When to call `expire`, nanoseconds on the owner's clock; None for never.
    """

    __slots__ = (
        "_longest_sleep", "_origin", "_tick", "divide", "hz", "initial_count", "mode", "running", "tsc_deadline",
        "tsc_hz", "wake_at",
    )  # fmt: skip

    def __init__(self, hz: int, tsc_hz: int) -> None:
        self.hz = hz
        self.tsc_hz = tsc_hz
        self._longest_sleep = LONGEST_SLEEP * tsc_hz // NANOSECONDS  # in time-stamp counts
        self.reset()

    def reset(self) -> None:
        """Stop the timer, and reset its registers as at power-up."""
        self.mode = ONE_SHOT
        self.initial_count = 0
        self.tsc_deadline = 0
        self.divide = 0
        self._tick = 2 * NANOSECONDS  # length of a divided cycle
        self._origin = 0  # the instant at which the count was, or would have been, the initial one
        self.running = False
        self.wake_at: int | None = None

    # Count-down modes

    def current_count(self, now: int) -> int:
        """The current-count register at time `now`, 0 to 2**32 - 1."""
        if not self.running:
            return 0
        ticks = max(0, (now * self.hz - self._origin) // self._tick)
        if self.mode == PERIODIC:
            return self.initial_count - ticks % self.initial_count
        return max(0, self.initial_count - ticks)

    def set_initial_count(self, count: int, now: int) -> None:
        """Write the initial-count register: start counting down from `count`; 0 stops. Ignored in TSC-deadline mode."""
        if self.mode == TSC_DEADLINE:
            return
        self.initial_count = count
        self._origin = now * self.hz
        self.running = count != 0 and self.mode in (ONE_SHOT, PERIODIC)
        self._schedule(now)

    def set_divide(self, value: int, now: int) -> None:
        """Write the divide configuration register. A running timer keeps its current count."""
        count = self.current_count(now)
        self.divide = value & TIMER_DIVIDE_MASK
        self._tick = NANOSECONDS << _divide_shift(value)
        if self.running:
            self._continue_from(count, now)

    def set_mode(self, mode: int, now: int) -> None:
        """Choose the mode. Into and out of TSC-deadline mode the timer is disarmed (SDM 12.5.4.1)."""
        old, self.mode = self.mode, mode
        if mode == old:
            return
        if TSC_DEADLINE in (old, mode):
            self.initial_count = 0
            self.tsc_deadline = 0
            self.running = False
        elif mode not in (ONE_SHOT, PERIODIC):
            self.running = False
        self._schedule(now)

    def _continue_from(self, count: int, now: int) -> None:
        self._origin = now * self.hz - (self.initial_count - count) * self._tick
        self._schedule(now)

    def _schedule(self, now: int) -> None:
        """Set `wake_at` to the first nanosecond at which the count-down is over."""
        if not self.running:
            self.wake_at = None
            return
        period = self.initial_count * self._tick
        self.wake_at = -(-(self._origin + period) // self.hz)
        if self.mode == PERIODIC and period < SHORTEST_PERIOD * self.hz:
            self.wake_at = max(self.wake_at, now + SHORTEST_PERIOD)

    # TSC-deadline mode

    def set_tsc_deadline(self, value: int, now: int, tsc: int) -> None:
        """Write IA32_TSC_DEADLINE: arm, or disarm with 0. Ignored in the other modes."""
        if self.mode == TSC_DEADLINE:
            self.tsc_deadline = value
            self._schedule_deadline(now, tsc)

    def _schedule_deadline(self, now: int, tsc: int) -> None:
        deadline = self.tsc_deadline
        if not deadline:
            self.wake_at = None
        elif deadline - tsc >= self._longest_sleep:
            self.wake_at = now + LONGEST_SLEEP
        elif deadline <= tsc:
            self.wake_at = now
        else:
            self.wake_at = now - (tsc - deadline) * NANOSECONDS // self.tsc_hz  # rounded up

    # Expiry

    def expire(self, now: int, tsc: int) -> int:
        """How often the timer expired up to `now`, when the guest's time-stamp counter is `tsc`.

        Sets the next `wake_at`. Calling it early or late is harmless.
        """
        if self.mode == TSC_DEADLINE:
            if not self.tsc_deadline:
                return 0
            expired = tsc >= self.tsc_deadline
            if expired:
                self.tsc_deadline = 0
            self._schedule_deadline(now, tsc)
            return int(expired)
        return self.count_down(now)

    def count_down(self, now: int) -> int:
        """As `expire`, for one-shot and periodic mode; 0 in TSC-deadline mode."""
        if not self.running:
            return 0
        period = self.initial_count * self._tick
        ticks = (now * self.hz - self._origin) // period
        if ticks <= 0:
            return 0
        if self.mode == PERIODIC:
            self._origin += ticks * period
        else:
            ticks = 1
            self.running = False
        self._schedule(now)
        return ticks

    # State

    def elapsed(self, now: int) -> int | None:
        """Time since the count was the initial one, in 10**-9 input cycles; None if the timer is stopped."""
        return now * self.hz - self._origin if self.running else None

    def restore(
        self, initial_count: int, current_count: int, elapsed: int | None, deadline: int, now: int, tsc: int
    ) -> None:
        """Continue as saved, after mode and divider are set: from `elapsed`, if it agrees with `current_count`.

        A timer whose current count is 0 is stopped, unless it is periodic, or `elapsed` shows that it has just expired.
        """
        self.initial_count = 0 if self.mode == TSC_DEADLINE else initial_count
        self.running = self.initial_count != 0 and self.mode in (ONE_SHOT, PERIODIC)
        if self.running:
            if elapsed is not None:
                self._origin = now * self.hz - elapsed
            if elapsed is None or self.current_count(now) != current_count:
                self.running = current_count != 0 or self.mode == PERIODIC
                # A periodic timer at 0 has a full period left, as in KVM.
                left = min(current_count, initial_count) or initial_count
                self._origin = now * self.hz - (initial_count - left) * self._tick
        self.tsc_deadline = deadline if self.mode == TSC_DEADLINE else 0
        if self.mode == TSC_DEADLINE:
            self._schedule_deadline(now, tsc)
        else:
            self._schedule(now)


def _divide_shift(register: int) -> int:
    """Power of two by which the divide configuration register divides: bits 3, 1, 0 plus 1, modulo 8."""
    return ((register & 3 | (register & 8) >> 1) + 1) & 7
