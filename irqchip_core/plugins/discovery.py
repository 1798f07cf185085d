"""Discovery: finds installed plugins by their entry points.

Each is loaded by itself. One that cannot be used is kept as a record with its reason, takes nothing else
down, and leaves nothing half registered. Choosing among the good ones is done in `selection`, how one is
imported within a time limit in `loading`.
"""

from __future__ import annotations

import functools
import importlib.metadata
import inspect
import re
from collections.abc import Callable, Iterable

from attrs import define, field

from irqchip_core.capabilities import AnyCapability, Capability, IrqChipCap
from irqchip_core.errors import DuplicateName, PluginError
from irqchip_core.hook_manager import HookManager
from irqchip_core.hookspecs import API_VERSION, Backend, Hypervisor
from irqchip_core.plugins.loading import run_with_timeout, time_limit
from irqchip_core.plugins.offers import BackendOffer, HypervisorOffer

ENTRY_POINT_GROUP = "irqchip"

NAME = re.compile(r"[a-z][a-z0-9_]*")
"""What the name of a backend or hypervisor is made of."""

_KINDS: dict[str, type[Backend | Hypervisor]] = {"irqchip_backend": Backend, "irqchip_hypervisor": Hypervisor}
"""What the hooks return that offer something."""
_CAPABILITIES = "irqchip_capabilities"
_METHODS: dict[str, dict[str, list[str]]] = {
    "irqchip_backend": {"probe": ["vm"], "create": ["vm", "vcpu_count"]},
    "irqchip_hypervisor": {"probe": [], "create_vm": []},
}
"""What is called on an offer, with the arguments it must take."""


@define
class PluginRecord:
    """One entry point of the group, good or bad.

    Attributes:
        name: Name of the entry point.
        module: What it points at.
        distribution: Name of the distribution it came with.
        version: Version of that distribution.
        backend, hypervisor: What it offers.
        capabilities: What it adds to those of `IrqChipCap`.
        error: Why it cannot be used; None if it can.
    """

    name: str
    module: str
    distribution: str
    version: str
    backend: BackendOffer | None = None
    hypervisor: HypervisorOffer | None = None
    capabilities: tuple[Capability, ...] = ()
    error: BaseException | None = None

    @property
    def origin(self) -> str:
        """What it is, for errors."""
        return f"entry point {self.name} ({self.module}) of {self.distribution} {self.version}"

    @property
    def key(self) -> str:
        """Its name with the pluggy manager."""
        return f"{self.distribution}:{self.name}"

    @property
    def reason(self) -> str:
        """`error` in one sentence."""
        if self.error is None or isinstance(self.error, PluginError):
            return str(self.error or "")
        lines = str(self.error).strip().splitlines()
        return ": ".join([type(self.error).__name__, *lines[:1]])


@define(eq=False)
class Plugins:
    """What `discover` found.

    Attributes:
        manager: All good plugins.
        records: All entry points found, by distribution and name.
        backends, hypervisors: What the good plugins offer, by name, the lowest rank first.
        capabilities: By name, those of `IrqChipCap` and those that the good plugins add.
    """

    manager: HookManager
    records: list[PluginRecord] = field(factory=list)
    backends: dict[str, Backend] = field(factory=dict)
    hypervisors: dict[str, Hypervisor] = field(factory=dict)
    capabilities: dict[str, AnyCapability] = field(factory=lambda: {one.value: one for one in IrqChipCap})

    def broken(self) -> list[PluginRecord]:
        """The records that have an error."""
        return [record for record in self.records if record.error is not None]


