"""The UART as tables of stimulus and result.

A step is (action, argument, ...): ``w`` register value, ``r`` register expected, ``in`` bytes from the host, ``out``
all bytes sent so far, ``irq`` all interrupts so far.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from irqchip_vmm.devices.uart import DATA, IER, IIR_FCR, LCR, LSR, MCR, MSR, SCR, Uart
from tests.vmm.fakes import Port

OUT2 = 0x08
LOOP = 0x10
FIFO = 0x01

STORIES: dict[str, list[tuple[Any, ...]]] = {
    "registers after reset": [
        ("r", IER, 0), ("r", IIR_FCR, 0x01), ("r", LCR, 0), ("r", MCR, 0), ("r", LSR, 0x60), ("r", MSR, 0xB0),
        ("r", SCR, 0), ("irq", 0),
    ],
    "what can be written can be read": [
        ("w", IER, 0xFF), ("r", IER, 0x0F), ("w", LCR, 0x1B), ("r", LCR, 0x1B), ("w", MCR, 0xEF), ("r", MCR, 0x0F),
        ("w", SCR, 0xA5), ("r", SCR, 0xA5),
    ],
    "LSR and MSR ignore writes": [("w", LSR, 0), ("r", LSR, 0x60), ("w", MSR, 0), ("r", MSR, 0xB0)],
    "DLAB turns data and IER into the divisor": [
        ("w", LCR, 0x80), ("r", DATA, 12), ("r", IER, 0), ("w", DATA, 0x34), ("w", IER, 0x12), ("r", DATA, 0x34),
        ("r", IER, 0x12), ("w", LCR, 0x03), ("r", IER, 0), ("out", b""),
    ],
    "what is sent leaves at once": [("w", DATA, 0x41), ("r", LSR, 0x60), ("w", DATA, 0x42), ("out", b"AB")],
    "input waits for room: one byte without FIFO": [
        ("in", b"xyz"), ("r", LSR, 0x61), ("r", DATA, 0x78), ("r", LSR, 0x61), ("r", DATA, 0x79), ("r", DATA, 0x7A),
        ("r", LSR, 0x60), ("r", DATA, 0),
    ],
    "16 bytes with FIFO, and none is lost": [
        ("w", IIR_FCR, FIFO), ("in", bytes(range(1, 19))), *(("r", DATA, n) for n in range(1, 19)), ("r", LSR, 0x60),
    ],
    "no interrupt leaves without OUT2": [("w", IER, 1), ("in", b"a"), ("irq", 0), ("w", MCR, OUT2), ("irq", 1)],
    "received data interrupts until it is read": [
        ("w", MCR, OUT2), ("w", IER, 1), ("in", b"ab"), ("irq", 1), ("r", IIR_FCR, 0x04), ("r", DATA, 0x61),
        ("r", IIR_FCR, 0x04), ("irq", 1), ("r", DATA, 0x62), ("r", IIR_FCR, 0x01), ("in", b"c"), ("irq", 2),
    ],
    "the FIFO interrupts at its trigger level, and with a timeout below": [
        ("w", MCR, OUT2), ("w", IER, 1), ("w", IIR_FCR, 0x41), ("in", b"abc"), ("r", IIR_FCR, 0xCC), ("in", b"d"),
        ("r", IIR_FCR, 0xC4), ("r", DATA, 0x61), ("r", IIR_FCR, 0xCC),
    ],
    "THRE interrupts when enabled, until IIR is read": [
        ("w", MCR, OUT2), ("w", IER, 2), ("irq", 1), ("r", IIR_FCR, 0x02), ("r", IIR_FCR, 0x01), ("irq", 1),
        ("w", DATA, 0x41), ("irq", 2), ("r", IIR_FCR, 0x02),
    ],
    "each byte sent is a new edge": [("w", MCR, OUT2), ("w", IER, 2), ("w", DATA, 1), ("w", DATA, 2), ("irq", 3)],
    "enabling THRE again without change is no interrupt": [
        ("w", MCR, OUT2), ("w", IER, 2), ("r", IIR_FCR, 0x02), ("w", IER, 3), ("irq", 1),
    ],
    "reading IIR keeps THRE while something more urgent is shown": [
        ("w", MCR, OUT2), ("w", IER, 3), ("in", b"a"), ("r", IIR_FCR, 0x04), ("r", DATA, 0x61), ("r", IIR_FCR, 0x02),
        ("r", IIR_FCR, 0x01),
    ],
    "priorities: line status, data, THRE, modem": [
        ("w", MCR, LOOP), ("w", DATA, 1), ("w", DATA, 2), ("w", MCR, LOOP | 2), ("w", IER, 0x0F),
        ("r", IIR_FCR, 0x06), ("r", LSR, 0x63), ("r", IIR_FCR, 0x04), ("r", DATA, 2), ("r", IIR_FCR, 0x02),
        ("r", IIR_FCR, 0x00), ("r", MSR, 0x1B), ("r", IIR_FCR, 0x01),
    ],
    "loopback returns what is sent, and keeps it from the host": [
        ("w", MCR, LOOP), ("w", DATA, 0x55), ("r", LSR, 0x61), ("r", DATA, 0x55), ("out", b""),
    ],
    "loopback connects the modem lines": [
        ("w", MCR, LOOP | 0x0F), ("r", MSR, 0xF0), ("w", MCR, LOOP), ("r", MSR, 0x0F), ("r", MSR, 0x00),
        ("w", MCR, LOOP | 2), ("r", MSR, 0x11),
    ],
    "loopback holds input of the host back": [
        ("w", MCR, LOOP), ("in", b"a"), ("r", LSR, 0x60), ("w", MCR, 0), ("r", LSR, 0x61), ("r", DATA, 0x61),
    ],
    "a full FIFO keeps its bytes and overruns": [
        ("w", IIR_FCR, FIFO), ("w", MCR, LOOP), *(("w", DATA, n) for n in range(17)), ("r", LSR, 0x63),
        ("r", LSR, 0x61), *(("r", DATA, n) for n in range(16)), ("r", LSR, 0x60),
    ],
    "FCR clears the receiver": [
        ("w", IIR_FCR, FIFO), ("w", MCR, LOOP), ("w", DATA, 1), ("w", IIR_FCR, FIFO | 2), ("r", LSR, 0x60),
        ("w", DATA, 2), ("w", IIR_FCR, 0), ("r", LSR, 0x60), ("r", IIR_FCR, 0x01),
    ],
}  # fmt: skip


class Rig:
    def __init__(self) -> None:
        self.irqs = 0
        self.sent = bytearray()
        self.uart = Uart(self._count, self.sent.extend)
        self.port = Port(self.uart)

    def _count(self) -> None:
        self.irqs += 1


@pytest.mark.parametrize("story", STORIES.values(), ids=STORIES)
def test_story(story: list[tuple[Any, ...]]) -> None:
    rig = Rig()
    for number, step in enumerate(story):
        match step:
            case ("w", register, value):
                rig.port.write(register, value)
            case ("r", register, expected):
                assert rig.port.read(register) == expected, f"step {number}: {step}"
            case ("in", data):
                rig.uart.receive(data)
            case ("out", expected):
                assert bytes(rig.sent) == expected, f"step {number}"
            case ("irq", expected):
                assert rig.irqs == expected, f"step {number}"
            case _:
                pytest.fail(f"no such step: {step}")


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 7), st.integers(0, 0xFFFFFFFF), st.sampled_from((1, 2, 4)))))
def test_no_access_raises_or_answers_more_than_a_byte(accesses: list[tuple[bool, int, int, int]]) -> None:
    rig = Rig()
    rig.uart.receive(b"input")
    for is_write, offset, value, size in accesses:
        if is_write:
            rig.port.write(offset, value, size)
        else:
            assert 0 <= rig.port.read(offset, size) <= 0xFF
    assert rig.uart.backlog <= 5
