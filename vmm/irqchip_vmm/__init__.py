"""A small virtual machine monitor to run guests on any irqchip: `irqchip run`, and `Machine` as a library."""

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
