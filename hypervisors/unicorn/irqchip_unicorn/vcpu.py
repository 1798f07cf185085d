"""A virtual processor on Unicorn, as a VMM and a chip see it: turns, kicks, lifetime, and checks of arguments.

Only the vCPU's own thread uses it, except for `UnicornVcpu.kick` and `UnicornVcpu.close`. What it does when it runs is
in `processor`.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

from irqchip_core.clock import VirtualClock
from irqchip_core.errors import Closed, HypervisorError, InvalidArgument
from irqchip_core.hypervisor.exits import Exit, MsrExit
from irqchip_core.hypervisor.registers import CpuidEntry, Regs, Sregs
from irqchip_unicorn import state
from irqchip_unicorn.processor import INTERRUPTED, SLICE, Processor

if TYPE_CHECKING:
    from irqchip_unicorn.vm import UnicornVm

CLOSE_TIMEOUT = 5.0
"""Seconds that `UnicornVcpu.close` waits for a `run` on another thread to come back."""

NS_PER_INSTRUCTION = 10
"""How long an instruction takes in virtual time: the guest sees a processor of 100 million a second."""
TURN = 2_000
"""Instructions that `UnicornVcpu.run` executes in virtual time at most."""


class UnicornVcpu:
    """A vCPU. Made by `UnicornVm.create_vcpu`; implements ``irqchip_core.hypervisor.vcpu.VcpuX86_64``."""

    def __init__(self, vm: UnicornVm, vcpu_id: int) -> None:
        self._vm = vm
        self._id = vcpu_id
        self._subject = f"Unicorn vCPU {vcpu_id}"
        self._virtual_clock = vm.clock if isinstance(vm.clock, VirtualClock) else None
        self._processor = Processor(
            vm.memory, vcpu_id, vm.clock.now, lambda: vm.msr_exits, self._executed, vm.supported_cpuid()
        )
        self._running = threading.Lock()
        self._closed = self._released = False

    @property
    def id(self) -> int:
        """Number of the vCPU, from 0; also its initial APIC id."""
        return self._id

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def instructions(self) -> int:
        """How many instructions it has executed, up to its last slice."""
        return self._processor.engine.instructions

    def __repr__(self) -> str:
        return f"<UnicornVcpu {self._id}{' closed' if self._closed else ''}>"

    # --- running

    def run(self) -> Exit:
        """Execute guest code until something is for user space to do. Releases the GIL while it executes.

        Buffers in the exit are valid until the next `run`, which also completes the access.

        With a `VirtualClock` each instruction lets `NS_PER_INSTRUCTION` elapse on it, and `InterruptedExit` comes at
        the clock's next alarm, or after `TURN` instructions: time to advance the clock, and for another vCPU.

        Raises:
            Closed: The vCPU is closed, or was closed meanwhile.
            HypervisorError: Another thread is in `run` (EBUSY).
        """
        with self._use():
            if self._virtual_clock is not None:
                return self._run_turn(self._virtual_clock)
            exit_ = None
            while exit_ is None:
                exit_ = self._step(SLICE)
            return exit_

    def _run_turn(self, clock: VirtualClock) -> Exit:
        alarm, end = clock.next_alarm(), clock.now() + TURN * NS_PER_INSTRUCTION
        if alarm is not None:
            end = min(alarm, end)
        while True:
            exit_ = self._step(max(1, -(-(end - clock.now()) // NS_PER_INSTRUCTION)))
            if exit_ is not None:
                return exit_
            if clock.now() >= end:
                return INTERRUPTED

    def _step(self, count: int) -> Exit | None:
        with self._vm.turns:
            if self._closed:
                raise self._closed_error()
            return self._processor.step(count)

    def _executed(self, instructions: int) -> None:
        if self._virtual_clock is not None:
            self._virtual_clock.elapse(instructions * NS_PER_INSTRUCTION)

    def complete_io(self) -> Exit:
        """Finish the access of the last exit, and execute no further instruction. Then state may be read.

        Returns:
            `InterruptedExit` when the access is complete. Otherwise the exit of its next part, as of MMIO across two
            pages: serve it like one of `run`, and call this again.

        Raises:
            HypervisorError, Closed: As `run`.
        """
        with self._use(), self._vm.turns:
            return self._processor.complete()

    def kick(self) -> None:
        """Make the current or else the next `run` return `InterruptedExit` soon. From any thread.

        Kicks before that return are coalesced. Harmless on a closed vCPU.
        """
        self._processor.kicked = True

    def close(self) -> None:
        """Release the vCPU; one that runs on another thread comes back with `Closed`, and is waited for.

        If that thread does not come back within `CLOSE_TIMEOUT` seconds, its `run` releases the vCPU when it
        does. Closing twice is harmless.
        """
        self._closed = True
        if self._running.acquire(timeout=CLOSE_TIMEOUT):
            try:
                self._release()
            finally:
                self._running.release()

    def _release(self) -> None:
        if not self._released:
            self._released = True
            self._processor.engine.close()
            self._vm.forget_vcpu(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _closed_error(self) -> Closed:
        return Closed(f"{self._subject} is closed", subject="UnicornVcpu")

    @contextmanager
    def _use(self) -> Iterator[None]:
        """Keep other threads from the engine inside the context."""
        if not self._running.acquire(blocking=False):
            if self._closed:
                raise self._closed_error()
            raise HypervisorError(
                "it is running on another thread (EBUSY)",
                call="run",
                errno=errno.EBUSY,
                subject=self._subject,
                remedy="use a vCPU on its own thread only, or kick it and wait for its run() to return",
            )
        try:
            if self._closed:
                raise self._closed_error()
            yield
        finally:
            if self._closed:
                self._release()
            self._running.release()

    # --- what an exit leaves to say

    def ready_for_interrupt(self) -> bool:
        """Whether an external interrupt can be injected now, as of the last exit."""
        return self._processor.ready_for_interrupt()

    def set_interrupt_window_requested(self, requested: bool) -> None:
        """Request an `IrqWindowExit` as soon as an interrupt can be injected, or withdraw the request."""
        self._processor.window_requested = bool(requested)

    @property
    def cr8(self) -> int:
        """Task priority class 0-15 as of the last exit; what is set is taken at the next `run`."""
        return self._processor.context.v_tpr

    @cr8.setter
    def cr8(self, value: int) -> None:
        if not 0 <= value <= 15:
            raise InvalidArgument(f"{value} is not from 0 to 15", subject=self._subject, argument="cr8")
        self._processor.context.v_tpr = value

    @property
    def apic_base(self) -> int:
        """MSR 0x1B (IA32_APIC_BASE) as of the last exit."""
        return self._processor.msrs.apic_base

    def tsc(self) -> int:
        """The guest's time-stamp counter now."""
        return self._processor.msrs.tsc()

    def complete_msr(self, value: int = 0, *, fault: bool = False) -> None:
        """Answer the last `MsrExit` before the next `run`.

        Args:
            value: What RDMSR gives, 64 bits; without meaning for WRMSR.
            fault: Raise #GP in the guest instead.

        Raises:
            InvalidArgument: The last exit was none, or `value` does not fit.
        """
        if self._processor.msr is None:
            raise InvalidArgument("the last exit was no MSR access", subject=self._subject)
        if not 0 <= value < 1 << 64:
            raise InvalidArgument(f"{value:#x} is not of 64 bits", subject=self._subject, argument="value")
        self._processor.msr = (self._processor.msr[0], None if fault else value)

    def perform_msr(self, access: MsrExit) -> bool:
        """Answer the last `MsrExit` with what happens when that access is not reported.

        Returns:
            False if it raises #GP; it is not answered then.

        Raises:
            InvalidArgument: The last exit was no MSR access.
        """
        if self._processor.msr is None:
            raise InvalidArgument("the last exit was no MSR access", subject=self._subject)
        with self._use():
            return self._processor.perform_msr(access)

    # --- injection

    def interrupt(self, vector: int) -> None:
        """Inject one external interrupt; only when ready, at most once per exit.

        Args:
            vector: 0-255.

        Raises:
            InvalidArgument: `vector` is out of range.
            HypervisorError: EAGAIN: not ready.
        """
        if not 0 <= vector <= 255:
            raise InvalidArgument(f"{vector} is not from 0 to 255", subject=self._subject, argument="vector")
        with self._use():
            if not self.ready_for_interrupt():
                raise HypervisorError(
                    "the guest cannot take an interrupt now (EAGAIN)",
                    call="interrupt",
                    errno=errno.EAGAIN,
                    subject=self._subject,
                    remedy="request the interrupt window and try at the next exit",
                )
            self._processor.interrupt = vector

    def inject_nmi(self) -> None:
        """Inject an NMI. While one is handled one more is held, otherwise two; further ones are coalesced."""
        with self._use():
            processor = self._processor
            processor.nmis = min(processor.nmis + 1, 1 if processor.nmi_blocked else 2)  # as process_nmi() in KVM

    def nmi_pending(self) -> bool:
        """Whether an NMI that was injected has not been delivered."""
        return self._processor.nmis > 0

    def nmi_blocked(self) -> bool:
        """Whether NMIs are blocked, until IRET: none is delivered, none ends HLT."""
        return self._processor.nmi_blocked

    def take_init(self) -> None:
        """Take an INIT, as far as `set_regs` and `set_sregs` do not (Intel SDM vol. 3, table 11-1).

        Interrupts and NMIs that wait are dropped, neither are blocked, and the debug registers are as after reset.
        """
        with self._use():
            self._processor.take_init()

    # --- processor state

    def get_regs(self) -> Regs:
        with self._use():
            return state.get_regs(self._processor.context)

    def set_regs(self, regs: Regs) -> None:
        """Set them. A new RIP abandons what an exit has left to complete."""
        with self._use():
            rip = self._processor.context.rip
            state.set_regs(self._processor.context, regs)
            if regs.rip != rip:
                self._processor.abandon()

    def get_sregs(self) -> Sregs:
        with self._use():
            return state.get_sregs(self._processor.context, self._processor.msrs.apic_base, self._processor.interrupt)

    def set_sregs(self, sregs: Sregs) -> None:
        """Set them. Raises `InvalidArgument` if they are no state a processor can be in."""
        with self._use():
            bitmap = sregs.interrupt_bitmap
            if not 0 <= bitmap < 1 << 256 or not 0 <= sregs.apic_base < 1 << 64:
                raise InvalidArgument("a number does not fit", subject=self._subject, argument="sregs")
            if not self._processor.msrs.allows_apic_base(sregs.apic_base):
                raise InvalidArgument(
                    f"{sregs.apic_base:#x} is no value of IA32_APIC_BASE here",
                    subject=self._subject,
                    argument="sregs",
                    remedy="check its mode, its address, and that CPUID announces x2APIC mode",
                )
            cpuid = self._processor.cpuid
            state.set_sregs(self._processor.context, sregs, cpuid.cr4, cpuid.efer)
            self._processor.engine.forget_addresses()
            self._processor.msrs.apic_base = sregs.apic_base
            self._processor.interrupt = bitmap.bit_length() - 1 if bitmap else None

    def set_cpuid(self, entries: Sequence[CpuidEntry]) -> None:
        """Say what CPUID shall answer, before the first `run`."""
        with self._use():
            self._processor.set_cpuid(entries)
