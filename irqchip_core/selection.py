"""Choice: the hypervisor and the chip by name, by what they must be able to do, or by preference.

Every candidate that does not fit has a reason, and the error that says so lists them all.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from attrs import evolve, frozen

from irqchip_core.arguments import check_type
from irqchip_core.capabilities import AnyCapability
from irqchip_core.chip import IrqChip
from irqchip_core.errors import InvalidArgument, NothingSuitable, WrongType
from irqchip_core.hookspecs import Backend, Probe, irqchip_created
from irqchip_core.hypervisor.vcpu import Vm
from irqchip_core.plugins.discovery import Plugins, installed
from irqchip_core.plugins.loading import run_in_time
from irqchip_core.plugins.lookup import absent, named
from irqchip_core.plugins.offers import BackendOffer, inside_a_backend
from irqchip_core.plugins.vms import HYPERVISOR_VARIABLE, Vms, asked_for, create_vm, find_hypervisor

__all__ = [
    "BACKEND_VARIABLE",
    "HYPERVISOR_VARIABLE",
    "Candidate",
    "Choice",
    "asked_for",
    "backend_reason",
    "candidates",
    "choose",
    "create_irqchip",
    "create_vm",
    "find_backend",
    "find_hypervisor",
    "judge",
    "select",
    "survey",
]

BACKEND_VARIABLE = "IRQCHIP_BACKEND"
"""Environment variable that names the backend where the program does not."""

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


@frozen
class Choice:
    """A backend that fits, on a VM made for it, and how it came to be chosen.

    Attributes:
        candidate: The backend.
        vm: The VM, empty. It is the caller's to close.
        backend_reason, hypervisor_reason: Why this one, a few words.
        passed_over: The hypervisors that come before it, each with the reason why it was not taken.
    """

    candidate: Candidate
    vm: Vm
    backend_reason: str
    hypervisor_reason: str
    passed_over: Mapping[str, str]
    _plugins: Plugins

    def create(self, vcpu_count: int = 1) -> IrqChip:
        """Make the chip, as `create_irqchip` does."""
        return _create(self.candidate.backend, self.vm, vcpu_count, self._plugins)


def candidates(
    vm: Vm,
    *,
    name: str | None = None,
    require: Collection[AnyCapability] = (),
    prefer: Collection[str] = (),
    plugins: Plugins | None = None,
) -> list[Candidate]:
    """What `create_irqchip` chooses among, in the order in which it is taken, each judged for `vm`.

    Arguments are those of `create_irqchip`, which takes the first that fits.
    """
    plugins = installed() if plugins is None else plugins
    return list(_candidates(name, vm, require, prefer, plugins, probe_all=True))


def _candidates(
    name: str | None,
    vm: Vm,
    require: Collection[AnyCapability],
    prefer: Collection[str],
    plugins: Plugins,
    *,
    probe_all: bool = False,
) -> Iterator[Candidate]:
    backends, prefer = _offered(name, prefer, plugins)
    for backend in sorted(backends, key=lambda backend: _place(backend, prefer)):
        yield _judge_unasked(backend, vm, require, prefer, probe_all)


def _offered(name: str | None, prefer: Collection[str], plugins: Plugins) -> tuple[list[Backend], Collection[str]]:
    """The backends to choose among, and the names of those that come first: the one that is asked for, or `prefer`."""
    asked, argument = asked_for(name, BACKEND_VARIABLE)
    if asked is not None:
        return [named(asked, plugins.backends, "backend", plugins, argument)], [asked]
    offered = plugins.backends.values()
    if inside_a_backend():  # which wraps one itself: wrappers that probe each other never end
        return [backend for backend in offered if not backend.wrapper or backend.name in prefer], prefer
    return [*offered], prefer


def judge(backend: Backend, vm: Vm, require: Collection[AnyCapability] = ()) -> Candidate:
    """Whether `backend` can make a chip for `vm` that has all the capabilities in `require`."""
    offer = _offer(backend)
    if offer.hypervisors is not None and vm.hypervisor not in offer.hypervisors:
        needed = " or ".join(sorted(offer.hypervisors))
        return _refused(offer, vm.hypervisor, f"it needs a VM of hypervisor {needed}, not of {vm.hypervisor}")
    probe = offer.probe(vm)
    refusal = probe.refusal
    if refusal is None and (missing := set(require) - probe.capabilities):
        names = ", ".join(sorted(capability.value for capability in missing))
        refusal = f"it lacks {names} on {vm.hypervisor}"
    return Candidate(offer, vm.hypervisor, probe, refusal)


def _offer(backend: Backend) -> BackendOffer:
    return backend if isinstance(backend, BackendOffer) else BackendOffer(backend)


def _refused(backend: Backend, hypervisor: str, refusal: str) -> Candidate:
    return Candidate(backend, hypervisor, Probe(refusal), refusal)


def _judge_unasked(
    backend: Backend, vm: Vm, require: Collection[AnyCapability], prefer: Collection[str], probe_all: bool
) -> Candidate:
    """`probe_all`: probe wrappers too that are not preferred, to show what they can do."""
    if not backend.wrapper or backend.name in prefer:
        return judge(backend, vm, require)
    if not probe_all:
        return _refused(backend, vm.hypervisor, _WRAPS)
    candidate = judge(backend, vm, require)
    return candidate if candidate.refusal is not None else evolve(candidate, refusal=_WRAPS)


def _place(backend: Backend, prefer: Collection[str]) -> int:
    """Its place among the preferred; those that are not come after them all."""
    return next((place for place, name in enumerate(prefer) if name == backend.name), len(prefer))


def survey(
    name: str | None = None,
    *,
    hypervisor: str | None = None,
    require: Collection[AnyCapability] = (),
    prefer: Collection[str] = (),
    virtual_time: bool = False,
    plugins: Plugins | None = None,
) -> list[Candidate]:
    """What `choose` chooses among, in the order in which it is taken, each judged on a real VM.

    Arguments and errors are those of `choose`, which takes the first that fits.
    """
    plugins = installed() if plugins is None else plugins
    with Vms(plugins, virtual_time=virtual_time) as found:
        return list(_survey(name, hypervisor, require, prefer, plugins, found, probe_all=True))


def select(
    name: str | None = None,
    *,
    hypervisor: str | None = None,
    require: Collection[AnyCapability] = (),
    prefer: Collection[str] = (),
    virtual_time: bool = False,
    plugins: Plugins | None = None,
) -> Candidate:
    """What `choose` chooses with the same arguments and errors, without a VM."""
    chosen = choose(
        name, hypervisor=hypervisor, require=require, prefer=prefer, virtual_time=virtual_time, plugins=plugins
    )
    chosen.vm.close()
    return chosen.candidate


def choose(
    name: str | None = None,
    *,
    hypervisor: str | None = None,
    require: Collection[AnyCapability] = (),
    prefer: Collection[str] = (),
    virtual_time: bool = False,
    plugins: Plugins | None = None,
) -> Choice:
    """Choose a chip and the hypervisor for it, and make the VM.

    Preferred chips come first, on whichever hypervisor; among equals the hypervisor of lower rank, then the
    backend of lower rank.

    Args:
        name: The backend; without one, what `BACKEND_VARIABLE` names, else the first that fits.
        hypervisor: The hypervisor; without one, what `HYPERVISOR_VARIABLE` names, else any.
        require: What the chip must be able to do.
        prefer: Names of backends to be tried before others; those that are not installed are passed over.
        virtual_time: Whether the guest is to live in virtual time; then the VM has a `VirtualClock`.
        plugins: Where to look instead of in what is installed.

    Raises:
        UnknownName: No installed plugin offers `name` or `hypervisor`.
        NothingSuitable: None fits; each with its reason.
        WrongType: An argument is no collection of capabilities, or of names.
    """
    plugins = installed() if plugins is None else plugins
    refused: list[Candidate] = []
    with Vms(plugins, virtual_time=virtual_time) as found:
        for candidate in _survey(name, hypervisor, require, prefer, plugins, found):
            if candidate.refusal is not None:
                refused.append(candidate)
                continue
            return Choice(
                candidate,
                found.take(candidate.hypervisor),
                backend_reason(name, candidate, prefer),
                _reason(hypervisor, HYPERVISOR_VARIABLE, "the first on which it fits"),
                {
                    one.hypervisor: found.missing(one.hypervisor) or "no chip fits there"
                    for one in refused
                    if one.hypervisor != candidate.hypervisor
                },
                plugins,
            )
    refusals = [(f"{one.backend.name} on {one.hypervisor}", one.refusal or "") for one in refused]
    asked, argument = asked_for(name, BACKEND_VARIABLE)
    raise _nothing(asked, argument, [*refusals, *absent(prefer, plugins)], plugins)


def backend_reason(name: str | None, chosen: Candidate, prefer: Collection[str] = ()) -> str:
    """Why a choice of `name` and with `prefer` took this backend, a few words."""
    return _reason(name, BACKEND_VARIABLE, "preferred" if chosen.backend.name in prefer else "the first that fits")


def _reason(name: str | None, variable: str, unasked: str) -> str:
    asked, by_user = asked_for(name, variable)
    return f"{by_user} names it" if by_user else "asked for" if asked is not None else unasked


def _survey(
    name: str | None,
    hypervisor: str | None,
    require: Collection[AnyCapability],
    prefer: Collection[str],
    plugins: Plugins,
    found: Vms,
    *,
    probe_all: bool = False,
) -> Iterator[Candidate]:
    _check_wishes(require, prefer)
    backends, prefer = _offered(name, prefer, plugins)
    only, argument = asked_for(hypervisor, HYPERVISOR_VARIABLE)
    if only is not None:
        named(only, plugins.hypervisors, "hypervisor", plugins, argument)
    order = [only] if only is not None else list(plugins.hypervisors)
    pairs = [(place, backend) for place in order for backend in backends if only or _could_serve(backend, place)]
    for backend in backends:
        if only is None and backend.hypervisors is not None and not backend.hypervisors & set(order):
            pairs += [(missing, backend) for missing in sorted(backend.hypervisors)]
    for place, backend in sorted(pairs, key=lambda pair: _place(pair[1], prefer)):
        vm = found.of(place)
        if isinstance(vm, str):
            yield _refused(backend, place, vm)
        else:
            yield _judge_unasked(backend, vm, require, prefer, probe_all)


def _could_serve(backend: Backend, hypervisor: str) -> bool:
    return backend.hypervisors is None or hypervisor in backend.hypervisors


def create_irqchip(
    name: str | None = None,
    *,
    vm: Vm,
    vcpu_count: int = 1,
    require: Collection[AnyCapability] = (),
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
    _check_count(vcpu_count)
    plugins = installed() if plugins is None else plugins
    refused = []
    for candidate in _candidates(name, vm, require, prefer, plugins):
        if candidate.refusal is None:
            return _create(candidate.backend, vm, vcpu_count, plugins)
        refused.append((candidate.backend.name, candidate.refusal))
    asked, argument = asked_for(name, BACKEND_VARIABLE)
    raise _nothing(asked, argument, [*refused, *absent(prefer, plugins)], plugins)


def _create(backend: Backend, vm: Vm, vcpu_count: int, plugins: Plugins) -> IrqChip:
    _check_count(vcpu_count)
    chip = backend.create(vm, vcpu_count)
    chip.observers.add_plugins(plugins.manager, run_in_time)
    chip.observers.notify(irqchip_created, chip=chip)
    return chip


def _check_count(vcpu_count: int) -> None:
    if not isinstance(vcpu_count, int) or vcpu_count < 1:
        raise InvalidArgument(f"a VM has 1 vCPU or more, not {vcpu_count}", argument="vcpu_count")


def _check_wishes(require: Collection[AnyCapability], prefer: Collection[str]) -> None:
    if isinstance(prefer, str):  # a collection, but of letters
        raise WrongType(f"{prefer!r} is one name", argument="prefer", remedy="give a list of names")
    for name in prefer:
        check_type(name, str, subject="", argument="prefer")
    if wrong := [one for one in require if not isinstance(one, AnyCapability)]:
        raise WrongType(
            f"{wrong[0]!r} is no capability", argument="require", remedy="give members of IrqChipCap, or a plugin's"
        )


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


def find_backend(name: str, *, plugins: Plugins | None = None) -> Backend:
    """The backend of that name. Raises `UnknownName`, or the reason its plugin is broken."""
    plugins = installed() if plugins is None else plugins
    return named(name, plugins.backends, "backend", plugins)
