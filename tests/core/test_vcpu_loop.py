"""The vCPU loop on a chip that notes what it is given, and a vCPU that executes nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, cast

import pytest
from typing_extensions import override

from irqchip_core.bus import Access, Bus, BusDevice
from irqchip_core.chip import VcpuRunState
from irqchip_core.hypervisor.exits import (
    Exit,
    FailEntryExit,
    HltExit,
    InternalErrorExit,
    InterruptedExit,
    IoapicEoiExit,
    IoExit,
    IrqWindowExit,
    MmioExit,
    MsrExit,
    SetTprExit,
    ShutdownExit,
    SystemEventExit,
    UnknownExit,
)
from irqchip_core.hypervisor.vcpu import VcpuX86_64
from irqchip_core.testing import FakeVcpu, FakeVm
from irqchip_core.vcpu_loop import VcpuLoop, VcpuThread, stop_vcpus
from irqchip_core.x86.chip import IrqChipX86_64

PATIENCE = 10.0
RAM_SIZE = 8


class NotingChip:
    """What a vCPU loop calls of a chip, noted in order."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.wait: Callable[[], VcpuRunState] = lambda: VcpuRunState.RUNNABLE
        self.knows_msr = True
        self.kicked = threading.Event()

    def add_vcpu(self, vcpu_id: int, vcpu: VcpuX86_64) -> None:
        self.calls.append(("add", vcpu_id))

    def wait_until_runnable(self, vcpu: VcpuX86_64) -> VcpuRunState:
        self.calls.append(("wait", vcpu.id))
        return self.wait()

    def inject_interrupts(self, vcpu: VcpuX86_64) -> None:
        self.calls.append(("inject", vcpu.id))

    def halted(self, vcpu_id: int) -> None:
        self.calls.append(("halted", vcpu_id))

    def broadcast_eoi(self, vector: int) -> None:
        self.calls.append(("eoi", vector))

    def handle_msr(self, vcpu: VcpuX86_64, access: MsrExit) -> bool:
        self.calls.append(("msr", access.index))
        if self.knows_msr:
            vcpu.complete_msr(0x1234)
        return self.knows_msr

    def kick_halted_vcpus(self) -> None:
        self.kicked.set()


class Ram(BusDevice):
    """Keeps what is written, and notes each access and its vCPU."""

    def __init__(self) -> None:
        self.bytes = bytearray(RAM_SIZE)
        self.accesses: list[tuple[int, int, int]] = []

    @override
    def read(self, access: Access) -> int:
        self.accesses.append((access.offset, access.size, access.vcpu_id))
        return int.from_bytes(self.bytes[access.offset : access.offset + access.size], "little")

    @override
    def write(self, access: Access, value: int) -> None:
        self.accesses.append((access.offset, access.size, access.vcpu_id))
        self.bytes[access.offset : access.offset + access.size] = value.to_bytes(access.size, "little")


class Bench:
    def __init__(self, vcpu_id: int = 1) -> None:
        self.chip = NotingChip()
        self.vcpu = FakeVcpu(vcpu_id)
        self.ports, self.memory = Ram(), Ram()
        self.io, self.mmio = Bus("I/O"), Bus("MMIO")
        self.io.insert(self.ports, 0x100, RAM_SIZE)
        self.mmio.insert(self.memory, 0xF000, RAM_SIZE)
        self.loop = VcpuLoop(self.vcpu, cast(IrqChipX86_64, self.chip), self.io, self.mmio)

    def step(self, vm_exit: Exit) -> Exit | None:
        self.vcpu.exits.append(vm_exit)
        return self.loop.step()


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_port_access_reaches_the_device_as_that_of_its_vcpu(bench: Bench) -> None:
    written = memoryview(bytearray(b"\x12\x34"))
    assert bench.step(IoExit(0x102, 2, written, is_write=True)) is None
    read = memoryview(bytearray(2))
    assert bench.step(IoExit(0x102, 2, read, is_write=False)) is None
    assert bytes(read) == b"\x12\x34"
    assert bench.ports.accesses == [(2, 2, 1), (2, 2, 1)]


