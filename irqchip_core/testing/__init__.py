"""For those who test chips and VMMs of their own: time that stands still until it is told to pass."""

from irqchip_core.testing.fake_clock import FakeClock

__all__ = ["FakeClock"]
