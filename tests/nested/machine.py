"""QEMU with a Linux guest that has a real KVM: runs one command in it, until that ends or the deadline comes."""

from __future__ import annotations

import json
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from tests.nested import image, kernel

QEMU = "qemu-system-x86_64"
PROCESSOR = "EPYC,+svm"
KERNEL_ARGUMENTS = "console=ttyS0 rdinit=/init quiet panic=-1 reboot=t"

PYTEST = (
    *(
        "python",
        "-m",
        "pytest",
        "-p",
        "tests.nested.report",
        "-p",
        "no:cacheprovider",
        "--continue-on-collection-errors",
    ),
    *("-m", "kvm and not (binutils or gcc or qemu)"),  # there are no such programs inside
)


class MissingKernel(Exception):
    """There is no kernel to run; the message says how to get one."""


class Outcome(NamedTuple):
    """What became of a command."""

    status: int | None
    """Its exit status, negative for a signal; None if it did not end."""
    records: list[dict[str, Any]]
    """What report.py sent."""
    console: str
    """What it, and the kernel, printed."""
    seconds: float

    def tail(self, lines: int = 60) -> str:
        """The end of the console."""
        return "\n".join(self.console.splitlines()[-lines:])


def environment() -> dict[str, str]:
    """The command's environment variables: inside there is KVM, so no test may be skipped for a missing KVM."""
    return {
        "PATH": "/bin",
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "NO_COLOR": "1",
        "PYTHONPATH": os.pathsep.join(image.search_path()),
        "PYTHONUNBUFFERED": "1",
        "IRQCHIP_REQUIRE": "kvm",
    }


def run(argv: Sequence[str], *, deadline: float, processors: int = 1, echo: IO[bytes] | None = None) -> Outcome:
    """Run `argv` in the repository's folder inside, for `deadline` seconds at most; its output also goes to `echo`.

    One processor is the fastest by far: each kick of a vCPU's thread on another one costs TCG an interrupt between
    two of its threads.

    Raises:
        MissingKernel: there is no kernel.
        CalledProcessError: QEMU could not run.
    """
    found = kernel.find()
    if found is None:
        raise MissingKernel(kernel.missing())
    order = {"argv": list(argv), "cwd": str(image.ROOT), "env": environment()}
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        initramfs, report, errors = (Path(folder, name) for name in ("initramfs", "report", "errors"))
        initramfs.write_bytes(image.build(found, json.dumps(order).encode()))
        command = [
            *(QEMU, "-accel", "tcg", "-cpu", PROCESSOR, "-smp", str(processors), "-m", "2048", "-no-reboot"),
            *("-nodefaults", "-display", "none", "-serial", "stdio", "-serial", f"file:{report}"),
            *("-kernel", str(found.image), "-initrd", str(initramfs), "-append", KERNEL_ARGUMENTS),
        ]
        with errors.open("wb") as stderr:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr)
        try:
            assert process.stdout
            console = read_console(process.stdout, begin + deadline, echo)
            process.kill()  # unless it has ended
            if process.wait() > 0:
                raise subprocess.CalledProcessError(process.returncode, command, stderr=errors.read_text())
        finally:
            process.kill()
            process.communicate()
        lines = report.read_text(errors="replace").splitlines() if report.exists() else []
    records = [json.loads(line) for line in lines if line.endswith("}")]  # the last may be cut
    status = records.pop()["status"] if records and "status" in records[-1] else None
    return Outcome(status, records, console, time.monotonic() - begin)


def read_console(console: IO[bytes], until: float, echo: IO[bytes] | None) -> str:
    """All that comes from `console` before its end or the time `until`."""
    received = bytearray()
    while select.select([console], [], [], max(0.0, until - time.monotonic()))[0]:
        new = os.read(console.fileno(), 1 << 16).replace(b"\r\n", b"\n")
        if not new:
            break
        received += new
        if echo:
            echo.write(new)
            echo.flush()
    return received.decode(errors="replace")
