"""Offers KVM to irqchip as hypervisor `kvm`. Imports the bindings at the first probe."""

from __future__ import annotations

from typing import TYPE_CHECKING

from irqchip_core.errors import IrqChipError
from irqchip_core.hookspecs import Hypervisor, hookimpl

if TYPE_CHECKING:
    from irqchip_core.clock import VirtualClock
    from irqchip_kvm.vm import KvmVm


class KvmHypervisor(Hypervisor):
    """Linux KVM on x86-64."""

    name = "kvm"
    api_version = 1
    summary = "Linux KVM on x86-64 (/dev/kvm)"
    rank = 10

    def probe(self) -> str | None:
        """None if /dev/kvm can be used, else one sentence saying why not and what would help."""
        made = self.try_create_vm()
        if isinstance(made, str):
            return made
        made.close()
        return None

    def create_vm(self) -> KvmVm:
        from irqchip_kvm.kvm import Kvm

        with Kvm() as kvm:
            return kvm.create_vm()

    def try_create_vm(self, clock: VirtualClock | None = None) -> KvmVm | str:
        """Whether VMs can be made here only the attempt shows, so the VM it makes is the one that is used."""
        import platform

        if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
            return f"KVM here needs Linux on x86-64, this is {platform.system()} on {platform.machine()}"
        try:
            return self.create_vm()
        except IrqChipError as error:
            return str(error)


@hookimpl
def irqchip_hypervisor() -> Hypervisor:
    return KvmHypervisor()
