"""What a chip and a VMM need of a hypervisor: protocols, no code.

A hypervisor package implements them without importing anything from here but the records. `Vcpu` and
`Vm` are all that a chip's signatures name; a chip that lives inside one hypervisor (KVM's) insists on
that hypervisor's own classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, Self, runtime_checkable

from irqchip_core.clock import Clock
from irqchip_core.hypervisor.exits import Exit, MsrExit
from irqchip_core.hypervisor.registers import CpuidEntry, Regs, Sregs


@runtime_checkable
class Vcpu(Protocol):
    """A virtual processor. Except for `id` and `kick`, only its own thread may use it."""

    @property
    def id(self) -> int:
        """Number of the vCPU, from 0; on x86 also its initial APIC id."""
        ...

    def kick(self) -> None:
        """Make the current or else the next `run` return `InterruptedExit` soon. From any thread.

        Kicks before that return are coalesced. A kick is never lost.
        """
        ...

    def close(self) -> None:
        """Release what the vCPU holds. Closing twice is harmless."""
        ...


@runtime_checkable
class VcpuX86_64(Vcpu, Protocol):  # noqa: N801
    """A virtual x86-64 processor into which a chip can inject interrupts."""

    def run(self) -> Exit:
        """Execute guest code until something is for user space to do."""
        ...

    def complete_io(self) -> Exit:
        """Finish the access of the last exit, and execute no further instruction: then state may be read.

        Registers that are read without it may show the access as not done yet, and a guest that goes on from
        them elsewhere repeats it.

        Returns:
            `InterruptedExit` when the access is complete; otherwise the exit of its next part.
        """
        ...

    def ready_for_interrupt(self) -> bool:
        """Whether an external interrupt can be injected now."""
        ...

    def interrupt(self, vector: int) -> None:
        """Inject one external interrupt; only when ready, at most once per exit.

        Args:
            vector: 0-255.
        """
        ...

    def inject_nmi(self) -> None:
        """Inject an NMI. While one is handled one more is held, otherwise two; further ones are coalesced."""
        ...

    def nmi_pending(self) -> bool:
        """Whether an NMI that was injected has not been delivered."""
        ...

    def nmi_blocked(self) -> bool:
        """Whether NMIs are blocked, until IRET (Intel SDM vol. 3, 7.7.1): none is delivered, none ends HLT."""
        ...

    def take_init(self) -> None:
        """Take an INIT, as far as `set_regs` and `set_sregs` do not (Intel SDM vol. 3, table 11-1).

        No event is pending or being delivered, neither interrupts nor NMIs are blocked, and the debug registers are
        as after reset.
        """
        ...

    def set_interrupt_window_requested(self, requested: bool) -> None:
        """Request an `IrqWindowExit` as soon as an interrupt can be injected, or withdraw the request."""
        ...

    @property
    def cr8(self) -> int:
        """Task priority class, 0-15, as of the last exit. What is set counts from the next `run`."""
        ...

    @cr8.setter
    def cr8(self, value: int) -> None: ...

    @property
    def apic_base(self) -> int:
        """IA32_APIC_BASE as of the last exit, for chips on a VM without `Vm.can_exit_on_msrs`."""
        ...

    def tsc(self) -> int:
        """The guest's time-stamp counter now."""
        ...

    def complete_msr(self, value: int = 0, *, fault: bool = False) -> None:
        """Answer the last `MsrExit`: with `value` for a read, or with #GP."""
        ...

    def perform_msr(self, access: MsrExit) -> bool:
        """Answer the last `MsrExit` with what the hypervisor does when that access is not reported.

        For IA32_APIC_BASE, IA32_TSC and IA32_TSC_ADJUST, which the hypervisor keeps even where their writes must
        reach the chip at once.

        Returns:
            False if it refuses the access, which is not answered then.
        """
        ...

    def get_regs(self) -> Regs: ...
    def set_regs(self, regs: Regs) -> None: ...
    def get_sregs(self) -> Sregs: ...
    def set_sregs(self, sregs: Sregs) -> None: ...

    def set_cpuid(self, entries: Sequence[CpuidEntry]) -> None:
        """Say what CPUID shall answer, before the first `run`."""
        ...


@runtime_checkable
class Vm(Protocol):
    """A virtual machine: guest memory and vCPUs."""

    @property
    def hypervisor(self) -> str:
        """Name under which the hypervisor is registered, such as ``kvm``."""
        ...

    @property
    def clock(self) -> Clock:
        """The time that passes for the guest, which chips and devices share."""
        ...

    def map_memory(self, guest_address: int, size: int) -> memoryview:
        """Add `size` bytes of zeroed guest memory; the result shows it to the host.

        Args:
            guest_address: Guest physical address, a multiple of 4096.
            size: Bytes, a multiple of 4096.
        """
        ...

    @property
    def tsc_hz(self) -> int:
        """Frequency of the guest's time-stamp counter in Hz; 0 if it is not known."""
        ...

    @property
    def can_exit_on_msrs(self) -> bool:
        """Whether `exit_on_msrs` works here."""
        ...

    def exit_on_msrs(self, msrs: Iterable[range]) -> None:
        """Report every access to these MSRs as an `MsrExit`, before the first vCPU runs.

        Args:
            msrs: Ranges of MSR numbers with a step of 1; they replace those of an earlier call.

        Raises:
            Unsupported: The hypervisor cannot let go of them.
        """
        ...

    def create_vcpu(self, vcpu_id: int) -> VcpuX86_64:
        """Make a vCPU. The chip must exist before the first one."""
        ...

    def supported_cpuid(self) -> list[CpuidEntry]:
        """What CPUID can truthfully answer on this hypervisor."""
        ...

    def close(self) -> None:
        """Release everything, vCPUs and memory included. Closing twice is harmless."""
        ...

    def __enter__(self) -> Self: ...
    def __exit__(self, *exc_info: object) -> None: ...
