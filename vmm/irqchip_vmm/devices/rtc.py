"""MC146818 real-time clock with CMOS RAM (Motorola data sheet; PC use: IBM PC AT technical reference).

    0x70 (WO)  index of the register, bits 0-6 (bit 7 masks NMIs on a PC: ignored)
    0x71 (RW)  the register

    0x00 seconds  0x02 minutes  0x04 hours    0x06 day of week (1 is Sunday)  0x07 day  0x08 month  0x09 year
    0x01, 0x03, 0x05  the same for the alarm; 0xC0 and above matches any      0x32  century
    0x0A  A: UIP (RO), divider, rate     0x0B  B: enables and formats
    0x0C  C: flags (RO, cleared by reading)        0x0D  D: VRT (RO)
    0x0E-0x7F  RAM; memory size in 0x15-0x18, 0x30-0x31 and 0x34-0x35

Flags are worked out when they are looked at; the clock wakes the host only for an interrupt that is enabled and whose
flag the guest has read. Not here: the square wave output and daylight saving.
"""

from __future__ import annotations

import calendar
import threading
import time
from collections.abc import Callable

from typing_extensions import override

from irqchip_core.bus import Access, BusDevice
from irqchip_vmm.device_loop import Timer, Timers

RTC_PORT = 0x70
RTC_LENGTH = 2
RTC_GSI = 8

SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY = 0x00, 0x02, 0x04, 0x06, 0x07, 0x08, 0x09, 0x32
SECONDS_ALARM, MINUTES_ALARM, HOURS_ALARM = 0x01, 0x03, 0x05
TIME = (SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY)
ALARM = (SECONDS_ALARM, MINUTES_ALARM, HOURS_ALARM)
ALARM_ANY = 0xC0
A, B, C, D = 0x0A, 0x0B, 0x0C, 0x0D
A_UIP = 0x80
A_DIVIDER, A_RUNNING = 0x70, 0x20  # a time base of 32768 Hz; all other settings count as 0x60, the divider's reset
A_RATE = 0x0F
B_SET, B_PIE, B_AIE, B_UIE, B_BINARY, B_24H = 0x80, 0x40, 0x20, 0x10, 0x04, 0x02
C_IRQF, C_PF, C_AF, C_UF = 0x80, 0x40, 0x20, 0x10
C_ENABLED = C_PF | C_AF | C_UF  # by the bits in the same places of B
D_VRT = 0x80
PM = 0x80  # in hours of a 12-hour clock

NS = 1_000_000_000
TIME_BASE = 32768  # Hz
UIP_NS = 244_000  # update in progress is set this long before the update
DAY_SECONDS = 86400
RELEASED_NS = NS // 2
"""From the release of the divider's reset to the first update (data sheet, register A)."""
BASE_MEMORY_KIB = 640


def period(rate: int) -> int:
    """Cycles of the time base between periodic interrupts for the rate in register A; 0 for none (table 5)."""
    if rate == 0:
        return 0
    return 1 << (rate + 6 if rate <= 2 else rate - 1)  # rates 1 and 2 repeat 8 and 9


