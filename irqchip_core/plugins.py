"""Discovery: finds installed plugins by their entry points.

Each is loaded by itself. One that cannot be used is kept as a record with its reason, takes nothing else
down, and leaves nothing half registered. Choosing among the good ones is done in `selection`.
"""

from __future__ import annotations

import functools
import importlib.metadata
import re
from collections.abc import Iterable
from typing import Any

import pluggy
from attrs import define, field

from irqchip_core import hookspecs
from irqchip_core.errors import DuplicateName, PluginError
from irqchip_core.hookspecs import API_VERSION, Backend, Hypervisor

ENTRY_POINT_GROUP = "irqchip"

_NAME = re.compile(r"[a-z][a-z0-9_]*")


@define
class PluginRecord:
    """One entry point of the group, good or bad.

    Attributes:
        name: Name of the entry point.
        module: What it points at.
        distribution: Name of the distribution it came with.
        version: Version of that distribution.
        backend, hypervisor: What it offers.
        error: Why it cannot be used; None if it can.
    """

    name: str
    module: str
    distribution: str
    version: str
    backend: Backend | None = None
    hypervisor: Hypervisor | None = None
    error: BaseException | None = None

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
        manager: The pluggy manager with all good plugins.
        records: All entry points found, by distribution and name.
        backends, hypervisors: What the good plugins offer, by name, the lowest rank first.
    """

    manager: pluggy.PluginManager
    records: list[PluginRecord] = field(factory=list)
    backends: dict[str, Backend] = field(factory=dict)
    hypervisors: dict[str, Hypervisor] = field(factory=dict)

    def broken(self) -> list[PluginRecord]:
        """The records that have an error."""
        return [record for record in self.records if record.error is not None]


def discover(*, strict: bool = False, entry_points: Iterable[importlib.metadata.EntryPoint] | None = None) -> Plugins:
    """Load every plugin that is installed.

    Args:
        strict: Raise the first error instead of keeping it in its record.
        entry_points: What to load instead of what is installed.
    """
    manager = pluggy.PluginManager("irqchip")
    manager.add_hookspecs(hookspecs)
    found = Plugins(manager)
    if entry_points is None:
        entry_points = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
    for entry_point in sorted(entry_points, key=lambda e: (e.dist.name if e.dist else "", e.name)):
        record = PluginRecord(
            entry_point.name,
            entry_point.value,
            entry_point.dist.name if entry_point.dist else "unknown",
            entry_point.dist.version if entry_point.dist else "unknown",
        )
        found.records.append(record)
        try:
            _load(manager, entry_point, record)
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
    found.hypervisors = {hypervisor.name: hypervisor for hypervisor in sorted(hypervisors, key=_by_rank)}
    return found


def _by_rank(offer: Backend | Hypervisor) -> tuple[int, str]:
    return offer.rank, offer.name


@functools.cache
def installed() -> Plugins:
    """What is installed, loaded once."""
    return discover()


def _load(manager: pluggy.PluginManager, entry_point: importlib.metadata.EntryPoint, record: PluginRecord) -> None:
    """Import one plugin and register its hooks: all of them or, if anything is wrong, none."""
    plugin = entry_point.load()
    try:
        manager.register(plugin, name=record.key)
        manager.check_pending()  # a misspelt hook would never be called
        record.backend = _offer(manager, plugin, "irqchip_backend", Backend)
        record.hypervisor = _offer(manager, plugin, "irqchip_hypervisor", Hypervisor)
    except BaseException:
        record.backend = record.hypervisor = None
        if manager.is_registered(plugin):
            manager.unregister(plugin)
        raise


def _offer(manager: pluggy.PluginManager, plugin: object, hook: str, kind: type[Any]) -> Any:
    """What this one plugin's implementation of `hook` returns, checked; None if it has none."""
    for implementation in getattr(manager.hook, hook).get_hookimpls():
        if implementation.plugin is not plugin:
            continue
        offer = implementation.function()
        if not isinstance(offer, kind):
            raise PluginError(f"{hook} returned {offer!r}", remedy=f"return an instance of {kind.__name__}")
        name, version = getattr(offer, "name", hook), getattr(offer, "api_version", None)
        if version != API_VERSION:
            raise PluginError(
                f"{name} was written for API version {version}, this is version {API_VERSION}",
                remedy="install matching versions of the plugin and of irqchip-core",
            )
        _check_attributes(offer)
        return offer
    return None


def _check_attributes(offer: Backend | Hypervisor) -> None:
    kind = type(offer).__name__
    name = getattr(offer, "name", None)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise PluginError(f"{name!r} is not a name", remedy="use lower case letters, digits and underscores")
    if not isinstance(getattr(offer, "summary", None), str):
        raise PluginError(f"{kind} has no summary", remedy="give it one line of text")
    if not isinstance(offer.rank, int):
        raise PluginError(f"the rank of {kind} is {offer.rank!r}", remedy="make it an integer")
    if isinstance(offer, Backend) and not isinstance(offer.hypervisors, frozenset | None):
        raise PluginError(f"hypervisors of {kind} are {offer.hypervisors!r}", remedy="give a frozenset, or None")


def _refuse_duplicates(found: Plugins) -> None:
    """Refuse all who offer the same name: there is no telling which one the user meant."""
    owners: dict[tuple[str, str], list[PluginRecord]] = {}
    for record in found.records:
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
