"""`irqchip run` as its users meet it."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import F_SETPIPE_SZ, fcntl
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from irqchip_core import selection
from irqchip_core.cli import main as cli
from irqchip_core.cli import select as select_command
from irqchip_core.cli.main import main
from irqchip_core.plugins.discovery import discover
from irqchip_kvm.kvm import Kvm
from irqchip_kvm_kernel import plugin as kvm_kernel_plugin
from irqchip_kvm_kernel.plugin import KvmKernelBackend
from irqchip_vmm.run import MAX_BACKLOG, READ_SIZE
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
        "(the first on which it fits), vCPUs: 2"
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
@pytest.mark.parametrize(
    "command",
    [
        ["run", guest("real/reset")],
        ["run", guest("real/reset"), "--chip", "kvm_kernel"],
        ["run", guest("real/reset"), "--chip", "kvm_kernel", "--hypervisor", "kvm"],
        ["select"],
        ["select", "--explain", "--hypervisor", "kvm"],
        ["probe", "kvm_kernel"],
        ["list"],
    ],
    ids=" ".join,
)
def test_a_command_makes_one_vm_and_probes_each_chip_once(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    calls: Counter[str] = Counter()

    def counted(cls: type, name: str, called: str) -> None:
        method = getattr(cls, name)

        def count(*args: object) -> object:
            calls[called] += 1
            return method(*args)

        monkeypatch.setattr(cls, name, count)

    class Backend(KvmKernelBackend):
        pass

    def read(name: str) -> property:
        def count(self: Backend) -> object:
            calls[name] += 1
            return getattr(KvmKernelBackend, name)

        return property(count)

    attributes = ("name", "api_version", "summary", "hypervisors", "rank", "wrapper")
    for name in attributes:
        setattr(Backend, name, read(name))
    monkeypatch.setattr(kvm_kernel_plugin, "KvmKernelBackend", Backend)
    counted(Backend, "probe", "probe")
    counted(Kvm, "__init__", "open")
    counted(Kvm, "create_vm", "VM")
    found = discover()
    for module in (cli, select_command, selection):
        monkeypatch.setattr(module, "installed", lambda: found)
    assert main(command) == 0
    assert dict(calls) == dict.fromkeys((*attributes, "probe", "open", "VM"), 1)


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
        ("multiboot/triple_fault", (), 1, "irqchip: triple fault: vCPU 0\n"),
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
def test_what_is_no_guest_ends_in_words(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "words"
    path.write_bytes(b"\x0f\xff" + bytes(510))  # UD0: the software KVM has no name for it
    main(["run", str(path), "--timeout", "5"])
    assert "Exit(" not in capfd.readouterr().err


@pytest.mark.kvm
def test_append(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["run", guest("multiboot/hello"), "--append", "a b"]) == 7
    assert capfd.readouterr().out.startswith("irqchip-vmm\na b\n")


@pytest.mark.kvm
def test_append_takes_any_bytes() -> None:
    done = subprocess.run(
        [*(word.encode() for word in COMMAND), guest("multiboot/hello").encode(), b"--append", b"\xff"],
        capture_output=True,
        timeout=50,
    )
    assert done.stdout.startswith(b"irqchip-vmm\n\xff\n")
    assert done.returncode == 7


@pytest.mark.kvm
def test_standard_input_is_com1() -> None:
    sent = b"x" * (MAX_BACKLOG + 2 * READ_SIZE)  # more than is held for the guest at once
    done = run(guest("real/echo"), stdin=sent + b"q")
    assert done.stdout.startswith(sent + b"\n")
    assert done.returncode & 1


@contextmanager
def interruptible(*arguments: str, stdout: int, stdin: int | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """`irqchip run` as a process that takes SIGINT, even if this one was started with SIGINT ignored."""
    default = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(
        [*COMMAND, *arguments], stdin=stdin, stdout=stdout, stderr=subprocess.PIPE, preexec_fn=default
    )
    try:
        yield process
    finally:
        process.kill()  # or it would disturb the tests that follow
        process.communicate()


@pytest.mark.kvm
def test_ctrl_c() -> None:
    with interruptible(guest("real/loop"), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert b"on chip" in process.stderr.readline()  # printed just before the run
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        assert process.returncode == 130
        assert err.strip() == b"irqchip: interrupted"


@pytest.fixture
def small_pipe() -> Iterator[tuple[int, int]]:
    """Reader and writer of a pipe of one page: a single byte, and poll(2) calls it full."""
    reader, writer = os.pipe()
    fcntl(writer, F_SETPIPE_SZ, 4096)
    yield reader, writer
    os.close(reader)
    os.close(writer)


@pytest.mark.kvm
def test_a_reader_that_does_not_read_holds_up_no_timeout(small_pipe: tuple[int, int]) -> None:
    done = subprocess.run(
        [*COMMAND, guest("real/spam"), "--timeout", "2"], stdout=small_pipe[1], stderr=subprocess.PIPE, timeout=50
    )
    err = done.stderr.decode()
    assert done.returncode == 124
    assert "irqchip: standard output has no reader, so this comes here:" in err
    assert "com1             4    0 " in err
    assert err.splitlines()[-1] == "irqchip: timeout: the guest still runs after 2 seconds"
    assert set(os.read(small_pipe[0], 9999)) == set(b"x")


@pytest.mark.kvm
def test_readers_of_nothing_at_all_hold_up_no_timeout(small_pipe: tuple[int, int]) -> None:
    done = subprocess.run(
        [*COMMAND, guest("real/spam"), "--json", "--timeout", "2"],
        stdout=small_pipe[1],
        stderr=small_pipe[1],
        timeout=50,
    )
    assert done.returncode == 124


@pytest.mark.kvm
def test_ctrl_c_while_nobody_reads(small_pipe: tuple[int, int]) -> None:
    with interruptible(guest("real/spam"), stdout=small_pipe[1]) as process:
        poller = select.poll()
        poller.register(small_pipe[1], select.POLLOUT)
        while poller.poll(0):  # until it is full, and the vCPU waits
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        assert process.returncode == 130
        assert b"Traceback" not in err


@pytest.mark.kvm
def test_the_status_is_the_guests_even_if_the_reader_has_gone() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*COMMAND, guest("real/exit")], stdout=writer, stderr=subprocess.PIPE, timeout=50)
    os.close(writer)
    assert done.returncode == 17
    assert len(done.stderr.splitlines()) == 1


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
        (["--vcpus", "255", guest("real/exit")], "vcpu_count"),
        (["--vcpus", "65"], "64 vCPUs"),
        (["--memory", "1"], "memory ends at"),
        (["--append", "x"], "the built-in guest takes no command line"),
        (["--controllers", "msi"], "the built-in guest uses all controllers of a PC; name a guest"),
        ([guest("real/exit"), "--append", "x"], "a flat binary cannot be given a command line"),
        (["no/such/guest"], "no/such/guest: cannot read it: No such file or directory"),
        ([str(Path(__file__).parent)], "Is a directory"),
        (["bad\0name"], "cannot read it"),
        ([guest("multiboot/hello"), "--append", "\ud800"], "the command line cannot be encoded"),
        (["/dev/zero", "--memory", "3072"], "larger than the 64 MiB of what is read of a pipe or device"),
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
    ("args", "said"),
    [
        (["--vcpus", "0"], "'0' is not a whole number above 0"),
        (["--vcpus", "two"], "'two' is not a whole number above 0"),
        (["--memory", "-1"], "'-1' is not a whole number from 1 to 3072"),
        (["--memory", "3073"], "'3073' is not a whole number from 1 to 3072"),
        (["--memory", "9" * 5000], "' is not a whole number from 1 to 3072"),
        (["--timeout", "0"], "'0' is not a time above 0"),
        (["--timeout", "soon"], "'soon' is not a time above 0"),
        (["--timeout", "nan"], "'nan' is not a time above 0"),
        (["--timeout", "1e300"], "'1e300' is not a time above 0"),
        (["--require", "magic"], "invalid choice: 'magic'"),
        (["--controllers", "pic,x2apic"], "'x2apic' is no controller; choose from pic, ioapic, pit, local_apic, msi"),
    ],
)
def test_mistakes_that_argparse_sees(capfd: pytest.CaptureFixture[str], args: list[str], said: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["run", *args])
    assert caught.value.code == 2
    assert f"argument {args[0]}: " in (err := capfd.readouterr().err)
    assert said in err