class Rtc(BusDevice):
    """The clock.

    Args:
        interrupt: Called when the interrupt output is asserted.
        timers: The time, and how to be called at one.
        wall_time: Seconds since 1970 (UTC) at which the clock starts.
        memory_size: Bytes of guest memory, for the CMOS registers that hold it.
    """

    debug_label = "rtc"
    width = 1
    self_synchronized = True

    def __init__(
        self,
        interrupt: Callable[[], object],
        timers: Timers,
        *,
        wall_time: int | None = None,
        memory_size: int = 0,
    ) -> None:
        self._interrupt = interrupt
        self._timers = timers
        self._lock = threading.Lock()
        self._timer: Timer | None = None
        self._line = False  # the interrupt output
        self._index = 0
        self._ram = bytearray(0x80)
        self._ram[A] = A_RUNNING | 6
        self._ram[B] = B_24H
        self._set_memory_size(memory_size)
        # The divider reaches a whole second at `_start` and each second after it, if it is not held in reset. While the
        # time runs, it was `_epoch` seconds after 1970 at `_start`; while SET or the divider holds it, it is in `_ram`.
        self._epoch = int(time.time()) if wall_time is None else wall_time
        self._start = timers.now()
        self._weekday_shift = 0
        self._checked = self._start  # flags are worked out up to here

    def _set_memory_size(self, size: int) -> None:
        extended = min(max(size - (1 << 20), 0) >> 10, 0xFFFF)
        above_16_mib = min(max(size - (16 << 20), 0) >> 16, 0xFFFF)
        for register, value in ((0x15, BASE_MEMORY_KIB), (0x17, extended), (0x30, extended), (0x34, above_16_mib)):
            self._ram[register : register + 2] = value.to_bytes(2, "little")

    @override
    def read(self, access: Access) -> int:
        if access.offset == 0:
            return 0
        with self._lock:
            return self._read(self._index, self._timers.now())

    @override
    def write(self, access: Access, value: int) -> None:
        if access.offset == 0:
            self._index = value & 0x7F
            return
        with self._lock:
            now = self._timers.now()
            self._update(now)  # what happened before happened under the old settings
            self._write(self._index, value & 0xFF, now)
            self._update(now)

    def _read(self, register: int, now: int) -> int:
        if register in TIME and self._running():
            self._store_time(now)
        if register == A and self._running() and not self._ram[B] & B_SET:
            return self._ram[A] | (A_UIP if (now - self._start) % NS >= NS - UIP_NS else 0)
        if register == C:
            self._update(now)
            flags, self._ram[C] = self._ram[C], 0
            self._update(now)  # the output falls
            return flags
        return D_VRT if register == D else self._ram[register]

    def _write(self, register: int, value: int, now: int) -> None:
        if register in (C, D):
            return
        if register in TIME and self._running():
            self._store_time(now)
            self._ram[register] = value
            self._load_time(now)
            return
        if register not in (A, B):
            self._ram[register] = value
            return
        held, before = self._held(), self._running()
        if before:
            self._store_time(now)
        if register == B and value & B_SET:
            value &= ~B_UIE  # SET clears UIE (data sheet, register B)
        self._ram[register] = value & ~A_UIP if register == A else value
        if held and not self._held():
            self._start = now - RELEASED_NS
        if self._running() and not before:
            self._load_time(now)  # SET has not stopped the divider
        elif before and register == B:
            self._store_time(now)  # in the new format

    # --- Time ---

    def _held(self) -> bool:
        return self._ram[A] & A_DIVIDER != A_RUNNING

    def _running(self) -> bool:
        return not self._held() and not self._ram[B] & B_SET

    def _seconds(self, now: int) -> int:
        return self._epoch + (now - self._start) // NS

    def _encode(self, value: int) -> int:
        return value if self._ram[B] & B_BINARY else value // 10 << 4 | value % 10

    def _decode(self, value: int) -> int:
        return value if self._ram[B] & B_BINARY else (value >> 4) * 10 + (value & 0x0F)

    def _decode_hour(self, value: int) -> int:
        if self._ram[B] & B_24H:
            return self._decode(value)
        return self._decode(value & ~PM) % 12 + (12 if value & PM else 0)

    def _store_time(self, now: int) -> None:
        """Put the time into the registers."""
        t = time.gmtime(self._seconds(now))
        if self._ram[B] & B_24H:
            hour = self._encode(t.tm_hour)
        else:
            hour = self._encode(t.tm_hour % 12 or 12) | (PM if t.tm_hour >= 12 else 0)
        weekday = (t.tm_wday + 1 + self._weekday_shift) % 7 + 1  # Monday is 0 in Python, Sunday 1 here
        values = (t.tm_sec, t.tm_min, None, weekday, t.tm_mday, t.tm_mon, t.tm_year % 100, t.tm_year // 100)
        for register, value in zip(TIME, values, strict=True):
            self._ram[register] = hour if value is None else self._encode(value)

    def _load_time(self, now: int) -> None:
        """Go on from the time in the registers. What is not a time is brought into range."""
        year = min(max(self._decode(self._ram[CENTURY]) * 100 + self._decode(self._ram[YEAR]), 1), 9998)
        month = min(max(self._decode(self._ram[MONTH]), 1), 12)
        day = min(max(self._decode(self._ram[DAY]), 1), calendar.monthrange(year, month)[1])
        hour = min(self._decode_hour(self._ram[HOURS]), 23)
        minute, second = (min(self._decode(self._ram[register]), 59) for register in (MINUTES, SECONDS))
        t = calendar.timegm((year, month, day, hour, minute, second))
        self._epoch = t - (now - self._start) // NS
        self._weekday_shift = (self._decode(self._ram[WEEKDAY]) - 1 - (time.gmtime(t).tm_wday + 1)) % 7

    # --- Flags and interrupt ---

    def _wake(self) -> None:
        with self._lock:
            self._update(self._timers.now())

    def _update(self, now: int) -> None:
        """Set the flags of all that happened since the last look, drive the output, sleep until the next event."""
        since, self._checked = self._checked, now
        flags, enables = self._ram[C] & ~C_IRQF, self._ram[B] & C_ENABLED
        for flag, when in self._next_events(since):
            if when <= now:
                flags |= flag
        line = bool(flags & enables)
        self._ram[C] = flags | (C_IRQF if line else 0)
        if line and not self._line:
            self._interrupt()
        self._line = line
        wake = None
        if not line and enables:  # an asserted output stays so until the guest reads C
            wake = min((when for flag, when in self._next_events(now) if flag & enables), default=None)
        if self._timer is not None:
            if self._timer.when == wake:
                return
            self._timer.cancel()
        self._timer = None if wake is None else self._timers.call_at(wake, self._wake)

    def _next_events(self, since: int) -> list[tuple[int, int]]:
        """Each flag that will be set after `since`, and when first."""
        events = []
        if (cycles := period(self._ram[A] & A_RATE)) and not self._held():  # SET does not stop it
            passed = (since - self._start) * TIME_BASE // NS // cycles
            events.append((C_PF, self._start - -(passed + 1) * cycles * NS // TIME_BASE))
        if self._running():
            update = since + NS - (since - self._start) % NS
            events.append((C_UF, update))
            if (wait := self._seconds_to_alarm(self._seconds(since) % DAY_SECONDS)) is not None:
                events.append((C_AF, update + (wait - 1) * NS))
        return events

    def _seconds_to_alarm(self, second_of_day: int) -> int | None:
        """Seconds from `second_of_day` to the next match, 1 to 86400; None if the alarm is not a time."""
        hours, minutes, seconds = (
            range(limit) if self._ram[register] >= ALARM_ANY else [decode(self._ram[register])]
            for register, decode, limit in (
                (HOURS_ALARM, self._decode_hour, 24),
                (MINUTES_ALARM, self._decode, 60),
                (SECONDS_ALARM, self._decode, 60),
            )
        )
        if hours[0] > 23 or minutes[0] > 59 or seconds[0] > 59:
            return None
        for day in (0, DAY_SECONDS):
            for hour in (day + h * 3600 for h in hours if day + h * 3600 + 3599 > second_of_day):
                for minute in (hour + m * 60 for m in minutes if hour + m * 60 + 59 > second_of_day):
                    for match in (minute + s for s in seconds if minute + s > second_of_day):
                        return match - second_of_day
        return None
