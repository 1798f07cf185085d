"""The chips and the guest of `tests.chips`, with each chip inside a wrapper."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from irqchip_core.hypervisor.vcpu import Vm
from irqchip_core.selection import create_irqchip
from irqchip_core.wrapping.tapped import TappedIrqChip
from irqchip_core.wrapping.wrapped import WrappedIrqChip
from irqchip_core.x86.chip import IrqChipX86_64
from tests.chips.conftest import machine, names, vm

__all__ = ["machine", "names", "vm"]


@pytest.fixture(params=[WrappedIrqChip, TappedIrqChip])
def wrapper(request: pytest.FixtureRequest) -> type[WrappedIrqChip]:
    found: type[WrappedIrqChip] = request.param
    return found


@pytest.fixture
def chip(names: tuple[str, str], vm: Vm, wrapper: type[WrappedIrqChip]) -> Iterator[IrqChipX86_64]:
    """The chip, for two vCPUs, wrapped."""
    inner = create_irqchip(names[0], vm=vm, vcpu_count=2)
    assert isinstance(inner, IrqChipX86_64)
    with wrapper(inner) as chip:
        yield chip
