"""The bus devices of a `Chipset`: ports of PICs and PIT, register page of the IOAPIC."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import override

from irqchip_core.bus import Access, BusDevice

if TYPE_CHECKING:
    from irqchip_core.x86.chipset.chipset import Chipset

IOAPIC_LENGTH = 0x100
PIC_RANGES = ((0x20, 2), (0xA0, 2), (0x4D0, 2))
PIT_RANGES = ((0x40, 8), (0x61, 1))


class _ChipsetDevice(BusDevice):
    """A device whose accesses take the chipset's lock."""

    self_synchronized = True

    def __init__(self, chipset: Chipset) -> None:
        self._chipset = chipset


class PicPorts(_ChipsetDevice):
    """Both 8259As and the ELCR."""

    debug_label = "userspace PIC"
    width = 1

    @override
    def read(self, access: Access) -> int:
        chipset = self._chipset
        with chipset.lock:
            value, effects = chipset.pic.read(access.address, access.size)  # a poll acknowledges
            if effects:
                chipset.carry_out(effects)
        return value

    @override
    def write(self, access: Access, value: int) -> None:
        chipset = self._chipset
        with chipset.lock:
            chipset.carry_out(chipset.pic.write(access.address, access.size, value))


class PitPorts(_ChipsetDevice):
    """The 8254 and port 0x61."""

    debug_label = "userspace PIT"
    width = 1

    @override
    def read(self, access: Access) -> int:
        chipset = self._chipset
        with chipset.lock:
            return chipset.pit.read(access.address, access.size, chipset.clock.now())

    @override
    def write(self, access: Access, value: int) -> None:
        chipset = self._chipset
        with chipset.lock:
            chipset.carry_out(chipset.pit.write(access.address, access.size, value, chipset.clock.now()))


class IoapicPage(_ChipsetDevice):
    """The IOAPIC's registers."""

    debug_label = "userspace IOAPIC"

    @override
    def read(self, access: Access) -> int:
        chipset = self._chipset
        with chipset.lock:
            return chipset.ioapic.read(access.offset, access.size, chipset.clock.now())

    @override
    def write(self, access: Access, value: int) -> None:
        chipset = self._chipset
        with chipset.lock:
            effects = chipset.ioapic.write(access.offset, access.size, value, chipset.clock.now())
            if effects:
                chipset.carry_out(effects)
