"""What devices are tested with: time that stands still, interrupts that only count, bus accesses."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from irqchip_core.bus import Access, BusDevice
from irqchip_vmm.device_loop import Callback, Timer


class FakeTimers:
    """Time that moves only by `advance`."""

    def __init__(self, now: int = 0) -> None:
        self._now = now
        self.waiting: list[Timer] = []

    def now(self) -> int:
        return self._now

    def call_at(self, when: int, callback: Callback) -> Timer:
        timer = Timer(when, callback)
        self.waiting.append(timer)
        return timer

    def armed(self) -> list[Timer]:
        """Timers that are not cancelled."""
        return [timer for timer in self.waiting if timer.callback is not None]

    def advance(self, nanoseconds: int) -> None:
        """Let time pass, calling what becomes due at its time."""
        end = self._now + nanoseconds
        while due := sorted((timer for timer in self.armed() if timer.when <= end), key=lambda timer: timer.when):
            self._now = max(self._now, due[0].when)
            callback, due[0].callback = due[0].callback, None
            assert callback is not None
            callback()
        self._now = end


class FakeIrq:
    """Any of the interrupts of `irqchip_vmm.interrupts`, without a chip."""

    def __init__(self, gsi: int) -> None:
        self.gsi = gsi
        self.raised = 0
        self.on_resample: Callable[[], object] = lambda: None
        self.messages: list[tuple[int, int]] = []
        self.accepts = True

    def trigger(self) -> None:
        self.raised += 1

    def set_message(self, address: int, data: int) -> bool:
        if self.accepts:
            self.messages.append((address, data))
        return self.accepts


def fake_irqs() -> Any:
    """Takes the place of a `Machine` for objects that allocate interrupts."""
    edge, level, msi = FakeIrq(9), FakeIrq(10), FakeIrq(24)
    return SimpleNamespace(
        edge_irq=lambda name: edge,
        level_irq=lambda name: level,
        msi_irq=lambda name: msi,
        edge=edge,
        level=level,
        msi=msi,
    )


class Port:
    """A device as a guest sees it, at `base`."""

    def __init__(self, device: BusDevice, base: int = 0) -> None:
        self.device = device
        self.base = base

    def read(self, offset: int, size: int = 1) -> int:
        return self.device.read(Access(self.base + offset, offset, size, 0))

    def write(self, offset: int, value: int, size: int = 1) -> None:
        self.device.write(Access(self.base + offset, offset, size, 0), value)
