"""A chip from the ground up (`irqchip new-backend --from-parts`), really installed: it passes all that it claims."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from irqchip_core.cli.new_backend import write_backend
from tests.third_party.environment import PATIENCE, build_wheels, install_into, run

pytestmark = pytest.mark.timeout(PATIENCE)
HYPERVISORS = [pytest.param("kvm", marks=pytest.mark.kvm), "unicorn"]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment variables of a Python that has the package beside irqchip."""
    folder = tmp_path_factory.mktemp("from_parts")
    root = write_backend("tiny", folder, from_parts=True)
    install_into(folder / "site", build_wheels([root], folder / "wheels"))
    return {**os.environ, "PYTHONPATH": str(folder / "site")}


def command(environment: dict[str, str], *words: str, status: int = 0) -> str:
    done = run([sys.executable, "-m", "irqchip_core", *words], environment=environment)
    assert done.returncode == status, done.stdout
    return done.stdout


@pytest.mark.parametrize("hypervisor", HYPERVISORS)
def test_it_passes_all_that_it_claims(environment: dict[str, str], tmp_path: Path, hypervisor: str) -> None:
    found = tmp_path / "found.json"
    command(environment, "conformance", f"tiny@{hypervisor}", f"--json={found}")
    (chip,) = json.loads(found.read_text())["chips"]
    assert (chip["backend"], chip["hypervisor"], chip["failed"]) == ("tiny", hypervisor, 0)
    assert chip["passed"] >= 190
    by_name: dict[str, Any] = {one["scenario"]: one for one in chip["scenarios"]}
    for scenario in ("no_wake_up_is_lost", "ipi_init_and_startup", "interrupts_in_x2apic_mode", "moved_guest"):
        assert by_name[scenario]["outcome"] == "passed", by_name[scenario]
    for scenario, lacks in (("edge_through_the_ioapic", "ioapic"), ("pic_poll", "pic"), ("pit_state", "pit")):
        assert by_name[scenario]["reason"] == f"needs capability {lacks}, which the chip does not claim"


def test_it_is_chosen_for_what_it_has(environment: dict[str, str]) -> None:
    on_unicorn = ["--hypervisor", "unicorn"]
    assert "userspace on unicorn" in command(environment, "select", *on_unicorn)
    assert "tiny on unicorn" in command(environment, "select", "tiny", "--require", "local_apic,msi", *on_unicorn)
    said = command(environment, "run", "--chip", "tiny", *on_unicorn, status=2)
    assert "tiny on unicorn: it lacks ioapic, pic, pit on unicorn" in said
