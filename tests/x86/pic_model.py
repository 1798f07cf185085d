"""A machine that plays one sequence to our 8259 pair and to an oracle's, comparing all state.

Every action is something a guest, a device or the processor can do. Where an oracle differs from the data sheet the
action checks `PicOracle.differences`, and leaves out only that stimulus; docs/oracle-differences.md explains each.
"""

from __future__ import annotations

import enum
from itertools import product
from typing import ClassVar, Protocol

import attrs

from irqchip_core.x86.state import PicSelect
from tests.x86.sequences import SequenceMachine, action, beginning
from tests.x86.watched_pic import WatchedPic as Pic

COMMAND = (0x20, 0xA0)
DATA = (0x21, 0xA1)
ELCR = (0x4D0, 0x4D1)
READ_IRR, READ_ISR, POLL = 0x0A, 0x0B, 0x0C
LOWEST_BASE = 0x20  # below are the exceptions, and the NMI, of which oracles make use


class Difference(enum.Enum):
    """The names under which docs/oracle-differences.md lists what an oracle does otherwise than the data sheet."""

    NO_LTIM = enum.auto()
    SINGLE_MODE_CASCADES = enum.auto()
    NO_SINGLE_MODE = enum.auto()
    NO_SPECIAL_MASK = enum.auto()
    NON_SPECIFIC_EOI_SEES_MASKED = enum.auto()
    SFNM_FREES_WORSE_LINES = enum.auto()
    ICW1_KEEPS_SERVICE = enum.auto()
    ICW1_FORGETS_LEVELS = enum.auto()
    ICW1_KEEPS_ROTATE = enum.auto()
    ICW1_WAITS_FOR_UPDATE = enum.auto()
    POLL_ENDS = enum.auto()
    CASCADE_INT_STAYS_HIGH = enum.auto()
    ELCR_WAITS_FOR_LINE = enum.auto()
    OCW3_WAITS_FOR_UPDATE = enum.auto()


class PicOracle(Protocol):
    """Another pair of 8259s."""

    differences: frozenset[Difference]

    def reset(self) -> None:
        """All lines low; the registers may hold anything."""

    def read(self, port: int) -> int: ...

    def write(self, port: int, value: int) -> None: ...

    def set_line(self, line: int, high: bool, /) -> None: ...

    def take_interrupt(self) -> int | None:
        """The vector the processor gets, None if INT is low."""

    def registers(self, read_isr: tuple[bool, bool]) -> list[tuple[int, int, int, int, int]]:
        """Of each, what the command port reads, IRR, ISR, IMR and ELCR; leaves OCW3's selection as given."""
        ...


