"""`irqchip run` as its users meet it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from irqchip_core.cli import main
from tests.guests.assemble import GUESTS

COMMAND = [sys.executable, "-m", "irqchip_core", "run"]


def guest(name: str) -> str:
    return str(GUESTS / f"{name}.bin")


def run(*args: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*COMMAND, *args], input=stdin, capture_output=True, timeout=50)


@pytest.mark.kvm
def test_the_built_in_guest(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--vcpus", "2"]) == 0
    out, err = capfd.readouterr()
    assert "irqchip demonstration guest, vCPUs: 2" in out
    assert out.splitlines()[-1] == "Every interrupt was taken exactly as often as it was raised."
    assert err.splitlines() == [
        "irqchip: demonstration guest on chip kvm_kernel (the first that fits), hypervisor kvm "
        "(the first that is usable), vCPUs: 2"
    ]


@pytest.mark.kvm
def test_choice_is_said_with_its_reason(capfd: pytest.CaptureFixture[str]) -> None:
    args = ["--chip", "kvm_kernel", "--hypervisor", "kvm", "--require", "x2apic", "--require", "mp_state_get_set"]
    assert main(["run", guest("real/reset"), *args]) == 0
    assert (
        "on chip kvm_kernel (asked for with x2apic, mp_state_get_set), hypervisor kvm (asked for), vCPUs: 1"
        in capfd.readouterr().err
    )


@pytest.mark.kvm
def test_json(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--json"]) == 0
    out, err = capfd.readouterr()
    data: dict[str, Any] = json.loads(out)
    assert (data["ok"], data["outcome"], data["status"], data["problems"]) == (True, "exit", 1, [])
    assert {line["source"] for line in data["sources"]} >= {"pic-edge", "ioapic-level", "msi", "timer-periodic"}
    assert "irqchip demonstration guest" in err


@pytest.mark.kvm
@pytest.mark.parametrize(
    ("name", "args", "status", "said"),
    [
        ("real/exit", (), 17, ""),
        ("real/reset", (), 0, ""),
        ("multiboot/triple_fault", (), 1, "irqchip: triple fault: vCPU 0 at RIP 0x100028"),
        ("real/loop", ("--timeout", "0.2"), 124, "irqchip: timeout: the guest still runs after 0.2 seconds"),
        ("multiboot/liar", (), 1, "irqchip: made-up on vCPU 0: raised 8, taken 7, ended 7"),
        ("multiboot/registers", (), 13, "irqchip: the guest's report is none: its header at 0xfffffff0"),
    ],
)
def test_a_guest_of_ones_own(
    capfd: pytest.CaptureFixture[str], name: str, args: tuple[str, ...], status: int, said: str
) -> None:
    assert main(["run", guest(name), *args]) == status
    out, err = capfd.readouterr()
    assert "SOURCE" in out
    assert said in err
    assert (len(err.splitlines()) > 1) == bool(said)


@pytest.mark.kvm
def test_append(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["run", guest("multiboot/hello"), "--append", "a b"]) == 7
    assert capfd.readouterr().out.startswith("irqchip-vmm\na b\n")


@pytest.mark.kvm
def test_standard_input_is_com1() -> None:
    done = run(guest("real/echo"), stdin=b"x" * 24_000 + b"q")
    assert done.stdout.startswith(b"x" * 24_000 + b"\n")
    assert done.returncode & 1


@pytest.mark.kvm
def test_ctrl_c() -> None:
    process = subprocess.Popen(
        [*COMMAND, guest("real/loop")], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    assert b"on chip" in process.stderr.readline()  # printed just before the run
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.decode().split("\n") == ["", "irqchip: interrupted", ""]


@pytest.mark.kvm
def test_nobody_reads_the_output() -> None:
    process = subprocess.Popen(COMMAND, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    err = process.stderr.read()
    process.stderr.close()
    process.wait(30)
    assert b"Traceback" not in err


@pytest.mark.kvm
@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--chip", "kvm_kernle"], "did you mean kvm_kernel?"),
        (["--hypervisor", "kwm"], "did you mean kvm?"),
        (["--memory", "4000"], "memory_size"),
        (["--vcpus", "255", guest("real/exit")], "vcpu_count"),
        (["--vcpus", "65"], "64 vCPUs"),
        (["--memory", "1"], "memory ends at"),
        (["--append", "x"], "the built-in guest takes no command line"),
        ([guest("real/exit"), "--append", "x"], "a flat binary cannot be given a command line"),
        (["no/such/guest"], "no/such/guest: cannot read it: No such file or directory"),
        ([str(Path(__file__).parent)], "Is a directory"),
        (["bad\0name"], "cannot read it"),
        (["--memory", "9" * 30, guest("real/exit")], "memory_size"),
    ],
)
def test_mistakes(capfd: pytest.CaptureFixture[str], args: list[str], said: str) -> None:
    assert main(["run", *args]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert said in err
    assert err.startswith("irqchip: ")
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "args",
    [
        ["--vcpus", "0"],
        ["--vcpus", "two"],
        ["--memory", "-1"],
        ["--timeout", "0"],
        ["--timeout", "nan"],
        ["--timeout", "1e300"],
        ["--require", "magic"],
    ],
)
def test_mistakes_that_argparse_sees(capfd: pytest.CaptureFixture[str], args: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["run", *args])
    assert caught.value.code == 2
    assert args[0] in capfd.readouterr().err
