"""External interrupts that user space injects into a KVM vCPU, and what the run area says of them.

With local APICs in the kernel these are the interrupts of PICs in user space; otherwise they are all there are. Here is
also which of them the kernel still keeps where no request reads it. NMIs are in `vcpu_state`.
"""

from __future__ import annotations

import errno

from attrs import evolve

from irqchip_core.arguments import check_int
from irqchip_kvm import abi
from irqchip_kvm.ioctl import Handle
from irqchip_kvm.problems import failure
from irqchip_kvm.records import VcpuEvents
from irqchip_kvm.vcpu_state import VcpuState

_EXIT_REASON_WORD = abi.RUN_EXIT_REASON // 4
_NOT_RUN_SINCE = 2
"""Put where KVM_RUN leaves 0 or 1, whether the guest is ready for an interrupt."""
_LVT_LINT0 = 0x350 // 16  # Intel SDM vol. 3, table 12-1
_LVT_MASK_AND_MODE, _EXTINT = 1 << 16 | 7 << 8, 7 << 8  # mask and delivery mode (12.5.1)
_APIC_GLOBAL_ENABLE = 1 << 11  # of IA32_APIC_BASE (12.4.3)

_RFLAGS_IF = 1 << 9
_COMPLETE = (abi.ExitReason.INTR, abi.ExitReason.IRQ_WINDOW_OPEN, abi.ExitReason.IOAPIC_EOI)
"""Exits that wait for no access to be completed."""


class VcpuInterrupts(VcpuState):
    """A vCPU's external interrupts. The base of `KvmVcpu`, which runs it."""

    def __init__(self, handle: Handle, run_size: int) -> None:
        super().__init__(handle, run_size)
        self._try_call = handle.try_call
        self._kicked = False  # whether immediate_exit is a kick's
        self._queued: int | None = None  # what interrupt() gave to the kernel last

    def ready_for_interrupt(self) -> bool:
        """Whether an external interrupt can be injected now, as of the last exit."""
        run = self._run
        return run[abi.RUN_READY_FOR_INTERRUPT_INJECTION] == 1 and run[abi.RUN_IF_FLAG] != 0

    @property
    def readiness_known(self) -> bool:
        """Whether `ready_for_interrupt` is still true: not before the first `run`, nor after state was set from here.

        The next `run` updates it. With local APICs in the kernel that one might sleep: kick it.
        """
        return self._readiness_known

    def set_interrupt_window_requested(self, requested: bool) -> None:
        """Request an `IrqWindowExit` as soon as an interrupt can be injected, or withdraw the request."""
        self._run[abi.RUN_REQUEST_INTERRUPT_WINDOW] = 1 if requested else 0

    @property
    def cr8(self) -> int:
        """Task priority class 0-15 as of the last exit; what is set is taken at the next `run`.

        With a local APIC in the kernel, setting it has no effect.
        """
        return self._run_words[abi.RUN_CR8 // 4]

    @cr8.setter
    def cr8(self, value: int) -> None:
        check_int(value, 0, 15, subject=self._handle.subject, argument="cr8")
        self._run_words[abi.RUN_CR8 // 4] = value

    @property
    def apic_base(self) -> int:
        """MSR 0x1B (IA32_APIC_BASE) as of the last exit."""
        value: int = abi.RUN_U64.unpack_from(self._run, abi.RUN_APIC_BASE)[0]
        return value

    def interrupt(self, vector: int) -> None:
        """Inject one external interrupt (KVM_INTERRUPT); only when ready, at most once per exit.

        Args:
            vector: 0-255.

        Raises:
            InvalidArgument: `vector` is out of range.
            HypervisorError: EAGAIN: not ready, or one is queued. ENXIO: the kernel has the chip.
        """
        check_int(vector, 0, 255, subject=self._handle.subject, argument="vector")
        if not self.ready_for_interrupt():
            raise failure(abi.KVM_INTERRUPT.name, errno.EAGAIN, self._handle.subject)
        self._call(abi.KVM_INTERRUPT, abi.INTERRUPT.pack(vector))
        self._queued = vector
        self._run[abi.RUN_READY_FOR_INTERRUPT_INJECTION] = _NOT_RUN_SINCE  # the kernel never reads it

    def queued_interrupt(self) -> int | None:
        """The vector given to `interrupt` that the guest has not begun to take; with local APICs in the kernel only.

        Until then the kernel keeps it (pending_userspace_extint) where no request can read it, so a snapshot reads
        it here. `get_sregs` shows it afterwards, while it is being delivered.

        After an exit whose access is not complete (see `complete_io`), and while an exception or NMI is being
        delivered, it counts as queued: an interrupt too many does less harm than one that never comes.
        """
        ready = self._run[abi.RUN_READY_FOR_INTERRUPT_INJECTION]
        if self._queued is not None and ready != _NOT_RUN_SINCE and (ready or self._has_begun_to_take()):
            self._queued = None
        return self._queued

    def _has_begun_to_take(self) -> bool:
        """Whether the guest, which was ready for the queued vector and is not ready now, has taken it."""
        events = self.get_vcpu_events()
        if events.interrupt_injected:
            return True
        lint0 = self.get_lapic_state().regs[_LVT_LINT0]
        if lint0 & _LVT_MASK_AND_MODE != _EXTINT and self.apic_base & _APIC_GLOBAL_ENABLE != 0:
            return True
        delivers = events.exception_injected or events.exception_pending or events.nmi_injected
        return not delivers and self._run_words[_EXIT_REASON_WORD] in _COMPLETE and self._is_ready_unblocked(events)

    def _is_ready_unblocked(self, events: VcpuEvents) -> bool:
        """Whether the guest would be ready for an interrupt if IF and shadow did not block it.

        What executed since does not tell: NMIs come before a queued interrupt, and may return with IF cleared.
        """
        run, known, flag = self._run, self._readiness_known, self._run[abi.RUN_IF_FLAG]
        regs, change = self.get_regs(), {"flags": abi.VCPUEVENT_VALID_SHADOW}
        run[abi.RUN_IMMEDIATE_EXIT] = 1  # KVM_RUN executes nothing, and updates the readiness
        try:
            self.set_regs(evolve(regs, rflags=regs.rflags | _RFLAGS_IF))
            self.set_vcpu_events(evolve(events, interrupt_shadow=0, **change))
            self._try_call(abi.KVM_RUN)
            return run[abi.RUN_READY_FOR_INTERRUPT_INJECTION] == 1
        finally:
            self.set_regs(regs)
            self.set_vcpu_events(evolve(events, **change))
            self._readiness_known = known
            run[abi.RUN_IF_FLAG], run[abi.RUN_READY_FOR_INTERRUPT_INJECTION] = flag, 0
            run[abi.RUN_IMMEDIATE_EXIT] = 0
            if self._kicked:  # as in complete_io()
                run[abi.RUN_IMMEDIATE_EXIT] = 1
