"""`PicOutput`: the way of the PICs' interrupts to vCPU 0, whose local APIC is in the kernel.

KVM takes one vector at a time (KVM_INTERRUPT), and says of each exit whether it could take one now. That is what LINT0
makes of the PICs' output: as long as it is masked or not in ExtINT mode (Intel SDM vol. 3, 12.5.1) the vCPU is not
ready, and a requested window opens when the guest changes that (`kvm_cpu_accept_dm_intr`). The other delivery modes
of LINT0, which deliver something else than the PICs' vector, are not for KVM to have with the PICs in user space.

A vCPU that sleeps in the kernel looks at no window that is requested afterwards, so it is kicked: it comes back to its
thread, which calls `inject`, and KVM wakes it for the vector it is given.
"""

from __future__ import annotations

import threading

from irqchip_core.x86.chipset.chipset import Chipset
from irqchip_kvm import KvmVcpu


class PicOutput:
    """INT of the primary PIC, wired to LINT0 of vCPU 0.

    Args:
        chipset: Where the PICs are. Its `lock` guards all this.
    """

    def __init__(self, chipset: Chipset) -> None:
        self._chipset = chipset
        self._vcpu: KvmVcpu | None = None
        self._thread = 0  # which runs the vCPU, by threading.get_ident()
        self._kicked = False
        self._acknowledged: int | None = None  # what the PICs have given and KVM has not taken

    def connect(self, vcpu: KvmVcpu) -> None:
        """This is vCPU 0 from now on."""
        with self._chipset.lock:
            self._vcpu = vcpu
            self._thread = 0
            self._kicked = False
        self.look_again()

    def changed(self, level: bool) -> None:
        """The output has this level now. With the lock."""
        # On the vCPU's own thread it is not in the guest, and `inject` comes before it goes there.
        if level and self._vcpu is not None and not self._kicked and self._thread != threading.get_ident():
            self._kicked = True
            self._vcpu.kick()

    def inject(self, vcpu: KvmVcpu) -> None:
        """Give the vCPU what the PICs have for it, or ask for an interrupt window. On its thread, not in the guest."""
        with self._chipset.lock:
            self._kicked = False  # what comes from now on must kick again
            self._thread = threading.get_ident()
            if self._waits():
                if not vcpu.readiness_known:
                    # A new vCPU, or a restored one: perhaps it would go to sleep before KVM looks at the window.
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
        """State of the vCPU was set from outside: what waits for it may be for it to take now."""
        with self._chipset.lock:
            if self._vcpu is not None and self._waits():
                self._vcpu.kick()

    def pending_extint(self) -> int | None:
        """The vector that the PICs have in service and the guest has not begun to take. While the vCPU is stopped."""
        with self._chipset.lock:
            if self._acknowledged is not None or self._vcpu is None:
                return self._acknowledged
            return self._queued()

    def restore(self, pending_extint: int | None) -> None:
        """Go on where another one was, or this one. Before other state of the vCPU is set.

        KVM gives no vector back. One that it has for this vCPU already is the one to restore, or comes in addition.
        """
        with self._chipset.lock:
            self._acknowledged = None if pending_extint == self._queued() else pending_extint
        self.look_again()

    def _queued(self) -> int | None:
        if self._vcpu is None:
            return None
        with self._vcpu.stopped() as vcpu:
            return vcpu.queued_interrupt()
