"""The backend kvm_kernel. It imports the chip and the KVM bindings when the chip is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import override

from irqchip_core.hookspecs import API_VERSION, Backend, Probe, hookimpl

if TYPE_CHECKING:
    from irqchip_core.hypervisor.vcpu import Vm
    from irqchip_kvm_kernel.chip import KvmKernelIrqChip


class KvmKernelBackend(Backend):
    """The backend of `KvmKernelIrqChip`."""

    name = "kvm_kernel"
    api_version = API_VERSION
    summary = "PIC, IOAPIC, PIT and local APICs in the Linux kernel"
    hypervisors = frozenset({"kvm"})
    rank = 10

    @override
    def probe(self, vm: Vm) -> Probe:
        from irqchip_kvm_kernel.chip import probe

        return probe(vm)

    @override
    def create(self, vm: Vm, vcpu_count: int) -> KvmKernelIrqChip:
        from irqchip_kvm_kernel.chip import KvmKernelIrqChip

        return KvmKernelIrqChip(vm, vcpu_count)


@hookimpl
def irqchip_backend() -> Backend:
    """Offer kvm_kernel."""
    return KvmKernelBackend()
