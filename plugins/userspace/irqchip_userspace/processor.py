"""One vCPU as the chip sees it: its local APIC, its MP state, and where its thread is.

`Activity` is the state machine between the vCPU's own thread and all others:

    ┌───────────────────── look (own thread) ──────────────────────┐
    ▼                                                              │
    SETTLED ── wake (any thread; kicks, if it is another one) ──► CALLED
        └── sleep (own thread) ──► ASLEEP ── wake ────────────────►┘

`look` comes before anything is taken, so what comes after it is seen at the next one. A vCPU enters the guest, or
sleeps, only while it is SETTLED: from then on whatever comes gets it out, by one kick.

`Authority` is the way of CR8 and IA32_APIC_BASE, which both the hypervisor and the local APIC keep:

    CHIP ── look: handed over ──► BOTH ── enter ──► GUEST ── state set from outside ──► CHIP

Everything here happens with the chipset's lock held.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable

from irqchip_core.chip import MPState
from irqchip_core.vcpu import VcpuX86_64
from irqchip_core.x86.chipset.chipset import DelayingLock
from irqchip_core.x86.lapic import Lapic
from irqchip_core.x86.lapic_events import PendingEvents
from irqchip_core.x86.reset import take_init, take_startup

RUNNABLE, HALTED = MPState.RUNNABLE, MPState.HALTED


class Activity(enum.Enum):
    """Whether something has come for the vCPU since its thread looked."""

    SETTLED = enum.auto()
    """Nothing has; it may execute guest code."""
    CALLED = enum.auto()
    """Something has: it comes out of guest code, and looks before it enters again."""
    ASLEEP = enum.auto()
    """Nothing has; it is in `wait_until_runnable` until something does."""


SETTLED, CALLED, ASLEEP = Activity


class Authority(enum.Enum):
    """Which side's CR8 and IA32_APIC_BASE count."""

    CHIP = enum.auto()
    """Those of the local APIC, which the hypervisor does not have yet."""
    BOTH = enum.auto()
    """They are the same."""
    GUEST = enum.auto()
    """It has run, and may have changed those of the hypervisor."""


