"""Scenarios: from GSIs to pins and messages, and how routes change."""

from __future__ import annotations

from irqchip_core.capabilities import IrqChipCap
from irqchip_core.errors import InvalidRoute
from irqchip_core.routes import IrqRoute, IrqSource, IrqSourceChip, MsiSource, PinSource, default_routes
from irqchip_core.testing.conformance.base import ABSENT, Scenarios, needs
from irqchip_core.testing.guest_cpu import Eoi
from irqchip_core.testing.verdict import Nonconforming, NotApplicable, accepted, refused
from irqchip_core.x86.msi import MSI_ADDRESS_BASE


def message(gsi: int, vector: int) -> IrqRoute:
    return IrqRoute.msi(gsi, MSI_ADDRESS_BASE, vector)


REPLACED = "route_irq replaces the routes of its GSI that it conflicts with, and leaves the others"

PINS = {
    IrqSourceChip.PIC_PRIMARY: IrqChipCap.PIC,
    IrqSourceChip.PIC_SECONDARY: IrqChipCap.PIC,
    IrqSourceChip.IOAPIC: IrqChipCap.IOAPIC,
}
"""Which capability has the controller of a pin."""

BAD_ROUTES = {
    "a pin that the IOAPIC does not have": IrqRoute(5, PinSource(IrqSourceChip.IOAPIC, 240)),
    "a pin that a PIC does not have": IrqRoute(5, PinSource(IrqSourceChip.PIC_PRIMARY, 8)),
    "a negative pin": IrqRoute(5, PinSource(IrqSourceChip.PIC_SECONDARY, -1)),
    "a controller of another architecture": IrqRoute(5, PinSource(IrqSourceChip.GIC, 0)),
    "a GSI above 4095": message(4096, 0x77),
    "a negative GSI": message(-1, 0x77),
    "an address of more than 64 bits": IrqRoute.msi(30, 1 << 64, 0x77),
    "data of more than 32 bits": IrqRoute.msi(30, MSI_ADDRESS_BASE, 1 << 32),
}


