"""Keyboard controller and exit port."""

from __future__ import annotations

import pytest

from irqchip_vmm.devices.debug_exit import EXIT_PORT, DebugExit
from irqchip_vmm.devices.i8042 import I8042, port_range
from tests.vmm.fakes import Port


@pytest.mark.parametrize(("pit_has_0x61", "ports"), [(True, [0x62, 0x63, 0x64]), (False, [0x61, 0x62, 0x63, 0x64])])
def test_keyboard_controller_leaves_port_61_to_the_pit(pit_has_0x61: bool, ports: list[int]) -> None:
    base, length = port_range(pit_has_0x61)
    assert list(range(base, base + length)) == ports


@pytest.mark.parametrize(
    ("port", "value", "resets"), [(0x64, 0xFE, 1), (0x64, 0xFF, 0), (0x64, 0xD1, 0), (0x62, 0xFE, 0), (0x61, 0xFE, 0)]
)
def test_only_the_reset_pulse_resets(port: int, value: int, resets: int) -> None:
    vcpus: list[int] = []
    Port(I8042(vcpus.append), 0x61).write(port - 0x61, value)
    assert len(vcpus) == resets


def test_keyboard_controller_is_never_busy_and_counter_2_always_done() -> None:
    port = Port(I8042(lambda vcpu: None), 0x61)
    assert [port.read(offset) for offset in range(4)] == [0x20, 0, 0, 0]


@pytest.mark.parametrize(("value", "status"), [(0, 1), (1, 3), (0x7F, 0xFF), (0x80, 0x101), (0xFFFFFFFF, 0x1FFFFFFFF)])
def test_exit_status(value: int, status: int) -> None:
    ends: list[tuple[int, int]] = []
    port = Port(DebugExit(lambda status, vcpu: ends.append((status, vcpu))), EXIT_PORT)
    port.write(0, value, 4)
    port.write(1, value)
    assert ends == [(status, 0)]
