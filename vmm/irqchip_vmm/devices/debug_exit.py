"""The exit port: how a guest ends the run with a status. As QEMU's isa-debug-exit; no other hardware has it.

0xF4 (WO)  value v, 1, 2 or 4 bytes: the run ends with status (v << 1) | 1
"""

from __future__ import annotations

from collections.abc import Callable

from typing_extensions import override

from irqchip_core.bus import Access, BusDevice

EXIT_PORT = 0xF4
EXIT_PORT_LENGTH = 4


class DebugExit(BusDevice):
    """Calls `on_exit` with the status and the number of the vCPU."""

    debug_label = "exit port"

    def __init__(self, on_exit: Callable[[int, int], object]) -> None:
        self._on_exit = on_exit

    @override
    def write(self, access: Access, value: int) -> None:
        if access.offset == 0:
            self._on_exit(value << 1 | 1, access.vcpu_id)
