"""One counter of an 8254, in whole CLK pulses; what `pit.Pit` is made of.

`advance` computes its state after any number of pulses in closed form. Source: Intel 8254 data sheet
(231164), "Programming the 8254" and "Mode Definitions".

A count of 1 is illegal in modes 2 and 3. With it OUT stays high here in mode 2, and mode 3 counts it as 2.
"""

from __future__ import annotations

from irqchip_core.x86.state import MODE_UNKNOWN, PitChannelState, PitCounting, PitRwMode, PitRwState

# fmt: off

# Control word
CONTROL_BCD          =     1 << 0  # the count is four decimal digits
CONTROL_MODE_SHIFT   =     1       # bits 1-3: mode, 0-5; 6 and 7 are 2 and 3
CONTROL_MODE         =         7
CONTROL_ACCESS_SHIFT =     4       # bits 4-5: a PitRwMode; 0 is the counter latch command
CONTROL_ACCESS       =         3
CONTROL_SELECT_SHIFT =     6       # bits 6-7: number of the counter, or read-back

# Status byte: bits 0-5 of the control word, and
STATUS_CONTROL       =     0x3F
STATUS_NULL_COUNT    =     1 << 6  # the count written last is not loaded yet
STATUS_OUTPUT        =     1 << 7  # level of OUT

# fmt: on

_LSB, _MSB, _WORD0, _WORD1 = (int(state) for state in PitRwState if state)
_SHIFTS = (0, 0, 8, 0, 8)
"""For each PitRwState, the shift to the byte that it transfers."""
_LEVEL_GATE = (True, False, True, True, True, False)
"""By mode: a low gate stops the counting."""
_EDGE_GATE = (False, True, True, True, False, True)
"""By mode: a rising gate loads the count anew."""


def _length(count: int, bcd: bool) -> int:
    """Number of pulses from `count` to 0; from 0 a whole cycle."""
    if not bcd:
        return count or 0x10000
    # A digit above 9 is counted down from its value.
    digits = (count & 0xF) + (count >> 4 & 0xF) * 10 + (count >> 8 & 0xF) * 100 + (count >> 12) * 1000
    return digits or 10000


def _subtract(count: int, pulses: int, bcd: bool) -> int:
    """`count` after `pulses` decrements."""
    if not bcd:
        return count - pulses & 0xFFFF
    result = 0
    for shift in (0, 4, 8, 12):
        digit = count >> shift & 0xF
        if pulses <= digit:
            return result | (digit - pulses << shift) | count >> shift + 4 << shift + 4
        pulses -= digit + 1  # to the first borrow, which leaves a 9
        result |= 9 - pulses % 10 << shift
        pulses = pulses // 10 + 1
    return result


def _mode(control: int) -> int:
    mode = control >> CONTROL_MODE_SHIFT & CONTROL_MODE
    return mode & 3 if mode > 5 else mode


def _is_of(counting: PitCounting, channel: PitChannelState) -> bool:
    """Whether `counting` belongs to the control word and the count of the channel."""
    control = counting.control
    found = (_mode(control), control >> CONTROL_ACCESS_SHIFT, control & CONTROL_BCD, counting.count_register)
    return found == (channel.mode, channel.rw_mode, channel.bcd, channel.count & 0xFFFF)


