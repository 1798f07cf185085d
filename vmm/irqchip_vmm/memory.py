"""Guest memory: one block of RAM from physical address 0.

A range a guest names is checked here: `read` gives None outside of memory. A range the host names wrongly
raises.
"""

from __future__ import annotations

from irqchip_core.errors import InvalidArgument

PAGE = 4096
MEBIBYTE = 1 << 20
MIN_SIZE = MEBIBYTE
MAX_SIZE = 3 << 30
"""Above are the devices: interrupt generator, IOAPIC, local APICs."""


def check_size(size: int) -> None:
    """Raise `InvalidArgument` unless a machine can have `size` bytes of memory."""
    if not MIN_SIZE <= size <= MAX_SIZE or size % PAGE:
        raise InvalidArgument(
            f"a machine cannot have {size:#x} bytes",
            subject="guest memory",
            argument="memory_size",
            remedy=f"give {MIN_SIZE >> 20} MiB to {MAX_SIZE >> 20} MiB, a multiple of {PAGE} bytes",
        )


class GuestMemory:
    """RAM from address 0.

    Args:
        view: The hypervisor's view of it, released by `close`.
    """

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self.size = len(view)
        """Bytes."""

    def read(self, address: int, length: int) -> bytes | None:
        """`length` bytes at `address`; None if any of them is outside of memory."""
        if address < 0 or length < 0 or address + length > self.size:
            return None
        return bytes(self._view[address : address + length])

    def write(self, address: int, data: bytes) -> None:
        """Put `data` at `address`.

        Raises:
            InvalidArgument: It does not fit there.
        """
        if address < 0 or address + len(data) > self.size:
            raise InvalidArgument(
                f"{len(data)} bytes at {address:#x} are not inside the {self.size >> 20} MiB of memory",
                subject="guest memory",
                argument="address",
                remedy="give the machine more memory",
            )
        self._view[address : address + len(data)] = data

    def close(self) -> None:
        """Let go of the memory. Harmless if done before."""
        self._view.release()
