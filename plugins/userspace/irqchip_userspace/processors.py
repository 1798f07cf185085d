"""The processors' side of the chip: local APICs, MP states, who sleeps and who is to be kicked.

Everything here happens with the board's `lock` held, except where it says otherwise.
"""

from __future__ import annotations

import threading

from irqchip_core.chip import MPState
from irqchip_core.exits import InterruptedExit
from irqchip_core.vcpu import VcpuX86_64
from irqchip_core.x86.lapic import Lapic
from irqchip_core.x86.lapic_events import PendingEvents
from irqchip_core.x86.registers import DescriptorTable, Regs, Segment, Sregs

RUNNABLE, HALTED = MPState.RUNNABLE, MPState.HALTED

CR0_ET = 1 << 4
CR0_KEPT = 3 << 29  # CD and NW survive INIT
RESET_RIP = 0xFFF0
FAMILY_6 = 0x600
CODE, DATA, LDT, BUSY_TSS = 11, 3, 2, 11


class Processor:
    """One vCPU as the chip sees it.

    Attributes:
        lapic: Its local APIC.
        vcpu: The hypervisor's vCPU, once it was added.
        mp_state: Its multiprocessing state.
        thread: Which thread runs it, by `threading.get_ident`; known once it has waited or injected.
        interrupted: `wait_until_runnable` is to return INTERRUPTED, once.
        extint: An ExtINT message waits: the vector is the PICs' to tell.
        entered: It has run, so that the hypervisor knows what the guest did to CR8 and APIC base.
        fresh: The state of the local APIC was set since its thread last looked.
        nmi_given: An NMI may wait in the hypervisor.
        unseen: Something came when there was no vCPU, or on its own thread since that last looked.
    """

    __slots__ = (
        "_kicked", "_sleeping", "_wake_up", "entered", "extint", "fresh", "interrupted", "lapic", "mp_state",
        "nmi_given", "thread", "unseen", "vcpu",
    )  # fmt: skip

    def __init__(self, lapic: Lapic, lock: threading.Lock) -> None:
        self.lapic = lapic
        self.vcpu: VcpuX86_64 | None = None
        self.mp_state = RUNNABLE if lapic.apic_id == 0 else MPState.UNINITIALIZED
        self.thread = 0
        self.interrupted = False
        self.extint = False
        self.entered = False
        self.fresh = False
        self.nmi_given = False
        self.unseen = False
        self._wake_up = threading.Condition(lock)
        self._sleeping = False
        self._kicked = False

    def wake(self) -> None:
        """Something may be pending for it: end its sleep, or get it out of guest code."""
        if self._sleeping:
            self._wake_up.notify_all()
        elif self.vcpu is None or self.thread == threading.get_ident():
            self.unseen = True  # it is not in the guest, and looks again before it goes there
        elif not self._kicked:
            self._kicked = True
            self.vcpu.kick()

    def attend(self) -> None:
        """Its thread is about to look at all that is pending: what comes from now on must kick again."""
        self._kicked = False
        self.thread = threading.get_ident()

    def sleep(self) -> None:
        """Let go of the lock until `wake` or `interrupt`."""
        self._sleeping = True
        try:
            self._wake_up.wait()
        finally:
            self._sleeping = False

    def interrupt(self) -> None:
        """Let its `wait_until_runnable` return INTERRUPTED."""
        self.interrupted = True
        self._wake_up.notify_all()

    # What passes between hypervisor and local APIC

    def pull(self) -> None:
        """Let the APIC see what the guest did to CR8 by itself."""
        vcpu = self.vcpu
        if vcpu is not None and self.entered and (cr8 := vcpu.cr8) != self.lapic.cr8:
            self.lapic.cr8 = cr8

    def push(self) -> None:
        """Let the guest see the task priority in CR8."""
        if self.vcpu is not None and self.vcpu.cr8 != self.lapic.cr8:
            self.vcpu.cr8 = self.lapic.cr8

    def hand_over(self) -> None:
        """Let the guest go on with the CR8 and APIC base that were set here. On its own thread, before it runs."""
        self.fresh = False
        self.nmi_given = True  # perhaps: state of the vCPU may have been restored, too
        assert self.vcpu is not None
        self.push()
        sregs = self.vcpu.get_sregs()
        if sregs.apic_base != self.lapic.apic_base:
            sregs.apic_base = self.lapic.apic_base
            self.vcpu.set_sregs(sregs)

    def take_events(self) -> None:
        """Take what is pending besides vectors: INIT, start-up, NMIs. On its own thread."""
        if (events := self.lapic.take_events()) is not None:
            self._take(events)
        if self.nmi_given and self.mp_state is HALTED:
            # Of two NMIs the second may wait in the hypervisor when the code behind the first handler's IRET halts:
            # without local APICs KVM reports such an HLT without looking. One that is blocked ends no HLT.
            assert self.vcpu is not None
            self.nmi_given = self.vcpu.nmi_pending()
            if self.nmi_given and not self.vcpu.nmi_blocked():
                self.mp_state = RUNNABLE

    def _take(self, events: PendingEvents) -> None:
        assert self.vcpu is not None
        if events.init:
            self.lapic.init()
            self.initialize()
        if events.startup_vector is not None:
            self.start_up(events.startup_vector)
        self.extint = self.extint or events.extint
        if self.can_run():
            for _ in range(events.nmis):
                self.vcpu.inject_nmi()
                self.nmi_given = True
        elif events.nmis:  # they wait for the start-up IPI
            self.lapic.events = PendingEvents(nmis=events.nmis)

    def can_run(self) -> bool:
        """Whether it executes, or would if an interrupt came."""
        return self.mp_state is RUNNABLE or self.mp_state is HALTED

    def initialize(self) -> None:
        """Take an INIT: the processor as after reset (Intel SDM vol. 3, table 11-1). On its own thread.

        The boot processor begins at the reset vector, the others wait for a start-up IPI (10.4.2).
        """
        self.mp_state = RUNNABLE if self.lapic.bsp else MPState.INIT_RECEIVED
        self.extint = False
        assert self.vcpu is not None
        while not isinstance(self.vcpu.complete_io(), InterruptedExit):
            pass  # or the access of its last exit would be completed into the registers set here
        self.vcpu.take_init()
        old = self.vcpu.get_sregs()
        self.vcpu.set_sregs(
            Sregs(
                cs=Segment(base=0xFFFF0000, selector=0xF000, type=CODE),
                ldt=Segment(type=LDT, s=0),
                tr=Segment(type=BUSY_TSS, s=0),
                gdt=DescriptorTable(),
                idt=DescriptorTable(),
                cr0=old.cr0 & CR0_KEPT | CR0_ET,
                cr8=0,
                apic_base=self.lapic.apic_base,
            )
        )
        self.vcpu.set_regs(Regs(rip=RESET_RIP, rdx=FAMILY_6))
        self.push()

    def start_up(self, vector: int) -> None:
        """Take a start-up IPI: execute at `vector` << 12 (SDM vol. 3, 12.6.1). On its own thread."""
        if self.mp_state is not MPState.INIT_RECEIVED:
            return  # the second one of the usual sequence
        assert self.vcpu is not None
        sregs = self.vcpu.get_sregs()
        sregs.cs = Segment(base=vector << 12, selector=vector << 8, type=CODE)
        self.vcpu.set_sregs(sregs)
        regs = self.vcpu.get_regs()
        regs.rip = 0
        self.vcpu.set_regs(regs)
        self.mp_state = RUNNABLE
