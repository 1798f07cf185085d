"""A wrapped chip keeps the contract: the conformance kit, through a wrapper."""

from __future__ import annotations

import pytest
from typing_extensions import override

from irqchip_core.chip import IrqChip
from irqchip_core.hypervisor.vcpu import Vm
from irqchip_core.selection import create_irqchip
from irqchip_core.testing.conformance import Conformance
from irqchip_core.wrapping.tapped import TappedIrqChip
from irqchip_core.wrapping.wrapped import WrappedIrqChip
from irqchip_core.x86.chip import IrqChipX86_64

pytestmark = pytest.mark.usefixtures("no_leaks")


class Wrapped(Conformance):
    wrapper: type[WrappedIrqChip] = WrappedIrqChip

    @override
    def create_chip(self, vm: Vm, vcpu_count: int) -> IrqChip:
        inner = create_irqchip(self.backend, vm=vm, vcpu_count=vcpu_count)
        assert isinstance(inner, IrqChipX86_64)
        return self.wrapper(inner)

    @override
    def test_name(self) -> None:
        """A wrapper has a name of its own."""
        assert self.boot().chip.name == self.wrapper.name


@pytest.mark.kvm
class TestWrappedKvmKernel(Wrapped):
    backend, hypervisor = "kvm_kernel", "kvm"


@pytest.mark.kvm
class TestTappedKvmSplit(Wrapped):
    backend, hypervisor = "kvm_split", "kvm"
    wrapper = TappedIrqChip


class TestTappedUserspace(Wrapped):
    backend, hypervisor = "userspace", "unicorn"
    wrapper = TappedIrqChip
