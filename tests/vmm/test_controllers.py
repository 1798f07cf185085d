"""A machine takes a chip with the controllers that its guest uses, and runs a guest on one that has no others."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from irqchip_core.capabilities import IrqChipCap
from irqchip_core.cli.main import main
from irqchip_core.errors import NothingSuitable
from irqchip_vmm import Machine, Outcome, load_file
from tests.guests.assemble import GUESTS

GUEST = GUESTS / "real/exit.bin"
MICRO = """
from irqchip_core.hookspecs import Backend, Probe, hookimpl


class Micro(Backend):
    name, api_version, summary, rank = "micro", 1, "local APICs and messages", 1

    def probe(self, vm):
        from irqchip_core.capabilities import IrqChipCap
        return Probe(capabilities=frozenset({IrqChipCap.LOCAL_APIC, IrqChipCap.MSI}))

    def create(self, vm, vcpu_count):
        from tests.conformance.lacking_chips import LackingChip
        chip = LackingChip(vm, vcpu_count)
        chip.name = "micro"
        return chip


@hookimpl
def irqchip_backend():
    return Micro()
"""


@pytest.fixture
def micro(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A backend that comes before all others, and whose chip has local APICs and messages only."""
    from irqchip_core.plugins import discovery

    (tmp_path / "micro_plugin.py").write_text(MICRO)
    monkeypatch.syspath_prepend(str(tmp_path))
    found: Callable[..., Any] = importlib.metadata.entry_points
    mine = importlib.metadata.EntryPoint("micro", "micro_plugin", "irqchip")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **wanted: [*found(**wanted), mine])
    discovery.installed.cache_clear()
    yield
    discovery.installed.cache_clear()


@pytest.mark.usefixtures("micro")
def test_a_pc_takes_no_chip_without_its_controllers() -> None:
    with Machine(hypervisor="unicorn") as machine:
        assert machine.chip.name == "userspace"
    with pytest.raises(NothingSuitable, match="micro on unicorn: it lacks ioapic, pic, pit on unicorn"):
        Machine(hypervisor="unicorn", chip="micro")


@pytest.mark.usefixtures("micro")
def test_a_micro_vm_runs_on_local_apics_and_messages() -> None:
    with Machine(hypervisor="unicorn", controllers={IrqChipCap.LOCAL_APIC, IrqChipCap.MSI}) as machine:
        assert machine.chip.name == "micro"
        machine.load(load_file(GUEST, memory_size=machine.memory.size))
        assert machine.run(20).end.outcome is Outcome.EXIT


@pytest.mark.usefixtures("micro")
def test_the_command_asks_for_what_its_guest_uses(capfd: pytest.CaptureFixture[str]) -> None:
    on_unicorn = ["run", "--hypervisor", "unicorn", str(GUEST)]
    main(on_unicorn)
    assert "on chip userspace (the first that fits)" in capfd.readouterr().err
    main([*on_unicorn, "--controllers", "local_apic,msi"])
    assert "on chip micro (the first that fits)" in capfd.readouterr().err
    assert main([*on_unicorn, "--chip", "micro"]) == 2
    assert "micro on unicorn: it lacks ioapic, pic, pit on unicorn" in capfd.readouterr().err
