"""`irqchip select`: which chip on which hypervisor would be chosen, and why."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from irqchip_core.capabilities import AnyCapability
from irqchip_core.cli.json_option import add_json, prints_text, write
from irqchip_core.errors import NothingSuitable
from irqchip_core.plugins.discovery import installed
from irqchip_core.plugins.lookup import absent
from irqchip_core.selection import Candidate, backend_reason, select, survey
from irqchip_core.table import format_table, terminal_width

NOTHING_FITS = 1


def add_select(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``select``."""
    command = subparsers.add_parser(
        "select",
        help="say which chip is chosen here, and why",
        description="Say which chip on which hypervisor is chosen here, after each has probed a real VM. "
        "The status is 1 if none fits.",
    )
    command.add_argument("name", metavar="NAME", nargs="?", help="this backend only")
    command.add_argument("--hypervisor", metavar="NAME", help="on this hypervisor only")
    command.add_argument(
        "--require",
        metavar="CAPABILITY,...",
        type=_capabilities,
        default=[],
        help=f"what the chip must be able to do: {', '.join(installed().capabilities)}",
    )
    command.add_argument(
        "--prefer",
        metavar="NAME,...",
        type=_names,
        default=[],
        help="backends to try before others, the best first",
    )
    command.add_argument("--explain", action="store_true", help="show every candidate, and why it fits or not")
    add_json(command)
    command.set_defaults(run=_select)


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _capabilities(text: str) -> list[AnyCapability]:
    known = installed().capabilities
    if wrong := [name for name in _names(text) if name not in known]:
        raise argparse.ArgumentTypeError(f"{wrong[0]!r} is no capability; choose from {', '.join(known)}")
    return [known[name] for name in _names(text)]


def _select(args: argparse.Namespace) -> int:
    wishes: dict[str, Any] = {"hypervisor": args.hypervisor, "require": args.require, "prefer": args.prefer}
    if not args.explain and args.json is None:
        try:
            _print_chosen(select(args.name, **wishes))
        except NothingSuitable as error:
            print(f"irqchip: {error}", file=sys.stderr)
            return NOTHING_FITS
        return 0
    judged = survey(args.name, **wishes)
    first = next((candidate for candidate in judged if candidate.refusal is None), None)
    others = dict(absent(args.prefer, installed()))
    if args.name is None:
        broken = [record for record in installed().broken() if record.hypervisor is None]
        others |= {record.name: f"broken: {record.reason}" for record in broken}
    write(args, _as_json(judged, first, others))
    if prints_text(args) and (args.explain or first is None):
        print(format_table(_rows(args, judged, first, others), terminal_width()))
    elif prints_text(args) and first is not None:
        _print_chosen(first)
    return NOTHING_FITS if first is None else 0


def _print_chosen(candidate: Candidate) -> None:
    print(f"{candidate.backend.name} on {candidate.hypervisor}")


def _rows(
    args: argparse.Namespace, judged: list[Candidate], first: Candidate | None, others: dict[str, str]
) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("BACKEND", "HYPERVISOR", "CAPABILITIES", "VERDICT")]
    for one in judged:
        able = ", ".join(_capability_names(one)) or "-"
        rows.append((one.backend.name, one.hypervisor, able, _verdict(args, one, first)))
    return rows + [(name, "-", "-", reason) for name, reason in others.items()]


def _capability_names(candidate: Candidate) -> list[str]:
    return sorted(capability.value for capability in candidate.probe.capabilities)


def _verdict(args: argparse.Namespace, candidate: Candidate, first: Candidate | None) -> str:
    if candidate.refusal is not None or first is None:
        return f"no: {candidate.refusal}"
    if candidate is not first:
        return f"fits, but {first.backend.name} on {first.hypervisor} comes first"
    return f"chosen: {backend_reason(args.name, candidate, args.prefer)}"


def _as_json(judged: list[Candidate], first: Candidate | None, others: dict[str, str]) -> dict[str, Any]:
    return {
        "chosen": {"backend": first.backend.name, "hypervisor": first.hypervisor} if first else None,
        "candidates": [
            {
                "backend": candidate.backend.name,
                "hypervisor": candidate.hypervisor,
                "capabilities": _capability_names(candidate),
                "viable": candidate.refusal is None,
                "reason": candidate.refusal,
            }
            for candidate in judged
        ],
        "others": others,
    }
