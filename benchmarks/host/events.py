"""What an interrupt costs on its way from a device to a vCPU, with no guest that runs.

``at the vCPU`` ends where the vCPU has the vector (`FakeVcpu.interrupt`, or KVM's local APIC); ``through the irq loop``
is the time from the device's signal until the vCPU is kicked, by another thread. ``irqfd to handler`` has a guest that
spins with interrupts enabled, and ends when its handler has counted.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from struct import Struct

from typing_extensions import override

from benchmarks.host.scale import KVM_CHIPS, Scale, attempt, made
from benchmarks.host.spinner import Spinner
from benchmarks.limits import NO_COMPILER, bare_ioctl, descriptor, in_c, library
from benchmarks.measuring import IOCTL, OURS, Row, Sample, Way, in_turn, timed
from irqchip_core.allocator import SystemAllocator
from irqchip_core.bus import Bus
from irqchip_core.chip import MPState
from irqchip_core.events import IrqEdgeEvent, IrqEventSource, PlatformDeviceId
from irqchip_core.irq_loop import IrqLoop
from irqchip_core.routes import IOAPIC_PINS, IrqRoute, default_routes
from irqchip_core.selection import create_irqchip
from irqchip_core.testing import FakeVcpu, FakeVm
from irqchip_core.x86.chip import IrqChipX86_64
from irqchip_core.x86.lapic import registers as reg
from irqchip_core.x86.state import LAPIC_BASE

SOURCE = IrqEventSource(PlatformDeviceId.DEBUG_CONSOLE, 0, "benchmark")
KVM_IRQ_LINE = 0x4008AE61
KVM_SIGNAL_MSI = 0x4020AEA5
MSI = Struct("<IIIII12x")
IRQ_LEVEL = Struct("<II")
VECTOR = 0x55
MSI_ADDRESS = 0xFEE00000
PIN = 5
"""A GSI whose IOAPIC entry stays masked: the chip's own work is the same."""


class _Vcpu(FakeVcpu):
    """Says when it is kicked."""

    def __init__(self, vcpu_id: int) -> None:
        super().__init__(vcpu_id)
        self.kicked = threading.Semaphore(0)

    @override
    def kick(self) -> None:
        self.kicked.release()


class _FakeVm(FakeVm):
    @override
    def create_vcpu(self, vcpu_id: int) -> FakeVcpu:
        return _Vcpu(vcpu_id)


class _Machine:
    """A chip in user space with fake vCPUs, all of whose local APICs are enabled; and an MSI to the last vCPU."""

    def __init__(self, stack: ExitStack, vcpu_count: int = 1, routes: int = 0) -> None:
        vm = _FakeVm()
        chip = stack.enter_context(create_irqchip("userspace", vm=vm, vcpu_count=vcpu_count))
        assert isinstance(chip, IrqChipX86_64)
        self.chip = chip
        self.vcpus = [vm.create_vcpu(vcpu_id) for vcpu_id in range(vcpu_count)]
        mmio = Bus("MMIO")
        for vcpu in self.vcpus:
            chip.add_vcpu(vcpu.id, vcpu)
        chip.finalize_devices(SystemAllocator(), Bus("I/O"), mmio)
        self.pages = [mmio.for_vcpu(vcpu.id) for vcpu in self.vcpus]
        for vcpu, page in zip(self.vcpus, self.pages, strict=True):
            chip.set_mp_state(vcpu.id, MPState.RUNNABLE)
            page.write(LAPIC_BASE + reg.SPIV, 4, 0x1FF)
            chip.wait_until_runnable(vcpu)
        self.gsi = IOAPIC_PINS
        messages = [IrqRoute.msi(gsi, MSI_ADDRESS, VECTOR) for gsi in range(IOAPIC_PINS + 1, IOAPIC_PINS + routes)]
        target = IrqRoute.msi(self.gsi, MSI_ADDRESS | (vcpu_count - 1) << 12, VECTOR)
        chip.set_irq_routes([*default_routes(), target, *messages])

    def take(self) -> None:
        """The last vCPU takes its interrupt and ends it."""
        vcpu, page = self.vcpus[-1], self.pages[-1]
        self.chip.inject_interrupts(vcpu)
        self.chip.wait_until_runnable(vcpu)
        assert vcpu.injected.pop() == VECTOR
        vcpu.ready = True
        page.write(LAPIC_BASE + reg.EOI, 4, 0)


def _taken(machine: _Machine) -> None:
    machine.chip.service_irq(machine.gsi, True)
    machine.take()
    machine.chip.service_irq(machine.gsi, False)


