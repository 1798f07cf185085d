"""A vCPU from its making to its close: run to an exit, the exit served, again. On which thread is not known here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from irqchip_core.bus import Bus
from irqchip_core.chip import VcpuRunState
from irqchip_core.errors import IrqChipError
from irqchip_core.exits import (
    Exit,
    FailEntryExit,
    HltExit,
    InternalErrorExit,
    IoapicEoiExit,
    IoExit,
    MmioExit,
    MsrExit,
    ShutdownExit,
    SystemEventExit,
    UnknownExit,
)
from irqchip_core.vcpu import VcpuX86_64, Vm
from irqchip_core.x86.chip import IrqChipX86_64
from irqchip_vmm.ending import Ending, Outcome

LVT_LINT0, LVT_LINT1 = 0x350 // 16, 0x360 // 16  # as indices of LapicState.regs
DELIVERY_MODE = 7 << 8
EXTINT, NMI = 7 << 8, 4 << 8
SYSTEM_EVENT_SHUTDOWN, SYSTEM_EVENT_RESET = 1, 2


class VcpuRunner:
    """One vCPU. All of it happens on one thread, but for `kick`.

    Args:
        vcpu_id: Number of the vCPU.
        vm: Where it is made.
        chip: Its interrupt chip.
        io_bus: Its handle of the I/O ports.
        mmio_bus: Its handle of the MMIO space.
        prepare: Called with the vCPU when the chip has it: sets CPUID and, on the first vCPU, the start state.
        ending: Where the end of the run is told.

    Attributes:
        exits: How often guest code was left, by kind of exit.
    """

    def __init__(
        self,
        vcpu_id: int,
        vm: Vm,
        chip: IrqChipX86_64,
        io_bus: Bus,
        mmio_bus: Bus,
        prepare: Callable[[VcpuX86_64], object],
        ending: Ending,
    ) -> None:
        self.vcpu_id = vcpu_id
        self.exits: Counter[str] = Counter()
        self._vm = vm
        self._chip = chip
        self._io_bus = io_bus
        self._mmio_bus = mmio_bus
        self._prepare = prepare
        self._ending = ending
        self._vcpu: VcpuX86_64 | None = None
        self._last_exit: Exit | None = None
        self._handlers: dict[type, Callable[[Exit], None]] = {
            IoExit: self._io,
            MmioExit: self._mmio,
            MsrExit: self._msr,
            HltExit: self._hlt,
            IoapicEoiExit: self._ioapic_eoi,
            ShutdownExit: self._shutdown,
            SystemEventExit: self._system_event,
            FailEntryExit: self._cannot_go_on,
            InternalErrorExit: self._cannot_go_on,
            UnknownExit: self._cannot_go_on,
        }

    def kick(self) -> None:
        """Let the vCPU leave guest code soon. From any thread."""
        if (vcpu := self._vcpu) is not None:
            vcpu.kick()

    @contextmanager
    def made(self) -> Iterator[VcpuX86_64]:
        """Make the vCPU, ready to run; it is closed in the end."""
        vcpu = self._vcpu = self._vm.create_vcpu(self.vcpu_id)
        try:
            self._chip.add_vcpu(self.vcpu_id, vcpu)
            self._prepare(vcpu)
            self._connect_local_interrupts()
            yield vcpu
        finally:
            self._vcpu = None
            vcpu.close()

    def step(self, vcpu: VcpuX86_64) -> None:
        """Wait until the vCPU can run, run it to its next exit, and serve that."""
        if self._chip.wait_until_runnable(vcpu) is VcpuRunState.INTERRUPTED:
            return
        vm_exit = self._last_exit = vcpu.run()
        kind = type(vm_exit)
        self.exits[kind.__name__] += 1
        if handler := self._handlers.get(kind):
            handler(vm_exit)
        self._chip.inject_interrupts(vcpu)

    def failed(self, error: Exception) -> None:
        """End the run: the vCPU cannot go on because of `error`."""
        problem = str(error) if isinstance(error, IrqChipError) else f"{type(error).__name__}: {error}"
        self._fail(problem + (f", after {self._last_exit}" if self._last_exit else ""))

    def _fail(self, problem: str) -> None:
        self._ending.finish(Outcome.ERROR, vcpu_id=self.vcpu_id, detail=f"vCPU {self.vcpu_id}: {problem}")

    def _connect_local_interrupts(self) -> None:
        # The PICs are wired to LINT0 and NMI to LINT1, as after a PC's firmware; masks stay as they are.
        state = self._chip.get_lapic_state(self.vcpu_id)
        for register, mode in ((LVT_LINT0, EXTINT), (LVT_LINT1, NMI)):
            state.regs[register] = state.regs[register] & ~DELIVERY_MODE | mode
        self._chip.set_lapic_state(self.vcpu_id, state)

    # --- Exits. Those without a handler have nothing to be done for them ---

    def _io(self, vm_exit: Exit) -> None:
        assert isinstance(vm_exit, IoExit)
        port, size, data = vm_exit.port, vm_exit.size, vm_exit.data
        for at in range(0, len(data), size):
            if vm_exit.is_write:
                self._io_bus.write(port, size, int.from_bytes(data[at : at + size], "little"))
            else:
                data[at : at + size] = _answer(self._io_bus.read(port, size), size)

    def _mmio(self, vm_exit: Exit) -> None:
        assert isinstance(vm_exit, MmioExit)
        size = len(vm_exit.data)
        if vm_exit.is_write:
            self._mmio_bus.write(vm_exit.address, size, int.from_bytes(vm_exit.data, "little"))
        else:
            vm_exit.data[:] = _answer(self._mmio_bus.read(vm_exit.address, size), size)

    def _msr(self, vm_exit: Exit) -> None:
        assert self._vcpu is not None
        assert isinstance(vm_exit, MsrExit)
        if not self._chip.handle_msr(self._vcpu, vm_exit):
            self._vcpu.complete_msr(fault=True)

    def _hlt(self, vm_exit: Exit) -> None:
        self._chip.halted(self.vcpu_id)

    def _ioapic_eoi(self, vm_exit: Exit) -> None:
        assert isinstance(vm_exit, IoapicEoiExit)
        self._chip.broadcast_eoi(vm_exit.vector)

    def _shutdown(self, vm_exit: Exit) -> None:
        # Where it happened is not known: SVM leaves the guest's state undefined (AMD APM volume 2, 15.14.3).
        self._ending.finish(Outcome.TRIPLE_FAULT, vcpu_id=self.vcpu_id, detail=f"vCPU {self.vcpu_id}")

    def _system_event(self, vm_exit: Exit) -> None:
        assert isinstance(vm_exit, SystemEventExit)
        outcomes = {SYSTEM_EVENT_SHUTDOWN: Outcome.SHUTDOWN, SYSTEM_EVENT_RESET: Outcome.RESET}
        outcome = outcomes.get(vm_exit.type, Outcome.ERROR)
        self._ending.finish(outcome, vcpu_id=self.vcpu_id, detail=f"vCPU {self.vcpu_id}: {vm_exit}")

    def _cannot_go_on(self, vm_exit: Exit) -> None:
        if isinstance(vm_exit, FailEntryExit):
            problem = f"FailEntryExit(reason={vm_exit.reason:#x})"
        elif isinstance(vm_exit, InternalErrorExit):
            data = ", ".join(f"{word:#x}" for word in vm_exit.data)
            problem = f"InternalErrorExit(suberror={vm_exit.suberror}, data=({data}))"
        else:
            problem = str(vm_exit)
        self._fail(problem + self._where())

    def _where(self) -> str:
        assert self._vcpu is not None
        try:
            return f" at RIP {self._vcpu.get_regs().rip:#x}"
        except IrqChipError:
            return ""


def _answer(value: int | None, size: int) -> bytes:
    """What a read gives; all ones where there is no device, as on a PC."""
    return b"\xff" * size if value is None else value.to_bytes(size, "little")
