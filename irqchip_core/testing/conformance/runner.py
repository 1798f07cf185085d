"""Between pytest and the scenarios: which chips they are played on, and what becomes of each one's end."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import pytest

from irqchip_core.errors import IrqChipError
from irqchip_core.testing.conformance import Conformance
from irqchip_core.testing.conformance.base import Scenarios, choose
from irqchip_core.testing.lab import Lab
from irqchip_core.testing.patience import FAILURES
from irqchip_core.testing.verdict import Nonconforming, NotApplicable

Target = tuple[str, str]
"""Names of a backend and a hypervisor."""


def resolve(name: str, hypervisor: str | None = None) -> Target:
    """What NAME or NAME@HYPERVISOR means; raises as `choose` does."""
    name, _, named = name.partition("@")
    return name, choose(name, named or hypervisor)[0]


def parametrize(metafunc: pytest.Metafunc) -> None:
    """Play the kit's own class on each chip that is named on the command line."""
    cls = metafunc.cls
    assert cls is not None
    if not _is_kits_own(cls):
        return  # a subclass names its own
    named: list[str] = metafunc.config.option.irqchip
    if not named:
        raise pytest.UsageError("the conformance kit needs --irqchip NAME: which backend to run it on")
    try:
        targets = [resolve(name, metafunc.config.option.irqchip_hypervisor) for name in named]
    except IrqChipError as error:
        raise pytest.UsageError(str(error)) from error
    ids = ["-".join(target) for target in targets]
    metafunc.parametrize("irqchip_target", targets, ids=ids, scope="class")


def perform(item: pytest.Function) -> None:
    """Play one scenario; raises what pytest is to make of it."""
    __tracebackhide__ = True
    scenarios = item.instance
    assert isinstance(scenarios, Scenarios)
    lab: Lab = scenarios.lab
    arguments = {name: item.funcargs[name] for name in item._fixtureinfo.argnames}
    found: dict[str, Any] = {
        "backend": scenarios.backend or type(scenarios).__name__,
        "hypervisor": scenarios.hypervisor,
        "class": type(scenarios).__name__ if not _is_kits_own(type(scenarios)) else "",
        "topic": topic_of(type(scenarios), item.originalname),
        "scenario": item.originalname.removeprefix("test_"),
        "outcome": "passed",
        "reason": "",
    }
    scenario = functools.partial(item.obj, **arguments)
    try:
        lab.perform(scenario, lambda line: _say(item, *_waiting(found["scenario"], item.obj.__doc__, lab, line)))
    except NotApplicable as reason:
        found.update(outcome="not applicable", reason=str(reason))
        pytest.skip(str(reason))
    except (Exception, pytest.fail.Exception) as error:
        problem = str(error) if isinstance(error, Nonconforming) else f"{type(error).__name__}: {error}"
        found.update(outcome="failed", reason=problem)
        if lab.patience.failed():
            _say(item, f"{FAILURES} scenarios failed: an interrupt counts as lost after {lab.patience} from here on")
        raise
    finally:
        found.update(interrupts=lab.record.interrupts, open=lab.record.note)
        if not _is_kits_own(item.obj.__func__):
            found.update(interrupts=None, open="it is the author's own scenario")
        item.user_properties.append(("irqchip", found))


def _waiting(scenario: str, rule: str | None, lab: Lab, line: str) -> Iterator[str]:
    yield f"{scenario} waits; an interrupt counts as lost after {lab.patience}:"
    yield from (f"    {text}" for text in ((rule or "").strip().partition("\n")[0], line) if text)


def _say(item: pytest.Function, *lines: str) -> None:
    """Write to the terminal in the middle of a scenario."""
    reporter: Any = item.config.pluginmanager.getplugin("terminalreporter")
    if reporter is None:  # a worker of xdist has none
        return
    capture: Any = item.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
        reporter.write_line("")
        for line in lines:
            reporter.write_line(line)


def _is_kits_own(what: Any) -> bool:
    return str(what.__module__).startswith(__package__ or "")


def catalog() -> list[tuple[str, str, str]]:
    """Topic, name and rule of every scenario, in the order in which they are played."""
    entries = []
    for topic in reversed(Conformance.__mro__):
        for name, scenario in vars(topic).items():
            if name.startswith("test_"):
                rule = (scenario.__doc__ or "").splitlines()[0]
                entries.append((topic_of(Conformance, name), name.removeprefix("test_"), rule))
    return entries


def topic_of(scenarios: type[Scenarios], name: str) -> str:
    """What the scenario is about: the first line of the class that has it."""
    owner = next(cls for cls in scenarios.__mro__ if name in vars(cls))
    return (owner.__doc__ or owner.__name__).splitlines()[0].rstrip(".")
