"""Hands out interrupt numbers (GSIs) to devices."""

from __future__ import annotations

import threading

from irqchip_core.errors import Exhausted, InvalidArgument

FIRST_IRQ = 9
"""First number given out on a PC; those below have fixed owners."""
LAST_IRQ = 1023


class SystemAllocator:
    """Allocates interrupt numbers upwards, the lowest free one first. Safe for use by threads.

    Args:
        first: Lowest number to give out.
        last: Highest number to give out.
        reserved: Numbers in that range that already have owners.
    """

    def __init__(self, first: int = FIRST_IRQ, last: int = LAST_IRQ, reserved: frozenset[int] = frozenset()) -> None:
        if not 0 <= first <= last:
            raise InvalidArgument(
                f"range {first} to {last} is empty", subject="SystemAllocator", argument="first, last"
            )
        self._first = self._lowest = first
        self._last = last
        self._taken = {irq for irq in reserved if first <= irq <= last}
        self._lock = threading.Lock()

    def _free(self, lowest: int) -> int | None:
        """The lowest free number that is `lowest` or above. With the lock."""
        return next((irq for irq in range(max(lowest, self._lowest), self._last + 1) if irq not in self._taken), None)

    def allocate_irq(self) -> int | None:
        """Take the lowest free number; None if none is left."""
        with self._lock:
            if (irq := self._free(self._lowest)) is not None:
                self._taken.add(irq)
            return irq

    def start_at(self, lowest: int) -> None:
        """Give out no number below `lowest` any more. Those can still be reserved and released.

        Raises:
            Exhausted: No other number is free. All is as before.
        """
        with self._lock:
            if self._free(lowest) is None:
                raise Exhausted(
                    f"all interrupt numbers from {max(lowest, self._lowest)} to {self._last} are taken",
                    subject="SystemAllocator",
                    remedy="release some, or make the allocator with a higher last number",
                )
            self._lowest = max(lowest, self._lowest)

    def reserve_irq(self, irq: int) -> bool:
        """Take this number; False if it is taken already or not in the range."""
        with self._lock:
            if not self._first <= irq <= self._last or irq in self._taken:
                return False
            self._taken.add(irq)
            return True

    def release_irq(self, irq: int) -> bool:
        """Give a number back; False if it was not taken."""
        with self._lock:
            if irq not in self._taken:
                return False
            self._taken.remove(irq)
            return True
