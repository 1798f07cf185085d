"""The backend kvm_split. It imports the chip and the KVM bindings when the chip is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import override

from irqchip_core.hookspecs import API_VERSION, Backend, Probe, hookimpl

if TYPE_CHECKING:
    from irqchip_core.hypervisor.vcpu import Vm
    from irqchip_kvm_split.chip import KvmSplitIrqChip


class KvmSplitBackend(Backend):
    """The backend of `KvmSplitIrqChip`."""

    name = "kvm_split"
    api_version = API_VERSION
    summary = "local APICs in the Linux kernel; PIC, IOAPIC and PIT in Python"
    hypervisors = frozenset({"kvm"})
    rank = 20

    @override
    def probe(self, vm: Vm) -> Probe:
        from irqchip_kvm_split.chip import probe

        return probe(vm)

    @override
    def create(self, vm: Vm, vcpu_count: int) -> KvmSplitIrqChip:
        from irqchip_kvm_split.chip import KvmSplitIrqChip

        return KvmSplitIrqChip(vm, vcpu_count)


@hookimpl
def irqchip_backend() -> Backend:
    """Offer kvm_split."""
    return KvmSplitBackend()
