"""A flat binary, entered as a PC's BIOS enters a boot sector: real mode, 0000:7C00, DL = 0x80 (first hard disk).

All of the file is loaded, not only 512 bytes, and the signature 55 AA is not required. There is no BIOS: interrupt
vectors are 0.
"""

from __future__ import annotations

from irqchip_core.hypervisor.registers import DescriptorTable, Regs, Sregs
from irqchip_core.hypervisor.registers import Segment as SegmentRegister
from irqchip_vmm.loaders.image import Image, LoadError, Segment

BOOT_ADDRESS = 0x7C00
FIRST_HARD_DISK = 0x80
LOW_MEMORY_END = 0xA0000
CR0_ET = 0x10
REAL_MODE_IVT_LIMIT = 0x3FF
CODE_SEGMENT = 11  # execute/read, accessed


def load_flat(name: str, data: bytes, *, memory_size: int) -> Image:
    """The image of a flat binary.

    Raises:
        LoadError: It is empty, or larger than what is free of low memory.
    """
    room = min(LOW_MEMORY_END, memory_size) - BOOT_ADDRESS
    if not data:
        raise LoadError("the file is empty", subject=name, remedy="name a guest")
    if len(data) > room:
        raise LoadError(
            f"a flat binary has {room} bytes of room above {BOOT_ADDRESS:#x}, and it has {len(data)}",
            subject=name,
            remedy="use a multiboot image",
        )
    regs = Regs(rip=BOOT_ADDRESS, rsp=BOOT_ADDRESS, rdx=FIRST_HARD_DISK)
    return Image("flat", [Segment(BOOT_ADDRESS, data, len(data))], regs, _real_mode)


def _real_mode(sregs: Sregs) -> None:
    sregs.cs = SegmentRegister(type=CODE_SEGMENT)
    sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = SegmentRegister()
    sregs.idt = DescriptorTable(limit=REAL_MODE_IVT_LIMIT)
    sregs.cr0 = CR0_ET
