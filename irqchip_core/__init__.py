"""Interrupt chips for virtual machine monitors: the contract, and the choice of a chip.

The names a VMM or a device needs every day are here; each lives in the module that explains it.
"""

from irqchip_core.allocator import SystemAllocator
from irqchip_core.bus import Access, Bus, BusDevice
from irqchip_core.capabilities import PC_CONTROLLERS, Capability, IrqChipCap
from irqchip_core.chip import IrqChip, MPState, VcpuRunState
from irqchip_core.errors import IrqChipError
from irqchip_core.eventfd import Event
from irqchip_core.events import (
    IrqEdgeEvent,
    IrqEventIndex,
    IrqEventSource,
    IrqEventToken,
    IrqLevelEvent,
    PciDeviceId,
    PlatformDeviceId,
)
from irqchip_core.irq_loop import AsyncIrqLoop, IrqLoop
from irqchip_core.routes import IrqRoute, IrqSourceChip, MsiSource, PinSource
from irqchip_core.selection import create_irqchip, create_vm
from irqchip_core.vcpu_loop import VcpuLoop, VcpuThread, stop_vcpus

__all__ = [
    "PC_CONTROLLERS",
    "Access",
    "AsyncIrqLoop",
    "Bus",
    "BusDevice",
    "Capability",
    "Event",
    "IrqChip",
    "IrqChipCap",
    "IrqChipError",
    "IrqEdgeEvent",
    "IrqEventIndex",
    "IrqEventSource",
    "IrqEventToken",
    "IrqLevelEvent",
    "IrqLoop",
    "IrqRoute",
    "IrqSourceChip",
    "MPState",
    "MsiSource",
    "PciDeviceId",
    "PinSource",
    "PlatformDeviceId",
    "SystemAllocator",
    "VcpuLoop",
    "VcpuRunState",
    "VcpuThread",
    "create_irqchip",
    "create_vm",
    "stop_vcpus",
]
