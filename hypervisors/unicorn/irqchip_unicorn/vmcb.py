"""AMD's virtualization as the emulator's own: which instructions stop it, and under which numbers.

AMD64 Architecture Programmer's Manual vol. 2, chapter 15 and appendices B and C. The pages filled here belong to one
engine and lie where no guest can look.
"""

from __future__ import annotations

import struct

from irqchip_unicorn import context as c
from irqchip_unicorn import state
from irqchip_unicorn.memory import END

# What `engine.Engine.intno` can be, besides the vector of a software interrupt: an exit code of the VMCB, from
FIRST_EXIT = 0x100
EXCEPTION = FIRST_EXIT + 0x40  # 32 of them
WRITE_CR0, WRITE_CR4 = FIRST_EXIT + 0x10, FIRST_EXIT + 0x14
WRITE_CR8 = FIRST_EXIT + 0x18
WRITE_DR0 = FIRST_EXIT + 0x30  # 8 of them
WINDOW = FIRST_EXIT + 0x64
RDTSC = FIRST_EXIT + 0x6E
RDPMC = FIRST_EXIT + 0x6F
IRET = FIRST_EXIT + 0x74
MSR = FIRST_EXIT + 0x7C
SHUTDOWN = FIRST_EXIT + 0x7F

SYSCALL, SYSENTER = 0x1000, 0x1001  # not of the VMCB: Unicorn has hooks for them, and nothing else; RIP is behind
RENEWED_SHADOW = 0x1002  # likewise: the instruction at RIP, not executed yet, inhibits interrupts once more

REPEATED = frozenset({WRITE_CR0, WRITE_CR4, IRET, RENEWED_SHADOW})
"""After these the same instruction is executed once more, not intercepted."""

_SVM_INSTRUCTIONS = range(FIRST_EXIT + 0x80, FIRST_EXIT + 0x87)  # VMRUN to SKINIT
_MONITOR, _MWAIT = FIRST_EXIT + 0x8A, FIRST_EXIT + 0x8B
_INTERCEPTED = (WINDOW, RDTSC, RDPMC, MSR, SHUTDOWN, *_SVM_INSTRUCTIONS, _MONITOR, _MWAIT)
INTERCEPTS = sum(1 << (code - FIRST_EXIT - 0x60) for code in _INTERCEPTED)
ALL_EXCEPTIONS = 0xFFFFFFFF
INTERCEPT_CR_WRITES = 1 << 0 | 1 << 4  # CR0 and CR4, whose values the emulator does not check
INTERCEPT_IRET = 1 << (IRET - FIRST_EXIT - 0x60)

# Pages of the engine, where no guest can look: VMCB, MSR permission map, the code that starts it all.
VMCB, _MSRPM, CODE, PAGES = 0, 0x1000, 0x3000, 0x4000
_MSRPM_BASE, _INT_CTL, EXIT_INFO_2, _SAVE = 0x48, 0x60, 0x80, 0x400
_V_IRQ, _V_INTR_MASKING = 1 << 8, 1 << 24
_MSRPM_RANGES = ((0, 0), (0xC0000000, 0x800), (0xC0010000, 0x1000))  # first MSR, offset in the map; 8192 MSRs each
VMRUN = b"\x0f\x01\xd8"
HLT = b"\xf4"
HALTED_AT = 0x800
"""Where the processor is after VMRUN, in real mode: at an HLT that the engine has put there."""


def fill(pages: memoryview) -> None:
    """Write the VMCB: what is intercepted, and a state in real mode."""
    cr_writes = INTERCEPT_CR_WRITES | 1 << 8
    struct.pack_into("<4HIQ", pages, VMCB, 0, cr_writes, 0, 1 << 5 | 1 << 7, ALL_EXCEPTIONS, INTERCEPTS)
    struct.pack_into("<Q", pages, VMCB + _MSRPM_BASE, END + _MSRPM)
    # The virtual interrupt stays pending for good; HF2_GIF decides whether it is looked at. CR8 is v_tpr.
    struct.pack_into("<I", pages, VMCB + _INT_CTL, _V_IRQ | _V_INTR_MASKING)
    for number, attributes in ((c.ES, 0x93), (c.CS, 0x9B), (c.SS, 0x93), (c.DS, 0x93)):
        struct.pack_into("<HHIQ", pages, VMCB + _SAVE + 16 * number, 0, attributes, 0xFFFF, 0)
    # CR4, CR3, CR0, DR7, DR6, RFLAGS and RIP
    struct.pack_into("<7Q", pages, VMCB + _SAVE + 328, 0, 0, state.CR0_RESET, 0x400, 0xFFFF0FF0, 2, HALTED_AT)


def set_native_msrs(pages: memoryview, native: frozenset[int]) -> None:
    """Let the emulator keep these MSRs by itself, and no others."""
    bitmap = bytearray(b"\xff" * 0x1800)  # two bits an MSR: intercept reads, intercept writes
    for first, offset in _MSRPM_RANGES:
        for index in native:
            if 0 <= (number := index - first) < 8192:
                bitmap[offset + number // 4] &= ~(3 << number % 4 * 2)
    pages[_MSRPM : _MSRPM + len(bitmap)] = bitmap
