"""What CPUID answers: what the emulated processor can do, and the bits that follow the guest's own settings."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from unicorn.unicorn_const import UC_ARCH_X86, UC_MODE_64
from unicorn.x86_const import (
    UC_CPU_X86_EPYC_ROME,
    UC_X86_REG_RAX,
    UC_X86_REG_RBX,
    UC_X86_REG_RCX,
    UC_X86_REG_RDX,
)

from irqchip_core.x86.registers import CpuidEntry
from irqchip_unicorn.emulator import open_engine

_CODE = 0x1000
_SUBLEAVES = {0x4: 4, 0x7: 1, 0xD: 3}
"""Leaves that look at ECX, and how many values of it are asked for."""
_HIDDEN = {
    # Leaf: bits of EAX, EBX, ECX and EDX that irqchip-unicorn does not deliver or leaves to the chip.
    0x1: (0, 0, 1 << 3 | 1 << 21 | 1 << 24, 0),  # MONITOR; x2APIC and the TSC deadline timer, if the chip has them
    0x80000001: (0, 0, 1 << 2 | 1 << 3, 0),  # SVM, extended APIC space
}
_TOPOLOGY = (0xB, 0x1F)
"""Leaves whose EDX, the APIC id, is the same for any ECX, as is ECX's low byte (Intel SDM vol. 2, CPUID)."""
HYPERVISOR_PRESENT = 1 << 31  # leaf 1, ECX
OSXSAVE = 1 << 27
X2APIC = 1 << 21
APIC = 1 << 9  # leaf 1, EDX


@functools.cache
def _answers() -> tuple[tuple[int, int, int, int, int, int], ...]:
    uc = open_engine(UC_ARCH_X86, UC_MODE_64, UC_CPU_X86_EPYC_ROME)
    uc.mem_map(_CODE, 0x1000)
    uc.mem_write(_CODE, b"\x0f\xa2")  # cpuid
    registers = (UC_X86_REG_RAX, UC_X86_REG_RBX, UC_X86_REG_RCX, UC_X86_REG_RDX)

    def ask(leaf: int, subleaf: int) -> tuple[int, int, int, int]:
        uc.reg_write(UC_X86_REG_RAX, leaf)
        uc.reg_write(UC_X86_REG_RCX, subleaf)
        uc.emu_start(_CODE, _CODE + 2)
        hidden = _HIDDEN.get(leaf, (0, 0, 0, 0))
        eax, ebx, ecx, edx = (
            uc.reg_read(register) & 0xFFFFFFFF & ~bits for register, bits in zip(registers, hidden, strict=True)
        )
        return eax, ebx, ecx | (HYPERVISOR_PRESENT if leaf == 1 else 0), edx

    found = []
    for first in (0, 0x80000000):
        for leaf in range(first, ask(first, 0)[0] + 1):
            found += [(leaf, subleaf, *ask(leaf, subleaf)) for subleaf in range(_SUBLEAVES.get(leaf, 1))]
    return tuple(found)


def supported() -> list[CpuidEntry]:
    """New records of what the emulated processor answers."""
    return [
        CpuidEntry(leaf, subleaf, leaf in _SUBLEAVES, eax, ebx, ecx, edx)
        for leaf, subleaf, eax, ebx, ecx, edx in _answers()
    ]


class Cpuid:
    """What one vCPU answers."""

    def __init__(self) -> None:
        self._entries: dict[tuple[int, int | None], tuple[int, int, int, int]] = {}

    def set(self, entries: Sequence[CpuidEntry]) -> None:
        self._entries = {
            (entry.function, entry.index if entry.significant_index else None): (
                entry.eax, entry.ebx, entry.ecx, entry.edx,
            )
            for entry in entries
        }  # fmt: skip

    def has_x2apic(self) -> bool:
        return bool(self._entries.get((1, None), (0, 0, 0, 0))[2] & X2APIC)

    def answer(self, leaf: int, subleaf: int, *, osxsave: bool, apic: bool) -> tuple[int, int, int, int]:
        """EAX, EBX, ECX and EDX; zeros for a leaf that is not there.

        Args:
            leaf: EAX.
            subleaf: ECX.
            osxsave: CR4.OSXSAVE, which leaf 1 shows.
            apic: Whether IA32_APIC_BASE enables the local APIC, likewise.
        """
        entry = self._entries.get((leaf, None)) or self._entries.get((leaf, subleaf))
        if entry is None:
            if leaf in _TOPOLOGY and (first := self._entries.get((leaf, 0))):
                return 0, 0, subleaf & 0xFF, first[3]
            return 0, 0, 0, 0
        eax, ebx, ecx, edx = entry
        if leaf == 1:
            ecx = ecx & ~OSXSAVE | (OSXSAVE if osxsave else 0)
            edx = edx if apic else edx & ~APIC
        return eax, ebx, ecx, edx