def discover(
    *,
    strict: bool = False,
    entry_points: Iterable[importlib.metadata.EntryPoint] | None = None,
    timeout: float | None = None,
) -> Plugins:
    """Load every plugin that is installed.

    Args:
        strict: Raise the first error instead of keeping it in its record.
        entry_points: What to load instead of what is installed.
        timeout: Seconds to wait for a plugin's import, and for each call of it; None for what
            IRQCHIP_PLUGIN_TIMEOUT says, or `loading.DEFAULT_SECONDS`.
    """
    seconds = time_limit() if timeout is None else timeout
    found = Plugins(HookManager())
    pairs = _installed_entry_points() if entry_points is None else [(_record(e), e) for e in entry_points]
    for record, entry_point in sorted(pairs, key=lambda pair: (pair[0].distribution, pair[0].name)):
        found.records.append(record)
        if entry_point is None:
            continue
        try:
            _load(found.manager, entry_point, record, seconds)
        except (Exception, SystemExit) as error:
            record.error = error
    _refuse_duplicates(found)
    if strict:
        for record in found.broken():
            assert record.error is not None
            raise PluginError(record.reason, subject=f"{record.distribution} {record.version}") from record.error
    good = [record for record in found.records if record.error is None]
    backends = [record.backend for record in good if record.backend is not None]
    hypervisors = [record.hypervisor for record in good if record.hypervisor is not None]
    found.backends = {backend.name: backend for backend in sorted(backends, key=_by_rank)}
    found.capabilities |= {one.value: one for record in good for one in record.capabilities}
    found.hypervisors = {hypervisor.name: hypervisor for hypervisor in sorted(hypervisors, key=_by_rank)}
    return found


def _by_rank(offer: BackendOffer | HypervisorOffer) -> tuple[int, str]:
    return offer.rank, offer.name


@functools.cache
def installed() -> Plugins:
    """What is installed, loaded once."""
    return discover()


_Pairs = list[tuple[PluginRecord, importlib.metadata.EntryPoint | None]]


def _installed_entry_points() -> _Pairs:
    try:
        return [(_record(e), e) for e in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)]
    except Exception:  # an entry_points.txt, of whatever distribution, is malformed: read them one at a time
        return _entry_points_by_distribution()


def _entry_points_by_distribution() -> _Pairs:
    pairs: _Pairs = []
    seen: set[str] = set()
    for distribution in importlib.metadata.distributions():
        name, version = _name_and_version(distribution)
        if name in seen:  # the first on sys.path is the one that is imported
            continue
        seen.add(name)
        try:
            pairs += [(_record(e), e) for e in distribution.entry_points.select(group=ENTRY_POINT_GROUP)]
        except Exception:
            if f"[{ENTRY_POINT_GROUP}]" in (distribution.read_text("entry_points.txt") or ""):
                error = PluginError("its entry_points.txt is malformed", remedy=f"reinstall {name}")
                pairs.append((PluginRecord(name, "unknown", name, version, error=error), None))
    return pairs


def _record(entry_point: importlib.metadata.EntryPoint) -> PluginRecord:
    return PluginRecord(entry_point.name, entry_point.value, *_name_and_version(entry_point.dist))


def _name_and_version(distribution: importlib.metadata.Distribution | None) -> tuple[str, str]:
    """Of a distribution whose metadata may be missing, as when it was removed by half."""
    try:
        if distribution is not None and distribution.name:
            return distribution.name, distribution.version or "unknown"
    except Exception:  # which one it is depends on the version of Python
        pass
    return "unknown", "unknown"


def _load(
    manager: HookManager, entry_point: importlib.metadata.EntryPoint, record: PluginRecord, seconds: float
) -> None:
    """Import one plugin and register its hooks: all of them or, if anything is wrong, none."""
    who = record.origin
    plugin = run_with_timeout(seconds, f"the import of {who}", entry_point.load)
    manager.register(plugin, name=record.key)
    try:
        for hook in _KINDS:
            for implementation in manager.implementations(hook, plugin):
                read = functools.partial(_read_offer, hook, implementation.function, who, seconds)
                setattr(record, hook.removeprefix("irqchip_"), run_with_timeout(seconds, f"{hook} of {who}", read))
        for implementation in manager.implementations(_CAPABILITIES, plugin):
            added = functools.partial(_read_capabilities, implementation.function)
            record.capabilities = run_with_timeout(seconds, f"{_CAPABILITIES} of {who}", added)
    except BaseException:
        record.backend = record.hypervisor = None
        record.capabilities = ()
        manager.unregister(plugin)
        raise


