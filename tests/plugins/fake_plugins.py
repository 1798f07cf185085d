"""Plugins that pretend, as distributions that Python really finds."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from irqchip_core.plugins.discovery import PluginRecord, Plugins, discover

HYPERVISOR = """
from irqchip_core.hookspecs import API_VERSION, Hypervisor, hookimpl
from irqchip_core.testing import FakeVm

class Vm(FakeVm):
    hypervisor = "{name}"

class Fake(Hypervisor):
    name = "{name}"
    api_version = {api}
    summary = "pretends"
    rank = {rank}
    def probe(self):
        {probe}
    def create_vm(self):
        return Vm()

@hookimpl
def irqchip_hypervisor():
    return Fake()
"""

BACKEND = """
from irqchip_core.capabilities import IrqChipCap
from irqchip_core.hookspecs import API_VERSION, Backend, Probe, hookimpl

class Fake(Backend):
    name = "{name}"
    api_version = {api}
    summary = "pretends"
    hypervisors = {hypervisors}
    rank = {rank}
    def probe(self, vm):
        {probe}
    def create(self, vm, vcpu_count):
        from tests.core.table_chip import TableChip
        chip = TableChip()
        chip.name = self.name
        return chip

@hookimpl
def irqchip_backend():
    return Fake()
"""

Install = Callable[..., None]


def backend(
    name: str,
    *,
    api: object = "API_VERSION",
    hypervisors: object = None,
    rank: object = 100,
    probe: str = "return Probe(capabilities=frozenset({IrqChipCap.X2APIC}))",
) -> str:
    return BACKEND.format(name=name, api=api, hypervisors=hypervisors, rank=rank, probe=probe)


def hypervisor(name: str, *, api: object = "API_VERSION", rank: int = 100, probe: str = "return None") -> str:
    return HYPERVISOR.format(name=name, api=api, rank=rank, probe=probe)


def any_vm() -> Any:
    """What a backend that looks at nothing else takes for a VM."""
    return SimpleNamespace(hypervisor="any")


def ours(found: Plugins) -> dict[str, PluginRecord]:
    """The records of this test's own distributions."""
    return {record.name: record for record in found.records if record.module.startswith("plugin_of_")}


def only_ours(timeout: float | None = None) -> Plugins:
    """What this test has installed, as if nothing else were."""
    entry_points = importlib.metadata.entry_points(group="irqchip")
    return discover(entry_points=[e for e in entry_points if e.value.startswith("plugin_of_")], timeout=timeout)
