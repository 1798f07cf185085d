"""`Processor`: one vCPU of the chip: its local APIC, its MP state, and the state of its thread.

`Activity` is the state machine between the vCPU's own thread and all others:

    ┌───────────────────── look (own thread) ──────────────────────┐
    ▼                                                              │
    SETTLED ── wake (any thread; kicks, if it is another one) ──► CALLED
        └── sleep (own thread) ──► ASLEEP ── wake ────────────────►┘

The thread calls `look` before it takes pending interrupts, so an interrupt that comes later is taken after the next
`look`. A vCPU enters the guest, or sleeps, only while it is SETTLED: the first interrupt that comes then ends the run
or the sleep, by one kick, and moves the vCPU to CALLED.

`Authority` says which copy of CR8 and IA32_APIC_BASE is valid, as both the hypervisor and the local APIC keep one:

    CHIP ── look: handed over ──► BOTH ── enter ──► GUEST ── state set from outside ──► CHIP

All methods are called with the chipset's lock held.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable

from irqchip_core.chip import MPState
from irqchip_core.hypervisor.vcpu import VcpuX86_64
from irqchip_core.x86.chipset.delaying_lock import DelayingLock
from irqchip_core.x86.lapic.events import PendingEvents
from irqchip_core.x86.lapic.lapic import Lapic
from irqchip_core.x86.reset import take_init, take_startup

RUNNABLE, HALTED = MPState.RUNNABLE, MPState.HALTED


class Activity(enum.Enum):
    """Whether an interrupt or new state has come for the vCPU since its thread called `look`."""

    SETTLED = enum.auto()
    """Nothing has come; the vCPU may execute guest code."""
    CALLED = enum.auto()
    """Something has come: the vCPU leaves guest code, and its thread calls `look` before the next entry."""
    ASLEEP = enum.auto()
    """Nothing has come; the thread sleeps in `wait_until_runnable`."""


SETTLED, CALLED, ASLEEP = Activity


class Authority(enum.Enum):
    """The side whose CR8 and IA32_APIC_BASE are valid."""

    CHIP = enum.auto()
    """The local APIC's are valid; the hypervisor does not have them yet."""
    BOTH = enum.auto()
    """Both sides have the same values."""
    GUEST = enum.auto()
    """The hypervisor's are valid: the guest has run, and may have changed them."""


class Processor:
    """One vCPU.

    Attributes:
        lapic: Its local APIC.
        vcpu: The hypervisor's vCPU; None until it is added.
        mp_state: Its multiprocessing state.
        activity, authority: The two states; the module's docstring has their transitions.
        interrupted: The next `wait_until_runnable` returns INTERRUPTED.
        pending_extint: An ExtINT message is pending: the PICs give its vector when they are acknowledged.
        nmi_given: An NMI may be pending in the hypervisor.
        tsc_offset: The guest's time-stamp counter minus that of the clock, as last read.
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
        self._thread = 0  # by threading.get_ident: the thread that called `look` or `enter` last; 0 before
        self._lock = lock
        self._bed = threading.Lock()  # of the last sleep: locked until its end

    def connect(self, vcpu: VcpuX86_64) -> None:
        """Take over the hypervisor's vCPU. The caller sets its IA32_APIC_BASE to that of the local APIC."""
        if self.activity is ASLEEP:
            self._bed.release()  # the thread of the replaced vCPU: its `wait` ends
        self.vcpu = vcpu
        self.activity = CALLED
        self.authority = Authority.BOTH
        self.nmi_given = True
        self.sync_to_vcpu()

    def state_changed(self) -> None:
        """State was set from outside: the local APIC's values are valid, the hypervisor may have a pending NMI."""
        self.authority = Authority.CHIP
        self.nmi_given = True
        self.wake()

    # Activity

    def wake(self) -> None:
        """End the vCPU's sleep or kick it out of guest code, as an interrupt may be pending."""
        if self.activity is ASLEEP:
            self._bed.release()
        elif self.activity is SETTLED and self.vcpu is not None and self._thread != threading.get_ident():
            self.vcpu.kick()  # its own thread is not in the guest now, and calls `look` before it enters
        self.activity = CALLED

    def interrupt(self) -> None:
        """Let `wait_until_runnable` of this vCPU return INTERRUPTED."""
        self.interrupted = True
        if self.activity is ASLEEP:
            self.wake()

    def look(self, handed_over: Callable[[Processor], None]) -> None:
        """Begin to take all that is pending, on the vCPU's own thread: anything that comes later wakes the vCPU again.

        Args:
            handed_over: Called after state that was set from outside was handed over to the hypervisor.
        """
        self.activity = SETTLED
        self._thread = threading.get_ident()
        if self.authority is Authority.CHIP:
            self._hand_over()
            handed_over(self)

    def enter(self) -> None:
        """Enter the guest, which may change CR8. Possibly on another thread than the last `look`."""
        self._thread = threading.get_ident()
        self.authority = Authority.GUEST

    def sleep(self) -> None:
        """Release the lock, and sleep until `wake` or `interrupt`."""
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
        """Copy the task priority that the guest wrote to CR8 to the local APIC."""
        vcpu = self.vcpu
        if vcpu is not None and self.authority is Authority.GUEST and (cr8 := vcpu.cr8) != self.lapic.cr8:
            self.lapic.cr8 = cr8

    def sync_to_vcpu(self) -> None:
        """Copy the task priority of the local APIC to CR8."""
        if self.vcpu is not None and self.vcpu.cr8 != self.lapic.cr8:
            self.vcpu.cr8 = self.lapic.cr8

    def _hand_over(self) -> None:
        """Copy CR8 and IA32_APIC_BASE of the local APIC to the hypervisor."""
        assert self.vcpu is not None
        self.authority = Authority.BOTH
        self.sync_to_vcpu()
        sregs = self.vcpu.get_sregs()
        if sregs.apic_base != self.lapic.apic_base:
            sregs.apic_base = self.lapic.apic_base
            self.vcpu.set_sregs(sregs)

    # Events besides vectors. On the vCPU's own thread

    def take_events(self) -> None:
        """Take INIT, start-up IPIs and NMIs."""
        if (events := self.lapic.take_events()) is not None:
            self._take(events)
        if self.nmi_given and self.mp_state is HALTED:
            # Of two NMIs the second may be pending in the hypervisor when code after the first handler's IRET halts:
            # without local APICs KVM reports such an HLT without a check for NMIs. A blocked NMI ends no HLT.
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
            self.mp_state = RUNNABLE  # so the second start-up IPI of the usual sequence has no effect
        self.pending_extint = self.pending_extint or events.extint
        if self.can_run():
            for _ in range(events.nmis):
                self.vcpu.inject_nmi()
                self.nmi_given = True
        elif events.nmis:  # NMIs stay pending until the start-up IPI
            self.lapic.events = PendingEvents(nmis=events.nmis)

    def can_run(self) -> bool:
        """Whether the vCPU executes, or would after an interrupt."""
        return self.mp_state is RUNNABLE or self.mp_state is HALTED

    def _initialize(self) -> None:
        """Take an INIT: the boot processor executes then, another waits for a start-up IPI (SDM vol. 3, 10.4.2)."""
        assert self.vcpu is not None
        self.mp_state = RUNNABLE if self.lapic.bsp else MPState.INIT_RECEIVED
        self.pending_extint = False
        take_init(self.vcpu, self.lapic.apic_base)
        self.sync_to_vcpu()
