"""`python -m tests.nested`: pytest, or any command, on a real KVM."""

from __future__ import annotations

import argparse
import shlex
import sys

from tests.nested import kernel, machine


def main() -> int:
    """The command's exit status; 124 if the deadline came first."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.nested",
        description="Run pytest, or a command, in a Linux guest that has kvm_amd. Without arguments: all tests of KVM.",
        epilog="Example: python -m tests.nested -- tests/kvm -k kick",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--fetch-kernel", action="store_true", help="download Debian's kernel into the cache; no more")
    what.add_argument("--command", metavar="COMMAND", help="run this (irqchip or python; there is no shell)")
    parser.add_argument("--deadline", type=float, default=600, metavar="SECONDS", help="end it then (default: 600)")
    parser.add_argument("--processors", type=int, default=1, metavar="N", help="of the Linux guest (default: 1)")
    parser.add_argument("pytest", nargs="*", help="arguments of pytest, after --")
    arguments = parser.parse_args()
    if arguments.fetch_kernel:
        print(kernel.fetch().image)
        return 0
    argv = shlex.split(arguments.command) if arguments.command else [*machine.PYTEST, *arguments.pytest]
    try:
        outcome = machine.run(
            argv, deadline=arguments.deadline, processors=arguments.processors, echo=sys.stdout.buffer
        )
    except machine.MissingKernel as error:
        parser.error(str(error))
    print(f"\n{outcome.seconds:.0f} seconds, exit status {outcome.status}", file=sys.stderr)
    return 124 if outcome.status is None else outcome.status


if __name__ == "__main__":
    sys.exit(main())
