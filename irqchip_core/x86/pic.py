"""The two 8259A interrupt controllers of a PC, as one part without I/O.

The primary takes lines 0-7 and the secondary 8-15; the secondary's INT output drives the primary's IR2. Beside the
8259A there is the ELCR of PC chipsets, which makes single lines level-triggered. Source: Intel 8259A data sheet
(231468), "Programming the 8259A"; for the ELCR Intel 82371AB (PIIX4) data sheet (290562), registers ELCR1 and ELCR2.

One difference from the data sheet is deliberate: an edge stays requested when its line falls before the acknowledge,
since a device that signals an event raises and lowers its line at once.

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
"""The line that an 8259A reports when it is acknowledged while nothing is requested."""

# fmt: off

# What is written to the command port: ICW1 has bit 4 set, OCW3 bit 3, OCW2 neither
ICW1         =     0x10         # starts the initialization
ICW1_IC4     =         1 << 0   #     ICW4 follows
ICW1_SNGL    =         1 << 1   #     single: no cascade, no ICW3
ICW1_LTIM    =         1 << 3   #     all lines level-triggered
# OCW2 ends interrupts and rotates priorities
OCW2_LINE    =         7 << 0   #     bits 0-2: the line, with SL
OCW2_EOI     =         1 << 5   #     end of interrupt
OCW2_SL      =         1 << 6   #     specific: the line is given
OCW2_R       =         1 << 7   #     rotate
OCW3         =     0x08         # selects what reads give
OCW3_RIS     =         1 << 0   #     with RR: ISR instead of IRR
OCW3_RR      =         1 << 1   #     read register
OCW3_P       =         1 << 2   #     poll
OCW3_SMM     =         1 << 5   #     with ESMM: special mask mode on
OCW3_ESMM    =         1 << 6   #     enable special mask mode: SMM counts

# What is written to the data port after ICW1: ICW2, ICW3 and ICW4; else OCW1, the mask
ICW2_BASE    =         0xF8     #     bits 3-7: vector of line 0
ICW4_AEOI    =         1 << 1   #     automatic EOI
ICW4_SFNM    =         1 << 4   #     special fully nested mode

# What a poll reads: the line in bits 0-2, and
POLL_PENDING =         1 << 7   #     an interrupt was requested

# fmt: on

_INT_CHANGED = ((IntChanged(False),), (IntChanged(True),))
_LINE_ENDED = [[LineEnded(line, lowered) for line in range(16)] for lowered in (False, True)]

_CASCADE_BIT = 1 << CASCADE
_NONE = 8  # rank if there is no line: below all lines
_READY, _ICW2, _ICW3, _ICW4 = (int(state) for state in PicInitState)

_REGISTERS = {port: at for at, port in enumerate((*COMMAND_PORTS, *DATA_PORTS, *ELCR_PORTS))}
"""By port: bit 0 is the controller; then come command, data and ELCR."""
_DATA = 2
_ELCR = 4

_RANKS = tuple(
    bytes(next((rank for rank in range(8) if lines >> (lowest + rank & 7) & 1), _NONE) for lines in range(256))
    for lowest in range(8)
)
"""_RANKS[priority_add][lines]: rank of the line with the highest priority, from 0, the highest; 8 if there is none."""


class _Controller:
    """The registers of one 8259A."""

    __slots__ = (
        "auto_eoi", "elcr", "elcr_mask", "imr", "init_state", "irq_base", "irr", "isr", "level", "level_triggered",
        "lines", "poll", "priority_add", "ranks", "read_isr", "rotate_on_auto_eoi", "single_mode", "slave_line",
        "special_fully_nested", "special_mask", "use_4_byte_icw",
    )  # fmt: skip

    def __init__(self, slave_line: int, elcr_mask: int, state: PicState) -> None:
        self.slave_line = slave_line  # the input that another 8259A drives, or -1
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
        self.level = 0xFF if self.level_triggered else self.elcr  # bit n: the request of line n follows its level

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
        """Drive an input high or low."""
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
        """Recompute which inputs are level-triggered; their requests become their levels."""
        self.level = level = 0xFF if self.level_triggered else self.elcr
        self.irr = self.irr & ~level | self.lines & level

    def blocking(self) -> int:
        """Lines in service that block lower ones: in special mask mode only unmasked lines ("Special Mask Mode")."""
        return self.isr & ~self.imr if self.special_mask else self.isr

    def deliverable(self) -> int:
        """The line whose interrupt INT requests now, or -1."""
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
        """Rotate the priorities: `line` gets the lowest."""
        self.priority_add = line + 1 & 7
        self.ranks = _RANKS[line + 1 & 7]


class Pic:
    """The pair of 8259As.

    Register accesses are those of a guest: none raises an exception, and one with another size or port is ignored, and
    counted. Each access answers with effects: `IntChanged`, and `LineEnded` for each interrupt of `resample_lines` that
    was ended by an EOI or an automatic EOI, or discarded by an initialization.

    Attributes:
        interrupt_requested: The INT output to the processor. While it is set, call `acknowledge` as soon as the
            processor can take an interrupt.
        resample_lines: Lines 0-15, as bits, that the owner drives anew when their interrupt has ended. If such a line
            is level-triggered, the end takes it low before INT follows, as in KVM; otherwise it would request again
            before the owner can check the line.
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
        self._ended = 0  # bit n: the interrupt of line n has ended, and its LineEnded is not returned yet
        self._lowered = 0  # bit n: of these, the line was taken low
        self._int = False  # INT as of the last IntChanged
        self._load(PicState(), PicState())

    @classmethod
    def from_state(cls, primary: PicState, secondary: PicState) -> Pic:
        """A pair with the state of these records.

        Raises:
            InvalidArgument: A record is not one of its 8259A.
        """
        check_pic(primary, PicSelect.PRIMARY, subject="PIC", argument="primary")
        check_pic(secondary, PicSelect.SECONDARY, subject="PIC", argument="secondary")
        pic = cls()
        pic._load(primary, secondary)
        pic._int = pic.interrupt_requested
        return pic

    def set_state(self, select: PicSelect, state: PicState) -> Effects:
        """Take over the state of one 8259A.

        Raises:
            InvalidArgument: `state` is no record of this 8259A.
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
        # The level of the wire between the two, which is the secondary's INT. The primary's record may differ: KVM
        # lowers it at once after each edge, and only one of the two records may be new.
        self._cascade = bool(primary.last_irr & _CASCADE_BIT)
        self._update()

    def _effects(self) -> Effects:
        """The effects of all changes since the last call."""
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
        """Drive line 0-15 high or low. Driving it to the level that it has changes nothing.

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

        If nothing is requested it is the vector of line 7 (of line 15 if only the secondary has no request), and no
        line comes into service ("Interrupt Sequence").
        """
        primary, line = self._primary, self._line
        if line < 0:
            return primary.irq_base + SPURIOUS, ()
        self._serve(primary, line)
        if line == CASCADE and not primary.single_mode:
            secondary = self._secondary
            line = secondary.deliverable()
            if line < 0:
                line = SPURIOUS
            else:
                self._serve(secondary, line)
            vector = secondary.irq_base + line
        else:
            vector = primary.irq_base + line
            if not primary.auto_eoi and line != CASCADE:
                # It was the best, and in service it holds back itself and all others.
                self._line = -1
                self.interrupt_requested = self._int = False
                return vector, _INT_CHANGED[False]
        self._update()
        return vector, self._effects()

    def _serve(self, chip: _Controller, line: int) -> None:
        """Acknowledge `line` in one controller."""
        bit = 1 << line
        chip.irr &= ~bit | chip.level
        if chip.auto_eoi:
            if chip.rotate_on_auto_eoi:
                chip.set_lowest(line)
            self._end(chip, bit)
        else:
            chip.isr |= bit
        if chip is self._secondary:
            # INTA lowers INT; if more is pending it rises again, which is an edge for the primary.
            self._cascade = False
            self._primary.drive(_CASCADE_BIT, False)

    def _end(self, chip: _Controller, bit: int) -> None:
        """The interrupt of an input has ended."""
        line = (bit if chip is self._primary else bit << 8) & self.resample_lines
        if line:
            self._ended |= line
            if chip.level & bit:
                chip.drive(bit, False)
                self._lowered |= line

    def _update(self) -> None:
        """Set the outputs according to the registers."""
        secondary = self._secondary
        cascade = bool(secondary.irr) and secondary.deliverable() >= 0
        if cascade != self._cascade:
            self._cascade = cascade
            self._primary.drive(_CASCADE_BIT, cascade)
        self._line = line = self._primary.deliverable()
        self.interrupt_requested = line >= 0

    # Registers

    def read(self, port: int, size: int) -> tuple[int, Effects]:
        """Read 1 byte of port 0x20, 0x21, 0xA0, 0xA1, 0x4D0 or 0x4D1, and return it with effects; else 0.

        After a poll command the next read of either port acknowledges: it returns the line with bit 7 set, or 7
        if nothing is requested ("Poll Command").
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
        """Write 1 byte to port 0x20, 0x21, 0xA0, 0xA1, 0x4D0 or 0x4D1; any other access is ignored."""
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
        return self._effects() if self._ended or self.interrupt_requested != self._int else ()

    def _icw1(self, chip: _Controller, value: int) -> None:
        """Start the initialization ("Initialization Command Words 1 and 2"); ELCR is not part of the 8259A."""
        gone = chip.isr | chip.irr & ~chip.level
        self._ended |= (gone if chip is self._primary else gone << 8) & self.resample_lines
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
        """Take ICW2, ICW3 or ICW4; then the next one that ICW1 announced is expected."""
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
                # In special mask mode a non-specific EOI ends no masked line ("Special Mask Mode").
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
