"""Code that changes, switches modes, is random, or runs on KVM too."""

from __future__ import annotations

import random
import subprocess
import threading
from pathlib import Path

import pytest

from irqchip_core.clock import VirtualClock
from irqchip_core.hypervisor.exits import Exit, HltExit, InterruptedExit, IoExit, MmioExit
from irqchip_core.hypervisor.registers import Regs
from irqchip_core.hypervisor.vcpu import Vcpu, VcpuX86_64, Vm
from irqchip_unicorn import UnicornVm
from irqchip_unicorn.memory import PAGE_SIZE, GuestMemory
from irqchip_unicorn.plugin import UnicornHypervisor
from irqchip_unicorn.translated import TranslatedCode

from .guest import CODE, HALT, Machine, run

GENERAL = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", *(f"r{number}" for number in range(8, 16)))
MODES_SOURCE = Path(__file__).parent / "modes.S"
MODES_BINARY = MODES_SOURCE.with_suffix(".bin")


def test_protocols(vm: UnicornVm) -> None:
    assert isinstance(vm, Vm)
    vcpu = vm.create_vcpu(0)
    assert isinstance(vcpu, Vcpu)
    assert isinstance(vcpu, VcpuX86_64)
    assert vm.hypervisor == UnicornHypervisor.name == "unicorn"


def test_probe() -> None:
    hypervisor = UnicornHypervisor()
    assert hypervisor.probe() is None
    assert hypervisor.rank > 10


# --- code that changes


def test_guest_that_changes_the_next_instruction(vm: UnicornVm) -> None:
    # movb $0x42, 1f+1; 1: mov $0, %al; out %al, $0x10
    code = b"\xc6\x04\x25" + (CODE + 9).to_bytes(4, "little") + b"\x42\xb0\x00\xe6\x10"
    machine = Machine(vm, "long", code)
    assert bytes(machine.port().data) == b"\x42"


def test_host_changes_code_that_ran(vm: UnicornVm) -> None:
    machine = Machine(vm, "long", b"\xb0\x01\xe6\x10\xeb\xfa")  # 1: mov $1, %al; out; jmp 1b
    for value in range(1, 20):
        machine.memory[CODE + 1] = value
        assert bytes(machine.port().data) == bytes((value,))


def test_another_vcpu_changes_code_that_ran(vm: UnicornVm) -> None:
    first = Machine(vm, "long", b"\xb0\x01\xe6\x10\xeb\xfa")
    assert bytes(first.port().data) == b"\x01"
    second = vm.create_vcpu(1)
    second.set_sregs(first.vcpu.get_sregs())
    first.memory[0x2000:0x2009] = b"\xc6\x04\x25\x01\x10\0\0\x07" + HALT  # movb $7, CODE + 1; hlt
    second.set_regs(Regs(rip=0x2000))
    assert run(second) == HltExit()
    assert bytes(first.port().data) == b"\x07"


def test_data_beside_code_is_no_change_of_code(vm: UnicornVm) -> None:
    machine = Machine(vm, "long", b"\xe6\x10\xeb\xfc")
    for value in range(20):
        machine.memory[CODE + 0x800] = value
        machine.port()
    assert not machine.vcpu._processor._code.changed()


# --- the same again


def test_a_run_repeats_exactly_in_virtual_time() -> None:
    # 1: rdtsc; out %al, $0x10; in $0x11, %al; mov %eax, %ecx; and $0xff, %ecx; 2: loop 2b; sti; jmp 1b
    code = b"\x0f\x31\xe6\x10\xe4\x11\x89\xc1\x81\xe1\xff\0\0\0\xff\xc1\xe2\xfe\xfb\xeb\xeb"
    traces = []
    for _ in range(5):
        with UnicornVm(VirtualClock()) as vm:
            machine = Machine(vm, "long", code)
            trace_: list[object] = []
            for number in range(100):
                exit_ = machine.run()
                trace_.append((type(exit_), machine.vcpu.get_regs(), vm.clock.now(), vm.instructions))
                if isinstance(exit_, IoExit) and not exit_.is_write:
                    exit_.data[0] = number
                machine.vcpu.set_interrupt_window_requested(number % 3 == 0)
                if machine.vcpu.ready_for_interrupt():
                    machine.vcpu.interrupt(0x20 + number)
            traces.append(trace_)
    assert traces == [traces[0]] * 5
    assert len({repr(step) for step in traces[0]}) > 90


