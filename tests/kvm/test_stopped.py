"""A vCPU that is stopped: any thread reads and sets its state, and it goes on."""

from __future__ import annotations

import errno
import signal
import threading
from collections.abc import Iterator

import pytest

import irqchip_kvm.vcpu
from irqchip_core.errors import Closed, HypervisorError
from irqchip_core.hypervisor.exits import InterruptedExit, IoExit
from irqchip_kvm import KvmVcpu, KvmVm

from .guest import COUNT_FOREVER, ENDLESS, OUT_FOREVER, PATIENCE, long_mode_taker, real_mode, running

pytestmark = pytest.mark.kvm

TIMES = 300


@pytest.fixture(params=["endless loop", "halted in the kernel", "storm of exits", "counts"])
def vcpu(vm: KvmVm, request: pytest.FixtureRequest) -> Iterator[KvmVcpu]:
    if request.param == "halted in the kernel":
        vm.create_irqchip()
        yield long_mode_taker(vm)
    else:
        code = {"endless loop": ENDLESS, "storm of exits": OUT_FOREVER, "counts": COUNT_FOREVER}[request.param]
        yield real_mode(vm, code)[0]


def test_it_stands_still_while_its_state_is_read_and_set_and_goes_on_afterwards(vcpu: KvmVcpu) -> None:
    with running(vcpu) as runner:
        for number in range(TIMES):
            with vcpu.stopped() as same:
                assert same is vcpu
                regs = vcpu.get_regs()
                regs.r15 = number
                vcpu.set_regs(regs)
                assert vcpu.get_regs() == regs
        seen = runner.interrupted
        vcpu.kick()
        assert runner.wait_for_more_than(seen)
        with vcpu.stopped():
            assert vcpu.get_regs().r15 == TIMES - 1


def test_several_threads_stop_it_in_turn(vcpu: KvmVcpu) -> None:
    inside: list[None] = []
    errors: list[BaseException] = []

    def stop_often() -> None:
        try:
            for _ in range(TIMES // 3):
                with vcpu.stopped():
                    inside.append(None)
                    assert len(inside) == 1
                    vcpu.get_regs()
                    inside.pop()
        except BaseException as error:
            errors.append(error)

    with running(vcpu) as runner:
        threads = [threading.Thread(target=stop_often) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert not errors
    assert runner.error is None


def test_what_does_not_run_is_not_kicked(vm: KvmVm) -> None:
    vcpu, _ = real_mode(vm, OUT_FOREVER)
    for _ in range(2):
        with vcpu.stopped():
            vcpu.get_regs()
        assert isinstance(vcpu.run(), IoExit)


def test_the_wait_for_a_run_that_does_not_come_back_is_bounded(vm: KvmVm, monkeypatch: pytest.MonkeyPatch) -> None:
    vcpu, _ = real_mode(vm, OUT_FOREVER)
    monkeypatch.setattr(irqchip_kvm.vcpu, "STOP_TIMEOUT", 0.01)
    with vcpu._running, pytest.raises(HypervisorError) as caught, vcpu.stopped():
        pass
    assert caught.value.errno == errno.EBUSY
    with vcpu.stopped(), pytest.raises(HypervisorError) as caught, vcpu.stopped():
        pass  # nor for one that has it
    assert caught.value.errno == errno.EBUSY
    assert vcpu.run() == InterruptedExit()  # the kick
    assert isinstance(vcpu.run(), IoExit)


def test_run_waits_until_it_may(vm: KvmVm) -> None:
    vcpu, _ = real_mode(vm, OUT_FOREVER)
    with vcpu.stopped():
        runner = threading.Thread(target=vcpu.run)
        runner.start()
        assert runner.is_alive()
        before = vcpu.get_regs()
        assert vcpu.get_regs() == before
    runner.join(PATIENCE)
    assert not runner.is_alive()


def test_without_it_a_vcpu_that_executes_is_busy(vm: KvmVm) -> None:
    vcpu, _ = real_mode(vm, ENDLESS)
    with running(vcpu):
        while not vcpu._runner:
            pass
        with pytest.raises(HypervisorError) as caught:
            vcpu.get_regs()
    assert caught.value.errno == errno.EBUSY


def test_a_vcpu_that_is_closed_meanwhile_says_so(vcpu: KvmVcpu) -> None:
    with running(vcpu) as runner:
        with vcpu.stopped():
            vcpu.get_regs()
        vcpu.close()
        with vcpu.stopped(), pytest.raises(Closed):
            vcpu.get_regs()
    assert isinstance(runner.error, Closed)


def test_a_signal_handler_on_its_own_thread_reads_its_state(vm: KvmVm) -> None:
    vcpu, _ = real_mode(vm, ENDLESS)
    seen = []

    def handler(number: int, frame: object) -> None:
        with vcpu.stopped():
            seen.append(vcpu.get_regs())

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        assert vcpu.run() == InterruptedExit()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(seen) == 1
