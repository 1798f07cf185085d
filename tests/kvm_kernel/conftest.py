"""A VM of KVM's for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from irqchip_kvm import Kvm, KvmVm


@pytest.fixture
def vm() -> Iterator[KvmVm]:
    with Kvm() as kvm, kvm.create_vm() as vm:
        yield vm
