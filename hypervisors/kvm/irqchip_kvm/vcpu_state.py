"""State of a KVM vCPU, by the kernel's requests: registers, MSRs, CPUID, NMIs, events, its local APIC in the kernel.

Each request is refused while another thread runs the vCPU. Running it is in `vcpu`, external interrupts in
`vcpu_interrupts`, and the layouts of the records in `records` and `kvm_layout`.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterable, Mapping, Sequence

from irqchip_core.arguments import check_type
from irqchip_core.chip import MPState
from irqchip_core.errors import HypervisorError
from irqchip_core.hypervisor.registers import CpuidEntry, Regs, Sregs
from irqchip_core.x86.state import LapicState
from irqchip_kvm import abi, kvm_layout, records
from irqchip_kvm.ioctl import Buffer, Handle, buffer, this_thread
from irqchip_kvm.records import VcpuEvents

_log = logging.getLogger(__name__)

_MSRS_AT_ONCE = 255  # MAX_IO_MSRS of the kernel, less one


class VcpuState:
    """A vCPU's state. The base of `KvmVcpu`, which runs it."""

    def __init__(self, handle: Handle, run_size: int) -> None:
        self._handle = handle
        # Never unmapped by hand: exits and late kicks may use it after close, and it goes with its last view.
        self._run = handle.map(run_size)
        self._run_words = self._run[: abi.RUN_EXIT].cast("I")
        self._this_thread = this_thread()
        self._runner = 0  # native id of the thread inside run(), or 0
        self._readiness_known = False

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
