"""The backend userspace. It imports the chip when the chip is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import override

from irqchip_core.hookspecs import API_VERSION, Backend, Probe, hookimpl

if TYPE_CHECKING:
    from irqchip_core.hypervisor.vcpu import Vm
    from irqchip_userspace.chip import UserspaceIrqChip


class UserspaceBackend(Backend):
    """The backend of `UserspaceIrqChip`."""

    name = "userspace"
    api_version = API_VERSION
    summary = "PIC, IOAPIC, PIT and local APICs in Python, on any hypervisor"
    hypervisors = None
    rank = 30

    @override
    def probe(self, vm: Vm) -> Probe:
        from irqchip_userspace.chip import probe

        return probe(vm)

    @override
    def create(self, vm: Vm, vcpu_count: int) -> UserspaceIrqChip:
        from irqchip_userspace.chip import UserspaceIrqChip

        return UserspaceIrqChip(vm, vcpu_count)


@hookimpl
def irqchip_backend() -> Backend:
    """Offer userspace."""
    return UserspaceBackend()
