"""Which device asserts which line, and what inputs and devices notice of it: no controller, no event, no lock."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from irqchip_core.routes import IrqRoute, IrqSourceChip, PinSource, RoutingTable, default_routes
from irqchip_core.x86.chipset import lines as lines_module
from irqchip_core.x86.chipset.lines import Lines
from irqchip_core.x86.effects import DriveLine, DrivePin, Effects, Resample
from irqchip_core.x86.msi import Message

LAPIC = 0xFEE00000
Input = DriveLine | DrivePin


def low(line: int) -> tuple[Input, Input]:
    """Of a GSI below 16 with default routes."""
    return DriveLine(line, False), DrivePin(line, False)


def high(line: int) -> tuple[Input, Input]:
    return DriveLine(line, True), DrivePin(line, True)


def pin(gsi: int, number: int, chip: IrqSourceChip = IrqSourceChip.IOAPIC) -> IrqRoute:
    return IrqRoute(gsi, PinSource(chip, number))


def table(*routes: IrqRoute) -> RoutingTable:
    return RoutingTable(routes)


@pytest.fixture
def lines() -> Lines:
    return Lines(RoutingTable([*default_routes(), IrqRoute.msi(24, LAPIC, 0x41)]))


def test_an_edge_is_high_and_low_at_every_input_of_its_gsi(lines: Lines) -> None:
    assert lines.edge(4, 1) == (*high(4), *low(4))
    assert lines.edge(20, 1) == (DrivePin(20, True), DrivePin(20, False))


def test_the_secondary_pic_has_lines_8_to_15(lines: Lines) -> None:
    assert lines.drive(12, True) == high(12)


def test_signals_of_one_event_are_one_interrupt_and_counted(lines: Lines) -> None:
    assert lines.edge(24, 3) == (Message(0x41),)
    assert (lines.raised, lines.coalesced) == ({24: 3}, {24: 2})


def test_a_message_is_sent_when_its_gsi_is_asserted_and_not_when_released(lines: Lines) -> None:
    assert lines.drive(24, True) == (Message(0x41),)
    assert lines.drive(24, True) == (Message(0x41),)
    assert lines.drive(24, False) == ()


def test_a_message_that_no_local_apic_can_receive_is_none() -> None:
    lines = Lines(table(IrqRoute.msi(24, 0x1000, 0x41)))
    assert lines.edge(24, 1) == ()
    assert lines.raised == {24: 1}


def test_a_gsi_without_a_route_loses_edges_and_direct_assertions_and_keeps_nothing(lines: Lines) -> None:
    for gsi in (30, 4095, 1 << 31):
        assert lines.edge(gsi, 1) == lines.drive(gsi, True) == lines.drive(gsi, False) == ()
    assert (lines.raised, lines._ways) == ({}, {})


@pytest.mark.parametrize("moment", ["_input", "decode_msi"])
@pytest.mark.parametrize("before", [[IrqRoute.msi(24, LAPIC, 0x41)], [pin(24, 5)]])
@pytest.mark.parametrize("after", [[IrqRoute.msi(24, LAPIC, 0x42)], [pin(24, 6)], [pin(24, 5), pin(7, 5)], []])
def test_a_look_without_a_lock_while_routes_change_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, moment: str, before: list[IrqRoute], after: list[IrqRoute]
) -> None:
    lines = Lines(table(*before))
    look = getattr(lines_module, moment)

    def interrupted(*arguments: Any) -> Any:
        monkeypatch.undo()
        lines.change_routes(table(*after))
        return look(*arguments)

    monkeypatch.setattr(lines_module, moment, interrupted)
    lines.messages(24)
    if [*lines.routes] != after:  # this moment does not come
        return
    fresh = Lines(table(*after))
    assert lines.messages(24) == fresh.messages(24)
    assert lines.edge(24, 1) == fresh.edge(24, 1)


def test_an_edge_on_an_asserted_gsi_leaves_it_asserted(lines: Lines) -> None:
    lines.drive(4, True)
    assert lines.edge(4, 1) == (*high(4), *high(4))
    assert lines.drive(4, False) == low(4)


def test_a_level_event_asserts_until_the_interrupt_ends_at_any_of_its_inputs(lines: Lines) -> None:
    lines.add_level_event(5)
    assert (lines.resample_lines, lines.resample_pins) == (1 << 5, 1 << 5)
    assert lines.level(5, 1) == high(5)
    assert lines.pin_ended(5) == (DriveLine(5, False), Resample(5))
    assert lines.level(5, 1) == high(5)
    assert lines.line_ended(5, True) == (DrivePin(5, False), Resample(5))
    assert lines.line_ended(5, False) == (DrivePin(5, False), DriveLine(5, False), Resample(5))


def test_an_end_without_a_level_event_means_nothing(lines: Lines) -> None:
    lines.drive(5, True)
    assert lines.line_ended(5, False) == lines.line_ended(6, False) == lines.pin_ended(200) == ()


def test_a_device_is_asked_though_its_event_does_not_assert(lines: Lines) -> None:
    lines.add_level_event(5)
    lines.drive(5, True)
    assert lines.pin_ended(5) == (DriveLine(5, True), DrivePin(5, True), Resample(5))
    assert lines.line_ended(5, False) == (DrivePin(5, True), Resample(5))


def test_the_end_of_a_shared_input_releases_all_level_events_there() -> None:
    lines = Lines(table(pin(10, 10), pin(11, 10), pin(11, 3, IrqSourceChip.PIC_PRIMARY), pin(12, 10)))
    for gsi in (10, 11):
        lines.add_level_event(gsi)
        lines.level(gsi, 1)
    assert lines.pin_ended(10) == (DriveLine(3, False), Resample(10), Resample(11))
    for gsi in (10, 11):
        lines.level(gsi, 1)
    lines.drive(12, True)
    assert lines.pin_ended(10) == (DriveLine(3, False), DrivePin(10, True), Resample(10), Resample(11))


def test_a_shared_input_is_high_as_long_as_one_gsi_asserts_it() -> None:
    lines = Lines(table(pin(10, 7), pin(11, 7)))
    assert lines.drive(10, True) == lines.drive(11, True) == (DrivePin(7, True),)
    assert lines.edge(10, 1) == (DrivePin(7, True),) * 2
    assert lines.drive(10, False) == (DrivePin(7, True),)
    assert lines.edge(10, 1) == (DrivePin(7, True),) * 2
    assert lines.drive(11, False) == (DrivePin(7, False),)
    assert lines.edge(10, 1) == (DrivePin(7, True), DrivePin(7, False))


def test_the_last_level_event_of_a_gsi_releases_it(lines: Lines) -> None:
    for _ in range(2):
        lines.add_level_event(6)
    lines.level(6, 1)
    assert lines.remove_level_event(6) == ()
    assert lines.resample_pins == 1 << 6
    assert lines.remove_level_event(6) == low(6)
    assert (lines.resample_lines, lines.resample_pins) == (0, 0)


def test_a_level_event_waits_for_a_route_and_others_do_not(lines: Lines) -> None:
    lines.change_routes(table())
    lines.add_level_event(5)
    assert lines.level(5, 1) == lines.drive(6, True) == ()
    assert lines.change_routes(table(pin(5, 9), pin(6, 6))) == (DrivePin(9, True),)
    assert lines.resample_pins == 1 << 9


def test_a_gsi_that_moves_lets_go_of_its_inputs_and_asks_its_device(lines: Lines) -> None:
    lines.add_level_event(5)
    lines.level(5, 1)
    lines.drive(7, True)
    after = table(pin(5, 5), pin(7, 9))
    assert lines.change_routes(after) == (
        DriveLine(5, False), DrivePin(5, False),  # the end of the interrupt at the PIC could not be seen
        DriveLine(7, False), DrivePin(7, False), DrivePin(9, True),
        Resample(5),
    )  # fmt: skip
    assert lines.change_routes(after) == ()
    assert lines.change_routes(table()) == (DrivePin(9, False),)
    assert lines.change_routes(after) == ()  # a direct assertion was lost with the route


def test_restored_levels_are_released_by_whatever_device_comes_first() -> None:
    lines = Lines(table(pin(10, 7), pin(11, 7), pin(12, 8)))
    lines.restore(0, 1 << 7 | 1 << 8)
    assert lines.drive(10, False) == (DrivePin(7, False),)
    lines.restore(0, 1 << 7 | 1 << 8)
    lines.add_level_event(12)
    assert lines.pin_ended(8) == (Resample(12),)
    assert lines.edge(12, 1) == (DrivePin(8, True), DrivePin(8, False))
    assert lines.drive(11, False) == (DrivePin(7, False),)


def test_an_edge_does_not_release_a_restored_level() -> None:
    lines = Lines(table(pin(10, 7)))
    lines.restore(0, 1 << 7)
    assert lines.edge(10, 1) == (DrivePin(7, True),) * 2


GSIS = st.integers(0, 5)
ROUTES = st.lists(
    st.tuples(GSIS, st.sampled_from([IrqSourceChip.PIC_PRIMARY, IrqSourceChip.PIC_SECONDARY, IrqSourceChip.IOAPIC]),
              st.integers(0, 2)),
    unique_by=lambda route: (route[0], route[1]), max_size=10,
)  # fmt: skip


class LinesAndModel(RuleBasedStateMachine):
    """Any order of devices, ends and routes, beside a model that works everything out anew."""

    def __init__(self) -> None:
        super().__init__()
        self.lines = Lines(table())
        self.inputs: dict[tuple[type, int], bool] = {}
        self.direct: set[int] = set()
        self.level: set[int] = set()
        self.events: Counter[int] = Counter()
        self.resampled: list[int] = []

    def apply(self, effects: Effects) -> None:
        self.resampled = []
        for effect in effects:
            if isinstance(effect, DriveLine | DrivePin):
                self.inputs[type(effect), effect[0]] = effect.high
            else:
                assert isinstance(effect, Resample)
                self.resampled.append(effect.gsi)

    def where(self, gsi: int) -> set[tuple[type, int]]:
        found: set[tuple[type, int]] = set()
        for source in self.lines.routes[gsi]:
            assert isinstance(source, PinSource)
            if source.chip is IrqSourceChip.IOAPIC:
                found.add((DrivePin, source.pin))
            else:
                found.add((DriveLine, source.pin + 8 * (source.chip is IrqSourceChip.PIC_SECONDARY)))
        return found

    @initialize(routes=ROUTES)
    def begin(self, routes: list[tuple[int, IrqSourceChip, int]]) -> None:
        self.route(routes)

    @rule(routes=ROUTES)
    def route(self, routes: list[tuple[int, IrqSourceChip, int]]) -> None:
        before = {gsi: self.where(gsi) for gsi in self.level}
        self.apply(self.lines.change_routes(table(*(pin(gsi, number, chip) for gsi, chip, number in routes))))
        lost = {gsi for gsi in self.level if before[gsi] - self.where(gsi)}
        assert set(self.resampled) == lost
        self.level -= lost
        self.direct = {gsi for gsi in self.direct if self.lines.routes[gsi]}

    @rule(gsi=GSIS, high=st.booleans())
    def drive(self, gsi: int, high: bool) -> None:
        self.apply(self.lines.drive(gsi, high))
        if self.lines.routes[gsi]:
            (self.direct.add if high else self.direct.discard)(gsi)

    @rule(gsi=GSIS)
    def edge(self, gsi: int) -> None:
        effects = self.lines.edge(gsi, 1)
        assert {(type(e), e[0]) for e in effects if e[1]} == self.where(gsi)
        self.apply(effects)

    @rule(gsi=GSIS)
    def add(self, gsi: int) -> None:
        self.lines.add_level_event(gsi)
        self.events[gsi] += 1

    @precondition(lambda self: +self.events)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        gsi = data.draw(st.sampled_from(sorted(+self.events)))
        self.apply(self.lines.remove_level_event(gsi))
        self.events[gsi] -= 1
        if not self.events[gsi]:
            self.level.discard(gsi)

    @precondition(lambda self: +self.events)
    @rule(data=st.data())
    def signal(self, data: st.DataObject) -> None:
        gsi = data.draw(st.sampled_from(sorted(+self.events)))
        self.apply(self.lines.level(gsi, 1))
        self.level.add(gsi)

    @rule(number=st.integers(0, 10), at_ioapic=st.booleans(), lowered=st.booleans())
    def end(self, number: int, at_ioapic: bool, lowered: bool) -> None:
        kind: type = DrivePin if at_ioapic else DriveLine
        watched = (self.lines.resample_pins if at_ioapic else self.lines.resample_lines) >> number & 1
        if watched and (at_ioapic or lowered):
            self.inputs[kind, number] = False  # as the controllers do it
        self.apply(
            self.lines.pin_ended(number) if at_ioapic else self.lines.line_ended(number, bool(watched and lowered))
        )
        gone = {gsi for gsi in +self.events if (kind, number) in self.where(gsi)}
        assert set(self.resampled) == gone
        assert bool(gone) == bool(watched)
        self.level -= gone

    @invariant()
    def every_input_is_what_asserts_it(self) -> None:
        expected = {place for gsi in self.direct | self.level for place in self.where(gsi)}
        assert {place for place, is_high in self.inputs.items() if is_high} == expected


LinesAndModel.TestCase.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)
test_lines_beside_a_model = LinesAndModel.TestCase
