"""The `irqchip` command: `list` and `probe` here, other subcommands beside and from plugins.

A user's mistake is one message on standard error and status 2; never a traceback.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from irqchip_core.conformance_command import add_conformance
from irqchip_core.errors import IrqChipError
from irqchip_core.hookspecs import Backend
from irqchip_core.loading import time_limit, within
from irqchip_core.new_backend import add_new_backend
from irqchip_core.plugins import PluginRecord, Plugins, installed
from irqchip_core.select_command import add_select
from irqchip_core.selection import find_backend, find_hypervisor, judge
from irqchip_core.table import format_table
from irqchip_core.vms import Vms

FAILED = 1
INTERRUPTED = 130
USAGE_ERROR = 2
"""Exit status for a mistake of the user, argparse's own included."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    if sys.stdout is None or sys.stderr is None:  # started with a closed descriptor
        return FAILED
    try:
        status = _main(argv)
        sys.stdout.flush()
    except IrqChipError as error:
        print(f"irqchip: {error}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:  # nobody reads, as in `irqchip list | head`, or the disk is full
        if not isinstance(error, BrokenPipeError):
            print(f"irqchip: cannot write: {error.strerror}", file=sys.stderr)
        # What is still buffered cannot be written either; the interpreter must not try when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    return status


def _main(argv: Sequence[str] | None) -> int:
    plugins = installed()
    parser = argparse.ArgumentParser(prog="irqchip", description="Interrupt chips for virtual machine monitors.")
    version = importlib.metadata.version("irqchip-core")
    parser.add_argument("--version", action="version", version=f"irqchip-core {version}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    command = subparsers.add_parser("list", help="show every plugin found, and which can be used here")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=_list)

    command = subparsers.add_parser("probe", help="say whether a chip can be used here, and what it can do")
    command.add_argument("name", metavar="NAME", help="name of a backend, as `irqchip list` shows it")
    command.add_argument("--hypervisor", metavar="NAME", help="try it on this hypervisor only")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=_probe)

    add_select(subparsers)
    add_new_backend(subparsers)
    add_conformance(subparsers)

    for record in plugins.records:
        _add_subcommands(plugins, record, subparsers)
    args = parser.parse_args(argv)
    status: int = args.run(args)
    return status


def _add_subcommands(
    plugins: Plugins, record: PluginRecord, subparsers: argparse._SubParsersAction[argparse.ArgumentParser]
) -> None:
    """Let one plugin add its subcommands. One that fails becomes a broken one, and the others go on."""
    for implementation in plugins.manager.hook.irqchip_subcommand.get_hookimpls():
        if record.error is None and implementation.plugin_name == record.key:
            try:
                what = f"irqchip_subcommand of {record.origin}"
                within(time_limit(), what, functools.partial(implementation.function, subparsers))
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
    if args.json:
        print(json.dumps(entries, indent=2))
        return 0
    rows = [("KIND", "NAME", "DISTRIBUTION", "API", "HERE")]
    for entry in entries:
        head = (
            entry["kind"],
            entry["name"],
            f"{entry['distribution']} {entry['version']}",
            str(entry["api_version"] or "-"),
        )
        rows += [(*head, verdict) for verdict in _verdicts(entry)]
    print(format_table(rows))
    return 0


def _entry(plugins: Plugins, record: PluginRecord, vms: Vms) -> dict[str, Any]:
    offer = record.backend or record.hypervisor
    entry: dict[str, Any] = {
        "kind": "backend" if record.backend else "hypervisor" if record.hypervisor else "plugin",
        "name": offer.name if offer else record.name,
        "distribution": record.distribution,
        "version": record.version,
        "api_version": offer.api_version if offer else None,
        "summary": offer.summary if offer else None,
        "error": record.reason or None,
    }
    if record.error is None and record.backend:
        entry["on"] = _on_each_hypervisor(plugins, record.backend, vms)
    if record.error is None and record.hypervisor:
        vm = vms.of(record.hypervisor.name)
        entry["viable"] = not isinstance(vm, str)
        entry["reason"] = vm if isinstance(vm, str) else None
    return entry


def _verdicts(entry: dict[str, Any]) -> list[str]:
    if entry["error"]:
        return [f"broken: {entry['error']}"]
    if entry["kind"] == "backend":
        return [_verdict(answer, f"on {name}") for name, answer in entry["on"].items()]
    if entry["kind"] == "hypervisor":
        return ["usable" if entry["viable"] else f"no: {entry['reason']}"]
    return ["loaded"]


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
    if args.json:
        print(json.dumps({"name": backend.name, "summary": backend.summary, "on": answers}, indent=2))
    else:
        print(f"{backend.name}: {backend.summary}")
        for name, answer in answers.items():
            print(_verdict(answer, f"on {name}"))
    return 0 if any(answer["viable"] for answer in answers.values()) else 1
