"""How long the conformance kit waits for what is due: as long as the machine that it runs on is slow."""

from __future__ import annotations

from collections import deque

UNKNOWN = 5.0
"""Seconds, before the first machine has booted."""
BOOTS = 40
"""A machine boots, with a dozen exits of its guest, so many times while an interrupt is waited for."""
AT_LEAST, AT_MOST = 2.0, 60.0
RECENT = 8
"""Boots that count: the slowest of them."""
FAILURES, FRACTION = 5, 4
"""A chip with so many failures is waited for that much shorter: the run has failed, and is to end."""


class Patience:
    """Seconds to wait for an interrupt, learned from how long machines take to boot.

    Args:
        fixed: Seconds that are not learned, but given.
    """

    def __init__(self, fixed: float | None = None) -> None:
        self._fixed = fixed
        self._boots: deque[float] = deque(maxlen=RECENT)
        self._failures = 0

    @property
    def seconds(self) -> float:
        """After which an interrupt counts as lost."""
        if self._fixed is not None:
            return self._fixed
        learned = min(max(AT_LEAST, BOOTS * max(self._boots)), AT_MOST) if self._boots else UNKNOWN
        return round(learned / FRACTION if self._failures >= FAILURES else learned, 1)

    def __str__(self) -> str:
        return f"{self.seconds:g} s"

    def booted(self, seconds: float) -> None:
        """A machine has booted in that time."""
        self._boots.append(seconds)

    def failed(self) -> bool:
        """A scenario has failed; whether that shortens the patience."""
        self._failures += 1
        return self._failures == FAILURES and self._fixed is None
