"""Machines of one vCPU for the tests: real mode with a few bytes of code, and long mode with long.S."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from irqchip_core.hypervisor.exits import Exit, InterruptedExit, IoExit
from irqchip_core.hypervisor.registers import Regs
from irqchip_kvm import KvmVcpu, KvmVm

CODE = 0x1000
MEMORY = 0x10000
PATIENCE = 10.0
"""Seconds after which what should happen is given up."""

ENDLESS = b"\xeb\xfe"  # jmp .
HALT = b"\xf4"  # hlt
OUT_FOREVER = b"\xe6\x10\xeb\xfc"  # 1: out %al, $0x10; jmp 1b
COUNT_FOREVER = b"\xff\x06\x00\x20\xeb\xfa"  # 1: incw 0x2000; jmp 1b

_TAKEN, _READY = 0x10, 0x11  # ports of long.S
_PML4, _PDPT, _PD, _IDT = 0x2000, 0x3000, 0x8000, 0x4000
_STUBS = CODE + 0x100


def real_mode(vm: KvmVm, code: bytes, vcpu_id: int = 0) -> tuple[KvmVcpu, memoryview]:
    """A vCPU at `code` in real mode with all segments at 0, and the 64 KiB of memory it has."""
    memory = vm.map_memory(0, MEMORY)
    memory[CODE : CODE + len(code)] = code
    vcpu = vm.create_vcpu(vcpu_id)
    sregs = vcpu.get_sregs()
    sregs.cs.base, sregs.cs.selector = 0, 0
    vcpu.set_sregs(sregs)
    vcpu.set_regs(Regs(rip=CODE, rsp=0x8000))
    return vcpu, memory


def long_mode(vm: KvmVm, code: bytes) -> KvmVcpu:
    """A vCPU at `code` in long mode, with memory and an IDT whose entry v points at stub v of long.S."""
    memory = vm.map_memory(0, MEMORY)
    memory[CODE : CODE + len(code)] = code
    # The first and the fourth GiB are mapped to themselves, the latter for the local APIC.
    struct.pack_into("<Q", memory, _PML4, _PDPT | 3)
    struct.pack_into("<Q", memory, _PDPT, _PD | 3)
    struct.pack_into("<Q", memory, _PDPT + 3 * 8, (_PD + 0x1000) | 3)
    for page in range(512):
        struct.pack_into("<Q", memory, _PD + 8 * page, page << 21 | 0x83)
        struct.pack_into("<Q", memory, _PD + 0x1000 + 8 * page, 3 << 30 | page << 21 | 0x83)
    for vector in range(256):
        struct.pack_into("<HHHHQ", memory, _IDT + 16 * vector, _STUBS + 8 * vector, 8, 0x8E00, 0, 0)
    struct.pack_into("<Q", memory, 0x6008, 0x00209A0000000000)  # GDT: a 64-bit code segment
    struct.pack_into("<Q", memory, 0x6010, 0x0000920000000000)  # and data

    vcpu = vm.create_vcpu(0)
    vcpu.set_cpuid(vm.supported_cpuid())
    sregs = vcpu.get_sregs()
    sregs.gdt.base, sregs.gdt.limit = 0x6000, 0x17
    sregs.idt.base, sregs.idt.limit = _IDT, 0xFFF
    sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer = 0x80000011, _PML4, 0x20, 0x500
    code_segment = sregs.cs
    code_segment.base, code_segment.selector, code_segment.type, code_segment.l = 0, 8, 11, 1
    for segment in (sregs.ss, sregs.ds, sregs.es):
        segment.base, segment.selector = 0, 16
    vcpu.set_sregs(sregs)
    vcpu.set_regs(Regs(rip=CODE, rsp=0x7000))
    return vcpu


def long_mode_taker(vm: KvmVm) -> KvmVcpu:
    """A vCPU in the HLT of long.S, its local APIC in the kernel and enabled."""
    vcpu = long_mode(vm, (Path(__file__).parent / "long.bin").read_bytes())
    lapic = vcpu.get_lapic_state()
    lapic.regs[0xF] |= 0x100  # spurious-interrupt vector register: APIC software enable
    lapic.regs[0x35] = 0x10000  # LVT LINT0: masked, so nothing comes from the PICs
    vcpu.set_lapic_state(lapic)
    ready = vcpu.run()
    assert isinstance(ready, IoExit), ready
    assert ready.port == _READY
    return vcpu


def run_until_exit(vcpu: KvmVcpu) -> Exit:
    """The next exit that is no kick; fails if none comes."""
    over = threading.Event()

    def give_up() -> None:
        over.set()
        vcpu.kick()

    timer = threading.Timer(PATIENCE, give_up)
    timer.start()
    try:
        while True:
            exit_ = vcpu.run()
            assert not over.is_set(), "the guest does not get anywhere"
            if not isinstance(exit_, InterruptedExit):
                return exit_
    finally:
        timer.cancel()
        timer.join()


def taken(vcpu: KvmVcpu) -> int:
    """The vector of the next interrupt that long.S takes."""
    exit_ = run_until_exit(vcpu)
    assert isinstance(exit_, IoExit), exit_
    assert exit_.port == _TAKEN
    return exit_.data[0]


class Runner(threading.Thread):
    """A thread that runs a vCPU until it is to stop, and counts the exits."""

    def __init__(self, vcpu: KvmVcpu) -> None:
        super().__init__()
        self.vcpu = vcpu
        self.exits = 0
        self.interrupted = 0
        self.error: BaseException | None = None
        self._stopping = False
        self._changed = threading.Condition()

    def run(self) -> None:
        try:
            while not self._stopping:
                exit_ = self.vcpu.run()
                self.exits += 1
                if isinstance(exit_, InterruptedExit):
                    with self._changed:
                        self.interrupted += 1
                        self._changed.notify_all()
        except BaseException as error:
            self.error = error

    def wait_for_more_than(self, interrupted: int) -> bool:
        """Whether more exits than that were kicks before patience ended."""
        with self._changed:
            return self._changed.wait_for(lambda: self.interrupted > interrupted, PATIENCE)

    def stop(self) -> None:
        self._stopping = True
        self.vcpu.kick()
        self.join(PATIENCE)
        assert not self.is_alive(), "the thread does not come back from run()"


@contextmanager
def running(vcpu: KvmVcpu) -> Iterator[Runner]:
    """The vCPU on a thread of its own."""
    runner = Runner(vcpu)
    runner.start()
    try:
        yield runner
    finally:
        runner.stop()
