"""A VM of KVM's, its split chip for two vCPUs, and the guest that takes interrupts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from irqchip_kvm import Kvm, KvmVm
from irqchip_kvm_split.chip import KvmSplitIrqChip
from tests.chips.machine import Machine


@pytest.fixture
def vm(no_leaks: None) -> Iterator[KvmVm]:
    with Kvm() as kvm, kvm.create_vm() as vm:
        yield vm


@pytest.fixture
def chip(vm: KvmVm) -> Iterator[KvmSplitIrqChip]:
    with KvmSplitIrqChip(vm, 2) as chip:
        yield chip


@pytest.fixture
def machine(vm: KvmVm, chip: KvmSplitIrqChip) -> Iterator[Machine]:
    """The guest, ready, with all lines masked in PICs and IOAPIC."""
    with Machine(vm, chip) as machine:
        yield machine
