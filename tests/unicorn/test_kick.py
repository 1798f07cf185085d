"""Kicks: none is lost, and kicks before one return are coalesced. Closing the VM ends a vCPU's run."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest

from irqchip_core.errors import Closed, HypervisorError, InvalidArgument
from irqchip_core.hypervisor.exits import HltExit, InterruptedExit, IoExit
from irqchip_unicorn import UnicornVm
from irqchip_unicorn.engine import Engine

from .guest import CODE, ENDLESS, HALT, PATIENCE, Machine

KICKS = 3000
OUT_FOREVER = b"\xe6\x10\xeb\xfc"
REP_FOREVER = b"\xb9\xff\xff\xf3\xac\xeb\xf9"  # 1: mov $0xffff, %cx; rep lodsb; jmp 1b
FAULT_FOREVER = b"\x0f\x0b"  # ud2, and the handler returns to it


@pytest.mark.parametrize("code", [ENDLESS, OUT_FOREVER, REP_FOREVER], ids=["endless", "exits", "rep"])
def test_thousands_of_kicks_in_turn(vm: UnicornVm, code: bytes) -> None:
    vcpu = Machine(vm, "real", code).vcpu
    answered = threading.Semaphore(0)
    stopping = threading.Event()

    def run() -> None:
        while not stopping.is_set():
            if vcpu.run() == InterruptedExit():
                answered.release()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        for number in range(KICKS):
            vcpu.kick()
            assert answered.acquire(timeout=PATIENCE), f"kick {number} was lost"
    finally:
        stopping.set()
        vcpu.kick()
        thread.join(PATIENCE)
    assert not thread.is_alive()


def test_kicks_around_the_entry_of_run(vm: UnicornVm) -> None:
    vcpu = Machine(vm, "real", ENDLESS).vcpu
    about_to_run, answered = threading.Semaphore(0), threading.Semaphore(0)
    exits = []

    def run() -> None:
        for _ in range(KICKS):
            about_to_run.release()
            exits.append(vcpu.run())
            answered.release()

    thread = threading.Thread(target=run)
    thread.start()
    for _ in range(KICKS):
        assert about_to_run.acquire(timeout=PATIENCE)
        vcpu.kick()
        assert answered.acquire(timeout=PATIENCE)
    thread.join(PATIENCE)
    assert exits == [InterruptedExit()] * KICKS


def test_kicks_before_run_merge(vm: UnicornVm) -> None:
    vcpu = Machine(vm, "real", OUT_FOREVER).vcpu
    for _ in range(5):
        vcpu.kick()
    assert vcpu.run() == InterruptedExit()
    assert isinstance(vcpu.run(), IoExit)


def test_a_guest_that_only_faults_can_be_kicked(vm: UnicornVm) -> None:
    machine = Machine(vm, "real", FAULT_FOREVER)
    machine.memory[6 * 4 : 6 * 4 + 2] = CODE.to_bytes(2, "little")  # its handler is itself
    timer = threading.Timer(0.1, machine.vcpu.kick)
    timer.start()
    assert machine.vcpu.run() == InterruptedExit()
    timer.join()


def test_an_endless_loop_of_two_vcpus(vm: UnicornVm) -> None:
    first = Machine(vm, "real", b"\xff\x06\x00\x70\xeb\xfa")  # 1: incw 0x7000; jmp 1b
    second = vm.create_vcpu(1)
    second.set_sregs(first.vcpu.get_sregs())
    second.set_regs(first.vcpu.get_regs())
    seen: list[object] = []
    threads = [threading.Thread(target=lambda vcpu=vcpu: seen.append(vcpu.run())) for vcpu in (first.vcpu, second)]
    for thread in threads:
        thread.start()
    while first.vcpu.instructions < 100_000 or second.instructions < 100_000:
        pass  # the suite's timeout bounds this
    for vcpu in (first.vcpu, second):
        vcpu.kick()
    for thread in threads:
        thread.join(PATIENCE)
    assert seen == [InterruptedExit(), InterruptedExit()]


def test_locked_counter_of_two_vcpus(vm: UnicornVm) -> None:
    # mov $N, %ecx; 1: lock incl 0x7000; loop 1b; hlt
    rounds = 200_000
    code = b"\xb9" + rounds.to_bytes(4, "little") + b"\xf0\xff\x04\x25\x00\x70\x00\x00\xe2\xf6" + HALT
    first = Machine(vm, "long", code)
    second = vm.create_vcpu(1)
    second.set_sregs(first.vcpu.get_sregs())
    second.set_regs(first.vcpu.get_regs())
    seen: list[object] = []
    threads = [threading.Thread(target=lambda vcpu=vcpu: seen.append(vcpu.run())) for vcpu in (first.vcpu, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert seen == [HltExit(), HltExit()]
    assert int.from_bytes(first.memory[0x7000:0x7004], "little") == 2 * rounds
    assert vm.instructions == 2 * (2 * rounds + 2)


@pytest.mark.parametrize("close", ["vm", "vcpu"])
def test_close_gets_a_running_vcpu_out(vm: UnicornVm, close: str) -> None:
    vcpu = Machine(vm, "real", ENDLESS).vcpu
    errors: list[BaseException] = []

    def run() -> None:
        try:
            vcpu.run()
        except Closed as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    while not vcpu.instructions:
        pass  # until it is in the guest; the suite's timeout bounds this
    with pytest.raises(HypervisorError, match="another thread") as caught:
        vcpu.get_regs()
    assert caught.value.errno == 16
    (vm if close == "vm" else vcpu).close()
    thread.join(PATIENCE)
    assert [type(error) for error in errors] == [Closed]
    vcpu.kick()
    vcpu.close()


def test_use_after_close(vm: UnicornVm) -> None:
    machine = Machine(vm, "real", ENDLESS)
    vm.close()
    vm.close()
    assert machine.vcpu.closed
    uses = (machine.vcpu.run, machine.vcpu.get_regs, machine.vcpu.inject_nmi, vm.supported_cpuid)
    for use in (*uses, lambda: vm.map_memory(0, 4096), lambda: vm.create_vcpu(1), lambda: machine.vcpu.interrupt(1)):
        with pytest.raises(Closed):
            use()
    machine.memory[0] = 1  # still there


def test_bad_hosts(vm: UnicornVm) -> None:
    vm.map_memory(0x10000, 0x1000)
    for start, size in ((1, 4096), (0, 1), (0, 0), (-4096, 4096), (0x10000, 4096), (0xF000, 0x2000), (1 << 51, 4096)):
        with pytest.raises(InvalidArgument):
            vm.map_memory(start, size)
    vcpu = vm.create_vcpu(0)
    with pytest.raises(HypervisorError, match="EEXIST"):
        vm.create_vcpu(0)
    with pytest.raises(InvalidArgument):
        vm.create_vcpu(-1)
    sregs = vcpu.get_sregs()
    for name, value in (
        ("cr0", 1 << 31), ("efer", 0x400), ("efer", 0x1000), ("cr8", 16),
        ("apic_base", 1 << 64), ("apic_base", 0xFEE00400), ("apic_base", 0xFEE00801), ("apic_base", 1 << 41),
    ):  # fmt: skip
        bad = vcpu.get_sregs()
        setattr(bad, name, value)
        with pytest.raises(InvalidArgument):
            vcpu.set_sregs(bad)
        assert vcpu.get_sregs() == sregs
    regs = vcpu.get_regs()
    regs.rax = 1 << 64
    with pytest.raises(InvalidArgument):
        vcpu.set_regs(regs)
    assert vcpu.get_regs().rax == 0


def run_and_close() -> weakref.ref[Engine]:
    with UnicornVm() as vm:
        machine = Machine(vm, "long", HALT)
        assert machine.run() == HltExit()
        return weakref.ref(machine.vcpu._processor.engine)


def test_closed_vcpus_leave_nothing_behind() -> None:
    engines = [run_and_close() for _ in range(30)]
    gc.collect()
    assert not any(engine() for engine in engines)


def test_a_number_can_be_used_again(vm: UnicornVm) -> None:
    for _ in range(3):
        with vm.create_vcpu(5) as vcpu:
            assert vcpu.id == 5
