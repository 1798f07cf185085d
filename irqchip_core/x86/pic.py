"""The two 8259A interrupt controllers of a PC, as one part without I/O.

The primary takes lines 0-7 and the secondary 8-15; the secondary's INT output drives the primary's IR2. Beside the
8259A there is the ELCR of PC chipsets, which makes single lines level-triggered. Source: Intel 8259A data sheet
(231468), "Programming the 8259A"; for the ELCR Intel 82371AB (PIIX4), 4.2.3 and 4.2.6.

One thing is not as in the data sheet, and on purpose: an edge stays requested when its line falls before the
acknowledge, since a device that signals an event raises and lowers its line at once.

Left out, as in every PC chipset: MCS-80/85 mode, buffered mode, and ICW3 (the wiring is fixed).
"""

from __future__ import annotations

from typing import NamedTuple

from irqchip_core.errors import InvalidArgument
from irqchip_core.x86.effects import Effects, IntChanged, LineEnded
from irqchip_core.x86.state import ELCR_MASKS, PicInitState, PicSelect, PicState
from irqchip_core.x86.state_checks import check_pic

# Ports of the primary and the secondary
COMMAND_PORTS = (0x20, 0xA0)
DATA_PORTS = (0x21, 0xA1)
ELCR_PORTS = (0x4D0, 0x4D1)

CASCADE = 2
"""The primary's input that the secondary drives."""
SPURIOUS = 7
"""The line an 8259A reports when it is acknowledged but nothing is requested."""

ICW1 = 0x10
ICW1_IC4 = 0x01  # ICW4 follows
ICW1_SNGL = 0x02  # single: no cascade, no ICW3
ICW1_LTIM = 0x08  # all lines level-triggered
ICW2_BASE = 0xF8
ICW4_AEOI = 0x02
ICW4_SFNM = 0x10
OCW3 = 0x08
OCW3_RIS = 0x01  # with RR: read ISR instead of IRR
OCW3_RR = 0x02
OCW3_P = 0x04
OCW3_SMM = 0x20  # with ESMM: special mask mode on
OCW3_ESMM = 0x40
OCW2_LINE = 0x07
OCW2_EOI = 0x20
OCW2_SL = 0x40  # the line is in bits 0-2
OCW2_R = 0x80
POLL_PENDING = 0x80

_INT_CHANGED = ((IntChanged(False),), (IntChanged(True),))
_LINE_ENDED = [[LineEnded(line, lowered) for line in range(16)] for lowered in (False, True)]

_CASCADE_BIT = 1 << CASCADE
_NONE = 8  # rank of nothing: below all lines
_READY, _ICW2, _ICW3, _ICW4 = (int(state) for state in PicInitState)

_REGISTERS = {port: at for at, port in enumerate((*COMMAND_PORTS, *DATA_PORTS, *ELCR_PORTS))}
"""By port: bit 0 is the controller; then come command, data and ELCR."""
_DATA = 2
_ELCR = 4

_RANKS = tuple(
    bytes(next((rank for rank in range(8) if lines >> (lowest + rank & 7) & 1), _NONE) for lines in range(256))
    for lowest in range(8)
)
"""_RANKS[priority_add][lines]: rank of the best line, 0 the best; 8 if there is none."""


