"""A virtual processor on Unicorn: runs guest code in slices, is interrupted, answered and kicked.

Only the vCPU's own thread uses it, except for `UnicornVcpu.kick` and `UnicornVcpu.close`. What stops the engine is in
`engine`; how events reach the guest, in `delivery`.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

from irqchip_core.errors import Closed, HypervisorError, InvalidArgument
from irqchip_core.exits import (
    Exit,
    HltExit,
    InternalErrorExit,
    InterruptedExit,
    IoExit,
    IrqWindowExit,
    MmioExit,
    MsrExit,
    SetTprExit,
    ShutdownExit,
)
from irqchip_core.x86.registers import CpuidEntry, Regs, Sregs
from irqchip_unicorn import context as c
from irqchip_unicorn import engine as e
from irqchip_unicorn import state
from irqchip_unicorn.cpuid import Cpuid, supported
from irqchip_unicorn.delivery import BP, GP, NMI, OF, UD, Delivery, TaskGate, TripleFault
from irqchip_unicorn.engine import Engine, PortAccess, Stop
from irqchip_unicorn.intercepts import Intercepts
from irqchip_unicorn.msrs import APIC_BASE_ENABLE, Msrs, native
from irqchip_unicorn.paging import PAGE_FAULT, GuestFault, Paging
from irqchip_unicorn.translated import TranslatedCode

if TYPE_CHECKING:
    from irqchip_unicorn.vm import UnicornVm

SLICE = 20_000
"""Instructions a vCPU executes before it looks for kicks and lets another one have its turn; well below 1 ms."""
CLOSE_TIMEOUT = 5.0
"""Seconds that `UnicornVcpu.close` waits for a `run` on another thread to come back."""
CANNOT_EMULATE = 1  # KVM_INTERNAL_ERROR_EMULATION
_MOST_NMIS = 2  # one being handled, one pending

INTERRUPTED = InterruptedExit()
_HLT = HltExit()
_IRQ_WINDOW = IrqWindowExit()
_SHUTDOWN = ShutdownExit()
_SET_TPR = SetTprExit()


class UnicornVcpu:
    """A vCPU. Made by `UnicornVm.create_vcpu`; implements ``irqchip_core.vcpu.VcpuX86_64``."""

    def __init__(self, vm: UnicornVm, vcpu_id: int) -> None:
        self._vm = vm
        self._id = vcpu_id
        self._subject = f"Unicorn vCPU {vcpu_id}"
        self._code = TranslatedCode(vm.memory)
        self._cpuid = Cpuid()
        self._cpuid.set(supported())
        self._msr_exits = vm.msr_exits
        self._msrs = Msrs(vcpu_id, vm.clock, self._cpuid.has_x2apic)
        self._set_engine(self._new_engine())
        self._running = threading.Lock()
        self._closed = self._released = False
        self._kicked = False
        self._window_requested = False
        self._interrupt: int | None = None
        self._nmis = 0
        self._nmi_blocked = False
        self._port: tuple[PortAccess, bytearray] | None = None  # a read whose answer is to come
        self._msr: tuple[MsrExit, int | None] | None = None  # likewise; None raises #GP

    def _new_engine(self) -> Engine:
        return Engine(self._vm.memory, native(self._msr_exits), self._answer_cpuid, self._on_block)

    def _set_engine(self, engine: Engine) -> None:
        self._engine = engine
        self._context = engine.context
        self._paging = Paging(self._context, self._vm.memory)
        self._delivery = Delivery(self._context, self._paging)
        self._intercepts = Intercepts(self._context, self._paging, self._msrs)

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
        return self._engine.instructions

    def __repr__(self) -> str:
        return f"<UnicornVcpu {self._id}{' closed' if self._closed else ''}>"

    # --- running

    def run(self) -> Exit:
        """Execute guest code until something is for user space to do. Releases the GIL while it executes.

        Buffers in the exit are valid until the next `run`, which also completes the access.

        Raises:
            Closed: The vCPU is closed, or was closed meanwhile.
            HypervisorError: Another thread is in `run` (EBUSY).
        """
        with self._use():
            exit_ = None
            while exit_ is None:
                with self._vm.turns:
                    if self._closed:
                        raise self._closed_error()
                    exit_ = self._step()
            return exit_

    def kick(self) -> None:
        """Make the current or else the next `run` return `InterruptedExit` soon. From any thread.

        Kicks before that return merge. Harmless on a closed vCPU.
        """
        self._kicked = True

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
            self._engine.close()
            self._vm.forget_vcpu(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _closed_error(self) -> Closed:
        return Closed(f"{self._subject} is closed", subject="UnicornVcpu")

    @contextmanager
    def _use(self) -> Iterator[None]:
        """Nobody else uses the engine inside."""
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

    # --- one step of run()

    def _step(self) -> Exit | None:
        try:
            return self._report() or self._complete() or self._enter()
        except GuestFault as fault:
            return self._exception(fault)
        except TripleFault:
            return _SHUTDOWN
        except TaskGate:
            return self._cannot_emulate()

    def _exception(self, fault: GuestFault) -> Exit | None:
        try:
            self._delivery.exception(fault)
        except TripleFault:
            return _SHUTDOWN
        except TaskGate:
            return self._cannot_emulate()
        return None

    def _cannot_emulate(self) -> Exit:
        return InternalErrorExit(CANNOT_EMULATE, (self._context.rip,))

    def _report(self) -> Exit | None:
        """The next access to MMIO that the VMM does not know of."""
        for access in self._engine.log:
            if not access.reported:
                access.reported = True
                return MmioExit(access.address, memoryview(access.data), access.is_write)
        return None

    def _complete(self) -> Exit | None:
        """Finish the instruction of the last exit."""
        if self._port is not None:
            access, answer = self._port
            self._port = None
            self._intercepts.complete_in(access, answer)
        if self._msr is not None:
            exit_, value = self._msr
            self._msr = None
            if value is None:
                raise GuestFault(GP, 0)
            self._intercepts.complete_msr(None if exit_.is_write else value)
        log = self._engine.log
        if not log:
            return None
        if log[-1].is_write:  # the instruction was done
            log.clear()
            return None
        return self._after(self._engine.run(1)) or self._report()

    def _enter(self) -> Exit | None:
        if self._kicked:
            self._kicked = False
            return INTERRUPTED
        if self._engine.log:
            return None  # its instruction goes first
        self._look_around()
        shadow = self._context.hflags & c.HF_INHIBIT_IRQ
        if self._nmis and not self._nmi_blocked:
            if shadow:
                return self._after(self._engine.run(1))
            self._nmis -= 1
            self._nmi_blocked = True
            self._context.intercept |= e.INTERCEPT_IRET
            self._delivery.interrupt(NMI)
        if self._interrupt is not None:
            vector, self._interrupt = self._interrupt, None
            self._delivery.interrupt(vector)
        if self._window_requested and self.ready_for_interrupt():
            return _IRQ_WINDOW
        if bool(self._context.hflags2 & c.HF2_GIF) != self._window_requested:
            self._context.hflags2 ^= c.HF2_GIF
        return self._after(self._engine.run(SLICE))

    def _look_around(self) -> None:
        """See what others have changed since the last slice."""
        if self._engine.is_outdated:
            self._replace_engine()
        if self._code.changed():
            self._engine.forget_translations()
        if self._msr_exits is not self._vm.msr_exits:
            self._msr_exits = self._vm.msr_exits
            self._engine.set_native_msrs(native(self._msr_exits))

    def _replace_engine(self) -> None:
        old, engine = self._engine, self._new_engine()
        engine.context.take_over(old.context)
        engine.instructions = old.instructions
        self._code.forget()
        self._set_engine(engine)
        old.close()

    def _after(self, stop: Stop) -> Exit | None:
        """What the engine's stop means."""
        engine = self._engine
        if stop is not Stop.MMIO and all(access.reported for access in engine.log):
            engine.log.clear()
        match stop:
            case Stop.SLICE | Stop.MMIO:
                return None
            case Stop.HALT:
                return _HLT
            case Stop.PORT:
                assert engine.port is not None
                return self._port_exit(engine.port)
            case Stop.EVENT:
                return self._event(engine.intno)
            case _:
                engine.log.clear()
                return self._cannot_emulate()

    def _port_exit(self, access: PortAccess) -> Exit:
        self._intercepts.check_port(access)
        if self._engine.log and self._intercepts.is_ins(access):
            self._engine.log.clear()
            return self._cannot_emulate()  # from a port to MMIO: the data went there before it was known
        data = bytearray(access.value.to_bytes(access.size, "little"))
        if not access.is_write:
            self._port = (access, data)
        return IoExit(access.port, access.size, memoryview(data), access.is_write)

    def _event(self, intno: int) -> Exit | None:
        context, intercepts = self._context, self._intercepts
        if intno < e.EXCEPTION - 0x40:
            self._delivery.software(intno, self._software_interrupt_length(intno))
        elif e.EXCEPTION <= intno < e.EXCEPTION + 32:
            vector = intno - e.EXCEPTION
            raise GuestFault(vector, context.error_code, self._engine.fault_address if vector == PAGE_FAULT else 0)
        elif intno == e.WINDOW:
            return _IRQ_WINDOW
        elif intno == e.MSR:
            return self._msr_exit(is_write=context.error_code != 0)
        elif intno == e.RDTSC:
            intercepts.read_tsc()
        elif intno == e.WRITE_CR8:
            return _SET_TPR if intercepts.write_cr8() else None
        elif e.WRITE_DR0 <= intno < e.WRITE_DR0 + 8:
            intercepts.write_dr7()
        elif intno == e.SYSCALL:
            intercepts.syscall(self._engine.native_msr)
        elif intno == e.SYSENTER:
            intercepts.sysenter(self._engine.native_msr)
        elif intno == e.IRET:
            context.intercept &= ~e.INTERCEPT_IRET
            self._nmi_blocked = False
            return self._after(self._engine.run(1))
        else:
            raise GuestFault(UD)
        return None

    def _software_interrupt_length(self, vector: int) -> int:
        context = self._context
        linear = context.rip - 1
        if not context.hflags & c.HF_CS64:
            linear = linear + context.segment(c.CS)[1] & 0xFFFFFFFF
        short = {BP: b"\xcc", OF: b"\xce"}.get(vector)
        return 1 if short is not None and self._paging.code(linear, 1) == short else 2

    def _msr_exit(self, *, is_write: bool) -> Exit | None:
        index, value = self._intercepts.msr
        if not any(index in msrs for msrs in self._msr_exits):
            self._intercepts.access_msr(is_write=is_write)
            return None
        exit_ = MsrExit(index, value if is_write else 0, is_write)
        self._msr = (exit_, None)  # #GP unless complete_msr says otherwise
        return exit_

    def _answer_cpuid(self, leaf: int, subleaf: int) -> tuple[int, int, int, int]:
        context = self._context
        context.save()
        osxsave = bool(context.cr(4) & state.CR4_OSXSAVE)
        return self._cpuid.answer(leaf, subleaf, osxsave=osxsave, apic=bool(self._msrs.apic_base & APIC_BASE_ENABLE))

    def _on_block(self, linear: int, size: int) -> None:
        self._context.save()
        while size > 0:
            here = min(size, 4096 - linear % 4096)
            try:
                self._code.add(self._paging.translate(linear, quiet=True), here)
            except GuestFault:
                return
            linear, size = linear + here, size - here

    # --- what an exit leaves to say

    def ready_for_interrupt(self) -> bool:
        """Whether an external interrupt can be injected now, as of the last exit."""
        context = self._context
        can = context.rflags & state.IF and not context.hflags & c.HF_INHIBIT_IRQ
        return bool(can) and self._interrupt is None

    def set_interrupt_window_requested(self, requested: bool) -> None:
        """Ask for an `IrqWindowExit` as soon as an interrupt can be injected, or take that back."""
        self._window_requested = bool(requested)

    @property
    def cr8(self) -> int:
        """Task priority class 0-15 as of the last exit; what is set is taken at the next `run`."""
        return self._context.v_tpr

    @cr8.setter
    def cr8(self, value: int) -> None:
        if not 0 <= value <= 15:
            raise InvalidArgument(f"{value} is not from 0 to 15", subject=self._subject, argument="cr8")
        self._context.v_tpr = value

    @property
    def apic_base(self) -> int:
        """MSR 0x1B (IA32_APIC_BASE) as of the last exit."""
        return self._msrs.apic_base

    def tsc(self) -> int:
        """The guest's time-stamp counter now."""
        return self._msrs.tsc()

    def complete_msr(self, value: int = 0, *, fault: bool = False) -> None:
        """Answer the last `MsrExit` before the next `run`.

        Args:
            value: What RDMSR gives, 64 bits; without meaning for WRMSR.
            fault: Raise #GP in the guest instead.

        Raises:
            InvalidArgument: The last exit was none, or `value` does not fit.
        """
        if self._msr is None:
            raise InvalidArgument("the last exit was no MSR access", subject=self._subject)
        if not 0 <= value < 1 << 64:
            raise InvalidArgument(f"{value:#x} is not of 64 bits", subject=self._subject, argument="value")
        self._msr = (self._msr[0], None if fault else value)

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
            self._interrupt = vector

    def inject_nmi(self) -> None:
        """Inject an NMI. One more can wait while one is handled."""
        with self._use():
            self._nmis = min(self._nmis + 1, _MOST_NMIS)

    # --- processor state

    def get_regs(self) -> Regs:
        with self._use():
            return state.get_regs(self._context)

    def set_regs(self, regs: Regs) -> None:
        """Set them. A new RIP abandons what an exit has left to complete."""
        with self._use():
            rip = self._context.rip
            state.set_regs(self._context, regs)
            if regs.rip != rip:
                self._port = self._msr = None
                self._engine.log.clear()

    def get_sregs(self) -> Sregs:
        with self._use():
            return state.get_sregs(self._context, self._msrs.apic_base, self._interrupt)

    def set_sregs(self, sregs: Sregs) -> None:
        """Set them. Raises `InvalidArgument` if they are no state a processor can be in."""
        with self._use():
            bitmap = sregs.interrupt_bitmap
            if not 0 <= bitmap < 1 << 256 or not 0 <= sregs.apic_base < 1 << 64:
                raise InvalidArgument("a number does not fit", subject=self._subject, argument="sregs")
            state.set_sregs(self._context, sregs)
            self._engine.forget_addresses()
            self._msrs.apic_base = sregs.apic_base
            self._interrupt = bitmap.bit_length() - 1 if bitmap else None

    def set_cpuid(self, entries: Sequence[CpuidEntry]) -> None:
        """Say what CPUID shall answer, before the first `run`."""
        with self._use():
            self._cpuid.set(entries)
