"""What a vCPU does between two exits: answers, injections, a slice of guest code, and what stopped it.

Threads and misuse are handled in `vcpu`. What stops the engine is in `engine`; how events reach the
guest, in `delivery`; what the emulator leaves to do of an instruction, in `intercepts`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from irqchip_core.hypervisor.exits import (
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
from irqchip_core.hypervisor.registers import CpuidEntry
from irqchip_unicorn import context as c
from irqchip_unicorn import state, vmcb
from irqchip_unicorn.cpuid import Cpuid
from irqchip_unicorn.delivery import BP, GP, NMI, OF, UD, Delivery, TaskGate, TripleFault
from irqchip_unicorn.engine import Engine, PortAccess, Stop
from irqchip_unicorn.intercepts import Intercepts
from irqchip_unicorn.memory import PAGE_SIZE, GuestMemory
from irqchip_unicorn.msrs import APIC_BASE_ENABLE, Msrs, native
from irqchip_unicorn.paging import PAGE_FAULT, GuestFault, Paging
from irqchip_unicorn.translated import TranslatedCode

SLICE = 20_000
"""Instructions a vCPU executes before it looks for kicks and lets another one have its turn; well below 1 ms."""
CANNOT_EMULATE = 1  # KVM_INTERNAL_ERROR_EMULATION

INTERRUPTED = InterruptedExit()
_HLT = HltExit()
_IRQ_WINDOW = IrqWindowExit()
_SHUTDOWN = ShutdownExit()
_SET_TPR = SetTprExit()


class Processor:
    """One processor.

    Args:
        memory: Guest memory.
        vcpu_id: Its number.
        tsc: The time-stamp counter of the VM.
        msr_exits: Gives the MSRs that are left to the VMM; the same object as long as they are the same.
        executed: Called with the number of instructions of each executed piece of guest code, at least 1.
        cpuid: What CPUID answers until `set_cpuid`.

    Attributes:
        engine, context: Its Unicorn engine, and the state in it; others after memory was added.
        msrs, cpuid: What is kept beside them.
        kicked: `step` shall give `InterruptedExit`. Any thread may set it.
        window_requested: It shall give `IrqWindowExit` as soon as an interrupt can be injected.
        interrupt: The vector that was injected, until it is delivered: when IF is 1 and no shadow holds it back.
        nmis: Number of NMIs that wait.
        nmi_blocked: One is handled: until IRET no other is delivered.
        port: The read from a port whose answer is to come, and where.
        msr: Likewise; the answer None raises #GP.
    """

    def __init__(
        self,
        memory: GuestMemory,
        vcpu_id: int,
        tsc: Callable[[], int],
        msr_exits: Callable[[], tuple[range, ...]],
        executed: Callable[[int], object],
        cpuid: Sequence[CpuidEntry],
    ) -> None:
        self._memory = memory
        self._wanted_msr_exits = msr_exits
        self._msr_exits = msr_exits()
        self._executed = executed
        self._code = TranslatedCode(memory)
        self.cpuid = Cpuid()
        self.cpuid.set(cpuid)
        self.msrs = Msrs(vcpu_id, tsc, self.cpuid)
        self._set_engine(self._new_engine())
        self.kicked = False
        self._completing = False
        self.window_requested = False
        self.interrupt: int | None = None
        self.nmis = 0
        self.nmi_blocked = False
        self.port: tuple[PortAccess, bytearray] | None = None
        self.msr: tuple[MsrExit, int | None] | None = None

    def _new_engine(self) -> Engine:
        return Engine(self._memory, native(self._msr_exits, self.cpuid), self._answer_cpuid, self._on_block)

    def _set_engine(self, engine: Engine) -> None:
        self.engine = engine
        self.context = engine.context
        self._paging = Paging(self.context, self._memory)
        self._delivery = Delivery(self.context, self._paging)
        self._intercepts = Intercepts(self.context, self._paging, self.msrs)

    def set_cpuid(self, entries: Sequence[CpuidEntry]) -> None:
        self.cpuid.set(entries)
        self.engine.set_native_msrs(native(self._msr_exits, self.cpuid))

    def ready_for_interrupt(self) -> bool:
        """Whether an external interrupt can be injected now."""
        return self.interrupt is None and self._takes_interrupts()

    def _takes_interrupts(self) -> bool:
        context = self.context
        return bool(context.rflags & state.IF) and not context.hflags & c.HF_INHIBIT_IRQ

    def abandon(self) -> None:
        """Forget what the last exit left to complete."""
        self.port = self.msr = None
        self.engine.log.clear()

    def take_init(self) -> None:
        """Drop what waits for the guest, end what blocks it, and reset what `state` does not."""
        self.abandon()
        self.interrupt = None
        self.nmis = 0
        self.nmi_blocked = False
        self.context.intercept &= ~vmcb.INTERCEPT_IRET
        self.context.hflags &= ~c.HF_INHIBIT_IRQ
        state.reset_debug_registers(self.context)

    def perform_msr(self, access: MsrExit) -> bool:
        """Carry out the access of the last exit here; False if it raises #GP."""
        try:
            self._intercepts.access_msr(is_write=access.is_write)
        except GuestFault:
            return False
        self.msr = None
        return True

    def step(self, count: int = SLICE) -> Exit | None:
        """Go on for up to `count` instructions; None if there is nothing for user space to do yet."""
        return self._go(lambda: self._report() or self._complete() or self._enter(count))

    def complete(self) -> Exit:
        """Finish the instruction of the last exit only; an exit of its next part, or else `INTERRUPTED`."""
        self._completing = True
        try:
            return self._go(lambda: self._report() or self._complete()) or INTERRUPTED
        finally:
            self._completing = False

    def _go(self, onward: Callable[[], Exit | None]) -> Exit | None:
        try:
            return onward()
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
        return InternalErrorExit(CANNOT_EMULATE, (self.context.rip,))

    def _report(self) -> Exit | None:
        """The next access to MMIO that was not reported to the VMM."""
        for access in self.engine.log:
            if not access.reported:
                access.reported = True
                return MmioExit(access.address, memoryview(access.data), access.is_write)
        return None

    def _complete(self) -> Exit | None:
        """Finish the instruction of the last exit."""
        if self.port is not None:
            access, answer = self.port
            self.port = None
            self._intercepts.complete_in(access, answer)
        if self.msr is not None:
            exit_, value = self.msr
            self.msr = None
            if value is None:
                raise GuestFault(GP, 0)
            self._intercepts.complete_msr(None if exit_.is_write else value)
        log = self.engine.log
        if not log:
            return None
        if log[-1].is_write:  # the instruction was done
            log.clear()
            return None
        return self._interrupted() or self._after(self._execute(1)) or self._report()

    def _interrupted(self) -> Exit | None:
        if not self.kicked or self._completing:
            return None
        self.kicked = False
        return INTERRUPTED

    def _enter(self, count: int) -> Exit | None:
        if exit_ := self._interrupted():
            return exit_
        if self.engine.log:
            return None  # its instruction goes first
        self._look_around()
        shadow = self.context.hflags & c.HF_INHIBIT_IRQ
        # Before an NMI, whose handler it must not interrupt. It was injected when the guest could take it, but the
        # instruction that the exit had left to complete may have cleared IF, loaded SS, or faulted since.
        if self.interrupt is not None and self._takes_interrupts():
            vector, self.interrupt = self.interrupt, None
            self._delivery.interrupt(vector)
        if self.nmis and not self.nmi_blocked:
            if shadow:
                return self._after(self._execute(1))
            self.nmis -= 1
            self.nmi_blocked = True
            self.context.intercept |= vmcb.INTERCEPT_IRET
            self._delivery.interrupt(NMI)
        if self.window_requested and self.ready_for_interrupt():
            return _IRQ_WINDOW
        if bool(self.context.hflags2 & c.HF2_GIF) != (self.window_requested or self.interrupt is not None):
            self.context.hflags2 ^= c.HF2_GIF
        return self._after(self._execute(count))

    def _execute(self, count: int) -> Stop:
        before = self.engine.instructions
        stop = self.engine.run(count)
        self._executed(max(1, self.engine.instructions - before))
        return stop

    def _look_around(self) -> None:
        """See what others have changed since the last slice."""
        if self.engine.is_outdated:
            self._replace_engine()
        if self._code.changed():
            self.engine.forget_translations()
        if (wanted := self._wanted_msr_exits()) is not self._msr_exits:
            self._msr_exits = wanted
            self.engine.set_native_msrs(native(self._msr_exits, self.cpuid))

    def _replace_engine(self) -> None:
        old, engine = self.engine, self._new_engine()
        engine.context.take_over(old.context)
        engine.instructions = old.instructions
        self._code.forget()
        self._set_engine(engine)
        old.close()

    def _after(self, stop: Stop) -> Exit | None:
        """What the engine's stop means."""
        engine = self.engine
        again = stop is Stop.EVENT and engine.intno in vmcb.REPEATED
        if stop is not Stop.MMIO and not again and all(access.reported for access in engine.log):
            engine.log.clear()
        match stop:
            case Stop.SLICE | Stop.MMIO:
                return None
            case Stop.HALT:
                return None if self._wakes() else _HLT
            case Stop.PORT:
                assert engine.port is not None
                return self._port_exit(engine.port)
            case Stop.EVENT:
                return self._event(engine.intno)
            case _:
                engine.log.clear()
                return self._cannot_emulate()

    def _wakes(self) -> bool:
        """Whether what was injected, and waited for the end of a shadow, ends HLT."""
        nmi = self.nmis and not self.nmi_blocked
        return bool(nmi) or (self.interrupt is not None and self._takes_interrupts())

    def _port_exit(self, access: PortAccess) -> Exit:
        self._intercepts.check_port(access)
        if self.engine.log and self._intercepts.is_ins(access):
            self.engine.log.clear()
            return self._cannot_emulate()  # from a port to MMIO: the data went there before it was known
        data = bytearray(access.value.to_bytes(access.size, "little"))
        if not access.is_write:
            self.port = (access, data)
        return IoExit(access.port, access.size, memoryview(data), access.is_write)

    def _event(self, intno: int) -> Exit | None:
        intercepts = self._intercepts
        if intno < vmcb.FIRST_EXIT:
            self._delivery.software(intno, self._software_interrupt_length(intno))
        elif vmcb.EXCEPTION <= intno < vmcb.EXCEPTION + 32:
            self._emulators_exception(intno - vmcb.EXCEPTION)
        elif intno == vmcb.WINDOW:
            return _IRQ_WINDOW if self.interrupt is None else None
        elif intno == vmcb.MSR:
            return self._msr_exit(is_write=self.context.error_code != 0)
        elif intno == vmcb.RDTSC:
            intercepts.read_tsc()
        elif intno == vmcb.RDPMC:
            intercepts.read_performance_counter()
        elif intno == vmcb.WRITE_CR8:
            return _SET_TPR if intercepts.write_cr8() else None
        elif intno in vmcb.REPEATED:
            return self._repeat(intno)
        elif vmcb.WRITE_DR0 <= intno < vmcb.WRITE_DR0 + 8:
            intercepts.write_dr7()
        elif intno == vmcb.SYSCALL:
            intercepts.syscall(self.engine.native_msr)
        elif intno == vmcb.SYSENTER:
            intercepts.sysenter(self.engine.native_msr)
        else:
            raise GuestFault(UD)
        return None

    def _emulators_exception(self, vector: int) -> None:
        if vector == GP and self._intercepts.is_rdpmc_of_user():
            self._intercepts.read_performance_counter()
            return
        address = self.engine.fault_address if vector == PAGE_FAULT else 0
        raise GuestFault(vector, self.context.error_code, address)

    def _repeat(self, intno: int) -> Exit | None:
        """Let the instruction do what was intercepted."""
        context, cr_writes = self.context, 0
        if intno == vmcb.IRET:
            context.intercept &= ~vmcb.INTERCEPT_IRET
            self.nmi_blocked = False
        elif intno == vmcb.RENEWED_SHADOW:
            # The emulator would let the first shadow end and begin no other. What it has translated for that is
            # dropped, so that the next time comes here too.
            self.engine.forget_translations()
            context.hflags &= ~c.HF_INHIBIT_IRQ
            context.hflags2 &= ~c.HF2_GIF
        else:
            self._intercepts.check_control_register(self.cpuid.cr4)
            cr_writes = vmcb.INTERCEPT_CR_WRITES
        context.intercept_cr_write &= ~cr_writes
        stop = self._execute(1)
        context.intercept_cr_write |= cr_writes
        return self._after(stop)

    def _software_interrupt_length(self, vector: int) -> int:
        context = self.context
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
        self.msr = (exit_, None)  # #GP unless complete_msr says otherwise
        return exit_

    def _answer_cpuid(self, leaf: int, subleaf: int) -> tuple[int, int, int, int]:
        context = self.context
        context.save()
        osxsave = bool(context.cr(4) & state.CR4_OSXSAVE)
        return self.cpuid.answer(leaf, subleaf, osxsave=osxsave, apic=bool(self.msrs.apic_base & APIC_BASE_ENABLE))

    def _on_block(self, linear: int, size: int) -> int | None:
        self.context.save()
        if self.context.hflags & c.HF_INHIBIT_IRQ and self._intercepts.renews_shadow():
            return vmcb.RENEWED_SHADOW
        while size > 0:
            here = min(size, PAGE_SIZE - linear % PAGE_SIZE)
            try:
                self._code.add(self._paging.translate(linear, quiet=True), here)
            except GuestFault:
                break
            linear, size = linear + here, size - here
        return None
