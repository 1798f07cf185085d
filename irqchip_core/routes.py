"""Interrupt routes: which pins or which message a GSI drives.

A `RoutingTable` is a value: it is checked when it is made and never changes. A chip makes the next
table, applies it (to the kernel, say), and keeps it only if that succeeded, so that a refused route
leaves everything as it was. The rules are KVM_SET_GSI_ROUTING's: a GSI carries nothing, one MSI, or
pins of different controllers.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from attrs import Attribute, field, frozen

from irqchip_core.arguments import check_type
from irqchip_core.errors import InvalidRoute

IOAPIC_PINS = 24
"""Pins of the IOAPIC on a PC, and of KVM's (KVM_IOAPIC_NUM_PINS)."""
PIC_PINS = 8
"""Pins of each 8259."""
GSI_COUNT = 4096
"""GSIs are below this in KVM (KVM_MAX_IRQ_ROUTES), and so here on every chip."""


class IrqSourceChip(enum.Enum):
    """The controllers a pin can belong to."""

    PIC_PRIMARY = "pic_primary"
    PIC_SECONDARY = "pic_secondary"
    IOAPIC = "ioapic"
    GIC = "gic"  # aarch64
    AIA = "aia"  # riscv64


X86_PINS: Mapping[IrqSourceChip, int] = {
    IrqSourceChip.PIC_PRIMARY: PIC_PINS,
    IrqSourceChip.PIC_SECONDARY: PIC_PINS,
    IrqSourceChip.IOAPIC: IOAPIC_PINS,
}
"""Number of pins of each controller of a PC."""


def _of_type(*kinds: type) -> Callable[[object, Attribute[Any], Any], None]:
    """Refuses a field of another type. Its range is for `RoutingTable` to check, as chips differ in it."""

    def check(record: object, attribute: Attribute[Any], value: object) -> None:
        check_type(value, kinds, subject=type(record).__name__, argument=attribute.name)

    return check


@frozen
class PinSource:
    """Input `pin` of controller `chip`."""

    chip: IrqSourceChip = field(validator=_of_type(IrqSourceChip))
    pin: int = field(validator=_of_type(int))


@frozen
class MsiSource:
    """A message: `address` has 64 bits, `data` 32."""

    address: int = field(validator=_of_type(int))
    data: int = field(validator=_of_type(int))


IrqSource = PinSource | MsiSource


@frozen
class IrqRoute:
    """One connection from a GSI to a pin or a message.

    Raises:
        WrongType: A field of it, or of its source, is of another type. Ranges are for `RoutingTable` to check.
    """

    gsi: int = field(validator=_of_type(int))
    source: IrqSource = field(validator=_of_type(PinSource, MsiSource))

    @classmethod
    def ioapic(cls, gsi: int) -> IrqRoute:
        """GSI n to IOAPIC pin n."""
        return cls(gsi, PinSource(IrqSourceChip.IOAPIC, gsi))

    @classmethod
    def pic(cls, chip: IrqSourceChip, gsi: int) -> IrqRoute:
        """GSI n to pin n mod 8 of one of the two PICs."""
        check_type(gsi, int, subject=cls.__name__, argument="gsi")
        return cls(gsi, PinSource(chip, gsi % PIC_PINS))

    @classmethod
    def msi(cls, gsi: int, address: int, data: int) -> IrqRoute:
        """GSI n to the message (`address`, `data`)."""
        return cls(gsi, MsiSource(address, data))


def default_routes(pins: int = IOAPIC_PINS) -> list[IrqRoute]:
    """A PC's routes at reset: GSI 0-15 to both the PICs and the IOAPIC, the rest to the IOAPIC."""
    routes = []
    for gsi in range(pins):
        if gsi < 2 * PIC_PINS:
            pic = IrqSourceChip.PIC_PRIMARY if gsi < PIC_PINS else IrqSourceChip.PIC_SECONDARY
            routes.append(IrqRoute.pic(pic, gsi))
        routes.append(IrqRoute.ioapic(gsi))
    return routes


