"""A trace of a run: each interrupt that a chip injects into a vCPU, and each change of the chip's events and routes.

As text it is a table of interrupts, a line under `HEADING` for each. Changes are comments, which begin with ``#``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import cast

from attrs import frozen

from irqchip_core.events import IrqEventSource
from irqchip_core.hookspecs import hookimpl
from irqchip_core.hypervisor.vcpu import Vcpu, VcpuX86_64, Vm
from irqchip_core.routes import IrqRoute, IrqSource, MsiSource, RoutingTable, default_routes

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


@frozen
class ChipChange:
    """A change of what a GSI connects. As text: a comment.

    Attributes:
        when: Nanoseconds of the guest's time.
        gsi: The GSI.
        change: What has become of it: an event registered or unregistered, or where it is routed now.
    """

    when: int
    gsi: int
    change: str

    def __str__(self) -> str:
        return f"# {self.when} GSI {self.gsi} {self.change}"


class Trace:
    """An observer of a chip that sees interrupts, too, if the chip's vCPUs are made by it.

    Args:
        vm: Where vCPUs are made.
        report: Called with each interrupt and each change.
    """

    def __init__(self, vm: Vm, report: Callable[[InjectedInterrupt | ChipChange], object]) -> None:
        self._vm = vm
        self._report = report
        self._routes = RoutingTable(default_routes())

    def create_vcpu(self, vcpu_id: int) -> VcpuX86_64:
        """Make a vCPU whose interrupts are reported."""
        return cast(VcpuX86_64, TracedVcpu(self._vm.create_vcpu(vcpu_id), self._injected))

    def _injected(self, vcpu: VcpuX86_64, kind: str, vector: int) -> None:
        self._report(InjectedInterrupt(self._vm.clock.now(), vcpu.id, kind, vector, vcpu.get_regs().rip))

    def _changed(self, gsi: int, change: str) -> None:
        self._report(ChipChange(self._vm.clock.now(), gsi, change))

    @hookimpl
    def irqchip_event_registered(self, gsi: int, source: IrqEventSource) -> None:
        self._changed(gsi, f"event registered: {source.device_name}")

    @hookimpl
    def irqchip_event_unregistered(self, gsi: int) -> None:
        self._changed(gsi, "event unregistered")

    @hookimpl
    def irqchip_routes_changed(self, routes: Iterable[IrqRoute]) -> None:
        before, self._routes = self._routes, RoutingTable(routes)
        for gsi in sorted({route.gsi for route in (*before, *self._routes)}):
            if self._routes[gsi] != before[gsi]:
                self._changed(gsi, f"routed: {', '.join(map(_text, self._routes[gsi])) or 'nowhere'}")


def _text(source: IrqSource) -> str:
    if isinstance(source, MsiSource):
        return f"message {source.address:#x} {source.data:#x}"
    return f"{source.chip.value} pin {source.pin}"


class TracedVcpu:
    """A vCPU that reports what is injected into another, which does all the rest.

    Args:
        vcpu: The other one.
        injected: Called with it, the kind and the vector of each interrupt.
    """

    def __init__(self, vcpu: VcpuX86_64, injected: Callable[[VcpuX86_64, str, int], object]) -> None:
        self._vcpu = vcpu
        self._injected = injected

    def interrupt(self, vector: int) -> None:
        self._vcpu.interrupt(vector)
        self._injected(self._vcpu, "irq", vector)

    def inject_nmi(self) -> None:
        self._vcpu.inject_nmi()
        self._injected(self._vcpu, "nmi", NMI_VECTOR)


def _passed_on(name: str) -> property:
    """A member of `TracedVcpu` that is the same one of the vCPU in it."""

    def of_vcpu(traced: TracedVcpu) -> object:
        return getattr(traced._vcpu, name)

    def set_in_vcpu(traced: TracedVcpu, value: object) -> None:
        setattr(traced._vcpu, name, value)

    return property(of_vcpu, set_in_vcpu)


for _name in vars(Vcpu).keys() | vars(VcpuX86_64).keys():
    if not _name.startswith("_") and not hasattr(TracedVcpu, _name):
        setattr(TracedVcpu, _name, _passed_on(_name))
