"""The command line on a machine without /dev/kvm, or with something else there: the reason, what helps, no traceback.

Such a machine is made with a mount namespace whose /dev is a folder of the test.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]

UNSHARE = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
KVM_IS = {
    "missing": "true",
    "another device": "touch {dev}/kvm && mount --bind /dev/null {dev}/kvm",
    "a directory": "mkdir -p {dev}/kvm",
}
"""Shell commands that make /dev/kvm what their name says, in the folder that becomes /dev."""
SAYS = {
    "missing": ("no such file", "load kvm_intel or kvm_amd, or enable (nested) virtualization"),
    "another device": ("it is not a KVM device", "put the host's /dev/kvm there"),
    "a directory": ("it is a directory", "put the device there"),
}


@pytest.fixture(params=list(KVM_IS))
def kvm_is(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def run(kvm_is: str, tmp_path: Path) -> Run:
    """Runs `irqchip` where /dev/kvm is something else."""
    dev = shlex.quote(str(tmp_path))
    script = f"touch {dev}/null && mount --bind /dev/null {dev}/null && {KVM_IS[kvm_is]} && mount --rbind {dev} /dev"

    def execute(*command: str) -> subprocess.CompletedProcess[str]:
        inside = [*UNSHARE, "sh", "-c", f'{script.format(dev=dev)} && exec "$@"', "sh", *command]
        return subprocess.run(inside, capture_output=True, text=True, timeout=50, check=False)

    try:
        tried = execute("true")
    except FileNotFoundError:
        pytest.skip("unshare is not installed; apt-get install util-linux")
    if tried.returncode:
        pytest.skip(f"a mount namespace cannot be made here: {tried.stderr.strip()}; run as root")
    return lambda *args: execute(sys.executable, "-m", "irqchip_core", *args)


def check_message(kvm_is: str, text: str) -> None:
    problem, remedy = SAYS[kvm_is]
    assert f": {problem}" in text
    assert "/dev/kvm: " in text
    assert f"; {remedy}" in text
    assert "Traceback" not in text


def test_run_says_why_not_and_what_helps(run: Run, kvm_is: str) -> None:
    for args in (["run", "--hypervisor", "kvm"], ["run", "--hypervisor", "kvm", "--chip", "kvm_kernel"]):
        done = run(*args)
        assert (done.returncode, done.stdout) == (2, ""), done
        assert done.stderr.startswith("irqchip: ")
        check_message(kvm_is, done.stderr)


def test_list_says_why_not_and_what_helps(run: Run, kvm_is: str) -> None:
    done = run("list")
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line for line in done.stdout.splitlines() if line.split()[1] in ("kvm", "kvm_kernel")]
    assert len(lines) == 2
    for line in lines:
        check_message(kvm_is, line)
    entries = {entry["name"]: entry for entry in json.loads(run("list", "--json").stdout)}
    assert entries["kvm"]["viable"] is entries["kvm_kernel"]["on"]["kvm"]["viable"] is False
    check_message(kvm_is, entries["kvm"]["reason"])


def test_probe_says_why_not_and_what_helps(run: Run, kvm_is: str) -> None:
    done = run("probe", "kvm_kernel")
    assert (done.returncode, done.stderr) == (1, "")
    check_message(kvm_is, done.stdout)


@pytest.mark.parametrize("kvm_is", ["missing"], indirect=True)
@pytest.mark.parametrize("vcpus", [1, 2])
def test_run_takes_another_hypervisor_and_says_why(run: Run, kvm_is: str, vcpus: int) -> None:
    done = run("run", "--vcpus", str(vcpus))
    assert done.returncode == 0, done
    not_kvm, choice = done.stderr.splitlines()
    assert not_kvm.startswith("irqchip: not on hypervisor kvm: ")
    check_message(kvm_is, not_kvm)
    assert choice == (
        "irqchip: demonstration guest on chip userspace (the first that fits), hypervisor unicorn "
        f"(the first on which it fits), vCPUs: {vcpus}"
    )
    lines = done.stdout.splitlines()
    assert lines[-1] == "Every interrupt was taken exactly as often as it was raised."
    table = {cells[0]: cells[2:] for cells in map(str.split, lines[lines.index("") + 1 : -1])}
    assert table["ioapic-level"] == [str(30 * vcpus)] * 3 + ["30"] * vcpus
    for source in ("ioapic-edge", "msi", "timer-one-shot", "timer-deadline", "ipi-self"):
        assert table[source] == [str(10 * vcpus)] * 3 + ["10"] * vcpus
    assert table["pic-edge"] == table["pit"] == ["10"] * 4 + ["0"] * (vcpus - 1)


def test_a_chip_that_needs_kvm_says_why_not_and_what_helps(run: Run, kvm_is: str) -> None:
    done = run("run", "--chip", "kvm_kernel")
    assert (done.returncode, done.stdout) == (2, "")
    first, reason = done.stderr.splitlines()
    assert first == "irqchip: backend kvm_kernel does not fit"
    check_message(kvm_is, reason)


def test_what_needs_no_kvm_is_viable(run: Run) -> None:
    done = run("probe", "userspace")
    assert (done.returncode, done.stderr) == (0, "")
    on_unicorn = next(line for line in done.stdout.splitlines() if line.startswith("on unicorn: "))
    controllers = "ioapic, local_apic, mp_state_get_set, msi, pic, pit, tsc_deadline_timer, x2apic"
    assert on_unicorn == f"on unicorn: viable ({controllers})"
