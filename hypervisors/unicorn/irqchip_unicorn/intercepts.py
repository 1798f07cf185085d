"""The instructions the emulator leaves to us: found in guest code, carried out on the saved context.

RDMSR and WRMSR, RDTSC and RDTSCP, SYSCALL and SYSENTER, writes to CR8 and DR7, and the second half of IN and INS. Each
method leaves RIP behind the instruction, or raises `GuestFault` with RIP at it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from irqchip_unicorn import context as c
from irqchip_unicorn import state
from irqchip_unicorn.context import Context
from irqchip_unicorn.delivery import GP, UD
from irqchip_unicorn.engine import PortAccess
from irqchip_unicorn.features import CSTAR, LSTAR, SFMASK, STAR, SYSENTER_CS, SYSENTER_EIP, SYSENTER_ESP
from irqchip_unicorn.msrs import Msrs
from irqchip_unicorn.paging import GuestFault, Paging

_M32, _M64 = (1 << 32) - 1, (1 << 64) - 1
_LONGEST_INSTRUCTION = 15
_PREFIXES = frozenset(b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3")
_ADDRESS_SIZE = 0x67
_REX = range(0x40, 0x50)
_REX_B = 1
_INS = (b"\x6c", b"\x6d")
_MOV_CR = b"\x0f\x22"
_STI, _MOV_SEGMENT, _POP_SS = b"\xfb", b"\x8e", b"\x17"
_RDPMC = b"\x0f\x33"
_RDTSCP = b"\x0f\x01\xf9"
_COUNTERS = 4
_DR7_ENABLES = 0xFF
_DR7_FIXED = 0x400
_TSS_IO_MAP_BASE = 102


class Intercepts:
    """Of one vCPU."""

    def __init__(self, context: Context, paging: Paging, msrs: Msrs) -> None:
        self._context = context
        self._paging = paging
        self._msrs = msrs

    def _instruction(self, rip: int) -> tuple[bytes, int, int]:
        """The bytes at `rip`, where in them the opcode is, and the REX prefix before it or 0."""
        context = self._context
        wide = context.hflags & c.HF_CS64
        linear = rip if wide else context.segment(c.CS)[1] + rip & _M32
        code = self._paging.code(linear, _LONGEST_INSTRUCTION)
        at = rex = 0
        while at < len(code) and (code[at] in _PREFIXES or (wide and code[at] in _REX)):
            rex = code[at] if wide and code[at] in _REX else 0
            at += 1
        return code, at, rex

    def _skip(self, length: int) -> None:
        """Go on behind the opcode of `length` bytes; what the instruction shadowed is over."""
        context = self._context
        _, at, _ = self._instruction(context.rip)
        context.rip = context.rip + at + length & (_M64 if context.hflags & c.HF_CS64 else _M32)
        context.hflags &= ~c.HF_INHIBIT_IRQ

    def renews_shadow(self) -> bool:
        """Whether the instruction at RIP, in an interrupt shadow, begins one of its own.

        MOV SS and POP SS do so after STI, and STI does after MOV SS and POP SS. STI sets IF: where IF is 1 it shadows
        nothing. Of MOV SS and POP SS in a row only the first does (Intel SDM vol. 2, MOV and STI).
        """
        context, rip = self._context, self._context.rip
        code, at, _ = self._instruction(rip)
        wide = context.hflags & c.HF_CS64
        if code[at : at + 1] == _STI:
            return not context.rflags & state.IF
        loads_ss = code[at : at + 1] == _POP_SS and not wide
        if code[at : at + 1] == _MOV_SEGMENT and at + 1 < len(code):
            loads_ss = code[at + 1] >> 3 & 7 == c.SS
        return loads_ss and rip > 0 and self._instruction(rip - 1)[0][:1] == _STI

    def _set_pair(self, value: int) -> None:
        self._context.set_register(c.RAX, value & _M32)
        self._context.set_register(c.RDX, value >> 32)

    # --- MSRs and the time-stamp counter

    @property
    def msr(self) -> tuple[int, int]:
        """Number of the MSR, and what WRMSR would write there."""
        context = self._context
        value = context.register(c.RAX) & _M32 | (context.register(c.RDX) & _M32) << 32
        return context.register(c.RCX) & _M32, value

    def access_msr(self, *, is_write: bool) -> None:
        """RDMSR or WRMSR of an MSR that is kept in `msrs`."""
        index, value = self.msr
        if is_write:
            self._msrs.write(self._context, index, value)
            self.complete_msr(None)
        else:
            self.complete_msr(self._msrs.read(self._context, index))

    def complete_msr(self, value: int | None) -> None:
        """RDMSR gives `value`; None for WRMSR."""
        if value is not None:
            self._set_pair(value)
        self._skip(2)

    def read_tsc(self) -> None:
        """RDTSC or RDTSCP."""
        code, at, _ = self._instruction(self._context.rip)
        is_rdtscp = code[at : at + 3] == _RDTSCP
        self._set_pair(self._msrs.tsc())
        if is_rdtscp:
            self._context.set_register(c.RCX, self._msrs.tsc_aux())
        self._skip(3 if is_rdtscp else 2)

    def read_performance_counter(self) -> None:
        """RDPMC. The counters are 0: see `features.UNUSED_MSRS`."""
        context = self._context
        forbidden = state.cpl(context) and not context.cr(4) & state.CR4_PCE
        if forbidden or context.register(c.RCX) & _M32 >= _COUNTERS:
            raise GuestFault(GP, 0)
        self._set_pair(0)
        self._skip(2)

    def is_rdpmc_of_user(self) -> bool:
        """Whether RDPMC is at RIP, with CR4.PCE set: the emulator raises #GP then, and not where the bit is clear."""
        context = self._context
        if not context.cr(4) & state.CR4_PCE or not state.cpl(context):
            return False
        code, at, _ = self._instruction(context.rip)
        return code[at : at + 2] == _RDPMC

    # --- the ways into the system

    def syscall(self, msr: Callable[[int], int]) -> None:
        """SYSCALL, with RIP behind it; `msr` gives STAR and its like. AMD64 Manual vol. 2, 6.1.1."""
        context = self._context
        if not context.efer & state.EFER_SCE:
            context.rip -= 2
            raise GuestFault(UD)
        star, rflags = msr(STAR), context.rflags
        context.set_register(c.RCX, context.rip)
        if context.efer & state.EFER_LMA:
            context.set_register(c.R11, rflags & ~state.RF)
            context.rip = msr(LSTAR if context.hflags & c.HF_CS64 else CSTAR)
            context.rflags = rflags & ~(msr(SFMASK) | state.RF) | state.RFLAGS_FIXED
        else:
            context.rip = star & _M32
            context.rflags = rflags & ~(state.VM | state.IF | state.RF)
        self._enter_system(star >> 32 & 0xFFFC)

    def sysenter(self, msr: Callable[[int], int]) -> None:
        """SYSENTER, with RIP behind it. Intel SDM vol. 2."""
        context = self._context
        selector = msr(SYSENTER_CS) & 0xFFFC
        if not selector:
            context.rip -= 2
            raise GuestFault(GP, 0)
        context.rip, rsp = msr(SYSENTER_EIP), msr(SYSENTER_ESP)
        context.set_register(c.RSP, rsp)
        context.rflags &= ~(state.VM | state.IF | state.RF)
        self._enter_system(selector)

    def _enter_system(self, selector: int) -> None:
        # Flat segments whatever the descriptors say.
        context = self._context
        flat = state.DESC_G | state.DESC_P | state.DESC_S | state.DESC_ACCESSED | state.DESC_WRITABLE
        size = state.DESC_L if context.efer & state.EFER_LMA else state.DESC_B
        context.set_segment(c.CS, selector, 0, _M32, flat | state.DESC_CODE | size)
        context.set_segment(c.SS, selector + 8, 0, _M32, flat | state.DESC_B)
        context.hflags &= ~c.HF_INHIBIT_IRQ
        state.update_hflags(context)

    # --- CR8 and DR7

    def _moved(self) -> int:
        """What a MOV to a control or debug register moves."""
        code, at, rex = self._instruction(self._context.rip)
        number = code[at + 2] & 7 if len(code) > at + 2 else 0
        return self._context.register(number | (8 if rex & _REX_B else 0))

    def check_control_register(self, cr4_defined: int) -> None:
        """Raises #GP for what CR0 or CR4 must not become, which the emulator would let pass. Intel SDM vol. 3, 2.5."""
        context = self._context
        code, at, _ = self._instruction(context.rip)
        if code[at : at + 2] != _MOV_CR:  # LMSW and CLTS change nothing that matters
            return
        value, number = self._moved(), code[at + 2] >> 3 & 7
        cr4 = value if number == 4 else context.cr(4)
        cr0 = value if number == 0 else context.cr(0)
        paging = cr0 & state.CR0_PG
        if (
            value >> 32
            or (number == 4 and value & ~cr4_defined)
            or (paging and not cr0 & state.CR0_PE)
            or (cr0 & state.CR0_NW and not cr0 & state.CR0_CD)
            or (paging and context.efer & state.EFER_LME and not cr4 & state.CR4_PAE)
        ):
            raise GuestFault(GP, 0)

    def write_cr8(self) -> bool:
        """MOV CR8; gives whether the priority is lower now."""
        value = self._moved()
        if value > 15:
            raise GuestFault(GP, 0)
        lowered = value < self._context.v_tpr
        self._context.v_tpr = value
        self._skip(3)
        return lowered

    def write_dr7(self) -> None:
        """MOV DR7: breakpoints stay disabled, as they are not emulated."""
        value = self._moved()
        if value >> 32:
            raise GuestFault(GP, 0)
        self._context.set_dr(7, value & ~_DR7_ENABLES | _DR7_FIXED)
        self._skip(3)

    # --- ports

    def check_port(self, access: PortAccess) -> None:
        """Raises #GP, with everything as before the instruction, if this privilege level may not use the port."""
        context = self._context
        if not context.cr(0) & state.CR0_PE:
            return
        vm86 = context.rflags & state.VM
        if not vm86 and state.cpl(context) <= context.rflags >> state.IOPL_SHIFT & 3:
            return
        if not self._permitted(access.port, access.size):
            context.registers = access.before
            raise GuestFault(GP, 0)

    def _permitted(self, port: int, size: int) -> bool:
        # Intel SDM vol. 1, "I/O Permission Bit Map": the bits of all ports must be 0, and both bytes in the TSS.
        _, base, limit, flags = self._context.segment(c.TR)
        if not flags >> 8 & 8 or limit < _TSS_IO_MAP_BASE + 1:
            return False
        with contextlib.suppress(GuestFault):
            at = self._paging.read(base + _TSS_IO_MAP_BASE, 2) + port // 8
            if at + 1 <= limit:
                return not self._paging.read(base + at, 2) >> port % 8 & (1 << size) - 1
        return False

    def is_ins(self, access: PortAccess) -> bool:
        """Whether a read is one of INS."""
        code, at, _ = self._instruction(access.before[16])
        return not access.is_write and code[at : at + 1] in _INS

    def complete_in(self, access: PortAccess, answer: bytes | bytearray) -> None:
        """The answer to IN or INS."""
        context = self._context
        value = int.from_bytes(answer, "little")
        if not self.is_ins(access):
            rax = access.before[c.RAX]
            context.set_register(c.RAX, value if access.size == 4 else rax & -(1 << 8 * access.size) & _M64 | value)
            return
        code, at, _ = self._instruction(access.before[16])
        toggled = _ADDRESS_SIZE in code[:at]
        if context.hflags & c.HF_CS64:
            mask = _M32 if toggled else _M64
        else:
            mask = _M32 if bool(context.hflags & c.HF_CS32) != toggled else 0xFFFF
        linear = access.before[c.RDI] & mask
        if not context.hflags & c.HF_CS64:
            linear = linear + context.segment(c.ES)[1] & _M32
        # The emulator has written zeros there already: this faults only if another vCPU has changed the tables since.
        with contextlib.suppress(GuestFault):
            self._paging.write(linear, access.size, value, user=state.cpl(context) == 3)
