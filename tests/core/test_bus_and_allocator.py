"""Buses: which device answers an access, and what the guest reads if none does. And allocated numbers."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import override

from irqchip_core.allocator import SystemAllocator
from irqchip_core.bus import Access, Bus, BusDevice
from irqchip_core.errors import Exhausted, InvalidArgument


class Recorder(BusDevice):
    """Records accesses and answers reads with all ones, more bytes than were read."""

    debug_label = "recorder"

    def __init__(self, width: int = 8) -> None:
        self.width = width
        self.seen: list[tuple[Access, int | None]] = []

    @override
    def read(self, access: Access) -> int:
        self.seen.append((access, None))
        return (1 << 128) - 1

    @override
    def write(self, access: Access, value: int) -> None:
        self.seen.append((access, value))


class Broken(BusDevice):
    @override
    def read(self, access: Access) -> int:
        raise RuntimeError("read")

    @override
    def write(self, access: Access, value: int) -> None:
        raise RuntimeError("write")


def test_a_device_learns_address_offset_size_and_vcpu() -> None:
    bus, device = Bus("I/O"), Recorder()
    bus.insert(device, 0x3F8, 8)
    assert bus.for_vcpu(3).write(0x3FA, 2, 0x1234)
    assert bus.read(0x3F8, 1) == 0xFF
    assert device.seen == [(Access(0x3FA, 2, 2, 3), 0x1234), (Access(0x3F8, 0, 1, 0), None)]


def test_accesses_that_no_device_claims() -> None:
    bus = Bus()
    bus.insert(Recorder(), 0x100, 0x10)
    for address in (0, 0xFF, 0x110, 1 << 64):
        assert bus.read(address, 4) is None
        assert not bus.write(address, 4, 1)
    assert bus.unclaimed == 8


def test_a_device_that_ignores_a_read_gives_zero() -> None:
    bus = Bus()
    bus.insert(BusDevice(), 0, 1)
    assert bus.read(0, 8) == 0


def test_a_device_that_raises_is_logged_once_counted_and_read_as_zero(caplog: pytest.LogCaptureFixture) -> None:
    bus = Bus("MMIO")
    bus.insert(Broken(), 0, 4)
    assert bus.read(0, 4) == 0
    assert bus.write(0, 4, 0)
    assert bus.errors == 2
    assert [record.getMessage()[:32] for record in caplog.records] == ["MMIO bus: device failed on Acces"]


@pytest.mark.parametrize(("base", "length"), [(0x0F, 2), (0x10, 1), (0x1F, 1), (0x00, 0x100), (0x1F, 0x100)])
def test_overlaps_are_refused_by_name(base: int, length: int) -> None:
    bus = Bus("I/O")
    bus.insert(Recorder(), 0x10, 0x10)
    with pytest.raises(InvalidArgument, match="overlaps recorder at"):
        bus.insert(BusDevice(), base, length)
    assert len(bus.devices()) == 1


@pytest.mark.parametrize(("base", "length"), [(0, 0), (0, -1), (-1, 2)])
def test_empty_ranges_are_refused(base: int, length: int) -> None:
    with pytest.raises(InvalidArgument, match="is empty"):
        Bus().insert(BusDevice(), base, length)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 8))), st.integers(0, 50))
def test_the_device_found_is_the_one_whose_range_holds_the_address(ranges: list[tuple[int, int]], address: int) -> None:
    bus, model = Bus(), dict[int, BusDevice]()
    for base, length in ranges:
        device = Recorder()
        taken = any(at in model for at in range(base, base + length))
        try:
            bus.insert(device, base, length)
        except InvalidArgument:
            assert taken
        else:
            assert not taken
            model |= dict.fromkeys(range(base, base + length), device)
    bus.write(address, 1, 0)
    assert all(
        len(device.seen) == (model.get(address) is device)
        for _, _, device in bus.devices()
        if isinstance(device, Recorder)
    )


@pytest.mark.parametrize(
    ("width", "address", "size", "writes"),
    [
        (1, 0x10, 1, [(0x10, 1, 0x11)]),
        (1, 0x10, 2, [(0x10, 1, 0x11), (0x11, 1, 0x22)]),
        (1, 0x10, 4, [(0x10, 1, 0x11), (0x11, 1, 0x22), (0x12, 1, 0x33), (0x13, 1, 0x44)]),
        (1, 0x13, 4, [(0x13, 1, 0x11)]),  # the rest is beyond the device
        (1, 0x0E, 4, [(0x10, 1, 0x33), (0x11, 1, 0x44)]),  # it starts where none is
        (2, 0x10, 4, [(0x10, 2, 0x2211), (0x12, 2, 0x4433)]),
        (2, 0x0F, 4, [(0x10, 2, 0x3322), (0x12, 1, 0x44)]),
        (4, 0x10, 4, [(0x10, 4, 0x44332211)]),
        (4, 0x0E, 4, []),  # as wide as the access, which starts elsewhere
        (8, 0x13, 4, [(0x13, 4, 0x44332211)]),
        (1, 0x14, 4, []),
    ],
)
def test_a_device_is_accessed_in_parts_of_its_width(
    width: int, address: int, size: int, writes: list[tuple[int, int, int]]
) -> None:
    bus, device = Bus(), Recorder(width)
    bus.insert(device, 0x10, 4)
    assert bus.for_vcpu(1).write(address, size, 0x44332211 & (1 << 8 * size) - 1) == bool(writes)
    assert device.seen == [(Access(at, at - 0x10, part, 1), value) for at, part, value in writes]
    device.seen.clear()
    bus.read(address, size)
    assert [(access.address, access.size) for access, _ in device.seen] == [(at, part) for at, part, _ in writes]
    assert bus.unclaimed == (0 if writes else 2)


class Constant(BusDevice):
    def __init__(self, value: int, width: int) -> None:
        self.value = value
        self.width = width

    @override
    def read(self, access: Access) -> int:
        return self.value


def test_a_wide_read_is_put_together_from_all_devices_it_meets() -> None:
    bus = Bus()
    bus.insert(Constant(0x12, 1), 1, 1)
    bus.insert(Constant(0x5634, 2), 3, 2)
    assert bus.read(0, 4) == 0x34FF12FF
    assert bus.read(0, 8) == 0xFFFFFF5634FF12FF
    assert bus.read(1, 4) == 0x5634FF12
    assert bus.read(5, 4) is None


def test_a_width_no_access_has_is_refused() -> None:
    for width in (0, 9, -1):
        with pytest.raises(InvalidArgument, match="width of recorder"):
            Bus().insert(Recorder(width), 0, 1)


def test_removed_ranges_can_be_used_again() -> None:
    bus, device = Bus(), Recorder()
    bus.insert(device, 8, 8)
    assert bus.remove(8) is device
    bus.insert(BusDevice(), 8, 8)
    with pytest.raises(InvalidArgument, match="no device starts at 0x9"):
        bus.remove(9)


class Meeting(BusDevice):
    """Detects whether two accesses were ever inside at the same time."""

    def __init__(self, *, self_synchronized: bool) -> None:
        self.self_synchronized = self_synchronized
        self.barrier = threading.Barrier(2)
        self.inside = 0
        self.most_inside = 0

    @override
    def read(self, access: Access) -> int:
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        if self.self_synchronized:
            self.barrier.wait(5)
        self.inside -= 1
        return 0


@pytest.mark.parametrize("self_synchronized", [False, True])
def test_the_bus_lets_one_access_at_a_time_into_a_device_that_wants_it(self_synchronized: bool) -> None:
    bus, device = Bus(), Meeting(self_synchronized=self_synchronized)
    bus.insert(device, 0, 1)
    bus.insert(device, 4, 1)  # a second range of one device is behind the same lock
    rounds = 1 if self_synchronized else 2000
    threads = [
        threading.Thread(target=lambda at=at: [bus.for_vcpu(at).read(at, 1) for _ in range(rounds)]) for at in (0, 4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert device.most_inside == (2 if self_synchronized else 1)


def test_the_allocator_gives_the_lowest_free_number() -> None:
    allocator = SystemAllocator(first=9, last=12, reserved=frozenset({10}))
    assert [allocator.allocate_irq() for _ in range(4)] == [9, 11, 12, None]
    assert allocator.release_irq(11)
    assert not allocator.release_irq(11)
    assert not allocator.release_irq(1000)
    assert allocator.reserve_irq(11)
    assert not allocator.reserve_irq(11)
    assert not allocator.reserve_irq(8)


def test_an_allocator_without_a_number_is_refused() -> None:
    with pytest.raises(Exhausted, match="all interrupt numbers from 30 to 30 are taken"):
        SystemAllocator(30, 30, frozenset({30})).start_at(24)
    with pytest.raises(InvalidArgument, match="is empty"):
        SystemAllocator(9, 8)


def test_an_allocator_that_starts_higher_gives_out_no_lower_number() -> None:
    allocator = SystemAllocator(first=5, last=26, reserved=frozenset({25}))
    assert allocator.allocate_irq() == 5
    allocator.start_at(24)
    assert allocator.release_irq(5)
    assert allocator.allocate_irq() == 24
    for lowest in (25, 27, 10_000):
        taken = allocator.reserve_irq(26)
        with pytest.raises(Exhausted):
            allocator.start_at(lowest)
        if taken:
            allocator.release_irq(26)
    allocator.start_at(5)  # never back
    assert [allocator.allocate_irq() for _ in range(2)] == [26, None]
    assert allocator.reserve_irq(5)  # a line of someone's choice