class _Controller:
    """The registers of one 8259A."""

    __slots__ = (
        "auto_eoi", "elcr", "elcr_mask", "imr", "init_state", "irq_base", "irr", "isr", "level", "level_triggered",
        "lines", "poll", "priority_add", "ranks", "read_isr", "rotate_on_auto_eoi", "single_mode", "slave_line",
        "special_fully_nested", "special_mask", "use_4_byte_icw",
    )  # fmt: skip

    def __init__(self, slave_line: int, elcr_mask: int, state: PicState) -> None:
        self.slave_line = slave_line  # the input another 8259A drives, or -1
        self.elcr_mask = elcr_mask
        self.lines = state.last_irr
        self.irr = state.irr
        self.imr = state.imr
        self.isr = state.isr
        self.priority_add = state.priority_add
        self.ranks = _RANKS[state.priority_add]
        self.irq_base = state.irq_base
        self.read_isr = state.read_reg_select
        self.poll = state.poll
        self.special_mask = state.special_mask
        self.init_state = int(state.init_state)
        self.auto_eoi = state.auto_eoi
        self.rotate_on_auto_eoi = state.rotate_on_auto_eoi
        self.special_fully_nested = state.special_fully_nested_mode
        self.use_4_byte_icw = state.use_4_byte_icw
        self.single_mode = state.single_mode
        self.level_triggered = state.level_triggered
        self.elcr = state.elcr
        self.level = 0xFF if self.level_triggered else self.elcr  # lines whose request is their level

    def state(self) -> PicState:
        return PicState(
            last_irr=self.lines,
            irr=self.irr,
            imr=self.imr,
            isr=self.isr,
            priority_add=self.priority_add,
            irq_base=self.irq_base,
            read_reg_select=self.read_isr,
            poll=self.poll,
            special_mask=self.special_mask,
            init_state=PicInitState(self.init_state),
            auto_eoi=self.auto_eoi,
            rotate_on_auto_eoi=self.rotate_on_auto_eoi,
            special_fully_nested_mode=self.special_fully_nested,
            use_4_byte_icw=self.use_4_byte_icw,
            elcr=self.elcr,
            elcr_mask=self.elcr_mask,
            single_mode=self.single_mode,
            level_triggered=self.level_triggered,
        )

    def drive(self, bit: int, high: bool) -> None:
        """Put an input at a level."""
        if high:
            # A level line requests whenever it is high, an edge line only when it rises.
            if not self.lines & bit or self.level & bit:
                self.irr |= bit
            self.lines |= bit
        else:
            self.lines &= ~bit
            if self.level & bit:
                self.irr &= ~bit

    def set_level(self) -> None:
        """Decide anew which inputs are level-triggered; their requests become their levels."""
        self.level = level = 0xFF if self.level_triggered else self.elcr
        self.irr = self.irr & ~level | self.lines & level

    def blocking(self) -> int:
        """In-service lines that count for priority: in special mask mode not the masked ones ("Special Mask Mode")."""
        return self.isr & ~self.imr if self.special_mask else self.isr

    def deliverable(self) -> int:
        """The line that INT stands for now, or -1."""
        requests = self.irr & ~self.imr
        if not requests:
            return -1
        ranks = self.ranks
        rank = ranks[requests]
        line = rank + self.priority_add & 7
        if self.isr:
            blocked = ranks[self.blocking()]
            # In special fully nested mode a slave in service may interrupt again, but lower lines may not.
            if blocked < rank or (blocked == rank and not (self.special_fully_nested and line == self.slave_line)):
                return -1
        return line

    def set_lowest(self, line: int) -> None:
        """Rotate: `line` gets the lowest priority."""
        self.priority_add = line + 1 & 7
        self.ranks = _RANKS[line + 1 & 7]