def test_a_string_instruction_makes_its_accesses_one_after_another(bench: Bench) -> None:
    assert bench.step(IoExit(0x104, 1, memoryview(bytearray(b"abc")), is_write=True)) is None
    assert bench.ports.accesses == [(4, 1, 1)] * 3
    assert bench.ports.bytes[4:5] == b"c"
    read = memoryview(bytearray(3))
    assert bench.step(IoExit(0x104, 1, read, is_write=False)) is None
    assert bytes(read) == b"ccc"


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_an_mmio_access_reaches_the_device(bench: Bench, size: int) -> None:
    assert bench.step(MmioExit(0xF000, memoryview(bytearray(range(1, size + 1))), is_write=True)) is None
    read = memoryview(bytearray(size))
    assert bench.step(MmioExit(0xF000, read, is_write=False)) is None
    assert bytes(read) == bytes(range(1, size + 1))


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_read_where_no_device_is_gives_all_ones(bench: Bench, size: int) -> None:
    port, memory = memoryview(bytearray(size)), memoryview(bytearray(size))
    bench.step(IoExit(0x900, size, port, is_write=False))
    bench.step(MmioExit(0x900, memory, is_write=False))
    assert bytes(port) == bytes(memory) == b"\xff" * size


def test_an_access_answered_in_the_middle_of_a_run_is_that_of_an_exit(bench: Bench) -> None:
    bench.loop.port_write(0x101, 2, 0xBEEF)
    assert bench.loop.port_read(0x101, 2) == 0xBEEF
    bench.loop.mmio_write(0xF004, 4, 0x12345678)
    assert bench.loop.mmio_read(0xF004, 4) == 0x12345678
    assert bench.loop.mmio_read(0xE000, 2) == 0xFFFF
    assert bench.ports.accesses == [(1, 2, 1)] * 2
    assert bench.chip.calls == []


def test_the_chip_answers_its_msrs_and_others_fault(bench: Bench) -> None:
    assert bench.step(MsrExit(0x802, 0, is_write=False)) is None
    assert bench.vcpu.msr == 0x1234
    bench.chip.knows_msr = False
    assert bench.step(MsrExit(0x900, 0, is_write=False)) is None
    assert bench.vcpu.msr is None


@pytest.mark.parametrize(
    ("vm_exit", "call"),
    [
        (HltExit(), [("halted", 1)]),
        (IoapicEoiExit(0x41), [("eoi", 0x41)]),
        (InterruptedExit(), []),
        (IrqWindowExit(), []),
        (SetTprExit(), []),
    ],
)
def test_the_chip_gets_what_is_its_own_and_then_injects(
    bench: Bench, vm_exit: Exit, call: list[tuple[Any, ...]]
) -> None:
    assert bench.step(vm_exit) is None
    assert bench.chip.calls == [("wait", 1), *call, ("inject", 1)]
    assert bench.loop.last_exit is vm_exit
    assert bench.loop.exits == {type(vm_exit): 1}


@pytest.mark.parametrize(
    "vm_exit", [ShutdownExit(), SystemEventExit(1), FailEntryExit(5), InternalErrorExit(1), UnknownExit(77)]
)
def test_an_exit_that_ends_the_run_comes_back(bench: Bench, vm_exit: Exit) -> None:
    assert bench.step(vm_exit) is vm_exit
    assert bench.chip.calls == [("wait", 1)]  # nothing is injected into what has ended


def test_an_interrupted_wait_comes_back_without_an_exit(bench: Bench) -> None:
    bench.chip.wait = lambda: VcpuRunState.INTERRUPTED
    assert bench.step(HltExit()) is None
    assert bench.loop.exits == {}
    assert bench.chip.calls == [("wait", 1)]


