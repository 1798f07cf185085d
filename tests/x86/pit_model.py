"""A machine that plays one sequence to our 8254 and to an oracle's, comparing all they show.

Oracles run on a clock of their own, so each access happens within a window of time; what ours shows must be among
what it shows at some pulse of that window. Oracles start to count at the write itself, the 8254 at the CLK pulse
after it, which adds one pulse to each window. docs/oracle-differences.md explains that and every `Difference`.
"""

from __future__ import annotations

import enum
from typing import ClassVar, Protocol

from irqchip_core.x86.pit import FREQUENCY, Pit
from irqchip_core.x86.pit_counter import Counter
from irqchip_core.x86.state import PitState
from tests.x86.sequences import SequenceMachine, action, beginning

CONTROL, SPEAKER = 0x43, 0x61
STATUS_OUT, STATUS_NULL = 0x80, 0x40
LATCH_STATUS = 0xE0
SECOND = 10**9
LOADED = 2 * SECOND // FREQUENCY
"""After so many ns ours shows the new count, too."""
EVEN_COUNTS = range(0x200, 0x10000, 2)
Window = tuple[int, int]


class Difference(enum.Enum):
    """The names under which docs/oracle-differences.md lists what both oracles do otherwise than the data sheet.

    QEMU's 8254 and KVM's have one origin, and they differ from the data sheet in the same places.
    """

    STARTS_AT_WRITE = "one pulse more in each window"
    RELOADS_AT_WRITE = "a new count in modes 2 and 3 only after a control word"
    ONE_SHOTS_START_AT_WRITE = "in modes 1 and 5 each count is followed by a trigger"
    FIRST_BYTE_DOES_NOT_STOP = "in mode 0 the bytes of a count come together"
    CONTROL_KEEPS_COUNTING = "no count is read between a control word and the count"
    LATCH_SURVIVES_CONTROL = "latches are read before a control word"
    GATE_DOES_NOT_STOP = "the gate falls only to rise at once"
    NO_BCD = "binary only"
    NO_ALIASES = "modes 0 to 5 only"
    ODD_SQUARE = "even counts only in mode 3"
    NO_NULL_COUNT = "bit 6 of the status is not compared"
    STROBE_INVERTED = "OUT is not compared in modes 1, 2, 4 and 5"
    REFRESH_BIT = "bit 4 of port 0x61 is not compared"


class PitOracle(Protocol):
    """Another 8254."""

    counters: tuple[int, ...]
    stopped: bool
    """Its time stands still between accesses."""

    def read(self, port: int) -> tuple[int, Window]:
        """A value, and between which times, in ns, it was read."""
        ...

    def write(self, port: int, value: int) -> Window: ...

    def let_pass(self, ns: int) -> None:
        """Let so much time pass, or more."""

    def check(self, ours: PitState) -> None:
        """Compare what no port shows."""


def pulse(time: int) -> int:
    return time * FREQUENCY // SECOND


