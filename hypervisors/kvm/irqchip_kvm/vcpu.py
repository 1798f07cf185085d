"""A virtual processor of KVM: runs guest code, is kicked and stopped, and completes what an exit has begun.

Only the vCPU's own thread uses it, except for `KvmVcpu.kick` and `KvmVcpu.close`, and for state while it does not run:
`KvmVcpu.stopped` sees to that. What an exit means is in `exits`; how the kernel is called, in `ioctl`. Its registers
and local APIC are in `vcpu_state`; interrupts that user space injects, in `vcpu_interrupts`.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

from irqchip_core.arguments import check_int
from irqchip_core.errors import Closed, HypervisorError, InvalidArgument
from irqchip_core.hypervisor.exits import Exit, MsrExit, UnknownExit
from irqchip_core.x86.lapic.registers import IA32_TSC, IA32_TSC_ADJUST
from irqchip_kvm import abi
from irqchip_kvm.exits import DECODERS, INTERRUPTED
from irqchip_kvm.ioctl import Handle, address_of, buffer
from irqchip_kvm.problems import failure
from irqchip_kvm.run_lock import RunLock
from irqchip_kvm.vcpu_interrupts import VcpuInterrupts

if TYPE_CHECKING:
    from irqchip_kvm.vm import KvmVm

_U64 = (1 << 64) - 1

CLOSE_TIMEOUT = 5.0
"""Seconds that `KvmVcpu.close` waits for a `run` on another thread to come back."""
STOP_TIMEOUT = 5.0
"""Seconds that `KvmVcpu.stopped` waits for that, and before for other threads that want the same."""

# Looked up once: run() is the hot path.
_KVM_RUN = abi.KVM_RUN
_EXIT_REASON_WORD = abi.RUN_EXIT_REASON // 4
_decoder = DECODERS.get


class KvmVcpu(VcpuInterrupts):
    """A vCPU. Made by `KvmVm.create_vcpu`; implements ``irqchip_core.hypervisor.vcpu.VcpuX86_64``."""

    def __init__(self, vm: KvmVm, handle: Handle, vcpu_id: int, run_size: int) -> None:
        super().__init__(handle, run_size)
        self._vm = vm  # whose memory must stay while the guest may run
        self._id = vcpu_id
        self._completing = False
        self._run_lock = RunLock()
        self._running, self._wanted = self._run_lock.owner, self._run_lock.wanted

    @property
    def id(self) -> int:
        """Number of the vCPU, from 0; also its initial APIC id."""
        return self._id

    @property
    def vm(self) -> KvmVm:
        """The VM it is a part of."""
        return self._vm

    @property
    def closed(self) -> bool:
        return self._handle.closed

    def __repr__(self) -> str:
        return f"<KvmVcpu {self._id}{' closed' if self.closed else ''}>"

    # --- running

    def run(self) -> Exit:
        """Execute guest code until something is for user space to do (KVM_RUN). Releases the GIL.

        Buffers in the exit are the kernel's own memory: they are valid until the next `run`, which also
        completes the access.

        Raises:
            Closed: The vCPU is closed, or was closed meanwhile.
            HypervisorError: KVM_RUN failed, or another thread is in `run` (EBUSY).
        """
        if (self._wanted or not self._running.acquire(False)) and not self._run_lock.take_in_turn():
            if self._handle.closed:  # close() may have the lock for a moment
                raise Closed(f"{self._handle.subject} is closed", subject=_KVM_RUN.name)
            raise self._busy(_KVM_RUN)
        try:
            self._runner = self._this_thread.native_id
            # From here a kick sends a signal. One that came before has set immediate_exit, which KVM_RUN looks at.
            result = self._try_call(_KVM_RUN)
            if result == 0:
                reason = self._run_words[_EXIT_REASON_WORD]
                decoder = _decoder(reason)
                return UnknownExit(reason) if decoder is None else decoder(self._run)
            if result == -errno.EINTR:
                self._run_words[_EXIT_REASON_WORD] = abi.ExitReason.INTR  # KVM leaves the one before
                if not self._completing:
                    self._kicked = False
                    self._run[abi.RUN_IMMEDIATE_EXIT] = 0  # only when it has had its effect, so that no kick is lost
                return INTERRUPTED
            if result == -errno.EAGAIN:  # a start-up IPI has just made this vCPU runnable
                return INTERRUPTED
            raise failure(_KVM_RUN.name, -result, self._handle.subject)
        finally:
            self._readiness_known = True
            self._runner = 0
            self._running.release()
            if self._handle.closed:  # close() may have given up waiting for us
                self._vm.forget_vcpu(self)

    def complete_io(self) -> Exit:
        """Finish the access of the last exit, and execute no further instruction. Then state may be read.

        KVM stores what IN, a load or RDMSR gives, and on AMD steps over OUT, only when KVM_RUN is entered again (KVM
        API, "The kvm_run structure", note on KVM_EXIT_IO, _MMIO and the MSR exits). So a guest whose registers are
        saved at such an exit would repeat the access where they are restored. A kick stays for the next `run`.

        Returns:
            `InterruptedExit` when the access is complete. Otherwise the exit of its next part, as of MMIO across two
            pages: serve it like one of `run`, and call this again.

        Raises:
            HypervisorError, Closed: As `run`.
        """
        if self._runner:
            raise self._busy(_KVM_RUN)
        self._completing = True
        self._run[abi.RUN_IMMEDIATE_EXIT] = 1  # KVM looks at it after it has finished the access
        try:
            return self.run()
        finally:
            self._completing = False
            self._run[abi.RUN_IMMEDIATE_EXIT] = 0
            if self._kicked:  # a kick between these two lines sets immediate_exit itself
                self._run[abi.RUN_IMMEDIATE_EXIT] = 1

    def kick(self) -> None:
        """Make the current or else the next `run` return `InterruptedExit` soon. From any thread.

        Kicks before that return are coalesced. Harmless on a closed vCPU.
        """
        self._kicked = True  # before immediate_exit: see complete_io()
        self._run[abi.RUN_IMMEDIATE_EXIT] = 1  # before the look at _runner: see run()
        if runner := self._runner:
            self._this_thread.kick_signal.send(runner)

    def close(self) -> None:
        """Release the vCPU; one that runs on another thread is kicked out and waited for.

        If that thread does not come back within `CLOSE_TIMEOUT` seconds, its `run` releases the vCPU when it
        does. Closing twice is harmless.
        """
        if self._handle.closed:
            return
        self._handle.close()
        self.kick()
        if self._runner != self._this_thread.native_id and self._running.acquire(timeout=CLOSE_TIMEOUT):
            self._running.release()
            self._vm.forget_vcpu(self)

    @contextmanager
    def stopped(self) -> Iterator[Self]:
        """This vCPU, kept out of guest code meanwhile: its state can be read and set. From any thread.

        A `run` that is under way returns `InterruptedExit`, as after `kick`; one that begins waits. Not to be nested.

        Raises:
            HypervisorError: `run` did not come back within `STOP_TIMEOUT` seconds (EBUSY).
        """
        if self._runner == self._this_thread.native_id:  # in a signal handler, which has come between KVM_RUN and here
            yield self
            return
        with self._run_lock.borrowed(self.kick, STOP_TIMEOUT) as borrowed:
            if not borrowed:
                raise self._busy(_KVM_RUN)
            yield self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # --- MSR exits

    def tsc(self) -> int:
        """The guest's time-stamp counter now."""
        return self.get_msrs([IA32_TSC])[IA32_TSC]

    def complete_msr(self, value: int = 0, *, fault: bool = False) -> None:
        """Answer the last `MsrExit` before the next `run`.

        Args:
            value: What RDMSR gives, 64 bits; without meaning for WRMSR.
            fault: Raise #GP in the guest instead.

        Raises:
            InvalidArgument: The last exit was none, or `value` does not fit.
        """
        reason = self._msr_exit_reason()
        check_int(value, 0, (1 << 64) - 1, subject=self._handle.subject, argument="value")
        self._run[abi.RUN_MSR_ERROR] = 1 if fault else 0
        if reason == abi.ExitReason.X86_RDMSR:
            abi.RUN_U64.pack_into(self._run, abi.RUN_MSR_DATA, value)

    def _msr_exit_reason(self) -> int:
        reason = self._run_words[_EXIT_REASON_WORD]
        if reason not in (abi.ExitReason.X86_RDMSR, abi.ExitReason.X86_WRMSR):
            raise InvalidArgument("the last exit was no MSR access", subject=self._handle.subject)
        return reason

    def perform_msr(self, access: MsrExit) -> bool:
        """Answer the last `MsrExit` with what the kernel does when that access is not reported.

        For IA32_APIC_BASE, IA32_TSC and IA32_TSC_ADJUST. Which mode follows which is not checked.

        Returns:
            False if the kernel refuses the access, which is not answered then.

        Raises:
            InvalidArgument: The last exit was no MSR access.
        """
        self._msr_exit_reason()
        value = 0
        try:
            if not access.is_write:
                value = self.get_msrs([access.index])[access.index]
            elif access.index in (IA32_TSC, IA32_TSC_ADJUST):
                self._write_tsc(access)
            else:
                self.set_msrs({access.index: access.value})
        except HypervisorError as error:
            if error.errno != errno.EINVAL:
                raise
            return False
        self.complete_msr(value)
        return True

    def _write_tsc(self, access: MsrExit) -> None:
        # KVM_SET_MSRS takes a counter within a second of what it is for an attempt to keep it, and does not change it.
        before = self.get_msrs([IA32_TSC, IA32_TSC_ADJUST])
        change = access.value - before[access.index]
        offset = buffer(8)
        attribute = abi.DEVICE_ATTR.pack(0, abi.VCPU_TSC_CTRL, abi.VCPU_TSC_OFFSET, address_of(offset))
        self._call(abi.KVM_GET_DEVICE_ATTR, attribute)
        offset.raw = (int.from_bytes(offset.raw, "little") + change & _U64).to_bytes(8, "little")
        self._call(abi.KVM_SET_DEVICE_ATTR, attribute)
        self.set_msrs({IA32_TSC_ADJUST: before[IA32_TSC_ADJUST] + change & _U64})
