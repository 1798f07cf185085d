"""How much is done, and with what chips."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from attrs import frozen

from benchmarks.measuring import Row
from irqchip_core.errors import IrqChipError
from irqchip_core.hypervisor.vcpu import Vm
from irqchip_core.selection import create_irqchip, create_vm
from irqchip_core.testing import FakeVm
from irqchip_core.x86.chip import IrqChipX86_64

KVM_CHIPS = ("kvm_kernel", "kvm_split", "userspace")


@frozen
class Scale:
    """How much of everything.

    Attributes:
        repeats: Measurements of each way.
        times: Calls in each, where one takes microseconds.
        events: Events and routes.
        vcpus: Numbers of vCPUs.
    """

    repeats: int = 25
    times: int = 1_000
    events: int = 4096
    vcpus: tuple[int, ...] = (1, 2, 8, 64, 254)

    def sizes(self) -> list[int]:
        """1 to `events`."""
        return [size for size in (1, 24, 64, 256, 1024) if size < self.events] + [self.events]


FULL = Scale()
QUICK = Scale(repeats=5, times=200, events=128, vcpus=(1, 8))


@contextmanager
def made(chip: str, hypervisor: str, vcpu_count: int = 1) -> Iterator[tuple[Vm, IrqChipX86_64]]:
    """An empty VM of `hypervisor` (``fake``: one that executes nothing) with a chip.

    Raises:
        IrqChipError: This machine cannot do that.
    """
    with (
        FakeVm() if hypervisor == "fake" else create_vm(hypervisor) as vm,
        create_irqchip(chip, vm=vm, vcpu_count=vcpu_count) as irqchip,
    ):
        assert isinstance(irqchip, IrqChipX86_64)
        yield vm, irqchip


def attempt(group: str, name: str, measure: Callable[[], Row]) -> Row:
    """The row, or one that says why there is none."""
    try:
        return measure()
    except (IrqChipError, OSError) as error:
        return Row(group, name, reason=str(error))
