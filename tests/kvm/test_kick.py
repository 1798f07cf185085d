"""Kicks: none is lost in any state of the vCPU, and kicks before one return are coalesced."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from irqchip_core.errors import Closed, HypervisorError
from irqchip_core.hypervisor.exits import InterruptedExit, IoExit
from irqchip_kvm import KvmVcpu, KvmVm

from .guest import (
    COUNT_FOREVER,
    ENDLESS,
    HALT,
    OUT_FOREVER,
    PATIENCE,
    Runner,
    long_mode_taker,
    real_mode,
    running,
)

pytestmark = pytest.mark.kvm

KICKS = 3000


@pytest.fixture(params=["endless loop", "halted in the kernel", "storm of exits"])
def vcpu(vm: KvmVm, request: pytest.FixtureRequest) -> Iterator[KvmVcpu]:
    if request.param == "halted in the kernel":
        vm.create_irqchip()
        yield long_mode_taker(vm)
    else:
        yield real_mode(vm, ENDLESS if request.param == "endless loop" else OUT_FOREVER)[0]


def test_kick_before_run(vcpu: KvmVcpu) -> None:
    vcpu.kick()
    assert vcpu.run() == InterruptedExit()


def test_kicks_before_run_merge(vm: KvmVm) -> None:
    vcpu, _ = real_mode(vm, OUT_FOREVER)
    for _ in range(5):
        vcpu.kick()
    assert vcpu.run() == InterruptedExit()
    assert isinstance(vcpu.run(), IoExit)


def test_kick_between_two_exits_reaches_the_next_run(vm: KvmVm) -> None:
    vcpu, _ = real_mode(vm, OUT_FOREVER)
    assert isinstance(vcpu.run(), IoExit)
    vcpu.kick()
    assert vcpu.run() == InterruptedExit()
    assert isinstance(vcpu.run(), IoExit)


def test_thousands_of_kicks_in_turn(vcpu: KvmVcpu) -> None:
    with running(vcpu) as runner:
        for number in range(KICKS):
            seen = runner.interrupted
            vcpu.kick()
            assert runner.wait_for_more_than(seen), f"kick {number} was lost"


def test_kicks_from_several_threads(vcpu: KvmVcpu) -> None:
    lost: list[int] = []

    def kick_often(runner: Runner) -> None:
        for number in range(KICKS // 4):
            seen = runner.interrupted
            vcpu.kick()
            if not runner.wait_for_more_than(seen):
                lost.append(number)
                return

    with running(vcpu) as runner:
        kickers = [threading.Thread(target=kick_often, args=(runner,)) for _ in range(4)]
        for kicker in kickers:
            kicker.start()
        for kicker in kickers:
            kicker.join()
    assert not lost


def test_kicks_around_the_entry_of_run(vm: KvmVm) -> None:
    """The kicker aims at the moment when the vCPU's thread is about to enter the guest."""
    vcpu, _ = real_mode(vm, ENDLESS)
    about_to_run, answered = threading.Semaphore(0), threading.Semaphore(0)

    def run_often() -> None:
        for _ in range(KICKS):
            about_to_run.release()
            assert vcpu.run() == InterruptedExit()
            answered.release()

    thread = threading.Thread(target=run_often)
    thread.start()
    rounds = 0
    try:
        for _ in range(KICKS):
            assert about_to_run.acquire(timeout=PATIENCE)
            vcpu.kick()
            assert answered.acquire(timeout=PATIENCE)
            rounds += 1
    finally:
        while thread.is_alive():
            vcpu.kick()
            thread.join(0.01)
    assert rounds == KICKS


def test_kick_after_the_running_thread_has_ended(vm: KvmVm) -> None:
    vcpu, _ = real_mode(vm, OUT_FOREVER)
    with running(vcpu):
        pass
    vcpu.kick()
    assert vcpu.run() == InterruptedExit()


def test_kick_of_a_closed_vcpu(vm: KvmVm) -> None:
    vcpu, _ = real_mode(vm, HALT)
    vcpu.close()
    vcpu.kick()
    with pytest.raises(Closed):
        vcpu.run()


