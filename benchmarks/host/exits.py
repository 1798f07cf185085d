"""What an exit costs: the vCPU loop with a guest that does nothing but exit.

``loop only`` has a KVM_RUN that returns at once, with the run area as the last real exit left it, or (``fake``) a vCPU
whose `run` does nothing: what is measured is ours alone, from one call of it to the next. The others are real exits;
beside them is what C and the bare ioctl make of the same vCPU in the same process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from attrs import frozen
from typing_extensions import override

from benchmarks.host.scale import KVM_CHIPS, Scale, attempt, made
from benchmarks.limits import NO_COMPILER, bare_ioctl, descriptor, in_c, library, repeat_exit
from benchmarks.measuring import IOCTL, OURS, Row, in_turn, timed
from irqchip_core.allocator import SystemAllocator
from irqchip_core.bus import Access, Bus, BusDevice
from irqchip_core.hypervisor.exits import Exit, IoExit, MmioExit, MsrExit
from irqchip_core.hypervisor.vcpu import VcpuX86_64, Vm
from irqchip_core.testing import FakeVcpu, FakeVm
from irqchip_core.vcpu_loop import VcpuLoop
from irqchip_core.x86.chip import IrqChipX86_64
from irqchip_core.x86.cpuid import vcpu_cpuid
from irqchip_core.x86.state import IOAPIC_BASE, LAPIC_BASE

KVM_RUN = 0xAE80
GUEST = 0x1000
PORT = 0x80
LAPIC_VERSION, X2APIC_VERSION = 0x30, 0x803


@frozen
class GuestAccess:
    """What the guest does all the time.

    Attributes:
        code: In real mode. DS begins at `data`.
        exit: What a vCPU without a guest reports.
        chips: Where it is an exit.
    """

    name: str
    code: bytes
    data: int
    exit: Callable[[], Exit]
    chips: tuple[str, ...] = KVM_CHIPS


def _mmio(address: int) -> Exit:
    return MmioExit(address, memoryview(bytearray(4)), is_write=False)


def _port(port: int) -> Exit:
    return IoExit(port, 1, memoryview(bytearray(1)), is_write=False)


CHIPSETS = ("kvm_split", "userspace")
READ = bytes.fromhex("66 A1 30 00 EB FA")  # 1: mov eax, [LAPIC_VERSION]; jmp 1b
ACCESSES = [
    GuestAccess("port of a device", bytes.fromhex("E4 80 EB FC"), 0, partial(_port, PORT)),  # 1: in al, 0x80; jmp 1b
    GuestAccess("PIC port", bytes.fromhex("E4 21 EB FC"), 0, partial(_port, 0x21), CHIPSETS),
    GuestAccess("IOAPIC page", READ, IOAPIC_BASE - 0x20, partial(_mmio, IOAPIC_BASE + 0x10), CHIPSETS),  # IOWIN
    GuestAccess("LAPIC page", READ, LAPIC_BASE, partial(_mmio, LAPIC_BASE + LAPIC_VERSION), ("userspace",)),
    GuestAccess(
        "x2APIC MSR",
        bytes.fromhex(
            "66 B9 1B 00 00 00"  # mov ecx, IA32_APIC_BASE
            "0F 32"  # rdmsr
            "80 CC 04"  # or ah, 4: x2APIC mode
            "0F 30"  # wrmsr
            "66 B9 03 08 00 00"  # mov ecx, X2APIC_VERSION
            "0F 32 EB FC"  # 1: rdmsr; jmp 1b
        ),
        0,
        partial(MsrExit, X2APIC_VERSION, 0, is_write=False),
        ("userspace",),
    ),
]


class _Device(BusDevice):
    @override
    def read(self, access: Access) -> int:
        return 0x55


class _IdleVcpu(FakeVcpu):
    """Reports one and the same exit whenever it runs."""

    exit: Exit

    @override
    def run(self) -> Exit:
        return self.exit


class _IdleVm(FakeVm):
    @override
    def create_vcpu(self, vcpu_id: int) -> FakeVcpu:
        return _IdleVcpu(vcpu_id)


def _enter(vcpu: VcpuX86_64, access: GuestAccess) -> None:
    if isinstance(vcpu, _IdleVcpu):
        vcpu.exit = access.exit()
        return
    sregs, regs = vcpu.get_sregs(), vcpu.get_regs()
    sregs.cs.base = sregs.cs.selector = 0
    sregs.ds.base = access.data
    regs.rip = GUEST + 0x100 * vcpu.id
    vcpu.set_sregs(sregs)
    vcpu.set_regs(regs)


@contextmanager
def _loops(chip: str, hypervisor: str, accesses: list[GuestAccess]) -> Iterator[list[VcpuLoop]]:
    """A vCPU for each access, that has made it a few times."""
    with ExitStack() as stack:
        vm, irqchip = stack.enter_context(made(chip, hypervisor, len(accesses)))
        yield list(_entered(stack, vm, irqchip, accesses))


def _entered(stack: ExitStack, vm: Vm, irqchip: IrqChipX86_64, accesses: list[GuestAccess]) -> Iterator[VcpuLoop]:
    memory = vm.map_memory(0, 0x4000)
    io_bus, mmio_bus = Bus("I/O"), Bus("MMIO")
    io_bus.insert(_Device(), PORT, 1)
    vcpus = []
    for vcpu_id, access in enumerate(accesses):
        memory[GUEST + 0x100 * vcpu_id :][: len(access.code)] = access.code
        vcpu = vm.create_vcpu(vcpu_id)
        stack.callback(vcpu.close)
        irqchip.add_vcpu(vcpu_id, vcpu)
        vcpu.set_cpuid(vcpu_cpuid(vm.supported_cpuid(), irqchip, vcpu_id, vcpu_count=len(accesses)))
        _enter(vcpu, access)
        vcpus.append(vcpu)
    irqchip.finalize_devices(SystemAllocator(), io_bus, mmio_bus)
    for vcpu, access in zip(vcpus, accesses, strict=True):
        if vcpu.id:
            irqchip.set_mp_state(vcpu.id, irqchip.get_mp_state(0))
        loop = VcpuLoop(vcpu, irqchip, io_bus, mmio_bus)
        for _ in range(10):
            loop.step()
        assert type(loop.last_exit) is type(access.exit()), f"{access.name}: {loop.last_exit}"
        yield loop


def _loop_only(chip: str, access: GuestAccess, scale: Scale) -> Row:
    with _loops(chip, "kvm", [access]) as (loop,):
        repeat_exit(True)
        try:
            ways = {
                OURS: timed(loop.step, scale.times),
                IOCTL: bare_ioctl(descriptor("kvm-vcpu:0"), KVM_RUN, 0, scale.times),
            }
            samples = in_turn(ways, scale.repeats)
        finally:
            repeat_exit(False)
    return Row("exit, loop only", f"{chip}: {access.name}", samples)


def _real(chip: str, access: GuestAccess, scale: Scale) -> Row:
    times = scale.times // 3
    with _loops(chip, "kvm", [access]) as (loop,):
        fd = descriptor("kvm-vcpu:0")
        ways = {OURS: timed(loop.step, times), IOCTL: bare_ioctl(fd, KVM_RUN, 0, times)}
        ways |= in_c("repeat_ioctl", fd, KVM_RUN, None, times)
        return Row("exit of KVM", f"{chip}: {access.name}", in_turn(ways, scale.repeats))


def _together(loops: list[VcpuLoop], times: int) -> float:
    """Seconds for one exit of all of them together."""
    gate = threading.Barrier(len(loops) + 1)

    def run(loop: VcpuLoop) -> None:
        gate.wait()
        timed(loop.step, times)()

    threads = [threading.Thread(target=run, args=(loop,)) for loop in loops]

    def all_of_them() -> None:
        gate.wait()
        for thread in threads:
            thread.join()

    for thread in threads:
        thread.start()
    return timed(all_of_them)() / len(loops) / times


def _two(chip: str, accesses: list[GuestAccess], scale: Scale) -> Row:
    """One exit of two vCPUs that exit at the same time; beside it, one of the first alone."""
    times = scale.times
    with _loops(chip, "kvm", accesses) as loops:
        ways = {OURS: partial(_together, loops, times), "one alone": partial(_together, loops[:1], times)}
        names = " and ".join(access.name for access in accesses)
        return Row("exit of two vCPUs, together", f"{chip}: {names}", in_turn(ways, scale.repeats))


def _fake(access: GuestAccess, scale: Scale) -> Row:
    with ExitStack() as stack:
        vm = _IdleVm()
        irqchip = stack.enter_context(made("userspace", "fake"))[1]
        (loop,) = _entered(stack, vm, irqchip, [access])
        samples = in_turn({OURS: timed(loop.step, scale.times)}, scale.repeats)
    return Row("exit, loop only", f"userspace, fake vCPU: {access.name}", samples)


def _unicorn(access: GuestAccess, scale: Scale) -> Row:
    with _loops("userspace", "unicorn", [access]) as (loop,):
        samples = in_turn({OURS: timed(loop.step, scale.times // 5)}, scale.repeats)
    return Row("exit of Unicorn", f"userspace: {access.name}", samples)


def rows(scale: Scale) -> Iterator[Row]:
    """All of this module."""
    for chip in KVM_CHIPS:
        for access in ACCESSES:
            if chip in access.chips:
                name = f"{chip}: {access.name}"
                if library() is None:
                    yield Row("exit, loop only", name, reason=NO_COMPILER)
                else:
                    yield attempt("exit, loop only", name, partial(_loop_only, chip, access, scale))
    for access in ACCESSES:
        yield _fake(access, scale)
    for chip in KVM_CHIPS:
        for access in ACCESSES:
            if chip in access.chips:
                yield attempt("exit of KVM", f"{chip}: {access.name}", partial(_real, chip, access, scale))
    for chip in KVM_CHIPS:
        second = ACCESSES[0]
        first = ACCESSES[3] if chip in ACCESSES[3].chips else second
        yield attempt("exit of two vCPUs, together", chip, partial(_two, chip, [first, second], scale))
    for access in ACCESSES:
        yield attempt("exit of Unicorn", f"userspace: {access.name}", partial(_unicorn, access, scale))
