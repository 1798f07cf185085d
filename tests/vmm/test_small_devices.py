"""Keyboard controller and exit port."""

from __future__ import annotations

import pytest

from irqchip_vmm.devices.debug_exit import EXIT_PORT, DebugExit
from irqchip_vmm.devices.i8042 import COMMAND, I8042, I8042_LENGTH, I8042_PORT
from tests.vmm.fakes import Port


@pytest.mark.parametrize("value", range(0x100))
def test_commands_that_pulse_the_reset_line(value: int) -> None:
    vcpus: list[int] = []
    port = Port(I8042(vcpus.append), I8042_PORT)
    port.write(COMMAND - I8042_PORT, value)
    # F0 to FF pulse those of the lines 0-3 whose bit is 0
    assert vcpus == ([0] if value in (0xF0, 0xF2, 0xF4, 0xF6, 0xF8, 0xFA, 0xFC, 0xFE) else [])


def test_other_ports_do_not_reset_and_it_is_never_busy() -> None:
    vcpus: list[int] = []
    port = Port(I8042(vcpus.append), I8042_PORT)
    for offset in range(COMMAND - I8042_PORT):
        port.write(offset, 0xFE)
    assert vcpus == []
    assert [port.read(offset) for offset in range(I8042_LENGTH)] == [0, 0, 0]


@pytest.mark.parametrize(("value", "status"), [(0, 1), (1, 3), (0x7F, 0xFF), (0x80, 0x101), (0xFFFFFFFF, 0x1FFFFFFFF)])
def test_exit_status(value: int, status: int) -> None:
    ends: list[tuple[int, int]] = []
    port = Port(DebugExit(lambda status, vcpu: ends.append((status, vcpu))), EXIT_PORT)
    port.write(0, value, 4)
    port.write(1, value)
    assert ends == [(status, 0)]
