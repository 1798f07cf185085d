"""A clock whose time passes only by `FakeClock.advance`."""

from __future__ import annotations

from collections.abc import Callable

from typing_extensions import override

from irqchip_core.clock import Alarm
from irqchip_core.errors import InvalidArgument


class FakeClock:
    """Implements `irqchip_core.clock.Clock`. Alarms ring inside `advance`, in order of their time."""

    def __init__(self, now: int = 0) -> None:
        self._now = now
        self._alarms: list[_FakeAlarm] = []

    def now(self) -> int:
        return self._now

    def alarm(self, ring: Callable[[], None]) -> Alarm:
        alarm = _FakeAlarm(ring, self._alarms)
        self._alarms.append(alarm)
        return alarm

    def next_alarm(self) -> int | None:
        """The earliest time an alarm is set to; None if none is."""
        return min((alarm.when for alarm in self._alarms if alarm.started and alarm.when is not None), default=None)

    def advance(self, nanoseconds: int) -> None:
        """Let time pass, and ring what is due meanwhile, each at its own time."""
        if nanoseconds < 0:
            raise InvalidArgument("time does not go back", subject="FakeClock", argument="nanoseconds")
        end = self._now + nanoseconds
        while (when := self.next_alarm()) is not None and when <= end:
            self._now = max(self._now, when)
            for alarm in list(self._alarms):
                if alarm.started and alarm.when is not None and alarm.when <= self._now:
                    alarm.when = None
                    alarm.ring()
        self._now = end


class _FakeAlarm(Alarm):
    def __init__(self, ring: Callable[[], None], alarms: list[_FakeAlarm]) -> None:
        self.ring = ring
        self.when: int | None = None
        self.started = False
        self._alarms = alarms

    @override
    def set(self, when: int | None) -> None:
        self.when = when

    @override
    def start(self) -> None:
        self.started = True

    @override
    def close(self) -> None:
        if self in self._alarms:
            self._alarms.remove(self)
