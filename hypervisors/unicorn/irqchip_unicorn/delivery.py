"""How an interrupt or exception gets to the guest's handler, in each mode.

The emulator hands every event over instead of going through IVT or IDT; this does what the processor would, on
the saved context and guest memory. Registers change only when nothing faults any more. Task gates are left out.
Intel SDM vol. 3, chapter 7, and 22.1 for real mode.
"""

from __future__ import annotations

from irqchip_unicorn import context as c
from irqchip_unicorn import state
from irqchip_unicorn.context import Context
from irqchip_unicorn.paging import PAGE_FAULT, GuestFault, Paging

DB, NMI, BP, OF, UD, DF, TS, NP, SS, GP = 1, 2, 3, 4, 6, 8, 10, 11, 12, 13
_CONTRIBUTORY = frozenset({0, TS, NP, SS, GP})
_WITH_ERROR_CODE = frozenset({DF, TS, NP, SS, GP, PAGE_FAULT, 17})
_FAULTS = frozenset(range(20)) - {DB, NMI, BP, OF, DF, 9, 18}  # those that return to the instruction, with RF set

_EXT = 1  # of an error code: the event came from outside of the program
_IN_IDT = 2
_TASK_GATE, _INTERRUPT_GATE_16, _TRAP_GATE_16, _INTERRUPT_GATE, _TRAP_GATE = 5, 6, 7, 14, 15
_GATES_64 = frozenset({_INTERRUPT_GATE, _TRAP_GATE})
_GATES = _GATES_64 | {_TASK_GATE, _INTERRUPT_GATE_16, _TRAP_GATE_16}
_M32 = 0xFFFFFFFF
_CLEARED = state.TF | state.VM | state.RF | state.NT


class TripleFault(Exception):
    """An exception while a double fault is delivered."""


class TaskGate(Exception):
    """The IDT entry is a task gate; task switches are not emulated here."""


