"""Choice: the hypervisor and the chip by name, by what they must be able to do, or by preference.

Every candidate that does not fit has a reason, and the error that says so lists them all.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Collection, Generator, Iterator
from typing import Any

from attrs import evolve, frozen

from irqchip_core.arguments import check_type
from irqchip_core.chip import IrqChip, IrqChipCap
from irqchip_core.clock import VirtualClock
from irqchip_core.errors import InvalidArgument, IrqChipError, NothingSuitable, PluginError, WrongType
from irqchip_core.hook_caller import HookCaller
from irqchip_core.hookspecs import Backend, Hypervisor, Probe
from irqchip_core.lookup import absent, named
from irqchip_core.plugins import Plugins, installed
from irqchip_core.vcpu import Vm

BACKEND_VARIABLE = "IRQCHIP_BACKEND"
HYPERVISOR_VARIABLE = "IRQCHIP_HYPERVISOR"
"""Environment variables that name what the program does not name."""

_WRAPS = "it wraps another chip, and is taken only by name"


@frozen
class Candidate:
    """One backend on a VM of one hypervisor, and whether it fits.

    Attributes:
        backend: The backend.
        hypervisor: Name of the hypervisor.
        probe: What the backend says of the VM.
        refusal: Why it does not fit, one sentence; None if it does.
    """

    backend: Backend
    hypervisor: str
    probe: Probe
    refusal: str | None


def candidates(
    vm: Vm, *, require: Collection[IrqChipCap] = (), prefer: Collection[str] = (), plugins: Plugins | None = None
) -> list[Candidate]:
    """Every installed backend, in order of preference, judged for `vm` by someone who names none but in `prefer`."""
    plugins = installed() if plugins is None else plugins
    judged = [_judge_unasked(backend, vm, require, prefer) for backend in plugins.backends.values()]
    return sorted(judged, key=lambda candidate: _place(candidate.backend, prefer))


def judge(backend: Backend, vm: Vm, require: Collection[IrqChipCap] = ()) -> Candidate:
    """Whether `backend` can make a chip for `vm` that has all the capabilities in `require`."""
    if backend.hypervisors is not None and vm.hypervisor not in backend.hypervisors:
        needed = " or ".join(sorted(backend.hypervisors))
        return _refused(backend, vm.hypervisor, f"it needs a VM of hypervisor {needed}, not of {vm.hypervisor}")
    try:
        probe = backend.probe(vm)
        if not isinstance(probe, Probe) or not isinstance(probe.refusal, str | None):
            raise TypeError(f"it answered {probe!r}")
        if not all(isinstance(capability, IrqChipCap) for capability in probe.capabilities):
            raise TypeError(f"its capabilities are {probe.capabilities!r}")
    except Exception as error:  # a plugin's fault must not keep the others from being chosen
        return _refused(backend, vm.hypervisor, f"its probe failed with {type(error).__name__}: {error}")
    refusal = probe.refusal
    if refusal is None and (missing := set(require) - probe.capabilities):
        names = ", ".join(sorted(capability.value for capability in missing))
        refusal = f"it cannot do {names} on {vm.hypervisor}"
    return Candidate(backend, vm.hypervisor, probe, refusal)


def _refused(backend: Backend, hypervisor: str, refusal: str) -> Candidate:
    return Candidate(backend, hypervisor, Probe(refusal), refusal)


def _judge_unasked(backend: Backend, vm: Vm, require: Collection[IrqChipCap], prefer: Collection[str]) -> Candidate:
    candidate = judge(backend, vm, require)
    if candidate.refusal is None and backend.wrapper and backend.name not in prefer:
        return evolve(candidate, refusal=_WRAPS)
    return candidate


def _place(backend: Backend, prefer: Collection[str]) -> int:
    """Its place among the preferred; those that are not come after them all."""
    return next((place for place, name in enumerate(prefer) if name == backend.name), len(prefer))


def survey(
    name: str | None = None,
    *,
    hypervisor: str | None = None,
    require: Collection[IrqChipCap] = (),
    prefer: Collection[str] = (),
    virtual_time: bool = False,
    plugins: Plugins | None = None,
) -> list[Candidate]:
    """What `select` chooses among, in the order in which it is taken, each judged on a real VM.

    Arguments and errors are those of `select`, which takes the first that fits.
    """
    with contextlib.closing(_survey(name, hypervisor, require, prefer, virtual_time, plugins)) as judged:
        return list(judged)


def select(
    name: str | None = None,
    *,
    hypervisor: str | None = None,
    require: Collection[IrqChipCap] = (),
    prefer: Collection[str] = (),
    virtual_time: bool = False,
    plugins: Plugins | None = None,
) -> Candidate:
    """Choose a chip and the hypervisor for it, before there is a VM.

    Preferred chips come first, on whichever hypervisor; among equals the hypervisor of lower rank, then the
    backend of lower rank.

    Args:
        name: The backend; without one, what `BACKEND_VARIABLE` names, else the first that fits.
        hypervisor: The hypervisor; without one, what `HYPERVISOR_VARIABLE` names, else any.
        require: What the chip must be able to do.
        prefer: Names of backends to be tried before others; those that are not installed are passed over.
        virtual_time: Whether the guest is to live in virtual time.
        plugins: Where to look instead of in what is installed.

    Raises:
        UnknownName: No installed plugin offers `name` or `hypervisor`.
        NothingSuitable: None fits; each with its reason.
        WrongType: An argument is no collection of capabilities, or of names.
    """
    plugins = installed() if plugins is None else plugins
    refused = []
    with contextlib.closing(_survey(name, hypervisor, require, prefer, virtual_time, plugins)) as judged:
        for candidate in judged:
            if candidate.refusal is None:
                return candidate
            refused.append((f"{candidate.backend.name} on {candidate.hypervisor}", candidate.refusal))
    asked, argument = asked_for(name, BACKEND_VARIABLE)
    raise _nothing(asked, argument, [*refused, *absent(prefer, plugins)], plugins)


def _survey(
    name: str | None,
    hypervisor: str | None,
    require: Collection[IrqChipCap],
    prefer: Collection[str],
    virtual_time: bool,
    plugins: Plugins | None,
) -> Generator[Candidate]:
    plugins = installed() if plugins is None else plugins
    _check_wishes(require, prefer)
    asked, argument = asked_for(name, BACKEND_VARIABLE)
    backends = list(plugins.backends.values())
    if asked is not None:
        backends = [named(asked, plugins.backends, "backend", plugins, argument)]
        prefer = [asked]
    only, argument = asked_for(hypervisor, HYPERVISOR_VARIABLE)
    if only is not None:
        named(only, plugins.hypervisors, "hypervisor", plugins, argument)
    order = [only] if only is not None else list(plugins.hypervisors)
    pairs = [(place, backend) for place in order for backend in backends if only or _could_serve(backend, place)]
    for backend in backends:
        if only is None and backend.hypervisors is not None and not backend.hypervisors & set(order):
            pairs += [(missing, backend) for missing in sorted(backend.hypervisors)]
    with vms(plugins, virtual_time=virtual_time) as vm_of:
        for place, backend in sorted(pairs, key=lambda pair: _place(pair[1], prefer)):
            vm = vm_of(place)
            if isinstance(vm, str):
                yield _refused(backend, place, vm)
            else:
                yield _judge_unasked(backend, vm, require, prefer)


def _could_serve(backend: Backend, hypervisor: str) -> bool:
    return backend.hypervisors is None or hypervisor in backend.hypervisors


@contextlib.contextmanager
def vms(plugins: Plugins, *, virtual_time: bool = False) -> Iterator[Callable[[str], Vm | str]]:
    """Gives a function from the name of a hypervisor to an empty VM of it, or to the reason why there is none.

    Each VM is made when it is first asked for, and closed in the end.
    """
    made: dict[str, Vm | str] = {}

    def vm_of(name: str) -> Vm | str:
        if name not in made:
            try:
                made[name] = create_vm(name, clock=VirtualClock() if virtual_time else None, plugins=plugins)
            except NothingSuitable as error:
                made[name] = error.refusals[0][1]
            except IrqChipError as error:
                made[name] = str(error)
        return made[name]

    try:
        yield vm_of
    finally:
        for vm in made.values():
            if not isinstance(vm, str):
                vm.close()


def create_irqchip(
    name: str | None = None,
    *,
    vm: Vm,
    vcpu_count: int = 1,
    require: Collection[IrqChipCap] = (),
    prefer: Collection[str] = (),
    plugins: Plugins | None = None,
) -> IrqChip:
    """Make the interrupt chip of `vm`, after its memory and before its first vCPU.

    Args:
        name: The backend; without one, what `BACKEND_VARIABLE` names, else the first that fits.
        vm: The VM, which has no chip yet.
        vcpu_count: How many vCPUs it will have at most, 1 or more.
        require: What the chip must be able to do.
        prefer: Names of backends to be tried before others; those that are not installed are passed over.
        plugins: Where to look instead of in what is installed.

    Raises:
        UnknownName: No installed plugin offers `name`.
        NothingSuitable: The one named, or none of all, can serve this VM; each with its reason.
        InvalidArgument: `vcpu_count` is below 1.
        WrongType: An argument is no collection of capabilities, or of names.
        IrqChipError: The chip could not be made; the VM is to be closed.
    """
    _check_wishes(require, prefer)
    if not isinstance(vcpu_count, int) or vcpu_count < 1:
        raise InvalidArgument(f"a VM has 1 vCPU or more, not {vcpu_count}", argument="vcpu_count")
    plugins = installed() if plugins is None else plugins
    asked, argument = asked_for(name, BACKEND_VARIABLE)
    if asked is None:
        judged = candidates(vm, require=require, prefer=prefer, plugins=plugins)
    else:
        judged = [judge(named(asked, plugins.backends, "backend", plugins, argument), vm, require)]
    chosen = next((candidate for candidate in judged if candidate.refusal is None), None)
    if chosen is None:
        refused = [(candidate.backend.name, candidate.refusal or "") for candidate in judged]
        raise _nothing(asked, argument, [*refused, *absent(prefer, plugins)], plugins)
    chip: IrqChip = _made_by(chosen.backend, lambda: chosen.backend.create(vm, vcpu_count), IrqChip)
    chip.observers.add(HookCaller(plugins.manager))
    chip.observers.chip_created(chip)
    return chip


def _check_wishes(require: Collection[IrqChipCap], prefer: Collection[str]) -> None:
    if isinstance(prefer, str):  # a collection, but of letters
        raise WrongType(f"{prefer!r} is one name", argument="prefer", remedy="give a list of names")
    for name in prefer:
        check_type(name, str, subject="", argument="prefer")
    if wrong := [one for one in require if not isinstance(one, IrqChipCap)]:
        raise WrongType(f"{wrong[0]!r} is no capability", argument="require", remedy="give members of IrqChipCap")


def asked_for(name: str | None, variable: str) -> tuple[str | None, str]:
    """What the program asks for or else the user, in `variable`; and that variable if it was the user."""
    if name is None and (value := os.environ.get(variable)):
        return value, variable
    return name, ""


def _nothing(name: str | None, argument: str, refusals: list[tuple[str, str]], plugins: Plugins) -> NothingSuitable:
    if name is not None:
        problem, remedy = f"backend {name} does not fit", ""
    elif not plugins.backends:
        problem, remedy = "no backend is installed", "pip install irqchip-kvm-kernel, for one"
    elif not refusals:
        problem, remedy = "no hypervisor is installed", "pip install irqchip-kvm, for one"
    else:
        problem, remedy = "no installed backend fits", ""
    return NothingSuitable(problem, refusals=refusals, argument=argument, remedy=remedy)


def create_vm(
    name: str | None = None,
    *,
    backend: str | None = None,
    clock: VirtualClock | None = None,
    plugins: Plugins | None = None,
) -> Vm:
    """Make an empty VM.

    Args:
        name: The hypervisor; without one, what `HYPERVISOR_VARIABLE` names, else the first that is usable in
            order of preference. `select` finds one on which a chip fits.
        backend: Which chip the VM is for; without a `name`, only hypervisors that it can serve are considered.
        clock: For a VM whose guest lives in virtual time: what it executes moves this clock on.
        plugins: Where to look instead of in what is installed.

    Raises:
        UnknownName: No installed plugin offers `name` or `backend`.
        NothingSuitable: The one named, or none of all, can be used here; each with its reason.
    """
    plugins = installed() if plugins is None else plugins
    refusals = []
    asked, argument = asked_for(name, HYPERVISOR_VARIABLE)
    for hypervisor in hypervisor_candidates(name, backend=backend, plugins=plugins):
        refusal = usable(hypervisor, virtual_time=clock is not None)
        if refusal is None:
            make = hypervisor.create_vm
            if clock is not None:
                make = functools.partial(hypervisor.create_vm_in_virtual_time, clock)
            vm: Vm = _made_by(hypervisor, make, Vm)
            return vm
        refusals.append((hypervisor.name, refusal))
    purpose = f" for {backend}" if backend is not None else ""
    raise NothingSuitable(
        f"hypervisor {asked} cannot be used here" if asked else f"no hypervisor can be used here{purpose}",
        refusals=refusals,
        argument=argument,
        remedy="" if refusals else "pip install irqchip-kvm, for one",
    )


def hypervisor_candidates(
    name: str | None = None, *, backend: str | None = None, plugins: Plugins | None = None
) -> list[Hypervisor]:
    """The hypervisors that `create_vm` tries, in its order. Raises `UnknownName`."""
    plugins = installed() if plugins is None else plugins
    served = None if backend is None else find_backend(backend, plugins=plugins).hypervisors
    asked, argument = asked_for(name, HYPERVISOR_VARIABLE)
    if asked is not None:
        return [named(asked, plugins.hypervisors, "hypervisor", plugins, argument)]
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
    return named(name, plugins.backends, "backend", plugins)


def find_hypervisor(name: str, *, plugins: Plugins | None = None) -> Hypervisor:
    """The hypervisor of that name; raises as `find_backend` does."""
    plugins = installed() if plugins is None else plugins
    return named(name, plugins.hypervisors, "hypervisor", plugins)
