"""Choice: the hypervisor and the chip by name, or by what they must be able to do.

Every candidate that does not fit has a reason, and the error that says so lists them all.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypeVar

from attrs import frozen

from irqchip_core.chip import IrqChip, IrqChipCap
from irqchip_core.clock import VirtualClock
from irqchip_core.errors import InvalidArgument, IrqChipError, NothingSuitable, PluginError, UnknownName, WrongType
from irqchip_core.events import IrqEventIndex, IrqEventSource
from irqchip_core.hookspecs import Backend, Hypervisor, Probe
from irqchip_core.observers import ChipObserver
from irqchip_core.plugins import Plugins, installed
from irqchip_core.routes import IrqRoute
from irqchip_core.vcpu import Vm

DISTRIBUTIONS: Mapping[str, Mapping[str, str]] = {
    "backend": {
        "kvm_kernel": "irqchip-kvm-kernel",
        "kvm_split": "irqchip-kvm-split",
        "userspace": "irqchip-userspace",
    },
    "hypervisor": {"kvm": "irqchip-kvm", "unicorn": "irqchip-unicorn"},
}
"""Where the names of this project come from, so that a missing one can be told how to be had."""

_Offer = TypeVar("_Offer", Backend, Hypervisor)


@frozen
class Candidate:
    """One backend, and whether it fits.

    Attributes:
        backend: The backend.
        probe: What it says of the VM.
        refusal: Why it does not fit, one sentence; None if it does.
    """

    backend: Backend
    probe: Probe
    refusal: str | None


def candidates(vm: Vm, *, require: Collection[IrqChipCap] = (), plugins: Plugins | None = None) -> list[Candidate]:
    """Every installed backend, in order of preference, judged for `vm`."""
    plugins = installed() if plugins is None else plugins
    return [judge(backend, vm, require) for backend in plugins.backends.values()]


def judge(backend: Backend, vm: Vm, require: Collection[IrqChipCap] = ()) -> Candidate:
    """Whether `backend` can make a chip for `vm` that has all the capabilities in `require`."""
    if backend.hypervisors is not None and vm.hypervisor not in backend.hypervisors:
        needed = " or ".join(sorted(backend.hypervisors))
        refusal = f"it needs a VM of hypervisor {needed}, not of {vm.hypervisor}"
        return Candidate(backend, Probe(refusal), refusal)
    try:
        probe = backend.probe(vm)
        if not isinstance(probe, Probe) or not isinstance(probe.refusal, str | None):
            raise TypeError(f"it answered {probe!r}")
        if not all(isinstance(capability, IrqChipCap) for capability in probe.capabilities):
            raise TypeError(f"its capabilities are {probe.capabilities!r}")
    except Exception as error:  # a plugin's fault must not keep the others from being chosen
        refusal = f"its probe failed with {type(error).__name__}: {error}"
        return Candidate(backend, Probe(refusal), refusal)
    if probe.refusal is not None:
        return Candidate(backend, probe, probe.refusal)
    if missing := set(require) - probe.capabilities:
        names = ", ".join(sorted(capability.value for capability in missing))
        return Candidate(backend, probe, f"it cannot do {names} on {vm.hypervisor}")
    return Candidate(backend, probe, None)


def create_irqchip(
    name: str | None = None,
    *,
    vm: Vm,
    vcpu_count: int = 1,
    require: Collection[IrqChipCap] = (),
    plugins: Plugins | None = None,
) -> IrqChip:
    """Make the interrupt chip of `vm`, after its memory and before its first vCPU.

    Args:
        name: The backend; without one, the first that fits in order of preference.
        vm: The VM, which has no chip yet.
        vcpu_count: How many vCPUs it will have at most, 1 or more.
        require: What the chip must be able to do.
        plugins: Where to look instead of in what is installed.

    Raises:
        UnknownName: No installed plugin offers `name`.
        NothingSuitable: The one named, or none of all, can serve this VM; each with its reason.
        InvalidArgument: `vcpu_count` is below 1.
        IrqChipError: The chip could not be made; the VM is to be closed.
    """
    if wrong := [one for one in require if not isinstance(one, IrqChipCap)]:
        raise WrongType(f"{wrong[0]!r} is no capability", argument="require", remedy="give members of IrqChipCap")
    if not isinstance(vcpu_count, int) or vcpu_count < 1:
        raise InvalidArgument(f"a VM has 1 vCPU or more, not {vcpu_count}", argument="vcpu_count")
    plugins = installed() if plugins is None else plugins
    if name is None:
        judged = candidates(vm, require=require, plugins=plugins)
    else:
        judged = [judge(find_backend(name, plugins=plugins), vm, require)]
    chosen = next((candidate for candidate in judged if candidate.refusal is None), None)
    if chosen is None:
        raise NothingSuitable(
            f"backend {name} does not fit"
            if name is not None
            else "no installed backend fits"
            if judged
            else "no backend is installed",
            refusals=((candidate.backend.name, candidate.refusal or "") for candidate in judged),
            remedy="" if judged else "pip install irqchip-kvm-kernel, for one",
        )
    chip: IrqChip = _made_by(chosen.backend, lambda: chosen.backend.create(vm, vcpu_count), IrqChip)
    chip.observers.add(_HookCaller(plugins))
    chip.observers.chip_created(chip)
    return chip


def create_vm(
    name: str | None = None,
    *,
    backend: str | None = None,
    clock: VirtualClock | None = None,
    plugins: Plugins | None = None,
) -> Vm:
    """Make an empty VM.

    Args:
        name: The hypervisor; without one, the first that is usable in order of preference.
        backend: Which chip the VM is for; without a `name`, only hypervisors that it can serve are considered.
        clock: For a VM whose guest lives in virtual time: what it executes moves this clock on.
        plugins: Where to look instead of in what is installed.

    Raises:
        UnknownName: No installed plugin offers `name` or `backend`.
        NothingSuitable: The one named, or none of all, can be used here; each with its reason.
    """
    plugins = installed() if plugins is None else plugins
    refusals = []
    for hypervisor in hypervisor_candidates(name, backend=backend, plugins=plugins):
        refusal = usable(hypervisor, virtual_time=clock is not None)
        if refusal is None:
            make = hypervisor.create_vm
            if clock is not None:
                make = functools.partial(hypervisor.create_vm_in_virtual_time, clock)
            vm: Vm = _made_by(hypervisor, make, Vm)
            return vm
        refusals.append((hypervisor.name, refusal))
    purpose = f" for {backend}" if backend is not None and name is None else ""
    raise NothingSuitable(
        f"hypervisor {name} cannot be used here" if name else f"no hypervisor can be used here{purpose}",
        refusals=refusals,
        remedy="" if refusals else "pip install irqchip-kvm, for one",
    )


def hypervisor_candidates(
    name: str | None = None, *, backend: str | None = None, plugins: Plugins | None = None
) -> list[Hypervisor]:
    """The hypervisors that `create_vm` tries, in its order. Raises `UnknownName`."""
    plugins = installed() if plugins is None else plugins
    served = None if backend is None else find_backend(backend, plugins=plugins).hypervisors
    if name is not None:
        return [find_hypervisor(name, plugins=plugins)]
    return [one for one in plugins.hypervisors.values() if served is None or one.name in served]


def _made_by(maker: Backend | Hypervisor, make: Callable[[], Any], kind: type[Any]) -> Any:
    """What a plugin makes; whatever it raises or returns by mistake is a `PluginError` with its name."""
    try:
        made = make()
    except IrqChipError:
        raise
    except Exception as error:
        raise PluginError(f"it failed with {type(error).__name__}: {error}", subject=maker.name) from error
    if not isinstance(made, kind):
        raise PluginError(f"it made {made!r}, which is no {kind.__name__}", subject=maker.name)
    return made


def usable(hypervisor: Hypervisor, *, virtual_time: bool = False) -> str | None:
    """None if `hypervisor` can be used here (for guests in virtual time, if they are wanted), else why not."""
    if virtual_time and not hypervisor.virtual_time:
        return "its guests run in real time, which never repeats; unicorn's can run in virtual time"
    try:
        return hypervisor.probe()
    except Exception as error:  # as in judge()
        return f"its probe failed with {type(error).__name__}: {error}"


def find_backend(name: str, *, plugins: Plugins | None = None) -> Backend:
    """The backend of that name. Raises `UnknownName`, or the reason its plugin is broken."""
    plugins = installed() if plugins is None else plugins
    return _named(name, plugins.backends, "backend", plugins)


def find_hypervisor(name: str, *, plugins: Plugins | None = None) -> Hypervisor:
    """The hypervisor of that name; raises as `find_backend` does."""
    plugins = installed() if plugins is None else plugins
    return _named(name, plugins.hypervisors, "hypervisor", plugins)


def _named(name: str, offers: Mapping[str, _Offer], kind: str, plugins: Plugins) -> _Offer:
    if name in offers:
        return offers[name]
    for record in plugins.broken():
        offered = record.backend if kind == "backend" else record.hypervisor
        if name in (record.name, offered.name if offered else None) and isinstance(record.error, IrqChipError):
            raise record.error
        if name == record.name:
            raise UnknownName(
                f"{kind} {name} is broken: {record.reason}",
                name=name,
                remedy=f"repair or reinstall {record.distribution} {record.version}",
            )
    known = DISTRIBUTIONS[kind]
    other_kind, others = ("hypervisor", plugins.hypervisors) if kind == "backend" else ("backend", plugins.backends)
    suggestion = next(iter(difflib.get_close_matches(name, offers, n=1)), None)
    near = next(iter(difflib.get_close_matches(name, known, n=1)), None)
    if name in known:
        remedy = f"pip install {known[name]}"
    elif name in others:
        remedy = f"{name} is a {other_kind}"
    elif suggestion is not None:
        remedy = f"did you mean {suggestion}?"
    elif near is not None:
        remedy = f"did you mean {near}? (pip install {known[near]})"
    else:
        remedy = f"installed: {', '.join(offers) or 'none'}"
    raise UnknownName(f"no {kind} is called {name!r}", name=name, suggestion=suggestion, remedy=remedy)


class _HookCaller(ChipObserver):
    """Passes a chip's life on to the hooks of all plugins."""

    def __init__(self, plugins: Plugins) -> None:
        self._hook = plugins.manager.hook

    def chip_created(self, chip: IrqChip) -> None:
        self._hook.irqchip_created(chip=chip)

    def event_registered(self, chip: IrqChip, gsi: int, source: IrqEventSource, index: IrqEventIndex | None) -> None:
        self._hook.irqchip_event_registered(chip=chip, gsi=gsi, source=source, index=index)

    def event_unregistered(self, chip: IrqChip, gsi: int) -> None:
        self._hook.irqchip_event_unregistered(chip=chip, gsi=gsi)

    def routes_changed(self, chip: IrqChip, routes: Iterable[IrqRoute]) -> None:
        self._hook.irqchip_routes_changed(chip=chip, routes=routes)
