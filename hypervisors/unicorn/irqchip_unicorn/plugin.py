"""Offers Unicorn to irqchip as hypervisor `unicorn`. Imports the emulator at the first probe."""

from __future__ import annotations

from typing import TYPE_CHECKING

from irqchip_core.clock import VirtualClock
from irqchip_core.errors import IrqChipError
from irqchip_core.hookspecs import Hypervisor, hookimpl

if TYPE_CHECKING:
    from irqchip_unicorn.vm import UnicornVm


class UnicornHypervisor(Hypervisor):
    """x86-64 in software, on any machine."""

    name = "unicorn"
    api_version = 1
    summary = "Unicorn CPU emulator (x86-64 in software, any machine)"
    rank = 50
    virtual_time = True

    def probe(self) -> str | None:
        """None if VMs can be made here, else one sentence saying why not and what would help."""
        try:
            with self.create_vm() as vm:
                vm.create_vcpu(0)
        except IrqChipError as error:
            return str(error)
        return None

    def create_vm(self) -> UnicornVm:
        from irqchip_unicorn.vm import UnicornVm

        return UnicornVm()

    def create_vm_in_virtual_time(self, clock: VirtualClock) -> UnicornVm:
        from irqchip_unicorn.vm import UnicornVm

        return UnicornVm(clock)


@hookimpl
def irqchip_hypervisor() -> Hypervisor:
    return UnicornHypervisor()
