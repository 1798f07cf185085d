"""The Unicorn CPU emulator for irqchip: virtual machines without KVM, on any machine.

The names below are imported when first used, so that the plugin costs nothing while another hypervisor is chosen.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from irqchip_unicorn.vcpu import UnicornVcpu
    from irqchip_unicorn.vm import UnicornVm

__all__ = ["UnicornVcpu", "UnicornVm"]

_HOMES = {"UnicornVcpu": "vcpu", "UnicornVm": "vm"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