class Pic:
    """The pair of 8259As.

    Register accesses are those of a guest: none raises, and one with another size or port is ignored, and counted.
    Each access answers with effects: `IntChanged`, and `LineEnded` for each interrupt that was ended by an EOI, an
    automatic EOI, or an initialization that threw it away.

    Attributes:
        interrupt_requested: The INT output to the processor. When set, and the processor can take an interrupt,
            call `acknowledge`.
        resample_lines: Lines 0-15, as bits, that the owner drives anew when their interrupt has ended. The end takes
            such a line low before INT follows, if it is level-triggered, as KVM does it; otherwise it would request
            once more before the owner has had a look at it.
        ignored: Number of accesses that were ignored.
    """

    __slots__ = (
        "_cascade", "_chips", "_ended", "_int", "_line", "_lowered", "_primary", "_secondary", "ignored",
        "interrupt_requested", "resample_lines",
    )  # fmt: skip

    interrupt_requested: bool
    _line: int

    def __init__(self) -> None:
        self.resample_lines = 0
        self.ignored = 0
        self._ended = 0  # bit n: the interrupt of line n has ended, and no effect has said so yet
        self._lowered = 0  # bit n: likewise, the line was taken low
        self._int = False  # what IntChanged had last
        self._load(PicState(), PicState())

    @classmethod
    def from_state(cls, primary: PicState, secondary: PicState) -> Pic:
        """A pair that goes on where the one of these records was.

        Raises:
            InvalidArgument: One is no record of its 8259A.
        """
        check_pic(primary, PicSelect.PRIMARY, subject="PIC", argument="primary")
        check_pic(secondary, PicSelect.SECONDARY, subject="PIC", argument="secondary")
        pic = cls()
        pic._load(primary, secondary)
        pic._int = pic.interrupt_requested
        return pic

    def set_state(self, select: PicSelect, state: PicState) -> Effects:
        """Let one of the two go on where that of the record was.

        Raises:
            InvalidArgument: It is no record of this 8259A.
        """
        check_pic(state, select, subject="PIC")
        states = [chip.state() for chip in self._chips]
        states[select] = state
        self._load(*states)
        return self._effects()

    def _load(self, primary: PicState, secondary: PicState) -> None:
        self._primary = _Controller(CASCADE, ELCR_MASKS[0], primary)
        self._secondary = _Controller(-1, ELCR_MASKS[1], secondary)
        self._chips = (self._primary, self._secondary)
        # The level of the wire between the two. It is what the secondary's INT is, whatever the primary saw last: KVM
        # lowers it at once after each edge, and one of the two records may be new.
        self._cascade = bool(primary.last_irr & _CASCADE_BIT)
        self._update()

    def _effects(self) -> Effects:
        """The effects since the last call."""
        ended, high = self._ended, self.interrupt_requested
        if not ended:
            if high == self._int:
                return ()
            self._int = high
            return _INT_CHANGED[high]
        effects: list[NamedTuple] = []
        while ended:
            line = ended.bit_length() - 1
            ended ^= 1 << line
            effects.append(_LINE_ENDED[self._lowered >> line & 1][line])
        self._ended = self._lowered = 0
        if high != self._int:
            self._int = high
            effects += _INT_CHANGED[high]
        return tuple(effects)

    def state(self, select: PicSelect) -> PicState:
        """State of one 8259A."""
        return self._chips[select].state()

    # Inputs and the processor's side

    def set_line(self, line: int, high: bool) -> Effects:
        """Drive line 0-15 high or low. Driving it as it is already driven changes nothing.

        Raises:
            InvalidArgument: There is no such line.
        """
        if 0 <= line < 8:
            chip, bit = self._primary, 1 << line
        elif 8 <= line < 16:
            chip, bit = self._secondary, 1 << line - 8
        else:
            raise InvalidArgument(f"there is no line {line}", subject="PIC", argument="line", remedy="give 0 to 15")
        requests = chip.irr
        chip.drive(bit, high)
        if chip.irr == requests:
            return ()
        self._update()
        return self._effects()

    def acknowledge(self) -> tuple[int, Effects]:
        """The two INTA cycles of the processor: returns the vector, and effects.

        With nothing requested it is that of line 7 (of line 15 if only the secondary has nothing), and no line
        comes into service ("Interrupt Sequence").
        """
        vector = self._inta()
        return vector, self._effects()

    def _inta(self) -> int:
        primary, line = self._primary, self._line
        if line < 0:
            return primary.irq_base + SPURIOUS
        self._serve(primary, line)
        if line != CASCADE or primary.single_mode:
            if primary.auto_eoi or line == CASCADE:
                self._update()
            else:  # it was the best, and in service it holds back itself and all others
                self._line = -1
                self.interrupt_requested = False
            return primary.irq_base + line
        secondary = self._secondary
        line = secondary.deliverable()
        if line < 0:
            line = SPURIOUS
            self._update()
        else:
            self._serve(secondary, line)
            self._update()
        return secondary.irq_base + line

    def _serve(self, chip: _Controller, line: int) -> None:
        """What INTA does in one controller."""
        bit = 1 << line
        chip.irr &= ~bit | chip.level
        if chip.auto_eoi:
            if chip.rotate_on_auto_eoi:
                chip.set_lowest(line)
            self._end(chip, bit)
        else:
            chip.isr |= bit
        if chip is self._secondary:
            # INTA takes INT down; if more is pending it rises again, which the primary sees as an edge.
            self._cascade = False
            self._primary.drive(_CASCADE_BIT, False)

    def _end(self, chip: _Controller, bit: int) -> None:
        """The interrupt of an input has ended."""
        line = bit if chip is self._primary else bit << 8
        self._ended |= line
        if self.resample_lines & line and chip.level & bit:
            chip.drive(bit, False)
            self._lowered |= line

    def _update(self) -> None:
        """Let the outputs follow the registers."""
        secondary = self._secondary
        cascade = bool(secondary.irr) and secondary.deliverable() >= 0
        if cascade != self._cascade:
            self._cascade = cascade
            self._primary.drive(_CASCADE_BIT, cascade)
        self._line = line = self._primary.deliverable()
        self.interrupt_requested = line >= 0

    # Registers

    def read(self, port: int, size: int) -> tuple[int, Effects]:
        """Read a port: 0x20, 0x21, 0xA0, 0xA1, 0x4D0 or 0x4D1, of 1 byte; anything else gives 0. And effects.

        After a poll command the next read, of either port, acknowledges: it gives the line with bit 7 set, or 7
        when there is none ("Poll Command").
        """
        register = _REGISTERS.get(port)
        if register is None or size != 1:
            self.ignored += 1
            return 0, ()
        chip = self._chips[register & 1]
        if register >= _ELCR:
            return chip.elcr, ()
        if not chip.poll:
            if register >= _DATA:
                return chip.imr, ()
            return chip.isr if chip.read_isr else chip.irr, ()
        chip.poll = False
        line = chip.deliverable()
        if line < 0:
            return SPURIOUS, ()
        self._serve(chip, line)
        self._update()
        return POLL_PENDING | line, self._effects()

    def write(self, port: int, size: int, value: int) -> Effects:
        """Write a port: 0x20, 0x21, 0xA0, 0xA1, 0x4D0 or 0x4D1, of 1 byte; anything else is ignored."""
        register = _REGISTERS.get(port)
        if register is None or size != 1:
            self.ignored += 1
            return ()
        value &= 0xFF
        chip = self._chips[register & 1]
        if register >= _ELCR:
            chip.elcr = value & chip.elcr_mask
            chip.set_level()
        elif register >= _DATA:
            if chip.init_state == _READY:
                chip.imr = value
            else:
                self._icw(chip, value)
        elif value & ICW1:
            self._icw1(chip, value)
        elif value & OCW3:
            self._ocw3(chip, value)
        else:
            self._ocw2(chip, value)
        self._update()
        return self._effects()

    def _icw1(self, chip: _Controller, value: int) -> None:
        """Start the initialization ("Initialization Command Words 1 and 2"); ELCR is not part of the 8259A."""
        gone = chip.isr | chip.irr & ~chip.level
        self._ended |= gone if chip is self._primary else gone << 8
        chip.irr = chip.imr = chip.isr = 0  # `lines` stays: a line that is high must first fall to make an edge
        chip.set_lowest(7)
        chip.read_isr = chip.poll = chip.special_mask = False
        # All ICW4 functions are off until an ICW4 sets them.
        chip.auto_eoi = chip.rotate_on_auto_eoi = chip.special_fully_nested = False
        chip.use_4_byte_icw = bool(value & ICW1_IC4)
        chip.single_mode = bool(value & ICW1_SNGL)
        chip.level_triggered = bool(value & ICW1_LTIM)
        chip.set_level()
        chip.init_state = _ICW2

    def _icw(self, chip: _Controller, value: int) -> None:
        """Take ICW2, ICW3 or ICW4, and wait for the next that was announced."""
        after = _ICW4 if chip.use_4_byte_icw else _READY
        if chip.init_state == _ICW2:
            chip.irq_base = value & ICW2_BASE
            chip.init_state = after if chip.single_mode else _ICW3
        elif chip.init_state == _ICW3:
            chip.init_state = after
        else:
            chip.auto_eoi = bool(value & ICW4_AEOI)
            chip.special_fully_nested = bool(value & ICW4_SFNM)
            chip.init_state = _READY

    def _ocw3(self, chip: _Controller, value: int) -> None:
        if value & OCW3_P:
            chip.poll = True
        if value & OCW3_RR:
            chip.read_isr = bool(value & OCW3_RIS)
        if value & OCW3_ESMM:
            chip.special_mask = bool(value & OCW3_SMM)

    def _ocw2(self, chip: _Controller, value: int) -> None:
        if value & OCW2_EOI:
            if value & OCW2_SL:
                line = value & OCW2_LINE
            else:
                # Special mask mode hides a masked line in service from this ("Special Mask Mode").
                rank = chip.ranks[chip.blocking()]
                if rank == _NONE:
                    return
                line = rank + chip.priority_add & 7
            chip.isr &= ~(1 << line)
            self._end(chip, 1 << line)
            if value & OCW2_R:
                chip.set_lowest(line)
        elif value & OCW2_SL:
            if value & OCW2_R:
                chip.set_lowest(value & OCW2_LINE)
        else:
            chip.rotate_on_auto_eoi = bool(value & OCW2_R)
