"""Nothing but irqchip-kvm needs Linux: the rest is imported and runs a guest where Linux's own things are hidden."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.vmm.elsewhere import SYSTEMS

ROOT = Path(__file__).parents[2]
OTHERS = [system for system in SYSTEMS if system != "Linux"]


def irqchip(system: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "tests.vmm.elsewhere", system, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=50, cwd=ROOT)


@pytest.mark.parametrize("system", OTHERS)
def test_all_is_imported(system: str) -> None:
    done = irqchip(system)
    assert (done.returncode, done.stderr) == (0, "")
    assert {"irqchip_core.events", "irqchip_unicorn.vcpu", "irqchip_userspace.chip", "irqchip_vmm.run"} <= set(
        done.stdout.split()
    )


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("arguments", [("--vcpus", "2"), ("--vcpus", "2", "--deterministic")], ids=["real", "virtual"])
def test_the_demonstration_guest_runs(system: str, arguments: tuple[str, ...]) -> None:
    # On Linux events are eventfds, elsewhere socket pairs.
    done = irqchip(system, "run", "--chip", "userspace", "--hypervisor", "unicorn", *arguments)
    assert done.returncode == 0, done
    assert done.stdout.splitlines()[-1] == "Every interrupt was taken exactly as often as it was raised."


def test_virtual_time_is_the_same_on_every_system(tmp_path: Path) -> None:
    traces = set()
    for system in SYSTEMS:
        path = tmp_path / system
        assert irqchip(system, "run", "--vcpus", "2", "--deterministic", "--trace", str(path)).returncode == 0
        traces.add(path.read_bytes())
    assert len(traces) == 1


@pytest.mark.parametrize("system", OTHERS)
def test_without_linux_the_choice_is_said_with_its_reason(system: str) -> None:
    needs = f"KVM here needs Linux on x86-64, this is {system} on "
    done = irqchip(system, "run")
    assert done.returncode == 0, done
    assert done.stderr.startswith(f"irqchip: not on hypervisor kvm: {needs}")
    assert " on chip userspace (the first that fits), hypervisor unicorn (the first on which it fits)" in done.stderr
    done = irqchip(system, "list")
    assert done.returncode == 0, done
    lines = [line for line in done.stdout.splitlines() if line.split()[1] in ("kvm", "kvm_kernel")]
    assert len(lines) == 2
    assert all(needs in line for line in lines)
    done = irqchip(system, "run", "--chip", "kvm_kernel")
    assert done.returncode == 2
    assert done.stderr.startswith(f"irqchip: backend kvm_kernel does not fit\n  kvm_kernel on kvm: {needs}")
