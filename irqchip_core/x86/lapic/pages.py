"""The register pages of the local APICs on the MMIO bus: at one address, until a guest moves one."""

from __future__ import annotations

import contextlib
from typing import Protocol

from typing_extensions import override

from irqchip_core.bus import Access, Bus, BusDevice
from irqchip_core.errors import InvalidArgument
from irqchip_core.x86.lapic.registers import APIC_BASE_RESET
from irqchip_core.x86.state import LAPIC_BASE

LAPIC_LENGTH = 0x1000
APIC_BASE_ADDRESS = ~0xFFF


class LapicRegisters(Protocol):
    """The registers of all local APICs, as their pages use them. Both methods may be called by several threads."""

    def read(self, vcpu_id: int, offset: int, size: int) -> int: ...
    def write(self, vcpu_id: int, offset: int, size: int, value: int) -> None: ...


class LapicPages(BusDevice):
    """The pages.

    Args:
        registers: The registers of the local APICs.
        count: Number of local APICs; their ids are 0 and up.
        bus: The MMIO bus, on which this is at `LAPIC_BASE`.
    """

    debug_label = "local APICs"
    self_synchronized = True

    def __init__(self, registers: LapicRegisters, count: int, bus: Bus) -> None:
        self._registers = registers
        self._bus = bus
        self._bases = {LAPIC_BASE: count}  # number of local APICs by the address of their pages
        self._base_of = [APIC_BASE_RESET & APIC_BASE_ADDRESS] * count

    def _is_its_own(self, access: Access) -> bool:
        bases = self._base_of
        return access.vcpu_id < len(bases) and bases[access.vcpu_id] == access.address - access.offset

    @override
    def read(self, access: Access) -> int:
        if not self._is_its_own(access):
            return (1 << 8 * access.size) - 1
        return self._registers.read(access.vcpu_id, access.offset, access.size)

    @override
    def write(self, access: Access, value: int) -> None:
        if self._is_its_own(access):
            self._registers.write(access.vcpu_id, access.offset, access.size, value)

    def follow(self, apic_id: int, apic_base: int) -> None:
        """Move a page after a change of IA32_APIC_BASE, unless another device is there. Needs the chipset's lock."""
        new, old = apic_base & APIC_BASE_ADDRESS, self._base_of[apic_id]
        if new == old:
            return
        self._base_of[apic_id] = new
        self._bases[old] -= 1
        if not self._bases[old]:
            del self._bases[old]
            if any(base == old and device is self for base, _, device in self._bus.devices()):
                self._bus.remove(old)
        self._bases[new] = self._bases.get(new, 0) + 1
        if self._bases[new] == 1:
            with contextlib.suppress(InvalidArgument):
                self._bus.insert(self, new, LAPIC_LENGTH)