class Processor:
    """One vCPU.

    Attributes:
        lapic: Its local APIC.
        vcpu: The hypervisor's vCPU, once it was added.
        mp_state: Its multiprocessing state.
        activity, authority: See above.
        interrupted: `wait_until_runnable` is to return INTERRUPTED, once.
        pending_extint: An ExtINT message waits: the vector is the PICs' to give.
        nmi_given: An NMI may wait in the hypervisor.
        tsc_offset: The guest's time-stamp counter less that of the clock, as known last.
    """

    __slots__ = (
        "_bed", "_lock", "_thread", "activity", "authority", "interrupted", "lapic", "mp_state", "nmi_given",
        "pending_extint", "tsc_offset", "vcpu",
    )  # fmt: skip

    def __init__(self, lapic: Lapic, lock: DelayingLock) -> None:
        self.lapic = lapic
        self.vcpu: VcpuX86_64 | None = None
        self.mp_state = RUNNABLE if lapic.apic_id == 0 else MPState.UNINITIALIZED
        self.activity = CALLED
        self.authority = Authority.BOTH
        self.interrupted = False
        self.pending_extint = False
        self.nmi_given = False
        self.tsc_offset = 0
        self._thread = 0  # which looked or entered last, by threading.get_ident
        self._lock = lock
        self._bed = threading.Lock()  # of the last sleep, taken until its end

    def connect(self, vcpu: VcpuX86_64) -> None:
        """This is the vCPU from now on. It is to get IA32_APIC_BASE of the local APIC."""
        if self.activity is ASLEEP:
            self._bed.release()  # the thread of the one before it: `wait` ends
        self.vcpu = vcpu
        self.activity = CALLED
        self.authority = Authority.BOTH
        self.nmi_given = True
        self.sync_to_vcpu()

    def state_changed(self) -> None:
        """State was set from outside: what the chip has counts, and an NMI may wait in the hypervisor."""
        self.authority = Authority.CHIP
        self.nmi_given = True
        self.wake()

    # Activity

    def wake(self) -> None:
        """Something may be pending for it: end its sleep, or get it out of guest code."""
        if self.activity is ASLEEP:
            self._bed.release()
        elif self.activity is SETTLED and self.vcpu is not None and self._thread != threading.get_ident():
            self.vcpu.kick()  # its own thread is not in the guest now, and looks before it goes there
        self.activity = CALLED

    def interrupt(self) -> None:
        """Let its `wait_until_runnable` return INTERRUPTED."""
        self.interrupted = True
        if self.activity is ASLEEP:
            self.wake()

    def look(self, handed_over: Callable[[Processor], None]) -> None:
        """Its own thread is about to take all that is pending: what comes from now on must wake it again.

        Args:
            handed_over: Called if state that was set from outside has just been handed over to the hypervisor.
        """
        self.activity = SETTLED
        self._thread = threading.get_ident()
        if self.authority is Authority.CHIP:
            self._hand_over()
            handed_over(self)

    def enter(self) -> None:
        """It goes into the guest, which may change CR8. Perhaps on another thread than that which looked."""
        self._thread = threading.get_ident()
        self.authority = Authority.GUEST

    def sleep(self) -> None:
        """Let go of the lock until `wake` or `interrupt`."""
        bed = self._bed = threading.Lock()  # a new one, as a sleep that was broken off leaves its own in any state
        bed.acquire()
        self.activity = ASLEEP
        self._lock.release()
        try:
            bed.acquire()
        finally:
            self._lock.acquire()
            if self.activity is ASLEEP and self._bed is bed:  # a signal handler has raised
                self.activity = CALLED

    # What passes between hypervisor and local APIC

    def sync_from_vcpu(self) -> None:
        """Let the local APIC have the task priority that the guest wrote to CR8."""
        vcpu = self.vcpu
        if vcpu is not None and self.authority is Authority.GUEST and (cr8 := vcpu.cr8) != self.lapic.cr8:
            self.lapic.cr8 = cr8

    def sync_to_vcpu(self) -> None:
        """Let the guest have the task priority in CR8."""
        if self.vcpu is not None and self.vcpu.cr8 != self.lapic.cr8:
            self.vcpu.cr8 = self.lapic.cr8

    def _hand_over(self) -> None:
        """Let the guest go on with CR8 and IA32_APIC_BASE of the local APIC."""
        assert self.vcpu is not None
        self.authority = Authority.BOTH
        self.sync_to_vcpu()
        sregs = self.vcpu.get_sregs()
        if sregs.apic_base != self.lapic.apic_base:
            sregs.apic_base = self.lapic.apic_base
            self.vcpu.set_sregs(sregs)

    # What comes besides vectors. On its own thread

    def take_events(self) -> None:
        """Take INIT, start-up IPIs and NMIs."""
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
            self._initialize()
        if events.startup_vector is not None and self.mp_state is MPState.INIT_RECEIVED:
            take_startup(self.vcpu, events.startup_vector)
            self.mp_state = RUNNABLE  # so that the second one of the usual sequence means nothing
        self.pending_extint = self.pending_extint or events.extint
        if self.can_run():
            for _ in range(events.nmis):
                self.vcpu.inject_nmi()
                self.nmi_given = True
        elif events.nmis:  # they wait for the start-up IPI
            self.lapic.events = PendingEvents(nmis=events.nmis)

    def can_run(self) -> bool:
        """Whether it executes, or would if an interrupt came."""
        return self.mp_state is RUNNABLE or self.mp_state is HALTED

    def _initialize(self) -> None:
        """Take an INIT: only the boot processor executes after it, the others wait for a start-up IPI (SDM 10.4.2)."""
        assert self.vcpu is not None
        self.mp_state = RUNNABLE if self.lapic.bsp else MPState.INIT_RECEIVED
        self.pending_extint = False
        take_init(self.vcpu, self.lapic.apic_base)
        self.sync_to_vcpu()
