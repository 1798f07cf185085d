"""The irq loop, on a thread and in asyncio: it follows what is registered, and stops cleanly."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import pytest

from irqchip_core.errors import InvalidArgument, IrqChipError
from irqchip_core.events import (
    IrqEdgeEvent,
    IrqEventIndex,
    IrqEventSource,
    IrqEventToken,
    IrqLevelEvent,
    PlatformDeviceId,
)
from irqchip_core.irq_loop import AsyncIrqLoop, IrqLoop, SteppedIrqLoop
from tests.core.table_chip import TableChip

pytestmark = pytest.mark.usefixtures("no_leaks", "kind")

SOURCE = IrqEventSource(PlatformDeviceId.SERIAL, 0, "COM1")


def test_serves_what_was_registered_before_and_after_its_start() -> None:
    with TableChip() as chip, IrqEdgeEvent() as before, IrqLevelEvent() as after:
        chip.register_edge_irq_event(4, before, SOURCE)
        before.trigger()
        with IrqLoop(chip) as loop:
            assert loop.flush(5)
            chip.register_level_irq_event(10, after, SOURCE)
            after.trigger()
            before.trigger()
            assert loop.flush(5)
        assert sorted(chip.served) == [4, 4, 10]


def test_an_unregistered_event_is_let_go_and_never_served_again() -> None:
    with TableChip() as chip, IrqEdgeEvent() as event, IrqLoop(chip) as loop:
        chip.register_edge_irq_event(4, event, SOURCE)
        chip.unregister_edge_irq_event(4, event)
        event.trigger()  # still readable: a loop that kept polling it would spin
        assert loop.flush(5)
        rounds = loop.handled
        assert loop.flush(5)
        assert chip.served == []
        assert loop.handled == rounds


def test_an_index_is_never_used_twice_and_a_stale_one_is_harmless() -> None:
    with TableChip() as chip, IrqEdgeEvent() as event:
        first = chip.register_edge_irq_event(4, event, SOURCE)
        chip.unregister_edge_irq_event(4, event)
        assert chip.register_edge_irq_event(4, event, SOURCE) != first
        chip.service_irq_event(first)
        with pytest.raises(InvalidArgument, match="no event was registered with index 2"):
            chip.table.slot(2)


def test_serves_delayed_events() -> None:
    with TableChip() as chip, IrqLoop(chip) as loop:
        chip.delayed.signal()
        assert loop.flush(5)
        assert chip.delayed_rounds == 1


def test_a_chip_that_raises_is_logged_and_does_not_make_the_loop_spin(caplog: pytest.LogCaptureFixture) -> None:
    with TableChip() as chip, IrqEdgeEvent() as event, IrqLoop(chip) as loop:
        chip.register_edge_irq_event(4, event, SOURCE)
        chip.fault = RuntimeError("no such pin")
        event.trigger()
        chip.delayed.signal()
        assert loop.flush(5)
        assert loop.failed == 2
        chip.fault = None
        event.trigger()
        assert loop.flush(5)
        assert chip.served == [4]
    assert "table: cannot serve COM1 (index 0)" in caplog.text
    assert "table: cannot serve delayed events" in caplog.text


def test_starts_once_stops_twice_and_starts_again() -> None:
    with TableChip() as chip, IrqEdgeEvent() as event:
        chip.register_edge_irq_event(4, event, SOURCE)
        loop = IrqLoop(chip)
        assert not loop.flush(0)
        for _ in range(2):
            loop.start()
            with pytest.raises(IrqChipError, match="runs already"):
                loop.start()
            event.trigger()
            assert loop.flush(5)
            loop.stop()
            loop.stop()
        assert chip.served == [4, 4]


def test_can_be_stopped_by_what_it_serves() -> None:
    class Stopper(TableChip):
        def service_irq_event(self, index: object) -> None:
            loop.stop()
            stopped.set()

    stopped = threading.Event()
    with Stopper() as chip, IrqEdgeEvent() as event:
        chip.register_edge_irq_event(4, event, SOURCE)
        loop = IrqLoop(chip)
        loop.start()
        thread = loop._thread
        assert thread is not None
        event.trigger()
        assert stopped.wait(5)
        thread.join(5)
        assert not thread.is_alive()


def test_can_be_started_again_by_what_it_serves() -> None:
    class Restarter(TableChip):
        def service_irq_event(self, index: object) -> None:
            slot = self.table.slot(0)
            assert slot is not None
            slot.trigger.reset()
            if not restarted.is_set():
                loop.stop()
                loop.start()
            restarted.set()

    restarted = threading.Event()
    with Restarter() as chip, IrqEdgeEvent() as event:
        chip.register_edge_irq_event(4, event, SOURCE)
        loop = IrqLoop(chip)
        loop.start()
        first = loop._thread
        event.trigger()
        assert restarted.wait(5)
        assert first is not None
        first.join(5)
        assert not first.is_alive()
        assert loop.flush(5)
        loop.stop()


class Exhausted(TableChip):
    """Cannot clone its tokens for a while."""

    failures = 2

    def irq_event_tokens(self) -> list[IrqEventToken]:
        if self.failures:
            self.failures -= 1
            raise OSError(24, "Too many open files")
        return super().irq_event_tokens()


def test_a_chip_that_cannot_tell_its_tokens_is_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    with Exhausted() as chip, IrqEdgeEvent() as event, IrqLoop(chip) as loop:
        chip.register_edge_irq_event(4, event, SOURCE)
        event.trigger()
        assert chip.progress.acquire(timeout=10)
        assert chip.served == [4]
        assert loop.failed == 2
    assert "table: irq_event_tokens failed" in caplog.text


def test_asyncio_asks_again_too() -> None:
    async def serve() -> None:
        async with AsyncIrqLoop(chip):
            event.trigger()
            while not chip.progress.acquire(blocking=False):
                await asyncio.sleep(0)

    with Exhausted() as chip, IrqEdgeEvent() as event:
        chip.register_edge_irq_event(4, event, SOURCE)
        asyncio.run(asyncio.wait_for(serve(), 10))
        assert chip.served == [4]


def test_a_flush_that_the_stop_overtakes_says_so() -> None:
    class Blocking(TableChip):
        def service_irq_event(self, index: object) -> None:
            entered.set()
            release.wait(5)

    entered, release = threading.Event(), threading.Event()
    answers: list[bool] = []
    with Blocking() as chip, IrqEdgeEvent() as event:
        chip.register_edge_irq_event(4, event, SOURCE)
        loop = IrqLoop(chip)
        loop.start()
        event.trigger()
        assert entered.wait(5)
        assert loop.flush(0.01) is False  # still busy
        flusher = threading.Thread(target=lambda: answers.append(loop.flush(5)))
        flusher.start()
        stopper = threading.Thread(target=loop.stop)
        stopper.start()
        release.set()
        stopper.join()
        flusher.join()
    assert answers in ([True], [False])  # whichever came first; it must not hang


def test_registration_storm_from_several_threads_loses_nothing() -> None:
    rounds = 60
    with TableChip() as chip, IrqLoop(chip) as loop:

        def device(gsi: int) -> None:
            for _ in range(rounds):
                with IrqEdgeEvent() as event:
                    chip.register_edge_irq_event(gsi, event, SOURCE)
                    event.trigger()
                    assert loop.flush(10)
                    chip.unregister_edge_irq_event(gsi, event)

        threads = [threading.Thread(target=device, args=(gsi,)) for gsi in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(chip.served) == sorted([*range(4)] * rounds)


def test_flush_waits_for_delayed_events_and_does_not_spin() -> None:
    class Busy(TableChip):
        looks = 0
        busy = True

        @property
        def events_delayed(self) -> bool:
            self.looks += 1
            looked.set()
            return self.busy

    looked, answers = threading.Event(), list[bool]()
    with Busy() as chip, IrqLoop(chip) as loop, IrqEdgeEvent() as event:
        chip.register_edge_irq_event(4, event, SOURCE)
        flusher = threading.Thread(target=lambda: answers.append(loop.flush(10)))
        flusher.start()
        assert looked.wait(5)
        for _ in range(5):
            event.trigger()
            assert chip.progress.acquire(timeout=5)
        assert answers == []
        assert chip.looks <= 10
        chip.busy = False
        chip.delayed.signal()
        flusher.join()
    assert answers == [True]


async def _serve_in_asyncio(chip: TableChip, before: IrqEdgeEvent, after: IrqEdgeEvent) -> None:
    async def progress(count: int) -> None:
        for _ in range(count):
            while not chip.progress.acquire(blocking=False):
                await asyncio.sleep(0)

    async with AsyncIrqLoop(chip) as loop:
        before.trigger()
        await progress(1)
        thread = threading.Thread(target=chip.register_edge_irq_event, args=(5, after, SOURCE))
        thread.start()
        after.trigger()
        await progress(1)
        thread.join()
        chip.unregister_edge_irq_event(4, before)
        before.trigger()
        chip.delayed.signal()
        await progress(1)
        assert chip.delayed_rounds == 1
        assert loop.handled == 3


def test_asyncio_follows_what_is_registered() -> None:
    with TableChip() as chip, IrqEdgeEvent() as before, IrqEdgeEvent() as after:
        chip.register_edge_irq_event(4, before, SOURCE)
        asyncio.run(asyncio.wait_for(_serve_in_asyncio(chip, before, after), 10))
        assert chip.served == [4, 5]
        assert chip.observers._manager.get_plugins() == set()


# --- in steps


def test_steps_serve_what_is_there_in_the_order_of_indices() -> None:
    with TableChip() as chip, contextlib.ExitStack() as stack:
        events = [stack.enter_context(IrqEdgeEvent()) for _ in range(5)]
        for gsi, event in enumerate(events[:4]):
            chip.register_edge_irq_event(gsi, event, SOURCE)
        with contextlib.closing(SteppedIrqLoop(chip)) as loop:
            for gsi in (3, 0, 2):
                events[gsi].trigger()
            assert loop.serve() == 3
            assert chip.served == [0, 2, 3]
            assert loop.serve() == 0
            chip.register_edge_irq_event(4, events[4], SOURCE)
            chip.unregister_edge_irq_event(0, events[0])
            for gsi in (4, 1):
                events[gsi].trigger()
            assert loop.serve() == 2
            assert chip.served == [0, 2, 3, 1, 4]
            chip.delayed.signal()
            assert loop.serve() == 1
            assert chip.delayed_rounds == 1
        loop.close()


def test_a_step_serves_consequences_too() -> None:
    class Chain(TableChip):
        def service_irq_event(self, index: IrqEventIndex) -> None:
            super().service_irq_event(index)
            if index < 3:
                events[index + 1].trigger()

    with Chain() as chip, contextlib.ExitStack() as stack:
        events = [stack.enter_context(IrqEdgeEvent()) for _ in range(4)]
        for gsi, event in enumerate(events):
            chip.register_edge_irq_event(gsi, event, SOURCE)
        with contextlib.closing(SteppedIrqLoop(chip)) as loop:
            events[0].trigger()
            assert loop.serve() == 4
            assert chip.served == [0, 1, 2, 3]