def _conflict(one: IrqSource, other: IrqSource) -> bool:
    """Whether a GSI cannot carry both: a message beside anything, or two pins of one controller."""
    return isinstance(one, MsiSource) or isinstance(other, MsiSource) or one.chip is other.chip


class RoutingTable:
    """An immutable, valid set of routes.

    Args:
        routes: The routes, in order.
        pins: Number of pins of each controller a route may name.
        subject: Name of the chip, for error messages.

    Raises:
        InvalidRoute: A GSI, pin, address or data out of range; a controller that is not in `pins`;
            two routes of one GSI on the same controller, or a message beside anything else.
        WrongType: Something that is no `IrqRoute`.
    """

    __slots__ = ("_by_gsi", "_pins", "_routes", "_subject")

    def __init__(
        self,
        routes: Iterable[IrqRoute] = (),
        *,
        pins: Mapping[IrqSourceChip, int] = X86_PINS,
        subject: str = "",
    ) -> None:
        self._pins = pins
        self._subject = subject
        check_type(routes, Iterable, subject=subject, argument="routes")
        self._routes = tuple(routes)
        by_gsi: dict[int, tuple[IrqSource, ...]] = {}
        for route in self._routes:
            self._check(route)
            others = by_gsi.get(route.gsi, ())
            for other in others:
                if not _conflict(other, route.source):
                    continue
                if isinstance(other, MsiSource) or isinstance(route.source, MsiSource):
                    raise self._refusal(route, "a GSI carries one MSI or pins, not more", "use another GSI")
                raise self._refusal(route, f"the GSI already has pin {other.pin} there", "give one pin a controller")
            by_gsi[route.gsi] = (*others, route.source)
        self._by_gsi = by_gsi

    def _refusal(self, route: IrqRoute, problem: str, remedy: str) -> InvalidRoute:
        return InvalidRoute(f"{route}: {problem}", subject=self._subject, argument="route", remedy=remedy)

    def _check_type(self, route: object) -> None:
        check_type(route, IrqRoute, subject=self._subject, argument="route")

    def _check(self, route: IrqRoute) -> None:
        self._check_type(route)
        if not 0 <= route.gsi < GSI_COUNT:
            raise self._refusal(route, "GSI out of range", f"use a GSI from 0 to {GSI_COUNT - 1}")
        source = route.source
        if isinstance(source, MsiSource):
            if not (0 <= source.address < 1 << 64 and 0 <= source.data < 1 << 32):
                raise self._refusal(route, "the address has 64 bits and the data 32", "give both in range")
            return
        if source.chip not in self._pins:
            names = ", ".join(chip.value for chip in self._pins) or "none"
            raise self._refusal(route, f"there is no {source.chip.value} here", f"controllers of this chip: {names}")
        if not 0 <= source.pin < self._pins[source.chip]:
            raise self._refusal(route, "pin out of range", f"pins of it are 0 to {self._pins[source.chip] - 1}")

    def adding(self, route: IrqRoute) -> RoutingTable:
        """This table with `route` in place of those of its GSI that it conflicts with.

        A pin takes the place of a pin of the same controller, or of a message; a message that of all routes of the
        GSI. The other routes stay.
        """
        self._check_type(route)
        kept = (old for old in self._routes if old.gsi != route.gsi or not _conflict(old.source, route.source))
        return self.replaced([*kept, route])

    def replaced(self, routes: Iterable[IrqRoute]) -> RoutingTable:
        """Another table with the same rules."""
        return RoutingTable(routes, pins=self._pins, subject=self._subject)

    def __getitem__(self, gsi: int) -> tuple[IrqSource, ...]:
        """The sources of a GSI in order of insertion; empty for any number that has none."""
        return self._by_gsi.get(gsi, ())

    def __iter__(self) -> Iterator[IrqRoute]:
        return iter(self._routes)

    def __len__(self) -> int:
        return len(self._routes)

    def __eq__(self, other: object) -> bool:
        return self._routes == other._routes if isinstance(other, RoutingTable) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._routes)

    def __repr__(self) -> str:
        return f"<RoutingTable of {len(self)} routes>"
