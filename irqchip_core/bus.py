"""An address space of devices: I/O ports or MMIO.

A `Bus` maps ranges that do not overlap to devices. Each vCPU has a handle of its own (`Bus.for_vcpu`)
on the shared map, so that an access carries its vCPU's number to devices such as the local APIC. Guest accesses never
raise: a read that no device answers is 0, and a device that raises is logged, counted and answered so.

A device takes no more bytes at once than its `BusDevice.width`: the bus splits a wider access into narrower ones at
rising addresses, each to the device that is there, as a PC's ISA bridge makes byte cycles of a word (Intel 82371AB,
ISA cycles). A device as wide as the access takes it as a whole, and only where it starts. Bytes of a read for which no
device is there are ones.
"""

from __future__ import annotations

import logging
import threading
from bisect import bisect_right
from typing import NamedTuple, TypeAlias

from irqchip_core.arguments import check_int
from irqchip_core.errors import InvalidArgument

_log = logging.getLogger(__name__)


class Access(NamedTuple):
    """One access of a guest to a device.

    Attributes:
        address: Absolute port or physical address.
        offset: The same from the start of the device's range.
        size: Bytes, 1 to 8.
        vcpu_id: Number of the vCPU whose bus handle it came through.
    """

    address: int
    offset: int
    size: int
    vcpu_id: int


class BusDevice:
    """Something that answers accesses. Values are little-endian integers of ``access.size`` bytes.

    Attributes:
        debug_label: Name for tables and logs.
        self_synchronized: True if the device takes care of concurrent accesses itself; otherwise the
            bus lets in one at a time.
        width: The most bytes it takes in one access, 1 to 8; 1 for a device of 8 bits, such as a UART.
    """

    debug_label: str = "device"
    self_synchronized: bool = False
    width: int = 8

    def read(self, access: Access) -> int:
        """Answer a read. The bus cuts the value to ``access.size`` bytes."""
        return 0

    def write(self, access: Access, value: int) -> None:
        """Take a write."""


_Range: TypeAlias = "tuple[int, int, BusDevice, threading.Lock | None, int]"
"""Base, length, device, its lock if the bus keeps one, its width."""


class _Map:
    """What all handles of a bus share."""

    __slots__ = ("bases", "errors", "lock", "ranges", "unclaimed")

    def __init__(self) -> None:
        # bases and ranges are replaced together under `lock`, never changed: readers take no lock.
        self.ranges: tuple[list[int], list[_Range]] = ([], [])
        self.lock = threading.Lock()
        self.unclaimed = 0
        self.errors = 0


