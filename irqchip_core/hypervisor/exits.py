"""Why a vCPU came back from guest code: what `VcpuX86_64.run` returns.

The names are those of KVM's exit reasons; any hypervisor can report them. Buffers of `IoExit` and
`MmioExit` may be the hypervisor's own memory: they are valid until the vCPU runs again, and a read
is answered by filling them.
"""

from __future__ import annotations

from attrs import define, field


@define(eq=False)
class IoExit:
    """The guest executes IN, OUT, INS or OUTS (KVM_EXIT_IO).

    Attributes:
        port: First I/O port, 0-0xFFFF.
        size: Bytes of one access: 1, 2 or 4.
        data: One or more accesses to the same port, `size` bytes each. Holds what the guest writes,
            or takes what it reads.
        is_write: True for OUT.
    """

    port: int
    size: int
    data: memoryview
    is_write: bool


@define(eq=False)
class MmioExit:
    """The guest accesses memory that is not there (KVM_EXIT_MMIO).

    Attributes:
        address: Guest physical address.
        data: 1 to 8 bytes. Holds what the guest writes, or takes what it reads.
        is_write: True for a write.
    """

    address: int
    data: memoryview
    is_write: bool


@define(eq=False)
class MsrExit:
    """The guest accesses an MSR that was left to user space (KVM_EXIT_X86_RDMSR, _WRMSR).

    Answer with ``vcpu.complete_msr`` before the vCPU runs again; unanswered it raises #GP.

    Attributes:
        index: Number of the MSR.
        value: What the guest writes; 0 for a read.
        is_write: True for WRMSR.
    """

    index: int
    value: int
    is_write: bool


@define
class HltExit:
    """The guest executed HLT and no chip in the hypervisor waits for an interrupt (KVM_EXIT_HLT)."""


@define
class IrqWindowExit:
    """The requested interrupt window is open (KVM_EXIT_IRQ_WINDOW_OPEN)."""


@define
class InterruptedExit:
    """The vCPU was kicked, or a signal came (KVM_EXIT_INTR, or EINTR from KVM_RUN)."""


@define
class ShutdownExit:
    """Triple fault (KVM_EXIT_SHUTDOWN)."""


@define
class IoapicEoiExit:
    """The guest ended a level-triggered interrupt of an IOAPIC in user space (KVM_EXIT_IOAPIC_EOI).

    Attributes:
        vector: The vector ended, 0-255.
    """

    vector: int


@define
class SetTprExit:
    """The guest lowered its task priority by CR8 (KVM_EXIT_SET_TPR)."""


@define
class FailEntryExit:
    """The processor refused to enter the guest (KVM_EXIT_FAIL_ENTRY).

    Attributes:
        reason: Hardware's code, printed in hexadecimal.
    """

    reason: int


@define
class InternalErrorExit:
    """The hypervisor cannot go on (KVM_EXIT_INTERNAL_ERROR).

    Attributes:
        suberror: KVM_INTERNAL_ERROR_*: 1 is an instruction KVM cannot emulate.
        data: What the hypervisor adds; for suberror 1 it may hold the instruction's bytes.
    """

    suberror: int
    data: tuple[int, ...] = field(default=())


@define
class SystemEventExit:
    """The guest requests shutdown or reset through the hypervisor (KVM_EXIT_SYSTEM_EVENT).

    Attributes:
        type: KVM_SYSTEM_EVENT_*: 1 shutdown, 2 reset, 3 crash.
    """

    type: int


@define
class UnknownExit:
    """An exit of a kind that irqchip does not handle.

    Attributes:
        reason: KVM_EXIT_* number.
    """

    reason: int


Exit = (
    IoExit
    | MmioExit
    | MsrExit
    | HltExit
    | IrqWindowExit
    | InterruptedExit
    | ShutdownExit
    | IoapicEoiExit
    | SetTprExit
    | FailEntryExit
    | InternalErrorExit
    | SystemEventExit
    | UnknownExit
)
