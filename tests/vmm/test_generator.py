"""The interrupt generator, and the reports of guests, good and bad."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from irqchip_vmm.devices import generator as g
from irqchip_vmm.memory import GuestMemory
from tests.vmm.fakes import FakeTimers, Port, fake_irqs

MEMORY_SIZE = 0x10000


class Rig:
    def __init__(self) -> None:
        self.irqs = fake_irqs()
        self.timers = FakeTimers()
        self.memory = GuestMemory(memoryview(bytearray(MEMORY_SIZE)))
        self.generator = g.InterruptGenerator(self.irqs, self.timers, self.memory, 2)
        self.port = Port(self.generator, g.GENERATOR_BASE)

    def write(self, register: int, value: int = 1) -> None:
        self.port.write(register, value, 4)

    def read(self, register: int) -> int:
        return self.port.read(register, 4)

    def resample(self) -> None:
        self.irqs.level.on_resample()


def test_it_tells_the_guest_what_there_is() -> None:
    rig = Rig()
    registers = (g.ID, g.VERSION, g.VCPUS, g.EDGE_GSI, g.LEVEL_GSI, g.MSI_GSI)
    assert [rig.read(register) for register in registers] == [0x47515249, 1, 2, 9, 10, 24]


def test_edge() -> None:
    rig = Rig()
    for _ in range(3):
        rig.write(g.EDGE_RAISE, 0)
    assert rig.irqs.edge.raised == 3


# Steps: number added to LEVEL_PENDING, "ack", "resample"; then how often the line was asserted so far.
LEVEL_STORIES = {
    "one": [(1, 1), ("ack", 1), ("resample", 1)],
    "several services for one request": [
        (3, 1), ("ack", 1), ("resample", 2), ("ack", 2), ("resample", 3), ("ack", 3), ("resample", 3),
    ],
    "a request before the device gets the EOI": [(1, 1), ("ack", 1), (1, 1), ("resample", 2)],
    "a request while one is in service": [(1, 1), (1, 1), ("ack", 1), ("resample", 2)],
    "a chip that resamples before the guest acknowledges": [
        (2, 1), ("resample", 1), ("ack", 2), ("resample", 2), ("ack", 2),
    ],
    "a chip that resamples twice": [(2, 1), ("ack", 1), ("resample", 2), ("resample", 2), ("ack", 2)],
    "an acknowledgment too many": [("ack", 0), (1, 1), ("ack", 1), ("ack", 1), ("resample", 1)],
    "a resample too many": [("resample", 0), (1, 1)],
}  # fmt: skip


@pytest.mark.parametrize("story", LEVEL_STORIES.values(), ids=LEVEL_STORIES)
def test_level(story: list[tuple[int | str, int]]) -> None:
    rig = Rig()
    for number, (action, raised) in enumerate(story):
        if action == "ack":
            rig.write(g.LEVEL_ACK)
        elif action == "resample":
            rig.resample()
        elif isinstance(action, int):
            rig.write(g.LEVEL_PENDING, action)
        assert rig.irqs.level.raised == raised, f"step {number}"


def test_level_is_asserted_again_if_the_interrupt_was_dropped() -> None:
    rig = Rig()
    rig.write(g.LEVEL_PENDING)
    rig.resample()
    rig.timers.advance(g.RETRY_NS - 1)
    assert rig.irqs.level.raised == 1
    rig.timers.advance(1)
    assert rig.irqs.level.raised == 2


def test_level_is_not_asserted_again_if_it_was_acknowledged_late() -> None:
    rig = Rig()
    rig.write(g.LEVEL_PENDING)
    rig.resample()
    rig.write(g.LEVEL_ACK)
    rig.timers.advance(2 * g.RETRY_NS)
    assert rig.irqs.level.raised == 1


def test_pending_is_bounded() -> None:
    rig = Rig()
    for _ in range(3):
        rig.write(g.LEVEL_PENDING, 0xFFFFFFFF)
    assert rig.read(g.LEVEL_PENDING) == g.MAX_PENDING


def test_message_is_routed_when_it_changed_and_sent_each_time() -> None:
    rig = Rig()
    rig.write(g.MSI_ADDRESS, 0xFEE01000)
    rig.write(g.MSI_DATA, 0x60)
    for _ in range(2):
        rig.write(g.MSI_RAISE)
    rig.write(g.MSI_ADDRESS_HIGH, 1)
    rig.write(g.MSI_RAISE)
    assert rig.irqs.msi.messages == [(0xFEE01000, 0x60), (0x1FEE01000, 0x60)]
    assert rig.irqs.msi.raised == 3


def test_a_message_the_chip_refuses_is_not_sent() -> None:
    rig = Rig()
    rig.irqs.msi.accepts = False
    rig.write(g.MSI_RAISE)
    assert rig.irqs.msi.raised == 0


def test_accesses_that_are_not_32_bits_wide_are_ignored() -> None:
    rig = Rig()
    for size in (1, 2, 8):
        rig.port.write(g.EDGE_RAISE, 1, size)
        assert rig.port.read(g.ID, size) == 0
    assert rig.irqs.edge.raised == 0


def report(*rows: tuple[bytes, int, int, int, int], magic: bytes = b"IRQR", count: int | None = None) -> bytes:
    header = struct.pack("<4sI8x", magic, len(rows) if count is None else count)
    return header + b"".join(struct.pack("<24s4I", *row) for row in rows)


GOOD = (b"msi", 1, 10, 10, 9)

REFUSED = {
    "magic": (0x100, report(GOOD, magic=b"IRQX"), "starts with"),
    "too many rows": (0x100, report(GOOD, count=4097), "more than 4096"),
    "rows beyond memory": (MEMORY_SIZE - 64, report(GOOD, count=2), "beyond memory"),
    "header beyond memory": (MEMORY_SIZE - 8, b"", "outside of memory"),
    "address far away": (0xFFFFFFFF, b"", "outside of memory"),
    "vCPU": (0x100, report((b"msi", 2, 1, 1, 1)), "of vCPU 2"),
    "empty name": (0x100, report((b"", 0, 1, 1, 1)), "printable"),
    "control character": (0x100, report((b"a\x1b[2J", 0, 1, 1, 1)), "printable"),
    "not ASCII": (0x100, report((b"\xff\xfe", 0, 1, 1, 1)), "printable"),
    "same row twice": (0x100, report(GOOD, GOOD), "two rows"),
}


@pytest.mark.parametrize(("address", "data", "problem"), REFUSED.values(), ids=REFUSED)
def test_report_refused(address: int, data: bytes, problem: str) -> None:
    rig = Rig()
    if data:
        rig.memory.write(address, data)
    rig.write(g.REPORT, address)
    assert rig.read(g.REPORT) == g.REPORT_REFUSED
    assert rig.generator.report is None
    assert rig.generator.report_error is not None
    assert problem in rig.generator.report_error


def test_report_taken() -> None:
    rig = Rig()
    assert rig.read(g.REPORT) == g.REPORT_NONE
    rig.memory.write(0x100, report(GOOD, (b"a name of 24 characters.", 0, 2**32 - 1, 0, 0)))
    rig.write(g.REPORT, 0x100)
    assert rig.read(g.REPORT) == g.REPORT_TAKEN
    assert rig.generator.report == [
        g.ReportRow("msi", 1, 10, 10, 9),
        g.ReportRow("a name of 24 characters.", 0, 2**32 - 1, 0, 0),
    ]


@given(st.binary(max_size=400), st.integers(0, 2**32 - 1))
def test_no_report_raises(data: bytes, address: int) -> None:
    memory = GuestMemory(memoryview(bytearray(512)))
    memory.write(0, b"IRQR" + data)
    for at in (0, address):
        assert isinstance(g.read_report(memory, at, 2), list | str)
