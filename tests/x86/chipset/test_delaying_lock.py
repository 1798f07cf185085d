"""Delayed events: in every order of the threads none is lost or served twice; a release costs one round at most."""

from __future__ import annotations

import select
from collections.abc import Callable

import pytest

from irqchip_core.eventfd import Event
from irqchip_core.events import IrqEdgeEvent, IrqEventSource, PlatformDeviceId
from irqchip_core.routes import RoutingTable
from irqchip_core.testing import FakeClock
from irqchip_core.x86.chipset.chipset import Chipset
from irqchip_core.x86.msi import Message
from tests.x86.turns import Turns, every_order, patch

pytestmark = pytest.mark.usefixtures("no_leaks")

SOURCE = IrqEventSource(PlatformDeviceId.SERIAL, 0, "COM1")
IOREDTBL = 0x10


class Scene:
    """A chipset whose lock gives turns, with signalled edge events on some GSIs. It is its local APICs, too."""

    lock_free = False

    def __init__(self, turns: Turns, gsis: tuple[int, ...]) -> None:
        self.turns = turns
        self.delivered: list[int] = []
        self.chipset = Chipset("chipset", FakeClock(), 24)
        self.chipset.apics = self
        self.events = [IrqEdgeEvent() for _ in gsis]
        self.indices = [self.chipset.register(gsi, event, SOURCE) for gsi, event in zip(gsis, self.events, strict=True)]
        for gsi in gsis:
            self.chipset.ioapic.write(0, 4, IOREDTBL + 2 * gsi, 0)
            self.chipset.ioapic.write(0x10, 4, gsi, 0)
        for event in self.events:
            event.trigger()
        self.rounds = 0
        self.token = self.chipset.delayed_token()
        self.lock = turns.lock()
        patch(self.chipset.lock, _mutex=self.lock, acquire=self.lock.acquire)

    def deliver(self, message: Message) -> bool:
        self.delivered.append(message.vector)
        return True

    def int_changed(self, high: bool) -> None:
        pass

    def entries_changed(self, pins: int) -> None:
        pass

    def commit_routes(self, routes: RoutingTable) -> None:
        pass

    def expire(self, now: int) -> int | None:
        return None

    def serve(self, number: int) -> Callable[[], None]:
        return lambda: self.chipset.service_event(self.indices[number])

    def access(self) -> None:
        """A vCPU reads a register."""
        with self.chipset.lock:
            pass

    def loop(self) -> None:
        """The irq loop: serves the delayed events as often as the token is readable, until nothing else happens."""
        while True:
            self.turns.pause(lambda: readable(self.token) or self.turns.left() == 1)
            if not readable(self.token):
                return
            self.rounds += 1
            self.chipset.process_delayed()

    def check(self, accesses: int) -> None:
        assert not self.chipset.lock.delayed
        assert not readable(self.token)
        assert self.lock.waits == accesses  # no other thread waits for a vCPU
        assert self.rounds <= self.lock.releases

    def close(self) -> None:
        self.token.close()
        for event in self.events:
            event.close()
        self.chipset.close()


def readable(token: Event) -> bool:
    return bool(select.select([token.fileno()], [], [], 0)[0])


@pytest.mark.parametrize(
    ("delayed", "served", "vcpus", "switches", "orders"),
    [(0, 1, 1, 4, 500), (0, 2, 1, 2, 500), (0, 1, 2, 2, 500), (1, 0, 2, 2, 500), (1, 1, 1, 2, 500)],
)
def test_in_every_order_each_event_is_served_once(
    delayed: int, served: int, vcpus: int, switches: int, orders: int
) -> None:
    """Of `delayed` events that are at the start, and `served` ones that come while vCPUs use the IOAPIC."""
    gsis = tuple(range(5, 5 + delayed + served))
    count = used = 0
    for turns in every_order(switches):
        scene = Scene(turns, gsis)
        acts = [scene.serve(number) for number in range(len(gsis))]
        with scene.chipset.lock:
            for act in acts[:delayed]:
                act()
        scene.lock.waits, scene.lock.releases = 0, min(delayed, 1)
        turns.run(*acts[delayed:], *[scene.access] * vcpus, scene.loop)
        assert sorted(scene.delivered) == [*gsis]
        scene.check(vcpus)
        count += 1
        used += scene.rounds > delayed
        scene.close()
    assert count > orders
    assert used > orders // 20  # it does come to delayed events
