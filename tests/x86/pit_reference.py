"""An 8254 counter that takes each CLK pulse one by one, written from the mode definitions of the data sheet.

It is slow and plain, without closed forms: those of `pit_counter` are compared with it. It
has the parts of a counter that a program cannot see (CE, CR, OUT, the gate's flip-flop), not its latches.
"""

from __future__ import annotations


class ReferenceCounter:
    def __init__(self, gate: bool = True) -> None:
        self.mode = 0
        self.bcd = False
        self.access = 0
        self.gate = gate
        self.out = True
        self.edges = 0
        self.element = 0  # CE
        self.register = 0  # CR
        self.low_byte: int | None = None
        self.written = False  # a count came since the control word
        self.null = False
        self.transfer = False  # CR to CE at the next pulse
        self.counting = False
        self.expired = False
        self.strobe = False
        self.odd = False

    def set_out(self, level: bool) -> None:
        self.edges += level and not self.out
        self.out = level

    def control(self, word: int) -> None:
        self.access = word >> 4 & 3
        self.mode = (0, 1, 2, 3, 4, 5, 2, 3)[word >> 1 & 7]
        self.bcd = bool(word & 1)
        self.low_byte = None
        self.written = self.transfer = self.counting = self.strobe = False
        self.null = True
        self.set_out(self.mode != 0)

    def write(self, byte: int) -> None:
        if self.access == 3 and self.low_byte is None:
            self.low_byte = byte
            if self.mode == 0:
                self.counting = self.transfer = False
                self.set_out(False)
            return
        if self.access == 3:
            self.register = byte << 8 | (self.low_byte or 0)
            self.low_byte = None
        else:
            self.register = byte if self.access == 1 else byte << 8
        first = not self.written
        self.written = self.null = True
        if self.mode == 0:
            self.set_out(False)
        if self.mode in (0, 4) or (self.mode in (2, 3) and first):
            self.transfer = True

    def set_gate(self, level: bool) -> None:
        if level and not self.gate and self.mode in (1, 2, 3, 5) and self.written:
            self.transfer = True
        if not level and self.mode in (2, 3):
            self.set_out(True)
        self.gate = level

    def load(self) -> None:
        self.element = self.register
        self.odd = bool(self.element & 1)
        if self.mode == 3:
            self.element &= ~1
        self.transfer = self.null = False

    def decrement(self) -> None:
        if not self.bcd:
            self.element = self.element - 1 & 0xFFFF
            return
        for shift in (0, 4, 8, 12):
            if self.element >> shift & 0xF:
                self.element -= 1 << shift
                return
            self.element |= 9 << shift

    def pulse(self) -> None:
        if self.strobe:
            self.strobe = False
            self.set_out(True)
        if self.transfer:
            self.load()
            self.counting = True
            self.expired = False
            if self.mode == 1:
                self.set_out(False)
            elif self.mode in (2, 3):
                self.set_out(True)
            return
        if not self.counting or (self.mode in (0, 2, 3, 4) and not self.gate):
            return
        if self.mode == 3:
            self.square()
            return
        if self.mode == 2 and self.element == 1:
            self.load()
            self.set_out(True)
            return
        self.decrement()
        if self.mode == 2:
            self.set_out(self.element != 1)
        elif self.element == 0 and not self.expired:
            self.expired = True
            if self.mode < 2:
                self.set_out(True)
            else:
                self.strobe = True
                self.set_out(False)

    def square(self) -> None:
        """Mode 3: two at each pulse; the high half of an odd count has one pulse more, at 0."""
        if self.odd and self.out:
            if self.element:
                self.decrement()
                self.decrement()
                return
        else:
            self.decrement()
            self.decrement()
            if self.element:
                return
        self.load()
        self.set_out(not self.out)
