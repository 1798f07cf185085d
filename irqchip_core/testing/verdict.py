"""What a scenario of the conformance kit can end with, and the sentences that say why."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from irqchip_core.capabilities import AnyCapability


class Nonconforming(AssertionError):
    """The chip breaks the contract. The message is the rule and what happened instead."""


class NotApplicable(Exception):
    """The scenario cannot be played here. The message is the reason, and what would open it."""


def not_claimed(capability: AnyCapability) -> NotApplicable:
    """What is raised where a scenario needs `capability`."""
    return NotApplicable(f"needs capability {capability.value}, which the chip does not claim")


def check(condition: object, rule: str, found: object) -> None:
    """Raise `Nonconforming` unless `condition` is true.

    Args:
        condition: What the rule demands.
        rule: The rule, a clause.
        found: What was seen, a clause; shown only if the rule is broken.
    """
    if not condition:
        raise Nonconforming(f"{rule}, but {found}")


def check_equal(found: object, expected: object, rule: str) -> None:
    """Raise `Nonconforming` unless `found` is `expected`."""
    check(found == expected, rule, f"it is {found!r} and not {expected!r}")


@contextmanager
def refused(kind: type[Exception] | tuple[type[Exception], ...], rule: str) -> Iterator[None]:
    """Demand that what is done inside raises an error of this kind."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    names = " or ".join(one.__name__ for one in kinds)
    try:
        yield
    except kinds:
        return
    except Exception as error:
        raise Nonconforming(f"{rule} ({names}), but it raised {type(error).__name__}: {error}") from error
    raise Nonconforming(f"{rule} ({names}), but it was accepted")


@contextmanager
def accepted(rule: str) -> Iterator[None]:
    """Demand that what is done inside raises nothing."""
    try:
        yield
    except (Nonconforming, NotApplicable):
        raise
    except Exception as error:
        raise Nonconforming(f"{rule}, but it raised {type(error).__name__}: {error}") from error


def until(condition: Callable[[], object], patience: float, rule: str) -> None:
    """Demand that `condition` becomes true within `patience` seconds."""
    deadline = time.monotonic() + patience
    while not condition():
        check(time.monotonic() < deadline, rule, f"it has not after {patience:g} s")
        time.sleep(0.0005)


def vectors(numbers: Sequence[int]) -> str:
    """Vectors as text."""
    return ", ".join(f"{number:#04x}" for number in numbers) or "nothing"


def difference(taken: Sequence[int], expected: Sequence[int]) -> str:
    """What is wrong with the vectors taken, a clause; empty if nothing is."""
    if list(taken) == list(expected):
        return ""
    missing, extra = Counter(expected) - Counter(taken), Counter(taken) - Counter(expected)
    faults = [f"{vectors([vector])} was lost" for vector in sorted(missing)]
    for vector in sorted(extra):
        if vector in expected:
            faults.append(f"{vectors([vector])} came {list(taken).count(vector)} times")
        else:
            faults.append(f"{vectors([vector])} came, which was not sent")
    if not faults:
        faults.append("the order is wrong")
    return f"{' and '.join(faults)}: it took {vectors(taken)} where {vectors(expected)} was due"
