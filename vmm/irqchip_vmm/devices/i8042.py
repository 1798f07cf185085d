"""8042 keyboard controller: only the reset line of the processor, and the ports around it.

    0x61 (RW)  system control port B, where the chip does not have it
           bit 5  output of PIT counter 2: always 1, so that who waits for it goes on
    0x64 (RO)  status: buffers are empty, nothing to read
    0x64 (WO)  command
           0xFE   pulse output line 0, which is the processor's reset

No keyboard, no mouse, no A20 gate, no interrupts.
"""

from __future__ import annotations

from collections.abc import Callable

from typing_extensions import override

from irqchip_core.bus import Access, BusDevice

SYSTEM_CONTROL_B = 0x61
TIMER2_OUTPUT = 1 << 5
COMMAND = 0x64
PULSE_RESET = 0xFE


def port_range(pit_uses_speaker_port: bool) -> tuple[int, int]:
    """Base and length: port 0x61 is left to a chip whose PIT has it."""
    return (0x62, 3) if pit_uses_speaker_port else (0x61, 4)


class I8042(BusDevice):
    """Calls `on_reset` with the number of the vCPU."""

    debug_label = "i8042"

    def __init__(self, on_reset: Callable[[int], object]) -> None:
        self._on_reset = on_reset

    @override
    def read(self, access: Access) -> int:
        return TIMER2_OUTPUT if access.address == SYSTEM_CONTROL_B else 0

    @override
    def write(self, access: Access, value: int) -> None:
        if access.address == COMMAND and value & 0xFF == PULSE_RESET:
            self._on_reset(access.vcpu_id)