# --- modes


def test_real_to_protected_to_long_and_back(vm: UnicornVm) -> None:
    memory = vm.map_memory(0, 0x20000)
    code = MODES_BINARY.read_bytes()
    memory[0x7C00 : 0x7C00 + len(code)] = code
    vcpu = vm.create_vcpu(0)
    sregs = vcpu.get_sregs()
    sregs.cs.base = sregs.cs.selector = 0
    vcpu.set_sregs(sregs)
    vcpu.set_regs(Regs(rip=0x7C00, rsp=0x7000))
    seen = []
    while isinstance(exit_ := run(vcpu), IoExit):
        seen.append((exit_.port, bytes(exit_.data)))
    assert exit_ == HltExit()
    assert seen == [(0x16, b"r"), (0x32, b"p"), (0x64, b"l"), (0x64, b"u"), (0x64, b"s"), (0x32, b"c"), (0x16, b"R")]


@pytest.mark.binutils
def test_checked_in_bytes_are_those_of_the_source(tmp_path: Path) -> None:
    object_file, binary = tmp_path / "modes.o", tmp_path / "modes.bin"
    subprocess.run(["as", "--64", "-mx86-used-note=no", "-o", object_file, MODES_SOURCE], check=True)
    link = ["ld", "-m", "elf_x86_64", "-N", "-e", "0", "-Ttext", "0x7c00", "--oformat", "binary"]
    subprocess.run([*link, "-o", binary, object_file], check=True)
    assert binary.read_bytes() == MODES_BINARY.read_bytes()


# --- hostile guests


@pytest.mark.parametrize("mode", ["real", "protected", "long"])
@pytest.mark.parametrize("seed", range(20))
def test_random_bytes(vm: UnicornVm, mode: str, seed: int) -> None:
    chance = random.Random(seed)
    machine = Machine(vm, mode, b"", user=mode != "real" and seed % 4 == 3)
    vcpu = machine.vcpu
    for _ in range(12):
        machine.memory[CODE : CODE + 0x1000] = chance.randbytes(0x1000)
        machine.enter()
        values = {name: chance.choice((0, 1, CODE, 0x200000, chance.getrandbits(64))) for name in GENERAL}
        vcpu.set_regs(Regs(**values, rip=CODE))
        timer = threading.Timer(0.05, vcpu.kick)
        timer.start()
        exits = 0
        while vcpu.run() != InterruptedExit():
            exits += 1
            if exits == 50:
                vcpu.kick()
            if exits % 7 == 0 and vcpu.ready_for_interrupt():
                vcpu.interrupt(chance.getrandbits(8))
            if exits % 11 == 0:
                vcpu.inject_nmi()
        timer.cancel()
        timer.join()


# --- the same on KVM

# Straight code without accesses to what this machine's KVM cannot do.
_ALU = (
    b"\x48\x01\xd8", b"\x48\x11\xd1", b"\x48\x29\xf0", b"\x48\x19\xfa", b"\x48\x0f\xaf\xc3", b"\x48\xc1\xc0\x07",
    b"\x48\xd3\xe2", b"\x48\xd3\xfb", b"\x48\xf7\xe1", b"\x48\xf7\xd8", b"\x48\x0f\xb6\xc8", b"\x48\x0f\xc8",
    b"\x48\x87\xd6", b"\xf8", b"\xf9", b"\x50", b"\x5f", b"\x48\x31\xff", b"\x48\x85\xc0",
    b"\x0f\x92\xc0", b"\x48\x0f\xba\xe0\x05", b"\x48\x8d\x44\x53\x07", b"\xf0\x48\x0f\xc1\x1c\x25\x00\x70\x00\x00",
)  # fmt: skip