class Bus:
    """A handle on an address space.

    Args:
        name: For error messages: ``I/O`` or ``MMIO``.
    """

    def __init__(self, name: str = "bus") -> None:
        self.name = name
        self.vcpu_id = 0
        self._map = _Map()

    def for_vcpu(self, vcpu_id: int) -> Bus:
        """Another handle on the same devices, whose accesses are those of vCPU `vcpu_id`."""
        handle = Bus(self.name)
        handle.vcpu_id = vcpu_id
        handle._map = self._map
        return handle

    def insert(self, device: BusDevice, base: int, length: int) -> None:
        """Put `device` at [`base`, `base` + `length`). One device may have several ranges.

        Raises:
            InvalidArgument: The range is empty, negative or overlaps another one, or the device's width is not 1 to 8.
        """
        check_int(device.width, 1, 8, subject=f"{self.name} bus", argument=f"width of {device.debug_label}")
        if base < 0 or length <= 0:
            raise InvalidArgument(
                f"range of length {length:#x} at {base:#x} is empty",
                subject=f"{self.name} bus",
                argument=device.debug_label,
                remedy="give a base of 0 or more and a length of 1 or more",
            )
        with self._map.lock:
            bases, ranges = self._map.ranges
            at = bisect_right(bases, base)
            for other_base, other_length, other, _, _ in ranges[max(0, at - 1) : at + 1]:
                if base < other_base + other_length and other_base < base + length:
                    raise InvalidArgument(
                        f"[{base:#x}, {base + length:#x}) overlaps {other.debug_label} at "
                        f"[{other_base:#x}, {other_base + other_length:#x})",
                        subject=f"{self.name} bus",
                        argument=device.debug_label,
                        remedy="choose a free range, or remove the other device first",
                    )
            lock = None
            if not device.self_synchronized:
                lock = next((entry[3] for entry in ranges if entry[2] is device), None) or threading.Lock()
            entry = (base, length, device, lock, device.width)
            self._map.ranges = ([*bases[:at], base, *bases[at:]], [*ranges[:at], entry, *ranges[at:]])

    def remove(self, base: int) -> BusDevice:
        """Take out the range that starts at `base`; returns its device.

        Raises:
            InvalidArgument: No range starts there.
        """
        with self._map.lock:
            bases, ranges = self._map.ranges
            if base not in bases:
                raise InvalidArgument(f"no device starts at {base:#x}", subject=f"{self.name} bus", argument="base")
            at = bases.index(base)
            self._map.ranges = (bases[:at] + bases[at + 1 :], ranges[:at] + ranges[at + 1 :])
            return ranges[at][2]

    def devices(self) -> list[tuple[int, int, BusDevice]]:
        """All (base, length, device), by address."""
        return [entry[:3] for entry in self._map.ranges[1]]

    @property
    def unclaimed(self) -> int:
        """How many accesses hit no device."""
        return self._map.unclaimed

    @property
    def errors(self) -> int:
        """How many accesses made a device raise."""
        return self._map.errors

    def _find(self, address: int) -> _Range | None:
        bases, ranges = self._map.ranges
        at = bisect_right(bases, address) - 1
        if at >= 0:
            entry = ranges[at]
            if address - entry[0] < entry[1]:
                return entry
        return None

    def read(self, address: int, size: int) -> int | None:
        """What the guest reads: an integer of `size` bytes, or None if no device is there."""
        entry = self._find(address)
        if entry is None:
            return self._read_parts(address, size)
        base, _, device, lock, width = entry
        if size > width:
            return self._read_parts(address, size)
        access = Access(address, address - base, size, self.vcpu_id)
        try:
            if lock is None:
                value = device.read(access)
            else:
                with lock:
                    value = device.read(access)
            return value & ((1 << 8 * size) - 1)
        except Exception:
            self._failed(device, access)
            return 0

    def write(self, address: int, size: int, value: int) -> bool:
        """What the guest writes; False if no device is there."""
        entry = self._find(address)
        if entry is None:
            return self._write_parts(address, size, value)
        base, _, device, lock, width = entry
        if size > width:
            return self._write_parts(address, size, value)
        access = Access(address, address - base, size, self.vcpu_id)
        try:
            if lock is None:
                device.write(access, value)
            else:
                with lock:
                    device.write(access, value)
        except Exception:
            self._failed(device, access)
        return True

    def _parts(self, address: int, size: int) -> list[tuple[int, int]]:
        """Address and size of each part of an access that a device takes; counts an access that has none."""
        parts = []
        at, end = address, address + size
        while at < end:
            entry = self._find(at)
            taken = 1
            if entry is not None and (at == address or entry[4] < size):
                taken = min(end - at, entry[4])
                parts.append((at, taken))
            at += taken
        if not parts:
            self._map.unclaimed += 1
        return parts

    def _read_parts(self, address: int, size: int) -> int | None:
        data: bytearray | None = None
        for at, taken in self._parts(address, size):
            if (value := self.read(at, taken)) is not None:
                data = data or bytearray(b"\xff" * size)
                data[at - address : at - address + taken] = value.to_bytes(taken, "little")
        return None if data is None else int.from_bytes(data, "little")

    def _write_parts(self, address: int, size: int, value: int) -> bool:
        parts = self._parts(address, size)
        for at, taken in parts:
            self.write(at, taken, value >> 8 * (at - address) & (1 << 8 * taken) - 1)
        return bool(parts)

    def _failed(self, device: BusDevice, access: Access) -> None:
        self._map.errors += 1
        if self._map.errors == 1:  # a guest could fill the disk with more
            _log.exception(
                "%s bus: %s failed on %s; further failures are only counted", self.name, device.debug_label, access
            )
