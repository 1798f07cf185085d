"""Checks of what a host gives to a call, made before anything is changed. Guests' values never come here."""

from __future__ import annotations

from irqchip_core.errors import InvalidArgument, WrongType


def check_type(value: object, kind: type | tuple[type, ...], *, subject: str, argument: str) -> None:
    """Refuse what is not of `kind`, or of one of them. A bool does not pass for an int.

    Raises:
        WrongType: It is of another type.
    """
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise WrongType(
            f"{value!r} is of type {type(value).__name__}",
            subject=subject,
            argument=argument,
            remedy=f"give it as {' or '.join(accepted.__name__ for accepted in kinds)}",
        )


def check_int(value: object, low: int, high: int, *, subject: str, argument: str, remedy: str = "") -> None:
    """Refuse what is no integer from `low` to `high`, both included. `remedy` is for a number out of range.

    Raises:
        WrongType: It is no int; a bool is none.
        InvalidArgument: It is out of range.
    """
    check_type(value, int, subject=subject, argument=argument)
    if not low <= value <= high:  # type: ignore[operator]
        raise InvalidArgument(
            f"{value} is not from {low} to {high}",
            subject=subject,
            argument=argument,
            remedy=remedy or f"give a number from {low} to {high}",
        )
