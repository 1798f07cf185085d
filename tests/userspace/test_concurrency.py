"""What threads do to the userspace chip at the same time, each bad moment made to come by itself."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from irqchip_core.chip import MPState, VcpuRunState
from irqchip_core.events import IrqEdgeEvent, IrqLevelEvent
from irqchip_core.irq_loop import IrqLoop
from irqchip_core.routes import IrqRoute, default_routes
from irqchip_core.testing import FakeVcpu
from irqchip_userspace import processor as processor_module
from irqchip_userspace.processor import Activity
from tests.userspace.test_chip import IOAPIC, LAPIC, SOURCE, Board
from tests.x86.turns import patch

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
def board() -> Iterator[Board]:
    board = Board()
    yield board
    board.chip.close()


def on_a_thread(act: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    return thread


def until_asleep(board: Board) -> None:
    """Wait until vCPU 0 sleeps in the chip."""
    processor = board.chip._apics.processors[0]
    deadline = time.monotonic() + 10
    while processor.activity is not Activity.ASLEEP:
        assert time.monotonic() < deadline
        time.sleep(0)


class LockWithVisitor:
    """A lock in whose first `acquire` something else happens first."""

    def __init__(self, lock: Any, visit: Callable[[], object]) -> None:
        self._lock, self._visit = lock, visit

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lock, name)

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        visit, self._visit = self._visit, lambda: None
        visit()
        return bool(self._lock.acquire(blocking, timeout))

    def release(self) -> None:
        self._lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *exc_info: object) -> None:
        self.release()


def test_an_event_that_is_unregistered_while_it_is_served_asserts_nothing(board: Board) -> None:
    board.redirect(10, 0x804A)
    with IrqLevelEvent() as event:
        index = board.register(10, event)
        event.trigger()
        parts: Any = board.chip._chipset
        lock = parts.lock
        parts.lock = LockWithVisitor(lock, lambda: board.chip.unregister_level_irq_event(10, event))
        board.chip.service_irq_event(index)
        parts.lock = lock
    assert board.chip.get_ioapic_state().current_interrupt_level_bitmap == 0
    assert board.inject() == []


def test_events_come_and_go_while_their_interrupts_end(board: Board) -> None:
    """An EOI never meets a resample event that has just been closed."""
    board.redirect(10, 0x804A)
    chip, over = board.chip, threading.Event()

    def come_and_go() -> None:
        while not over.is_set():
            with IrqLevelEvent() as event:
                chip.register_level_irq_event(10, event, SOURCE)
                chip.unregister_level_irq_event(10, event)

    interval = sys.getswitchinterval()
    thread = threading.Thread(target=come_and_go)
    try:
        sys.setswitchinterval(1e-6)
        thread.start()
        with IrqLevelEvent() as event:
            index = board.register(10, event)
            for _ in range(300):
                event.trigger()
                chip.service_irq_event(index)
                while not (taken := board.inject()):
                    chip.process_delayed_irq_events()  # the other thread had the IOAPIC
                assert taken == [0x4A]
                board.eoi()
                assert event.clear_resample(0)
    finally:
        over.set()
        thread.join()
        sys.setswitchinterval(interval)
    assert board.mmio.errors == 0


def test_routes_that_are_added_at_once_are_all_there(board: Board) -> None:
    def add(first: int) -> None:
        for gsi in range(first, first + 60):
            board.chip.route_irq(IrqRoute.msi(gsi, LAPIC, 0x50))

    interval = sys.getswitchinterval()
    threads = [threading.Thread(target=add, args=(first,)) for first in (100, 200, 300)]
    try:
        sys.setswitchinterval(1e-6)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert len(board.chip.snapshot_chip_specific().routes) == len(default_routes()) + 180


def test_what_comes_between_injection_and_entry_on_the_vcpus_own_thread_is_injected(board: Board) -> None:
    """A VMM with one thread serves its devices there; no thread kicks the vCPU."""
    chip, vcpu = board.chip, board.vcpus[0]
    chip.route_irq(IrqRoute.msi(24, LAPIC, 0x50))
    chip.wait_until_runnable(vcpu)
    chip.inject_interrupts(vcpu)
    with IrqEdgeEvent() as event:
        index = board.register(24, event)
        event.trigger()
        chip.service_irq_event(index)
    chip.wait_until_runnable(vcpu)
    assert vcpu.injected == [0x50] or vcpu.kicks


def test_a_vcpu_that_goes_on_on_another_thread_is_kicked_from_the_first(board: Board) -> None:
    """As in a pool of threads, each of which makes a step."""
    chip, vcpu = board.chip, board.vcpus[0]
    chip.inject_interrupts(vcpu)
    on_a_thread(lambda: chip.wait_until_runnable(vcpu)).join()
    kicks = vcpu.kicks
    board.redirect(5, 0x45)
    chip.service_irq(5, True)
    assert vcpu.kicks == kicks + 1


def test_the_thread_of_a_vcpu_that_is_replaced_does_not_sleep_on(board: Board) -> None:
    chip, old = board.chip, board.vcpus[0]
    chip.halted(0)
    states = []
    thread = on_a_thread(lambda: states.append(chip.wait_until_runnable(old)))
    until_asleep(board)
    new = FakeVcpu(0)
    chip.add_vcpu(0, new)
    chip.set_mp_state(0, MPState.HALTED)
    other = on_a_thread(lambda: states.append(chip.wait_until_runnable(new)))
    thread.join(10)
    assert states == [VcpuRunState.INTERRUPTED]
    until_asleep(board)
    board.redirect(5, 0x45)
    chip.service_irq(5, True)
    other.join(10)
    assert states == [VcpuRunState.INTERRUPTED, VcpuRunState.RUNNABLE]
    assert new.injected == [0x45]


@pytest.mark.parametrize("woken", [False, True])
def test_a_sleep_that_a_signal_ends_leaves_nothing_behind(
    board: Board, woken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control-C in a VMM that runs its vCPU on the main thread, with an interrupt at the same moment or without."""
    chip, vcpu = board.chip, board.vcpus[0]
    processor = chip._apics.processors[0]
    chip.halted(0)
    chip.inject_interrupts(vcpu)
    board.redirect(5, 0x45)

    class Bed:
        acquired = False

        def acquire(self) -> None:
            if self.acquired:
                if woken:
                    chip.service_irq(5, True)
                raise KeyboardInterrupt
            self.acquired = True

        def release(self) -> None: ...

    monkeypatch.setattr(processor_module, "threading", SimpleNamespace(Lock=Bed, get_ident=threading.get_ident))
    with pytest.raises(KeyboardInterrupt):
        chip.wait_until_runnable(vcpu)
    monkeypatch.undo()
    chip.service_irq(5, False)
    chip.service_irq(5, True)
    assert chip.wait_until_runnable(vcpu) is VcpuRunState.RUNNABLE
    chip.halted(0)
    lock = chip._chipset.lock

    def release_and_kick() -> None:  # before it lies down
        patch(processor, _lock=lock)
        lock.release()
        chip.kick_halted_vcpus()

    patch(processor, _lock=SimpleNamespace(release=release_and_kick))
    assert chip.wait_until_runnable(vcpu) is VcpuRunState.INTERRUPTED


