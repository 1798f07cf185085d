"""Machines of one vCPU for the tests: real mode, protected mode and long mode, with a handler for each vector.

A handler is HLT, so that the test looks at registers and stack when it is entered, and then an IRET.
"""

from __future__ import annotations

import struct
import threading
from typing import Generic, Protocol, TypeVar

from irqchip_core.hypervisor.exits import Exit, HltExit, InterruptedExit, IoExit
from irqchip_core.hypervisor.registers import CpuidEntry, DescriptorTable, Regs, Segment
from irqchip_core.hypervisor.vcpu import VcpuX86_64

CODE = 0x1000
STACK = 0x8000
MEMORY = 0x40000
HANDLERS, HANDLER_SIZE = 0x5000, 4
GDT, IDT, TSS, PAGE_TABLES = 0x3000, 0x4000, 0x6000, 0x10000
KERNEL_STACK, IST_STACK = 0xA000, 0xC000
KERNEL_CODE, KERNEL_DATA, USER_CODE, USER_DATA, TSS_SELECTOR = 0x08, 0x10, 0x1B, 0x23, 0x28
PATIENCE = 10.0
IF, TF, RF = 1 << 9, 1 << 8, 1 << 16

HALT = b"\xf4"
ENDLESS = b"\xeb\xfe"


def run(vcpu: VcpuX86_64) -> Exit:
    """The next exit that is no kick; fails if none comes."""
    over = threading.Event()

    def give_up() -> None:
        over.set()
        vcpu.kick()

    timer = threading.Timer(PATIENCE, give_up)
    timer.start()
    try:
        while True:
            exit_ = vcpu.run()
            assert not over.is_set(), "the guest does not get anywhere"
            if not isinstance(exit_, InterruptedExit):
                return exit_
    finally:
        timer.cancel()
        timer.join()


_Vcpu = TypeVar("_Vcpu", bound=VcpuX86_64, covariant=True)


class _VmOf(Protocol[_Vcpu]):
    """A VM whose vCPUs are of one type."""

    def map_memory(self, guest_address: int, size: int) -> memoryview: ...
    def create_vcpu(self, vcpu_id: int) -> _Vcpu: ...
    def supported_cpuid(self) -> list[CpuidEntry]: ...


