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

from irqchip_core.hypervisor.registers import CpuidEntry
from irqchip_unicorn.emulator import open_engine
from irqchip_unicorn.features import EAX, EBX, ECX, EDX, FEATURES, OTHER_CR4, OTHER_MSRS, WORDS

_CODE = 0x1000
_SUBLEAVES = {0x4: 4, 0x7: 1, 0xD: 2}
"""Leaves that depend on ECX, and for how many values of it they are recorded."""
_XSAVE_STATE = {
    # Leaf, subleaf, register: x87 and SSE are saved. The emulator announces AVX state, and has no AVX.
    (0xD, 0, EAX): 3, (0xD, 0, EBX): 576, (0xD, 0, ECX): 576, (0xD, 0, EDX): 0,
}  # fmt: skip
_TOPOLOGY = (0xB, 0x1F)
"""Leaves whose EDX, the APIC id, is the same for any ECX, as is ECX's low byte (Intel SDM vol. 2, CPUID)."""
HYPERVISOR_PRESENT = 1 << 31  # leaf 1, ECX
RDRAND = 1 << 30
OSXSAVE = 1 << 27
X2APIC = 21  # the bit's number
APIC = 1 << 9  # leaf 1, EDX
RDSEED = 1 << 18  # leaf 7, EBX


@functools.cache
def _answers() -> tuple[tuple[int, int, int, int, int, int], ...]:
    uc = open_engine(UC_ARCH_X86, UC_MODE_64, UC_CPU_X86_EPYC_ROME)
    uc.mem_map(_CODE, 0x1000)
    uc.mem_write(_CODE, b"\x0f\xa2")  # cpuid
    registers = (UC_X86_REG_RAX, UC_X86_REG_RBX, UC_X86_REG_RCX, UC_X86_REG_RDX)

    fixed = dict.fromkeys(WORDS, 0) | _XSAVE_STATE
    fixed[1, 0, ECX] = HYPERVISOR_PRESENT
    for feature in FEATURES:
        fixed[feature.word] |= 1 << feature.bit

    def ask(leaf: int, subleaf: int) -> tuple[int, int, int, int]:
        uc.reg_write(UC_X86_REG_RAX, leaf)
        uc.reg_write(UC_X86_REG_RCX, subleaf)
        uc.emu_start(_CODE, _CODE + 2)
        eax, ebx, ecx, edx = (
            fixed[word] if (word := (leaf, subleaf, number)) in fixed else uc.reg_read(register) & 0xFFFFFFFF
            for number, register in enumerate(registers)
        )
        return eax, ebx, ecx, edx

    found = []
    for first in (0, 0x80000000):
        for leaf in range(first, ask(first, 0)[0] + 1):
            found += [(leaf, subleaf, *ask(leaf, subleaf)) for subleaf in range(_SUBLEAVES.get(leaf, 1))]
    return tuple(found)


def supported(*, repeatable: bool = False) -> list[CpuidEntry]:
    """New records of what the emulated processor answers.

    Args:
        repeatable: Leave out what draws on the host's random numbers.
    """
    entries = [
        CpuidEntry(leaf, subleaf, leaf in _SUBLEAVES, eax, ebx, ecx, edx)
        for leaf, subleaf, eax, ebx, ecx, edx in _answers()
    ]
    if repeatable:
        for entry in entries:
            if entry.function == 1:
                entry.ecx &= ~RDRAND
            elif entry.function == 7:
                entry.ebx &= ~RDSEED
    return entries


class Cpuid:
    """What one vCPU answers, and what comes with that.

    Attributes:
        cr4, efer: The bits that may be set.
        msrs: The MSRs that there are, beside those of a chip.
    """

    def __init__(self) -> None:
        self._entries: dict[tuple[int, int | None], tuple[int, int, int, int]] = {}
        self.cr4, self.efer, self.msrs = OTHER_CR4, 0, OTHER_MSRS

    def set(self, entries: Sequence[CpuidEntry]) -> None:
        self._entries = {
            (entry.function, entry.index if entry.significant_index else None): (
                entry.eax, entry.ebx, entry.ecx, entry.edx,
            )
            for entry in entries
        }  # fmt: skip
        announced = [feature for feature in FEATURES if self._has(*feature.word, feature.bit)]
        self.cr4 = sum({feature.cr4 for feature in announced}, OTHER_CR4)
        self.efer = sum({feature.efer for feature in announced})
        self.msrs = OTHER_MSRS.union(*(feature.msrs for feature in announced))

    def _entry(self, leaf: int, subleaf: int) -> tuple[int, int, int, int] | None:
        return self._entries.get((leaf, None)) or self._entries.get((leaf, subleaf))

    def _has(self, leaf: int, subleaf: int, register: int, bit: int) -> bool:
        entry = self._entry(leaf, subleaf)
        return entry is not None and bool(entry[register] >> bit & 1)

    def has_x2apic(self) -> bool:
        return self._has(1, 0, ECX, X2APIC)

    def answer(self, leaf: int, subleaf: int, *, osxsave: bool, apic: bool) -> tuple[int, int, int, int]:
        """EAX, EBX, ECX and EDX; zeros for a leaf that is not there.

        Args:
            leaf: EAX.
            subleaf: ECX.
            osxsave: CR4.OSXSAVE, which leaf 1 shows.
            apic: Whether IA32_APIC_BASE enables the local APIC, likewise.
        """
        entry = self._entry(leaf, subleaf)
        if entry is None:
            if leaf in _TOPOLOGY and (first := self._entries.get((leaf, 0))):
                return 0, 0, subleaf & 0xFF, first[3]
            return 0, 0, 0, 0
        eax, ebx, ecx, edx = entry
        if leaf == 1:
            ecx = ecx & ~OSXSAVE | (OSXSAVE if osxsave else 0)
            edx = edx if apic else edx & ~APIC
        return eax, ebx, ecx, edx
