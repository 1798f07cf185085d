"""Empty VMs: of a hypervisor by name, of the first that is usable, or of several to choose among."""

from __future__ import annotations

import os
from typing import Self

from irqchip_core.clock import VirtualClock
from irqchip_core.errors import IrqChipError, NothingSuitable
from irqchip_core.hookspecs import Hypervisor
from irqchip_core.hypervisor.vcpu import Vm
from irqchip_core.plugins.discovery import Plugins, installed
from irqchip_core.plugins.lookup import named
from irqchip_core.plugins.offers import inside_a_backend

HYPERVISOR_VARIABLE = "IRQCHIP_HYPERVISOR"
"""Environment variable that names the hypervisor where the program does not."""


def asked_for(name: str | None, variable: str) -> tuple[str | None, str]:
    """The name that the program gives, or else the user in `variable`; and that variable if the user gave it.

    `variable` does not apply to VMs and chips that a backend makes inside its own `probe` or `create`.
    """
    if name is None and not inside_a_backend() and (value := os.environ.get(variable)):
        return value, variable
    return name, ""


def create_vm(
    name: str | None = None,
    *,
    clock: VirtualClock | None = None,
    plugins: Plugins | None = None,
) -> Vm:
    """Make an empty VM.

    Args:
        name: The hypervisor; without one, what `HYPERVISOR_VARIABLE` names, else the first that is usable in
            order of preference. `choose` makes one on which a chip fits.
        clock: Makes a VM in virtual time: the instructions of the guest advance this clock.
        plugins: Where to look instead of in what is installed.

    Raises:
        UnknownName: No installed plugin offers `name`.
        NothingSuitable: The one named, or none of all, can be used here; each with its reason.
    """
    plugins = installed() if plugins is None else plugins
    refusals = []
    asked, argument = asked_for(name, HYPERVISOR_VARIABLE)
    hypervisors = list(plugins.hypervisors.values())
    if asked is not None:
        hypervisors = [named(asked, plugins.hypervisors, "hypervisor", plugins, argument)]
    for hypervisor in hypervisors:
        vm = hypervisor.try_create_vm(clock)
        if not isinstance(vm, str):
            return vm
        refusals.append((hypervisor.name, vm))
    raise NothingSuitable(
        f"hypervisor {asked} cannot be used here" if asked else "no hypervisor can be used here",
        refusals=refusals,
        argument=argument,
        remedy="" if refusals else "pip install irqchip-kvm, for one",
    )


def find_hypervisor(name: str, *, plugins: Plugins | None = None) -> Hypervisor:
    """The hypervisor of that name. Raises `UnknownName`, or the reason its plugin is broken."""
    plugins = installed() if plugins is None else plugins
    return named(name, plugins.hypervisors, "hypervisor", plugins)


class Vms:
    """An empty VM of each hypervisor that is looked at; all are closed in the end, but those that are taken.

    Args:
        plugins: The hypervisors.
        virtual_time: Whether the VMs are to live in virtual time, each with a `VirtualClock`.
    """

    def __init__(self, plugins: Plugins, *, virtual_time: bool = False) -> None:
        self._plugins = plugins
        self._virtual_time = virtual_time
        self._made: dict[str, Vm | str] = {}

    def of(self, name: str) -> Vm | str:
        """The VM of that hypervisor, made at the first call; or the reason why there is none."""
        if name not in self._made:
            try:
                hypervisor = find_hypervisor(name, plugins=self._plugins)
                self._made[name] = hypervisor.try_create_vm(VirtualClock() if self._virtual_time else None)
            except IrqChipError as error:
                self._made[name] = str(error)
        return self._made[name]

    def missing(self, name: str) -> str | None:
        """The reason why there is no VM of that hypervisor; None if there is one."""
        vm = self.of(name)
        return vm if isinstance(vm, str) else None

    def take(self, name: str) -> Vm:
        """The VM of that hypervisor, which is the caller's to close from now on."""
        vm = self._made.pop(name)
        assert not isinstance(vm, str)
        return vm

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for vm in self._made.values():
            if not isinstance(vm, str):
                vm.close()
