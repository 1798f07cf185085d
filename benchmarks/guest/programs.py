"""The programs that run the guest, and one run of either: what the guest printed, and where the time went.

irqchip's VMM is a process as QEMU is, so that neither shares anything with the benchmark.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from attrs import frozen

from benchmarks.guest.rows import OPERATIONS

GUEST = Path(__file__).with_name("guest.bin")
QBOOT = Path("/usr/share/qemu/qboot.rom")
"""A firmware that starts a kernel in 0.1 s; QEMU's usual one takes seconds on a KVM that interprets it."""


@frozen
class Program:
    """What runs the guest.

    Attributes:
        name: For the table.
        command: Its command; ``{vcpus}`` and ``{line}`` stand for what a run is given.
    """

    name: str
    command: tuple[str, ...]


def ours(chip: str, *options: str) -> Program:
    """The VMM of irqchip, with a chip."""
    return Program(chip, (sys.executable, "-m", "benchmarks.guest.ours", chip, "{vcpus}", "{line}", *options))


def qemu(mode: str) -> Program:
    """QEMU with kernel_irqchip=`mode`."""
    deadline = ",+tsc-deadline" if mode != "off" else ""  # QEMU's own local APIC has none
    command = [
        *("qemu-system-x86_64", "-accel", "kvm", "-machine", f"pc,kernel_irqchip={mode}", "-smp", "{vcpus}"),
        *("-cpu", f"qemu64,+x2apic{deadline}", "-m", "128", "-display", "none", "-nodefaults", "-no-reboot"),
        *("-serial", "stdio", "-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-device", "edu,addr=4"),
        *(("-bios", str(QBOOT)) if QBOOT.exists() else ()),
        *("-kernel", str(GUEST), "-append", "{line}"),
    ]
    return Program(f"QEMU, {mode}", tuple(command))


PAIRS = (
    (ours("kvm_kernel"), qemu("on")),
    (ours("kvm_split"), qemu("split")),
    (ours("userspace"), qemu("off")),
)


def missing() -> str | None:
    """Why nothing can be compared here."""
    if shutil.which("qemu-system-x86_64") is None:
        return "qemu-system-x86_64 is not installed; apt-get install qemu-system-x86"
    return None if os.access("/dev/kvm", os.W_OK) else "there is no /dev/kvm"


@frozen
class Run:
    """What one run gave.

    Attributes:
        passes: Cycles of one operation, in each pass.
        reason: Why there are none.
        errors: Standard error.
    """

    passes: tuple[float, ...] = ()
    reason: str = ""
    errors: str = ""


def run(
    program: Program, row: int, times: int, *, vcpus: int = 1, limit: float, environment: dict[str, str] | None = None
) -> Run:
    """Run the guest for one row. A program that takes longer than `limit` seconds is killed."""
    values = {"vcpus": str(vcpus), "line": f"{row:02x}{times:04x}"}
    command = [part.format(**values) for part in program.command]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=limit,
            env={**os.environ, **(environment or {})},
        )
    except subprocess.TimeoutExpired:
        return Run(reason=f"hangs, or no end within {limit:g} s")
    except OSError as error:
        return Run(reason=str(error))
    return _read(done.stdout.splitlines(), done.stderr, OPERATIONS[row].per)


def _read(lines: Sequence[str], errors: str, per: int) -> Run:
    passes = []
    for line in lines:
        if line.startswith("- "):
            return Run(reason=line[2:], errors=errors)
        if (found := re.fullmatch(r"([0-9a-f]{16}) ([0-9a-f]{16})", line)) is not None:
            cycles, operations = (int(text, 16) for text in found.groups())
            passes.append(cycles / operations / per)
    if not passes:
        last = errors.strip().splitlines()[-1:] or ["no output"]
        return Run(reason=f"gave no figures: {last[0]}", errors=errors)
    return Run(tuple(passes), errors=errors)