class Counter:
    """One counter, as it is after CLK pulse `tick`.

    Accesses and the gate act between two pulses: call `advance` first, with the number of the last pulse.
    """

    __slots__ = (
        "access",
        "armed",
        "bcd",
        "control",
        "controlled",
        "count_register",
        "count_written",
        "elapsed",
        "element",
        "gate",
        "latch",
        "latch_state",
        "length",
        "load",
        "mode",
        "null_count",
        "output",
        "read_state",
        "rising_edges",
        "running",
        "status",
        "status_latched",
        "tick",
        "write_latch",
        "write_state",
    )  # fmt: skip

    def __init__(self, gate: bool) -> None:
        self.tick = 0
        self.gate = gate
        self.control = self.mode = self.access = 0
        self.bcd = False
        self.count_register = self.write_latch = 0
        self.element = self.elapsed = 0
        self.length = _length(0, False)
        self.controlled = False  # a control word was written
        self.count_written = self.null_count = self.load = self.running = self.armed = False
        self.output = True
        self.rising_edges = 0
        self.read_state = self.write_state = self.latch_state = 0
        self.latch = self.status = 0
        self.status_latched = False

    # Time

    def advance(self, tick: int) -> None:
        """Count all CLK pulses up to `tick`."""
        pulses = tick - self.tick
        if pulses <= 0:
            return
        self.tick = tick
        if self.load:
            self._load()
            self.armed = self.running = True
            self.set_output(self.mode > 1)
            pulses -= 1
        mode = self.mode
        if mode > 3 and pulses:
            self.set_output(True)  # the strobe lasts one pulse
        if not pulses or not self.running or not (self.gate or not _LEVEL_GATE[mode]):
            return
        elapsed = self.elapsed + pulses
        if mode == 2:
            self._rate(elapsed)
        elif mode == 3:
            self._square(elapsed)
        else:
            if self.armed and elapsed >= self.length:
                self.armed = False
                if mode < 2:
                    self.set_output(True)
                elif elapsed == self.length:
                    self.output = False
                else:
                    self.rising_edges += 1
            self.elapsed = elapsed

    def _load(self) -> None:
        """Move the count register into the counting element."""
        self.element = self.count_register
        self.length = _length(self.element, self.bcd)
        self.elapsed = 0
        self.load = self.null_count = False

    def _rate(self, elapsed: int) -> None:
        """Mode 2: OUT is low while the count is 1, then rises and the count is loaded anew."""
        if elapsed >= self.length:
            elapsed -= self.length
            self.rising_edges += self.length > 1
            self._load()
            periods, elapsed = divmod(elapsed, self.length)
            if self.length > 1:
                self.rising_edges += periods
        self.elapsed = elapsed
        self.output = self.length == 1 or elapsed != self.length - 1

    def _half(self) -> int:
        """Mode 3: pulses of the present half cycle; the one with OUT high is longer by one if the count is odd."""
        return self.length + 1 >> 1 if self.output else self.length >> 1 or 1

    def _square(self, elapsed: int) -> None:
        """Mode 3: each half cycle ends with a change of OUT and a load."""
        half = self._half()
        if elapsed >= half:
            elapsed -= half
            self._load()
            self.set_output(not self.output)
            periods, elapsed = divmod(elapsed, max(self.length, 2))
            self.rising_edges += periods
            half = self._half()
            if elapsed >= half:
                elapsed -= half
                self.set_output(not self.output)
        self.elapsed = elapsed

    def set_output(self, high: bool) -> None:
        if high and not self.output:
            self.rising_edges += 1
        self.output = high

    def next_rising_edge(self) -> int | None:
        """The pulse at which OUT rises next without an access or a change of the gate; None if it does not."""
        mode, output, tick, elapsed, length, armed = (
            self.mode, self.output, self.tick, self.elapsed, self.length, self.armed,
        )  # fmt: skip
        if mode > 3 and not output:
            return tick + 1
        after = _length(self.count_register, self.bcd)
        if self.load:
            if mode > 1 and not output:
                return tick + 1
            tick, elapsed, length, armed, output = tick + 1, 0, after, True, mode > 1
        elif not self.running:
            return None
        if _LEVEL_GATE[mode] and not self.gate:
            return None
        if mode == 2:
            tick += length - elapsed
            return tick if length > 1 else tick + after if after > 1 else None
        if mode == 3:
            if output:
                return tick + (length + 1 >> 1) - elapsed + (after >> 1 or 1)
            return tick + (length >> 1 or 1) - elapsed
        return tick + length - elapsed + (mode > 3) if armed else None

    def count(self) -> int:
        """The count, as a program reads it."""
        if not self.running:
            return self.element
        if self.mode == 3:
            return _subtract(self.element & ~1, 2 * self.elapsed, self.bcd)
        return _subtract(self.element, self.elapsed, self.bcd)

    def _stop(self) -> None:
        """Stop counting, and keep the count until the next load."""
        self.element = self.count()
        self.elapsed = 0
        self.running = self.load = False

    # Programming

    def set_control(self, value: int) -> None:
        """Take a control word: OUT goes to the mode's initial level, and counting stops until a count is written."""
        self._stop()
        self.controlled = True
        self.control = value & STATUS_CONTROL
        self.access = value >> CONTROL_ACCESS_SHIFT & CONTROL_ACCESS
        self.mode = _mode(value)
        self.bcd = bool(value & CONTROL_BCD)
        self.read_state = self.write_state = self.access
        self.latch_state = 0
        self.count_written = self.armed = self.status_latched = False
        self.null_count = True
        self.set_output(self.mode != 0)

    def write(self, value: int) -> None:
        """Take a byte of the count."""
        state = self.write_state
        if state == _WORD0:
            self.write_latch = value
            self.write_state = _WORD1
            if self.mode == 0:
                self._stop()
                self.set_output(False)
            return
        if state == _LSB:
            self.count_register = value
        elif state == _MSB:
            self.count_register = value << 8
        elif state == _WORD1:
            self.count_register = value << 8 | self.write_latch
            self.write_state = _WORD0
        else:
            return  # no control word yet
        mode = self.mode
        if mode == 0:
            self.set_output(False)
        # Once started, modes 2 and 3 complete their cycle before they load; 1 and 5 load when the gate rises.
        if mode in (0, 4) or (mode in (2, 3) and not self.count_written):
            self.load = True
        self.count_written = self.null_count = True

    def set_gate(self, high: bool) -> None:
        if high and not self.gate:
            if _EDGE_GATE[self.mode] and self.count_written:
                self.load = True
        elif not high and self.mode in (2, 3):
            self.set_output(True)
        self.gate = high

    def latch_count(self) -> None:
        """Latch the count until it is read; a count that is latched already stays."""
        if not self.latch_state:
            self.latch = self.count()
            self.latch_state = self.access

    def latch_status(self) -> None:
        """Latch the status until it is read; a status that is latched already stays."""
        if not self.status_latched:
            self.status = (
                (STATUS_OUTPUT if self.output else 0) | (STATUS_NULL_COUNT if self.null_count else 0) | self.control
            )
            self.status_latched = True

    def read(self) -> int:
        """A byte: of the latched status, else of the latched count, else of the present count."""
        if self.status_latched:
            self.status_latched = False
            return self.status
        state = self.latch_state
        if state:
            self.latch_state = _MSB if state == _WORD0 else 0
            return self.latch >> _SHIFTS[state] & 0xFF
        state = self.read_state
        if not state:
            return 0  # no control word yet
        if state >= _WORD0:
            self.read_state = _WORD0 + _WORD1 - state
        return self.count() >> _SHIFTS[state] & 0xFF

    # State

    def state(self) -> PitChannelState:
        return PitChannelState(
            count=self.count_register or 0x10000,
            latched_count=self.latch,
            count_latched=PitRwState(self.latch_state),
            status_latched=self.status_latched,
            status=self.status,
            read_state=PitRwState(self.read_state),
            write_state=PitRwState(self.write_state),
            reload_value=self.write_latch if self.write_state == _WORD1 else 0,
            rw_mode=PitRwMode(self.access),
            mode=self.mode if self.controlled else MODE_UNKNOWN,
            bcd=self.bcd,
            gate=self.gate,
            counting=PitCounting(
                control=self.control,
                count_register=self.count_register,
                count_written=self.count_written,
                null_count=self.null_count,
                load=self.load,
                element=self.element,
                elapsed=self.elapsed,
                running=self.running,
                armed=self.armed,
                output=self.output,
                rising_edges=self.rising_edges,
            ),
        )

    @classmethod
    def from_state(cls, state: PitChannelState, tick: int) -> Counter:
        counter = cls(state.gate)
        counter.tick = tick
        counter.count_register = state.count & 0xFFFF
        if state.counting is not None and _is_of(state.counting, state):
            counter._go_on(state.counting)
        elif state.mode != MODE_UNKNOWN:
            counter._begin(state)
        counter.latch = state.latched_count
        counter.latch_state = int(state.count_latched)
        counter.status_latched = state.status_latched
        counter.status = state.status
        counter.write_latch = state.reload_value
        counter.read_state = int(state.read_state or state.rw_mode)
        counter.write_state = int(state.write_state or state.rw_mode)
        return counter

    def _go_on(self, counting: PitCounting) -> None:
        """Continue where the saved counter was."""
        self.set_control(counting.control)
        self.count_written = counting.count_written
        self.null_count = counting.null_count
        self.load = counting.load
        self.element = counting.element
        self.length = _length(counting.element, self.bcd)
        self.elapsed = counting.elapsed
        self.running = counting.running
        self.armed = counting.armed
        self.output = counting.output
        self.rising_edges = counting.rising_edges

    def _begin(self, state: PitChannelState) -> None:
        """Take control word and count as if a program had written them now."""
        self.set_control(state.rw_mode << CONTROL_ACCESS_SHIFT | state.mode << CONTROL_MODE_SHIFT | state.bcd)
        self.count_written = True
        self.load = self.mode not in (1, 5)  # modes 1 and 5 load when the gate rises
