"""The userspace chip by itself: fake vCPUs and a clock that stands still show its corners."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typing_extensions import override

from irqchip_core.allocator import SystemAllocator
from irqchip_core.bus import Bus
from irqchip_core.capabilities import PC_CONTROLLERS, IrqChipCap
from irqchip_core.chip import MPState, VcpuRunState
from irqchip_core.errors import Closed, InvalidArgument, InvalidRoute, UnknownVcpu, Unsupported, WrongType
from irqchip_core.events import IrqEdgeEvent, IrqEventIndex, IrqEventSource, IrqLevelEvent, PlatformDeviceId
from irqchip_core.routes import IrqRoute, IrqSourceChip, PinSource, default_routes
from irqchip_core.testing import FakeClock, FakeVcpu, FakeVm, read_msr, write_msr
from irqchip_core.x86.counters import GsiCount, VectorCount
from irqchip_core.x86.effects import Effects
from irqchip_core.x86.pit import Pit
from irqchip_core.x86.state import PicSelect
from irqchip_userspace.chip import UserspaceIrqChip, probe

pytestmark = pytest.mark.usefixtures("no_leaks")

SOURCE = IrqEventSource(PlatformDeviceId.SERIAL, 0, "COM1")
LAPIC, IOAPIC = 0xFEE00000, 0xFEC00000
ENABLED = 0x1FF


class Board:
    """A chip with fake vCPUs, on buses of its own, its local APICs enabled."""

    def __init__(self, vcpu_count: int = 2, **vm: Any) -> None:
        self.clock = FakeClock()
        self.chip = UserspaceIrqChip(FakeVm(**vm), vcpu_count, clock=self.clock)
        self.io, self.mmio = Bus("I/O"), Bus("MMIO")
        self.allocator = SystemAllocator()
        self.chip.finalize_devices(self.allocator, self.io, self.mmio)
        self.vcpus = [FakeVcpu(vcpu_id) for vcpu_id in range(vcpu_count)]
        for vcpu in self.vcpus:
            self.chip.add_vcpu(vcpu.id, vcpu)
            self.write(vcpu.id, 0xF0, ENABLED)
        for port in (0x21, 0xA1):  # the PICs drive the same lines
            self.io.write(port, 1, 0xFF)

    def write(self, vcpu_id: int, offset: int, value: int) -> None:
        self.mmio.for_vcpu(vcpu_id).write(LAPIC + offset, 4, value)

    def read(self, vcpu_id: int, offset: int) -> int:
        value = self.mmio.for_vcpu(vcpu_id).read(LAPIC + offset, 4)
        assert value is not None
        return value

    def redirect(self, pin: int, entry: int) -> None:
        for half in (1, 0):
            self.mmio.write(IOAPIC, 4, 0x10 + 2 * pin + half)
            self.mmio.write(IOAPIC + 0x10, 4, entry >> 32 * half & 0xFFFFFFFF)

    def register(self, gsi: int, event: IrqEdgeEvent | IrqLevelEvent) -> IrqEventIndex:
        """Let the event drive the GSI; its place in the event table."""
        if isinstance(event, IrqLevelEvent):
            index = self.chip.register_level_irq_event(gsi, event, SOURCE)
        else:
            index = self.chip.register_edge_irq_event(gsi, event, SOURCE)
        assert index is not None
        return index

    def inject(self, vcpu_id: int = 0) -> list[int]:
        """What the vCPU gets when it looks, ready; vectors since the last look."""
        vcpu = self.vcpus[vcpu_id]
        vcpu.ready = True
        before = len(vcpu.injected)
        self.chip.inject_interrupts(vcpu)
        return vcpu.injected[before:]

    def eoi(self, vcpu_id: int = 0) -> None:
        self.write(vcpu_id, 0xB0, 0)


@pytest.fixture
def board() -> Iterator[Board]:
    board = Board()
    yield board
    board.chip.close()


# Threads and construction


def test_no_thread_before_finalize_devices_and_one_after() -> None:
    before = threading.active_count()
    with UserspaceIrqChip(FakeVm(), 8) as chip:
        assert threading.active_count() == before
        chip.finalize_devices(SystemAllocator(), Bus(), Bus())
        assert threading.active_count() == before + 1
        with pytest.raises(InvalidArgument, match="on their buses already"):
            chip.finalize_devices(SystemAllocator(), Bus(), Bus())
    assert threading.active_count() == before


def test_finalize_devices_keeps_the_numbers_of_the_pins(board: Board) -> None:
    assert board.allocator.allocate_irq() == 24
    assert [(base, length) for base, length, _ in board.io.devices()] == [
        (0x20, 2), (0x40, 8), (0x61, 1), (0xA0, 2), (0x4D0, 2),
    ]  # fmt: skip
    assert [(base, length) for base, length, _ in board.mmio.devices()] == [(IOAPIC, 0x100), (LAPIC, 0x1000)]


def test_a_taken_range_leaves_the_buses_as_they_were() -> None:
    from irqchip_core.bus import BusDevice

    io, mmio, allocator = Bus(), Bus(), SystemAllocator()
    mmio.insert(BusDevice(), LAPIC, 1)
    with UserspaceIrqChip(FakeVm(), 1) as chip:
        with pytest.raises(InvalidArgument, match="overlaps"):
            chip.finalize_devices(allocator, io, mmio)
        assert io.devices() == []
        assert len(mmio.devices()) == 1
        assert allocator.allocate_irq() == 9
        mmio.remove(LAPIC)
        chip.finalize_devices(allocator, io, mmio)


def test_a_chip_with_more_pins_keeps_more_numbers() -> None:
    with UserspaceIrqChip(FakeVm(), 1, pins=240) as chip:
        with pytest.raises(InvalidArgument, match=r"no free number from 240 up.*a last number of 240 or more"):
            chip.finalize_devices(SystemAllocator(5, 239), Bus(), Bus())
        allocator = SystemAllocator()
        chip.finalize_devices(allocator, Bus(), Bus())
        assert allocator.allocate_irq() == 240


def test_what_is_no_bus_or_allocator_is_refused(no_leaks: None) -> None:
    anything: Any = None
    with UserspaceIrqChip(FakeVm(), 1) as chip:
        places: list[tuple[str, tuple[Any, ...]]] = [
            ("allocator", (anything, Bus("I/O"), Bus("MMIO"))),
            ("io_bus", (SystemAllocator(), anything, Bus("MMIO"))),
            ("mmio_bus", (SystemAllocator(), Bus("I/O"), anything)),
        ]
        for argument, arguments in places:
            with pytest.raises(WrongType, match=f"userspace: {argument}: None is of type NoneType"):
                chip.finalize_devices(*arguments)
        chip.finalize_devices(SystemAllocator(), Bus("I/O"), Bus("MMIO"))


@pytest.mark.parametrize("vcpu_count", [0, -1, 256])
def test_bad_counts_of_vcpus(vcpu_count: int) -> None:
    with pytest.raises(InvalidArgument, match="vcpu_count"):
        UserspaceIrqChip(FakeVm(), vcpu_count)


def test_a_hypervisor_without_what_the_chip_needs_is_told_by_name() -> None:
    thin: Any = SimpleNamespace(hypervisor="thin", map_memory=None)
    refusal = probe(thin).refusal
    assert refusal is not None
    assert refusal.startswith("the VM of hypervisor thin lacks ")
    assert "exit_on_msrs" in refusal
    with pytest.raises(WrongType, match="the VM of hypervisor"):
        UserspaceIrqChip(object(), 1)  # type: ignore[arg-type]


def test_capabilities_are_what_the_hypervisor_lets_the_chip_do() -> None:
    assert probe(FakeVm()).capabilities == frozenset(IrqChipCap)
    assert probe(FakeVm(tsc_hz=0)).capabilities == PC_CONTROLLERS | {IrqChipCap.X2APIC, IrqChipCap.MP_STATE_GET_SET}
    vm = FakeVm(can_exit_on_msrs=False)
    assert probe(vm).capabilities == PC_CONTROLLERS | {IrqChipCap.MP_STATE_GET_SET}
    with UserspaceIrqChip(vm, 1):
        assert vm.msrs == []


# vCPUs


def test_wrong_vcpus(board: Board) -> None:
    for vcpu_id in (-1, 2):
        with pytest.raises(UnknownVcpu, match=f"vCPU {vcpu_id} is beyond the 2 the chip was made for"):
            board.chip.add_vcpu(vcpu_id, FakeVcpu(vcpu_id))
        with pytest.raises(UnknownVcpu, match=f"there is no vCPU {vcpu_id}"):
            board.chip.halted(vcpu_id)
        with pytest.raises(UnknownVcpu):
            board.chip.get_mp_state(vcpu_id)
    thin: Any = SimpleNamespace(id=0)
    with pytest.raises(WrongType, match="it is a SimpleNamespace"):
        board.chip.add_vcpu(0, thin)
    with pytest.raises(UnknownVcpu, match="is not the chip's"):
        board.chip.inject_interrupts(FakeVcpu(0))


def test_kicks_are_seen_exactly_once_each_even_by_a_runnable_vcpu(board: Board) -> None:
    chip, vcpu = board.chip, board.vcpus[0]
    assert chip.wait_until_runnable(vcpu) is VcpuRunState.RUNNABLE
    for _ in range(2):  # two before one look count as one
        chip.kick_halted_vcpus()
    assert chip.wait_until_runnable(vcpu) is VcpuRunState.INTERRUPTED
    assert chip.wait_until_runnable(vcpu) is VcpuRunState.RUNNABLE


class Waiter(threading.Thread):
    """Calls `wait_until_runnable` on a thread of its own."""

    def __init__(self, board: Board, vcpu_id: int) -> None:
        super().__init__()
        self.board, self.vcpu = board, board.vcpus[vcpu_id]
        self.answer: VcpuRunState | None = None
        self.start()

    def run(self) -> None:
        with suppress(Closed):
            self.answer = self.board.chip.wait_until_runnable(self.vcpu)

    def result(self) -> VcpuRunState | None:
        self.join(10)
        assert not self.is_alive(), "it still sleeps"
        return self.answer


@pytest.mark.parametrize(
    "wake",
    [
        lambda board: board.chip.service_irq(24, True),
        lambda board: board.write(1, 0x300, 0x4061 | 2 << 18),  # an IPI to all
        lambda board: board.write(1, 0x300, 0x4400 | 2 << 18),  # an NMI to all
        lambda board: board.clock.advance(1000),
        lambda board: board.chip.set_mp_state(0, MPState.RUNNABLE),
    ],
)
def test_a_halted_vcpu_wakes_for_whatever_comes(board: Board, wake: Callable[[Board], None]) -> None:
    board.chip.route_irq(IrqRoute.msi(24, LAPIC, 0x50))
    board.write(0, 0x320, 0x40)  # timer: one-shot, vector 0x40
    board.write(0, 0x3E0, 0xB)
    board.write(0, 0x380, 1000)
    board.chip.halted(0)
    waiter = Waiter(board, 0)
    wake(board)
    assert waiter.result() is VcpuRunState.RUNNABLE


def test_a_halted_vcpu_that_masks_interrupts_wakes_for_an_nmi_only(board: Board) -> None:
    board.chip.route_irq(IrqRoute.msi(24, LAPIC, 0x50))
    board.vcpus[0].ready = False
    board.chip.halted(0)
    waiter = Waiter(board, 0)
    board.chip.service_irq(24, True)
    board.chip.kick_halted_vcpus()
    assert waiter.result() is VcpuRunState.INTERRUPTED  # not runnable by the interrupt
    waiter = Waiter(board, 0)
    board.write(1, 0x300, 0x4400 | 2 << 18)
    assert waiter.result() is VcpuRunState.RUNNABLE
    assert board.vcpus[0].nmis == 1


def test_what_came_for_a_vcpu_that_could_not_run_is_there_when_it_can(board: Board) -> None:
    board.chip.set_mp_state(1, MPState.UNINITIALIZED)
    waiter = Waiter(board, 1)
    board.write(0, 0x310, 1 << 24)
    board.write(0, 0x300, 0x4061)
    board.write(0, 0x300, 0x4400)
    board.chip.set_mp_state(1, MPState.RUNNABLE)
    assert waiter.result() is VcpuRunState.RUNNABLE
    assert (board.vcpus[1].injected, board.vcpus[1].nmis) == ([0x61], 1)


def test_a_message_kicks_a_vcpu_in_the_guest_once_until_it_looks(board: Board) -> None:
    board.chip.route_irq(IrqRoute.msi(24, LAPIC, 0x50))
    board.chip.route_irq(IrqRoute.msi(25, LAPIC, 0x60))
    vcpu = board.vcpus[0]
    assert board.chip.wait_until_runnable(vcpu) is VcpuRunState.RUNNABLE
    sender = threading.Thread(target=lambda: [board.chip.service_irq(gsi, True) for gsi in (24, 25, 24)])
    sender.start()
    sender.join()
    assert vcpu.kicks == 1
    assert board.inject() == [0x60]
    sender = threading.Thread(target=board.chip.service_irq, args=(25, True))
    sender.start()
    sender.join()
    assert vcpu.kicks == 2


def test_a_look_at_a_register_from_another_thread_costs_no_kick(board: Board) -> None:
    board.chip.route_irq(IrqRoute.msi(24, LAPIC, 0x50))
    looker = threading.Thread(target=board.chip.wait_until_runnable, args=(board.vcpus[0],))
    looker.start()
    looker.join()
    assert board.read(0, 0x30)  # as a debugger does
    board.chip.service_irq(24, True)
    assert board.vcpus[0].kicks == 1


def test_closing_the_last_handle_wakes_who_sleeps(board: Board) -> None:
    clone = board.chip.try_clone()
    board.chip.halted(0)
    waiter = Waiter(board, 0)
    clone.close()
    assert waiter.is_alive()
    board.chip.close()
    assert waiter.result() in (VcpuRunState.INTERRUPTED, None)  # None: it came when the chip was closed already


def test_no_interrupt_is_lost_between_the_look_and_the_entry() -> None:
    """A vCPU thread that loops as a VMM does sees every one of many messages sent at any moment."""
    board = Board()
    chip, vcpu, rounds = board.chip, board.vcpus[0], 3000
    chip.route_irq(IrqRoute.msi(24, LAPIC, 0x50))
    taken = threading.Semaphore(0)
    started, done = threading.Event(), threading.Event()

    def guest() -> None:
        chip.inject_interrupts(vcpu)
        started.set()  # from here on this is the vCPU's thread for the chip
        seen = 0
        while not done.is_set():
            if chip.wait_until_runnable(vcpu) is VcpuRunState.INTERRUPTED:
                continue
            vcpu.run()
            vcpu.ready = True
            chip.inject_interrupts(vcpu)
            while len(vcpu.injected) > seen:
                seen += 1
                board.eoi()
                taken.release()

    thread = threading.Thread(target=guest)
    thread.start()
    assert started.wait(10)
    for _ in range(rounds):
        chip.service_irq(24, True)
        assert taken.acquire(timeout=10), f"lost after {len(vcpu.injected)}"
    done.set()
    chip.kick_halted_vcpus()
    vcpu.kick()
    thread.join()
    assert vcpu.injected == [0x50] * rounds
    chip.close()


# Injection


def test_priorities_and_windows(board: Board) -> None:
    for gsi, vector in ((24, 0x41), (25, 0x52), (26, 0x63)):
        board.chip.route_irq(IrqRoute.msi(gsi, LAPIC, vector))
        board.chip.service_irq(gsi, True)
    board.vcpus[0].ready = False
    board.chip.inject_interrupts(board.vcpus[0])
    assert board.vcpus[0].window_requested
    assert board.inject() == [0x63]
    assert not board.vcpus[0].window_requested  # the rest is held back by 0x63 in service
    board.eoi()
    assert board.inject() == [0x52]
    board.write(0, 0x80, 0x50)  # TPR: nothing below class 6
    board.eoi()
    assert board.inject() == []
    board.vcpus[0].cr8 = 3  # the guest lowers it by CR8
    board.vcpus[0].exits = [read_msr(0)]
    assert board.chip.wait_until_runnable(board.vcpus[0]) is VcpuRunState.RUNNABLE
    assert board.inject() == [0x41]
    assert board.read(0, 0x80) == 0x30


def test_the_pics_come_first_and_only_to_vcpu_0(board: Board) -> None:
    for port, value in ((0x20, 0x11), (0x21, 0x30), (0x21, 4), (0x21, 1), (0x21, 0)):
        board.io.write(port, 1, value)
    board.write(0, 0x350, 0x700)  # LINT0: ExtINT
    board.chip.service_irq(5, True)
    assert board.inject(1) == []
    board.chip.route_irq(IrqRoute.msi(24, LAPIC, 0x90))
    board.chip.service_irq(24, True)
    assert board.inject() == [0x35]
    assert board.vcpus[0].window_requested
    assert board.inject() == [0x90]
    assert board.chip.get_pic_state(PicSelect.PRIMARY).isr == 1 << 5


def test_init_and_startup(board: Board) -> None:
    vcpu, chip = board.vcpus[1], board.chip
    assert chip.get_mp_state(1) is MPState.UNINITIALIZED
    board.write(0, 0x310, 1 << 24)
    board.write(0, 0x300, 0x4608)  # a start-up without INIT does nothing
    chip.inject_interrupts(vcpu)
    assert chip.get_mp_state(1) is MPState.UNINITIALIZED
    board.write(0, 0x300, 0x4500)  # INIT
    chip.inject_interrupts(vcpu)
    assert chip.get_mp_state(1) is MPState.INIT_RECEIVED
    for vector in (8, 9):  # the second one does nothing
        board.write(0, 0x300, 0x4600 | vector)
        chip.inject_interrupts(vcpu)
    assert chip.get_mp_state(1) is MPState.RUNNABLE
    assert vcpu.get_regs().rip == 0
    assert (vcpu.get_sregs().cs.base, vcpu.get_sregs().cs.selector, vcpu.get_sregs().cr0) == (0x8000, 0x800, 0x10)
    assert board.read(1, 0xF0) == 0xFF  # INIT has reset the local APIC


def test_a_fixed_interrupt_does_not_start_a_vcpu(board: Board) -> None:
    board.write(0, 0x310, 1 << 24)
    board.write(0, 0x300, 0x4050)
    assert board.inject(1) == []
    assert board.chip.get_mp_state(1) is MPState.UNINITIALIZED


# MSRs


def test_x2apic_by_msr_exits(board: Board) -> None:
    vcpu, chip = board.vcpus[0], board.chip
    assert chip.handle_msr(vcpu, read_msr(0x802))
    assert vcpu.msr is None  # #GP: not in x2APIC mode
    assert chip.wait_until_runnable(vcpu) is VcpuRunState.RUNNABLE
    chip.handle_msr(vcpu, write_msr(0x1B, 0xFEE00D00))
    assert vcpu.msr == 0
    assert chip.handle_msr(vcpu, read_msr(0x803))
    assert vcpu.msr is not None
    chip.handle_msr(vcpu, write_msr(0x83F, 0x77))  # self IPI
    assert board.inject() == [0x77]
    chip.handle_msr(vcpu, write_msr(0x80B, 1))
    assert vcpu.msr is None  # #GP
    chip.handle_msr(vcpu, write_msr(0x80B, 0))
    assert vcpu.msr == 0
    assert not chip.handle_msr(vcpu, read_msr(0x1234))  # none of the chip's


def test_tsc_deadline(board: Board) -> None:
    vcpu, chip = board.vcpus[0], board.chip
    board.write(0, 0x320, 2 << 17 | 0x40)
    vcpu.tsc_value = 5000
    chip.handle_msr(vcpu, write_msr(0x6E0, 7000))
    board.clock.advance(1999)
    assert board.inject() == []
    board.clock.advance(1)
    assert board.inject() == [0x40]
    chip.handle_msr(vcpu, read_msr(0x6E0))
    assert vcpu.msr == 0


@pytest.mark.parametrize(
    ("written", "early", "due"),
    [(7000, 0, 0), (6500, 499, 500), (4000, 2999, 3000), (10**12, 0, 0)],
    ids=["just reached", "forward", "backward", "far beyond"],
)
def test_an_armed_deadline_counts_on_the_counter_that_the_guest_has_written(
    board: Board, written: int, early: int, due: int
) -> None:
    vcpu, chip = board.vcpus[0], board.chip
    board.write(0, 0x320, 2 << 17 | 0x40)
    vcpu.tsc_value = 5000
    chip.handle_msr(vcpu, write_msr(0x6E0, 7000))
    chip.handle_msr(vcpu, write_msr(0x10, written))
    assert (vcpu.msr, vcpu.tsc_value) == (0, written)
    board.clock.advance(early)
    assert not due or board.inject() == []
    board.clock.advance(due - early)
    assert board.inject() == [0x40]


def test_a_hypervisor_that_cannot_let_go_of_the_tsc_is_asked_for_the_other_msrs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exit_on_msrs = FakeVm.exit_on_msrs

    def refuse_tsc(vm: FakeVm, msrs: Iterable[range]) -> None:
        msrs = list(msrs)
        if any(0x10 in one or 0x3B in one for one in msrs):
            raise Unsupported("not the TSC", subject="fake")
        exit_on_msrs(vm, msrs)

    monkeypatch.setattr(FakeVm, "exit_on_msrs", refuse_tsc)
    vm = FakeVm()
    UserspaceIrqChip(vm, 1).close()
    assert [index for index in (0x10, 0x1B, 0x3B, 0x6E0, 0x802) if any(index in one for one in vm.msrs)] == [
        0x1B, 0x6E0, 0x802,
    ]  # fmt: skip


# Timers


def test_the_lapic_timer_ticks_on_the_clock(board: Board) -> None:
    board.write(0, 0x320, 1 << 17 | 0x40)  # periodic
    board.write(0, 0x3E0, 0xB)  # divide by 1
    board.write(0, 0x380, 1_000_000)
    for _ in range(3):
        board.clock.advance(999_999)
        assert board.inject() == []
        board.clock.advance(1)
        assert board.inject() == [0x40]
        board.eoi()
    board.write(0, 0x380, 0)
    board.clock.advance(10_000_000)
    assert board.inject() == []


def test_the_pit_raises_gsi_0_through_its_own_event(board: Board) -> None:
    board.redirect(0, 0x20)
    (token,) = board.chip.irq_event_tokens()
    assert (token.index, token.source.device_name) == (0, "userspace PIT")
    board.io.write(0x43, 1, 0x34)  # counter 0, mode 2
    board.io.write(0x40, 1, 0xA9)
    board.io.write(0x40, 1, 0x04)  # 1193 pulses: 1 ms
    board.clock.advance(2_100_000)
    assert token.event.wait(0)
    token.event.signal()
    board.chip.service_irq_event(token.index)
    assert board.inject() == [0x20]
    token.close()


def test_a_pit_that_ticks_too_fast_is_looked_after_at_a_bearable_pace(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    rings = []
    expire = Pit.expire

    def counted(pit: Pit, now: int) -> Effects:
        rings.append(now)
        return expire(pit, now)

    board.io.write(0x43, 1, 0x34)  # counter 0, mode 2
    board.io.write(0x40, 1, 2)
    board.io.write(0x40, 1, 0)  # 2 pulses: 1.7 us
    monkeypatch.setattr(Pit, "expire", counted)
    board.clock.advance(10_000_000)
    assert 49 <= len(rings) <= 51  # every 200 us, as in KVM


def test_an_edge_of_the_pit_that_comes_before_its_alarm_is_set_is_not_lost(board: Board) -> None:
    (token,) = board.chip.irq_event_tokens()
    now = board.clock.now

    def preempted() -> int:
        board.clock.advance(1_000_000)
        return now()

    board.io.write(0x43, 1, 0x30)  # counter 0, mode 0
    board.clock.now = preempted  # type: ignore[method-assign]
    board.io.write(0x40, 1, 0x58)
    board.io.write(0x40, 1, 0x02)  # 600 pulses: half a millisecond
    board.clock.now = now  # type: ignore[method-assign]
    board.clock.advance(10_000_000)
    assert token.event.reset() == 1
    token.close()


# Counters


def test_counters_tell_what_became_of_every_signal(board: Board) -> None:
    board.redirect(5, 0x45)
    with IrqEdgeEvent() as event:
        index = board.register(5, event)
        for signals in (1, 3, 1):
            for _ in range(signals):
                event.trigger()
            board.chip.service_irq_event(index)
        assert board.inject() == [0x45]
        board.eoi()
        event.trigger()
        with board.chip._chipset.lock:
            board.chip.service_irq_event(index)  # delayed
            event.trigger()
            board.chip.service_irq_event(index)
        board.chip.process_delayed_irq_events()
        board.chip.service_irq(5, True)
        board.chip.service_irq(5, False)
        board.write(0, 0x310, 0x77 << 24)
        board.write(0, 0x300, 0x46)  # to no local APIC
        counters = board.chip.counters()
        assert counters.gsis == (GsiCount(5, ("COM1",), raised=8, coalesced=3),)
        assert counters.vectors == (VectorCount(0, 0x45, raised=5, delivered=1, coalesced=3, ended=1),)
        assert (counters.spurious, counters.undeliverable) == (0, 1)
    board.chip.close()
    with pytest.raises(Closed):
        board.chip.counters()


def test_ticks_that_merge_are_counted_as_raised_and_coalesced(board: Board) -> None:
    board.write(0, 0x320, 1 << 17 | 0x40)  # periodic
    board.write(0, 0x3E0, 0xB)  # divide by 1
    board.write(0, 0x380, 50_000)  # 50 us
    board.clock.advance(1_000_000)
    (count,) = board.chip.counters().vectors
    assert count == VectorCount(0, 0x40, raised=count.raised, delivered=0, coalesced=count.raised - 1, ended=0)
    assert count.raised in (17, 18, 19, 20)  # up to the last time it was looked after


def test_what_an_init_takes_away_is_the_difference(board: Board) -> None:
    board.write(1, 0x310, 0)
    board.write(1, 0x300, 0x4045)
    board.write(1, 0x300, 0x4500)
    board.chip.inject_interrupts(board.vcpus[0])
    assert board.chip.counters().vectors == (VectorCount(0, 0x45, raised=1, delivered=0, coalesced=0, ended=0),)


# Level lines and the IOAPIC


def test_a_level_line_waits_for_its_eoi_and_is_resampled(board: Board) -> None:
    board.redirect(10, 0x804A)
    with IrqLevelEvent() as event:
        index = board.register(10, event)
        for _ in range(3):
            event.trigger()
            board.chip.service_irq_event(index)
            assert board.inject() == [0x4A]
            event.trigger()
            board.chip.service_irq_event(index)  # coalesced with the one that has not ended
            assert board.inject() == []
            assert not event.clear_resample(0)
            board.eoi()
            assert event.clear_resample(0)
            assert board.inject() == []


def test_level_events_registered_late_and_gone_early(board: Board) -> None:
    board.redirect(10, 0x804A)
    with IrqLevelEvent() as one, IrqLevelEvent() as other:
        index = board.register(10, one)
        board.chip.register_level_irq_event(10, other, SOURCE)
        one.trigger()
        board.chip.service_irq_event(index)
        assert board.inject() == [0x4A]
        board.chip.unregister_level_irq_event(10, one)
        board.eoi()
        assert other.clear_resample(0)
        assert not one.clear_resample(0)  # it is unregistered, and no longer resampled
        assert board.chip.get_ioapic_state().current_interrupt_level_bitmap == 0


def test_a_line_is_high_while_anybody_asserts_it(board: Board) -> None:
    board.redirect(10, 0x804A)
    with IrqLevelEvent() as event, IrqEdgeEvent() as edge:
        level = board.register(10, event)
        pulse = board.register(10, edge)
        board.chip.service_irq(10, True)
        event.trigger()
        board.chip.service_irq_event(level)
        edge.trigger()
        board.chip.service_irq_event(pulse)
        assert board.inject() == [0x4A]
        board.eoi()  # ends the event's assertion; the direct one stays and interrupts again
        assert event.clear_resample(0)
        assert board.inject() == [0x4A]
        board.chip.service_irq(10, False)
        board.eoi()
        assert board.inject() == []


def test_a_route_that_goes_takes_its_level_along(board: Board) -> None:
    board.redirect(10, 0x804A)
    board.redirect(11, 0x804B)
    board.chip.service_irq(10, True)
    assert board.inject() == [0x4A]
    board.chip.route_irq(IrqRoute(10, PinSource(IrqSourceChip.IOAPIC, 11)))
    assert board.chip.get_ioapic_state().current_interrupt_level_bitmap == 1 << 11
    board.eoi()
    assert board.inject() == [0x4B]


def test_a_route_that_stays_leaves_its_line_alone(board: Board) -> None:
    board.redirect(5, 0x45)  # edge-triggered: going low and high would interrupt
    board.chip.service_irq(5, True)
    assert board.inject() == [0x45]
    board.eoi()
    board.chip.set_irq_routes([*default_routes(), IrqRoute.msi(24, LAPIC, 0x50)])
    assert board.inject() == []


def test_a_restored_chip_goes_on_with_its_routes_and_lines(board: Board) -> None:
    board.chip.route_irq(IrqRoute(40, PinSource(IrqSourceChip.IOAPIC, 10)))
    board.redirect(10, 0x804A)
    board.chip.service_irq(40, True)
    assert board.inject() == [0x4A]
    snapshot = board.chip.snapshot(2)
    other = Board()
    other.chip.restore(snapshot, 2)
    assert other.inject() == []  # in service
    other.chip.service_irq(40, False)
    other.eoi()
    assert other.inject() == []
    assert other.chip.get_ioapic_state().current_interrupt_level_bitmap == 0
    other.chip.close()


def test_a_table_with_a_message_beside_pins_is_refused_and_changes_nothing(board: Board) -> None:
    with pytest.raises(InvalidRoute, match="one MSI or pins"):
        board.chip.set_irq_routes([IrqRoute.ioapic(5), IrqRoute.msi(5, LAPIC, 0x50)])
    board.redirect(5, 0x45)
    board.chip.service_irq(5, True)
    assert board.inject() == [0x45]


# Delayed events


def test_an_event_that_finds_the_ioapic_busy_is_delayed_and_not_lost(board: Board) -> None:
    board.redirect(5, 0x45)
    token = board.chip.irq_delayed_event_token()
    with IrqEdgeEvent() as event, IrqEdgeEvent() as gone:
        index = board.register(5, event)
        unregistered = board.register(5, gone)
        event.trigger()
        gone.trigger()
        with board.chip._chipset.lock:  # as a vCPU in the middle of an access has it
            board.chip.service_irq_event(index)
            board.chip.service_irq_event(unregistered)
            assert not token.wait(0)
            board.chip.process_delayed_irq_events()  # still busy
            assert not token.wait(0)
            assert board.chip.events_delayed
        assert token.wait(0)
        assert board.inject() == []
        board.chip.unregister_edge_irq_event(5, gone)
        with board.chip.try_clone() as clone:  # any handle will do
            clone.process_delayed_irq_events()
        assert not token.wait(0)
        assert not board.chip.events_delayed
        assert board.inject() == [0x45]
        board.eoi()
        assert board.inject() == []
    token.close()


def test_serving_an_event_that_was_not_signalled_does_nothing(board: Board) -> None:
    board.redirect(5, 0x45)
    with IrqEdgeEvent() as event:
        board.chip.service_irq_event(board.register(5, event))
    assert board.inject() == []
    with pytest.raises(InvalidArgument, match="no event was registered with index 7"):
        board.chip.service_irq_event(IrqEventIndex(7))


# APIC base


def test_a_guest_moves_its_local_apic(board: Board) -> None:
    def move(apic_base: int) -> None:
        board.chip.handle_msr(board.vcpus[1], write_msr(0x1B, apic_base))
        assert board.vcpus[1].msr == 0
        board.chip.handle_msr(board.vcpus[1], read_msr(0x1B))
        assert board.vcpus[1].msr == board.vcpus[1].get_sregs().apic_base == apic_base

    move(0xFD000000 | 1 << 11)
    assert board.mmio.for_vcpu(1).read(0xFD000030, 4) == board.read(0, 0x30)
    assert board.read(1, 0x30) == 0xFFFFFFFF
    move(IOAPIC | 1 << 11)  # another device keeps its place
    assert board.mmio.for_vcpu(1).read(0xFD000030, 4) is None
    assert board.mmio.read(IOAPIC, 4) is not None
    move(LAPIC | 1 << 11)
    assert board.read(1, 0x30) == board.read(0, 0x30)


def test_a_base_that_the_hypervisor_refuses_faults_and_changes_nothing(board: Board) -> None:
    board.vcpus[0].refused_msrs = {0x1B}
    for value in (1 << 45 | 0x900, LAPIC | 0x500, LAPIC | 0x901):  # too wide for this vCPU, illegal, reserved
        board.chip.handle_msr(board.vcpus[0], write_msr(0x1B, value))
        assert board.vcpus[0].msr is None
    assert board.chip.get_lapic_state(0).apic_base == LAPIC | 0x900
    assert board.read(0, 0x30) == board.read(1, 0x30)


def test_a_guest_moves_its_local_apic_where_no_exit_reports_that() -> None:
    board = Board(can_exit_on_msrs=False)
    vcpu = board.vcpus[0]
    assert board.chip.wait_until_runnable(vcpu) is VcpuRunState.RUNNABLE
    for base in (0xFD000000, LAPIC):
        vcpu.apic_base = base | 0x900
        board.chip.inject_interrupts(vcpu)
        assert board.mmio.for_vcpu(0).read(base + 0x30, 4) == board.read(1, 0x30)
    vcpu.apic_base = LAPIC | 0x100
    board.chip.inject_interrupts(vcpu)
    assert board.read(0, 0x30) == 0xFFFFFFFF
    board.chip.close()


# Hostile guests and hosts

ADDRESSES = st.one_of(
    st.integers(LAPIC, LAPIC + 0x3FF).map(lambda a: a & ~3),
    st.sampled_from([IOAPIC, IOAPIC + 0x10, IOAPIC + 0x40]),
    st.integers(LAPIC, LAPIC + 0xFFF),
)
PORTS = st.sampled_from([0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1, *range(0x40, 0x48), 0x61])
WORD = st.one_of(st.integers(0, 0xFF), st.integers(0, 0xFFFFFFFF))
ACTIONS = st.one_of(
    st.tuples(st.just("mmio"), ADDRESSES, st.sampled_from([1, 2, 4, 8]), st.one_of(st.none(), WORD), st.integers(0, 2)),
    st.tuples(st.just("port"), PORTS, st.sampled_from([1, 2, 4]), st.one_of(st.none(), WORD), st.integers(0, 2)),
    st.tuples(
        st.just("msr"), st.sampled_from([*range(0x800, 0x840), 0x6E0]), st.one_of(st.none(), WORD), st.integers(0, 2)
    ),
    st.tuples(st.just("base"), st.sampled_from([0, 0x800, 0xC00, 0x400]), st.integers(0, 2)),
    st.tuples(st.just("line"), st.integers(0, 30), st.booleans()),
    st.tuples(st.just("time"), st.integers(0, 10**10)),
    st.tuples(st.just("look"), st.integers(0, 2), st.booleans()),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(ACTIONS, max_size=60))
def test_a_guest_may_write_anything_anywhere(actions: list[tuple[Any, ...]]) -> None:
    board = Board(3)
    try:
        for action in actions:
            match action:
                case ("mmio", address, size, value, vcpu):
                    bus = board.mmio.for_vcpu(vcpu)
                    bus.read(address, size) if value is None else bus.write(address, size, value)
                case ("port", address, size, value, vcpu):
                    bus = board.io.for_vcpu(vcpu)
                    bus.read(address, size) if value is None else bus.write(address, size, value)
                case ("msr", index, value, vcpu):
                    access = read_msr(index) if value is None else write_msr(index, value)
                    assert board.chip.handle_msr(board.vcpus[vcpu], access)
                case ("base", bits, vcpu):
                    assert board.chip.handle_msr(board.vcpus[vcpu], write_msr(0x1B, LAPIC | bits))
                case ("line", gsi, level):
                    board.chip.service_irq(gsi, level)
                case ("time", nanoseconds):
                    board.clock.advance(min(nanoseconds, 10**7))
                case ("look", vcpu, ready):
                    board.vcpus[vcpu].ready = ready
                    board.chip.inject_interrupts(board.vcpus[vcpu])
        assert board.io.errors == board.mmio.errors == 0
        board.chip.snapshot(3)
    finally:
        board.chip.close()


def test_a_closed_handle_says_so(board: Board) -> None:
    clone = board.chip.try_clone()
    clone.close()
    calls: list[Callable[[], object]] = [
        lambda: clone.service_irq(5, True),
        lambda: clone.irq_event_tokens(),
        lambda: clone.inject_interrupts(board.vcpus[0]),
        lambda: clone.wait_until_runnable(board.vcpus[0]),
        lambda: clone.kick_halted_vcpus(),
        lambda: clone.broadcast_eoi(5),
        lambda: clone.try_clone(),
        lambda: clone.get_pit(),
    ]
    for call in calls:
        with pytest.raises(Closed, match="userspace: the chip is closed"):
            call()
    board.chip.service_irq(5, True)


def test_a_handle_that_is_copied_is_a_clone() -> None:
    chip = UserspaceIrqChip(FakeVm(), 1)
    copied = copy.copy(chip)
    chip.close()
    with IrqEdgeEvent() as event:
        copied.register_edge_irq_event(5, event, SOURCE)
    copied.close()
    with pytest.raises(Closed):
        copied.service_irq(5, True)


def test_methods_looked_up_before_the_end_raise_and_count_no_handle(monkeypatch: pytest.MonkeyPatch) -> None:
    chip = UserspaceIrqChip(FakeVm(), 1)
    clone, closed = chip.try_clone(), list[bool]()
    methods = [clone.try_clone, clone.irq_event_tokens, clone.kick_halted_vcpus]
    clone.close()
    for method in methods:
        with pytest.raises(Closed):
            method()
    alarm: Any = chip._chipset._alarm
    monkeypatch.setattr(alarm, "close", lambda: closed.append(True))
    chip.close()
    assert closed == [True]


def test_a_chip_whose_release_fails_is_closed_all_the_same() -> None:
    class Failing(UserspaceIrqChip):
        @override
        def _release(self) -> None:
            super()._release()
            raise OSError("release")

    chip = Failing(FakeVm(), 1)
    service = chip.service_irq
    with pytest.raises(OSError, match="release"):
        chip.close()
    chip.close()
    for method in (chip.service_irq, service):
        with pytest.raises(Closed):
            method(5, True)
