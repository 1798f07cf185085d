"""INIT, start-up IPIs and interrupts to a vCPU that is in the middle of something."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator

import pytest

from irqchip_core.allocator import SystemAllocator
from irqchip_core.bus import Bus
from irqchip_core.chip import MPState, VcpuRunState
from irqchip_core.errors import HypervisorError
from irqchip_core.hypervisor.exits import Exit, HltExit, InterruptedExit, IoExit, MmioExit, MsrExit
from irqchip_core.hypervisor.registers import Regs, Segment
from irqchip_core.hypervisor.vcpu import VcpuX86_64
from irqchip_core.selection import create_irqchip, create_vm
from irqchip_core.x86.chip import IrqChipX86_64

pytestmark = pytest.mark.usefixtures("no_leaks")

LAPIC, IOAPIC, ICR_LOW, ICR_HIGH = 0xFEE00000, 0xFEC00000, 0x300, 0x310
FIXED, INIT, STARTUP = 0x4000, 0x4500, 0x4600
START, START_PAGE = 0x8000, 8
CODE = 0x1000
STARTED, ASTRAY = 0x10, 0x20


class Pair:
    """vCPU 1 executes `code` in real mode with DS at the IOAPIC; the test is vCPU 0."""

    def __init__(self, hypervisor: str, code: bytes) -> None:
        self.vm = create_vm(hypervisor)
        self.chip = create_irqchip("userspace", vm=self.vm, vcpu_count=2)
        assert isinstance(self.chip, IrqChipX86_64)
        self.x86: IrqChipX86_64 = self.chip
        memory = self.memory = self.vm.map_memory(0, 0x10000)
        memory[CODE : CODE + len(code)] = code
        memory[START:0x9000] = bytes([0xE6, ASTRAY]) * 0x800
        memory[START : START + 2] = bytes([0xE6, STARTED])  # out %al, $STARTED
        self.mmio = Bus("MMIO")
        self.chip.finalize_devices(SystemAllocator(), Bus("I/O"), self.mmio)
        self.vcpu: VcpuX86_64 = self.vm.create_vcpu(1)
        self.vcpu.set_cpuid(self.vm.supported_cpuid())
        self.chip.add_vcpu(1, self.vcpu)
        sregs = self.vcpu.get_sregs()
        sregs.cs = Segment(type=11)
        sregs.ds = Segment(base=IOAPIC)
        self.vcpu.set_sregs(sregs)
        self.vcpu.set_regs(Regs(rip=CODE))
        self.chip.set_mp_state(1, MPState.RUNNABLE)

    def close(self) -> None:
        self.chip.close()
        self.vm.close()

    def run(self) -> Exit:
        assert self.chip.wait_until_runnable(self.vcpu) is VcpuRunState.RUNNABLE
        while isinstance(exit_ := self.vcpu.run(), InterruptedExit):
            pass
        return exit_

    def send(self, command: int) -> None:
        self.mmio.for_vcpu(0).write(LAPIC + ICR_HIGH, 4, 1 << 24)
        self.mmio.for_vcpu(0).write(LAPIC + ICR_LOW, 4, command)


@pytest.fixture(params=[pytest.param("kvm", marks=pytest.mark.kvm), "unicorn"])
def hypervisor(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def code(request: pytest.FixtureRequest) -> bytes:
    found: bytes = request.param
    return found


@pytest.fixture
def pair(hypervisor: str, code: bytes) -> Iterator[Pair]:
    pair = Pair(hypervisor, code)
    yield pair
    pair.close()


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        pytest.param(b"\x8b\x06\x00\x00", MmioExit, id="load from MMIO"),
        pytest.param(b"\xc7\x06\x00\x00\x01\x00", MmioExit, id="store to MMIO"),
        pytest.param(b"\xe4\x40", IoExit, id="IN"),
        pytest.param(b"\xe6\x40", IoExit, id="OUT"),
        pytest.param(b"\x66\xb9\x02\x08\x00\x00\x0f\x32", MsrExit, id="RDMSR"),
        pytest.param(b"\x66\xb9\x0b\x08\x00\x00\x0f\x30", MsrExit, id="WRMSR"),
        pytest.param(b"\xf4", HltExit, id="HLT"),
    ],
    indirect=["code"],
)
def test_it_starts_at_its_vector_whatever_it_was_about_to_finish(pair: Pair, kind: type[Exit]) -> None:
    for _ in range(2):
        exit_ = pair.run()
        assert type(exit_) is kind
        if isinstance(exit_, MsrExit):
            assert pair.x86.handle_msr(pair.vcpu, exit_)
        pair.send(INIT)
        pair.chip.inject_interrupts(pair.vcpu)
        assert pair.chip.get_mp_state(1) is MPState.INIT_RECEIVED
        pair.send(STARTUP | START_PAGE)
        exit_ = pair.run()
        assert isinstance(exit_, IoExit)
        assert exit_.port == STARTED
        sregs = pair.vcpu.get_sregs()  # once more
        sregs.cs, sregs.ds = Segment(type=11), Segment(base=IOAPIC)
        pair.vcpu.complete_io()
        pair.vcpu.set_sregs(sregs)
        pair.vcpu.set_regs(Regs(rip=CODE))


@pytest.mark.parametrize("code", [b"\xf4"], indirect=True)
def test_its_task_priority_is_that_of_reset(pair: Pair) -> None:
    sregs = pair.vcpu.get_sregs()
    sregs.cr8 = 5
    pair.vcpu.set_sregs(sregs)
    state = pair.x86.get_lapic_state(1)
    state.regs[8] = 0x50
    pair.x86.set_lapic_state(1, state)
    assert pair.run() == HltExit()
    pair.chip.inject_interrupts(pair.vcpu)
    assert pair.x86.get_lapic_state(1).regs[8] == 0x50
    pair.send(INIT)
    pair.chip.inject_interrupts(pair.vcpu)
    pair.send(STARTUP | START_PAGE)
    assert isinstance(pair.run(), IoExit)
    pair.chip.inject_interrupts(pair.vcpu)
    assert pair.x86.get_lapic_state(1).regs[8] == 0
    assert pair.vcpu.get_sregs().cr8 == 0


@pytest.mark.parametrize("code", [b"\x66\xb8\x78\x56\x34\x12\x0f\x23\xc0\xf4"], indirect=True)  # mov %eax, %dr0; hlt
def test_debug_registers_and_edx_are_those_of_reset(pair: Pair) -> None:
    start = b"\x0f\x21\xc0\x66\xe7\x10\x66\x89\xd0\x66\xe7\x10"  # the starter's: out %dr0; out %edx
    pair.memory[START : START + len(start)] = start
    assert pair.run() == HltExit()
    pair.send(INIT)
    pair.send(STARTUP | START_PAGE)
    pair.chip.inject_interrupts(pair.vcpu)
    for expected in (0, 0x600):  # SDM vol. 3, table 11-1
        exit_ = pair.run()
        assert isinstance(exit_, IoExit)
        assert int.from_bytes(exit_.data, "little") == expected


@pytest.mark.parametrize("code", [b"\xfb\x90\xf4"], indirect=True)  # sti; nop; hlt
def test_what_is_injected_is_not_replaced_before_the_guest_has_it_and_goes_with_init(pair: Pair) -> None:
    assert pair.run() == HltExit()
    vcpu = pair.vcpu
    assert vcpu.ready_for_interrupt()
    vcpu.interrupt(0x41)
    assert not vcpu.ready_for_interrupt()
    with pytest.raises(HypervisorError, match="EAGAIN"):
        vcpu.interrupt(0x42)
    assert vcpu.get_sregs().interrupt_bitmap == 1 << 0x41
    pair.send(INIT)
    pair.send(STARTUP | START_PAGE)
    pair.chip.inject_interrupts(vcpu)
    assert vcpu.get_sregs().interrupt_bitmap == 0
    exit_ = pair.run()
    assert isinstance(exit_, IoExit)
    assert exit_.port == STARTED


@pytest.mark.parametrize("code", [b"\xf4"], indirect=True)
def test_a_vcpu_that_was_restored_in_hlt_wakes_up(pair: Pair) -> None:
    vcpu, chip = pair.vcpu, pair.x86
    pair.memory[4 * 0x41 : 4 * 0x41 + 4] = struct.pack("<HH", START, 0)
    vcpu.set_regs(Regs(rip=CODE + 1, rsp=0x4000, rflags=0x202))
    state = chip.get_lapic_state(1)
    state.regs[0xF0 >> 4] = 0x1FF
    chip.set_lapic_state(1, state)
    chip.set_mp_state(1, MPState.HALTED)
    pair.send(FIXED | 0x41)
    patience = threading.Timer(5, chip.kick_halted_vcpus)
    patience.start()
    exit_ = pair.run()
    patience.cancel()
    patience.join()
    assert isinstance(exit_, IoExit)
    assert exit_.port == STARTED
