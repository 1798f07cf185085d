"""The features that CPUID announces, and what comes with each: control-register bits, EFER bits and MSRs.

What is not in `FEATURES` is not announced. What is not announced by the vCPU's CPUID has no bits and no MSRs. The
instructions of a feature are the emulator's: it executes some that are not announced (irqchip-unicorn's README lists
them). AMD64 Manual vol. 3, appendix E; Intel SDM vol. 2, CPUID.
"""

from __future__ import annotations

from attrs import frozen

from irqchip_unicorn import state

EAX, EBX, ECX, EDX = range(4)

TSC, APIC_BASE, MICROCODE, MTRRCAP, PAT, MTRR_DEF_TYPE = 0x10, 0x1B, 0x8B, 0xFE, 0x277, 0x2FF
SYSENTER_CS, SYSENTER_ESP, SYSENTER_EIP = 0x174, 0x175, 0x176
MCG_CAP, MCG_STATUS = 0x179, 0x17A
MTRR_VARIABLE, MTRR_FIXED = range(0x200, 0x210), (0x250, 0x258, 0x259, *range(0x268, 0x270))
EFER, STAR, LSTAR, CSTAR, SFMASK = 0xC0000080, 0xC0000081, 0xC0000082, 0xC0000083, 0xC0000084
FS_BASE, GS_BASE, KERNEL_GS_BASE, TSC_AUX = 0xC0000100, 0xC0000101, 0xC0000102, 0xC0000103


@frozen
class Feature:
    """One bit of CPUID.

    Attributes:
        name: As the manuals have it.
        word: Leaf, subleaf and register.
        bit: Its number in that register.
        cr4, efer: Bits that may be set where it is announced, and are reserved where it is not.
        msrs: MSRs that are there where it is announced.
    """

    name: str
    word: tuple[int, int, int]
    bit: int
    cr4: int = 0
    efer: int = 0
    msrs: tuple[int, ...] = ()


_1C, _1D, _7B, _XSAVE, _EXT_C, _EXT_D = (
    (1, 0, ECX), (1, 0, EDX), (7, 0, EBX), (0xD, 1, EAX), (0x80000001, 0, ECX), (0x80000001, 0, EDX),
)  # fmt: skip
WORDS = frozenset(
    {_1C, _1D, _7B, (7, 0, ECX), (7, 0, EDX), _XSAVE, _EXT_C, _EXT_D, (0x80000008, 0, EBX)}
    | {(leaf, 0, register) for leaf in (5, 0x8000000A) for register in (EAX, EBX, ECX, EDX)}  # MONITOR, SVM
)
"""The registers that hold features: what `FEATURES` does not name is 0 there."""

_COMMON = (  # leaf 0x80000001 has these in the same places
    Feature("FPU", _1D, 0),
    Feature("DE", _1D, 2, cr4=state.CR4_DE),
    Feature("PSE", _1D, 3, cr4=state.CR4_PSE),
    Feature("TSC", _1D, 4, cr4=state.CR4_TSD, msrs=(TSC,)),
    Feature("MSR", _1D, 5),
    Feature("PAE", _1D, 6, cr4=state.CR4_PAE),
    Feature("MCE", _1D, 7, cr4=state.CR4_MCE),
    Feature("CMPXCHG8B", _1D, 8),
    Feature("APIC", _1D, 9),
    Feature("MTRR", _1D, 12, msrs=(MTRRCAP, *MTRR_VARIABLE, *MTRR_FIXED, MTRR_DEF_TYPE)),
    Feature("PGE", _1D, 13, cr4=state.CR4_PGE),
    Feature("MCA", _1D, 14, msrs=(MCG_CAP, MCG_STATUS)),
    Feature("CMOV", _1D, 15),
    Feature("PAT", _1D, 16, msrs=(PAT,)),
    Feature("PSE36", _1D, 17),
    Feature("MMX", _1D, 23),
    Feature("FXSR", _1D, 24, cr4=state.CR4_OSFXSR),
)

FEATURES = (
    *_COMMON,
    *(Feature(f"{feature.name} (AMD)", _EXT_D, feature.bit) for feature in _COMMON),
    Feature("SysEnterSysExit", _1D, 11, msrs=(SYSENTER_CS, SYSENTER_ESP, SYSENTER_EIP)),
    Feature("CLFSH", _1D, 19),
    Feature("SSE", _1D, 25, cr4=state.CR4_OSXMMEXCPT),
    Feature("SSE2", _1D, 26),
    Feature("SSE3", _1C, 0),
    Feature("PCLMULQDQ", _1C, 1),
    Feature("SSSE3", _1C, 9),
    Feature("CMPXCHG16B", _1C, 13),
    Feature("SSE41", _1C, 19),
    Feature("SSE42", _1C, 20),
    Feature("MOVBE", _1C, 22),
    Feature("POPCNT", _1C, 23),
    Feature("AES", _1C, 25),
    Feature("XSAVE", _1C, 26, cr4=state.CR4_OSXSAVE),
    Feature("RDRAND", _1C, 30),
    Feature("FSGSBASE", _7B, 0, cr4=state.CR4_FSGSBASE),
    Feature("BMI1", _7B, 3),
    Feature("SMEP", _7B, 7, cr4=state.CR4_SMEP),
    Feature("BMI2", _7B, 8),
    Feature("RDSEED", _7B, 18),
    Feature("ADX", _7B, 19),
    Feature("SMAP", _7B, 20, cr4=state.CR4_SMAP),
    Feature("CLFLUSHOPT", _7B, 23),
    Feature("CLWB", _7B, 24),
    Feature("XSAVEOPT", _XSAVE, 0),
    Feature("XGETBV1", _XSAVE, 2),
    Feature("LahfSahf", _EXT_C, 0),
    Feature("AltMovCr8", _EXT_C, 4),
    Feature("ABM", _EXT_C, 5),
    Feature("SSE4A", _EXT_C, 6),
    Feature("SysCallSysRet", _EXT_D, 11, efer=state.EFER_SCE, msrs=(STAR, LSTAR, CSTAR, SFMASK)),
    Feature("NX", _EXT_D, 20, efer=state.EFER_NXE),
    Feature("MmxExt", _EXT_D, 22),
    Feature("Page1GB", _EXT_D, 26),
    Feature("RDTSCP", _EXT_D, 27, msrs=(TSC_AUX,)),
    Feature("LM", _EXT_D, 29, efer=state.EFER_LME, msrs=(FS_BASE, GS_BASE, KERNEL_GS_BASE)),
)

OTHER_CR4 = state.CR4_PCE  # belongs to the performance counters, which have no bit in CPUID
UNUSED_MSRS = frozenset(
    {
        0x1D9,  # DebugCtl
        *range(0xC0010000, 0xC0010008),  # PerfEvtSel0-3, PerfCtr0-3
        0xC0010010,  # SYSCFG
        0xC0010015,  # HWCR
        *range(0xC0010016, 0xC001001A),  # IORRBase and IORRMask
        0xC001001A,  # TOP_MEM
        0xC001001D,  # TOP_MEM2
        0xC001001F,  # NB_CFG, which Linux reads and writes
        0xC0010055,  # interrupt pending
        0xC0010058,  # base of PCI's configuration space
        0xC0011029,  # DE_CFG
    }
)
"""MSRs of AMD64 processors without a bit in CPUID. They read as 0, and what is written to them is lost.

That is how KVM answers where the guest has no performance counters, and by that Linux finds it out. AMD64 Manual
vol. 2, appendix A; Processor Programming Reference for family 17h.
"""
OTHER_MSRS = UNUSED_MSRS | {APIC_BASE, MICROCODE, EFER}
