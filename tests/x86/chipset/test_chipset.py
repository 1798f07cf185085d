"""A chipset whose other side fails, and one that is closed while threads and guests still use it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator

import pytest
from attrs import evolve

from irqchip_core.errors import Closed, HypervisorError
from irqchip_core.eventfd import Event
from irqchip_core.events import IrqEdgeEvent, IrqEventIndex, IrqEventSource, IrqLevelEvent, PlatformDeviceId
from irqchip_core.routes import IrqRoute, RoutingTable
from irqchip_core.testing import FakeClock
from irqchip_core.x86.chipset.chipset import Chipset
from irqchip_core.x86.effects import TimerRose
from irqchip_core.x86.msi import Message

pytestmark = pytest.mark.usefixtures("no_leaks")

SOURCE = IrqEventSource(PlatformDeviceId.SERIAL, 0, "COM1")
LAPIC = 0xFEE00000
IOREDTBL = 0x10
LEVEL = 0x8000
RARE_TIMER = 5000


class Apics:
    """Local APICs that refuse the vectors in `broken`, and change the routes in the middle of a `delivery`."""

    lock_free = True

    def __init__(self) -> None:
        self.broken: set[int] = set()
        self.delivered: list[int] = []
        self.on_delivery: Callable[[], object] = str

    def deliver(self, message: Message) -> bool:
        on_delivery, self.on_delivery = self.on_delivery, str
        on_delivery()
        if message.vector in self.broken:
            raise HypervisorError("it does not work", call="KVM_SIGNAL_MSI", errno=12, subject="fake", remedy="none")
        self.delivered.append(message.vector)
        return True

    def int_changed(self, high: bool) -> None: ...

    def entries_changed(self, pins: int) -> None: ...

    def commit_routes(self, routes: RoutingTable) -> None: ...

    def expire(self, now: int) -> int | None:
        return RARE_TIMER


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def apics() -> Apics:
    return Apics()


@pytest.fixture
def chipset(clock: FakeClock, apics: Apics) -> Iterator[Chipset]:
    chipset = Chipset("chipset", clock, 24)
    chipset.apics = apics
    chipset.start()
    yield chipset
    chipset.close()


def redirect(chipset: Chipset, pin: int, entry: int) -> None:
    with chipset.lock:
        chipset.ioapic.write(0, 4, IOREDTBL + 2 * pin, 0)
        chipset.carry_out(chipset.ioapic.write(0x10, 4, entry, 0))


def test_timers_go_on_after_an_interrupt_that_cannot_be_sent(chipset: Chipset, clock: FakeClock, apics: Apics) -> None:
    redirect(chipset, 10, LEVEL | 0x4A)
    state = chipset.get_ioapic_state()
    chipset.set_ioapic_state(evolve(state, current_interrupt_level_bitmap=1 << 10, held_back=1 << 10, held_back_for=9))
    apics.broken = {0x4A}
    with pytest.raises(HypervisorError):
        clock.advance(9)
    assert clock.next_alarm() == RARE_TIMER


def test_delayed_events_are_served_though_one_cannot_be_sent(chipset: Chipset, apics: Apics) -> None:
    redirect(chipset, 5, 0x45)
    redirect(chipset, 6, 0x46)
    apics.broken = {0x45}
    with IrqEdgeEvent() as one, IrqEdgeEvent() as other:
        indices = [chipset.register(gsi, event, SOURCE) for gsi, event in ((5, one), (6, other))]
        with chipset.lock:
            for event, index in zip((one, other), indices, strict=True):
                event.trigger()
                chipset.service_event(index)
        with pytest.raises(HypervisorError):
            chipset.process_delayed()
    assert apics.delivered == [0x46]


@pytest.mark.parametrize("after", [[IrqRoute.msi(24, LAPIC, 0x52)], []])
def test_a_message_whose_route_changes_while_it_is_sent_is_sent(
    chipset: Chipset, apics: Apics, after: list[IrqRoute]
) -> None:
    first = [IrqRoute.msi(24, LAPIC, 0x51)]
    chipset.change_routes(lambda routes: routes.replaced(first))
    apics.on_delivery = lambda: chipset.change_routes(lambda routes: routes.replaced(after))
    chipset.service_irq(24, True)
    assert apics.delivered[0] == 0x51
    chipset.change_routes(lambda routes: routes.replaced(first))
    chipset.service_irq(24, True)
    assert apics.delivered[-1] == 0x51


def test_a_message_whose_route_comes_back_before_it_is_counted_is_sent(
    chipset: Chipset, apics: Apics, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = [IrqRoute.msi(24, LAPIC, 0x51)]
    chipset.change_routes(lambda routes: routes.replaced(message))
    looks = iter([chipset.lines.messages(24), ()])
    monkeypatch.setattr(type(chipset.lines), "messages", lambda self, gsi: next(looks))
    chipset.service_irq(24, True)
    assert apics.delivered == [0x51]


def test_what_was_delayed_while_the_chipset_closed_harms_no_release(chipset: Chipset) -> None:
    chipset.close()
    with chipset.lock:
        chipset.lock.delayed.append((IrqEventIndex(0), 1))


@pytest.mark.parametrize(("call", "use"), [("read", Chipset.process_delayed), ("dup", Chipset.delayed_token)])
def test_the_delayed_token_is_not_closed_while_a_thread_uses_it(
    chipset: Chipset, monkeypatch: pytest.MonkeyPatch, call: str, use: Callable[[Chipset], Event | None]
) -> None:
    system_call = getattr(os, call)
    closing = threading.Thread(target=chipset.lock.close)

    def slow(*arguments: int) -> object:
        monkeypatch.undo()
        closing.start()
        closing.join(0.05)
        return system_call(*arguments)

    monkeypatch.setattr(os, call, slow)
    token = use(chipset)
    closing.join()
    if token is not None:
        token.close()


def test_a_guest_may_use_what_is_closed(chipset: Chipset, apics: Apics) -> None:
    redirect(chipset, 5, 0x45)
    chipset.close()
    with chipset.lock:
        chipset.carry_out((TimerRose(1),))
        chipset.carry_out(chipset.ioapic.set_line(5, 1))
    assert apics.delivered == []


@pytest.mark.parametrize("kind", [IrqEdgeEvent, IrqLevelEvent])
def test_no_event_is_registered_in_a_closed_chipset(chipset: Chipset, kind: type[IrqEdgeEvent | IrqLevelEvent]) -> None:
    """By a thread that had begun before."""
    chipset.close()
    with kind() as event, pytest.raises(Closed):
        chipset.register(5, event, SOURCE)
    assert chipset.lines.resample_pins == 0