class EndlessVm(FakeVm):
    """Its vCPUs come back once for each of `script`, then only when they are kicked."""

    def __init__(self, *script: Exit | Exception) -> None:
        super().__init__()
        self.script = script
        self.vcpus: list[FakeVcpu] = []
        self.closed: list[int] = []

    @override
    def create_vcpu(self, vcpu_id: int) -> FakeVcpu:
        if vcpu_id == 9:
            raise MemoryError("no vCPU 9")
        vm = self

        class Scripted(FakeVcpu):
            def __init__(self) -> None:
                super().__init__(vcpu_id)
                self.left = list(vm.script)

            @override
            def run(self) -> Exit:
                if self.left:
                    result = self.left.pop(0)
                    if isinstance(result, Exception):
                        raise result
                    return result
                return super().run()

            @override
            def close(self) -> None:
                vm.closed.append(self.id)

        self.vcpus.append(Scripted())
        return self.vcpus[-1]


def thread(vm: FakeVm, vcpu_id: int = 0, **options: Any) -> VcpuThread:
    return VcpuThread(vm, cast(IrqChipX86_64, NotingChip()), vcpu_id, Bus("I/O"), Bus("MMIO"), **options)


def test_a_thread_makes_its_vcpu_runs_it_and_closes_it() -> None:
    vm = EndlessVm(HltExit(), ShutdownExit())
    ends: list[tuple[object, list[int]]] = []
    prepared: list[int] = []
    one = thread(
        vm,
        prepare=lambda vcpu: prepared.append(vcpu.id),
        on_end=lambda ended: ends.append((ended.outcome, list(vm.closed))),
    )
    one.start()
    one.join(PATIENCE)
    assert prepared == [0]
    assert ends == [(ShutdownExit(), [])]  # the vCPU is open still, for its registers to be read
    assert vm.closed == [0]


def test_an_error_is_the_outcome() -> None:
    problem = ValueError("a device")
    one = thread(EndlessVm(HltExit(), problem))
    one.start()
    one.join(PATIENCE)
    assert one.outcome is problem


def test_stopped_threads_come_out_of_the_guest_and_have_no_outcome() -> None:
    vm = EndlessVm()
    barrier = threading.Barrier(3)
    threads = [thread(vm, vcpu_id, barrier=barrier) for vcpu_id in range(2)]
    for one in threads:
        one.start()
    barrier.wait(PATIENCE)
    assert stop_vcpus([*threads, thread(vm, 2)], PATIENCE) == []
    assert [one.outcome for one in threads] == [None, None]
    assert sorted(vm.closed) == [0, 1]


def test_a_thread_that_was_stopped_before_it_ran_executes_nothing() -> None:
    vm = EndlessVm(ShutdownExit())
    one = thread(vm)
    one.stop()
    one.start()
    one.join(PATIENCE)
    assert one.outcome is None
    assert vm.closed == [0]


def test_a_vcpu_that_cannot_be_made_stops_those_that_wait_for_it() -> None:
    vm = EndlessVm(ShutdownExit())
    barrier = threading.Barrier(2)
    ended: list[int] = []
    threads = [
        thread(vm, vcpu_id, barrier=barrier, on_end=lambda ended_one: ended.append(ended_one.vcpu_id))
        for vcpu_id in (0, 9)
    ]
    for one in threads:
        one.start()
    for one in threads:
        one.join(PATIENCE)
    assert ended == [9]
    assert isinstance(threads[1].outcome, MemoryError)
    assert threads[0].outcome is None
    assert vm.closed == [0]


def test_a_vcpu_that_a_device_keeps_is_named() -> None:
    entered, leave = threading.Event(), threading.Event()

    class Stuck(BusDevice):
        @override
        def write(self, access: Access, value: int) -> None:
            entered.set()
            leave.wait(PATIENCE)

    io = Bus("I/O")
    io.insert(Stuck(), 0x80, 1)
    vm = EndlessVm(IoExit(0x80, 1, memoryview(bytearray(1)), is_write=True))
    one = VcpuThread(vm, cast(IrqChipX86_64, NotingChip()), 0, io, Bus("MMIO"))
    one.start()
    assert entered.wait(PATIENCE)
    assert stop_vcpus([one], 0.05) == [one]
    leave.set()
    assert stop_vcpus([one], PATIENCE) == []
