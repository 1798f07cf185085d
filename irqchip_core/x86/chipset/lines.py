"""`Lines`: which device asserts which line, and what that makes of the inputs of PICs and IOAPIC.

::

    device ── asserts ──► GSI ── routes ──► inputs of PICs and IOAPIC, or a message

A GSI is asserted as long as one of its sources asserts it, and an input is high as long as one of the GSIs that lead
to it is. A level event asserts its GSI until the interrupt ends (`line_ended`, `pin_ended`): then the GSI is released
and the device asked (`Resample`). The rest of a part without I/O: it holds no lock, no descriptor and no controller,
and answers with effects.

Not here: the events themselves, and what the controllers make of their inputs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from irqchip_core.routes import IrqSourceChip, PinSource, RoutingTable
from irqchip_core.x86.effects import DriveLine, DrivePin, Effects, Resample
from irqchip_core.x86.msi import Message, decode_msi
from irqchip_core.x86.state import MAXIMUM_PINS

# Inputs have one number each here: 0-15 are the lines of the PICs, the pins of the IOAPIC follow.
_FIRST = {IrqSourceChip.PIC_PRIMARY: 0, IrqSourceChip.PIC_SECONDARY: 8, IrqSourceChip.IOAPIC: 16}
_PIN_0 = _FIRST[IrqSourceChip.IOAPIC]
_PIC_INPUTS = (1 << _PIN_0) - 1


def _drive(number: int, high: bool) -> NamedTuple:
    return DriveLine(number, high) if number < _PIN_0 else DrivePin(number - _PIN_0, high)


_LOW = [_drive(number, False) for number in range(_PIN_0 + MAXIMUM_PINS)]
_HIGH = [_drive(number, True) for number in range(_PIN_0 + MAXIMUM_PINS)]

# What asserts a GSI
_DIRECT = 1  # service_irq
_PULSED = 2  # an edge event, for a moment
_LEVEL = 4  # level events, until the interrupt ends
_RESTORED = 8  # a restored snapshot: its source is unknown until a direct or level source releases the GSI
_RELEASES = {_DIRECT: _DIRECT | _RESTORED, _PULSED: _PULSED, _LEVEL: _LEVEL | _RESTORED}


class _Way:
    """Where a GSI leads.

    Attributes:
        inputs: Numbers of its inputs.
        messages: The messages it sends, as effects.
        pulse: The effects of an edge while nothing else can assert its inputs; None if something can.
        routed: Whether it leads anywhere, be it to a message that no local APIC can receive.
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
        if sources:  # hosts may name any GSI: those without a route are not kept
            self[gsi] = way
        return way


class Lines:
    """The lines of a machine.

    Args:
        routes: The routing table to begin with.

    Attributes:
        routes: The routing table.
        resample_lines: Inputs of the PICs, bits 0-15, to which level events lead.
        resample_pins: Inputs of the IOAPIC, as bits, to which level events lead.
        raised: By GSI, how often devices asserted it.
        coalesced: By GSI, how many of these were merged in an event's counter.
    """

    __slots__ = (
        "_asserted", "_level_events", "_ways", "coalesced", "raised", "resample_lines", "resample_pins", "routes",
    )  # fmt: skip

    def __init__(self, routes: RoutingTable) -> None:
        self.raised: dict[int, int] = {}
        self.coalesced: dict[int, int] = {}
        self._asserted: dict[int, int] = {}  # by GSI: what asserts it, if anything does
        self._level_events: dict[int, int] = {}  # by GSI: how many are registered, if any are
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
        """The messages that `gsi` sends; a GSI that has some drives no input. Safe without a lock."""
        return self._ways[gsi].messages

    # Devices

    def edge(self, gsi: int, signals: int) -> Effects:
        """An edge event of `gsi` was signalled, `signals` times since the last time: one interrupt."""
        way = self._ways[gsi]
        if not self._count(way, gsi, signals):
            return ()
        if way.pulse is not None and gsi not in self._asserted:
            return way.pulse
        return (*self._set(gsi, _PULSED, True), *self._set(gsi, _PULSED, False), *way.messages)

    def level(self, gsi: int, signals: int) -> Effects:
        """A level event of `gsi` was signalled: the GSI is asserted until the interrupt ends, also without a route."""
        way = self._ways[gsi]
        self._count(way, gsi, signals)
        return (*self._set(gsi, _LEVEL, True), *way.messages)

    def drive(self, gsi: int, high: bool) -> Effects:
        """The host asserts or releases `gsi` itself; without a route that is lost. Asserting it sends its message."""
        if not high:
            return self._set(gsi, _DIRECT, False)
        way = self._ways[gsi]
        return (*way.messages, *self._set(gsi, _DIRECT, True)) if self._count(way, gsi, 1) else ()

    def add_level_event(self, gsi: int) -> None:
        """A level event is registered on `gsi`. Afterwards the controllers get the new `resample_lines`, `_pins`."""
        self._level_events[gsi] = self._level_events.get(gsi, 0) + 1
        self._find_resample_inputs()

    def remove_level_event(self, gsi: int) -> Effects:
        """A level event of `gsi` is gone; the last one releases the GSI. Afterwards as `add_level_event`."""
        self._level_events[gsi] -= 1
        if self._level_events[gsi]:
            return ()
        del self._level_events[gsi]
        self._find_resample_inputs()
        return self._set(gsi, _LEVEL, False)

    def _count(self, way: _Way, gsi: int, signals: int) -> bool:
        """Count what was raised, if the GSI has a route."""
        if not way.routed:
            return False
        self.raised[gsi] = self.raised.get(gsi, 0) + signals
        if signals > 1:
            self.coalesced[gsi] = self.coalesced.get(gsi, 0) + signals - 1
        return True

    # Levels

    def _set(self, gsi: int, source: int, high: bool) -> Effects:
        """Let `source` assert or release `gsi`. A level event waits for a route; all else is lost without one."""
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
        """Whether an input is asserted by any GSI. What was only restored does not count: nothing might release it."""
        return any(self._asserted.get(gsi, 0) & ~_RESTORED for gsi in self._ways.sharing.get(number, ()))

    # Ends of interrupts

    def line_ended(self, line: int, lowered: bool) -> Effects:
        """The interrupt of a line of the PICs has ended; `lowered`: see `LineEnded`."""
        return self._ended(line, lowered)

    def pin_ended(self, pin: int) -> Effects:
        """The interrupt of a pin of the IOAPIC has ended, and the IOAPIC took it low: see `PinEnded`."""
        return self._ended(_PIN_0 + pin, True)

    def _ended(self, ended: int, lowered: bool) -> Effects:
        """Release the GSIs that level events assert at this input, and ask their devices.

        All are released before any input is driven: they may share inputs.
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

        A GSI that is asserted lets go of the inputs it loses and asserts those it gets. The end of an interrupt at an
        input that is lost cannot be seen any more: a level event is released there, and its device asked.
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

        All GSIs that lead to a high input count as asserted, until a device of any of them releases it.
        """
        inputs = lines | pins << _PIN_0
        self._asserted = {
            gsi: _RESTORED for number, gsis in self._ways.sharing.items() if inputs >> number & 1 for gsi in gsis
        }


def _input(source: PinSource) -> int:
    return _FIRST[source.chip] + source.pin
