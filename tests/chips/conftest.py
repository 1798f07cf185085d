"""Every chip on every hypervisor that is here, each with a guest that takes its interrupts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from irqchip_core.hypervisor.vcpu import Vm
from irqchip_core.selection import create_irqchip, create_vm
from irqchip_core.x86.chip import IrqChipX86_64
from tests.chips.machine import Machine

CHIPS = [
    pytest.param(("kvm_kernel", "kvm"), marks=pytest.mark.kvm, id="kvm_kernel"),
    pytest.param(("kvm_split", "kvm"), marks=pytest.mark.kvm, id="kvm_split"),
    pytest.param(("userspace", "kvm"), marks=pytest.mark.kvm, id="userspace-kvm"),
    pytest.param(("userspace", "unicorn"), id="userspace-unicorn"),
]


@pytest.fixture(params=CHIPS)
def names(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Names of the backend and the hypervisor."""
    found: tuple[str, str] = request.param
    return found


@pytest.fixture
def vm(names: tuple[str, str]) -> Iterator[Vm]:
    with create_vm(names[1]) as vm:
        yield vm


@pytest.fixture
def chip(names: tuple[str, str], vm: Vm) -> Iterator[IrqChipX86_64]:
    """The chip, for two vCPUs."""
    with create_irqchip(names[0], vm=vm, vcpu_count=2) as chip:
        assert isinstance(chip, IrqChipX86_64)
        yield chip


@pytest.fixture
def machine(vm: Vm, chip: IrqChipX86_64) -> Iterator[Machine]:
    """The guest, ready, with all lines masked in PICs and IOAPIC."""
    with Machine(vm, chip) as machine:
        yield machine