class PitMachine(SequenceMachine):
    """Plays the same to `Pit` and to `oracle`. Subclasses set `oracle`."""

    oracle: ClassVar[PitOracle]

    def __init__(self) -> None:
        super().__init__()
        self.pit = Pit()
        self.now = 0
        self.mode = [0, 0, 0]
        self.access = [3, 3, 3]
        self.fresh = [False] * 3  # no count since the control word
        self.half = [False] * 3  # one byte of two is written
        self.slack = [0, 0, 0]  # width of the window in which the count was loaded
        self.latched: list[set[int] | None] = [None, None, None]

    def both_write(self, port: int, value: int) -> int:
        """Returns the width of the window. Ours takes place at its end, so that its counts are never ahead."""
        first, self.now = self.oracle.write(port, value)
        self.pit.write(port, 1, value, self.now)
        return self.now - first

    def possible(self, counter: int, window: Window) -> set[tuple[int, bool]]:
        """Count and OUT of ours at each pulse at which the oracle's may have been looked at."""
        state = self.pit.state(window[0])
        tick = pulse(state.age)
        copy = Counter.from_state(state.channels[counter], tick)
        found = set()
        for at in range(tick, pulse(window[1] + self.slack[counter]) + 2):
            copy.advance(at)
            found.add((copy.count(), copy.output))
        return found

    @beginning()
    def start(self) -> None:
        self.both_write(SPEAKER, 0x01)
        for counter in self.oracle.counters:
            for _ in range(3):
                self.oracle.read(0x40 + counter)  # whatever an example before has left latched
            self.both_control(counter, 0x30)
            self.both_count(counter, 0x8000)

    def both_control(self, counter: int, word: int) -> None:
        self.drain(counter)
        self.both_write(CONTROL, counter << 6 | word)
        self.mode[counter], self.access[counter] = word >> 1 & 7, word >> 4 & 3
        self.fresh[counter], self.half[counter] = True, False

    def drain(self, counter: int) -> None:
        """Read what is latched."""
        while self.latched[counter] is not None:
            self.read(counter)

    def both_count(self, counter: int, count: int) -> None:
        access, port = self.access[counter], 0x40 + counter
        if access == 1:
            count = count & 0xFE or 0x80
        values = [(count & 0xFF), (count >> 8)]
        if access != 3:
            values = [values[access - 1] or 0x10]
        elif self.half[counter]:
            values = values[1:]
        for value in values:
            self.slack[counter] = self.both_write(port, value)
        self.fresh[counter] = self.half[counter] = False
        if self.mode[counter] in (1, 5):
            self.retrigger()
        self.oracle.let_pass(LOADED)

    def retrigger(self) -> None:
        """Lower the gate of counter 2, and raise it."""
        speaker = self.pit.read(SPEAKER, 1, self.now) & 0x02
        self.both_write(SPEAKER, speaker)
        width = self.both_write(SPEAKER, speaker | 0x01)
        if self.mode[2] in (1, 2, 3, 5):
            self.slack[2] = width
        self.oracle.let_pass(LOADED)

    def readable(self, counter: int) -> bool:
        return counter in self.oracle.counters and not self.fresh[counter]

    @action(
        counter=range(3),
        mode=range(6),
        access=range(1, 4),
        count=EVEN_COUNTS,
        half=(False, True),
    )
    def program(self, counter: int, mode: int, access: int, count: int, half: bool) -> None:
        if not (counter in self.oracle.counters and (mode not in (1, 5) or counter == 2)):
            return
        self.both_control(counter, access << 4 | mode << 1)
        if half and mode != 0 and access == 3:
            self.both_write(0x40 + counter, count & 0xFF)
            self.half[counter] = True
        self.both_count(counter, count)

    @action(counter=range(3), count=EVEN_COUNTS)
    def new_count(self, counter: int, count: int) -> None:
        if not (self.readable(counter) and self.mode[counter] in (0, 4)):
            return
        self.both_count(counter, count)

    @action(counter=range(3))
    def latch(self, counter: int) -> None:
        if not self.readable(counter):
            return
        first, last = self.oracle.write(CONTROL, counter << 6)
        if self.latched[counter] is None:
            self.latched[counter] = {count for count, _ in self.possible(counter, (first, last))}
        self.pit.write(CONTROL, 1, counter << 6, first)
        self.now = last

    @action(counter=range(3))
    def read(self, counter: int) -> None:
        if not self.readable(counter):
            return
        state = self.pit.state(self.now).channels[counter]
        theirs, window = self.oracle.read(0x40 + counter)
        self.now = window[1]
        high = (state.count_latched or state.read_state) in (2, 4)
        shift = 8 if high else 0
        held = self.latched[counter]
        if held is not None:
            matching = {value for value in held if value >> shift & 0xFF == theirs}
            assert matching, f"{theirs:#x} is not byte {high} of any of {held}"
            self.latched[counter] = matching if state.count_latched == 3 else None
        else:
            counts = self.possible(counter, window)
            assert theirs in {count >> shift & 0xFF for count, _ in counts}, f"{theirs:#x} not in {counts}"
        self.pit.read(0x40 + counter, 1, window[0])

    @action(counter=range(3))
    def status(self, counter: int) -> None:
        if not self.readable(counter):
            return
        window = self.oracle.write(CONTROL, LATCH_STATUS | 2 << counter)
        possible = self.possible(counter, window)
        self.pit.write(CONTROL, 1, LATCH_STATUS | 2 << counter, window[0])
        theirs, after = self.oracle.read(0x40 + counter)
        ours = self.pit.read(0x40 + counter, 1, after[0])
        self.now = after[1]
        assert ours & 0x3F == theirs & 0x3F
        if self.mode[counter] in (0, 3):
            assert bool(theirs & STATUS_OUT) in {output for _, output in possible}

    @action(ns=(1_000, 20_000, 300_000, 5_000_000))
    def let_pass(self, ns: int) -> None:
        self.oracle.let_pass(ns)

    @action()
    def trigger(self) -> None:
        if not self.readable(2) or self.mode[2] in (0, 4):
            return
        self.retrigger()

    @action(data=range(2))
    def speaker(self, data: int) -> None:
        self.both_write(SPEAKER, data << 1 | 0x01)
        theirs, window = self.oracle.read(SPEAKER)
        self.now = window[1]
        assert self.pit.read(SPEAKER, 1, window[0]) & 0x03 == theirs & 0x03
        if self.mode[2] in (0, 3) and self.readable(2):
            assert bool(theirs & 0x20) in {output for _, output in self.possible(2, window)}

    def agree(self) -> None:
        self.oracle.check(self.pit.state(self.now))
