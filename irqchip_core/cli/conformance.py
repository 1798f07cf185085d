"""`irqchip conformance`: the conformance kit without writing a file. It runs pytest on the kit's own scenarios."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import sys
from typing import TYPE_CHECKING

from irqchip_core.cli.json_option import add_json, check_file, prints_text, write
from irqchip_core.errors import IrqChipError, PluginError

if TYPE_CHECKING:
    import pytest

    from irqchip_core.testing.conformance.results import Results

HELP = "play the scenarios of the contract on a chip, or compare chips"
DESCRIPTION = """\
Play every scenario of the conformance kit on an installed chip: guest programs on a hypervisor of its, and
direct calls on the contract. Each passes, fails with the rule that was broken, or is not applicable, with what
would open it. The status is 0 if none failed.
"""
EPILOG = """\
examples:
  irqchip conformance userspace                          on the first hypervisor that it can use here
  irqchip conformance userspace@unicorn --json=out.json
  irqchip conformance --compare kvm_kernel userspace     must give the guest the same interrupts
  irqchip conformance mychip -k level -v                 scenarios with "level" in their name, and why they fail

The kit needs pytest: pip install 'irqchip-core[conformance]'
"""


def add_conformance(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    command = subparsers.add_parser(
        "conformance",
        help=HELP,
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("name", nargs="?", metavar="NAME[@HYPERVISOR]", help="the backend")
    command.add_argument(
        "--compare",
        nargs=2,
        metavar=("A", "B"),
        help="play on two chips, NAME[@HYPERVISOR] each, and show where a guest takes other interrupts",
    )
    command.add_argument("--hypervisor", metavar="NAME", help="hypervisor to play on, where none is given with @")
    add_json(command)
    command.add_argument(
        "-k", dest="select", metavar="EXPRESSION", help="only scenarios whose names match, as in pytest"
    )
    command.add_argument("--list", action="store_true", help="only list the scenarios, each with its rule")
    command.add_argument(
        "--patience",
        type=_seconds,
        metavar="SECONDS",
        help="after which an interrupt is lost (learned from how long machines boot here, 2 or more)",
    )
    command.add_argument("-x", "--exitfirst", action="store_const", const=1, dest="maxfail", help="stop at a failure")
    command.add_argument("--maxfail", type=_count, metavar="N", help="stop after N failures")
    command.add_argument("-v", "--verbose", action="store_true", help="name each scenario, and show where it fails")
    command.set_defaults(run=run, parser=command)


class _Found:
    """Takes the results out of a run of pytest."""

    results: Results | None = None

    def pytest_unconfigure(self, config: pytest.Config) -> None:
        from pytest_irqchip import RESULTS

        self.results = config.stash.get(RESULTS, None)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 0 < value < 3600:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 3600")
    return value


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Run the kit; returns the exit status of the command."""
    if not args.list and (args.name is None) == (args.compare is None):
        args.parser.error("give a NAME, or --compare A B")
    if importlib.util.find_spec("pytest") is None:
        raise PluginError("the conformance kit needs pytest", remedy="pip install 'irqchip-core[conformance]'")
    import pytest

    from irqchip_core.testing.conformance.runner import catalog, resolve

    if args.list:
        entries = catalog()
        if prints_text(args):
            for topic, name, rule in entries:
                print(f"{topic}: {name}\n    {rule}")
        write(args, [{"topic": topic, "scenario": name, "rule": rule} for topic, name, rule in entries])
        return 0
    check_file(args)
    if args.compare and args.compare[0] == args.compare[1]:
        args.parser.error("--compare takes two different chips")
    targets = ["@".join(resolve(name, args.hypervisor)) for name in args.compare or [args.name]]
    found = _Found()
    with contextlib.ExitStack() as stack:
        if not prints_text(args):
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        status = pytest.main(_pytest_arguments(args, targets), plugins=[found])
    if found.results is not None:
        write(args, found.results.as_json())
    if status == pytest.ExitCode.NO_TESTS_COLLECTED:
        raise IrqChipError(f"no scenario's name matches {args.select!r}", argument="-k", remedy="see --list")
    if status == pytest.ExitCode.INTERRUPTED:
        raise KeyboardInterrupt
    return 2 if status == pytest.ExitCode.USAGE_ERROR else int(status)


def _pytest_arguments(args: argparse.Namespace, targets: list[str]) -> list[str]:
    """The command line of pytest that plays the chosen scenarios on `targets`, each "chip@hypervisor"."""
    # Nothing of the directory that the user happens to be in may count: no settings, no conftest.py, no cache.
    arguments = ["--pyargs", "irqchip_core.testing.conformance.test_conformance", "-c", os.devnull, "--noconftest"]
    arguments += [
        "-p",
        "no:cacheprovider",
        "--no-header",
        "-W",
        "ignore::pytest.PytestAssertRewriteWarning",
        f"--rootdir={os.getcwd()}",
    ]
    arguments += [f"--irqchip={target}" for target in targets]
    if args.patience is not None:
        arguments.append(f"--irqchip-patience={args.patience}")
    if args.maxfail is not None:
        arguments.append(f"--maxfail={args.maxfail}")
    arguments += ["-v", "--tb=short"] if args.verbose else ["-q", "--tb=no", "-r", "N"]
    return [*arguments, "-k", args.select] if args.select else arguments
