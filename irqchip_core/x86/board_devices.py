"""The bus devices of a `Board`: where the guest finds PICs, PIT and IOAPIC."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import override

from irqchip_core.bus import Access, BusDevice

if TYPE_CHECKING:
    from irqchip_core.x86.board import Board

IOAPIC_LENGTH = 0x100
PIC_RANGES = ((0x20, 2), (0xA0, 2), (0x4D0, 2))
PIT_RANGES = ((0x40, 8), (0x61, 1))


class _BoardDevice(BusDevice):
    """Its accesses take the board's locks themselves."""

    self_synchronized = True

    def __init__(self, board: Board) -> None:
        self._board = board


class PicPorts(_BoardDevice):
    """Both 8259s."""

    debug_label = "userspace PIC"
    width = 1

    @override
    def read(self, access: Access) -> int:
        board = self._board
        with board.lock:
            value = board.pic.read(access.address, access.size)  # a poll acknowledges
            board.update_interrupt_line()
        board.settle_pics()
        return value

    @override
    def write(self, access: Access, value: int) -> None:
        board = self._board
        with board.lock:
            board.pic.write(access.address, access.size, value)
            board.update_interrupt_line()
        board.settle_pics()


class PitPorts(_BoardDevice):
    """The 8254 and the speaker's port."""

    debug_label = "userspace PIT"
    width = 1

    @override
    def read(self, access: Access) -> int:
        board = self._board
        with board.lock:
            return board.pit.read(access.address, access.size, board.clock.now())

    @override
    def write(self, access: Access, value: int) -> None:
        board = self._board
        with board.lock:
            board.pit.write(access.address, access.size, value, board.clock.now())
            board.pit_written()


class IoapicPage(_BoardDevice):
    """The IOAPIC's registers."""

    debug_label = "userspace IOAPIC"

    @override
    def read(self, access: Access) -> int:
        board = self._board
        with board.ioapic_lock:
            return board.ioapic.read(access.offset, access.size, board.clock.now())

    @override
    def write(self, access: Access, value: int) -> None:
        self._board.write_ioapic(access.offset, access.size, value)
