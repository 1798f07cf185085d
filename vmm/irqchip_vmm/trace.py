"""A trace of what is injected into vCPUs: a run's interrupts, one by one."""

from __future__ import annotations

from collections.abc import Callable

from attrs import frozen

from irqchip_core.clock import Clock
from irqchip_core.vcpu import VcpuX86_64

NMI_VECTOR = 2
HEADING = "# nanoseconds vCPU kind vector RIP"


@frozen
class InjectedInterrupt:
    """An interrupt on its way into a guest. As text: a line under `HEADING`.

    Attributes:
        when: Nanoseconds of the guest's time.
        vcpu_id: Which vCPU takes it.
        kind: ``irq`` or ``nmi``.
        vector: 0-255.
        rip: Where the guest is interrupted.
    """

    when: int
    vcpu_id: int
    kind: str
    vector: int
    rip: int

    def __str__(self) -> str:
        return f"{self.when} {self.vcpu_id} {self.kind} {self.vector:#04x} {self.rip:#x}"


def trace(vcpu: VcpuX86_64, clock: Clock, report: Callable[[InjectedInterrupt], object]) -> None:
    """From now on, call `report` with each interrupt that a chip injects into `vcpu`."""
    interrupt, inject_nmi = vcpu.interrupt, vcpu.inject_nmi

    def report_of(kind: str, vector: int) -> None:
        report(InjectedInterrupt(clock.now(), vcpu.id, kind, vector, vcpu.get_regs().rip))

    def interrupt_and_report(vector: int) -> None:
        interrupt(vector)
        report_of("irq", vector)

    def inject_nmi_and_report() -> None:
        inject_nmi()
        report_of("nmi", NMI_VECTOR)

    vcpu.interrupt = interrupt_and_report  # type: ignore[method-assign]
    vcpu.inject_nmi = inject_nmi_and_report  # type: ignore[method-assign]
