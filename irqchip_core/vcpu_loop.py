"""The vCPU loop: what every VMM does with a vCPU, from one exit of guest code to the next.

The order of one step::

    wait_until_runnable ── INTERRUPTED ──► back to the caller
            │ RUNNABLE
        vcpu.run()
            │ exit
          serve ── shutdown, failure ──► back to the caller with the exit
            │      port, MMIO ► bus; MSR, HLT, EOI ► chip
     inject_interrupts

`VcpuLoop` is one vCPU's loop, on whichever thread calls it; `VcpuThread` is a thread that makes a vCPU and runs it to
its end. What a guest's shutdown means, and when a run is over, is the VMM's to decide.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Protocol, Self, TypeVar

from typing_extensions import override

from irqchip_core.bus import Bus
from irqchip_core.chip import VcpuRunState
from irqchip_core.hypervisor.exits import (
    Exit,
    FailEntryExit,
    HltExit,
    InternalErrorExit,
    InterruptedExit,
    IoapicEoiExit,
    IoExit,
    IrqWindowExit,
    MmioExit,
    MsrExit,
    SetTprExit,
    ShutdownExit,
    SystemEventExit,
    UnknownExit,
)
from irqchip_core.hypervisor.vcpu import VcpuX86_64
from irqchip_core.x86.chip import IrqChipX86_64

KICK_SECONDS = 0.2
"""How long `stop_vcpus` waits for a kicked vCPU before it kicks it again."""

_INTERRUPTED = VcpuRunState.INTERRUPTED


class VcpuMaker(Protocol):
    """A VM (`irqchip_core.hypervisor.vcpu.Vm`), as far as a loop needs it."""

    def create_vcpu(self, vcpu_id: int) -> VcpuX86_64: ...


class VcpuLoop:
    """The loop of one vCPU. Only the vCPU's own thread calls it, except for `kick`.

    Args:
        vcpu: The vCPU; `IrqChip.add_vcpu` has had it.
        chip: Its interrupt chip.
        io_bus: The I/O ports.
        mmio_bus: The MMIO space.

    Attributes:
        exits: How often guest code was left, by type of exit.
        last_exit: The exit that `step` saw last; None before the first.
    """

    def __init__(self, vcpu: VcpuX86_64, chip: IrqChipX86_64, io_bus: Bus, mmio_bus: Bus) -> None:
        self.vcpu = vcpu
        self.chip = chip
        self.exits: dict[type[Exit], int] = {}
        self.last_exit: Exit | None = None
        self._io_bus = io_bus.for_vcpu(vcpu.id)
        self._mmio_bus = mmio_bus.for_vcpu(vcpu.id)
        self._servers: dict[type[Exit], Callable[[Exit], bool]] = {
            IoExit: self._io,
            MmioExit: self._mmio,
            MsrExit: self._msr,
            HltExit: self._hlt,
            IoapicEoiExit: self._ioapic_eoi,
            # The way back into the guest is all these need.
            InterruptedExit: _served,
            IrqWindowExit: _served,
            SetTprExit: _served,
            # What these mean for the run is the VMM's to decide.
            ShutdownExit: _not_served,
            SystemEventExit: _not_served,
            FailEntryExit: _not_served,
            InternalErrorExit: _not_served,
            UnknownExit: _not_served,
        }

    @classmethod
    @contextmanager
    def made(
        cls,
        vm: VcpuMaker,
        chip: IrqChipX86_64,
        vcpu_id: int,
        io_bus: Bus,
        mmio_bus: Bus,
        prepare: Callable[[VcpuX86_64], object] = lambda vcpu: None,
    ) -> Iterator[Self]:
        """Make a vCPU on the calling thread, for as long as the context lasts.

        Args:
            vm: Where the vCPU is made: the VM, or what makes other vCPUs of the VM's.
            chip: The chip that gets it.
            vcpu_id: Number of the vCPU, from 0.
            io_bus: The I/O ports.
            mmio_bus: The MMIO space.
            prepare: Called with the vCPU when the chip has it: sets CPUID and the registers it starts with.

        Raises:
            IrqChipError: See `Vm.create_vcpu` and `IrqChip.add_vcpu`.
        """
        vcpu = vm.create_vcpu(vcpu_id)
        try:
            chip.add_vcpu(vcpu_id, vcpu)
            prepare(vcpu)
            yield cls(vcpu, chip, io_bus, mmio_bus)
        finally:
            vcpu.close()

    def step(self) -> Exit | None:
        """Wait until the vCPU can run, run it to its next exit, serve that, and inject what is pending.

        Returns:
            The exit if it ends the run: `ShutdownExit`, `SystemEventExit`, `FailEntryExit`, `InternalErrorExit` or
            `UnknownExit`. None otherwise; also, with no exit, after `IrqChip.kick_halted_vcpus`.

        Raises:
            IrqChipError: See `IrqChip.wait_until_runnable`, `VcpuX86_64.run`, `IrqChip.inject_interrupts`.
        """
        vcpu, chip = self.vcpu, self.chip
        if chip.wait_until_runnable(vcpu) is _INTERRUPTED:
            return None
        vm_exit = self.last_exit = vcpu.run()
        kind = type(vm_exit)
        self.exits[kind] = self.exits.get(kind, 0) + 1
        if not self.serve(vm_exit):
            return vm_exit
        chip.inject_interrupts(vcpu)
        return None

    def serve(self, vm_exit: Exit) -> bool:
        """Do what an exit demands before the vCPU can run again.

        Returns:
            False if nothing here can: see `step`.
        """
        return self._servers[type(vm_exit)](vm_exit)

    def kick(self) -> None:
        """Let the step that is under way, or else the next one, return soon. From any thread."""
        self.vcpu.kick()
        self.chip.kick_halted_vcpus()

    # --- Accesses. A hypervisor that calls back in the middle of a run has them answered here, without an exit ---

    def port_read(self, port: int, size: int) -> int:
        """IN of `size` bytes: 1, 2 or 4. All ones where no device is, as on a PC."""
        value = self._io_bus.read(port, size)
        return (1 << 8 * size) - 1 if value is None else value

    def port_write(self, port: int, size: int, value: int) -> None:
        """OUT of `size` bytes: 1, 2 or 4."""
        self._io_bus.write(port, size, value)

    def mmio_read(self, address: int, size: int) -> int:
        """A read of `size` bytes, 1 to 8, where no memory is. All ones where no device is."""
        value = self._mmio_bus.read(address, size)
        return (1 << 8 * size) - 1 if value is None else value

    def mmio_write(self, address: int, size: int, value: int) -> None:
        """A write of `size` bytes, 1 to 8, where no memory is."""
        self._mmio_bus.write(address, size, value)

    # --- Exits ---

    def _io(self, vm_exit: Exit) -> bool:
        assert isinstance(vm_exit, IoExit)
        port, size, data = vm_exit.port, vm_exit.size, vm_exit.data
        for at in range(0, len(data), size):  # INS and OUTS with REP make several accesses
            if vm_exit.is_write:
                self.port_write(port, size, int.from_bytes(data[at : at + size], "little"))
            else:
                data[at : at + size] = self.port_read(port, size).to_bytes(size, "little")
        return True

    def _mmio(self, vm_exit: Exit) -> bool:
        assert isinstance(vm_exit, MmioExit)
        data = vm_exit.data
        size = len(data)
        if vm_exit.is_write:
            self.mmio_write(vm_exit.address, size, int.from_bytes(data, "little"))
        else:
            data[:] = self.mmio_read(vm_exit.address, size).to_bytes(size, "little")
        return True

    def _msr(self, vm_exit: Exit) -> bool:
        assert isinstance(vm_exit, MsrExit)
        if not self.chip.handle_msr(self.vcpu, vm_exit):
            self.vcpu.complete_msr(fault=True)
        return True

    def _hlt(self, vm_exit: Exit) -> bool:
        self.chip.halted(self.vcpu.id)
        return True

    def _ioapic_eoi(self, vm_exit: Exit) -> bool:
        assert isinstance(vm_exit, IoapicEoiExit)
        self.chip.broadcast_eoi(vm_exit.vector)
        return True


def _served(vm_exit: Exit) -> bool:
    return True


def _not_served(vm_exit: Exit) -> bool:
    return False


class VcpuThread(threading.Thread):
    """A thread that makes a vCPU, runs it until `stop`, an exit that ends the run, or an error, and closes it.

    Args:
        vm, chip, vcpu_id, io_bus, mmio_bus, prepare: As of `VcpuLoop.made`.
        on_end: Called on the thread, with the thread, when `outcome` is known and before the vCPU is closed. It must
            not raise.
        barrier: Where the thread waits, before any guest code runs, until all others have made their vCPUs too. A
            vCPU that cannot be made breaks it; the threads that wait there end without a call of `on_end`.

    Attributes:
        loop: The vCPU's loop; None until the vCPU is made.
        outcome: What ended the run: the exit or the error; None after `stop`, or before the end.
    """

    def __init__(
        self,
        vm: VcpuMaker,
        chip: IrqChipX86_64,
        vcpu_id: int,
        io_bus: Bus,
        mmio_bus: Bus,
        prepare: Callable[[VcpuX86_64], object] = lambda vcpu: None,
        *,
        on_end: Callable[[VcpuThread], object] = lambda thread: None,
        barrier: threading.Barrier | None = None,
    ) -> None:
        super().__init__(name=f"vCPU {vcpu_id}", daemon=True)
        self.vcpu_id = vcpu_id
        self.loop: VcpuLoop | None = None
        self.outcome: Exit | Exception | None = None
        self._make: Callable[[], AbstractContextManager[VcpuLoop]] = partial(
            VcpuLoop.made, vm, chip, vcpu_id, io_bus, mmio_bus, prepare
        )
        self._on_end = on_end
        self._barrier = barrier
        self._stopping = False

    def stop(self) -> None:
        """Let the run end soon. From any thread; `stop_vcpus` waits for the end too."""
        self._stopping = True
        if (loop := self.loop) is not None:
            loop.kick()

    @override
    def run(self) -> None:
        with ExitStack() as stack:
            try:
                loop = self.loop = stack.enter_context(self._make())
                if self._barrier is not None:
                    self._barrier.wait()
                while not self._stopping and self.outcome is None:
                    self.outcome = loop.step()
            except threading.BrokenBarrierError:
                return
            except Exception as error:
                self.outcome = error
                if self._barrier is not None:
                    self._barrier.abort()
            self._on_end(self)


class _Stoppable(Protocol):
    def stop(self) -> None: ...
    def join(self, timeout: float | None = None) -> None: ...
    def is_alive(self) -> bool: ...


_T = TypeVar("_T", bound=_Stoppable)


def stop_vcpus(threads: Iterable[_T], timeout: float) -> list[_T]:
    """Stop the threads of vCPUs and wait for their ends.

    Args:
        threads: Each a `VcpuThread`, or another thread that has a `stop`. Those that do not run are left out.
        timeout: Seconds to wait for all of them together.

    Returns:
        The threads that have not ended: a device or a console keeps their vCPUs.
    """
    deadline = time.monotonic() + timeout
    left = [thread for thread in threads if thread.is_alive()]
    for thread in left:
        thread.stop()
    while left and time.monotonic() < deadline:
        left[0].join(KICK_SECONDS)
        left = [thread for thread in left if thread.is_alive()]
        for thread in left:  # what was busy with an exit may have used the kick up
            thread.stop()
    return left
