"""Registers `irqchip run`. All else is imported when it runs."""

from __future__ import annotations

import argparse
import math
import sys
import threading
from collections.abc import Callable

from irqchip_core.capabilities import PC_CONTROLLERS, IrqChipCap
from irqchip_core.cli.json_option import add_json
from irqchip_core.hookspecs import hookimpl
from irqchip_core.plugins.discovery import installed
from irqchip_vmm.memory import MAX_SIZE

DEFAULT_MEMORY_MIB = 16
DEFAULT_TIMEOUT = 60.0


@hookimpl
def irqchip_subcommand(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``run``."""
    parser = subparsers.add_parser(
        "run",
        help="run a guest, and show what became of its interrupts",
        description="Run a guest on a chip. Without GUEST, a built-in one takes interrupts from every source and the "
        "status is 0 only if each was taken exactly as often as raised. With one (multiboot v1 or flat binary), "
        "standard input and output are its COM1 (standard error with a bare --json), and the status is what it "
        "writes to port 0xF4, v -> (v << 1) | 1 cut to 8 bits; 0 if it resets or shuts down, 1 if it fails or its "
        "output cannot be written, 124 on timeout, 130 on Ctrl-C.",
    )
    parser.add_argument("guest", metavar="GUEST", nargs="?", help="file to run instead of the built-in guest")
    parser.add_argument("--chip", metavar="NAME", help="backend; without it the first that fits")
    parser.add_argument("--hypervisor", metavar="NAME", help="hypervisor; without it the first on which the chip fits")
    parser.add_argument("--vcpus", metavar="N", type=_count, default=1, help="number of vCPUs (default: 1)")
    parser.add_argument(
        "--memory",
        metavar="MIB",
        type=_mebibytes,
        default=DEFAULT_MEMORY_MIB,
        help=f"guest memory in MiB (default: {DEFAULT_MEMORY_MIB})",
    )
    parser.add_argument(
        "--require",
        metavar="CAPABILITY",
        action="append",
        default=[],
        choices=list(capabilities := installed().capabilities),
        help=f"take only a chip that has it: {', '.join(capabilities)}; repeatable",
    )
    parser.add_argument(
        "--controllers",
        metavar="NAME,...",
        type=_controllers,
        help="what GUEST uses, and the chip must have, of "
        f"{', '.join(_CONTROLLERS)} (default: all, as in a PC; a micro-VM's guest uses local_apic,msi)",
    )
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=_seconds,
        help=f"end the run then (default: {DEFAULT_TIMEOUT:g} for the built-in guest, none for others)",
    )
    parser.add_argument(
        "--deterministic",
        action="store_true",
        help="run in virtual time, on a hypervisor that can: the run is the same each time; standard input is read to "
        "its end first, and none of a terminal",
    )
    parser.add_argument(
        "--trace",
        metavar="FILE",
        help="with --deterministic: write each interrupt injected into a vCPU to FILE, a line each, and in comments "
        "how the chip's events and routes change",
    )
    parser.add_argument("--append", metavar="CMDLINE", default="", help="command line of a multiboot guest")
    add_json(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from irqchip_vmm.run import run

    if args.guest is None and args.timeout is None:
        args.timeout = DEFAULT_TIMEOUT
    return run(args)


_CONTROLLERS = [capability.value for capability in IrqChipCap if capability in PC_CONTROLLERS]


def _controllers(text: str) -> set[IrqChipCap]:
    names = {name for name in text.split(",") if name}
    if wrong := names.difference(_CONTROLLERS):
        raise argparse.ArgumentTypeError(f"{min(wrong)!r} is no controller; choose from {', '.join(_CONTROLLERS)}")
    return {IrqChipCap(name) for name in names}


def _count(text: str) -> int:
    return int(_checked(text, int, 1, sys.maxsize, "a whole number above 0"))


def _mebibytes(text: str) -> int:
    return int(_checked(text, int, 1, MAX_SIZE >> 20, f"a whole number from 1 to {MAX_SIZE >> 20}"))


def _seconds(text: str) -> float:
    return _checked(text, float, math.ulp(0), threading.TIMEOUT_MAX, "a time above 0")


def _checked(text: str, kind: Callable[[str], float], lowest: float, highest: float, what: str) -> float:
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not lowest <= value <= highest:
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return value
