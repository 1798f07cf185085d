"""Checks of arguments: what passes, what does not, and that the error names all."""

from __future__ import annotations

import enum

import pytest

from irqchip_core.arguments import check_int, check_type
from irqchip_core.errors import InvalidArgument, WrongType


class Number(enum.IntEnum):
    FIVE = 5


@pytest.mark.parametrize("value", [0, 1, 23, Number.FIVE])
def test_integers_in_range_pass(value: int) -> None:
    check_int(value, 0, 23, subject="chip", argument="irq")


@pytest.mark.parametrize("value", [-1, 24, 1 << 64])
def test_integers_out_of_range_are_invalid(value: int) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_int(value, 0, 23, subject="chip", argument="irq")
    assert str(caught.value) == f"chip: irq: {value} is not from 0 to 23; give a number from 0 to 23"
    with pytest.raises(InvalidArgument, match=r"; allocate one$"):
        check_int(value, 0, 23, subject="chip", argument="irq", remedy="allocate one")


@pytest.mark.parametrize("value", [True, False, "4", 4.0, None, b"4"])
def test_what_is_no_integer_has_the_wrong_type(value: object) -> None:
    with pytest.raises(WrongType) as caught:
        check_int(value, 0, 23, subject="chip", argument="irq")
    assert str(caught.value) == f"chip: irq: {value!r} is of type {type(value).__name__}; give it as int"
    assert (caught.value.subject, caught.value.argument) == ("chip", "irq")


def test_types() -> None:
    check_type("x", str, subject="chip", argument="name")
    check_type("x", (int, str), subject="chip", argument="name")
    check_type(True, bool, subject="chip", argument="level")
    check_type(Number.FIVE, Number, subject="chip", argument="number")
    with pytest.raises(WrongType, match="chip: name: 5 is of type int; give it as str or bytes"):
        check_type(5, (str, bytes), subject="chip", argument="name")
    with pytest.raises(WrongType, match="give it as Number"):
        check_type(5, Number, subject="chip", argument="number")
