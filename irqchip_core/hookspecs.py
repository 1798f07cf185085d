"""What a plugin may implement.

A plugin is a module named by an entry point of group ``irqchip``. It marks functions with `hookimpl` and is
imported by every `discover`, so it imports nothing heavy itself: a backend imports its chip in `Backend.create`.
The import, each hook, and each method of what it offers run on a thread of their own and have a time limit
(`loading`). No hook is called per interrupt.
"""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING

import pluggy
from attrs import frozen

from irqchip_core.errors import Unsupported

if TYPE_CHECKING:
    from irqchip_core.capabilities import AnyCapability, Capability
    from irqchip_core.chip import IrqChip
    from irqchip_core.clock import VirtualClock
    from irqchip_core.events import IrqEventIndex, IrqEventSource
    from irqchip_core.hypervisor.vcpu import Vm
    from irqchip_core.routes import IrqRoute

API_VERSION = 1
"""Version of everything in this module and of the contract. A plugin states the one it was written for."""

hookspec = pluggy.HookspecMarker("irqchip")
hookimpl = pluggy.HookimplMarker("irqchip")


@frozen
class Probe:
    """Whether a backend can serve a VM.

    Attributes:
        refusal: One sentence saying why not, and what would help; None if it can.
        capabilities: What its chip could do on this VM; empty if it cannot serve it.
    """

    refusal: str | None = None
    capabilities: frozenset[AnyCapability] = frozenset()


class Backend(ABC):
    """Makes chips of one kind.

    Attributes:
        name: What users choose it by: lower case letters, digits and underscores.
        api_version: The `API_VERSION` it was written for.
        summary: One line for `irqchip list`.
        hypervisors: Names of the hypervisors whose VMs it can serve; None if any might do.
        rank: Order among those that fit when none is named, the lowest first.
        wrapper: Its chip is another backend's with something changed. It is taken only by name.
    """

    name: str
    api_version: int
    summary: str
    hypervisors: frozenset[str] | None = None
    rank: int = 100
    wrapper: bool = False

    @abstractmethod
    def probe(self, vm: Vm) -> Probe:
        """Say whether `create` would work for `vm`, without changing it."""

    @abstractmethod
    def create(self, vm: Vm, vcpu_count: int) -> IrqChip:
        """Make the chip of `vm`, which has no vCPU yet and will have `vcpu_count` at most."""


class Hypervisor(ABC):
    """Makes VMs.

    Attributes:
        name: What users choose it by, as for `Backend`.
        api_version: The `API_VERSION` it was written for.
        summary: One line for `irqchip list`.
        rank: Order among the usable ones when none is named, the lowest first.
        virtual_time: Whether `create_vm_in_virtual_time` works.
    """

    name: str
    api_version: int
    summary: str
    rank: int = 100
    virtual_time: bool = False

    @abstractmethod
    def probe(self) -> str | None:
        """None if VMs can be made here, else one sentence saying why not and what would help."""

    @abstractmethod
    def create_vm(self) -> Vm:
        """Make an empty VM. Raises an `IrqChipError` that says what to do where `probe` says no."""

    def create_vm_in_virtual_time(self, clock: VirtualClock) -> Vm:
        """Make an empty VM whose clock is `clock`, and whose vCPUs do the same on every run if one thread runs them.

        They let `clock` elapse as they execute, and `run` returns `InterruptedExit` no later than at its next alarm.
        """
        raise Unsupported("its guests run in real time", subject=self.name)

    def try_create_vm(self, clock: VirtualClock | None = None) -> Vm | str:
        """Make an empty VM, with `clock` one in virtual time; or say in one sentence why not and what would help.

        A choice calls this. Override it where `probe` has to make a VM to answer, so that one VM is made and not two.
        """
        if clock is not None and not self.virtual_time:
            return "its guests run in real time, which never repeats; unicorn's can run in virtual time"
        refusal = self.probe()
        if refusal is not None:
            return refusal
        return self.create_vm() if clock is None else self.create_vm_in_virtual_time(clock)


@hookspec
def irqchip_backend() -> Backend:  # type: ignore[empty-body]
    """Offer a backend."""


@hookspec
def irqchip_hypervisor() -> Hypervisor:  # type: ignore[empty-body]
    """Offer a hypervisor."""


@hookspec
def irqchip_capabilities() -> Iterable[Capability]:  # type: ignore[empty-body]
    """Add capabilities that can be required of a chip, in code and on the command line, and that the kit checks."""


@hookspec
def irqchip_subcommand(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add a subcommand to the `irqchip` command.

    Call ``subparsers.add_parser(...)`` and ``parser.set_defaults(run=function)``, where the function takes
    the parsed arguments and returns the exit status. An `IrqChipError` it raises is shown as one message
    with status 2.
    """


@hookspec
def irqchip_created(chip: IrqChip) -> None:
    """A chip was made by `create_irqchip`."""


@hookspec
def irqchip_event_registered(chip: IrqChip, gsi: int, source: IrqEventSource, index: IrqEventIndex | None) -> None:
    """An event now drives `gsi`; `index` is None if the kernel waits for it itself."""


@hookspec
def irqchip_event_unregistered(chip: IrqChip, gsi: int) -> None:
    """An event of `gsi` was taken out."""


@hookspec
def irqchip_routes_changed(chip: IrqChip, routes: Iterable[IrqRoute]) -> None:
    """The routes of `chip` are now `routes`."""
