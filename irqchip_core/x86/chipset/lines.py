"""`Lines`: which device asserts which GSI, and the levels of the inputs of PICs and IOAPIC that follow.

::

    device ── asserts ──► GSI ── routes ──► inputs of PICs and IOAPIC, or a message

A GSI is asserted while at least one of its sources asserts it, and an input is high while at least one of the GSIs
that lead to it is asserted. A level event asserts its GSI until the interrupt ends (`line_ended`, `pin_ended`): then
the GSI is released, and its devices check whether they need service again (`Resample`). A part without I/O, as the
controllers are: it has no lock and no descriptor, and answers with effects.

Not here: the events themselves, and the controllers behind the inputs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from irqchip_core.routes import IrqSourceChip, PinSource, RoutingTable
from irqchip_core.x86.effects import DriveLine, DrivePin, Effects, Resample
from irqchip_core.x86.msi import Message, decode_msi
from irqchip_core.x86.state import MAXIMUM_PINS

# Each input has one number here: 0-15 are the lines of the PICs, the pins of the IOAPIC follow.
_FIRST = {IrqSourceChip.PIC_PRIMARY: 0, IrqSourceChip.PIC_SECONDARY: 8, IrqSourceChip.IOAPIC: 16}
_PIN_0 = _FIRST[IrqSourceChip.IOAPIC]
_PIC_INPUTS = (1 << _PIN_0) - 1


def _drive(number: int, high: bool) -> NamedTuple:
    return DriveLine(number, high) if number < _PIN_0 else DrivePin(number - _PIN_0, high)


_LOW = [_drive(number, False) for number in range(_PIN_0 + MAXIMUM_PINS)]
_HIGH = [_drive(number, True) for number in range(_PIN_0 + MAXIMUM_PINS)]

# What asserts a GSI
_DIRECT = 1  # service_irq
_PULSED = 2  # an edge event, between its two edges
_LEVEL = 4  # level events, until the interrupt ends
_RESTORED = 8  # a restored snapshot: the source is unknown until a direct or level source releases the GSI
_RELEASES = {_DIRECT: _DIRECT | _RESTORED, _PULSED: _PULSED, _LEVEL: _LEVEL | _RESTORED}


class _Way:
    """The inputs and messages to which a GSI leads.

    Attributes:
        inputs: Numbers of its inputs.
        messages: The messages it sends, as effects.
        pulse: The effects of an edge, if no other GSI leads to its inputs; else None.
        routed: Whether it has a route, be it to a message that no local APIC can receive.
    """

    __slots__ = ("inputs", "messages", "pulse", "routed")

    def __init__(self, inputs: tuple[int, ...], messages: tuple[Message, ...], *, alone: bool, routed: bool) -> None:
        self.inputs = inputs
        self.routed = routed
        self.messages = messages
        self.pulse: Effects | None = None
        if alone:
            self.pulse = (*(_HIGH[number] for number in inputs), *(_LOW[number] for number in inputs), *messages)


class _Ways(dict[int, _Way]):
    """Where the GSIs of one routing table lead, by GSI, found as they are used.

    What a thread finds without a lock while the routes change stays with the table it was found in.

    Attributes:
        sharing: By input, the GSIs that lead there.
    """

    def __init__(self, routes: RoutingTable) -> None:
        self._routes = routes
        self.sharing: dict[int, list[int]] = {}
        for route in routes:
            if isinstance(route.source, PinSource):
                self.sharing.setdefault(_input(route.source), []).append(route.gsi)

    def __missing__(self, gsi: int) -> _Way:
        inputs: list[int] = []
        messages: list[Message] = []
        sources = self._routes[gsi]
        for source in sources:
            if isinstance(source, PinSource):
                inputs.append(_input(source))
            elif (message := decode_msi(source.address, source.data)) is not None:
                messages.append(message)
        alone = all(len(self.sharing[number]) == 1 for number in inputs)
        way = _Way(tuple(inputs), tuple(messages), alone=alone, routed=bool(sources))
        if sources:  # a host may use any GSI number: the table keeps none without a route
            self[gsi] = way
        return way


class Lines:
    """The lines of a machine.

    Args:
        routes: The first routing table.

    Attributes:
        routes: The present routing table.
        resample_lines: Inputs of the PICs, bits 0-15, to which level events lead.
        resample_pins: Inputs of the IOAPIC, as bits, to which level events lead.
        raised: By GSI, how often devices asserted it.
        coalesced: By GSI, how many of these were coalesced in an event's counter.
    """

    __slots__ = (
        "_asserted", "_level_events", "_ways", "coalesced", "raised", "resample_lines", "resample_pins", "routes",
    )  # fmt: skip

    def __init__(self, routes: RoutingTable) -> None:
        self.raised: dict[int, int] = {}
        self.coalesced: dict[int, int] = {}
        self._asserted: dict[int, int] = {}  # by GSI, while it is asserted: its sources
        self._level_events: dict[int, int] = {}  # by GSI with level events: how many
        self._connect(routes)

    def _connect(self, routes: RoutingTable) -> None:
        self.routes = routes
        self._ways = _Ways(routes)
        self._find_resample_inputs()

    def _find_resample_inputs(self) -> None:
        inputs = 0
        for gsi in self._level_events:
            for number in self._ways[gsi].inputs:
                inputs |= 1 << number
        self.resample_lines = inputs & _PIC_INPUTS
        self.resample_pins = inputs >> _PIN_0

    def messages(self, gsi: int) -> tuple[Message, ...]:
        """The messages that `gsi` sends; a GSI with messages drives no input. May be called without a lock."""
        return self._ways[gsi].messages

    # Devices

    def edge(self, gsi: int, signals: int) -> Effects:
        """Raise one interrupt for an edge event of `gsi` that was signalled `signals` times since the last call."""
        way = self._ways[gsi]
        if not self._count(way, gsi, signals):
            return ()
        if way.pulse is not None and gsi not in self._asserted:
            return way.pulse
        return (*self._set(gsi, _PULSED, True), *self._set(gsi, _PULSED, False), *way.messages)

    def level(self, gsi: int, signals: int) -> Effects:
        """Assert `gsi`, also without a route, until the interrupt ends: a level event of it was signalled."""
        way = self._ways[gsi]
        self._count(way, gsi, signals)
        return (*self._set(gsi, _LEVEL, True), *way.messages)

    def drive(self, gsi: int, high: bool) -> Effects:
        """Assert or release `gsi` directly; without a route that has no effect. Asserting it sends its messages."""
        if not high:
            return self._set(gsi, _DIRECT, False)
        way = self._ways[gsi]
        return (*way.messages, *self._set(gsi, _DIRECT, True)) if self._count(way, gsi, 1) else ()

    def add_level_event(self, gsi: int) -> None:
        """Register a level event of `gsi`. The caller then passes `resample_lines` and `resample_pins` on."""
        self._level_events[gsi] = self._level_events.get(gsi, 0) + 1
        self._find_resample_inputs()

    def remove_level_event(self, gsi: int) -> Effects:
        """Unregister a level event of `gsi`; the last one releases the GSI. Afterwards as `add_level_event`."""
        self._level_events[gsi] -= 1
        if self._level_events[gsi]:
            return ()
        del self._level_events[gsi]
        self._find_resample_inputs()
        return self._set(gsi, _LEVEL, False)

    def _count(self, way: _Way, gsi: int, signals: int) -> bool:
        """Count an assertion and return True; False if the GSI has no route."""
        if not way.routed:
            return False
        self.raised[gsi] = self.raised.get(gsi, 0) + signals
        if signals > 1:
            self.coalesced[gsi] = self.coalesced.get(gsi, 0) + signals - 1
        return True

    # Levels

    def _set(self, gsi: int, source: int, high: bool) -> Effects:
        """Let `source` assert or release `gsi`. Without a route only a level event is kept."""
        way = self._ways[gsi]
        if not way.routed and source != _LEVEL:
            return ()
        self._note(gsi, source, high)
        return self._levels(way.inputs, self._asserted.get(gsi, 0))

    def _note(self, gsi: int, source: int, high: bool) -> None:
        before = self._asserted.get(gsi, 0)
        if after := before | source if high else before & ~_RELEASES[source]:
            self._asserted[gsi] = after
        elif before:
            del self._asserted[gsi]

    def _levels(self, inputs: Iterable[int], sources: int) -> Effects:
        """Drive inputs of a GSI that `sources` assert."""
        return tuple([_HIGH[number] if sources or self._shared(number) else _LOW[number] for number in inputs])

    def _shared(self, number: int) -> bool:
        """Whether a GSI asserts an input. A restored assertion does not count, as no source might release it."""
        return any(self._asserted.get(gsi, 0) & ~_RESTORED for gsi in self._ways.sharing.get(number, ()))

    # Ends of interrupts

    def line_ended(self, line: int, lowered: bool) -> Effects:
        """The interrupt of a line of the PICs has ended; `lowered`: see `LineEnded`."""
        return self._ended(line, lowered)

    def pin_ended(self, pin: int) -> Effects:
        """The interrupt of a pin of the IOAPIC has ended, and the IOAPIC took it low: see `PinEnded`."""
        return self._ended(_PIN_0 + pin, True)

    def _ended(self, ended: int, lowered: bool) -> Effects:
        """Release the GSIs that level events assert at this input, and resample their devices.

        All of them are released before any input is driven, as they may share inputs.
        """
        gsis = [gsi for gsi in self._ways.sharing.get(ended, ()) if gsi in self._level_events]
        if not gsis:
            return ()
        for gsi in gsis:
            self._note(gsi, _LEVEL, False)
        effects: list[NamedTuple] = []
        for gsi in gsis:
            others = [number for number in self._ways[gsi].inputs if number != ended]
            effects += self._levels(others, self._asserted.get(gsi, 0))
        high = self._shared(ended)
        if high == lowered:
            effects.append(_HIGH[ended] if high else _LOW[ended])
        effects += [Resample(gsi) for gsi in gsis]
        return tuple(effects)

    # Routes and restored state

    def change_routes(self, routes: RoutingTable) -> Effects:
        """Replace the routing table. Afterwards as `add_level_event`.

        An asserted GSI releases the inputs that it loses and asserts those that it gains. A level event is released
        and its device resampled if its GSI loses an input, since the end of the interrupt there would be missed.
        """
        old = {gsi: (self.routes[gsi], self._ways[gsi].inputs) for gsi in self._asserted}
        self._connect(routes)
        effects: list[NamedTuple] = []
        resampled: list[int] = []
        moved = {gsi: inputs for gsi, (sources, inputs) in old.items() if sources != routes[gsi]}
        lost = {gsi: [n for n in inputs if n not in self._ways[gsi].inputs] for gsi, inputs in moved.items()}
        for gsi in moved:
            if lost[gsi] and self._asserted[gsi] & _LEVEL:
                self._note(gsi, _LEVEL, False)
                resampled.append(gsi)
        for gsi in moved:
            effects += self._levels(lost[gsi], 0)
            effects += self._levels(self._ways[gsi].inputs, self._asserted.get(gsi, 0))
            if not routes[gsi]:
                self._note(gsi, _DIRECT, False)
        effects += [Resample(gsi) for gsi in resampled]
        return tuple(effects)

    def restore(self, lines: int, pins: int) -> None:
        """Take over the levels of restored controllers: inputs of the PICs and of the IOAPIC, as bits.

        Every GSI that leads to a high input counts as asserted by the snapshot, until one of its devices releases it.
        """
        inputs = lines | pins << _PIN_0
        self._asserted = {
            gsi: _RESTORED for number, gsis in self._ways.sharing.items() if inputs >> number & 1 for gsi in gsis
        }


def _input(source: PinSource) -> int:
    return _FIRST[source.chip] + source.pin
