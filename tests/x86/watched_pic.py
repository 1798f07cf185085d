"""A pair of 8259s whose effects are noted and checked, so that a test can look at registers and vectors only."""

from __future__ import annotations

from irqchip_core.x86.effects import Effects, IntChanged, LineEnded
from irqchip_core.x86.pic import Pic
from irqchip_core.x86.state import PicSelect, PicState


class WatchedPic:
    """As `Pic`, but accesses give no effects.

    Attributes:
        ended: Lines, as bits, whose interrupt has ended since `report_all_ends`.
    """

    def __init__(self, pic: Pic | None = None) -> None:
        self.pic = Pic() if pic is None else pic
        self.ended = 0
        self._int = self.pic.interrupt_requested

    @classmethod
    def from_state(cls, primary: PicState, secondary: PicState) -> WatchedPic:
        return cls(Pic.from_state(primary, secondary))

    def report_all_ends(self) -> None:
        """Let every end be reported from now on, of edge-triggered lines. A level-triggered one is taken low, too."""
        self.pic.resample_lines = 0xFFFF
        self.ended = 0

    @property
    def interrupt_requested(self) -> bool:
        return self.pic.interrupt_requested

    @property
    def ignored(self) -> int:
        return self.pic.ignored

    def state(self, select: PicSelect) -> PicState:
        return self.pic.state(select)

    def _note(self, effects: Effects) -> None:
        for effect in effects:
            if isinstance(effect, IntChanged):
                assert effect.high != self._int, "INT has not changed"
                self._int = effect.high
            else:
                assert isinstance(effect, LineEnded)
                assert self.pic.resample_lines >> effect.line & 1
                self.ended |= 1 << effect.line
        assert self._int == self.pic.interrupt_requested, "INT has changed, and no effect says so"

    def set_line(self, line: int, high: bool) -> None:
        self._note(self.pic.set_line(line, high))

    def acknowledge(self) -> int:
        vector, effects = self.pic.acknowledge()
        self._note(effects)
        return vector

    def read(self, port: int, size: int) -> int:
        value, effects = self.pic.read(port, size)
        self._note(effects)
        return value

    def write(self, port: int, size: int, value: int) -> None:
        self._note(self.pic.write(port, size, value))