class Machine(Generic[_Vcpu]):
    """A vCPU at `CODE` and its memory.

    Args:
        vm: Where it is made.
        mode: ``real``, ``protected`` or ``long``.
        code: What it executes.
        user: Whether at privilege level 3.
        vcpu_id: Number of the vCPU; memory is mapped for the first.
    """

    def __init__(self, vm: _VmOf[_Vcpu], mode: str, code: bytes, *, user: bool = False, vcpu_id: int = 0) -> None:
        self.mode = mode
        self.memory = vm.map_memory(0, MEMORY)
        self.memory[CODE : CODE + len(code)] = code
        self.width = {"real": 2, "protected": 4, "long": 8}[mode]
        self._tables()
        self.vcpu = vm.create_vcpu(vcpu_id)
        self.vcpu.set_cpuid(vm.supported_cpuid())
        self.enter(user=user)

    def _tables(self) -> None:
        memory, long = self.memory, self.mode == "long"
        iret = b"\xf4\x48\xcf" if long else b"\xf4\xcf"
        for vector in range(256):
            at = HANDLERS + HANDLER_SIZE * vector
            memory[at : at + len(iret)] = iret
            if self.mode == "real":
                struct.pack_into("<HH", memory, 4 * vector, at, 0)
        if self.mode == "real":
            return
        size = 0x20 if long else 0x40
        for selector, access, flags in (
            (KERNEL_CODE, 0x9B, 0x80 | size), (KERNEL_DATA, 0x93, 0xC0), (USER_CODE, 0xFB, 0x80 | size),
            (USER_DATA, 0xF3, 0xC0),
        ):  # fmt: skip
            struct.pack_into("<HHBBBB", memory, GDT + (selector & ~7), 0xFFFF, 0, 0, access, flags | 0xF, 0)
        for vector in range(256):
            self.gate(vector)
        if long:
            struct.pack_into("<Q", memory, TSS + 4, KERNEL_STACK)
            struct.pack_into("<Q", memory, TSS + 0x24, IST_STACK)
            for level in range(2):
                at = PAGE_TABLES + 0x1000 * level
                struct.pack_into("<Q", memory, at, at + 0x1000 | 7)
            struct.pack_into("<Q", memory, PAGE_TABLES + 0x2000, 0x87)  # 2 MiB of itself, for the user too
            struct.pack_into("<Q", memory, PAGE_TABLES + 0x2008, 0x200087)  # the next 2 MiB, which are MMIO
        else:
            struct.pack_into("<II", memory, TSS + 4, KERNEL_STACK, KERNEL_DATA)
        struct.pack_into("<H", memory, TSS + 102, 104)
        memory[TSS + 104 : TSS + 0x201] = b"\xff" * 0x199  # no port is for the user

    def gate(self, vector: int, kind: int = 14, *, dpl: int = 3, present: bool = True, ist: int = 0) -> None:
        """Set the IDT's entry for a vector."""
        access = kind | dpl << 5 | present << 7
        at = HANDLERS + HANDLER_SIZE * vector
        if self.mode == "long":
            struct.pack_into("<HHBBHQ", self.memory, IDT + 16 * vector, at, KERNEL_CODE, ist, access, 0, 0)
        else:
            struct.pack_into("<HHBBH", self.memory, IDT + 8 * vector, at, KERNEL_CODE, 0, access, 0)

    def enter(self, *, user: bool = False) -> None:
        """Put the vCPU at the start of the code."""
        vcpu, mode = self.vcpu, self.mode
        sregs = vcpu.get_sregs()
        if mode == "real":
            sregs.cs = Segment(type=11)
            sregs.cr0, sregs.cr4, sregs.efer = 0x60000010, 0, 0
        else:
            dpl = 3 if user else 0
            code, data = (USER_CODE, USER_DATA) if user else (KERNEL_CODE, KERNEL_DATA)
            long = int(mode == "long")
            sregs.cs = Segment(0, 0xFFFFFFFF, code, 11, 1, dpl, 1 - long, 1, long, 1)
            for name in ("ds", "es", "ss"):
                setattr(sregs, name, Segment(0, 0xFFFFFFFF, data, 3, 1, dpl, 1, 1, 0, 1))
            sregs.tr = Segment(TSS, 0x200, TSS_SELECTOR, 11, s=0)
            sregs.gdt, sregs.idt = DescriptorTable(GDT, 0x37), DescriptorTable(IDT, 0xFFF if long else 0x7FF)
            sregs.cr0 = 0x80010011 if long else 0x11
            if long:
                sregs.cr3, sregs.cr4, sregs.efer = PAGE_TABLES, 0x620, 0x500
        vcpu.set_sregs(sregs)
        vcpu.set_regs(Regs(rip=CODE, rsp=STACK))

    def idt_limit(self, limit: int) -> None:
        sregs = self.vcpu.get_sregs()
        sregs.idt.limit = limit
        self.vcpu.set_sregs(sregs)

    def run(self) -> Exit:
        return run(self.vcpu)

    def port(self) -> IoExit:
        """The next exit, which is an access to a port."""
        exit_ = self.run()
        assert isinstance(exit_, IoExit), (exit_, self.vcpu.get_regs())
        return exit_

    def flags(self, rflags: int) -> None:
        regs = self.vcpu.get_regs()
        regs.rflags = rflags
        self.vcpu.set_regs(regs)

    def handler(self) -> int:
        """The vector whose handler is entered next."""
        exit_ = self.run()
        assert exit_ == HltExit(), (exit_, self.vcpu.get_regs(), self.vcpu.get_sregs())
        return self.handler_entered()

    def handler_entered(self) -> int:
        """The vector whose handler is at its HLT."""
        rip = self.vcpu.get_regs().rip
        assert HANDLERS < rip < HANDLERS + 256 * HANDLER_SIZE, hex(rip)
        vector, rest = divmod(rip - 1 - HANDLERS, HANDLER_SIZE)
        assert rest == 0
        return vector

    def stack(self, count: int) -> list[int]:
        """What the handler finds on its stack, the last pushed first."""
        rsp = self.vcpu.get_regs().rsp
        return [
            int.from_bytes(self.memory[at : at + self.width], "little")
            for at in range(rsp, rsp + count * self.width, self.width)
        ]

    def drop(self) -> None:
        """Take the error code off the stack."""
        regs = self.vcpu.get_regs()
        regs.rsp += self.width
        self.vcpu.set_regs(regs)
