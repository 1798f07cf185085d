"""One vCPU of the conformance kit's machine: what its guest does, step by step, and the interrupts it takes.

Everything runs on the caller's thread, as a VMM's vCPU thread would do it; nothing executes between two calls.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING

from typing_extensions import override

from irqchip_core.hypervisor.exits import Exit, IoExit
from irqchip_core.hypervisor.vcpu import VcpuX86_64
from irqchip_core.testing import agent
from irqchip_core.testing.agent import Operation
from irqchip_core.testing.verdict import Nonconforming, NotApplicable, check, difference, vectors
from irqchip_core.vcpu_loop import VcpuLoop
from irqchip_core.x86.lapic import registers as reg
from irqchip_core.x86.state import LAPIC_BASE

if TYPE_CHECKING:
    from irqchip_core.testing.bench import Bench

MASKED, EXTINT_MODE, NMI_MODE = reg.LVT_MASKED, reg.LVT_EXTINT, reg.LVT_NMI
SPURIOUS_VECTOR = 0xFF
NMI_VECTOR = 2
PIC_EOI = 0x20  # OCW2, non-specific
PRIMARY_COMMAND, SECONDARY_COMMAND = 0x20, 0xA0
IN = {1: Operation.IN, 2: Operation.IN_WORD, 4: Operation.IN_DWORD}
OUT = {1: Operation.OUT, 2: Operation.OUT_WORD, 4: Operation.OUT_DWORD}
MOST_SURPLUS = 8  # how many unexpected interrupts a failure reports at most


class Eoi(enum.IntFlag):
    """What the guest ends an interrupt with."""

    NONE = 0
    LAPIC = 1
    PRIMARY = 2
    SECONDARY = 4


class _Loop(VcpuLoop):
    """The vCPU's loop, in which the guest's own ports are those of its `GuestCpu`."""

    def __init__(self, cpu: GuestCpu) -> None:
        machine = cpu.machine
        super().__init__(cpu.vcpu, machine.chip, machine.io_bus, machine.mmio_bus)
        self._cpu = cpu

    @override
    def serve(self, vm_exit: Exit) -> bool:
        return (isinstance(vm_exit, IoExit) and self._cpu.serve_agent(vm_exit)) or super().serve(vm_exit)


class GuestCpu:
    """A vCPU with its guest.

    Args:
        machine: Its machine.
        vcpu: The vCPU, which was added to the chip.

    Attributes:
        taken: Every vector its guest has taken, in order.
        started: Vector of each start-up IPI that made it execute.
        x2apic: Whether its guest uses MSRs for the local APIC.
    """

    def __init__(self, machine: Bench, vcpu: VcpuX86_64) -> None:
        self.machine = machine
        self.vcpu = vcpu
        self.id = vcpu.id
        self.taken: list[int] = []
        self.started: list[int] = []
        self.x2apic = False
        self.mailbox = agent.Mailbox(machine.memory, vcpu.id)
        self._loop = _Loop(self)
        self._seen = 0  # how many of `taken` were returned
        self._command: memoryview | None = None
        self._timeout = False

    # Running

    def do(self, operation: Operation, first: int = 0, second: int = 0) -> int:
        """Let the guest perform `operation`; what it read.

        Raises:
            Nonconforming: It does not come to the end of it.
        """
        if not self._perform(operation, first, second, None):
            where = f"{operation.name} at RIP {self.vcpu.get_regs().rip:#x}"
            raise Nonconforming(f"a runnable vCPU executes, but vCPU {self.id} did not come to the end of {where}")
        return self.mailbox.result()

    def _perform(self, operation: Operation, first: int, second: int, patience: float | None) -> bool:
        if self._command is None and not self._run(patience):
            return False
        assert self._command is not None
        self.mailbox.put(first, second)
        self._command[:] = int(operation).to_bytes(4, "little")
        self._command = None
        return self._run(patience)

    def run_until_started(self) -> int | None:
        """Run a vCPU that waits for a start-up IPI; the vector it starts with, or None if it does not."""
        before = len(self.started)
        self._command = None
        self._run(None, lambda: len(self.started) > before)
        return self.started[-1] if len(self.started) > before else None

    def run_into_handler(self) -> int | None:
        """Let in what is pending, and stop in the handler of the first interrupt; its vector, or None."""
        before = len(self.taken)
        self._open()
        self._run(None, lambda: len(self.taken) > before)
        return self._next()

    def enter_agent(self) -> None:
        """Give a vCPU, after a start-up IPI for instance, the guest anew."""
        self.vcpu.complete_io()
        agent.enter(self.vcpu)
        self._command = None

    def pause(self) -> Exit:
        """Let the guest's last access be over, so that its registers can be saved; see `Vcpu.complete_io`.

        It goes on with the operation that is under way; otherwise it lets in one pending interrupt, as in OPEN.
        """
        self._open()
        return self.vcpu.complete_io()

    def _open(self) -> None:
        if self._command is not None:
            self._command[:] = int(Operation.OPEN).to_bytes(4, "little")
            self._command = None

    def take_over(self, saved: GuestCpu) -> None:
        """Go on where the guest of another machine is. It is about to let in one pending interrupt, as in OPEN."""
        for cpu in (saved, self):
            cpu.pause()
        self.vcpu.set_sregs(saved.vcpu.get_sregs())
        self.vcpu.set_regs(saved.vcpu.get_regs())
        self.x2apic = saved.x2apic

    def _run(self, patience: float | None, until: Callable[[], bool] = lambda: False) -> bool:
        """Run as a VMM does until the guest requests an operation, or `until`; False if that takes too long."""
        timer = threading.Timer(self.machine.patience if patience is None else patience, self._expire)
        timer.daemon = True
        self._timeout = False
        timer.start()
        try:
            self.machine.chip.inject_interrupts(self.vcpu)  # this may be another thread than before
            while not self._timeout:
                if (vm_exit := self._loop.step()) is not None:
                    where = self.vcpu.get_regs().rip
                    raise Nonconforming(f"a guest runs on, but vCPU {self.id} ended with {vm_exit} at RIP {where:#x}")
                if self._command is not None or until():
                    return True
            return False
        finally:
            timer.cancel()
            timer.join()

    def _expire(self) -> None:
        self._timeout = True
        self._loop.kick()

    def serve_agent(self, vm_exit: IoExit) -> bool:
        """Take what the guest says of itself at one of its own ports; False for any other port."""
        match vm_exit.port:
            case agent.COMMAND:
                self._command = vm_exit.data
            case agent.TAKEN:
                self.taken.append(vm_exit.data[0])
            case agent.STARTED:
                self.started.append(vm_exit.data[0])
            case agent.CRASHED:
                raise Nonconforming(
                    f"only what was sent interrupts a guest, but vCPU {self.id} got exception {vm_exit.data[0]}"
                )
            case _:
                return False
        return True

    def background(self, operation: Operation) -> Future[bool]:
        """Perform `operation` on a thread of its own; the result is whether it came to its end."""
        done: Future[bool] = Future()

        def perform() -> None:
            try:
                done.set_result(self._perform(operation, 0, 0, None))
            except BaseException as error:  # raised again in the caller of `Future.result`
                done.set_exception(error)

        threading.Thread(target=perform, name=f"vCPU {self.id}", daemon=True).start()
        return done

    # Taking interrupts

    def look(self) -> int | None:
        """Let in what is pending now, one interrupt; its vector, or None."""
        self.machine.settle()
        if len(self.taken) == self._seen:
            self.do(Operation.OPEN)
        return self._next()

    def take(self, *, patience: float | None = None) -> int | None:
        """Halt until an interrupt comes; its vector, or None if none does in time, and the vCPU is still halted then.

        A vCPU that is still halted goes on with that.
        """
        if len(self.taken) == self._seen and self._command is None:
            self._run(patience)
        if len(self.taken) == self._seen and self._command is not None:
            self._perform(Operation.HALT, 0, 0, patience)
        return self._next()

    def _next(self) -> int | None:
        if len(self.taken) == self._seen:
            return None
        self._seen += 1
        return self.taken[self._seen - 1]

    def expect(self, *expected: int, rule: str, eoi: Eoi = Eoi.LAPIC) -> None:
        """Demand that exactly these interrupts come, in this order, each ended with `eoi` before the next."""
        self._expect(expected, rule, eoi, ordered=True)

    def expect_nmi(self, *, rule: str) -> None:
        """Demand that an NMI is pending: it comes before anything else is executed, HLT for instance."""
        vector = self.look()
        check(
            vector == NMI_VECTOR, rule, f"on vCPU {self.id} the NMI was lost" if vector is None else vectors([vector])
        )
        self.expect_nothing(rule=rule)

    def expect_all(self, expected: Iterable[int], *, rule: str, eoi: Eoi = Eoi.LAPIC) -> None:
        """Demand that exactly these interrupts come, in any order."""
        self._expect(sorted(expected), rule, eoi, ordered=False)

    def expect_nothing(self, *, rule: str) -> None:
        """Demand that no interrupt is pending."""
        self._expect((), rule, Eoi.LAPIC, ordered=True)

    def expect_next(self, expected: int, *, rule: str) -> None:
        """Demand that this interrupt comes next. It is not ended."""
        vector = self.take()
        if fault := difference([] if vector is None else [vector], [expected]):
            raise Nonconforming(f"{rule}, but on vCPU {self.id} {fault}")

    def _expect(self, expected: Sequence[int], rule: str, eoi: Eoi, *, ordered: bool) -> None:
        got: list[int] = []
        while len(got) < len(expected) and (vector := self.take()) is not None:
            got.append(vector)
            self.end(eoi)
        if len(got) == len(expected):
            while len(got) < len(expected) + MOST_SURPLUS and (vector := self.look()) is not None:
                got.append(vector)
                self.end(eoi)
        if fault := difference(got if ordered else sorted(got), expected):
            raise Nonconforming(f"{rule}, but on vCPU {self.id} {fault}")

    def expect_blocked(self, *, rule: str) -> None:
        """Demand that nothing pending gets through now."""
        vector = self.look()
        check(vector is None, rule, f"vCPU {self.id} took {vectors([vector or 0])}")

    def end(self, eoi: Eoi) -> None:
        """End the interrupt in service."""
        if eoi & Eoi.SECONDARY:
            self.out(SECONDARY_COMMAND, PIC_EOI)
        if eoi & Eoi.PRIMARY:
            self.out(PRIMARY_COMMAND, PIC_EOI)
        if eoi & Eoi.LAPIC:
            self.apic_write(reg.EOI, 0)

    # What the guest reads and writes

    def out(self, port: int, value: int, *, size: int = 1) -> None:
        """OUT of 1, 2 or 4 bytes."""
        self.do(OUT[size], port, value)

    def in_(self, port: int, *, size: int = 1) -> int:
        """IN of 1, 2 or 4 bytes."""
        return self.do(IN[size], port)

    def store(self, address: int, value: int) -> None:
        """A 32-bit store."""
        self.do(Operation.STORE, address, value)

    def load(self, address: int) -> int:
        """A 32-bit load."""
        return self.do(Operation.LOAD, address)

    def read_msr(self, index: int) -> int | None:
        """RDMSR; None if it raises #GP."""
        value = self.do(Operation.READ_MSR, index)
        return None if self.mailbox.faulted() else value

    def write_msr(self, index: int, value: int) -> bool:
        """WRMSR; False if it raises #GP."""
        self.do(Operation.WRITE_MSR, index, value)
        return not self.mailbox.faulted()

    def switch_base(self, by: int, to: int, address: int) -> int | None:
        """Write IA32_APIC_BASE twice, then load from `address`, all without an exit; None if a write raises #GP."""
        value = self.do(Operation.SWITCH, reg.IA32_APIC_BASE | address << 32, by | to << 32)
        return None if self.mailbox.faulted() else value

    def read_tsc(self) -> int:
        """RDTSC."""
        return self.do(Operation.READ_TSC)

    # The local APIC, in whichever mode

    def apic_read(self, offset: int) -> int:
        """A register of the local APIC, by its offset in the page."""
        if not self.x2apic:
            return self.load(LAPIC_BASE + offset)
        value = self.read_msr(reg.X2APIC_MSR_BASE + (offset >> 4))
        check(value is not None, f"APIC register {offset:#x} is readable in x2APIC mode", "it raised #GP")
        return value or 0

    def apic_write(self, offset: int, value: int) -> None:
        """Write such a register."""
        if not self.x2apic:
            self.store(LAPIC_BASE + offset, value)
        else:
            fine = self.write_msr(reg.X2APIC_MSR_BASE + (offset >> 4), value)
            check(fine, f"{value:#x} can be written to APIC register {offset:#x} in x2APIC mode", "it raised #GP")

    def apic_bits(self, first: int) -> set[int]:
        """The vectors in ISR, TMR or IRR."""
        words = [self.apic_read(first + 0x10 * word) for word in range(8)]
        return {32 * word + bit for word in range(8) for bit in range(32) if words[word] >> bit & 1}

    def enable_apic(self) -> None:
        """What firmware does: software-enable it, PICs to LINT0 of the boot processor, NMI to LINT1."""
        self.apic_write(reg.SPIV, reg.SPIV_SOFTWARE_ENABLE | SPURIOUS_VECTOR)
        self.apic_write(reg.LVT_LINT0, EXTINT_MODE if self.id == 0 else MASKED)
        self.apic_write(reg.LVT_LINT1, NMI_MODE)

    def cpuid(self, leaf: int, subleaf: int = 0) -> tuple[int, int, int, int]:
        """Execute CPUID; EAX, EBX, ECX and EDX."""
        self.do(Operation.CPUID, leaf, subleaf)
        return self.mailbox.cpuid()

    def enter_x2apic(self) -> bool:
        """Switch to x2APIC mode; False if that raises #GP."""
        base = self.read_msr(reg.IA32_APIC_BASE) or 0
        self.x2apic = self.write_msr(reg.IA32_APIC_BASE, base | reg.APIC_BASE_EN | reg.APIC_BASE_EXTD)
        return self.x2apic

    def send_ipi(self, command: int, destination: int = 0) -> None:
        """Write the interrupt command register.

        Args:
            command: Bits 0-31.
            destination: An APIC id or logical destination.
        """
        if self.x2apic:
            fine = self.write_msr(reg.X2APIC_MSR_BASE + (reg.ICR_LOW >> 4), destination << 32 | command)
            check(fine, "an IPI can be sent in x2APIC mode", f"the command {command:#x} raised #GP")
        else:
            self.store(LAPIC_BASE + reg.ICR_HIGH, destination << 24)
            self.store(LAPIC_BASE + reg.ICR_LOW, command)

    def require_eoi(self) -> None:
        """For scenarios that need interrupts to stay in service until their EOI.

        Raises:
            NotApplicable: The local APIC is the hypervisor's, and ends interrupts as it delivers them. (kvm_pvm's does;
                seen on Linux 6.18.) A chip whose local APICs are its own has no such excuse.
        """
        if self.machine.apics_in_chip:
            return
        self.machine.send_msi(0xF0, destination=self.id)
        self.expect(0xF0, rule="an MSI interrupts", eoi=Eoi.NONE)
        in_service = self.apic_bits(reg.ISR)
        self.end(Eoi.LAPIC)
        self.forget()
        if 0xF0 not in in_service:
            raise NotApplicable(
                "needs a local APIC that waits for its EOI; this hypervisor's ends interrupts at delivery, as "
                "kvm_pvm's does: run it on kvm_intel or kvm_amd"
            )

    def forget(self) -> None:
        """Leave what was taken so far out of the record."""
        self.taken.clear()
        self._seen = 0