class Routes(Scenarios):
    """Routes."""

    def test_msi_route(self) -> None:
        """A GSI can carry a message."""
        machine = self.boot()
        machine.chip.route_irq(message(30, 0x51))
        machine.pulse(30)
        machine.cpu.expect(0x51, rule="a GSI with an MSI route sends its message")

    def test_route_replaced(self) -> None:
        """A new MSI route of a GSI replaces the old one."""
        machine = self.boot()
        for vector in (0x51, 0x52, 0x53):
            machine.chip.route_irq(message(30, vector))
        machine.pulse(30)
        machine.cpu.expect(0x53, rule="a new MSI route of a GSI replaces the one before")

    def _replace(self, gsi: int, *steps: tuple[IrqSource, list[int]]) -> None:
        """Route `gsi` to each source in turn, and demand that an event on it interrupts as its routes then say."""
        machine = self.boot()
        self.lab.leave_open("whether the PIC or the local APIC comes first", order_only=True)
        machine.unmask_pics(5, 6, 10, 12)
        for pin in (5, 7, 10):
            machine.pin(pin, 0x40 + pin)
        event = machine.edge(gsi)
        for source, expected in steps:
            with accepted(f"route_irq takes {source} in place of what conflicts with it"):
                machine.chip.route_irq(IrqRoute(gsi, source))
            event.trigger()
            machine.cpu.expect_all(expected, rule=REPLACED, eoi=Eoi.LAPIC | Eoi.PRIMARY | Eoi.SECONDARY)
            machine.pulse(gsi)
            machine.cpu.expect_all(expected, rule=REPLACED, eoi=Eoi.LAPIC | Eoi.PRIMARY | Eoi.SECONDARY)
        machine.pulse(10)
        rule = "route_irq leaves the routes of other GSIs"
        machine.cpu.expect_all([0x3A, 0x4A], rule=rule, eoi=Eoi.LAPIC | Eoi.PRIMARY | Eoi.SECONDARY)

    def test_pin_replaces_the_pin_of_its_controller(self) -> None:
        """`route_irq` of a pin replaces the GSI's pin of the same controller, and leaves those of the others."""
        self._replace(
            5,
            (PinSource(IrqSourceChip.IOAPIC, 7), [0x35, 0x47]),
            (PinSource(IrqSourceChip.PIC_PRIMARY, 6), [0x36, 0x47]),
            (PinSource(IrqSourceChip.PIC_SECONDARY, 4), [0x36, 0x3C, 0x47]),
            (PinSource(IrqSourceChip.IOAPIC, 5), [0x36, 0x3C, 0x45]),
        )

    def test_message_replaces_all_pins(self) -> None:
        """`route_irq` of a message replaces all pins of the GSI."""
        self._replace(5, (MsiSource(MSI_ADDRESS_BASE, 0x51), [0x51]), (MsiSource(MSI_ADDRESS_BASE, 0x52), [0x52]))

    def test_pin_replaces_a_message(self) -> None:
        """`route_irq` of a pin replaces the message of the GSI."""
        self._replace(
            100,
            (MsiSource(MSI_ADDRESS_BASE, 0x51), [0x51]),
            (PinSource(IrqSourceChip.IOAPIC, 7), [0x47]),
            (PinSource(IrqSourceChip.PIC_PRIMARY, 5), [0x35, 0x47]),
            (MsiSource(MSI_ADDRESS_BASE, 0x52), [0x52]),
            (PinSource(IrqSourceChip.PIC_PRIMARY, 6), [0x36]),
        )

    def test_route_of_another_gsi_stays(self) -> None:
        """A new route of one GSI leaves those of the others."""
        machine = self.boot()
        machine.chip.route_irq(message(30, 0x51))
        machine.chip.route_irq(message(31, 0x52))
        machine.chip.route_irq(message(31, 0x53))
        machine.connect(5, 0x45)
        machine.pulse(30)
        machine.cpu.expect(0x51, rule="a new route of one GSI leaves that of another")
        machine.pulse(5)
        machine.cpu.expect(0x45, rule="a new route of one GSI leaves that of another")

    def test_gsi_reaches_its_own_route_only(self) -> None:
        """A signal of a GSI reaches what that GSI is routed to, and nothing else."""
        machine = self.boot()
        for gsi in range(30, 40):
            machine.chip.route_irq(message(gsi, 0x50 + gsi))
        for gsi in range(39, 29, -1):
            machine.pulse(gsi)
            machine.cpu.expect(0x50 + gsi, rule=f"GSI {gsi} sends its own message alone")

    def test_set_irq_routes_replaces_all(self) -> None:
        """`set_irq_routes` replaces every route."""
        machine = self.boot()
        machine.connect(5, 0x45)
        machine.chip.route_irq(message(30, 0x51))
        machine.chip.set_irq_routes([message(40, 0x52), message(41, 0x53)])
        for gsi in (5, 30):
            machine.pulse(gsi)
        machine.cpu.expect_nothing(rule="a route that set_irq_routes leaves out is gone")
        machine.pulse(40)
        machine.cpu.expect(0x52, rule="a route that set_irq_routes brings is there")

    def test_no_routes(self) -> None:
        """An empty table of routes is legal; no GSI reaches anything then."""
        machine = self.boot()
        machine.connect(5, 0x45)
        if machine.has(IrqChipCap.PIC):
            machine.unmask_pics(5)
        with accepted("set_irq_routes takes no routes at all"):
            machine.chip.set_irq_routes([])
        for gsi in (5, 30, 4095):
            machine.pulse(gsi)
        machine.cpu.expect_nothing(rule="with no routes no GSI reaches anything")

    @needs(IrqChipCap.PIC, IrqChipCap.IOAPIC)
    def test_default_routes_restored(self) -> None:
        """The default routes can be set again."""
        machine = self.boot()
        self.lab.leave_open("whether the PIC or the local APIC comes first", order_only=True)
        machine.chip.set_irq_routes([])
        machine.chip.set_irq_routes(default_routes())
        machine.pin(5, 0x45)
        machine.unmask_pics(5)
        machine.pulse(5)
        rule = "the default routes lead legacy GSIs to PIC and IOAPIC"
        machine.cpu.expect_all([0x35, 0x45], rule=rule, eoi=Eoi.LAPIC | Eoi.PRIMARY)

    def test_pin_of_the_route_counts(self) -> None:
        """The pin that is driven is the route's, whatever the GSI."""
        machine = self.boot()
        machine.pin(5, 0x45)
        machine.pin(7, 0x47)
        machine.chip.set_irq_routes([IrqRoute(5, PinSource(IrqSourceChip.IOAPIC, 7))])
        machine.pulse(5)
        machine.cpu.expect(0x47, rule="a GSI drives the pin of its route")

    def test_secondary_pic_pin(self) -> None:
        """Pin n of the secondary PIC is line 8 + n."""
        machine = self.boot()
        machine.unmask_pics(4, 12)
        machine.chip.set_irq_routes([IrqRoute.pic(IrqSourceChip.PIC_SECONDARY, 12)])
        machine.pulse(12)
        eoi = Eoi.PRIMARY | Eoi.SECONDARY
        machine.cpu.expect(0x3C, rule="pin 4 of the secondary PIC is its line 12", eoi=eoi)

    def test_event_follows_its_route(self) -> None:
        """An event drives whatever its GSI is routed to when it is signalled."""
        machine = self.boot()
        event = machine.edge(100)
        for vector in (0x51, 0x52):
            machine.chip.route_irq(message(100, vector))
            event.trigger()
            machine.cpu.expect(vector, rule="an event follows the route of its GSI")

    def test_bad_routes_are_refused(self) -> None:
        """A route that cannot be is refused, and everything stays as it was."""
        machine = self.boot()
        machine.connect(5, 0x45)
        machine.chip.route_irq(message(30, 0x51))
        for what, route in BAD_ROUTES.items():
            with refused(InvalidRoute, f"route_irq refuses {what}"):
                machine.chip.route_irq(route)
            for gsi, vector in ((5, 0x45), (30, 0x51)):
                machine.pulse(gsi)
                machine.cpu.expect(vector, rule=f"after a refused route_irq ({what}) the routes are as before")

    def test_bad_tables_are_refused(self) -> None:
        """`set_irq_routes` changes nothing if one of its routes is bad."""
        machine = self.boot()
        machine.connect(5, 0x45)
        for what, route in BAD_ROUTES.items():
            with refused(InvalidRoute, f"set_irq_routes refuses {what}"):
                machine.chip.set_irq_routes([message(40, 0x52), route])
            machine.pulse(40)
            machine.cpu.expect_nothing(rule=f"a refused set_irq_routes ({what}) adds nothing")
            machine.pulse(5)
            machine.cpu.expect(0x45, rule=f"after a refused set_irq_routes ({what}) the routes are as before")

    def test_conflicting_routes_are_refused(self) -> None:
        """One GSI carries one message, or pins of different controllers, and not both."""
        machine = self.boot()
        machine.connect(5, 0x45)
        for what, routes in {
            "two messages on one GSI": [message(30, 0x51), message(30, 0x52)],
            "a message beside a pin": [IrqRoute.ioapic(6), message(6, 0x52)],
            "two pins of one controller on one GSI": [
                IrqRoute(6, PinSource(IrqSourceChip.IOAPIC, 6)),
                IrqRoute(6, PinSource(IrqSourceChip.IOAPIC, 7)),
            ],
        }.items():
            try:
                machine.chip.set_irq_routes(routes)
            except InvalidRoute:
                machine.pulse(5)
                machine.cpu.expect(0x45, rule=f"after a refused set_irq_routes ({what}) the routes are as before")
            else:
                raise Nonconforming(f"set_irq_routes refuses {what}, but it was accepted")

    def test_route_to_a_controller_that_is_absent(self) -> None:
        """A route to a pin of a controller that the chip does not have is refused, and the routes stay."""
        machine = self.boot()
        absent = [source for source in PINS if not machine.has(PINS[source])]
        if not absent:
            raise NotApplicable(ABSENT)
        machine.connect(5, 0x45)
        for source in absent:
            route = IrqRoute(6, PinSource(source, 0))
            what = f"a pin of {source.value}, which the chip does not have"
            with refused(InvalidRoute, f"route_irq refuses {what}"):
                machine.chip.route_irq(route)
            with refused(InvalidRoute, f"set_irq_routes refuses {what}"):
                machine.chip.set_irq_routes([route])
        machine.pulse(5)
        machine.cpu.expect(0x45, rule="after refused routes the routes are as before")

    def test_line_moved_while_high(self) -> None:
        """A line that is high when it gets another route does not interrupt through the old one any more."""
        machine = self.boot()
        machine.pin(10, 0x4A, level=True, masked=True)
        machine.chip.service_irq(10, True)
        machine.chip.service_irq(10, False)
        machine.chip.set_irq_routes([IrqRoute(10, PinSource(IrqSourceChip.IOAPIC, 11))])
        machine.pin(11, 0x4B, level=True)
        machine.pin(10, 0x4A, level=True)
        machine.chip.service_irq(10, True)
        machine.cpu.expect_next(0x4B, rule="a line drives the pin of its new route")
        machine.chip.service_irq(10, False)