def _read_offer(
    hook: str, function: Callable[[], object], origin: str, seconds: float
) -> BackendOffer | HypervisorOffer:
    """What the implementation of a hook offers, all of it as it must be."""
    plugin, kind = function(), _KINDS[hook]
    if not isinstance(plugin, kind):
        raise PluginError(f"{hook} returned {plugin!r}", remedy=f"return an instance of {kind.__name__}")
    offer: BackendOffer | HypervisorOffer
    if isinstance(plugin, Backend):
        offer = BackendOffer(plugin, origin, seconds)
    else:
        offer = HypervisorOffer(plugin, origin, seconds)
    if offer.api_version != API_VERSION:
        raise PluginError(
            f"{offer.name or hook} was written for API version {offer.api_version}, this is version {API_VERSION}",
            remedy="install matching versions of the plugin and of irqchip-core",
        )
    _check_attributes(offer, type(plugin).__name__)
    for method, arguments in _METHODS[hook].items():
        try:
            inspect.signature(getattr(plugin, method)).bind(*arguments)
        except TypeError as error:
            raise PluginError(
                f"{method} of {type(plugin).__name__} does not fit: {error}",
                remedy=f"let it take ({', '.join(['self', *arguments])})",
            ) from None
    return offer


def _read_capabilities(function: Callable[[], object]) -> tuple[Capability, ...]:
    """What a plugin adds, all of it as it must be."""
    made = function()
    if not isinstance(made, Iterable):
        raise PluginError(f"{_CAPABILITIES} returned {made!r}", remedy="return a list of Capability")
    added = tuple(made)
    for one in added:
        if not isinstance(one, Capability):
            raise PluginError(f"{_CAPABILITIES} returned {one!r}", remedy="return a list of Capability")
        if not isinstance(one.value, str) or not NAME.fullmatch(one.value):
            raise PluginError(f"{one.value!r} is not a name", remedy="use lower case letters, digits and underscores")
        if not isinstance(one.meaning, str) or not one.meaning:
            raise PluginError(f"capability {one.value} has no meaning", remedy="give it one line of text")
        if not callable(one.has):
            raise PluginError(f"has of capability {one.value} is {one.has!r}", remedy="give a function of a chip")
    taken = [one.value for one in IrqChipCap]
    for number, one in enumerate(added):
        if one.value in taken or one in added[:number]:
            raise PluginError(f"capability {one.value} is there already", remedy="give it another name")
    return added


def _check_attributes(offer: BackendOffer | HypervisorOffer, kind: str) -> None:
    if not isinstance(offer.name, str) or not NAME.fullmatch(offer.name):
        raise PluginError(f"{offer.name!r} is not a name", remedy="use lower case letters, digits and underscores")
    if not isinstance(offer.summary, str):
        raise PluginError(f"{kind} has no summary", remedy="give it one line of text")
    if not isinstance(offer.rank, int):
        raise PluginError(f"the rank of {kind} is {offer.rank!r}", remedy="make it an integer")
    if isinstance(offer, BackendOffer):
        if not isinstance(offer.hypervisors, frozenset | None):
            raise PluginError(f"hypervisors of {kind} are {offer.hypervisors!r}", remedy="give a frozenset, or None")
        if not isinstance(offer.wrapper, bool):
            raise PluginError(f"wrapper of {kind} is {offer.wrapper!r}", remedy="say True or False")


def _refuse_duplicates(found: Plugins) -> None:
    """Refuse all plugins that offer one name: a choice by that name would be ambiguous."""
    owners: dict[tuple[str, str], list[PluginRecord]] = {}
    for record in found.records:
        for capability in record.capabilities:
            owners.setdefault(("capability", capability.value), []).append(record)
        for kind, offer in (("backend", record.backend), ("hypervisor", record.hypervisor)):
            if offer is not None:
                owners.setdefault((kind, offer.name), []).append(record)
    for (kind, name), records in owners.items():
        if len(records) > 1:
            who = " and ".join(f"{record.distribution} {record.version}" for record in records)
            for record in records:
                record.error = DuplicateName(
                    f"{kind} {name} is offered by {who}", remedy="uninstall all but one of them"
                )
                if (plugin := found.manager.get_plugin(record.key)) is not None:
                    found.manager.unregister(plugin)
