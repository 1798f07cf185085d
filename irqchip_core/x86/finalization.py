"""`Finalization`: `finalize_devices` of a chip, wherever its controllers are."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from irqchip_core.allocator import SystemAllocator
from irqchip_core.arguments import check_type
from irqchip_core.bus import Bus, BusDevice
from irqchip_core.errors import Exhausted, InvalidArgument

Place = tuple[Bus, BusDevice, int, int]
"""A range for a device: bus, device, base and length."""


class Finalization:
    """Puts the devices of a chip on their buses, once, and keeps the numbers of the IOAPIC's pins for lines.

    Args:
        subject: Name of the chip, for error messages.
        pins: Number of inputs of the IOAPIC.
    """

    def __init__(self, subject: str, pins: int) -> None:
        self._subject = subject
        self._pins = pins
        self._done = False
        self._lock = threading.Lock()

    def perform(self, allocator: SystemAllocator, io_bus: Bus, mmio_bus: Bus, places: Iterable[Place] = ()) -> None:
        """Fill `places`; from then on `allocator` gives out the numbers from that of the last pin plus 1.

        Raises:
            WrongType: An argument is no allocator or no bus.
            InvalidArgument: It was done before, a range is taken, or `allocator` has no number above those of the pins.
                Buses and allocator are as before.
        """
        check_type(allocator, SystemAllocator, subject=self._subject, argument="allocator")
        check_type(io_bus, Bus, subject=self._subject, argument="io_bus")
        check_type(mmio_bus, Bus, subject=self._subject, argument="mmio_bus")
        with self._lock:
            if self._done:
                raise InvalidArgument(
                    "the devices are on their buses already", subject=self._subject, remedy="call it once"
                )
            filled: list[tuple[Bus, int]] = []
            try:
                for bus, device, base, length in places:
                    bus.insert(device, base, length)
                    filled.append((bus, base))
                self._keep_pins(allocator)
            except BaseException:
                for bus, base in filled:
                    bus.remove(base)
                raise
            self._done = True

    def _keep_pins(self, allocator: SystemAllocator) -> None:
        try:
            allocator.start_at(self._pins)
        except Exhausted:
            raise InvalidArgument(
                f"it has no free number from {self._pins} up, and those below are of the IOAPIC's pins",
                subject=self._subject,
                argument="allocator",
                remedy=f"make it with a last number of {self._pins} or more",
            ) from None
