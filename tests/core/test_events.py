"""Events: counting, cloning, equality, and the two kinds of interrupt events."""

from __future__ import annotations

import os
import socket
import stat
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from irqchip_core.errors import Closed
from irqchip_core.eventfd import Event
from irqchip_core.events import IrqEdgeEvent, IrqEventSource, IrqLevelEvent, PciDeviceId, PlatformDeviceId

pytestmark = pytest.mark.usefixtures("no_leaks", "kind")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # the kind stays the same
@given(st.lists(st.sampled_from(["signal", "reset", "wait"])))
def test_signals_merge_until_one_wait_or_reset_takes_them_all(steps: list[str]) -> None:
    signals = 0
    with Event() as event, event.clone() as clone:
        for step in steps:
            if step == "signal":
                clone.signal()
                signals += 1
            else:
                if step == "reset":
                    assert event.reset() == signals
                else:
                    assert event.wait(0) is (signals > 0)
                signals = 0


def test_wait_with_timeout_reports_that_time_ran_out() -> None:
    with Event() as event:
        assert event.wait(0.001) is False


def test_wait_blocks_until_another_thread_signals() -> None:
    with Event() as event:
        thread = threading.Thread(target=event.signal)
        thread.start()
        assert event.wait()
        thread.join()


def test_signal_of_a_saturated_counter_does_not_block(kind: str) -> None:
    with Event() as event:
        if kind == "eventfd":
            os.write(event.fileno(), (2**64 - 2).to_bytes(8, "little"))
        for _ in range(100_000 if kind == "socket pair" else 1):  # no socket holds so many
            event.signal()
        assert 0 < event.reset() < 2**64 - 1
        assert not event.wait(0)
        event.signal()
        assert event.wait(0)


def test_many_signals_and_one_who_waits() -> None:
    wanted, seen = 20_000, 0
    with Event() as event, Event() as end:

        def signal() -> None:
            for _ in range(wanted):
                event.signal()
            end.signal()

        thread = threading.Thread(target=signal)
        thread.start()
        while not end.reset():
            seen += event.reset()
        thread.join()
        seen += event.reset()
    assert 0 < seen <= wanted


def test_what_events_are_made_of(kind: str) -> None:
    with Event() as event:
        assert stat.S_ISSOCK(os.fstat(event.fileno()).st_mode) is (kind == "socket pair")


def test_clone_shares_the_counter_and_outlives_its_original() -> None:
    event = Event()
    with event.clone() as clone:
        event.signal()
        event.close()
        assert clone.wait(0)


def test_equality_is_that_of_the_open_file() -> None:
    with Event() as event, Event() as other, event.clone() as clone:
        assert event == clone
        assert hash(event) == hash(clone)
        assert event != other
        assert event != event.fileno()


def test_an_adopted_descriptor_is_the_same_event(kind: str) -> None:
    if kind == "socket pair":
        pytest.skip("an event of two descriptors is adopted by IrqLevelEvent.receive only")
    with Event() as event, Event.from_fd(os.dup(event.fileno())) as adopted:
        assert event == adopted
        assert hash(event) == hash(adopted)


def test_a_received_event_is_the_same_event() -> None:
    here, there = socket.socketpair()
    with here, there, IrqLevelEvent() as event, IrqLevelEvent() as other:
        event.send(here)
        with IrqLevelEvent.receive(there) as received:
            assert received.get_trigger() == event.get_trigger()
            assert received.get_resample() == event.get_resample()
            assert received.get_trigger() not in (event.get_resample(), other.get_trigger())


def test_a_closed_event_says_so_and_closes_twice() -> None:
    event = Event()
    event.close()
    event.close()
    for use in (event.fileno, event.signal, event.reset, event.wait, event.clone):
        with pytest.raises(Closed, match="the event is closed"):
            use()
    assert repr(event) == "<Event closed>"


def test_a_closed_event_is_still_equal_to_its_clones_and_to_no_other() -> None:
    with Event() as original, original.clone() as clone, Event() as other:
        received = original if hasattr(clone, "_reader") else Event.from_fd(os.dup(original.fileno()))
        received.close()  # nothing was compared with it before
        assert received == clone
        assert received != other


def test_a_dropped_event_closes_its_descriptor() -> None:
    fd = Event().fileno()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_edge_event() -> None:
    with IrqEdgeEvent() as event, event.try_clone() as clone:
        event.trigger()
        assert clone.clear_trigger(0)
        assert not event.clear_trigger(0)
        assert event.get_trigger() == clone.get_trigger()
        assert event.as_raw_fds() == [event.get_trigger().fileno()]


def test_level_event() -> None:
    with IrqLevelEvent() as event, event.try_clone() as clone:
        event.trigger()
        assert clone.clear_trigger(0)
        assert not clone.clear_resample(0)
        clone.trigger_resample()
        assert event.clear_resample(0)
        assert event.as_raw_fds() == [event.get_trigger().fileno(), event.get_resample().fileno()]


def test_events_adopt_what_they_are_given() -> None:
    trigger, resample = Event(), Event()
    with IrqLevelEvent(trigger, resample) as event:
        assert event.get_trigger() is trigger
        assert event.get_resample() is resample
    assert trigger.closed
    assert resample.closed


def test_a_half_made_level_clone_leaves_nothing_open() -> None:
    with IrqLevelEvent() as event:
        event.get_resample().close()
        with pytest.raises(Closed):
            event.try_clone()


def test_level_event_travels_to_another_process() -> None:
    here, there = socket.socketpair()
    with here, there, IrqLevelEvent() as event:
        event.send(here)
        pid = os.fork()
        if pid == 0:
            with IrqLevelEvent.receive(there) as received:
                received.trigger()
                os._exit(0 if received.clear_resample(5) else 1)
        assert event.clear_trigger(5)
        event.trigger_resample()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_receiving_something_else_says_so() -> None:
    here, there = socket.socketpair()
    with here, there:
        with Event() as event:
            socket.send_fds(here, [b"E"], [event.fileno()])
        with pytest.raises(EOFError, match="expected a level event"):
            IrqLevelEvent.receive(there)
        here.close()
        with pytest.raises(EOFError, match="expected a level event"):
            IrqLevelEvent.receive(there)


def test_sources_are_checked_records() -> None:
    source = IrqEventSource(PlatformDeviceId.SERIAL, 0, "COM1")
    assert source == IrqEventSource(PlatformDeviceId(4), 0, "COM1")
    with pytest.raises(ValueError, match="queue_id"):
        IrqEventSource(PlatformDeviceId.SERIAL, -1, "COM1")
    with pytest.raises(ValueError, match="vendor"):
        PciDeviceId(0x10000, 0)