class Delivery:
    """Delivers to one vCPU."""

    def __init__(self, context: Context, paging: Paging) -> None:
        self._context = context
        self._paging = paging

    def interrupt(self, vector: int) -> None:
        """Deliver an external interrupt or NMI.

        Raises:
            TripleFault: The guest cannot take it, nor the exceptions that follow.
            TaskGate: It would switch tasks.
        """
        self._deliver(vector, None, _EXT)

    def software(self, vector: int, length: int) -> None:
        """Deliver INT, INT3 or INTO, an instruction of `length` bytes that ends at RIP."""
        self._deliver(vector, None, 0, length)

    def exception(self, fault: GuestFault) -> None:
        """Deliver an exception; `context` is as of the instruction (a fault) or after it (a trap)."""
        if fault.vector == PAGE_FAULT:
            self._context.set_cr(2, fault.address)
        error_code = fault.error_code
        if fault.vector in _WITH_ERROR_CODE and error_code is None:
            error_code = 0
        self._deliver(fault.vector, error_code if fault.vector in _WITH_ERROR_CODE else None, _EXT, exception=True)

    def _deliver(
        self, vector: int, error_code: int | None, ext: int, length: int = 0, *, exception: bool = False
    ) -> None:
        # What an exception on the way turns into: Intel SDM vol. 3, "Interrupt 8".
        first = vector if exception else -1
        while True:
            try:
                self._enter(vector, error_code, ext, length, fault=first in _FAULTS)
                break
            except GuestFault as fault:
                if first == DF:
                    raise TripleFault from None
                serious = fault.vector in _CONTRIBUTORY
                if (first in _CONTRIBUTORY and serious) or (
                    first == PAGE_FAULT and (serious or fault.vector == PAGE_FAULT)
                ):
                    vector, error_code = DF, 0
                else:
                    vector, error_code = fault.vector, fault.error_code or 0
                if fault.vector == PAGE_FAULT:
                    self._context.set_cr(2, fault.address)
                if length:  # it is the software interrupt that faults
                    self._context.rip = self._context.rip - length & (1 << 64) - 1
                ext, length, first = _EXT, 0, vector
        self._context.hflags &= ~c.HF_INHIBIT_IRQ
        state.update_hflags(self._context)

    def _enter(self, vector: int, error_code: int | None, ext: int, length: int, *, fault: bool) -> None:
        context = self._context
        if not context.cr(0) & state.CR0_PE:
            self._real(vector)
        elif context.efer & state.EFER_LMA:
            self._long(vector, error_code, ext, length, fault=fault)
        else:
            self._protected(vector, error_code, ext, length, fault=fault)

    # --- real mode

    def _real(self, vector: int) -> None:
        context, paging = self._context, self._paging
        _, idt_base, idt_limit, _ = context.segment(c.IDTR)
        if 4 * vector + 3 > idt_limit:
            raise GuestFault(GP)
        target = paging.read(idt_base + 4 * vector, 4)
        selector, _, limit, flags = context.segment(c.CS)
        _, stack, _, _ = context.segment(c.SS)
        rsp = context.register(c.RSP)
        sp = rsp
        for value in (context.rflags, selector, context.rip):
            sp = sp - 2 & 0xFFFF
            paging.write(stack + sp & _M32, 2, value & 0xFFFF)
        context.set_register(c.RSP, rsp & ~0xFFFF | sp)
        context.set_segment(c.CS, target >> 16, target >> 16 << 4, limit, flags)
        context.rip = target & 0xFFFF
        context.rflags &= ~(state.IF | state.TF | state.AC | state.RF)

    # --- protected mode and long mode

    def _gate(self, vector: int, ext: int, length: int, size: int) -> int:
        context = self._context
        _, base, limit, _ = context.segment(c.IDTR)
        error_code = 8 * vector | _IN_IDT | ext
        if size * vector + size - 1 > limit:
            raise GuestFault(GP, error_code)
        gate = self._paging.read(base + size * vector, size)
        kind = gate >> 40 & 31
        if kind not in (_GATES_64 if size == 16 else _GATES) or (length and gate >> 45 & 3 < state.cpl(context)):
            raise GuestFault(GP, error_code)
        if not gate >> 47 & 1:
            raise GuestFault(NP, error_code)
        if kind == _TASK_GATE:
            raise TaskGate
        return gate

    def _descriptor(self, selector: int, vector: int, ext: int) -> int:
        """The descriptor that `selector` names; `vector` is the exception if there is none."""
        table = c.LDTR if selector & 4 else c.GDTR
        _, base, limit, flags = self._context.segment(table)
        if (selector | 7) > limit or (table == c.LDTR and not flags & state.DESC_P):
            raise GuestFault(vector, selector & 0xFFFC | ext)
        return self._paging.read(base + (selector & ~7), 8)

    def _code_segment(self, selector: int, ext: int) -> tuple[int, int, int]:
        """Base, limit and flags of the handler's code segment, and checks that it may be entered."""
        if not selector & 0xFFFC:
            raise GuestFault(GP, ext)
        base, limit, flags = _unpack(self._descriptor(selector, GP, ext))
        wrong = flags & (state.DESC_S | state.DESC_CODE) != state.DESC_S | state.DESC_CODE
        if wrong or flags >> state.DESC_DPL_SHIFT & 3 > state.cpl(self._context):
            raise GuestFault(GP, selector & 0xFFFC | ext)
        if not flags & state.DESC_P:
            raise GuestFault(NP, selector & 0xFFFC | ext)
        return base, limit, flags

    def _saved_flags(self, *, fault: bool) -> int:
        return self._context.rflags | (state.RF if fault else 0)

    def _new_flags(self, gate: int) -> None:
        cleared = _CLEARED if gate >> 40 & 1 else _CLEARED | state.IF  # odd types are trap gates
        self._context.rflags &= ~cleared

    def _long(self, vector: int, error_code: int | None, ext: int, length: int, *, fault: bool) -> None:
        context, paging = self._context, self._paging
        gate = self._gate(vector, ext, length, 16)
        selector = gate >> 16 & 0xFFFF
        base, limit, flags = self._code_segment(selector, ext)
        if not flags & state.DESC_L or flags & state.DESC_B:
            raise GuestFault(GP, selector & 0xFFFC | ext)
        old, cpl = state.cpl(context), state.cpl(context)
        if not flags & state.DESC_CONFORMING:
            cpl = flags >> state.DESC_DPL_SHIFT & 3
        ist = gate >> 32 & 7
        rsp = context.register(c.RSP)
        if ist:
            rsp = self._stack_from_tss(0x24 + 8 * (ist - 1), 8, ext)
        elif cpl != old:
            rsp = self._stack_from_tss(4 + 8 * cpl, 8, ext)
        rsp &= ~15
        ss = context.segment(c.SS)
        frame = [ss[0], context.register(c.RSP), self._saved_flags(fault=fault), context.segment(c.CS)[0], context.rip]
        if error_code is not None:
            frame.append(error_code)
        if rsp + (1 << 47) >> 48 not in (0, 1 << 16):  # not canonical
            raise GuestFault(SS, ext)
        for value in frame:
            rsp = rsp - 8 & (1 << 64) - 1
            paging.write(rsp, 8, value, user=cpl == 3)
        if cpl != old:
            context.set_segment(c.SS, cpl, 0, 0, cpl << state.DESC_DPL_SHIFT)
        context.set_register(c.RSP, rsp)
        context.set_segment(c.CS, selector & ~3 | cpl, base, limit, flags)
        context.rip = gate & 0xFFFF | (gate >> 48 & 0xFFFF) << 16 | (gate >> 64 & _M32) << 32
        self._new_flags(gate)

    def _stack_from_tss(self, offset: int, size: int, ext: int) -> int:
        """A stack pointer, or with its SS above it, from the task-state segment."""
        selector, base, limit, _ = self._context.segment(c.TR)
        if offset + size - 1 > limit:
            raise GuestFault(TS, selector & 0xFFFC | ext)
        return self._paging.read(base + offset, size)

    def _protected(self, vector: int, error_code: int | None, ext: int, length: int, *, fault: bool) -> None:
        context = self._context
        gate = self._gate(vector, ext, length, 8)
        selector = gate >> 16 & 0xFFFF
        base, limit, flags = self._code_segment(selector, ext)
        width = 4 if gate >> 40 & 31 in (_INTERRUPT_GATE, _TRAP_GATE) else 2
        rip = gate & 0xFFFF | (gate >> 48 << 16 if width == 4 else 0)
        if rip > limit:
            raise GuestFault(GP, ext)
        old = state.cpl(context)
        cpl = old if flags & state.DESC_CONFORMING else flags >> state.DESC_DPL_SHIFT & 3
        vm86 = context.rflags & state.VM
        if vm86 and cpl:
            raise GuestFault(GP, selector & 0xFFFC | ext)
        rsp, ss = context.register(c.RSP), context.segment(c.SS)
        frame = []
        if cpl != old:
            frame = [ss[0], rsp]
            if vm86:
                frame = [context.segment(number)[0] for number in (c.GS, c.FS, c.DS, c.ES)] + frame
            rsp, ss = self._inner_stack(cpl, ext)
        frame += [self._saved_flags(fault=fault), context.segment(c.CS)[0], context.rip]
        if error_code is not None:
            frame.append(error_code)
        sp = self._push(rsp, ss, frame, width, ss[0] & 0xFFFC | ext if cpl != old else ext, user=cpl == 3)
        if cpl != old:
            context.set_segment(c.SS, *ss)
            if vm86:
                for number in (c.GS, c.FS, c.DS, c.ES):
                    context.set_segment(number, 0, 0, 0, 0)
        context.set_register(c.RSP, sp)
        context.set_segment(c.CS, selector & ~3 | cpl, base, limit, flags | state.DESC_ACCESSED)
        context.rip = rip
        self._new_flags(gate)

    def _inner_stack(self, cpl: int, ext: int) -> tuple[int, tuple[int, int, int, int]]:
        """ESP and SS for a more privileged level, from the TSS."""
        wide = self._context.segment(c.TR)[3] >> 8 & 8  # a TSS of 32 bits
        if wide:
            pair = self._stack_from_tss(4 + 8 * cpl, 6, ext)
            rsp, selector = pair & _M32, pair >> 32
        else:
            pair = self._stack_from_tss(2 + 4 * cpl, 4, ext)
            rsp, selector = pair & 0xFFFF, pair >> 16
        if not selector & 0xFFFC:
            raise GuestFault(TS, ext)
        base, limit, flags = _unpack(self._descriptor(selector, TS, ext))
        kind = state.DESC_S | state.DESC_CODE | state.DESC_WRITABLE
        data = flags & kind == state.DESC_S | state.DESC_WRITABLE
        if not data or flags >> state.DESC_DPL_SHIFT & 3 != cpl or selector & 3 != cpl:
            raise GuestFault(TS, selector & 0xFFFC | ext)
        if not flags & state.DESC_P:
            raise GuestFault(SS, selector & 0xFFFC | ext)
        return rsp, (selector, base, limit, flags | state.DESC_ACCESSED)

    def _push(
        self, rsp: int, ss: tuple[int, int, int, int], values: list[int], width: int, error_code: int, *, user: bool
    ) -> int:
        """Push onto a stack, and give the stack pointer after it; `error_code` is for a stack that is too short."""
        _, base, limit, flags = ss
        mask = _M32 if flags & state.DESC_B else 0xFFFF
        for value in values:
            sp = rsp - width & mask
            last = sp + width - 1
            if (sp <= limit or last > mask) if flags & state.DESC_EXPAND_DOWN else last > limit:
                raise GuestFault(SS, error_code)
            self._paging.write(base + sp & _M32, width, value & (1 << 8 * width) - 1, user=user)
            rsp = rsp & ~mask | sp
        return rsp


def _unpack(descriptor: int) -> tuple[int, int, int]:
    """Base, limit in bytes, and flags of a segment descriptor."""
    base = descriptor >> 16 & 0xFFFFFF | descriptor >> 56 << 24
    limit = descriptor & 0xFFFF | descriptor >> 32 & 0xF0000
    flags = descriptor >> 32 & 0x00F0FF00
    if flags & state.DESC_G:
        limit = limit << 12 | 0xFFF
    return base, limit, flags
