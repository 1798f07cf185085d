"""`KernelApics`: the local APICs in the kernel, as the `LocalApics` of a chipset.

Messages go to KVM at once (KVM_SIGNAL_MSI); EOIs of level-triggered messages come back as `IoapicEoiExit` (see
`kernel_routes`); the PICs' vectors go to vCPU 0 (see `pic_output`).
"""

from __future__ import annotations

from irqchip_core.routes import RoutingTable
from irqchip_core.x86.chipset.chipset import Chipset
from irqchip_core.x86.msi import Message, encode_msi
from irqchip_kvm import KvmVm
from irqchip_kvm_split.kernel_routes import KernelRoutes
from irqchip_kvm_split.pic_output import PicOutput


class KernelApics:
    """Implements `irqchip_core.x86.chipset.chipset.LocalApics`.

    Args:
        vm: A VM with a split chip that has as many reserved pins as the IOAPIC of `chipset`, and no routes.
        chipset: The chipset.
    """

    def __init__(self, vm: KvmVm, chipset: Chipset) -> None:
        self.lock_free = True
        self.pic_output = PicOutput(chipset)
        self._signal_msi = vm.signal_msi
        self._kernel_routes = KernelRoutes(vm, chipset.ioapic)

    def deliver(self, message: Message) -> bool:
        return self._signal_msi(*encode_msi(message))

    def int_changed(self, high: bool) -> None:
        self.pic_output.changed(high)

    def entries_changed(self, pins: int) -> None:
        self._kernel_routes.entries_changed(pins)

    def commit_routes(self, routes: RoutingTable) -> None:
        self._kernel_routes.routes_changed(routes)

    def expire(self, now: int) -> int | None:
        """No action: the timers are in the kernel."""
        return None