def test_what_came_before_there_was_a_vcpu_is_injected_before_its_first_entry(board: Board) -> None:
    chip = board.chip
    chip.route_irq(IrqRoute.msi(24, LAPIC, 0x50))
    board.vcpus[0].ready = False
    chip.service_irq(24, True)
    chip.inject_interrupts(board.vcpus[0])
    vcpu = board.vcpus[0] = FakeVcpu(0)
    chip.add_vcpu(0, vcpu)
    chip.wait_until_runnable(vcpu)
    assert vcpu.injected == [0x50]


def test_nothing_is_lost_while_vcpus_fight_for_the_chipset(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("irqchip_core.x86.chipset.chipset.DELAY_SECONDS", 0)  # or events would hardly be delayed
    chip, over = board.chip, threading.Event()
    board.redirect(5, 0x45)
    board.redirect(10, 0x804A)
    chip.route_irq(IrqRoute.msi(24, LAPIC, 0x50))
    accesses, rounds = [0, 0, 0], 0
    process = chip.process_delayed_irq_events

    def counted() -> None:
        nonlocal rounds
        rounds += 1
        process()

    def access(vcpu_id: int) -> None:
        bus = board.mmio.for_vcpu(vcpu_id)
        while not over.is_set():
            bus.read(IOAPIC, 4)
            accesses[vcpu_id] += 1

    chip.process_delayed_irq_events = counted  # type: ignore[method-assign]
    threads = [threading.Thread(target=access, args=(vcpu_id,)) for vcpu_id in range(len(accesses))]
    interval = sys.getswitchinterval()
    try:
        sys.setswitchinterval(1e-6)
        for thread in threads:
            thread.start()
        with IrqEdgeEvent() as edge, IrqLevelEvent() as level, IrqEdgeEvent() as message, IrqLoop(chip) as loop:
            for gsi, event in ((5, edge), (10, level), (24, message)):
                board.register(gsi, event)
            for _ in range(300):
                for event in (edge, level, message):
                    event.trigger()
                assert loop.flush(20)
                taken = []
                while vectors := board.inject():
                    taken += vectors
                    board.eoi()
                assert taken == [0x50, 0x4A, 0x45]
                assert level.clear_resample(0)
            assert loop.failed == 0
    finally:
        over.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)
    assert 0 < rounds < sum(accesses)  # events were delayed, and few rounds were in vain
