"""A VM for each test, and a look for descriptors and threads it leaves behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from irqchip_kvm import Kvm, KvmVm


@pytest.fixture
def vm(no_leaks: None) -> Iterator[KvmVm]:
    with Kvm() as kvm:
        vm = kvm.create_vm()
    with vm:
        yield vm