class PicMachine(SequenceMachine):
    """Plays the same to `Pic` and to `oracle`. Subclasses set `oracle`."""

    oracle: ClassVar[PicOracle]

    def __init__(self) -> None:
        super().__init__()
        self.pic = Pic()
        self.lines = [False] * 16

    def has(self, difference: Difference) -> bool:
        return difference in self.oracle.differences

    def both_write(self, port: int, value: int) -> None:
        self.pic.write(port, 1, value)
        self.oracle.write(port, value)

    def both_initialize(self, select: int, icw1: int, base: int, icw4: int) -> None:
        self.both_write(COMMAND[select], icw1)
        self.both_write(DATA[select], base)
        if not icw1 & 0x02:
            self.both_write(DATA[select], (0x04, 0x02)[select])
        if icw1 & 0x01:
            self.both_write(DATA[select], icw4)

    def serving(self, select: int) -> bool:
        return self.pic.state(PicSelect(select)).isr != 0

    @beginning(icw4=[*product((0x01, 0x03, 0x11, 0x13), repeat=2)])
    def start(self, icw4: tuple[int, int]) -> None:
        self.oracle.reset()
        for select, base in ((0, 0x20), (1, 0x70)):
            self.both_write(ELCR[select], 0)
            self.both_initialize(select, 0x11, base, icw4[select])
            self.both_write(COMMAND[select], 0x00)

    @action(line=range(16), high=(False, True))
    def drive(self, line: int, high: bool) -> None:
        if line == 2:
            return  # the secondary drives it
        self.lines[line] = high
        self.pic.set_line(line, high)
        self.oracle.set_line(line, high)

    @action(line=range(16))
    def pulse(self, line: int) -> None:
        for high in (True, False):
            self.drive(line, high)

    def slave_blocks_worse_lines(self) -> bool:
        """Whether the primary would interrupt if the slave were not in service, in special fully nested mode."""
        primary, secondary = (self.pic.state(select) for select in PicSelect)
        if not primary.special_fully_nested_mode or self.pic.interrupt_requested:
            return False
        without = attrs.evolve(primary, isr=primary.isr & ~0x04)
        return Pic.from_state(without, secondary).interrupt_requested

    @action()
    def acknowledge(self) -> None:
        if self.has(Difference.SFNM_FREES_WORSE_LINES) and self.slave_blocks_worse_lines():
            return
        ours = self.pic.acknowledge() if self.pic.interrupt_requested else None
        assert ours == self.oracle.take_interrupt()
        self.cascade_again()

    def cascade_again(self) -> None:
        """Make the secondary's INT fall and rise, where the oracle lets it stay high at INTA."""
        secondary = self.pic.state(PicSelect.SECONDARY)
        if self.has(Difference.CASCADE_INT_STAYS_HIGH) and secondary.auto_eoi:
            self.both_write(DATA[1], 0xFF)
            self.both_write(DATA[1], secondary.imr)

    @action(select=range(2), mask=range(256))
    def ocw1(self, select: int, mask: int) -> None:
        self.both_write(DATA[select], mask)

    @action(select=range(2), ocw2=range(8), line=range(8))
    def ocw2(self, select: int, ocw2: int, line: int) -> None:
        state = self.pic.state(PicSelect(select))
        hidden = state.special_mask and state.isr & state.imr
        if ocw2 in (1, 5) and hidden and self.has(Difference.NON_SPECIFIC_EOI_SEES_MASKED):
            return
        self.both_write(COMMAND[select], ocw2 << 5 | line)

    @action(select=range(2), ocw3=[0x08, 0x28, 0x48, 0x68], read=range(4))
    def ocw3(self, select: int, ocw3: int, read: int) -> None:
        if self.has(Difference.NO_SPECIAL_MASK):
            ocw3 &= ~0x40
        self.both_write(COMMAND[select], ocw3 | read)
        if self.has(Difference.OCW3_WAITS_FOR_UPDATE):
            self.both_write(DATA[select], self.pic.state(PicSelect(select)).imr)

    @action(select=range(2), register=[COMMAND, DATA])
    def poll(self, select: int, register: tuple[int, int]) -> None:
        if self.has(Difference.POLL_ENDS):
            return
        if select == 0 and self.has(Difference.SFNM_FREES_WORSE_LINES) and self.slave_blocks_worse_lines():
            return
        self.both_write(COMMAND[select], POLL)
        ours, theirs = self.pic.read(register[select], 1), self.oracle.read(register[select])
        # With nothing requested the line in bits 0-2 has no meaning.
        assert ours == theirs if ours & 0x80 else not theirs & 0x80
        self.cascade_again()

    @action(
        select=range(2),
        icw1=[0x10, 0x11, 0x12, 0x13, 0x18, 0x19, 0x1A, 0x1B],
        base=range(LOWEST_BASE, 256),
        icw4=range(0x20),
    )
    def initialization(self, select: int, icw1: int, base: int, icw4: int) -> None:
        if self.has(Difference.NO_LTIM):
            icw1 &= ~0x08
        if self.has(Difference.NO_SINGLE_MODE) or (self.has(Difference.SINGLE_MODE_CASCADES) and select == 0):
            icw1 &= ~0x02
        if self.has(Difference.ICW1_FORGETS_LEVELS):
            for line in range(8 * select, 8 * select + 8):
                self.drive(line, False)
            if select == 0 and self.pic.state(PicSelect.PRIMARY).last_irr & 0x04:
                return
        if self.has(Difference.ICW1_KEEPS_SERVICE):
            for line in range(8):
                self.both_write(COMMAND[select], 0x60 | line)
        self.both_initialize(select, icw1, base, icw4)
        if self.has(Difference.ICW1_KEEPS_ROTATE):
            self.both_write(COMMAND[select], 0x00)
        if self.has(Difference.ICW1_WAITS_FOR_UPDATE):
            self.both_write(DATA[select], 0x00)

    @action(select=range(2), value=range(256))
    def elcr(self, select: int, value: int) -> None:
        self.both_write(ELCR[select], value)
        if self.has(Difference.ELCR_WAITS_FOR_LINE):
            # High ones first, so that INT does not fall in between.
            for line in sorted(range(8 * select, 8 * select + 8), key=lambda line: not self.lines[line]):
                if line != 2:
                    self.oracle.set_line(line, self.lines[line])

    def agree(self) -> None:
        states = [self.pic.state(select) for select in PicSelect]
        selected = [self.pic.read(port, 1) for port in COMMAND]
        assert [self.pic.read(port, 1) for port in (*DATA, *ELCR)] == [
            *(state.imr for state in states),
            *(state.elcr for state in states),
        ]
        ours = [(selected[n], s.irr, s.isr, s.imr, s.elcr) for n, s in enumerate(states)]
        assert ours == self.oracle.registers((states[0].read_reg_select, states[1].read_reg_select))

    @action()
    def restore(self) -> None:
        """Ours goes on from its own record."""
        self.pic = Pic.from_state(*(self.pic.state(select) for select in PicSelect))
