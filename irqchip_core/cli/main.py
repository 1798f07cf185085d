"""The `irqchip` command: `list` and `probe` here, other subcommands beside and from plugins.

A user's mistake is one message on standard error and status 2; never a traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import functools
import importlib.metadata
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from irqchip_core.cli import json_option
from irqchip_core.cli.conformance import add_conformance
from irqchip_core.cli.json_option import add_json
from irqchip_core.cli.new_backend import add_new_backend
from irqchip_core.cli.select import add_select
from irqchip_core.cli.streams import unread_is_dropped
from irqchip_core.errors import IrqChipError, UnknownName
from irqchip_core.hookspecs import Backend
from irqchip_core.plugins.discovery import PluginRecord, Plugins, installed
from irqchip_core.plugins.loading import run_with_timeout, time_limit
from irqchip_core.plugins.vms import Vms
from irqchip_core.selection import find_backend, find_hypervisor, judge
from irqchip_core.table import format_table, terminal_width

CORE = "irqchip-core"
FAILED = 1
INTERRUPTED = 130
USAGE_ERROR = 2
"""Exit status for a mistake of the user, argparse's own included."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    if sys.stdout is None or sys.stderr is None:  # started with a closed descriptor
        _say("standard output and standard error must be open; give /dev/null for what is not wanted")
        return FAILED
    try:
        with unread_is_dropped():
            try:
                return _main(argv)
            except IrqChipError as error:  # said in here, where a reader that went away does no harm
                _say(str(error))
                return USAGE_ERROR
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:  # the disk is full
        where = f" {error.filename}" if error.filename else ""
        _say(f"cannot write{where}: {error.strerror}")
        return FAILED


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        print(f"irqchip: {text}", file=sys.stderr, flush=True)


