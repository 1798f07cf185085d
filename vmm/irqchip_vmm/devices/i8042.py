"""8042 keyboard controller: only the reset line of the processor.

    0x64 (RO)  status: buffers are empty, nothing to read
    0x64 (WO)  command
           0xF0-0xFF   pulse the output lines 0-3 whose bit is 0; line 0 is the processor's reset

No keyboard, no mouse, no A20 gate, no interrupts.
"""

from __future__ import annotations

from collections.abc import Callable

from typing_extensions import override

from irqchip_core.bus import Access, BusDevice

I8042_PORT = 0x62
I8042_LENGTH = 3
COMMAND = 0x64
PULSE, PULSE_MASK = 0xF0, 0xF0
NOT_RESET = 0x01


class I8042(BusDevice):
    """Calls `on_reset` with the number of the vCPU."""

    debug_label = "i8042"
    width = 1

    def __init__(self, on_reset: Callable[[int], object]) -> None:
        self._on_reset = on_reset

    @override
    def write(self, access: Access, value: int) -> None:
        if access.address == COMMAND and value & (PULSE_MASK | NOT_RESET) == PULSE:
            self._on_reset(access.vcpu_id)
