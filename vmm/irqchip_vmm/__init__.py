"""A small virtual machine monitor to run guests on any irqchip: `irqchip run`, and `Machine` as a library.

The names below are imported when first used, so that the plugin costs other commands nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from irqchip_vmm.ending import End, Outcome, RunResult
    from irqchip_vmm.interrupts import EdgeIrq, IrqCount, LevelIrq, MsiIrq
    from irqchip_vmm.loaders import Image, LoadError, load_file, load_image
    from irqchip_vmm.machine import Machine

__all__ = [
    "EdgeIrq",
    "End",
    "Image",
    "IrqCount",
    "LevelIrq",
    "LoadError",
    "Machine",
    "MsiIrq",
    "Outcome",
    "RunResult",
    "load_file",
    "load_image",
]

_HOMES = {
    "EdgeIrq": "interrupts",
    "End": "ending",
    "Image": "loaders",
    "IrqCount": "interrupts",
    "LevelIrq": "interrupts",
    "LoadError": "loaders",
    "Machine": "machine",
    "MsiIrq": "interrupts",
    "Outcome": "ending",
    "RunResult": "ending",
    "load_file": "loaders",
    "load_image": "loaders",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
