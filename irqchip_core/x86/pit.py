"""The 8254 interval timer of a PC, with the speaker port 0x61, as a part without I/O.

Time is counted in whole CLK pulses since the part was made: pulse n comes at n / 1193182 s on the caller's clock, so
nothing drifts. Source: Intel 8254 data sheet (231164), "Programming the 8254"; for port 0x61 Intel 82371AB (PIIX4) data
sheet (290562), register NMISC.

Left out: the NMI bits of port 0x61 read 0.
"""

from __future__ import annotations

from irqchip_core.x86.effects import Effects, TimerRose, WakeAt
from irqchip_core.x86.lapic.timer import SHORTEST_PERIOD
from irqchip_core.x86.pit_counter import CONTROL_ACCESS, CONTROL_ACCESS_SHIFT, CONTROL_SELECT_SHIFT, Counter
from irqchip_core.x86.state import KVM_PIT_FLAGS_SPEAKER_DATA_ON, PIT_WIRED_GATES, PitState
from irqchip_core.x86.state_checks import check_pit

FREQUENCY = 1_193_182
"""CLK in Hz."""
# fmt: off

COUNTER_PORTS       =     0x40        # (RW) counters 0-2: ports 0x40-0x42
CONTROL_PORT        =     0x43        # (WO) a control word, whose fields `pit_counter` has, or:
READ_BACK           =         3       #      bits 6-7, the select bits: read-back command
READ_BACK_COUNTER_0 =         1 << 1  #      counters 1 and 2 follow in bits 2 and 3
READ_BACK_NO_STATUS =         1 << 4  #      1: the status is not latched
READ_BACK_NO_COUNT  =         1 << 5  #      1: the count is not latched
SPEAKER_PORT        =     0x61        # (RW)
SPEAKER_GATE        =         1 << 0  #      gate of counter 2
SPEAKER_DATA        =         1 << 1  #      OUT of counter 2 drives the speaker
SPEAKER_REFRESH     =         1 << 4  # (RO) toggles at each refresh of the memory
SPEAKER_OUTPUT      =         1 << 5  # (RO) OUT of counter 2

# fmt: on

REFRESH_PULSES = 18
"""CLK pulses between two memory refreshes, 15 microseconds."""

_SECOND = 1_000_000_000
_ROSE_ONCE = TimerRose(1)


