"""One Unicorn engine as a processor that stops: what it runs into is recorded, and it stands still.

Unicorn calls hooks in the middle of instructions, but a VMM serves accesses between two calls of `run`. So

- every slice counts instructions, which also makes Unicorn look for a stop between any two of them;
- a write (to a port or to MMIO) is recorded and the engine stops after the instruction;
- a read from a port gives zeros at first, and the engine stops after the instruction, whose result is set when
  the answer is there;
- a read from MMIO abandons the instruction before it has changed anything. With the answer in `log` the
  instruction runs again; what it did before is in the log too and does not happen a second time.

What Unicorn has no hook for (RDMSR, WRMSR, CR8, IRET, the moment interrupts become possible, error codes) comes
from the emulator's own AMD virtualization: the engine is put into guest mode by one VMRUN, and from then on the
intercepts of the VMCB arrive as numbers in Unicorn's interrupt hook. They never lead back to a host state. See the
AMD64 Architecture Programmer's Manual vol. 2, chapter 15 and appendix B and C.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from enum import Enum, auto
from typing import Any

from attrs import define
from unicorn.unicorn_const import (
    UC_ARCH_X86,
    UC_CTL_IO_WRITE,
    UC_CTL_TLB_FLUSH,
    UC_HOOK_EDGE_GENERATED,
    UC_HOOK_INSN,
    UC_HOOK_INTR,
    UC_HOOK_MEM_READ_PROT,
    UC_HOOK_MEM_WRITE_PROT,
    UC_MODE_64,
    UC_PROT_ALL,
    UC_PROT_NONE,
)
from unicorn.x86_const import (
    UC_CPU_X86_EPYC_ROME,
    UC_X86_INS_CPUID,
    UC_X86_INS_IN,
    UC_X86_INS_OUT,
    UC_X86_INS_SYSCALL,
    UC_X86_INS_SYSENTER,
    UC_X86_REG_RAX,
    UC_X86_REG_RBX,
    UC_X86_REG_RCX,
    UC_X86_REG_RDX,
)

from irqchip_core.errors import Unsupported
from irqchip_unicorn import context as c
from irqchip_unicorn import state, vmcb
from irqchip_unicorn.context import Context
from irqchip_unicorn.emulator import UcError, open_engine
from irqchip_unicorn.memory import END, GuestMemory, host_pages

TRANSLATION_CACHE = 32 << 20
"""Bytes of translated code an engine keeps; when full, it starts anew."""

_MARK = 12345  # a number of instructions


class Stop(Enum):
    """Why `Engine.run` came back."""

    SLICE = auto()  # the requested instructions are done
    HALT = auto()  # HLT, which is done
    EVENT = auto()  # `intno` says what
    PORT = auto()  # `port` says what
    MMIO = auto()  # `log` has accesses that are not `reported`; if its last is a read, the instruction is not done
    FAILED = auto()  # Unicorn cannot go on


@define(eq=False)
class PortAccess:
    """An access to an I/O port, one of a repeated instruction.

    Attributes:
        before: The registers and RIP at the start of the instruction.
    """

    port: int
    size: int
    value: int
    is_write: bool
    before: tuple[int, ...]


@define(eq=False)
class MmioAccess:
    """An access to where there is no memory.

    Attributes:
        data: What is written, or the answer.
        reported: Whether the write was reported to the VMM, or the read answered by it.
    """

    address: int
    data: bytearray
    is_write: bool
    reported: bool = False


class Engine:
    """A Unicorn engine over guest memory, in real mode at the reset vector.

    Args:
        memory: Guest memory. What is added to it later is not in this engine.
        native_msrs: MSRs that the emulator keeps by itself; all others stop it.
        cpuid: From (EAX, ECX) to (EAX, EBX, ECX, EDX).
        on_block: Called with linear address and size of each block of code that gets translated. The engine stops
            before the block with the event it gives, if it gives one.

    Attributes:
        context: The state. `run` leaves it saved and restores what was changed in it.
        log: The accesses to MMIO of the current instruction.
        instructions: Number of instructions executed.
    """

    def __init__(
        self,
        memory: GuestMemory,
        native_msrs: frozenset[int],
        cpuid: Callable[[int, int], tuple[int, int, int, int]],
        on_block: Callable[[int, int], int | None],
    ) -> None:
        self._memory = memory
        self._cpuid = cpuid
        self._uc = uc = open_engine(UC_ARCH_X86, UC_MODE_64, UC_CPU_X86_EPYC_ROME)
        uc.ctl_set_tcg_buffer_size(TRANSLATION_CACHE)
        uc.ctl_exits_enabled(True)  # without any, so that no address ends the emulation
        self._pages, address = host_pages(vmcb.PAGES)
        uc.mem_map_ptr(END, vmcb.PAGES, UC_PROT_ALL, address)
        self._regions = memory.regions
        self._hooks: list[int] = []
        self._counter: ctypes.Array[ctypes.c_size_t] | None = None
        self.intno = -1
        self.port: PortAccess | None = None
        self.log: list[MmioAccess] = []
        self._position = 0  # in the log, of the access that comes next
        self._pieces = 0  # bytes in which Unicorn still performs an unaligned write
        self._stopping = False
        self._done = 0  # instructions of this slice when it was stopped
        self.instructions = 0
        self.problem = ""
        self.context = Context(uc)
        self._find_counter()
        self._enter_guest_mode(native_msrs)
        self._map_memory()
        state.reset(self.context)
        self._add_hooks(on_block)

    def close(self) -> None:
        """Let go of everything. Not while it runs."""
        for hook in self._hooks:
            self._uc.hook_del(hook)
        self._hooks.clear()
        # Regions are left mapped: to unmap one takes Unicorn a step for each page, and holes are large. Its binding
        # keeps a cycle with the callbacks of MMIO, which would leave the emulator to the garbage collector.
        getattr(self._uc, "_mmio_callbacks", {}).clear()
        del self._uc

    # --- how it starts

    def _find_counter(self) -> None:
        # Unicorn counts the instructions of a slice, but no call reads the count. It and its limit are neighbors
        # in the engine's record.
        self._pages[vmcb.CODE : vmcb.CODE + 2] = b"\xeb\xfe"  # jmp .
        self._uc.emu_start(END + vmcb.CODE, 0, count=_MARK)
        address = self._uc._uch.value
        word = ctypes.sizeof(ctypes.c_size_t)
        for at in range(address, address + 0x2000, word):
            pair = (ctypes.c_size_t * 2).from_address(at)
            if tuple(pair) == (_MARK + 1, _MARK):
                self._counter = pair
                return
        raise Unsupported(
            "this version of Unicorn keeps its instruction counter elsewhere",
            subject="Unicorn",
            remedy="use unicorn 2.1.4",
        )

    def _enter_guest_mode(self, native_msrs: frozenset[int]) -> None:
        pages, context = self._pages, self.context
        vmcb.fill(pages)
        self.set_native_msrs(native_msrs)
        pages[vmcb.CODE : vmcb.CODE + 3] = vmcb.VMRUN
        self._uc.ctl_flush_tb()
        context.set_register(c.RAX, END + vmcb.VMCB)
        context.hflags |= c.HF_SVME
        context.restore()
        low, address = host_pages(vmcb.PAGES)  # only for now; the host's state is saved there too
        self._uc.mem_map_ptr(0, vmcb.PAGES, UC_PROT_ALL, address)
        low[vmcb.HALTED_AT : vmcb.HALTED_AT + 1] = vmcb.HLT
        self._uc.emu_start(END + vmcb.CODE, 0, count=10)
        self._uc.mem_unmap(0, vmcb.PAGES)
        context.save()
        expected = (
            vmcb.HALTED_AT + 1, END + vmcb.VMCB, vmcb.INTERCEPTS, vmcb.ALL_EXCEPTIONS, state.CR0_RESET, 0xFFFF, 0,
        )  # fmt: skip
        found = (
            context.rip, context.vm_vmcb, context.intercept, context.intercept_exceptions, context.cr(0),
            context.segment(c.CS)[2], context.efer,
        )  # fmt: skip
        if found != expected or not context.hflags & c.HF_GUEST or not context.hflags2 & c.HF2_VINTR:
            raise Unsupported(
                f"this version of Unicorn does not virtualize as expected: {found}",
                subject="Unicorn",
                remedy="use unicorn 2.1.4",
            )
        context.hflags2 &= ~c.HF2_GIF

    def set_native_msrs(self, native: frozenset[int]) -> None:
        """Let the emulator keep these MSRs by itself, and no others."""
        self._native_msrs = native
        vmcb.set_native_msrs(self._pages, native)

    def native_msr(self, index: int) -> int:
        """The value of an MSR that the emulator keeps; 0 if the VMM keeps it."""
        return int(self._uc.msr_read(index)) if index in self._native_msrs else 0

    def _add_hooks(self, on_block: Callable[[int, int], int | None]) -> None:
        uc = self._uc

        def on_edge(uc: Any, block: Any, previous: object, data: object) -> None:
            if (event := on_block(block.pc, block.size)) is not None:
                self._event(event)

        self._hooks = [
            uc.hook_add(UC_HOOK_INTR, self._on_interrupt),
            uc.hook_add(UC_HOOK_INSN, self._on_in, aux1=UC_X86_INS_IN),
            uc.hook_add(UC_HOOK_INSN, self._on_out, aux1=UC_X86_INS_OUT),
            uc.hook_add(UC_HOOK_INSN, self._on_cpuid, aux1=UC_X86_INS_CPUID),
            uc.hook_add(UC_HOOK_INSN, lambda uc, data: self._event(vmcb.SYSCALL), aux1=UC_X86_INS_SYSCALL),
            uc.hook_add(UC_HOOK_INSN, lambda uc, data: self._event(vmcb.SYSENTER), aux1=UC_X86_INS_SYSENTER),
            uc.hook_add(UC_HOOK_MEM_READ_PROT, self._on_read),
            uc.hook_add(UC_HOOK_MEM_WRITE_PROT, self._on_write),
            uc.hook_add(UC_HOOK_EDGE_GENERATED, on_edge),
        ]

    def _map_memory(self) -> None:
        for region in self._regions:
            self._uc.mem_map_ptr(region.start, len(region.memory), UC_PROT_ALL, region.host_address)
        for start, size in self._memory.holes():
            self._uc.mmio_map(start, size, self._mmio_read, start, self._mmio_write, None)
            self._uc.mem_protect(start, size, UC_PROT_NONE)  # so that the two hooks below come first

    @property
    def is_outdated(self) -> bool:
        """Whether memory was added since."""
        return self._regions is not self._memory.regions

    def forget_addresses(self) -> None:
        """Control registers have changed, and with them what addresses mean."""
        self._uc.ctl(UC_CTL_TLB_FLUSH, UC_CTL_IO_WRITE)

    def forget_translations(self) -> None:
        """Guest code has changed behind the engine's back."""
        self._uc.ctl_flush_tb()
        self.forget_addresses()

    # --- running

    def run(self, count: int) -> Stop:
        """Execute up to `count` instructions."""
        context, counter = self.context, self._counter
        assert counter is not None
        self.intno = -1
        self.port = None
        self._position = 0
        self._pieces = 0
        self._stopping = False
        if context.changed:
            context.restore()
        failure = None
        try:
            self._uc.emu_start(context.rip, 0, count=count)
        except UcError as error:
            failure = error
        context.save()
        self.instructions += self._done if self._stopping else self._executed()
        if self.port is not None:
            return Stop.PORT
        if self.intno >= 0:
            return Stop.EVENT
        if any(not access.reported for access in self.log):
            return Stop.MMIO
        if failure is not None:
            self.problem = str(failure)
            return Stop.FAILED
        return Stop.SLICE if counter[0] > count else Stop.HALT

    def _executed(self) -> int:
        counter = self._counter
        assert counter is not None
        return min(counter[0], counter[1])

    @property
    def fault_address(self) -> int:
        """Linear address of the last page fault."""
        value: int = struct.unpack_from("<Q", self._pages, vmcb.EXIT_INFO_2)[0]
        return value

    def _stop_after_instruction(self) -> None:
        # Not by emu_stop, which forgets to update RIP where one translated block leads directly to the next. When
        # the slice is used up Unicorn stops at the start of an instruction, and is right about where it is.
        counter = self._counter
        assert counter is not None
        if not self._stopping:
            self._stopping = True
            self._done = counter[0]
            counter[0] = counter[1]

    def _on_interrupt(self, uc: Any, intno: int, data: object) -> None:
        context = self.context
        if context.hflags2 & c.HF2_GIF or intno < vmcb.FIRST_EXIT:
            # Else the emulator would look for the interrupt again before it looks for our stop; and it never
            # forgets that the last one was a software interrupt.
            context.save()
            context.hflags2 &= ~c.HF2_GIF
            context.exception_is_int = 0
            context.restore()
        self._event(intno)

    def _event(self, intno: int) -> None:
        if not self._stopping:  # else it comes again
            self._stopping = True
            self._done = self._executed()
            self.intno = intno
        self._uc.emu_stop()

    def _on_in(self, uc: Any, port: int, size: int, data: object) -> int:
        self.context.save()
        self.port = PortAccess(port, size, 0, False, self.context.registers)
        self._stop_after_instruction()
        return 0

    def _on_out(self, uc: Any, port: int, size: int, value: int, data: object) -> None:
        self.context.save()
        self.port = PortAccess(port, size, value, True, self.context.registers)
        self._stop_after_instruction()

    def _on_cpuid(self, uc: Any, data: object) -> int:
        leaf, subleaf = uc.reg_read(UC_X86_REG_RAX), uc.reg_read(UC_X86_REG_RCX)
        answer = self._cpuid(leaf & 0xFFFFFFFF, subleaf & 0xFFFFFFFF)
        for register, value in zip(_CPUID_RESULT, answer, strict=True):
            uc.reg_write(register, value)
        return 1  # it is done

    # --- MMIO

    def _replayed(self, address: int, size: int, is_write: bool) -> MmioAccess | None:
        """The access of the log that comes now, if it is this one; else forget what the log has from here on."""
        if self._position < len(self.log):
            access = self.log[self._position]
            if (access.address, len(access.data), access.is_write) == (address, size, is_write):
                self._position += 1
                return access
            del self.log[self._position :]
        return None

    def _on_read(self, uc: Any, kind: int, address: int, size: int, value: int, data: object) -> bool:
        if self._replayed(address, size, False):
            return True  # _mmio_read gives what the log has
        self.log.append(MmioAccess(address, bytearray(size), False))
        return False  # abandons the instruction

    def _on_write(self, uc: Any, kind: int, address: int, size: int, value: int, data: object) -> bool:
        if size == 1 and self._pieces:  # of the write that was recorded just now
            self._pieces -= 1
            return True
        self._pieces = size if address % size else 0
        if not self._replayed(address, size, True):
            written = bytearray((value & (1 << 8 * size) - 1).to_bytes(size, "little"))
            self.log.append(MmioAccess(address, written, True))
            self._position += 1
            self._stop_after_instruction()
        return True

    def _mmio_read(self, uc: Any, offset: int, size: int, start: int) -> int:
        # A piece of the read that _on_read has let pass; all ones for what never came there: a page table in MMIO,
        # or what lies beyond the end of memory of a read that starts before it.
        if not 0 < self._position <= len(self.log) or (access := self.log[self._position - 1]).is_write:
            return (1 << 8 * size) - 1
        at = start + offset - access.address
        return sum(
            (access.data[at + number] if 0 <= at + number < len(access.data) else 0xFF) << 8 * number
            for number in range(size)
        )

    def _mmio_write(self, uc: Any, offset: int, size: int, value: int, data: object) -> None:
        """Nothing is left to do: _on_write has it."""


_CPUID_RESULT = (UC_X86_REG_RAX, UC_X86_REG_RBX, UC_X86_REG_RCX, UC_X86_REG_RDX)