def _main(argv: Sequence[str] | None) -> int:
    plugins = installed()
    parser = argparse.ArgumentParser(
        prog="irqchip",
        description="Interrupt chips for virtual machine monitors.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version="\n".join(_versions(plugins)))
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND")

    command = subparsers.add_parser("list", help="show every plugin found, and which can be used here")
    add_json(command)
    command.set_defaults(run=_list)

    command = subparsers.add_parser("probe", help="say whether a chip can be used here, and what it can do")
    command.add_argument("name", metavar="NAME", help="name of a backend, as `irqchip list` shows it")
    command.add_argument("--hypervisor", metavar="NAME", help="try it on this hypervisor only")
    add_json(command)
    command.set_defaults(run=_probe)

    add_select(subparsers)
    add_new_backend(subparsers)
    add_conformance(subparsers)

    for record in plugins.records:
        _add_subcommands(plugins, record, subparsers)
    parser.set_defaults(run=functools.partial(_help, parser))
    args = _parse(parser, subparsers.choices, list(sys.argv[1:] if argv is None else argv))
    status: int = args.run(args)
    return status


def _help(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    parser.print_help()
    return 0


def _versions(plugins: Plugins) -> list[str]:
    """Each distribution of irqchip, and each with a plugin."""
    others = {(record.distribution, record.version) for record in plugins.records} - {("unknown", "unknown")}
    return [f"{name} {version}" for name, version in [(CORE, importlib.metadata.version(CORE)), *sorted(others)]]


def _parse(
    parser: argparse.ArgumentParser, commands: Mapping[str, argparse.ArgumentParser], words: list[str]
) -> argparse.Namespace:
    name = next((word for word in words if not word.startswith("-")), None)
    if name is not None and name not in commands:
        near = difflib.get_close_matches(name, commands, n=1)
        remedy = f"did you mean {near[0]}?" if near else f"commands: {', '.join(commands)}"
        raise UnknownName(f"no command is called {name!r}", name=name, suggestion=next(iter(near), None), remedy=remedy)
    settled = words if name is None else json_option.settle(commands[name], words)
    args, left = parser.parse_known_args(settled)
    if left and not json_option.takes(args, words, left):
        parser.error(f"unrecognized arguments: {' '.join(left)}")
    return args


def _add_subcommands(
    plugins: Plugins, record: PluginRecord, subparsers: argparse._SubParsersAction[argparse.ArgumentParser]
) -> None:
    """Let one plugin add its subcommands. One that fails becomes a broken one, and the others go on."""
    for implementation in plugins.manager.hook.irqchip_subcommand.get_hookimpls():
        if record.error is None and implementation.plugin_name == record.key:
            try:
                what = f"irqchip_subcommand of {record.origin}"
                run_with_timeout(time_limit(), what, functools.partial(implementation.function, subparsers))
            except Exception as error:
                record.error = error


def _on_each_hypervisor(
    plugins: Plugins, backend: Backend, vms: Vms, only: str | None = None
) -> dict[str, dict[str, Any]]:
    """What `backend` says of a VM of each hypervisor it can serve, or of the one asked for."""
    answers: dict[str, dict[str, Any]] = {}
    names = sorted(backend.hypervisors) if backend.hypervisors is not None else list(plugins.hypervisors)
    for name in [only] if only is not None else names:
        vm = vms.of(name)
        if isinstance(vm, str):
            answers[name] = {"viable": False, "reason": vm, "capabilities": []}
            continue
        candidate = judge(backend, vm)
        answers[name] = {
            "viable": candidate.refusal is None,
            "reason": candidate.refusal,
            "capabilities": sorted(capability.value for capability in candidate.probe.capabilities),
        }
    return answers


def _list(args: argparse.Namespace) -> int:
    plugins = installed()
    with Vms(plugins) as vms:
        entries = [_entry(plugins, record, vms) for record in plugins.records]
    json_option.write(args, entries)
    if json_option.prints_text(args):
        rows = [("KIND", "NAME", "DISTRIBUTION", "API", "HERE")]
        for entry in entries:
            distribution = f"{entry['distribution']} {entry['version']}"
            for kind, name, verdict in _verdicts(entry):
                rows.append((kind, name, distribution, str(entry["api_version"] or "-"), verdict))
        print(format_table(rows, terminal_width()))
    return 0


def _entry(plugins: Plugins, record: PluginRecord, vms: Vms) -> dict[str, Any]:
    offer = record.backend or record.hypervisor
    entry: dict[str, Any] = {
        "kind": "backend" if record.backend else "hypervisor" if record.hypervisor else "plugin",
        "name": offer.name if offer else record.name,
        "backend": record.backend.name if record.backend else None,
        "hypervisor": record.hypervisor.name if record.hypervisor else None,
        "distribution": record.distribution,
        "version": record.version,
        "api_version": offer.api_version if offer else None,
        "summary": offer.summary if offer else None,
        "error": record.reason or None,
    }
    if record.error is None and record.backend:
        entry["on"] = _on_each_hypervisor(plugins, record.backend, vms)
    if record.error is None and record.capabilities:
        entry["adds"] = {one.value: one.meaning for one in record.capabilities}
    if record.error is None and record.hypervisor:
        reason = vms.missing(record.hypervisor.name)
        entry |= {"viable": reason is None, "reason": reason}
    return entry


def _verdicts(entry: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Kind, name and verdict of each line about a plugin."""
    if entry["error"]:
        yield entry["kind"], entry["name"], f"broken: {entry['error']}"
        return
    if entry["backend"]:
        for name, answer in entry["on"].items():
            yield "backend", entry["backend"], _verdict(answer, f"on {name}")
    if entry["hypervisor"]:
        yield "hypervisor", entry["hypervisor"], "usable" if entry["viable"] else f"no: {entry['reason']}"
    for name, meaning in entry.get("adds", {}).items():
        yield "capability", name, meaning
    if entry["kind"] == "plugin" and "adds" not in entry:
        yield "plugin", entry["name"], "loaded"


def _verdict(answer: dict[str, Any], where: str) -> str:
    if not answer["viable"]:
        return f"{where}: no: {answer['reason']}"
    return f"{where}: viable ({', '.join(answer['capabilities']) or 'no capabilities'})"


def _probe(args: argparse.Namespace) -> int:
    plugins = installed()
    backend = find_backend(args.name, plugins=plugins)
    if args.hypervisor is not None:
        find_hypervisor(args.hypervisor, plugins=plugins)
    with Vms(plugins) as vms:
        answers = _on_each_hypervisor(plugins, backend, vms, args.hypervisor)
    json_option.write(args, {"backend": backend.name, "summary": backend.summary, "on": answers})
    if json_option.prints_text(args):
        print(f"{backend.name}: {backend.summary}")
        for name, answer in answers.items():
            print(_verdict(answer, f"on {name}"))
    return 0 if any(answer["viable"] for answer in answers.values()) else 1
