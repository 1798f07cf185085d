"""Linear memory as the guest's page tables map it: what is needed to deliver an interrupt or to look at code.

Walks the tables in guest memory as the processor does, sets accessed and dirty bits, and faults. Unlike the
emulator it keeps no translations. Intel SDM vol. 3, 5.3 to 5.7.
"""

from __future__ import annotations

from irqchip_unicorn import state
from irqchip_unicorn.context import Context
from irqchip_unicorn.memory import PAGE_SIZE, GuestMemory

PAGE_FAULT = 14

# Bits of a page-fault error code
_PRESENT, _WRITE, _USER, _RESERVED = 1, 2, 4, 8
# Bits of an entry
_P, _RW, _US, _A, _D, _PS, _XD = 1, 2, 4, 1 << 5, 1 << 6, 1 << 7, 1 << 63
_ADDRESS = 0x000FFFFFFFFFF000
_PHYSICAL_BITS = 40
_RESERVED_ADDRESS = _ADDRESS & ~((1 << _PHYSICAL_BITS) - 1)


class GuestFault(Exception):
    """The guest takes an exception.

    Attributes:
        vector: Its number.
        error_code: None if it has none.
        address: What CR2 shall say, for a page fault.
    """

    def __init__(self, vector: int, error_code: int | None = None, address: int = 0) -> None:
        super().__init__(vector, error_code)
        self.vector = vector
        self.error_code = error_code
        self.address = address


class Paging:
    """The linear address space of one vCPU as of now."""

    def __init__(self, context: Context, memory: GuestMemory) -> None:
        self._context = context
        self._memory = memory

    def translate(self, address: int, *, write: bool = False, user: bool = False, quiet: bool = False) -> int:
        """The guest physical address.

        Args:
            address: Linear address.
            write: Whether it will be written.
            user: Whether the access is one of privilege level 3.
            quiet: Leave accessed and dirty bits alone; it is code that is looked at, to which SMAP does not apply.

        Raises:
            GuestFault: A page fault.
        """
        context = self._context
        cr0 = context.cr(0)
        if not cr0 & state.CR0_PG:
            return address & 0xFFFFFFFF
        levels, size = self._levels()
        code = (_WRITE if write else 0) | (_USER if user else 0)
        table = context.cr(3) & (_ADDRESS if len(levels) == 4 else 0xFFFFFFE0 if size == 8 else 0xFFFFF000)
        allowed, path, shift = _RW | _US, [], 0
        reserved = _RESERVED_ADDRESS if context.efer & state.EFER_NXE else _RESERVED_ADDRESS | _XD
        for shift, bits, may_map in levels:
            at = table + size * (address >> shift & (1 << bits) - 1)
            entry = self._memory.read(at, size)
            if not entry & _P:
                raise GuestFault(PAGE_FAULT, code, address)
            if size == 8 and entry & reserved:
                raise GuestFault(PAGE_FAULT, code | _PRESENT | _RESERVED, address)
            is_pdpte = len(levels) == 3 and shift == 30  # has neither rights nor an accessed bit
            if not is_pdpte:
                allowed &= entry
                path.append((at, entry))
            table = entry & (_ADDRESS if size == 8 else 0xFFFFF000)
            if shift == 12 or (may_map and entry & _PS):
                break
        if size == 4 and shift == 22:  # PSE-36: bits 39:32 of the address
            table |= (table >> 13 & 0xFF) << 32
        if (
            (user and not allowed & _US)
            or (write and not allowed & _RW and (user or cr0 & state.CR0_WP))
            or (allowed & _US and not (user or quiet) and self._smap())
        ):
            raise GuestFault(PAGE_FAULT, code | _PRESENT, address)
        if not quiet:
            for at, entry in path:
                wanted = entry | _A | (_D if write and at == path[-1][0] else 0)
                if wanted != entry:
                    self._memory.write(at, size, wanted)
        return table & -(1 << shift) | address & (1 << shift) - 1

    def _smap(self) -> bool:
        """Whether pages of the user are closed to the processor's own accesses."""
        context = self._context
        if not context.cr(4) & state.CR4_SMAP:
            return False
        return not context.rflags & state.AC or state.cpl(context) == 3

    def _levels(self) -> tuple[tuple[tuple[int, int, bool], ...], int]:
        """Of each table the shift of its index, its bits, and whether an entry may map a page; bytes of an entry."""
        cr4 = self._context.cr(4)
        if self._context.efer & state.EFER_LMA:
            return ((39, 9, False), (30, 9, True), (21, 9, True), (12, 9, False)), 8
        if cr4 & state.CR4_PAE:
            return ((30, 2, False), (21, 9, True), (12, 9, False)), 8
        return ((22, 10, bool(cr4 & state.CR4_PSE)), (12, 10, False)), 4

    def _pieces(self, address: int, size: int, *, write: bool, user: bool) -> list[tuple[int, int]]:
        """Physical address and size of what is on each page; faults before anything is done."""
        pieces = []
        while size:
            here = min(size, PAGE_SIZE - address % PAGE_SIZE)
            pieces.append((self.translate(address, write=write, user=user), here))
            address, size = address + here, size - here
        return pieces

    def read(self, address: int, size: int) -> int:
        """A little-endian number at a linear address. Raises `GuestFault`."""
        value = shift = 0
        for physical, here in self._pieces(address, size, write=False, user=False):
            value |= self._memory.read(physical, here) << shift
            shift += 8 * here
        return value

    def write(self, address: int, size: int, value: int, *, user: bool = False) -> None:
        """Store a little-endian number at a linear address. Raises `GuestFault`."""
        for physical, here in self._pieces(address, size, write=True, user=user):
            self._memory.write(physical, here, value & (1 << 8 * here) - 1)
            value >>= 8 * here

    def code(self, address: int, size: int) -> bytes:
        """Up to `size` bytes of code at a linear address; fewer where a page is missing."""
        found = b""
        while size:
            here = min(size, PAGE_SIZE - address % PAGE_SIZE)
            try:
                view = self._memory.view(self.translate(address, quiet=True), here)
            except GuestFault:
                break
            if view is None:
                break
            found += view
            address, size = address + here, size - here
        return found
