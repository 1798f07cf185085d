"""`Machine`: what its users may do wrong, what may fail in it, and that it always closes."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable
from typing import Any, cast

import pytest

from irqchip_core.bus import Access, BusDevice
from irqchip_core.errors import Closed, Exhausted, InvalidArgument, IrqChipError, WrongType
from irqchip_core.hypervisor.exits import FailEntryExit, InternalErrorExit, UnknownExit
from irqchip_core.selection import create_irqchip, create_vm
from irqchip_core.x86.chip import IrqChipX86_64
from irqchip_core.x86.reset import connect_local_interrupts
from irqchip_vmm import Machine, Outcome, load_file, load_image
from irqchip_vmm.memory import GuestMemory
from tests.guests.assemble import GUESTS

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("no_leaks"), pytest.mark.timeout(60)]
TIMEOUT = 20


def loaded(machine: Machine, guest: str) -> Machine:
    machine.load(load_file(GUESTS / f"{guest}.bin", memory_size=machine.memory.size))
    return machine


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        ({"memory_size": 0}, "memory_size"),
        ({"memory_size": (1 << 20) + 1}, "memory_size"),
        ({"memory_size": (3 << 30) + 4096}, "memory_size"),
        ({"vcpu_count": 0}, "vcpu_count"),
        ({"vcpu_count": 255}, "vcpu_count"),
    ],
)
def test_sizes_out_of_range(arguments: dict[str, Any], argument: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Machine(**arguments)
    assert caught.value.argument == argument
    assert caught.value.remedy


def test_a_vm_and_a_chip_made_before_stay_the_callers() -> None:
    vm = create_vm("kvm")
    chip = create_irqchip("kvm_kernel", vm=vm, vcpu_count=1)
    with loaded(Machine(hypervisor=vm, chip=chip), "real/exit") as machine:
        assert machine.run(TIMEOUT).end.outcome is Outcome.EXIT
    chip.service_irq(5, False)  # still open
    chip.close()
    vm.close()


def test_a_chip_without_its_vm_is_refused() -> None:
    vm = create_vm("kvm")
    chip = create_irqchip("kvm_kernel", vm=vm)
    with pytest.raises(WrongType, match="comes with its VM"):
        Machine(chip=chip)
    chip.close()
    vm.close()


def test_a_machine_runs_once_and_needs_a_guest() -> None:
    with Machine() as machine:
        with pytest.raises(InvalidArgument, match="no guest"):
            machine.run()
        loaded(machine, "real/exit").run(TIMEOUT)
        with pytest.raises(Closed):
            machine.run()
    machine.close()  # again


@pytest.mark.parametrize("timeout", [1e12, -1, float("nan")])
def test_a_time_nobody_can_wait_is_refused_before_the_run(timeout: float) -> None:
    with loaded(Machine(), "real/exit") as machine:
        with pytest.raises(InvalidArgument, match="timeout"):
            machine.run(timeout)
        assert machine.run(TIMEOUT).end.outcome is Outcome.EXIT


def test_loading_after_close() -> None:
    machine = Machine()
    machine.close()
    with pytest.raises(Closed, match="the machine is closed"):
        loaded(machine, "real/exit")


def test_a_timer_beyond_the_run_and_a_source_watched_twice() -> None:
    reader, writer = os.pipe()
    with loaded(Machine(), "real/exit") as machine:
        machine.call_later(30 * 86400 * 10**9, lambda: None)
        machine.watch(reader, lambda: None)
        with pytest.raises(InvalidArgument, match="watched already"):
            machine.watch(reader, lambda: None)
        with pytest.raises(InvalidArgument, match="not watched"):
            machine.unwatch(writer)
        assert machine.run(TIMEOUT).end.outcome is Outcome.EXIT
    os.close(reader)
    os.close(writer)


def test_close_goes_on_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with Machine() as machine:
        chip_class = type(machine.chip)
    monkeypatch.setattr(chip_class, "unregister_edge_irq_event", fail)
    machine = Machine()
    events = [irq.event for irq in machine.irqs]
    with pytest.raises(IrqChipError, match="made to fail"):
        machine.close()
    assert len(events) > 1
    assert all(event.get_trigger().closed for event in events)
    machine.close()  # again


def test_close_after_the_vm() -> None:
    machine = Machine()
    events = [irq.event for irq in machine.irqs]
    machine.vm.close()
    with contextlib.suppress(Closed):  # from a chip that needs the VM to disconnect its events
        machine.close()
    assert all(event.get_trigger().closed for event in events)


def test_close_without_a_run() -> None:
    Machine(vcpu_count=4).close()


def test_a_console_that_waits_is_told_of_the_end() -> None:
    ended, calls = threading.Event(), []

    def end() -> None:
        calls.append(1)
        ended.set()

    def console(data: bytes) -> None:
        assert ended.wait(TIMEOUT)

    with loaded(Machine(console=console, on_end=end), "real/spam") as machine:
        assert machine.run(0.5).end.outcome is Outcome.TIMEOUT
    assert calls == [1]


def test_devices_in_wrong_places() -> None:
    with Machine() as machine:
        for where in ({}, {"port": 1, "mmio": 1}, {"port": 0x10000}, {"mmio": 0}, {"port": 0x3F8}):
            with pytest.raises(InvalidArgument):
                machine.add_device(BusDevice(), **where)


def test_lines_are_given_out_from_11_up_and_messages_from_25() -> None:
    with Machine() as machine:
        assert [machine.edge_irq(name="a").gsi, machine.level_irq(name="b").gsi] == [11, 12]
        assert [machine.msi_irq(name="c").gsi, machine.edge_irq(3, name="d").gsi] == [25, 3]
        assert [count.name for count in loaded(machine, "real/exit").run(TIMEOUT).interrupts][-4:] == list("abcd")


def test_running_out_of_lines() -> None:
    with Machine() as machine:
        while machine.edge_irq(name="one of many").gsi < 23:
            pass
        for _ in range(2):
            with pytest.raises(Exhausted, match="all lines are taken; share a line: give its gsi"):
                machine.edge_irq(name="one too many")
        assert machine.msi_irq(name="a message").gsi == 25  # no line took it
        while machine.allocator.allocate_irq() is not None:
            pass
        with pytest.raises(Exhausted):
            machine.edge_irq(name="one too many")
        with pytest.raises(Exhausted, match="Machine: all numbers for messages are taken"):
            machine.msi_irq(name="one too many")


def test_a_device_that_raises_is_logged_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(BusDevice):
        def write(self, access: Access, value: int) -> None:
            raise RuntimeError("broken device")

    with loaded(Machine(), "real/ports") as machine:
        machine.add_device(Broken(), port=0x300)
        with caplog.at_level(logging.CRITICAL, logger="irqchip_core.bus"):
            result = machine.run(TIMEOUT)
    assert result.end.outcome is Outcome.EXIT
    assert result.device_errors == 3


def test_a_failure_on_the_devices_thread_ends_the_run(caplog: pytest.LogCaptureFixture) -> None:
    with loaded(Machine(), "real/loop") as machine, caplog.at_level(logging.CRITICAL, logger="irqchip_vmm.machine"):
        machine.call_later(0, lambda: 1 // 0)
        result = machine.run(TIMEOUT)
    assert result.end.outcome is Outcome.ERROR
    assert "ZeroDivisionError" in result.end.detail


# --- vCPUs that fail ---


class FailingVm:
    """A VM whose vCPUs have one method replaced."""

    def __init__(self, vm: Any, method: str, replacement: Callable[..., Any], only: int) -> None:
        self._vm, self._method, self._replacement, self._only = vm, method, replacement, only

    def __getattr__(self, name: str) -> Any:
        return getattr(self._vm, name)

    def create_vcpu(self, vcpu_id: int) -> Any:
        vcpu = self._vm.create_vcpu(vcpu_id)
        if vcpu_id == self._only:
            setattr(vcpu, self._method, self._replacement)
        return vcpu


def fail(*args: object) -> None:
    raise IrqChipError("made to fail", subject="test")


@pytest.mark.parametrize(
    ("method", "replacement", "only", "detail"),
    [
        ("set_cpuid", fail, 1, "vCPU 1: test: made to fail"),
        ("set_regs", fail, 0, "vCPU 0: test: made to fail"),
        ("run", fail, 1, "vCPU 1: test: made to fail"),
        ("run", lambda: 1 // 0, 0, "vCPU 0: ZeroDivisionError: integer division or modulo by zero"),
        (
            "run",
            lambda: UnknownExit(99),
            0,
            "vCPU 0: the hypervisor returned exit 99, which irqchip cannot serve, at RIP 0x7c00",
        ),
        (
            "run",
            lambda: InternalErrorExit(1, (0x1, 0x0F0F_0302, 0)),
            0,
            "vCPU 0: the hypervisor cannot emulate the guest's instruction (03 0f ...), at RIP 0x7c00",
        ),
        (
            "run",
            lambda: InternalErrorExit(1, (0x7C00,)),
            0,
            "vCPU 0: the hypervisor cannot emulate the guest's instruction, at RIP 0x7c00",
        ),
        (
            "run",
            lambda: InternalErrorExit(3, (0x2A, 1)),
            0,
            "vCPU 0: the hypervisor cannot go on, for KVM_INTERNAL_ERROR 3 with data 0x2a, 0x1, at RIP 0x7c00",
        ),
        (
            "run",
            lambda: FailEntryExit(0x80000021),
            0,
            "vCPU 0: the processor refused to enter the guest, for reason 0x80000021, at RIP 0x7c00",
        ),
    ],
)
def test_a_failing_vcpu_ends_the_run_and_is_named(
    method: str, replacement: Callable[..., Any], only: int, detail: str
) -> None:
    with loaded(Machine(vcpu_count=3), "real/loop") as machine:
        vm = machine.vm
        machine.vm = cast(Any, FailingVm(vm, method, replacement, only))
        result = machine.run(TIMEOUT)
        machine.vm = vm
    assert (result.end.outcome, result.end.vcpu_id, result.end.detail) == (Outcome.ERROR, only, detail)


def test_a_vcpu_that_cannot_be_made_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with loaded(Machine(vcpu_count=2), "real/loop") as machine:
        make = machine.vm.create_vcpu
        monkeypatch.setattr(machine.vm, "create_vcpu", lambda vcpu_id: make(vcpu_id) if vcpu_id == 0 else fail())
        result = machine.run(TIMEOUT)
    assert (result.end.outcome, result.end.vcpu_id) == (Outcome.ERROR, 1)


def test_interrupts_of_the_host_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with loaded(Machine(vcpu_count=2), "real/loop") as machine:

        def interrupt(timeout: float | None) -> bool:
            raise KeyboardInterrupt

        monkeypatch.setattr(machine._ending, "wait", interrupt)
        with pytest.raises(KeyboardInterrupt):
            machine.run(TIMEOUT)


def test_ctrl_c_while_threads_start_counts_once_they_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of `Thread.start` it would leave one that runs, and that `join` takes for one not started."""
    with loaded(Machine(vcpu_count=2), "real/loop") as machine:
        original = threading.Thread.start

        def start(thread: Any) -> None:
            begun, after = thread._started, threading.Event()  # `Thread.start` waits for the first
            wait, set_ = begun.wait, begun.set

            def wait_interrupted() -> None:
                signal.raise_signal(signal.SIGINT)
                after.set()
                wait()

            def set_late() -> None:
                after.wait(5)
                set_()

            begun.wait, begun.set = wait_interrupted, set_late
            original(thread)

        monkeypatch.setattr(threading.Thread, "start", start)
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with pytest.raises(KeyboardInterrupt):
                machine.run(TIMEOUT)
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        finally:
            signal.signal(signal.SIGINT, before)


