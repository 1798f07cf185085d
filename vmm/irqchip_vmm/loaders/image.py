"""A guest ready to be put into memory, whatever file it came from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from attrs import frozen

from irqchip_core.errors import InvalidArgument
from irqchip_core.hypervisor.registers import Regs, Sregs
from irqchip_vmm.memory import GuestMemory


class LoadError(InvalidArgument):
    """A guest file that cannot be loaded. The subject is the file."""


@frozen
class Segment:
    """`data` at guest physical `address`, followed by zeros up to `size` bytes in all."""

    address: int
    data: bytes
    size: int

    @property
    def end(self) -> int:
        return self.address + self.size


@frozen
class Image:
    """A guest.

    Attributes:
        kind: ``flat``, ``multiboot``, for people.
        segments: What goes where. They fit into memory and do not overlap.
        regs: General registers of the first vCPU.
        set_sregs: Changes the rest of its state from that at reset.
    """

    kind: str
    segments: Sequence[Segment]
    regs: Regs
    set_sregs: Callable[[Sregs], None]

    def write_to(self, memory: GuestMemory) -> None:
        """Put all segments into zeroed memory."""
        for segment in self.segments:
            memory.write(segment.address, segment.data)


def check_segments(name: str, segments: Sequence[Segment], *, memory_size: int) -> None:
    """Raise `LoadError` unless all fit into memory without overlapping."""
    before: Segment | None = None
    for segment in sorted(segments, key=lambda segment: segment.address):
        if segment.end > memory_size:
            raise LoadError(
                f"it wants [{segment.address:#x}, {segment.end:#x}), and guest memory ends at {memory_size:#x}",
                subject=name,
                remedy="give the machine more memory, or link the guest lower",
            )
        if before is not None and segment.address < before.end:
            raise LoadError(
                f"[{before.address:#x}, {before.end:#x}) and [{segment.address:#x}, {segment.end:#x}) overlap",
                subject=name,
                remedy="link the guest so that they do not",
            )
        before = segment
