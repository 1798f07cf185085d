"""vCPUs that move a virtual clock on: how far they run, and that the clock shows what was executed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from irqchip_core.clock import VirtualClock
from irqchip_core.hypervisor.exits import HltExit, InterruptedExit, IoExit
from irqchip_core.hypervisor.registers import Regs
from irqchip_unicorn import UnicornVm
from irqchip_unicorn.vcpu import NS_PER_INSTRUCTION, TURN

from .guest import CODE, HALT, HANDLER_SIZE, HANDLERS, Machine

ENDLESS = b"\xeb\xfe"
UD2 = b"\x0f\x0b"


@pytest.fixture
def vm() -> Iterator[UnicornVm]:
    with UnicornVm(VirtualClock()) as vm:
        yield vm


@pytest.fixture
def clock(vm: UnicornVm) -> VirtualClock:
    assert isinstance(vm.clock, VirtualClock)
    return vm.clock


def test_an_endless_loop_takes_its_turn_and_no_more(vm: UnicornVm, clock: VirtualClock) -> None:
    vcpu = Machine(vm, "long", ENDLESS).vcpu
    for turn in range(1, 4):
        assert vcpu.run() == InterruptedExit()
        assert vcpu.instructions == turn * TURN
        assert clock.now() == turn * TURN * NS_PER_INSTRUCTION


@pytest.mark.parametrize("instructions", [1, 7, 1999])
def test_a_turn_ends_at_the_next_alarm(vm: UnicornVm, clock: VirtualClock, instructions: int) -> None:
    vcpu = Machine(vm, "long", ENDLESS).vcpu
    rung: list[int] = []
    alarm = clock.alarm(lambda: rung.append(clock.now()))
    alarm.set(instructions * NS_PER_INSTRUCTION)
    alarm.start()
    assert vcpu.run() == InterruptedExit()
    assert vcpu.instructions == instructions
    assert rung == []
    clock.advance()
    assert rung == [instructions * NS_PER_INSTRUCTION]


def test_an_alarm_that_is_overdue_does_not_hold_the_guest(vm: UnicornVm, clock: VirtualClock) -> None:
    vcpu = Machine(vm, "long", ENDLESS).vcpu
    alarm = clock.alarm(lambda: None)
    alarm.set(0)
    alarm.start()
    for number in range(1, 4):
        assert vcpu.run() == InterruptedExit()
        assert vcpu.instructions == number


def test_rdtsc_counts_the_instructions_between(vm: UnicornVm) -> None:
    # rdtsc; mov %eax, %esi; mov $100, %ecx; 1: loop 1b; rdtsc; hlt
    machine = Machine(vm, "long", b"\x0f\x31\x89\xc6\xb9\x64\0\0\0\xe2\xfe\x0f\x31" + HALT)
    assert machine.run() == HltExit()
    regs = machine.vcpu.get_regs()
    between = (regs.rax - regs.rsi) / NS_PER_INSTRUCTION
    assert 102 <= between <= 104


def test_a_guest_that_waits_for_a_time_comes_to_it(vm: UnicornVm, clock: VirtualClock) -> None:
    # 1: rdtsc; cmp $1000000, %eax; jb 1b; hlt
    vcpu = Machine(vm, "long", b"\x0f\x31\x3d\x40\x42\x0f\x00\x72\xf7" + HALT).vcpu
    for _ in range(1000):
        if vcpu.run() == HltExit():
            break
    else:
        pytest.fail("it does not come")
    assert 1_000_000 < clock.now() < 1_000_000 + 10 * NS_PER_INSTRUCTION


def test_faults_without_end_take_time_too(vm: UnicornVm, clock: VirtualClock) -> None:
    # The handler of #UD begins with what faults: no instruction is ever done.
    machine = Machine(vm, "long", UD2)
    machine.gate(6, ist=1)
    handler = HANDLERS + 6 * HANDLER_SIZE
    machine.memory[handler : handler + 2] = UD2
    assert machine.vcpu.run() == InterruptedExit()
    assert machine.vcpu.get_regs().rip == handler
    assert clock.now() == TURN * NS_PER_INSTRUCTION


def test_two_vcpus_share_the_clock(vm: UnicornVm, clock: VirtualClock) -> None:
    first = Machine(vm, "long", b"\xe6\x10" + ENDLESS).vcpu  # out %al, $0x10
    second = vm.create_vcpu(1)
    second.set_sregs(first.get_sregs())
    second.set_regs(Regs(rip=CODE + 2))
    assert isinstance(first.run(), IoExit)
    assert second.run() == InterruptedExit()
    assert first.run() == InterruptedExit()
    assert clock.now() == vm.instructions * NS_PER_INSTRUCTION
    assert second.tsc() == first.tsc() == clock.now()
