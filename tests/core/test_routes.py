"""Routes: the default table, the rules, and that a refused table changes nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from irqchip_core.errors import InvalidRoute, WrongType
from irqchip_core.routes import IrqRoute, IrqSource, IrqSourceChip, MsiSource, PinSource, RoutingTable, default_routes

PRIMARY, SECONDARY, IOAPIC = IrqSourceChip.PIC_PRIMARY, IrqSourceChip.PIC_SECONDARY, IrqSourceChip.IOAPIC


def test_default_table_is_that_of_kvm() -> None:
    routes = default_routes()
    assert len(routes) == 40
    assert routes[:2] == [IrqRoute(0, PinSource(PRIMARY, 0)), IrqRoute(0, PinSource(IOAPIC, 0))]
    assert RoutingTable(routes)[12] == (PinSource(SECONDARY, 4), PinSource(IOAPIC, 12))
    assert RoutingTable(routes)[23] == (PinSource(IOAPIC, 23),)
    assert len(default_routes(240)) == 256


def test_a_gsi_without_routes_has_no_sources() -> None:
    table = RoutingTable()
    assert table[0] == table[-1] == table[1 << 40] == ()
    assert len(table) == 0


@pytest.mark.parametrize(
    ("routes", "problem"),
    [
        ([IrqRoute(-1, MsiSource(0, 0))], "GSI out of range"),
        ([IrqRoute(4096, MsiSource(0, 0))], "GSI out of range"),
        ([IrqRoute(0, PinSource(IOAPIC, 24))], "pin out of range"),
        ([IrqRoute(0, PinSource(IOAPIC, -1))], "pin out of range"),
        ([IrqRoute(0, PinSource(PRIMARY, 8))], "pin out of range"),
        ([IrqRoute(0, PinSource(SECONDARY, 8))], "pin out of range"),
        ([IrqRoute(0, PinSource(IrqSourceChip.GIC, 0))], "there is no gic here"),
        ([IrqRoute.msi(24, 1 << 64, 0)], "the address has 64 bits"),
        ([IrqRoute.msi(24, 0, 1 << 32)], "the address has 64 bits"),
        ([IrqRoute.msi(24, 0, -1)], "the address has 64 bits"),
        ([IrqRoute.ioapic(5), IrqRoute(5, PinSource(IOAPIC, 6))], "the GSI already has pin 5 there"),
        ([IrqRoute.ioapic(5), IrqRoute.msi(5, 0, 0)], "one MSI or pins"),
        ([IrqRoute.msi(24, 0, 0), IrqRoute.msi(24, 0, 1)], "one MSI or pins"),
    ],
)
def test_bad_tables_are_refused_with_the_route_and_the_remedy(routes: list[IrqRoute], problem: str) -> None:
    with pytest.raises(InvalidRoute, match=problem) as caught:
        RoutingTable(routes, subject="chip")
    assert caught.value.subject == "chip"
    assert caught.value.argument == "route"
    assert caught.value.remedy
    assert f"gsi={routes[-1].gsi}" in str(caught.value)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: IrqRoute.msi(30, 1.5, 0), "MsiSource: address: 1.5 is of type float; give it as int"),  # type: ignore[arg-type]
        (lambda: IrqRoute.msi(30, 0, "1"), "MsiSource: data: '1' is of type str"),  # type: ignore[arg-type]
        (lambda: IrqRoute.msi(True, 0, 0), "IrqRoute: gsi: True is of type bool"),
        (lambda: IrqRoute.pic(PRIMARY, "5"), "IrqRoute: gsi: '5' is of type str"),  # type: ignore[arg-type]
        (lambda: IrqRoute.pic("pic_primary", 5), "PinSource: chip: .* give it as IrqSourceChip"),  # type: ignore[arg-type]
        (lambda: IrqRoute.ioapic(None), "PinSource: pin: None is of type NoneType"),  # type: ignore[arg-type]
        (lambda: IrqRoute(5, None), "IrqRoute: source: .* give it as PinSource or MsiSource"),  # type: ignore[arg-type]
        (lambda: RoutingTable(None, subject="chip"), "chip: routes: .* give it as Iterable"),  # type: ignore[arg-type]
        (lambda: RoutingTable([5], subject="chip"), "chip: route: 5 is of type int; give it as IrqRoute"),  # type: ignore[list-item]
        (lambda: RoutingTable(subject="chip").adding((5, 6)), "chip: route: "),  # type: ignore[arg-type]
    ],
)
def test_wrong_types_are_refused_when_they_are_given(make: Callable[[], object], problem: str) -> None:
    with pytest.raises(WrongType, match=problem) as caught:
        make()
    assert caught.value.remedy


MESSAGE = MsiSource(0xFEE00000, 0x41)
PIC_5, PIC_13, IOAPIC_5, IOAPIC_7 = (
    PinSource(chip, pin) for chip, pin in ((PRIMARY, 5), (SECONDARY, 5), (IOAPIC, 5), (IOAPIC, 7))
)


@pytest.mark.parametrize(
    ("before", "added", "after"),
    [
        ((), MESSAGE, (MESSAGE,)),
        ((PIC_5, IOAPIC_5), IOAPIC_7, (PIC_5, IOAPIC_7)),
        ((PIC_5, IOAPIC_7), PIC_13, (PIC_5, IOAPIC_7, PIC_13)),
        ((PIC_5, IOAPIC_5), MESSAGE, (MESSAGE,)),
        ((MESSAGE,), IOAPIC_5, (IOAPIC_5,)),
        ((MESSAGE,), MsiSource(0xFEE00000, 0x42), (MsiSource(0xFEE00000, 0x42),)),
    ],
)
def test_a_new_route_replaces_what_it_conflicts_with_on_its_gsi_and_leaves_the_rest(
    before: tuple[IrqSource, ...], added: IrqSource, after: tuple[IrqSource, ...]
) -> None:
    others = [route for route in default_routes() if route.gsi != 5]
    table = RoutingTable([*others, *(IrqRoute(5, source) for source in before)]).adding(IrqRoute(5, added))
    assert table[5] == after
    assert [route for route in table if route.gsi != 5] == others


SOURCES = st.one_of(
    st.builds(PinSource, st.sampled_from(IrqSourceChip), st.integers(-1, 30)),
    st.builds(MsiSource, st.integers(-1, 1 << 64), st.integers(-1, 1 << 32)),
)


@given(st.lists(st.builds(IrqRoute, st.integers(-1, 5), SOURCES)))
def test_any_sequence_of_changes_leaves_a_valid_table(routes: list[IrqRoute]) -> None:
    table = RoutingTable()
    for route in routes:
        before = list(table)
        try:
            table = table.adding(route)
        except InvalidRoute:
            assert list(table) == before
        else:
            assert route.source in table[route.gsi]  # whatever the GSI had
    assert RoutingTable(table) == table
    for gsi in range(6):
        kinds = [source.chip if isinstance(source, PinSource) else None for source in table[gsi]]
        assert len(set(kinds)) == len(kinds)
        assert None not in kinds or kinds == [None]
