"""Scenarios: what edge events do, and when they cease to."""

from __future__ import annotations

from irqchip_core.events import IrqEdgeEvent, IrqLevelEvent
from irqchip_core.routes import IrqRoute
from irqchip_core.testing.bench import SOURCE
from irqchip_core.testing.conformance.base import Scenarios
from irqchip_core.testing.guest_cpu import Eoi
from irqchip_core.testing.verdict import accepted, check
from irqchip_core.x86.msi import MSI_ADDRESS_BASE

ONCE = "each signal of an edge event interrupts once"


class EdgeEvents(Scenarios):
    """Edge events."""

    def test_edge_through_the_ioapic(self) -> None:
        """Each signal is one interrupt, through an IOAPIC pin."""
        machine = self.boot()
        machine.pin(5, 0x45)
        event = machine.edge(5)
        for _ in range(3):
            event.trigger()
            machine.cpu.expect(0x45, rule=ONCE)

    def test_edge_through_the_primary_pic(self) -> None:
        """Each signal is one interrupt, through the primary PIC."""
        machine = self.boot()
        machine.unmask_pics(5)
        event = machine.edge(5)
        for _ in range(3):
            event.trigger()
            machine.cpu.expect(0x35, rule=ONCE, eoi=Eoi.PRIMARY)

    def test_edge_through_the_secondary_pic(self) -> None:
        """Each signal is one interrupt, through the secondary PIC and its cascade line."""
        machine = self.boot()
        machine.unmask_pics(12)
        event = machine.edge(12)
        for _ in range(3):
            event.trigger()
            machine.cpu.expect(0x3C, rule=ONCE, eoi=Eoi.PRIMARY | Eoi.SECONDARY)

    def test_edge_through_an_msi_route(self) -> None:
        """Each signal sends the MSI of its GSI once."""
        machine = self.boot()
        machine.chip.route_irq(IrqRoute.msi(100, MSI_ADDRESS_BASE, 0x51))
        event = machine.edge(100)
        for _ in range(3):
            event.trigger()
            machine.cpu.expect(0x51, rule=ONCE)

    def test_edge_to_pic_and_ioapic(self) -> None:
        """A GSI of 0-15 reaches its PIC and its IOAPIC pin, if both are unmasked."""
        machine = self.boot()
        self.lab.leave_open("whether the PIC or the local APIC comes first", order_only=True)
        machine.unmask_pics(5)
        machine.pin(5, 0x45)
        event = machine.edge(5)
        event.trigger()
        rule = "an edge event of a legacy GSI drives PIC and IOAPIC"
        machine.cpu.expect_all([0x35, 0x45], rule=rule, eoi=Eoi.LAPIC | Eoi.PRIMARY)

    def test_no_edge_is_lost_in_a_hundred(self) -> None:
        """A hundred signals, each taken before the next, are a hundred interrupts."""
        machine = self.boot()
        machine.connect(11, 0x4B)
        event = machine.edge(11)
        for _ in range(100):
            event.trigger()
            machine.cpu.expect_next(0x4B, rule=ONCE)
            machine.cpu.end(Eoi.LAPIC)
        machine.cpu.expect_nothing(rule=ONCE)

    def test_signals_merge_while_the_interrupt_is_pending(self) -> None:
        """Signals that come before the interrupt is taken may be coalesced, into one interrupt at least."""
        machine = self.boot()
        self.lab.leave_open("how many of the signals are coalesced")
        machine.connect(5, 0x45)
        event = machine.edge(5)
        for _ in range(10):
            event.trigger()
        machine.settle()
        count = 0
        while (machine.cpu.take() if not count else machine.cpu.look()) == 0x45:
            machine.cpu.end(Eoi.LAPIC)
            count += 1
        check(1 <= count <= 10, "10 signals are 1 to 10 interrupts", f"{count} came")

    def test_event_signalled_before_registration(self) -> None:
        """An event that is signalled already fires as soon as it is registered."""
        machine = self.boot()
        machine.connect(5, 0x45)
        with IrqEdgeEvent() as event:
            event.trigger()
            machine.chip.register_edge_irq_event(5, event, SOURCE)
            machine.cpu.expect(0x45, rule="an event signalled before it is registered fires at once")

    def test_events_share_a_gsi(self) -> None:
        """Several events on one GSI each interrupt."""
        machine = self.boot()
        machine.connect(5, 0x45)
        one, other = machine.edge(5), machine.edge(5)
        for event in (one, other, one):
            event.trigger()
            machine.cpu.expect(0x45, rule="each of several events on a GSI interrupts")

    def test_every_gsi_reaches_its_own_pin(self) -> None:
        """An event on GSI n reaches IOAPIC pin n and no other."""
        machine = self.boot()
        events = []
        for gsi in range(24):
            machine.pin(gsi, 0x40 + gsi)
            events.append(machine.edge(gsi) if gsi else None)  # GSI 0 is the PIT's
        for gsi, event in enumerate(events):
            if event is not None:
                event.trigger()
                machine.cpu.expect(0x40 + gsi, rule=f"an event on GSI {gsi} reaches IOAPIC pin {gsi} alone")

    def test_unrouted_event_waits_for_its_route(self) -> None:
        """An event on a GSI without a route reaches nothing, until there is one."""
        machine = self.boot()
        event = machine.edge(100)
        event.trigger()
        machine.cpu.expect_nothing(rule="an event on a GSI without a route reaches nothing")
        machine.chip.route_irq(IrqRoute.msi(100, MSI_ADDRESS_BASE, 0x51))
        event.trigger()
        machine.cpu.expect(0x51, rule="an event registered before its route interrupts once the route is there")

    def test_any_gsi_can_be_registered(self) -> None:
        """Every unsigned 32-bit GSI can be registered; it reaches nothing without a route."""
        machine = self.boot()
        with accepted("any 32-bit GSI can be registered"):
            event = machine.edge(0xFFFFFFFF)
        event.trigger()
        machine.cpu.expect_nothing(rule="an event on an absurd GSI reaches nothing")
        with accepted("any 32-bit GSI can be unregistered"):
            machine.chip.unregister_edge_irq_event(0xFFFFFFFF, event)

    def test_chip_keeps_its_own_handle(self) -> None:
        """The device may close the handle that it registered."""
        machine = self.boot()
        machine.connect(5, 0x45)
        with IrqEdgeEvent() as event:
            given = event.try_clone()
            machine.chip.register_edge_irq_event(5, given, SOURCE)
            given.close()
            event.trigger()
            machine.cpu.expect(0x45, rule="a registration outlives the handle that was given")

    def test_unregistered_event_reaches_nothing(self) -> None:
        """After unregistration no signal of the event is consumed, and none interrupts."""
        machine = self.boot()
        machine.connect(5, 0x45)
        event = machine.edge(5)
        event.trigger()
        machine.cpu.expect(0x45, rule=ONCE)
        machine.chip.unregister_edge_irq_event(5, event)
        event.trigger()
        machine.cpu.expect_nothing(rule="an unregistered edge event reaches nothing")
        check(event.clear_trigger(0), "the signal of an unregistered event is not consumed", "its signal was consumed")

    def test_unregistration_by_a_clone(self) -> None:
        """Any clone of an event names its registration."""
        machine = self.boot()
        machine.connect(5, 0x45)
        event = machine.edge(5)
        with event.try_clone() as clone:
            machine.chip.unregister_edge_irq_event(5, clone)
        event.trigger()
        machine.cpu.expect_nothing(rule="a clone of an event unregisters it")

    def test_unregistration_of_a_closed_event(self) -> None:
        """An event that its device has closed is unregistered as any other; harmless if it never was registered."""
        machine = self.boot()
        machine.connect(5, 0x45)
        edge, level = machine.edge(5), machine.level(10)
        others: list[IrqEdgeEvent | IrqLevelEvent] = [edge.try_clone(), level.try_clone()]
        strangers = IrqEdgeEvent(), IrqLevelEvent()
        machine.keep(*others)
        for event in (edge, level, *strangers):
            event.close()
        chip = machine.chip
        with accepted("the device may close its event before it is unregistered"):
            for one in (strangers[0], edge):
                chip.unregister_edge_irq_event(5, one)
            for other in (strangers[1], level):
                chip.unregister_level_irq_event(10, other)
        for clone in others:
            clone.trigger()
        rule = "a closed event that is unregistered reaches nothing"
        machine.cpu.expect_nothing(rule=rule)
        check(all(clone.clear_trigger(0) for clone in others), rule, "its signal was consumed")

    def test_unregistration_of_a_stranger(self) -> None:
        """Unregistering an unknown event, or on another GSI, is harmless and does nothing."""
        machine = self.boot()
        machine.connect(5, 0x45)
        event = machine.edge(5)
        with IrqEdgeEvent() as stranger, accepted("unregistering what is not registered is harmless"):
            machine.chip.unregister_edge_irq_event(5, stranger)
            machine.chip.unregister_edge_irq_event(6, event)
        event.trigger()
        machine.cpu.expect(0x45, rule="unregistering an event on another GSI leaves it registered")

    def test_registered_again(self) -> None:
        """An event can be registered again, on another GSI."""
        machine = self.boot()
        machine.connect(5, 0x45)
        machine.connect(6, 0x46)
        event = machine.edge(5)
        machine.chip.unregister_edge_irq_event(5, event)
        with accepted("an unregistered event can be registered again"):
            machine.chip.register_edge_irq_event(6, event, SOURCE)
        event.trigger()
        machine.cpu.expect(0x46, rule="an event registered anew drives its new GSI alone")

    def test_one_of_two_is_unregistered(self) -> None:
        """Unregistering one of two events on a GSI leaves the other."""
        machine = self.boot()
        machine.connect(5, 0x45)
        one, other = machine.edge(5), machine.edge(5)
        machine.chip.unregister_edge_irq_event(5, one)
        one.trigger()
        machine.cpu.expect_nothing(rule="an unregistered edge event reaches nothing")
        other.trigger()
        machine.cpu.expect(0x45, rule="the other event of a GSI stays registered")
