"""The demonstration guest: its bytes, and what its report must hold.

Its source is beside this file in the repository, from ``demo.S`` on; a test assembles it and compares the bytes.
"""

from __future__ import annotations

from importlib.resources import files

from irqchip_core.errors import InvalidArgument
from irqchip_vmm.loaders import Image, load_image

NAME = "demonstration guest"
MAX_VCPUS = 64

FIRST_VCPU_SOURCES = ("pic-edge", "pit")
EVERY_VCPU_SOURCES = ("ioapic-edge", "ioapic-level", "msi", "timer-one-shot", "timer-periodic", "ipi-self")
OTHER_VCPU_SOURCES = ("ipi", "ipi-work")
DEADLINE_SOURCE = "timer-deadline"
REPLY_SOURCE = "ipi-reply"
SPURIOUS_SOURCE = "spurious"

RAISED_BY = {
    "generator-edge": ("pic-edge", "ioapic-edge"),
    "generator-level": ("ioapic-level",),
    "generator-msi": ("msi",),
}
"""Which rows, taken together, count what each interrupt of the generator became."""


def demonstration_guest(*, memory_size: int, vcpu_count: int) -> Image:
    """The guest.

    Raises:
        InvalidArgument: More vCPUs than it has room for, or too little memory.
    """
    if vcpu_count > MAX_VCPUS:
        raise InvalidArgument(
            f"it can use {MAX_VCPUS} vCPUs, not {vcpu_count}",
            subject=NAME,
            argument="vcpu_count",
            remedy="give it fewer",
        )
    data = (files(__name__) / "demo.bin").read_bytes()
    return load_image(NAME, data, memory_size=memory_size)


def expected_rows(vcpu_count: int, tsc_deadline: bool) -> set[tuple[str, int]]:
    """Source and vCPU of every row the report must hold: no more, no less."""
    every = EVERY_VCPU_SOURCES + ((DEADLINE_SOURCE,) if tsc_deadline else ())
    rows = {(name, 0) for name in FIRST_VCPU_SOURCES}
    for vcpu in range(vcpu_count):
        rows |= {(name, vcpu) for name in (*every, SPURIOUS_SOURCE)}
        if vcpu > 0:
            rows |= {(name, vcpu) for name in OTHER_VCPU_SOURCES} | {(REPLY_SOURCE, 0)}
    return rows
