"""Registers `irqchip run`. All else is imported when it runs."""

from __future__ import annotations

import argparse
import threading

from irqchip_core.chip import IrqChipCap
from irqchip_core.hookspecs import hookimpl

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
        "standard input and output are its COM1, and the status is what it writes to port 0xF4, v -> (v << 1) | 1 cut "
        "to 8 bits; 0 if it resets or shuts down, 1 if it fails, 124 on timeout, 130 on Ctrl-C.",
    )
    parser.add_argument("guest", metavar="GUEST", nargs="?", help="file to run instead of the built-in guest")
    parser.add_argument("--chip", metavar="NAME", help="backend; without it the first that fits")
    parser.add_argument("--hypervisor", metavar="NAME", help="hypervisor; without it the first that is usable")
    parser.add_argument("--vcpus", metavar="N", type=_count, default=1, help="number of vCPUs (default: 1)")
    parser.add_argument(
        "--memory",
        metavar="MIB",
        type=_count,
        default=DEFAULT_MEMORY_MIB,
        help=f"guest memory in MiB (default: {DEFAULT_MEMORY_MIB})",
    )
    parser.add_argument(
        "--require",
        metavar="CAPABILITY",
        action="append",
        default=[],
        choices=[capability.value for capability in IrqChipCap],
        help=f"take only a chip that has it: {', '.join(capability.value for capability in IrqChipCap)}; repeatable",
    )
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=_seconds,
        help=f"end the run then (default: {DEFAULT_TIMEOUT:g} for the built-in guest, none for others)",
    )
    parser.add_argument("--append", metavar="CMDLINE", default="", help="command line of a multiboot guest")
    parser.add_argument("--json", action="store_true", help="print JSON; what the guest prints goes to standard error")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from irqchip_vmm.run import run

    return run(args)


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not 1 or more")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= threading.TIMEOUT_MAX:
        raise argparse.ArgumentTypeError(f"{text} is not a time above 0")
    return value
