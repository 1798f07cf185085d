"""Port 0x61 for a chip whose PIT does not have it: KVM's, made without KVM_PIT_SPEAKER_DUMMY.

    0x61 (RW)  system control port B (Intel 82371AB, register NMISC); the NMI bits read 0
           bit 0  gate of counter 2
           bit 1  speaker data
           bit 4  refresh (RO): toggles every 15 microseconds
           bit 5  OUT of counter 2 (RO)

KVM's record of the PIT has count and mode, and when the count was loaded; the rest is worked out here. The gate stays
here too: what counter 2 shows at port 0x42 counts on while it is low, as KVM's does, but OUT does not.
"""

from __future__ import annotations

from typing_extensions import override

from irqchip_core.bus import Access, BusDevice
from irqchip_core.clock import Clock
from irqchip_core.x86.chip import IrqChipX86_64
from irqchip_core.x86.pit import SPEAKER_GATE, SPEAKER_PORT, Pit


class SpeakerPort(BusDevice):
    """The port.

    Args:
        chip: The chip whose PIT has counter 2.
        clock: The clock that PIT counts by.
    """

    debug_label = "speaker port"
    width = 1

    def __init__(self, chip: IrqChipX86_64, clock: Clock) -> None:
        self._chip = chip
        self._clock = clock
        self._value = 0  # as written
        self._pit = Pit(clock.now())
        self._loaded: object = None

    @override
    def read(self, access: Access) -> int:
        now = self._clock.now()
        self._follow(now)
        return self._pit.read(SPEAKER_PORT, 1, now)

    @override
    def write(self, access: Access, value: int) -> None:
        now = self._clock.now()
        self._follow(now)
        self._value = value
        self._pit.write(SPEAKER_PORT, 1, value, now)

    def _follow(self, now: int) -> None:
        """If counter 2 was programmed since the last access, go on from there: the gate has not changed since."""
        state = self._chip.get_pit()
        counter = state.channels[2]
        loaded = (counter.count_load_time, counter.count, counter.mode, counter.bcd)
        if loaded != self._loaded:
            self._loaded = loaded
            counter.gate = bool(self._value & SPEAKER_GATE)
            since = min(counter.count_load_time, now)
            self._pit = Pit.from_state(state, since)
            self._pit.write(SPEAKER_PORT, 1, self._value, since)
