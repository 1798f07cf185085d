"""Model-specific registers: which the emulator keeps by itself, which are kept here, and what they accept.

Whatever is in neither list raises #GP, as on hardware. Intel SDM vol. 4; AMD64 Manual vol. 2, appendix A.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from irqchip_unicorn import state
from irqchip_unicorn.context import Context
from irqchip_unicorn.delivery import GP
from irqchip_unicorn.paging import GuestFault

TSC, APIC_BASE, FEATURE_CONTROL, MICROCODE, MTRRCAP, MISC_ENABLE, PAT = 0x10, 0x1B, 0x3A, 0x8B, 0xFE, 0x1A0, 0x277
MTRR_DEF_TYPE = 0x2FF
EFER, TSC_AUX = 0xC0000080, 0xC0000103

APIC_BASE_ADDRESS = 0xFEE00000
APIC_BASE_BSP, APIC_BASE_EXTD, APIC_BASE_ENABLE = 1 << 8, 1 << 10, 1 << 11
_MODES = APIC_BASE_ENABLE | APIC_BASE_EXTD
_PHYSICAL_ADDRESS = (1 << 40) - 1

SYSENTER_CS, SYSENTER_ESP, SYSENTER_EIP = 0x174, 0x175, 0x176
STAR, LSTAR, CSTAR, SFMASK = 0xC0000081, 0xC0000082, 0xC0000083, 0xC0000084
FS_BASE, GS_BASE, KERNEL_GS_BASE = 0xC0000100, 0xC0000101, 0xC0000102
_NATIVE = frozenset(
    {SYSENTER_CS, SYSENTER_ESP, SYSENTER_EIP, STAR, LSTAR, CSTAR, SFMASK, FS_BASE, GS_BASE, KERNEL_GS_BASE}
)
_MTRRS = (*range(0x200, 0x210), 0x250, 0x258, 0x259, *range(0x268, 0x270), MTRR_DEF_TYPE)
_READ_ONLY = {FEATURE_CONTROL: 1, MICROCODE: 0, MTRRCAP: 0x508}  # locked; 8 variable MTRRs, fixed ones, WC
_EFER_WRITABLE = 1 | state.EFER_LME | state.EFER_NXE  # the first: SCE


def native(elsewhere: Iterable[range]) -> frozenset[int]:
    """The MSRs that the emulator keeps by itself, where the VMM wants those in `elsewhere`."""
    ranges = tuple(elsewhere)
    return frozenset(index for index in _NATIVE if not any(index in msrs for msrs in ranges))


class Msrs:
    """The MSRs of one vCPU that are kept here.

    Args:
        vcpu_id: The first vCPU is the bootstrap processor.
        tsc: The time-stamp counter that all vCPUs share.
        has_x2apic: Whether the guest's CPUID says so now.

    Attributes:
        apic_base: IA32_APIC_BASE.
    """

    def __init__(self, vcpu_id: int, tsc: Callable[[], int], has_x2apic: Callable[[], bool]) -> None:
        self._tsc = tsc
        self._tsc_offset = 0
        self._has_x2apic = has_x2apic
        self._stored = dict.fromkeys(_MTRRS, 0) | {TSC_AUX: 0, MISC_ENABLE: 1, PAT: 0x0007040600070406}
        self.apic_base = APIC_BASE_ADDRESS | APIC_BASE_ENABLE | (APIC_BASE_BSP if vcpu_id == 0 else 0)

    def tsc(self) -> int:
        """The time-stamp counter of this vCPU."""
        return self._tsc() + self._tsc_offset & (1 << 64) - 1

    def tsc_aux(self) -> int:
        return self._stored[TSC_AUX]

    def read(self, context: Context, index: int) -> int:
        """What RDMSR gives. Raises `GuestFault`."""
        if index == TSC:
            return self.tsc()
        if index == APIC_BASE:
            return self.apic_base
        if index == EFER:
            return context.efer
        value = self._stored.get(index, _READ_ONLY.get(index))
        if value is None:
            raise GuestFault(GP, 0)
        return value

    def write(self, context: Context, index: int, value: int) -> None:
        """What WRMSR does. Raises `GuestFault`."""
        if index == TSC:
            self._tsc_offset = value - self._tsc()
        elif index == APIC_BASE:
            self._write_apic_base(value)
        elif index == EFER:
            _write_efer(context, value)
        elif index in self._stored:
            if index == TSC_AUX and value >> 32:
                raise GuestFault(GP, 0)
            self._stored[index] = value
        else:
            raise GuestFault(GP, 0)

    def allows_apic_base(self, value: int) -> bool:
        """Whether IA32_APIC_BASE can have this value."""
        allowed = _PHYSICAL_ADDRESS & ~0xFFF | _MODES | APIC_BASE_BSP
        mode = value & _MODES
        return not value & ~allowed and (not mode & APIC_BASE_EXTD or (mode == _MODES and self._has_x2apic()))

    def _write_apic_base(self, value: int) -> None:
        # Intel SDM vol. 3, 12.12.5 (10.12.5): between the modes only along the arrows of the figure.
        old, new = self.apic_base & _MODES, value & _MODES
        if not self.allows_apic_base(value) or (old, new) in ((0, _MODES), (_MODES, APIC_BASE_ENABLE)):
            raise GuestFault(GP, 0)
        self.apic_base = value


def _write_efer(context: Context, value: int) -> None:
    old = context.efer
    changes_lme = (value ^ old) & state.EFER_LME
    if value & ~(_EFER_WRITABLE | state.EFER_LMA) or (changes_lme and context.cr(0) & state.CR0_PG):
        raise GuestFault(GP, 0)
    context.efer = value & _EFER_WRITABLE | old & state.EFER_LMA
