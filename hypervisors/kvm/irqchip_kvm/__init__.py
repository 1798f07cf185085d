"""Linux KVM for irqchip: pure Python bindings of /dev/kvm.

The names below are imported when first used, so that the plugin costs nothing while another hypervisor is chosen.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from irqchip_kvm.abi import Cap
    from irqchip_kvm.irqfds import Irqfds
    from irqchip_kvm.kvm import Kvm
    from irqchip_kvm.records import MsrRange, VcpuEvents
    from irqchip_kvm.vcpu import KvmVcpu
    from irqchip_kvm.vcpu_slots import VcpuSlots
    from irqchip_kvm.vm import KvmVm

__all__ = ["Cap", "Irqfds", "Kvm", "KvmVcpu", "KvmVm", "MsrRange", "VcpuEvents", "VcpuSlots"]

_HOMES = {
    "Cap": "abi",
    "Irqfds": "irqfds",
    "Kvm": "kvm",
    "KvmVcpu": "vcpu",
    "KvmVm": "vm",
    "MsrRange": "records",
    "VcpuEvents": "records",
    "VcpuSlots": "vcpu_slots",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
