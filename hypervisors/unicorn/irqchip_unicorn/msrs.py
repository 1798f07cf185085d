"""Model-specific registers: which the emulator keeps by itself, which are kept here, and what they accept.

What the vCPU's CPUID does not announce raises #GP. Intel SDM vol. 4; AMD64 Manual vol. 2, appendix A.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from irqchip_unicorn import state
from irqchip_unicorn.context import Context
from irqchip_unicorn.cpuid import Cpuid
from irqchip_unicorn.delivery import GP
from irqchip_unicorn.features import (
    APIC_BASE,
    CSTAR,
    EFER,
    FS_BASE,
    GS_BASE,
    KERNEL_GS_BASE,
    LSTAR,
    MCG_CAP,
    MCG_STATUS,
    MICROCODE,
    MTRR_DEF_TYPE,
    MTRR_FIXED,
    MTRR_VARIABLE,
    MTRRCAP,
    PAT,
    SFMASK,
    STAR,
    SYSENTER_CS,
    SYSENTER_EIP,
    SYSENTER_ESP,
    TSC,
    TSC_AUX,
    UNUSED_MSRS,
)
from irqchip_unicorn.paging import GuestFault

APIC_BASE_ADDRESS = 0xFEE00000
APIC_BASE_BSP, APIC_BASE_EXTD, APIC_BASE_ENABLE = 1 << 8, 1 << 10, 1 << 11
_MODES = APIC_BASE_ENABLE | APIC_BASE_EXTD
_PHYSICAL_ADDRESS = (1 << 40) - 1

_NATIVE = frozenset(
    {SYSENTER_CS, SYSENTER_ESP, SYSENTER_EIP, STAR, LSTAR, CSTAR, SFMASK, FS_BASE, GS_BASE, KERNEL_GS_BASE}
)
_READ_ONLY = {MICROCODE: 0, MTRRCAP: 0x508, MCG_CAP: 0}  # 8 variable MTRRs, fixed ones, WC; no banks of MCA
_MCG_STATUS_DEFINED = 7
# Memory types: UC, WC, WT, WP, WB; UC- in the PAT only
_MTRR_TYPES = frozenset({0, 1, 4, 5, 6})
_PAT_TYPES = _MTRR_TYPES | {7}
_TYPE, _MTRR_VALID, _MTRR_ENABLES = 0xFF, 1 << 11, 3 << 10
_PAGES = _PHYSICAL_ADDRESS & ~0xFFF


def native(elsewhere: Iterable[range], cpuid: Cpuid) -> frozenset[int]:
    """The MSRs that the emulator keeps by itself, except those in `elsewhere`, which the VMM handles."""
    ranges = tuple(elsewhere)
    return frozenset(index for index in _NATIVE & cpuid.msrs if not any(index in msrs for msrs in ranges))


def _accepts(index: int, value: int) -> bool:
    """Whether no reserved bit or value is written to an MSR that is stored."""
    if index == TSC_AUX:
        return not value >> 32
    if index == MCG_STATUS:
        return not value & ~_MCG_STATUS_DEFINED
    if index == PAT or index in MTRR_FIXED:
        return (_PAT_TYPES if index == PAT else _MTRR_TYPES).issuperset(value.to_bytes(8, "little"))
    if index in MTRR_VARIABLE and index & 1:
        return not value & ~(_PAGES | _MTRR_VALID)
    defined = _MTRR_ENABLES if index == MTRR_DEF_TYPE else _PAGES
    return not value & ~(defined | _TYPE) and value & _TYPE in _MTRR_TYPES


class Msrs:
    """The MSRs of one vCPU that are kept here.

    Args:
        vcpu_id: The first vCPU is the bootstrap processor.
        tsc: The time-stamp counter that all vCPUs share.
        cpuid: What the guest's CPUID announces.

    Attributes:
        apic_base: IA32_APIC_BASE.
    """

    def __init__(self, vcpu_id: int, tsc: Callable[[], int], cpuid: Cpuid) -> None:
        self._tsc = tsc
        self._tsc_offset = 0
        self._cpuid = cpuid
        self._stored = dict.fromkeys((*MTRR_VARIABLE, *MTRR_FIXED, MTRR_DEF_TYPE, MCG_STATUS, TSC_AUX), 0)
        self._stored[PAT] = 0x0007040600070406
        self.apic_base = APIC_BASE_ADDRESS | APIC_BASE_ENABLE | (APIC_BASE_BSP if vcpu_id == 0 else 0)

    def tsc(self) -> int:
        """The time-stamp counter of this vCPU."""
        return self._tsc() + self._tsc_offset & (1 << 64) - 1

    def tsc_aux(self) -> int:
        return self._stored[TSC_AUX]

    def read(self, context: Context, index: int) -> int:
        """What RDMSR gives. Raises `GuestFault`."""
        if index not in self._cpuid.msrs:
            raise GuestFault(GP, 0)
        if index == TSC:
            return self.tsc()
        if index == APIC_BASE:
            return self.apic_base
        if index == EFER:
            return context.efer
        if index in UNUSED_MSRS:
            return 0
        return self._stored[index] if index in self._stored else _READ_ONLY[index]

    def write(self, context: Context, index: int, value: int) -> None:
        """What WRMSR does. Raises `GuestFault`."""
        if index not in self._cpuid.msrs:
            raise GuestFault(GP, 0)
        if index == TSC:
            self._tsc_offset = value - self._tsc()
        elif index == APIC_BASE:
            self._write_apic_base(value)
        elif index == EFER:
            _write_efer(context, value, self._cpuid.efer)
        elif index in self._stored and _accepts(index, value):
            self._stored[index] = value
        elif index not in UNUSED_MSRS:
            raise GuestFault(GP, 0)

    def allows_apic_base(self, value: int) -> bool:
        """Whether IA32_APIC_BASE can have this value."""
        allowed = _PHYSICAL_ADDRESS & ~0xFFF | _MODES | APIC_BASE_BSP
        mode = value & _MODES
        return not value & ~allowed and (not mode & APIC_BASE_EXTD or (mode == _MODES and self._cpuid.has_x2apic()))

    def _write_apic_base(self, value: int) -> None:
        # Intel SDM vol. 3, 12.12.5: between the modes only along the arrows of the figure.
        old, new = self.apic_base & _MODES, value & _MODES
        if not self.allows_apic_base(value) or (old, new) in ((0, _MODES), (_MODES, APIC_BASE_ENABLE)):
            raise GuestFault(GP, 0)
        self.apic_base = value


def _write_efer(context: Context, value: int, writable: int) -> None:
    old = context.efer
    changes_lme = (value ^ old) & state.EFER_LME
    if value & ~(writable | state.EFER_LMA) or (changes_lme and context.cr(0) & state.CR0_PG):
        raise GuestFault(GP, 0)
    context.efer = value & writable | old & state.EFER_LMA