@pytest.mark.kvm
@pytest.mark.parametrize("seed", range(8))
def test_registers_after_a_computation_are_those_of_kvm(vm: UnicornVm, seed: int) -> None:
    from irqchip_kvm import Kvm

    chance = random.Random(seed)
    code = b"".join(chance.choices(_ALU, k=200)) + b"\x48\x31\xc0" + HALT
    start = Regs(*(chance.getrandbits(64) for _ in range(6)))
    start.rip, start.rsp = CODE, 0x9000
    results = []
    with Kvm() as kvm, kvm.create_vm() as other:
        for host in (vm, other):
            machine: Machine[VcpuX86_64] = Machine(host, "long", code)
            machine.vcpu.set_regs(start)
            assert machine.run() == HltExit()
            results.append((machine.vcpu.get_regs(), bytes(machine.memory[0x7000:0x9000])))
    assert results[0] == results[1]


@pytest.mark.kvm
@pytest.mark.parametrize("mode", ["real", "long"])
@pytest.mark.parametrize(
    ("code", "steps"),
    [
        pytest.param(b"\xfb\x90\xf4\x90\xf4", ["hlt", 0x41, "handler", "hlt"], id="interrupt"),
        pytest.param(b"\x90\xf4\x90\xf4", ["hlt", "nmi", "handler", "hlt"], id="nmi"),
        pytest.param(b"\x0f\x0b", ["handler"], id="ud2"),
        pytest.param(b"\xe4\x10\xe6\x11\xf4", ["in", "out", "hlt"], id="ports"),
        pytest.param(b"\xcc\xf4", ["handler", "hlt"], id="int3"),
        pytest.param(b"\x31\xc9\xf7\xf1", ["handler"], id="div"),
    ],
)
def test_events_are_those_of_kvm(vm: UnicornVm, mode: str, code: bytes, steps: list[str | int]) -> None:
    from irqchip_kvm import Kvm

    if mode == "long" and code[0] == 0xCC:
        pytest.skip("not every software KVM emulates INT3 in long mode")
    with Kvm() as kvm, kvm.create_vm() as other:
        assert [*trace(vm, mode, code, steps)] == [*trace(other, mode, code, steps)]


def trace(vm: Vm, mode: str, code: bytes, steps: list[str | int]) -> list[object]:
    machine: Machine[VcpuX86_64] = Machine(vm, mode, code)
    seen: list[object] = []
    for step in steps:
        if isinstance(step, int):
            machine.vcpu.interrupt(step)
            continue
        if step == "nmi":
            machine.vcpu.inject_nmi()
            continue
        exit_ = machine.run()
        seen.append(describe(exit_))
        if isinstance(exit_, HltExit):
            regs, sregs = machine.vcpu.get_regs(), machine.vcpu.get_sregs()
            regs.rflags &= ~(1 << 16)
            seen.append((regs.rip, regs.rsp, regs.rax & 0xFF, regs.rflags & 1 << 9, sregs.cs.selector))
            if step == "handler":
                frame = machine.stack(3)
                seen.append([*frame[:2], frame[2] & (1 << 9 | 1 << 8)])
    return seen


def describe(exit_: Exit) -> object:
    if isinstance(exit_, IoExit):
        data = bytes(exit_.data)
        if not exit_.is_write:
            exit_.data[:] = b"\x77"
        return exit_.port, exit_.size, data if exit_.is_write else None
    assert not isinstance(exit_, MmioExit)
    return exit_


def test_a_guest_that_jumps_to_each_byte_takes_no_more_memory_for_ever() -> None:
    memory = GuestMemory()
    memory.add(0, 16 * PAGE_SIZE)
    code = TranslatedCode(memory)
    for page in range(0, 16 * PAGE_SIZE, PAGE_SIZE):
        for offset in range(PAGE_SIZE):
            code.add(page + offset, PAGE_SIZE - offset)
        if code.changed():
            break
    else:
        pytest.fail("it keeps everything")
    assert not code.changed()
