"""`PicOutput`: delivers the PICs' interrupts to vCPU 0, whose local APIC is in the kernel.

KVM takes one vector at a time (KVM_INTERRUPT), and reports at each exit whether it could take one now. KVM considers
LINT0: while that is masked or not in ExtINT mode (Intel SDM vol. 3, 12.5.1) the vCPU is not ready, and a requested
window opens when the guest changes that (`kvm_cpu_accept_dm_intr`). KVM lacks the
other delivery modes of LINT0, which deliver no vector of the PICs, while the PICs are in user space.

A vCPU that sleeps in the kernel ignores a window that is requested later, so it is kicked: it comes back to its
thread, which calls `inject`, and KVM wakes it for the vector it is given. A vCPU is not in the guest while its own
thread raises an interrupt: `enter` injects that one.

`KvmVcpu.stopped` waits for the vCPU's thread, so it precedes the chipset's lock.
"""

from __future__ import annotations

import threading

from irqchip_core.x86.chipset.chipset import Chipset
from irqchip_kvm import KvmVcpu


class PicOutput:
    """INT of the primary PIC, wired to LINT0 of vCPU 0.

    Args:
        chipset: The chipset with the PICs. Its `lock` guards all state here.
    """

    def __init__(self, chipset: Chipset) -> None:
        self._chipset = chipset
        self._vcpu: KvmVcpu | None = None
        self._thread = 0  # that had the vCPU last, by threading.get_ident()
        self._called = False  # INT has risen since `inject`
        self._acknowledged: int | None = None  # vector that the PICs gave and KVM has not taken

    def connect(self, vcpu: KvmVcpu) -> None:
        """Take over vCPU 0."""
        with self._chipset.lock:
            self._vcpu = vcpu
            self._thread = 0
            self._called = False
        self.look_again()

    def changed(self, level: bool) -> None:
        """Set the level of the output. Call it with the lock held."""
        if level and self._vcpu is not None and not self._called:
            self._called = True  # before _thread is read: see enter()
            if self._thread != threading.get_ident():
                self._vcpu.kick()

    def enter(self, vcpu: KvmVcpu) -> None:
        """Prepare the vCPU to execute on this thread."""
        self._thread = threading.get_ident()  # before _called is read: either that is set, or the vCPU is kicked
        if self._called:
            self.inject(vcpu)

    def inject(self, vcpu: KvmVcpu) -> None:
        """Inject the PICs' vector into the vCPU, or request an interrupt window. Call it on the vCPU's thread."""
        with self._chipset.lock:
            self._called = False
            self._thread = threading.get_ident()
            if self._waits():
                if not vcpu.readiness_known:
                    # A new or restored vCPU: it could go to sleep before KVM considers the window.
                    vcpu.kick()
                elif vcpu.ready_for_interrupt():
                    self._give(vcpu)
            vcpu.set_interrupt_window_requested(self._waits())

    def _waits(self) -> bool:
        return self._acknowledged is not None or self._chipset.pic.interrupt_requested

    def _give(self, vcpu: KvmVcpu) -> None:
        if self._acknowledged is None:
            self._acknowledged, effects = self._chipset.pic.acknowledge()
            self._chipset.carry_out(effects)
        vcpu.interrupt(self._acknowledged)
        self._acknowledged = None

    def look_again(self) -> None:
        """Kick the vCPU if an interrupt waits: state was set from outside, by which it may be ready now."""
        with self._chipset.lock:
            if self._vcpu is not None and self._waits():
                self._vcpu.kick()

    def pending_extint(self) -> int | None:
        """The vector that the PICs have in service and the guest has not taken yet."""
        if self._vcpu is None:
            return self._acknowledged
        with self._vcpu.stopped() as vcpu, self._chipset.lock:
            return vcpu.queued_interrupt() if self._acknowledged is None else self._acknowledged

    def restore(self, pending_extint: int | None) -> None:
        """Restore the pending vector of a saved state. Call it before other state of the vCPU is set.

        KVM returns no vector. A vector that KVM already has for this vCPU is the one to restore, or is delivered too.
        """
        if self._vcpu is None:
            self._acknowledged = pending_extint
            return
        with self._vcpu.stopped() as vcpu, self._chipset.lock:
            self._acknowledged = None if pending_extint == vcpu.queued_interrupt() else pending_extint
        self.look_again()