def test_kick_gets_through_where_all_signals_are_blocked(vm: KvmVm) -> None:
    vcpu, _ = real_mode(vm, ENDLESS)
    blocked = threading.Event()
    seen: list[object] = []

    def run() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        blocked.set()
        seen.append(vcpu.run())

    thread = threading.Thread(target=run)
    thread.start()
    assert blocked.wait(PATIENCE)
    vcpu.kick()
    thread.join(PATIENCE)
    assert seen == [InterruptedExit()]


def test_another_signal_interrupts_too(vm: KvmVm) -> None:
    """Its Python handler runs, on the main thread as always, and `run` comes back."""
    vcpu, _ = real_mode(vm, ENDLESS)
    received = []
    old = signal.signal(signal.SIGALRM, lambda number, frame: received.append(number))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        assert vcpu.run() == InterruptedExit()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert received == [signal.SIGALRM]


def test_the_guest_goes_on_where_it_was(vm: KvmVm) -> None:
    vcpu, memory = real_mode(vm, COUNT_FOREVER)
    with running(vcpu) as runner:
        for _ in range(20):
            seen, count = runner.interrupted, bytes(memory[0x2000:0x2002])
            vcpu.kick()
            assert runner.wait_for_more_than(seen)
            while bytes(memory[0x2000:0x2002]) == count:  # the suite's timeout bounds this
                pass


def test_a_running_vcpu_refuses_others(vm: KvmVm) -> None:
    vcpu, memory = real_mode(vm, COUNT_FOREVER)
    with running(vcpu):
        while not any(memory[0x2000:0x2002]):  # until it is in the guest; the suite's timeout bounds this
            pass
        with pytest.raises(HypervisorError, match="running on thread") as run:
            vcpu.run()
        with pytest.raises(HypervisorError, match="own thread") as regs:
            vcpu.get_regs()
    assert (run.value.call, regs.value.call) == ("KVM_RUN", "KVM_GET_REGS")


@pytest.mark.parametrize("close", ["vm", "vcpu"])
def test_close_kicks_a_running_vcpu_out(vm: KvmVm, vcpu: KvmVcpu, close: str) -> None:
    runner = Runner(vcpu)
    runner.start()
    (vm if close == "vm" else vcpu).close()
    runner.join(PATIENCE)
    assert not runner.is_alive()
    assert isinstance(runner.error, Closed)


def test_closing_vcpus_that_start_to_run(vm: KvmVm) -> None:
    vm.map_memory(0, 0x2000)[0x1000:0x1002] = ENDLESS
    for number in range(200):
        vcpu = vm.create_vcpu(number)
        runner = Runner(vcpu)
        runner.start()
        vcpu.close()
        runner.join(PATIENCE)
        assert isinstance(runner.error, Closed), runner


def in_another_process(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_signal_that_has_a_handler_is_left_alone() -> None:
    script = """
import signal
from irqchip_kvm.ioctl import KickSignal
signal.signal(signal.SIGRTMIN, lambda number, frame: None)
taken = KickSignal().number
assert KickSignal().number == taken
print(taken - signal.SIGRTMIN)
"""
    assert in_another_process(script) == "1\n"


def test_no_signal_left() -> None:
    script = """
import signal
from irqchip_core.errors import Unsupported
from irqchip_kvm.ioctl import KickSignal
for number in range(signal.SIGRTMIN, signal.SIGRTMAX + 1):
    signal.signal(number, lambda number, frame: None)
try:
    KickSignal()
except Unsupported as error:
    print(error)
"""
    assert "every real-time signal has a handler" in in_another_process(script)


def test_a_forked_child_can_kick_its_own_vcpus() -> None:
    script = """
import os, threading
from irqchip_core.hypervisor.exits import InterruptedExit
from irqchip_kvm import Kvm

def make():
    vm = Kvm().create_vm()
    vm.map_memory(0xfffff000, 0x1000)[0xff0:0xff2] = b"\\xeb\\xfe"  # jmp . at the reset vector
    return vm, vm.create_vcpu(0)

vm, vcpu = make()
vcpu.kick()
assert vcpu.run() == InterruptedExit()
child = os.fork()
if child == 0:
    ours, mine = make()
    threading.Timer(0.2, mine.kick).start()
    os._exit(0 if mine.run() == InterruptedExit() else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert in_another_process(script) == "0\n"
