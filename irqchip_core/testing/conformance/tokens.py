"""Scenarios: what an irq loop sees: tokens, the delayed token, and events served one by one."""

from __future__ import annotations

import threading

from irqchip_core.capabilities import IrqChipCap
from irqchip_core.errors import InvalidArgument
from irqchip_core.events import IrqEventIndex
from irqchip_core.routes import IrqRoute
from irqchip_core.testing.bench import IOREGSEL, SOURCE, Bench
from irqchip_core.testing.conformance.base import Scenarios, needs
from irqchip_core.testing.guest_cpu import Eoi
from irqchip_core.testing.verdict import NotApplicable, accepted, check, check_equal, refused
from irqchip_core.x86.msi import MSI_ADDRESS_BASE

IN_KERNEL = "needs events that user space serves (a register call that returns an index); here the kernel serves them"
PAUSE = 0.00002  # seconds between two accesses of a guest that polls
NEVER_DELAYED = "needs a delayed token; irq_delayed_event_token() is None, so no event is ever delayed"


def indices(machine: Bench) -> list[int]:
    """Of all tokens."""
    tokens = machine.chip.irq_event_tokens()
    for token in tokens:
        token.close()
    return [token.index for token in tokens]


class Tokens(Scenarios):
    """Tokens and delayed events."""

    def _served(self) -> Bench:
        machine = self.boot()
        if not machine.serves_events():
            raise NotApplicable(IN_KERNEL)
        machine.loop.stop()  # the scenario serves the events itself
        return machine

    def test_index_or_token(self) -> None:
        """An event has a token exactly if its registration returned an index."""
        machine = self.boot()
        before = set(indices(machine))
        event = machine.edge(5)
        index = machine.indices[-1]
        expected = before if index is None else before | {index}
        check_equal(set(indices(machine)), expected, "there is a token exactly for an event with an index")
        machine.chip.unregister_edge_irq_event(5, event)
        check_equal(set(indices(machine)), before, "unregistration takes the token away")

    def test_indices_are_never_used_again(self) -> None:
        """An index is unique for the life of the chip."""
        machine = self._served()
        for _ in range(5):
            machine.chip.unregister_edge_irq_event(5, machine.edge(5))
        given = machine.indices
        check_equal(len(set(given)), len(given), "an index is never used again")

    def test_tokens_belong_to_the_caller(self) -> None:
        """Closing a token leaves the registration, and each call gives new ones."""
        machine = self._served()
        machine.connect(5, 0x45)
        event = machine.edge(5)
        index = machine.indices[-1]
        assert index is not None
        indices(machine)
        event.trigger()
        tokens = {token.index: token for token in machine.chip.irq_event_tokens()}
        check(index in tokens, "closing a token leaves the registration", "the token is gone")
        mine = tokens[index]
        check_equal(mine.source, SOURCE, "a token names the source that registered")
        machine.chip.service_irq_event(mine.index)
        check(not mine.event.reset(), "service_irq_event consumes the event", "it is still signalled")
        for token in tokens.values():
            token.close()
        machine.loop.start()
        machine.cpu.expect(0x45, rule="service_irq_event drives the GSI of its event")

    def test_service_of_an_unsignalled_event(self) -> None:
        """`service_irq_event` of an event that is not signalled does nothing, and does not wait."""
        machine = self._served()
        machine.connect(5, 0x45)
        machine.edge(5)
        index = machine.indices[-1]
        assert index is not None
        machine.chip.service_irq_event(index)
        machine.loop.start()
        machine.cpu.expect_nothing(rule="service_irq_event of an event that is not signalled does nothing")

    def test_service_of_an_unregistered_event(self) -> None:
        """An index whose event was unregistered is served without effect."""
        machine = self._served()
        machine.connect(5, 0x45)
        event = machine.edge(5)
        index = machine.indices[-1]
        assert index is not None
        event.trigger()
        machine.chip.unregister_edge_irq_event(5, event)
        with accepted("service_irq_event takes the index of an event that was unregistered"):
            machine.chip.service_irq_event(index)
        check(event.clear_trigger(0), "the signal of an unregistered event is not consumed", "its signal was consumed")
        machine.loop.start()
        machine.cpu.expect_nothing(rule="an unregistered event reaches nothing")

    def test_service_of_an_unknown_index(self) -> None:
        """An index that was never given is refused."""
        machine = self._served()
        for index in (9999, -1):
            with refused(InvalidArgument, f"service_irq_event refuses index {index}, which was never given"):
                machine.chip.service_irq_event(IrqEventIndex(index))

    def test_same_event_twice(self) -> None:
        """An event registered twice on a GSI needs as many unregistrations, if that is not refused."""
        machine = self._served()
        machine.connect(5, 0x45)
        event = machine.edge(5)
        index = machine.chip.register_edge_irq_event(5, event, SOURCE)
        check(index not in (None, machine.indices[-1]), "each registration has an index of its own", f"it got {index}")
        machine.chip.unregister_edge_irq_event(5, event)
        machine.loop.start()
        event.trigger()
        machine.cpu.expect(0x45, rule="one of two registrations of an event stays when the other goes")

    def test_delayed_token_at_rest(self) -> None:
        """The delayed token is not readable while nothing is delayed, and processing nothing is harmless."""
        machine = self.boot()
        token = machine.chip.irq_delayed_event_token()
        if token is None:
            raise NotApplicable(NEVER_DELAYED)
        check(not token.reset(), "the delayed token is readable only while events are delayed", "it is readable")
        token.close()
        machine.chip.process_delayed_irq_events()
        machine.cpu.expect_nothing(rule="processing delayed events when there are none does nothing")

    @needs(IrqChipCap.IOAPIC)
    def test_events_while_the_ioapic_is_busy(self) -> None:
        """No event is lost while vCPUs keep the IOAPIC busy: it is served at once, or delayed and served then."""
        machine = self.boot()
        if not machine.ioapic_in_chip:
            raise NotApplicable("needs an IOAPIC in the chip; the hypervisor's own is never too busy")
        machine.pin(5, 0x45)
        event = machine.edge(5)
        stop = threading.Event()
        bus = machine.mmio_bus.for_vcpu(0)

        def read() -> None:
            while not stop.wait(PAUSE):
                bus.read(IOREGSEL, 4)

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        try:
            for _ in range(30):
                event.trigger()
                rule = "no event is lost while the IOAPIC is busy (is it delayed, and served later?)"
                machine.cpu.expect_next(0x45, rule=rule)
                machine.cpu.end(Eoi.LAPIC)
        finally:
            stop.set()
            reader.join()
        machine.cpu.expect_nothing(rule="a delayed event is served once")

    @needs(IrqChipCap.IOAPIC)
    def test_delayed_level_events(self) -> None:
        """No level event is lost while vCPUs keep the IOAPIC busy, and each is resampled at its EOI."""
        machine = self.boot()
        if not machine.ioapic_in_chip:
            raise NotApplicable("needs an IOAPIC in the chip; the hypervisor's own is never too busy")
        machine.pin(10, 0x4A, level=True)
        event = machine.level(10)
        stop = threading.Event()
        bus = machine.mmio_bus.for_vcpu(0)

        def read() -> None:
            while not stop.wait(PAUSE):
                bus.read(IOREGSEL, 4)

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        try:
            for _ in range(20):
                event.trigger()
                machine.cpu.expect_next(0x4A, rule="no level event is lost while the IOAPIC is busy")
                machine.cpu.end(Eoi.LAPIC)
                rule = "a level event is resampled while the IOAPIC is busy"
                check(event.clear_resample(machine.patience), rule, "it was not")
        finally:
            stop.set()
            reader.join()

    @needs(IrqChipCap.IOAPIC)
    def test_messages_while_the_ioapic_is_busy(self) -> None:
        """A message has nothing to do with the IOAPIC: `service_irq_event` sends it while vCPUs keep that busy."""
        machine = self._served()
        if not machine.ioapic_in_chip:
            raise NotApplicable("needs an IOAPIC in the chip; the hypervisor's own is never too busy")
        machine.chip.route_irq(IrqRoute.msi(5, MSI_ADDRESS_BASE, 0x51))
        event = machine.edge(5)
        index = machine.indices[-1]
        assert index is not None
        stop = threading.Event()
        bus = machine.mmio_bus.for_vcpu(0)

        def read() -> None:
            while not stop.is_set():
                bus.read(IOREGSEL, 4)

        readers = [threading.Thread(target=read, daemon=True) for _ in range(2)]
        for reader in readers:
            reader.start()
        try:
            for _ in range(40):
                event.trigger()
                machine.chip.service_irq_event(index)
                rule = "service_irq_event sends a message at once (does it wait for the IOAPIC?)"
                machine.cpu.expect_next(0x51, rule=rule)
                machine.cpu.end(Eoi.LAPIC)
        finally:
            stop.set()
            for reader in readers:
                reader.join()

    def test_tokens_where_the_kernel_serves(self) -> None:
        """Where registration returns no index, there is no token at all."""
        machine = self.boot()
        if machine.serves_events():
            raise NotApplicable("needs events that the kernel serves (a register call that returns None)")
        event = machine.edge(100)
        check_equal(machine.indices[-1], None, "the kernel serves all events or none")
        check_equal(indices(machine), [], "there are no tokens for events that the kernel serves")
        machine.chip.unregister_edge_irq_event(100, event)
