"""From a name to the plugin that offers it, or to an error that says how it can be had."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from irqchip_core.errors import IrqChipError, UnknownName
from irqchip_core.hookspecs import Backend, Hypervisor
from irqchip_core.plugins.discovery import Plugins

DISTRIBUTIONS: Mapping[str, Mapping[str, str]] = {
    "backend": {
        "kvm_kernel": "irqchip-kvm-kernel",
        "kvm_split": "irqchip-kvm-split",
        "userspace": "irqchip-userspace",
    },
    "hypervisor": {"kvm": "irqchip-kvm", "unicorn": "irqchip-unicorn"},
}
"""The distribution that offers each name of this project: errors about a missing name say what to install."""

_Offer = TypeVar("_Offer", bound=Backend | Hypervisor)


def named(name: str, offers: Mapping[str, _Offer], kind: str, plugins: Plugins, argument: str = "") -> _Offer:
    """The one of `offers` that is called `name`.

    Args:
        name: The requested name.
        offers: The backends, or the hypervisors, of `plugins`.
        kind: ``backend`` or ``hypervisor``.
        plugins: All that was found.
        argument: Where the name was given, if that is not plain from the call.

    Raises:
        UnknownName: There is none, or its plugin is broken.
        PluginError: Its plugin is broken.
    """
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
                argument=argument,
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
    problem = f"no {kind} is called {name!r}"
    raise UnknownName(problem, name=name, suggestion=suggestion, argument=argument, remedy=remedy)


def absent(prefer: Iterable[str], plugins: Plugins) -> list[tuple[str, str]]:
    """The names in `prefer` that no plugin offers, each with what would help."""
    found = []
    for name in prefer:
        try:
            named(name, plugins.backends, "backend", plugins)
        except IrqChipError as error:
            found.append((name, str(error)))
    return found
