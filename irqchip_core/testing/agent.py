"""The test guest (agent.S): its operations, and how a processor is made ready for it.

No chip and no hypervisor here, only guest memory and registers.
"""

from __future__ import annotations

import enum
import importlib.resources
import struct

from irqchip_core.hypervisor.registers import DescriptorTable, Regs, Segment
from irqchip_core.hypervisor.vcpu import VcpuX86_64

MEMORY = 0x40000
"""Bytes of guest memory it needs, at address 0."""
ENTRY, STUBS, UNEXPECTED, GENERAL_PROTECTION = 0x1000, 0x1400, 0x2400, 0x1300
STUB_SIZE, UNEXPECTED_SIZE = 16, 8
STARTUP_VECTOR = 0x03
"""Of a start-up IPI that enters it in real mode."""
MAILBOXES, MAILBOX_SIZE = 0x4000, 0x40
STACKS, STACK_SIZE = 0x8000, 0x800
PML4, PDPT, FIRST_GIGABYTE, FOURTH_GIGABYTE, GDT, IDT = 0x10000, 0x11000, 0x12000, 0x13000, 0x14000, 0x15000
MAX_VCPUS = 8

TAKEN, CRASHED, COMMAND, STARTED, WINDOW = 0x10, 0x11, 0x12, 0x13, 0x14
"""Ports."""

GP = 13
WITH_ERROR_CODE = (8, 10, 11, 12, 14, 17)
"""Exceptions other than #GP that push an error code (Intel SDM vol. 3, table 7-1)."""
CODE_SELECTOR, DATA_SELECTOR = 0x08, 0x10

SMI_ENTRY = 0x38000
"""Where an SMI enters after reset (Intel SDM vol. 3, 33.4); its state is saved above, below 0x40000."""
RSM = b"\x0f\xaa"

_FIRST, _RESULT, _FAULT, _STOP = 0, 16, 24, 32


class Operation(enum.IntEnum):
    """The operations of the test guest, in the order of agent.S."""

    OPEN = 0
    """Let in one pending interrupt, if there is any."""
    HALT = 1
    """HLT with interrupts enabled; complete when one has been taken."""
    SPIN = 2
    """Execute with interrupts enabled until one has been taken."""
    READ_MSR = 3
    WRITE_MSR = 4
    LOAD = 5
    STORE = 6
    IN = 7
    OUT = 8
    READ_CR8 = 9
    WRITE_CR8 = 10
    READ_TSC = 11
    IN_WORD = 12
    OUT_WORD = 13
    IN_DWORD = 14
    OUT_DWORD = 15
    CPUID = 16
    """Leaf and subleaf; see `Mailbox.cpuid`."""
    SWITCH = 17
    """Write an MSR twice and load, with no exit between. Four arguments of 32 bits: MSR, address, the two values."""


class Mailbox:
    """Where one vCPU's guest finds its arguments and leaves its results.

    Args:
        memory: All guest memory.
        vcpu_id: The vCPU that reads this mailbox.
    """

    def __init__(self, memory: memoryview, vcpu_id: int) -> None:
        at = MAILBOXES + vcpu_id * MAILBOX_SIZE
        self._bytes = memory[at : at + MAILBOX_SIZE]

    def put(self, first: int, second: int) -> None:
        """Leave the arguments of the next operation."""
        struct.pack_into("<5Q", self._bytes, _FIRST, first, second, 0, 0, 0)

    def result(self) -> int:
        """What the last operation read."""
        return int(struct.unpack_from("<Q", self._bytes, _RESULT)[0])

    def cpuid(self) -> tuple[int, int, int, int]:
        """EAX, EBX, ECX and EDX that the last CPUID read."""
        eax, ebx, ecx, edx = struct.unpack_from("<I4xI4xII", self._bytes, _FIRST)
        return eax, ebx, ecx, edx

    def faulted(self) -> bool:
        """Whether the last operation raised #GP."""
        return self._bytes[_FAULT] != 0

    def stop(self) -> None:
        """End SPIN."""
        self._bytes[_STOP] = 1


def load(memory: memoryview) -> None:
    """Put the guest and the tables it needs into its memory."""
    code = importlib.resources.files("irqchip_core.testing").joinpath("agent.bin").read_bytes()
    memory[ENTRY : ENTRY + len(code)] = code
    memory[SMI_ENTRY : SMI_ENTRY + len(RSM)] = RSM
    handlers = [STUBS + STUB_SIZE * vector for vector in range(256)]
    for vector in WITH_ERROR_CODE:
        handlers[vector] = UNEXPECTED + UNEXPECTED_SIZE * vector
    handlers[GP] = GENERAL_PROTECTION
    gates = [handler | CODE_SELECTOR << 16 | 0x8E << 40 for handler in handlers]  # present, interrupt gate
    for address, quads in (
        (PML4, [PDPT | 3]),
        (PDPT, [FIRST_GIGABYTE | 3, 0, 0, FOURTH_GIGABYTE | 3]),
        (FIRST_GIGABYTE, [0x83]),  # one page of 2 MiB
        (FOURTH_GIGABYTE, [0xC0000000 + (page << 21) | 0x93 for page in range(512)]),  # not cached: IOAPIC and APICs
        (GDT, [0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF]),
        (IDT, [quad for gate in gates for quad in (gate, 0)]),
    ):
        memory[address : address + 8 * len(quads)] = struct.pack(f"<{len(quads)}Q", *quads)


def enter_long_mode(vcpu: VcpuX86_64, *, pml4: int, gdt: int, idt: int) -> None:
    """Set the processor up in 64-bit mode (Intel SDM vol. 3, 11.8.5), with its tables at these addresses."""
    sregs = vcpu.get_sregs()
    sregs.cs = Segment(limit=0xFFFFFFFF, selector=CODE_SELECTOR, type=11, l=1, g=1)
    data = Segment(limit=0xFFFFFFFF, selector=DATA_SELECTOR, db=1, g=1)
    sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data
    sregs.gdt = DescriptorTable(gdt, 3 * 8 - 1)
    sregs.idt = DescriptorTable(idt, 256 * 16 - 1)
    sregs.cr0 = 1 << 31 | 1 << 5 | 1 << 4 | 1  # PG, NE, ET, PE
    sregs.cr3 = pml4
    sregs.cr4 = 1 << 5  # PAE
    sregs.efer = 1 << 10 | 1 << 8  # LMA, LME
    vcpu.set_sregs(sregs)


def enter(vcpu: VcpuX86_64) -> None:
    """Set the processor up to enter the test guest, which requests its first operation then."""
    enter_long_mode(vcpu, pml4=PML4, gdt=GDT, idt=IDT)
    vcpu.set_regs(Regs(rip=ENTRY, rsp=STACKS + STACK_SIZE * (vcpu.id + 1), rbx=MAILBOXES + MAILBOX_SIZE * vcpu.id))
