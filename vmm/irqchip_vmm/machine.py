"""`Machine`: a PC as a library, on any hypervisor with any chip.

    with Machine(chip="kvm_kernel", vcpu_count=2) as machine:
        machine.add_device(Doorbell(machine.edge_irq(name="doorbell")), port=0x510, length=1)
        machine.load(load_file("guest.elf", memory_size=machine.memory.size))
        result = machine.run(timeout=10)

The order of things follows from the chip's contract: VM, memory, chip, devices, then the vCPUs.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from typing import Self, TypeVar

from irqchip_core.allocator import FIRST_IRQ, SystemAllocator
from irqchip_core.arguments import check_int
from irqchip_core.bus import Bus, BusDevice
from irqchip_core.capabilities import PC_CONTROLLERS, AnyCapability, IrqChipCap
from irqchip_core.chip import IrqChip
from irqchip_core.clock import VirtualClock
from irqchip_core.errors import Closed, Exhausted, InvalidArgument, IrqChipError, WrongType
from irqchip_core.events import DeviceId, IrqEventSource, PlatformDeviceId
from irqchip_core.hypervisor.vcpu import VcpuX86_64, Vm
from irqchip_core.irq_loop import IrqLoop
from irqchip_core.routes import IOAPIC_PINS
from irqchip_core.selection import Choice, choose, create_irqchip
from irqchip_core.vcpu_loop import VcpuLoop, VcpuThread, stop_vcpus
from irqchip_core.x86.chip import IrqChipX86_64
from irqchip_core.x86.cpuid import MAX_XAPIC_ID, vcpu_cpuid
from irqchip_core.x86.pit import SPEAKER_PORT
from irqchip_core.x86.reset import connect_local_interrupts
from irqchip_vmm import vcpu_end
from irqchip_vmm.device_loop import DeviceLoop, Timer
from irqchip_vmm.devices import debug_exit, generator, i8042, rtc, speaker, uart
from irqchip_vmm.ending import End, Ending, Outcome, RunResult, ctrl_c_later
from irqchip_vmm.interrupts import EdgeIrq, LevelIrq, MsiIrq
from irqchip_vmm.loaders.image import Image
from irqchip_vmm.memory import GuestMemory, check_size
from irqchip_vmm.trace import ChipChange, InjectedInterrupt, Trace
from irqchip_vmm.virtual_time import VirtualTimeThread

_log = logging.getLogger(__name__)
_Irq = TypeVar("_Irq", EdgeIrq, LevelIrq, MsiIrq)

MAX_VCPUS = MAX_XAPIC_ID
JOIN_SECONDS = 10.0
"""How long all vCPUs may take to end before `Machine.run` gives up on them."""
VIRTUAL_WALL_TIME = 946_684_800
"""What the real-time clock shows when virtual time begins, in seconds since 1970: the start of the year 2000."""


class Machine:
    """A PC with COM1, RTC, keyboard controller (reset only), exit port and interrupt generator.

    With fewer `controllers` it is a micro-VM: what drives a line that leads nowhere interrupts no vCPU.

    Args:
        hypervisor: Name of one, a VM without memory, vCPUs and chip, or None for the first on which the chip fits.
        chip: Name of a backend, a chip made for that VM, or None for the first that fits. What is given as an object
            stays the caller's to close, after the machine.
        memory_size: Bytes of RAM from address 0, a multiple of 4096 from 1 MiB to 3 GiB.
        vcpu_count: 1 to 254; APIC ids are 0 and up.
        controllers: Which controllers its guest uses: only a chip that has them is taken.
        require: What else the chip must have.
        console: Takes each byte the guest sends on COM1, on a vCPU's thread.
        on_end: Called once, on the thread that ends the run or closes the machine without one. If the console or a
            device has to wait for something else, let it return now.
        deterministic: Make a VM in virtual time: the run depends on the guest alone, and is the same each time. A VM
            that is given has its own time; the run is deterministic if that is a `VirtualClock`.
        trace: Called with each interrupt that is injected, and each change of the chip's events and routes; in virtual
            time only.

    Raises:
        InvalidArgument: A size or count out of range, or `trace` in real time.
        WrongType: A chip without its VM, or not of x86.
        IrqChipError: See `choose` and `create_irqchip`.

    Attributes:
        choice: How chip and hypervisor came to be chosen; None for a VM that is given.
    """

    def __init__(
        self,
        *,
        hypervisor: str | Vm | None = None,
        chip: str | IrqChip | None = None,
        memory_size: int = 16 << 20,
        vcpu_count: int = 1,
        controllers: Collection[AnyCapability] = PC_CONTROLLERS,
        require: Collection[AnyCapability] = (),
        console: Callable[[bytes], object] = lambda data: None,
        on_end: Callable[[], object] = lambda: None,
        deterministic: bool = False,
        trace: Callable[[InjectedInterrupt | ChipChange], object] | None = None,
    ) -> None:
        check_size(memory_size)
        check_int(vcpu_count, 1, MAX_VCPUS, subject="Machine", argument="vcpu_count")
        if isinstance(chip, IrqChip) and (hypervisor is None or isinstance(hypervisor, str)):
            raise WrongType(
                "a chip that is made already comes with its VM",
                subject="Machine",
                argument="chip",
                remedy="give the VM as hypervisor",
            )
        self.vcpu_count = vcpu_count
        self.choice: Choice | None = None
        self._vcpu_threads: list[VcpuThread | VirtualTimeThread] = []
        self._ending = Ending(self._ended)
        self._on_end = on_end
        self._started = False
        self._cleanup: list[Callable[[], object]] = []  # what was made, to be undone in reverse
        try:
            self._make(hypervisor, chip, memory_size, [*controllers, *require], deterministic)
            if self.virtual_clock is None and (deterministic or trace is not None):
                raise InvalidArgument(
                    "the machine lives in real time",
                    subject="Machine",
                    argument="deterministic" if deterministic else "trace",
                    remedy="make its VM in virtual time: create_vm(clock=VirtualClock())",
                )
            self._trace = None if trace is None else Trace(self.vm, trace)
            if self._trace is not None:
                self.chip.observers.add(self._trace)
                self._cleanup.append(partial(self.chip.observers.remove, self._trace))
            self._make_devices(console)
        except BaseException:
            self.close()
            raise

    def _make(
        self,
        hypervisor: str | Vm | None,
        chip: str | IrqChip | None,
        memory_size: int,
        require: list[AnyCapability],
        virtual_time: bool,
    ) -> None:
        in_turns = [IrqChipCap.MP_STATE_GET_SET]  # what a thread needs that runs all vCPUs in virtual time
        if hypervisor is None or isinstance(hypervisor, str):
            assert not isinstance(chip, IrqChip)
            wanted = [*require, *in_turns] if virtual_time else require
            self.choice = choose(chip, hypervisor=hypervisor, require=wanted, virtual_time=virtual_time)
            self.vm = self.choice.vm
            self._cleanup.append(self.vm.close)
        else:
            self.vm = hypervisor
        self.virtual_clock = self.vm.clock if isinstance(self.vm.clock, VirtualClock) else None
        self.memory = GuestMemory(self.vm.map_memory(0, memory_size))
        self._cleanup.append(self.memory.close)
        if isinstance(chip, IrqChip):
            made = chip
        else:
            if self.choice is not None:
                made = self.choice.create(self.vcpu_count)
            else:
                wanted = [*require, *in_turns] if self.virtual_clock is not None else require
                made = create_irqchip(chip, vm=self.vm, vcpu_count=self.vcpu_count, require=wanted)
            self._cleanup.append(made.close)
        if not isinstance(made, IrqChipX86_64):
            raise WrongType(f"{made.name} is not a chip of a PC", subject="Machine", argument="chip")
        self.chip: IrqChipX86_64 = made
        self.io_bus = Bus("I/O")
        self.mmio_bus = Bus("MMIO")
        self.allocator = SystemAllocator()
        self.allocator.start_at(IOAPIC_PINS)  # those below are lines
        self.irqs: list[EdgeIrq | LevelIrq] = []
        self._image: Image | None = None
        self._loop = DeviceLoop(self._device_failed, self.virtual_clock)
        self._cleanup.append(self._close_irqs)
        self._cleanup.append(self._loop.stop)

    def _make_devices(self, console: Callable[[bytes], object]) -> None:
        self.generator = generator.InterruptGenerator(self, self._loop, self.memory, self.vcpu_count)
        self.add_device(self.generator, mmio=generator.GENERATOR_BASE, length=generator.GENERATOR_LENGTH)
        self.add_device(i8042.I8042(self._reset), port=i8042.I8042_PORT, length=i8042.I8042_LENGTH)
        if self.chip.check_capability(IrqChipCap.PIT) and not self.chip.pit_uses_speaker_port():
            self.add_device(speaker.SpeakerPort(self.chip, self.vm.clock), port=SPEAKER_PORT)
        rtc_irq = self.edge_irq(rtc.RTC_GSI, name="rtc", device_id=PlatformDeviceId.CMOS)
        wall_time = None if self.virtual_clock is None else VIRTUAL_WALL_TIME
        self.rtc = rtc.Rtc(rtc_irq.trigger, self._loop, wall_time=wall_time, memory_size=self.memory.size)
        self.add_device(self.rtc, port=rtc.RTC_PORT, length=rtc.RTC_LENGTH)
        com1_irq = self.edge_irq(uart.COM1_GSI, name="com1", device_id=PlatformDeviceId.SERIAL)
        self.com1 = uart.Uart(com1_irq.trigger, console)
        self.add_device(self.com1, port=uart.COM1_PORT, length=uart.LENGTH)
        self.add_device(debug_exit.DebugExit(self._exit), port=debug_exit.EXIT_PORT, length=debug_exit.EXIT_PORT_LENGTH)

    # --- Devices and their interrupts ---

    def add_device(
        self, device: BusDevice, *, port: int | None = None, mmio: int | None = None, length: int = 1
    ) -> None:
        """Put `device` at I/O ports from `port` or at physical addresses from `mmio`. Once for each range.

        Raises:
            InvalidArgument: Not exactly one of `port` and `mmio`, or the range is taken or out of range.
        """
        if (port is None) == (mmio is None):
            raise InvalidArgument(
                "it is to be at a port or at an MMIO address",
                subject="Machine",
                argument=device.debug_label,
                remedy="give one of port and mmio",
            )
        if port is not None:
            check_int(port, 0, 0x10000 - length, subject="Machine", argument="port")
            self.io_bus.insert(device, port, length)
        elif mmio is not None:
            check_int(mmio, self.memory.size, (1 << 52) - length, subject="Machine", argument="mmio")
            self.mmio_bus.insert(device, mmio, length)

    def edge_irq(
        self, gsi: int | None = None, *, name: str, device_id: DeviceId = PlatformDeviceId.DEBUG_CONSOLE
    ) -> EdgeIrq:
        """An edge interrupt on line `gsi`, or on a free one.

        Raises:
            Exhausted: No number is free.
            IrqChipError: See `IrqChip.register_edge_irq_event`.
        """
        gsi = self._free_line() if gsi is None else gsi
        return self._keep(EdgeIrq(self.chip, gsi, IrqEventSource(device_id, 0, name)))

    def level_irq(
        self, gsi: int | None = None, *, name: str, device_id: DeviceId = PlatformDeviceId.DEBUG_CONSOLE
    ) -> LevelIrq:
        """A level interrupt on line `gsi`, or on a free one. Set its `on_resample`. Raises as `edge_irq` does."""
        gsi = self._free_line() if gsi is None else gsi
        irq = self._keep(LevelIrq(self.chip, gsi, IrqEventSource(device_id, 0, name)))
        self._loop.watch(irq.event.get_resample(), irq.resample)
        return irq

    def msi_irq(self, *, name: str, device_id: DeviceId = PlatformDeviceId.DEBUG_CONSOLE) -> MsiIrq:
        """A message on a GSI of its own; it reaches nothing until `MsiIrq.set_message`. Raises as `edge_irq` does."""
        gsi = self.allocator.allocate_irq()
        if gsi is None:
            raise Exhausted("all numbers for messages are taken", subject="Machine", remedy="use fewer messages")
        return self._keep(MsiIrq(self.chip, gsi, IrqEventSource(device_id, 0, name)))

    def _free_line(self) -> int:
        for gsi in range(FIRST_IRQ, IOAPIC_PINS):
            if self.allocator.reserve_irq(gsi):
                return gsi
        raise Exhausted("all lines are taken", subject="Machine", remedy="share a line: give its gsi")

    def _keep(self, irq: _Irq) -> _Irq:
        self.irqs.append(irq)
        return irq

    def watch(self, source: object, callback: Callable[[], object]) -> None:
        """Call `callback` on the devices' thread whenever `source` (a descriptor, or what has one) is readable.

        Raises:
            InvalidArgument: `source` is not open, or is watched already.
            Closed: The run is over.
        """
        self._loop.watch(source, callback)

    def unwatch(self, source: object) -> None:
        """Undo `watch`, before `source` is closed. Raises as `watch` does, for what is not watched."""
        self._loop.unwatch(source)

    def call_later(self, nanoseconds: int, callback: Callable[[], object]) -> Timer:
        """Call `callback` on the devices' thread in that time, as it passes for the guest."""
        return self._loop.call_at(self._loop.now() + nanoseconds, callback)

    # --- Running ---

    def load(self, image: Image) -> None:
        """Put the guest into memory; vCPU 0 will start in it.

        Raises:
            InvalidArgument: It does not fit into memory.
            Closed: The machine is closed.
        """
        if not self._cleanup:
            raise Closed("the machine is closed", subject="Machine", remedy="make another one")
        image.write_to(self.memory)
        self._image = image

    def run(self, timeout: float | None = None) -> RunResult:
        """Run the guest to its end. Once for each machine.

        Args:
            timeout: Seconds to wait for the end at most, 0 to `threading.TIMEOUT_MAX`; None waits without limit.

        Returns:
            What became of it; failures of vCPUs and devices included.

        Raises:
            InvalidArgument: No guest was loaded, or the timeout is out of range.
            Closed: The machine has run already, or is closed.
            IrqChipError: The machine cannot start, or a vCPU does not end when it is stopped.
        """
        if timeout is not None and not 0 <= timeout <= threading.TIMEOUT_MAX:
            raise InvalidArgument(
                f"{timeout} is not a time to wait",
                subject="Machine",
                argument="timeout",
                remedy=f"give 0 to {threading.TIMEOUT_MAX:.0f} seconds, or None",
            )
        if self._image is None:
            raise InvalidArgument("there is no guest to run", subject="Machine", remedy="load one first")
        if self._started or not self._cleanup:
            raise Closed("the machine has had its run", subject="Machine", remedy="make another one")
        self._started = True
        start = time.monotonic()
        try:
            with ctrl_c_later():
                self._start()
            if not self._ending.wait(timeout):
                self._ending.finish(Outcome.TIMEOUT, detail=f"the guest still runs after {timeout:g} seconds")
        finally:
            self._ending.finish(Outcome.STOPPED)
            self._join()
            self._loop.stop()
        assert self._ending.end is not None
        return self._result(self._ending.end, time.monotonic() - start)

    def _start(self) -> None:
        self.chip.finalize_devices(self.allocator, self.io_bus, self.mmio_bus)
        supported = self.vm.supported_cpuid()

        def prepare(vcpu: VcpuX86_64) -> None:
            vcpu.set_cpuid(vcpu_cpuid(supported, self.chip, vcpu.id, self.vcpu_count))
            if vcpu.id == 0 and self._image is not None:
                sregs = vcpu.get_sregs()
                self._image.set_sregs(sregs)
                vcpu.set_sregs(sregs)
                vcpu.set_regs(self._image.regs)
            if self.chip.check_capability(IrqChipCap.LOCAL_APIC):
                connect_local_interrupts(self.chip, vcpu.id)

        barrier = threading.Barrier(2 if self.virtual_clock is not None else self.vcpu_count + 1)
        others: list[Callable[[], None]] = []
        maker = self.vm if self._trace is None else self._trace
        parts = [(maker, self.chip, vcpu_id, self.io_bus, self.mmio_bus, prepare) for vcpu_id in range(self.vcpu_count)]
        if self.virtual_clock is None:
            for part in parts:
                self._vcpu_threads.append(VcpuThread(*part, on_end=self._vcpu_ended, barrier=barrier))
            irq_loop = IrqLoop(self.chip)
            self._cleanup.append(irq_loop.stop)
            others = [self._loop.start, irq_loop.start]
        else:
            make = [partial(VcpuLoop.made, *part) for part in parts]
            self._vcpu_threads.append(
                VirtualTimeThread(
                    make, barrier, self._ending, chip=self.chip, devices=self._loop, clock=self.virtual_clock
                )
            )
        try:
            for start in [*(thread.start for thread in self._vcpu_threads), *others]:
                start()
            barrier.wait()
        except threading.BrokenBarrierError:
            pass  # a vCPU could not be made: the end says which and why
        except BaseException:
            barrier.abort()
            raise

    def stop(self) -> None:
        """End the run. From any thread."""
        self._ending.finish(Outcome.STOPPED)

    def _exit(self, status: int, vcpu_id: int) -> None:
        self._ending.finish(Outcome.EXIT, status, vcpu_id)

    def _reset(self, vcpu_id: int) -> None:
        self._ending.finish(Outcome.RESET, vcpu_id=vcpu_id)

    def _device_failed(self, error: BaseException) -> None:
        _log.error("a device failed", exc_info=error)
        self._ending.finish(Outcome.ERROR, detail=f"a device failed: {type(error).__name__}: {error}")

    def _vcpu_ended(self, thread: VcpuThread) -> None:
        if thread.outcome is not None:
            vcpu_end.finish(self._ending, thread.vcpu_id, thread.loop, thread.outcome)

    def _ended(self) -> None:
        for thread in self._vcpu_threads:
            thread.stop()
        self._on_end()

    def _join(self) -> None:
        if left := stop_vcpus(self._vcpu_threads, JOIN_SECONDS):
            raise IrqChipError(
                f"{', '.join(thread.name for thread in left)} did not end within {JOIN_SECONDS:g} seconds",
                subject="Machine",
                remedy="see that the console and devices return; on_end says when",
            )

    def _loops(self) -> Iterator[VcpuLoop]:
        for thread in self._vcpu_threads:
            if isinstance(thread, VirtualTimeThread):
                yield from thread.loops
            elif thread.loop is not None:
                yield thread.loop

    def _result(self, end: End, seconds: float) -> RunResult:
        exits: Counter[str] = Counter()
        for loop in self._loops():
            for kind, count in loop.exits.items():
                exits[kind.__name__] += count
        return RunResult(
            end=end,
            seconds=seconds,
            interrupts=[irq.count() for irq in self.irqs],
            report=self.generator.report,
            report_error=self.generator.report_error,
            exits=dict(sorted(exits.items())),
            unclaimed=self.io_bus.unclaimed + self.mmio_bus.unclaimed,
            device_errors=self.io_bus.errors + self.mmio_bus.errors,
            counters=self.chip.counters(),
        )

    # --- Closing ---

    def _close_irqs(self) -> None:
        irqs, self.irqs = self.irqs, []
        _do_all(irq.close for irq in irqs)

    def close(self) -> None:
        """End the run, if one is under way, and release everything. Closing twice is harmless.

        Raises:
            IrqChipError: A vCPU does not end, or the VM was closed before; all else is released.
        """
        self._ending.finish(Outcome.STOPPED)
        cleanup, self._cleanup = self._cleanup, []
        _do_all([self._join, *reversed(cleanup)])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _do_all(steps: Iterable[Callable[[], object]]) -> None:
    """Take all steps, whichever fail; raises the first error."""
    first_error: Exception | None = None
    for step in steps:
        try:
            step()
        except Exception as error:
            first_error = first_error or error
    if first_error is not None:
        raise first_error
