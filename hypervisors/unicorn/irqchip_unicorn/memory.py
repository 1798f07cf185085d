"""Guest-physical memory: pieces of host memory that all vCPUs share, and the holes between them.

Paging is in `paging`. What lies in no piece is MMIO.
"""

from __future__ import annotations

import bisect
import ctypes
import mmap
from operator import attrgetter

from attrs import frozen

from irqchip_core.errors import InvalidArgument

PAGE_SIZE = 4096
END = 1 << 51
"""Guest-physical addresses are below; 51 bits, the most that leave room for the engine's own pages."""


@frozen(eq=False)
class Region:
    """Host memory the guest sees from `start` on.

    Attributes:
        start: Guest physical address.
        memory: Its bytes.
        host_address: Where they are in this process.
    """

    start: int
    memory: memoryview
    host_address: int

    @property
    def end(self) -> int:
        return self.start + len(self.memory)


def host_pages(size: int) -> tuple[memoryview, int]:
    """`size` bytes of zeroed host memory on page boundaries, and their address."""
    pages = mmap.mmap(-1, size)
    return memoryview(pages), ctypes.addressof(ctypes.c_char.from_buffer(pages))


_start = attrgetter("start")


class GuestMemory:
    """All regions of a VM.

    Attributes:
        regions: By address; another tuple after each addition.
    """

    def __init__(self) -> None:
        self.regions: tuple[Region, ...] = ()

    def add(self, start: int, size: int) -> memoryview:
        """Add a region; see `irqchip_core.hypervisor.vcpu.Vm.map_memory`."""
        if start < 0 or start % PAGE_SIZE or size <= 0 or size % PAGE_SIZE or start + size > END:
            raise InvalidArgument(
                f"[{start:#x}, {start + size:#x}) does not consist of pages below {END:#x}",
                subject="Unicorn VM",
                argument="guest_address, size",
                remedy=f"use multiples of {PAGE_SIZE}, and a size above 0",
            )
        for region in self.regions:
            if start < region.end and region.start < start + size:
                raise InvalidArgument(
                    f"[{start:#x}, {start + size:#x}) overlaps memory that is mapped already",
                    subject="Unicorn VM",
                    argument="guest_address, size",
                    remedy="choose a free range",
                )
        region = Region(start, *host_pages(size))
        self.regions = tuple(sorted((*self.regions, region), key=_start))
        return region.memory

    def holes(self) -> list[tuple[int, int]]:
        """The ranges (start, size) of guest-physical addresses without memory."""
        holes, at = [], 0
        for region in self.regions:
            if region.start > at:
                holes.append((at, region.start - at))
            at = region.end
        holes.append((at, END - at))
        return holes

    def view(self, address: int, size: int) -> memoryview | None:
        """The bytes at a guest physical address; None if they are not all in one region."""
        at = bisect.bisect_right(self.regions, address, key=_start) - 1
        if at < 0 or address + size > self.regions[at].end:
            return None
        offset = address - self.regions[at].start
        return self.regions[at].memory[offset : offset + size]

    def read(self, address: int, size: int) -> int:
        """A little-endian number; all ones where there is no memory, as on a PC."""
        view = self.view(address, size)
        return int.from_bytes(view, "little") if view is not None else (1 << 8 * size) - 1

    def write(self, address: int, size: int, value: int) -> None:
        """Store a little-endian number; nothing happens where there is no memory."""
        if (view := self.view(address, size)) is not None:
            view[:] = value.to_bytes(size, "little")
