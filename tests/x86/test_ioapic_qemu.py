"""Our IOAPIC against QEMU's: the same sequences, and all readable state after each step.

QEMU's processor has no local APIC here, so its messages are seen only by the remote IRR they leave. What QEMU
does otherwise than the data sheet is named in capitals; docs/oracle-differences-apic.md explains it.
"""

from __future__ import annotations

from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from irqchip_core.x86.ioapic import Ioapic
from irqchip_core.x86.state import IOAPIC_BASE
from tests.oracles.qemu import Qemu
from tests.x86.sequences import SequenceMachine, action, beginning

pytestmark = pytest.mark.qemu

SETTINGS = settings(
    max_examples=200,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    derandomize=True,
)
IOREGSEL, IOWIN, EOIR = 0x00, 0x10, 0x40
LEVEL, MASKED, REMOTE_IRR = 0x8000, 0x10000, 0x4000
PINS = [1, 2, 9, 23]  # not 0: PIN_0_IS_PIN_2
VECTORS = [0x31, 0x32]
DEFINED = 0xFF << 56 | 0x1FFFF  # RESERVED_BITS_KEPT


class QemuIoapic:
    def __init__(self, qemu: Qemu) -> None:
        self._qemu = qemu
        self._path = next(
            f"{parent}/{entry['name']}"
            for parent in ("/machine/i440fx", "/machine/unattached")
            for entry in qemu.qmp("qom-list", path=parent)
            if entry["type"] == "child<ioapic>"
        )

    def set_line(self, pin: int, level: int) -> None:
        self._qemu.post(f"set_irq_in {self._path} unnamed-gpio-in {pin} {level}")

    def write(self, register: int, value: int) -> None:
        self._qemu.post(f"writel {IOAPIC_BASE + IOREGSEL} {register}", f"writel {IOAPIC_BASE + IOWIN} {value}")

    def write_page(self, offset: int, value: int) -> None:
        self._qemu.post(f"writel {IOAPIC_BASE + offset} {value}")

    def read(self, *registers: int) -> list[int]:
        select, window = IOAPIC_BASE + IOREGSEL, IOAPIC_BASE + IOWIN
        return self._qemu.qtest(*(f"{op}" for r in registers for op in (f"writel {select} {r}", f"readl {window}")))[
            1::2
        ]


class QemuIoapicMachine(SequenceMachine):
    theirs: ClassVar[QemuIoapic]

    @beginning()
    def start(self) -> None:
        self.ours = Ioapic()
        for pin in range(24):
            self.theirs.set_line(pin, 0)
            self.theirs.write(0x10 + 2 * pin, MASKED)
            self.theirs.write(0x11 + 2 * pin, 0)
        self.theirs.write(0, 0)

    def write(self, register: int, value: int) -> None:
        self.ours.write(IOREGSEL, 4, register, 0)
        self.ours.write(IOWIN, 4, value, 0)
        self.theirs.write(register, value)

    @action(pin=PINS, level=range(2))
    def line(self, pin: int, level: int) -> None:
        self.ours.set_line(pin, level)
        self.theirs.set_line(pin, level)

    @action(
        pin=PINS,
        vector=VECTORS,
        flags=[0, LEVEL, LEVEL, LEVEL | 0x100, LEVEL | MASKED, MASKED, LEVEL | 0x2000, 0x5000],
        noise=[0, 0xFFFE0000],
    )
    def entry_low(self, pin: int, vector: int, flags: int, noise: int) -> None:
        if (self.ours.entries[pin] ^ flags) & LEVEL:  # EDGE_LINES_ARE_FORGOTTEN
            self.line(pin, 0)
        self.write(0x10 + 2 * pin, vector | flags | noise)

    @action(pin=PINS, value=range(2**32))
    def entry_high(self, pin: int, value: int) -> None:
        self.write(0x11 + 2 * pin, value)

    @action(vector=VECTORS)
    def directed_eoi(self, vector: int) -> None:
        self.ours.write(EOIR, 4, vector, 0)
        self.theirs.write_page(EOIR, vector)

    @action(register=[0, 1, 2, 3, 0xF, 0x40, 0xFF], value=range(2**32))
    def other_register(self, register: int, value: int) -> None:
        self.write(register, value)

    def agree(self) -> None:
        registers = [0, 1, 2, 3, 0xF, *range(0x10, 0x40)]
        theirs = self.theirs.read(*registers)
        for register, value in zip(registers, theirs, strict=True):
            self.ours.write(IOREGSEL, 4, register, 0)
            mask = (DEFINED >> 32 if register & 1 else DEFINED & 0xFFFFFFFF) if register >= 0x10 else 0xFFFFFFFF
            assert self.ours.read(IOWIN, 4, 0) == value & mask, f"register {register:#x}"


@pytest.fixture(scope="module")
def qemu_ioapic(qemu: Qemu) -> QemuIoapic:
    return QemuIoapic(qemu)


@pytest.mark.timeout(300)
def test_ioapic_agrees_with_qemu_in_random_sequences(qemu_ioapic: QemuIoapic) -> None:
    machine = type("QemuIoapicMachine", (QemuIoapicMachine,), {"theirs": qemu_ioapic})
    run_state_machine_as_test(machine, settings=SETTINGS)


# Differences


def test_pin_0_is_pin_2(qemu_ioapic: QemuIoapic) -> None:
    for pin in (0, 2):
        qemu_ioapic.write(0x10 + 2 * pin, 0x31 | LEVEL)
    qemu_ioapic.set_line(0, 1)
    assert [low & REMOTE_IRR for low in qemu_ioapic.read(0x10, 0x14)] == [0, REMOTE_IRR]
    qemu_ioapic.set_line(0, 0)


def test_reserved_bits_kept(qemu_ioapic: QemuIoapic) -> None:
    qemu_ioapic.write(0x12, 0xFFFE0000 | MASKED)
    assert qemu_ioapic.read(0x12) == [0xFFFE0000 | MASKED]


def test_absent_registers_read_zero(qemu_ioapic: QemuIoapic) -> None:
    assert qemu_ioapic.read(0x40, 0xFF) == [0, 0]


def test_level_nmi_sets_remote_irr(qemu_ioapic: QemuIoapic) -> None:
    qemu_ioapic.write(0x22, 0x400 | LEVEL)
    qemu_ioapic.set_line(9, 1)
    assert qemu_ioapic.read(0x22) == [0x400 | LEVEL | REMOTE_IRR]
    qemu_ioapic.set_line(9, 0)
    qemu_ioapic.write(0x22, MASKED)


def test_edge_lines_are_forgotten(qemu_ioapic: QemuIoapic) -> None:
    ours = Ioapic()
    qemu_ioapic.write(0x22, 0x31)
    ours.write(IOREGSEL, 4, 0x22, 0)
    ours.write(IOWIN, 4, 0x31, 0)
    for board in (ours, qemu_ioapic):
        board.set_line(9, 1)
    qemu_ioapic.write(0x22, 0x31 | LEVEL)
    ours.write(IOWIN, 4, 0x31 | LEVEL, 0)
    assert (ours.read(IOWIN, 4, 0) & REMOTE_IRR, qemu_ioapic.read(0x22)[0] & REMOTE_IRR) == (REMOTE_IRR, 0)
    qemu_ioapic.set_line(9, 0)
    qemu_ioapic.write(0x22, MASKED)
