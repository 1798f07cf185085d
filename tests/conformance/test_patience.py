"""How long the kit waits: learned from the machine, and shorter for a chip that fails."""

from __future__ import annotations

import pytest

from irqchip_core.testing.patience import AT_LEAST, AT_MOST, BOOTS, FAILURES, FRACTION, RECENT, UNKNOWN, Patience


@pytest.mark.parametrize(
    ("boots", "seconds"),
    [
        ([], UNKNOWN),
        ([0.001], AT_LEAST),
        ([0.1], 0.1 * BOOTS),
        ([0.1, 0.2, 0.1], 0.2 * BOOTS),
        ([100.0], AT_MOST),
        ([100.0] + [0.1] * RECENT, 0.1 * BOOTS),  # it was busy for a while
    ],
)
def test_it_is_learned_from_the_slowest_of_the_last_boots(boots: list[float], seconds: float) -> None:
    patience = Patience()
    for boot in boots:
        patience.booted(boot)
    assert patience.seconds == pytest.approx(seconds)


def test_a_chip_that_has_failed_often_is_waited_for_shorter() -> None:
    patience = Patience()
    patience.booted(0.1)
    assert [patience.failed() for _ in range(FAILURES + 1)] == [False] * (FAILURES - 1) + [True, False]
    assert patience.seconds == pytest.approx(0.1 * BOOTS / FRACTION)


def test_what_is_given_is_not_learned() -> None:
    patience = Patience(0.25)
    patience.booted(1.0)
    assert not any(patience.failed() for _ in range(2 * FAILURES))
    assert (patience.seconds, str(patience)) == (0.25, "0.25 s")
