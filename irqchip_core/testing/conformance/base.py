"""What all scenarios of the conformance kit have in common.

A scenario is a method of a `Scenarios` class whose name begins with ``test_``; its docstring is the rule it checks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import pytest

from irqchip_core.capabilities import AnyCapability
from irqchip_core.chip import IrqChip
from irqchip_core.errors import InvalidArgument
from irqchip_core.hypervisor.vcpu import Vm
from irqchip_core.selection import create_irqchip, create_vm, select
from irqchip_core.testing.bench import Bench
from irqchip_core.testing.lab import Lab
from irqchip_core.testing.patience import Patience


@functools.cache
def choose(backend: str, hypervisor: str | None = None) -> tuple[str, frozenset[AnyCapability]]:
    """The hypervisor to test a backend on, and what it claims there. Without a name, the first that it can use.

    Raises:
        UnknownName: There is no such backend or hypervisor.
        NothingSuitable: It can be used on no hypervisor here, or not on that one; with the reasons.
    """
    chosen = select(backend, hypervisor=hypervisor)
    return chosen.hypervisor, chosen.probe.capabilities


ABSENT = "needs a chip that lacks a controller of a PC; this one has all of them"

_patiences = pytest.StashKey[dict[Any, Patience]]()
"""For each chip of this run, what was learned."""

_S = TypeVar("_S", bound="Scenarios")


class Scenarios:
    """Base of the scenarios. To test a chip of yours, subclass `Conformance` and set or override these.

    Attributes:
        backend: Name of the backend.
        hypervisor: Name of the hypervisor; None for the first one that the backend can use here.
        capabilities: What the chip claims. None for what the backend's probe says, or, if there is no backend of
            that name, each chip.
        patience: Seconds to wait for an interrupt that is due; None to learn them, unless they are given.
        lab: Where scenarios get their machines.
    """

    irqchip_conformance: ClassVar = True

    backend: str | None = None
    hypervisor: str | None = None
    capabilities: frozenset[AnyCapability] | None = None
    patience: float | None = None

    lab: Lab

    def create_vm(self) -> Vm:
        """Make an empty VM."""
        return create_vm(self.hypervisor)

    def create_chip(self, vm: Vm, vcpu_count: int) -> IrqChip:
        """Make the chip under test."""
        if self.backend is None:
            raise InvalidArgument(
                "no chip is named",
                subject=type(self).__name__,
                argument="backend",
                remedy="set `backend`, override `create_chip`, or run pytest with --irqchip NAME",
            )
        return create_irqchip(self.backend, vm=vm, vcpu_count=vcpu_count)

    def open_lab(self, *, patience: Patience | float | None = None) -> Lab:
        """Set `lab` up for the chip that is named."""
        claims = self.capabilities
        if self.backend is not None:
            self.hypervisor, probed = choose(self.backend, self.hypervisor)
            claims = probed if claims is None else claims
        self.lab = Lab(
            self.create_vm,
            self.create_chip,
            claims=claims,
            patience=patience if self.patience is None else self.patience,
        )
        return self.lab

    def boot(self, vcpus: int = 1, *, chip_vcpus: int | None = None) -> Bench:
        """A machine with guests on `vcpus` vCPUs, which ends with the scenario."""
        return self.lab.boot(vcpus, chip_vcpus=chip_vcpus)

    @pytest.fixture(autouse=True)
    def _irqchip_lab(self, request: pytest.FixtureRequest, irqchip_target: Any) -> None:
        if irqchip_target is not None:
            self.backend, self.hypervisor = irqchip_target
        learned = request.config.stash.setdefault(_patiences, {})
        chip = irqchip_target or type(self)
        if chip not in learned:
            learned[chip] = Patience(request.config.option.irqchip_patience)
        self.open_lab(patience=learned[chip])
        request.node.irqchip_lab = self.lab


def needs(*capabilities: AnyCapability) -> Callable[[Callable[[_S], None]], Callable[[_S], None]]:
    """Mark a scenario that only chips with all of `capabilities` can play."""

    def decorate(scenario: Callable[[_S], None]) -> Callable[[_S], None]:
        @functools.wraps(scenario)
        def perform(self: _S) -> None:
            for capability in capabilities:
                self.lab.need(capability)
            scenario(self)

        return perform

    return decorate