def test_local_interrupt_pins_are_connected(monkeypatch: pytest.MonkeyPatch) -> None:
    lints: dict[int, tuple[int, int]] = {}

    def look(chip: IrqChipX86_64, vcpu_id: int) -> None:
        connect_local_interrupts(chip, vcpu_id)
        regs = chip.get_lapic_state(vcpu_id).regs
        lints[vcpu_id] = (regs[0x35], regs[0x36])

    monkeypatch.setattr("irqchip_vmm.machine.connect_local_interrupts", look)
    with loaded(Machine(vcpu_count=2), "real/loop") as machine:
        machine.run(0.05)
    # Delivery modes ExtINT and NMI; the mask (bit 16) is as it was at reset.
    assert lints == {0: (0x700, 0x10400), 1: (0x10700, 0x10400)}


def test_a_guest_too_large_for_this_machine() -> None:
    image = load_image("x", (GUESTS / "multiboot/hello.bin").read_bytes(), memory_size=2 << 20)
    with Machine(memory_size=1 << 20) as machine, pytest.raises(InvalidArgument, match="1 MiB of memory"):
        machine.load(image)


def test_memory_bounds() -> None:
    memory = GuestMemory(memoryview(bytearray(16)))
    assert memory.read(8, 8) == bytes(8)
    for address, length in ((9, 8), (-1, 1), (0, -1), (2**64, 1)):
        assert memory.read(address, length) is None
    for address in (9, -1):
        with pytest.raises(InvalidArgument):
            memory.write(address, bytes(8))