def _in_user_space(group: str, size: int, scale: Scale, *, vcpus: int = 1, routes: int = 0) -> Row:
    with ExitStack() as stack:
        machine = _Machine(stack, vcpus, routes)
        samples = in_turn({OURS: timed(partial(_taken, machine), scale.times // 3)}, scale.repeats)
    return Row(group, f"userspace, fake vCPU: {size}", samples, size=size)


def _service_event(scale: Scale) -> Row:
    with ExitStack() as stack:
        machine = _Machine(stack)
        event = stack.enter_context(IrqEdgeEvent())
        index = machine.chip.register_edge_irq_event(machine.gsi, event, SOURCE)
        assert index is not None

        def taken() -> None:
            event.trigger()
            machine.chip.service_irq_event(index)
            machine.take()

        samples = in_turn({OURS: timed(taken, scale.times // 3)}, scale.repeats)
    return Row("event to vector", "userspace, fake vCPU: signal, service_irq_event, inject, EOI", samples)


def _through_the_loop(events: int, scale: Scale) -> Row:
    """From the signal to the kick, with so many events registered."""
    with ExitStack() as stack:
        machine = _Machine(stack, routes=events)
        registered = [stack.enter_context(IrqEdgeEvent()) for _ in range(events)]
        for gsi, event in enumerate(registered, machine.gsi):
            machine.chip.register_edge_irq_event(gsi, event, SOURCE)
        loop = stack.enter_context(IrqLoop(machine.chip))
        assert loop.flush(60)
        vcpu = machine.vcpus[-1]
        assert isinstance(vcpu, _Vcpu)
        kicked = vcpu.kicked

        def way() -> float:
            passed = 0.0
            for _ in range(times):
                while kicked.acquire(False):
                    pass
                start = time.perf_counter()
                registered[0].trigger()
                assert kicked.acquire(timeout=10)
                passed += time.perf_counter() - start
                machine.take()
            return passed / times

        times = scale.times // 10
        samples = in_turn({OURS: way}, scale.repeats)
    return Row(
        "signal to kick, through the irq loop, among so many events", f"userspace: {events}", samples, size=events
    )


def _service_irq(chip: str, what: str, scale: Scale) -> Row:
    """Of a chip of KVM's, beside the ioctl for it."""
    with made(chip, "kvm") as (vm, irqchip):
        irqchip.add_vcpu(0, vm.create_vcpu(0))
        gsi = IOAPIC_PINS
        irqchip.route_irq(IrqRoute.msi(gsi, MSI_ADDRESS, VECTOR))
        if what == "MSI":
            request, argument, ours = KVM_SIGNAL_MSI, MSI.pack(MSI_ADDRESS, 0, VECTOR, 0, 0), gsi
        else:
            request, argument, ours = KVM_IRQ_LINE, IRQ_LEVEL.pack(PIN, 0), PIN
        if chip == "kvm_kernel":
            request, argument = KVM_IRQ_LINE, IRQ_LEVEL.pack(ours, 1 if what == "MSI" else 0)
        level = what == "MSI"
        ways: dict[str, Way] = {OURS: timed(partial(irqchip.service_irq, ours, level), scale.times)}
        if chip == "kvm_kernel" or what == "MSI":
            buffer = ctypes.create_string_buffer(argument)
            fd = descriptor("kvm-vm")
            ways[IOCTL] = bare_ioctl(fd, request, buffer, scale.times)
            ways |= in_c("repeat_ioctl", fd, request, buffer, scale.times)
        return Row("service_irq", f"{chip}: {what}", in_turn(ways, scale.repeats))


def _kernel_vcpus(chip: str, count: int, scale: Scale) -> Row:
    """An MSI to the last of so many vCPUs of KVM."""
    with made(chip, "kvm", count) as (vm, irqchip):
        for vcpu_id in range(count):
            irqchip.add_vcpu(vcpu_id, vm.create_vcpu(vcpu_id))
        gsi = IOAPIC_PINS
        irqchip.route_irq(IrqRoute.msi(gsi, MSI_ADDRESS | (count - 1) << 12, VECTOR))
        ways = {OURS: timed(partial(irqchip.service_irq, gsi, True), scale.times)}
        return Row("interrupt, by vCPUs", f"{chip}: {count}", in_turn(ways, scale.repeats), size=count)


def _handler(chip: str, scale: Scale) -> Row:
    """A signal to the guest's handler, one at a time, seen by a C loop that looks at the guest's memory."""
    if library() is None:
        raise OSError(NO_COMPILER)
    with made(chip, "kvm") as (vm, irqchip), Spinner(vm, irqchip) as spinner:
        times = max(100, scale.times // 10)
        found = (ctypes.c_double * times)()
        fd = spinner.event.get_trigger().fileno()
        (way,) = in_c("signal_to_handler", fd, spinner.counter, times, found).values()
        way()
        values = sorted(found)
        sample = Sample(values[times // 2], values[0], values[times * 95 // 100])
    return Row("signal to handler (lowest, median, 95th of 100)", chip, {OURS: sample})


def rows(scale: Scale) -> Iterator[Row]:
    """All of this module."""
    for chip, whats in {"kvm_kernel": ("pin", "MSI"), "kvm_split": ("pin", "MSI"), "userspace": ("pin",)}.items():
        for what in whats:
            yield attempt("service_irq", f"{chip}: {what}", partial(_service_irq, chip, what, scale))
    yield _service_event(scale)
    for chip in KVM_CHIPS:
        yield attempt("signal to handler", chip, partial(_handler, chip, scale))


def growth(scale: Scale) -> Iterator[Row]:
    """Interrupts of chips with more and more vCPUs, routes and events."""
    for count in scale.vcpus:
        yield _in_user_space("interrupt, by vCPUs", count, scale, vcpus=count)
    for chip in ("kvm_kernel", "kvm_split"):
        for count in scale.vcpus:
            measure: Callable[[], Row] = partial(_kernel_vcpus, chip, count, scale)
            yield attempt("interrupt, by vCPUs", f"{chip}: {count}", measure)
    for count in (24, *scale.sizes()[2:-1], min(scale.events, 4056)):
        yield _in_user_space("interrupt, by routes", count, scale, routes=count)
    for count in [*scale.sizes()[:-1], min(scale.events, 4056)]:
        yield _through_the_loop(count, scale)