class Pit:
    """The three counters and the speaker port.

    Counter 0's OUT is the timer interrupt, counter 2's goes to the speaker; the gates of 0 and 1 are always high. All
    outputs are high until a first control word. Register accesses are those of a guest: none raises an exception,
    and one with another size or port is ignored, and counted.

    Args:
        now: The time of the first CLK pulse, in ns, on the clock of all later times. A time earlier than the previous
            one counts as that.

    Attributes:
        ignored: Number of accesses that were ignored.
    """

    __slots__ = ("_counters", "_origin", "_speaker_data", "_tick", "ignored")

    def __init__(self, now: int = 0) -> None:
        self._origin = now
        self._tick = 0
        self._counters = [Counter(gate) for gate in PIT_WIRED_GATES]
        self._speaker_data = False
        self.ignored = 0

    @classmethod
    def from_state(cls, state: PitState, now: int) -> Pit:
        """A timer with the state of this record, which continues at `now`, on any clock.

        A counter of a record of KVM's, and one whose count or mode was edited in the record, starts its count anew, as
        all counters do in KVM_SET_PIT2.

        Raises:
            InvalidArgument: `state` is no record of an 8254.
        """
        check_pit(state, subject="PIT")
        pit = cls(now - state.age)
        pit._tick = state.age * FREQUENCY // _SECOND
        pit._counters = [Counter.from_state(channel, pit._tick) for channel in state.channels]
        pit._speaker_data = state.flags & KVM_PIT_FLAGS_SPEAKER_DATA_ON != 0
        return pit

    def state(self, now: int) -> PitState:
        """All state, at `now`."""
        self._advance(now)
        channels = []
        for counter in self._counters:
            counter.advance(self._tick)
            channel = counter.state()
            channel.count_load_time = self._time(counter.tick - counter.elapsed)
            channels.append(channel)
        return PitState(
            channels,
            flags=KVM_PIT_FLAGS_SPEAKER_DATA_ON if self._speaker_data else 0,
            age=max(now, self._time(self._tick)) - self._origin,
        )

    # Time

    def expire(self, now: int) -> Effects:
        """Raise the timer interrupts up to `now`, and give the time of the next, also after counter 0 was programmed.

        Both answers are of one instant: an edge between them would be neither raised nor waited for.
        """
        self._counters[0].advance(self._advance(now))
        return self._rose(now)

    def _rose(self, now: int) -> Effects:
        """As `expire`, after counter 0 has advanced."""
        counter = self._counters[0]
        edges, tick = counter.rising_edges, counter.next_rising_edge()
        when = None if tick is None else self._time(tick)
        if not edges:
            return (WakeAt(when),)
        counter.rising_edges = 0
        rose = _ROSE_ONCE if edges == 1 else TimerRose(edges)
        return rose, WakeAt(None if when is None else max(when, now + SHORTEST_PERIOD))

    def _advance(self, now: int) -> int:
        """The last CLK pulse at `now`."""
        tick = (now - self._origin) * FREQUENCY // _SECOND
        if tick > self._tick:
            self._tick = tick
        return self._tick

    def _time(self, tick: int) -> int:
        """The first ns at which CLK pulse `tick` has come."""
        return self._origin - -tick * _SECOND // FREQUENCY

    def next_rising_edge(self, now: int) -> int | None:
        """When counter 0's OUT rises next, in ns, later than `now`; None if it does not.

        Any write to the counter or its control word may change the answer.
        """
        counter = self._counters[0]
        counter.advance(self._advance(now))
        tick = counter.next_rising_edge()
        return None if tick is None else self._time(tick)

    def take_rising_edges(self, now: int) -> int:
        """How often counter 0's OUT has risen since the last call: the number of timer interrupts to raise."""
        counter = self._counters[0]
        counter.advance(self._advance(now))
        edges = counter.rising_edges
        counter.rising_edges = 0
        return edges

    def output(self, number: int, now: int) -> bool:
        """Level of OUT of counter 0, 1 or 2."""
        counter = self._counters[number]
        counter.advance(self._advance(now))
        return counter.output

    # Registers

    def read(self, port: int, size: int, now: int) -> int:
        """Read 1 byte of port 0x40-0x42 or 0x61; any other read, 0x43 included, returns 0."""
        if size != 1:
            self.ignored += 1
            return 0
        tick = self._advance(now)
        number = port - COUNTER_PORTS
        if 0 <= number < 3:
            counter = self._counters[number]
            counter.advance(tick)
            return counter.read()
        if port == SPEAKER_PORT:
            counter = self._counters[2]
            counter.advance(tick)
            return (
                (SPEAKER_GATE if counter.gate else 0)
                | (SPEAKER_DATA if self._speaker_data else 0)
                | (SPEAKER_REFRESH if tick // REFRESH_PULSES & 1 else 0)
                | (SPEAKER_OUTPUT if counter.output else 0)
            )
        self.ignored += 1
        return 0

    def write(self, port: int, size: int, value: int, now: int) -> Effects:
        """Write 1 byte to port 0x40-0x43 or 0x61; any other write is ignored."""
        if size != 1:
            self.ignored += 1
            return ()
        tick = self._advance(now)
        value &= 0xFF
        number = port - COUNTER_PORTS
        if 0 <= number < 3:
            counter = self._counters[number]
            counter.advance(tick)
            counter.write(value)
            if number == 0:
                return self._rose(now)
        elif port == CONTROL_PORT:
            self._control(value, tick)
            if value >> CONTROL_SELECT_SHIFT == 0:
                return self._rose(now)
        elif port == SPEAKER_PORT:
            counter = self._counters[2]
            counter.advance(tick)
            counter.set_gate(bool(value & SPEAKER_GATE))
            self._speaker_data = bool(value & SPEAKER_DATA)
        else:
            self.ignored += 1
        return ()

    def _control(self, value: int, tick: int) -> None:
        select = value >> CONTROL_SELECT_SHIFT
        if select == READ_BACK:
            for number, counter in enumerate(self._counters):
                if value & READ_BACK_COUNTER_0 << number:
                    counter.advance(tick)
                    if not value & READ_BACK_NO_COUNT:
                        counter.latch_count()
                    if not value & READ_BACK_NO_STATUS:
                        counter.latch_status()
            return
        counter = self._counters[select]
        counter.advance(tick)
        if value >> CONTROL_ACCESS_SHIFT & CONTROL_ACCESS:
            counter.set_control(value)
        else:
            counter.latch_count()
