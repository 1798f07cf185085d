"""The processor state inside an engine, as Unicorn's saved context lays it out.

Unicorn shows registers, but neither the hidden parts of the segment registers nor the error code of an
exception, and has no way to set a mode. All of that is in the bytes of a saved context, which are the
emulator's own record. `Context` reads and writes them in place; `Engine` checks when it starts that each
thing is where it is expected, so that another layout is an error there and never a wrong number here.
"""

from __future__ import annotations

import ctypes
import struct
from typing import Any

from unicorn.x86_const import UC_X86_REG_DR0, UC_X86_REG_RAX

from irqchip_core.errors import Unsupported

# Bits of `hflags`: what translated code depends on.
HF_CPL = 3
HF_INHIBIT_IRQ = 1 << 3  # interrupt shadow of STI, MOV SS and POP SS
HF_CS32 = 1 << 4
HF_SS32 = 1 << 5
HF_ADDSEG = 1 << 6  # segment bases may be other than 0
HF_PE = 1 << 7
HF_MP_SHIFT = 9  # MP, EM and TS follow each other as in CR0
HF_LMA = 1 << 14
HF_CS64 = 1 << 15
HF_SVME = 1 << 20
HF_GUEST = 1 << 21  # intercepts count
HF_OSFXSR = 1 << 22
HF_SMAP = 1 << 23

# Bits of `hflags2`.
HF2_GIF = 1 << 0  # interrupts are looked at
HF2_VINTR = 1 << 3  # CR8 is v_tpr

RAX, RCX, RDX, RSP, RSI, RDI, R11 = 0, 1, 2, 4, 6, 7, 11
ES, CS, SS, DS, FS, GS, LDTR, TR, GDTR, IDTR = range(10)

_SEGMENT = struct.Struct("<I4xQII")  # selector, base, limit in bytes, flags
_SEGMENT_SIZE = 24
_REGISTERS = struct.Struct("<17Q")  # the sixteen in their encoding's order, and RIP
_U64 = struct.Struct("<Q")
_SEGMENTS_AT = 184
_CR_AT = _SEGMENTS_AT + 10 * _SEGMENT_SIZE
_DR_AT = 16  # from the error code


class _Field:
    """A number at a fixed place: in `Context.head`, or, from the error code on, in `Context.tail`."""

    __slots__ = ("_layout", "_offset", "_tail")

    def __init__(self, layout: str, offset: int, *, tail: bool = False) -> None:
        self._layout = struct.Struct(layout)
        self._offset = offset
        self._tail = tail

    def __get__(self, context: Context, owner: type[Context]) -> int:
        value: int = self._layout.unpack_from(context.tail if self._tail else context.head, self._offset)[0]
        return value

    def __set__(self, context: Context, value: int) -> None:
        self._layout.pack_into(context.tail if self._tail else context.head, self._offset, value)
        context.changed = True


class Context:
    """The saved context of one engine. Valid after `save`; what is set counts after `restore`.

    Attributes:
        changed: Whether something was set since `restore`.
    """

    rip = _Field("<Q", 128)
    rflags = _Field("<Q", 136)
    hflags = _Field("<I", 176)
    hflags2 = _Field("<I", 180)
    efer = _Field("<Q", _CR_AT + 9 * 8 + 8 + 88)  # between: A20 mask, registers of MPX

    error_code = _Field("<I", 0, tail=True)
    exception_is_int = _Field("<I", 4, tail=True)
    old_exception = _Field("<i", 112, tail=True)
    vm_vmcb = _Field("<Q", 120, tail=True)
    intercept = _Field("<Q", 136, tail=True)
    intercept_cr_write = _Field("<H", 146, tail=True)
    intercept_exceptions = _Field("<I", 152, tail=True)
    v_tpr = _Field("<B", 172, tail=True)

    def __init__(self, uc: Any) -> None:
        self._uc = uc
        # Where the record and its tail start is found by what is put there: it depends on the platform's pointers.
        registers = range(0x1234567800000000, 0x1234567800000004)
        for number, value in enumerate(registers):
            uc.reg_write(UC_X86_REG_DR0 + number, value)
        uc.reg_write(UC_X86_REG_RAX, 0xFEDCBA9876543210)
        self._saved = uc.context_save()
        data = bytes(self._saved)
        head = data.find(_U64.pack(0xFEDCBA9876543210))
        tail = data.find(struct.pack("<4Q", *registers)) - _DR_AT
        if head < 0 or tail < head:
            raise Unsupported(
                "this version of Unicorn keeps its registers elsewhere", subject="Unicorn", remedy="use unicorn 2.1.4"
            )
        memory = memoryview((ctypes.c_char * self._saved.size).from_address(self._saved.context.value)).cast("B")
        self.head = memory[head:tail]
        self.tail = memory[tail:]
        self.changed = False
        for number in range(4):
            uc.reg_write(UC_X86_REG_DR0 + number, 0)
        self.save()

    def save(self) -> None:
        """Take the engine's state."""
        self._uc.context_update(self._saved)
        self.changed = False

    def restore(self) -> None:
        """Give the engine this state."""
        self._uc.context_restore(self._saved)
        self.changed = False

    def take_over(self, other: Context) -> None:
        """Become a copy of another engine's state."""
        self.head[:] = other.head
        self.tail[:] = other.tail
        self.changed = True

    @property
    def registers(self) -> tuple[int, ...]:
        """The sixteen registers in the order of their encoding (RAX, RCX, RDX, RBX, RSP, ...), and RIP."""
        return _REGISTERS.unpack_from(self.head)

    @registers.setter
    def registers(self, values: tuple[int, ...]) -> None:
        _REGISTERS.pack_into(self.head, 0, *values)
        self.changed = True

    def register(self, number: int) -> int:
        value: int = _U64.unpack_from(self.head, 8 * number)[0]
        return value

    def set_register(self, number: int, value: int) -> None:
        _U64.pack_into(self.head, 8 * number, value)
        self.changed = True

    def cr(self, number: int) -> int:
        """CR0, CR2, CR3 or CR4."""
        value: int = _U64.unpack_from(self.head, _CR_AT + 8 * number)[0]
        return value

    def set_cr(self, number: int, value: int) -> None:
        _U64.pack_into(self.head, _CR_AT + 8 * number, value)
        self.changed = True

    def dr(self, number: int) -> int:
        value: int = _U64.unpack_from(self.tail, _DR_AT + 8 * number)[0]
        return value

    def set_dr(self, number: int, value: int) -> None:
        _U64.pack_into(self.tail, _DR_AT + 8 * number, value)
        self.changed = True

    def segment(self, number: int) -> tuple[int, int, int, int]:
        """Selector, base, limit in bytes, and the flags as in the high half of a descriptor."""
        return _SEGMENT.unpack_from(self.head, _SEGMENTS_AT + _SEGMENT_SIZE * number)

    def set_segment(self, number: int, selector: int, base: int, limit: int, flags: int) -> None:
        """Set what a segment register holds; `update_hflags` must follow for CS, DS, ES and SS."""
        _SEGMENT.pack_into(self.head, _SEGMENTS_AT + _SEGMENT_SIZE * number, selector, base, limit, flags)
        self.changed = True
