"""The conformance kit on every chip of this repository, on each hypervisor that it can serve."""

from __future__ import annotations

import pytest

from irqchip_core.testing.conformance import Conformance

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.mark.kvm
class TestKvmKernel(Conformance):
    backend, hypervisor = "kvm_kernel", "kvm"


@pytest.mark.kvm
class TestUserspaceOnKvm(Conformance):
    backend, hypervisor = "userspace", "kvm"


class TestUserspaceOnUnicorn(Conformance):
    backend, hypervisor = "userspace", "unicorn"


@pytest.mark.kvm
class TestKvmSplit(Conformance):
    backend, hypervisor = "kvm_split", "kvm"
