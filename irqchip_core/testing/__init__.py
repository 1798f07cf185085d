"""For tests of chips and VMMs: time that stands still, and vCPUs without a guest."""

from irqchip_core.clock import VirtualClock as FakeClock
from irqchip_core.testing.fake_hypervisor import FakeVcpu, FakeVm, read_msr, write_msr

__all__ = ["FakeClock", "FakeVcpu", "FakeVm", "read_msr", "write_msr"]
