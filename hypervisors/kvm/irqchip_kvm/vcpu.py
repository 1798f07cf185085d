"""A virtual processor of KVM: runs guest code, is kicked, holds registers and a local APIC.

Only the vCPU's own thread uses it, except for `KvmVcpu.kick` and `KvmVcpu.close`, and for state while it does not run:
`KvmVcpu.stopped` sees to that. What an exit means is in `exits`; how the kernel is called, in `ioctl`.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

from attrs import evolve

from irqchip_core.arguments import check_int, check_type
from irqchip_core.chip import MPState
from irqchip_core.errors import Closed, HypervisorError, InvalidArgument
from irqchip_core.hypervisor.exits import Exit, MsrExit, UnknownExit
from irqchip_core.hypervisor.registers import CpuidEntry, Regs, Sregs
from irqchip_core.x86.lapic.registers import IA32_TSC, IA32_TSC_ADJUST
from irqchip_core.x86.state import LapicState
from irqchip_kvm import abi, kvm_layout, records
from irqchip_kvm.exits import DECODERS, INTERRUPTED
from irqchip_kvm.ioctl import Buffer, Handle, address_of, buffer, this_thread
from irqchip_kvm.problems import failure
from irqchip_kvm.records import VcpuEvents
from irqchip_kvm.run_lock import RunLock

if TYPE_CHECKING:
    from irqchip_kvm.vm import KvmVm

_log = logging.getLogger(__name__)

_U64 = (1 << 64) - 1

CLOSE_TIMEOUT = 5.0
"""Seconds that `KvmVcpu.close` waits for a `run` on another thread to come back."""
STOP_TIMEOUT = 5.0
"""Seconds that `KvmVcpu.stopped` waits for that, and before for other threads that want the same."""

# Looked up once: run() is the hot path.
_KVM_RUN = abi.KVM_RUN
_EXIT_REASON_WORD = abi.RUN_EXIT_REASON // 4
_decoder = DECODERS.get

_NOT_RUN_SINCE = 2
"""Put where KVM_RUN leaves 0 or 1, whether the guest is ready for an interrupt."""
_LVT_LINT0 = 0x350 // 16  # Intel SDM vol. 3, table 12-1
_LVT_MASK_AND_MODE, _EXTINT = 1 << 16 | 7 << 8, 7 << 8  # mask and delivery mode (12.5.1)
_APIC_GLOBAL_ENABLE = 1 << 11  # of IA32_APIC_BASE (12.4.3)

_RFLAGS_IF = 1 << 9
_COMPLETE = (abi.ExitReason.INTR, abi.ExitReason.IRQ_WINDOW_OPEN, abi.ExitReason.IOAPIC_EOI)
"""Exits that wait for no access to be completed."""

_MSRS_AT_ONCE = 255  # MAX_IO_MSRS of the kernel, less one


class KvmVcpu:
    """A vCPU. Made by `KvmVm.create_vcpu`; implements ``irqchip_core.hypervisor.vcpu.VcpuX86_64``."""

    def __init__(self, vm: KvmVm, handle: Handle, vcpu_id: int, run_size: int) -> None:
        self._vm = vm  # whose memory must stay while the guest may run
        self._handle = handle
        self._try_call = handle.try_call
        self._id = vcpu_id
        # Never unmapped by hand: exits and late kicks may use it after close, and it goes with its last view.
        self._run = handle.map(run_size)
        self._run_words = self._run[: abi.RUN_EXIT].cast("I")
        self._this_thread = this_thread()
        self._kicked = False  # whether immediate_exit is a kick's
        self._completing = False
        self._run_lock = RunLock()
        self._running, self._wanted = self._run_lock.owner, self._run_lock.wanted
        self._runner = 0  # native id of the thread inside run(), or 0
        self._readiness_known = False
        self._queued: int | None = None  # what interrupt() gave to the kernel last

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

    def _busy(self, request: abi.Request) -> HypervisorError:
        return HypervisorError(
            f"it is running on thread {self._runner} (EBUSY)",
            call=request.name,
            errno=errno.EBUSY,
            subject=self._handle.subject,
            remedy="use a vCPU on its own thread, or inside its stopped()",
        )

    def _call(self, request: abi.Request, argument: int | Buffer = 0) -> int:
        if self._runner and self._runner != self._this_thread.native_id:  # KVM would wait until the guest exits
            raise self._busy(request)
        return self._handle.call(request, argument)

    def _get(self, request: abi.Request, size: int) -> bytes:
        data = buffer(size)
        self._call(request, data)
        return data.raw

    # --- the run area

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

    # --- injection

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
            self._try_call(_KVM_RUN)
            return run[abi.RUN_READY_FOR_INTERRUPT_INJECTION] == 1
        finally:
            self.set_regs(regs)
            self.set_vcpu_events(evolve(events, **change))
            self._readiness_known = known
            run[abi.RUN_IF_FLAG], run[abi.RUN_READY_FOR_INTERRUPT_INJECTION] = flag, 0
            run[abi.RUN_IMMEDIATE_EXIT] = 0
            if self._kicked:  # as in complete_io()
                run[abi.RUN_IMMEDIATE_EXIT] = 1

    def inject_nmi(self) -> None:
        """Inject an NMI (KVM_NMI). While one is handled one more is held, otherwise two; further ones are coalesced."""
        self._call(abi.KVM_NMI)

    def nmi_pending(self) -> bool:
        """Whether an NMI that was injected has not been delivered."""
        events = self.get_vcpu_events()
        return bool(events.nmi_pending or events.nmi_injected)

    def nmi_blocked(self) -> bool:
        """Whether NMIs are blocked, until IRET: none is delivered, none ends HLT."""
        events = self.get_vcpu_events()
        return bool(events.nmi_masked and not events.nmi_injected)  # masked early, when one is about to be delivered

    def take_init(self) -> None:
        """Take an INIT, as far as `set_regs` and `set_sregs` do not, as KVM does itself with its own local APIC.

        Interrupts, exceptions and NMIs that are pending or being delivered are dropped, neither interrupts nor NMIs
        are blocked, and the debug registers are as after reset (Intel SDM vol. 3, table 11-1).
        """
        self._call(abi.KVM_SET_DEBUGREGS, abi.DEBUGREGS.pack(0, 0, 0, 0, abi.DR6_RESET, abi.DR7_RESET))
        self.set_vcpu_events(VcpuEvents(flags=abi.VCPUEVENT_VALID_NMI_PENDING | abi.VCPUEVENT_VALID_SHADOW))

    # --- processor state

    def get_regs(self) -> Regs:
        return records.regs_from_kvm(self._get(abi.KVM_GET_REGS, abi.REGS.size))

    def set_regs(self, regs: Regs) -> None:
        self._readiness_known = False
        self._call(abi.KVM_SET_REGS, records.regs_to_kvm(regs))

    def get_sregs(self) -> Sregs:
        return records.sregs_from_kvm(self._get(abi.KVM_GET_SREGS, abi.SREGS.size))

    def set_sregs(self, sregs: Sregs) -> None:
        """Set them. Raises `InvalidArgument` if they are no state a processor can be in."""
        self._readiness_known = False
        self._call(abi.KVM_SET_SREGS, records.sregs_to_kvm(sregs))
        if not sregs.interrupt_bitmap and (events := self.get_vcpu_events()).interrupt_injected:
            # KVM_SET_SREGS queues what the bitmap has, but drops nothing.
            events.interrupt_injected = events.flags = 0
            self.set_vcpu_events(events)

    def set_cpuid(self, entries: Sequence[CpuidEntry]) -> None:
        """Say what CPUID shall answer, before the first `run` (KVM_SET_CPUID2)."""
        self._call(abi.KVM_SET_CPUID2, records.cpuid_to_kvm(entries))

    def get_msrs(self, indices: Iterable[int]) -> dict[int, int]:
        """Values of these MSRs. Raises `HypervisorError` naming the first one the kernel refuses."""
        return self._msrs(abi.KVM_GET_MSRS, [(index, 0) for index in indices])

    def set_msrs(self, values: Mapping[int, int]) -> None:
        """Set MSRs in the order given.

        Raises:
            HypervisorError: The kernel refuses one, which it names; those before it are set.
        """
        self._msrs(abi.KVM_SET_MSRS, list(values.items()))

    def _msrs(self, request: abi.Request, entries: Sequence[tuple[int, int]]) -> dict[int, int]:
        result: dict[int, int] = {}
        for start in range(0, len(entries), _MSRS_AT_ONCE):
            chunk = entries[start : start + _MSRS_AT_ONCE]
            packed = [records.pack(abi.MSR_ENTRY, "MSR", index, value) for index, value in chunk]
            data = buffer(abi.MSRS.pack(len(chunk)) + b"".join(packed))
            if (done := self._call(request, data)) < len(chunk):
                raise HypervisorError(
                    f"the kernel refuses MSR {chunk[done][0]:#x}",
                    call=request.name,
                    errno=errno.EINVAL,
                    subject=self._handle.subject,
                    remedy="leave it out, or check its value and that CPUID announces it",
                )
            result.update(abi.MSR_ENTRY.iter_unpack(data.raw[abi.MSRS.size :]))
        return result

    def get_vcpu_events(self) -> VcpuEvents:
        """What the vCPU is about to take (KVM_GET_VCPU_EVENTS)."""
        return records.events_from_kvm(self._get(abi.KVM_GET_VCPU_EVENTS, abi.VCPU_EVENTS.size))

    def set_vcpu_events(self, events: VcpuEvents) -> None:
        """Set what the vCPU is about to take; optional fields by ``events.flags``."""
        self._readiness_known = False
        self._call(abi.KVM_SET_VCPU_EVENTS, records.events_to_kvm(events))

    # --- what needs a local APIC in the kernel

    def get_lapic_state(self) -> LapicState:
        """State of the local APIC. Raises `HypervisorError` if the kernel has none."""
        return kvm_layout.lapic_from_kvm(self._get(abi.KVM_GET_LAPIC, abi.LAPIC_STATE.size))

    def set_lapic_state(self, state: LapicState) -> None:
        self._readiness_known = False
        self._call(abi.KVM_SET_LAPIC, kvm_layout.lapic_to_kvm(state))

    def get_mp_state(self) -> MPState:
        """Whether the vCPU runs, is halted or waits for a start-up IPI; always RUNNABLE without a local APIC."""
        (number,) = abi.MP_STATE.unpack(self._get(abi.KVM_GET_MP_STATE, abi.MP_STATE.size))
        try:
            return MPState(number)
        except ValueError:
            _log.warning("%s: unknown MP state %d is read as RUNNABLE", self._handle.subject, number)
            return MPState.RUNNABLE

    def set_mp_state(self, state: MPState) -> None:
        """Set it. Raises `InvalidArgument` for STOPPED, and without a local APIC for all but RUNNABLE."""
        check_type(state, int, subject=self._handle.subject, argument="state")
        self._readiness_known = False
        self._call(abi.KVM_SET_MP_STATE, records.pack(abi.MP_STATE, "state", state))
