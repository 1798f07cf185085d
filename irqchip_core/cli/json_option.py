"""`--json`, which means the same for each command: JSON on standard output in place of text; with =FILE, in a file.

With a file, the text is on standard output as ever. A word after a bare --json is the command's own argument, if it
takes one there; else it is the file.
"""

from __future__ import annotations

import argparse
import itertools
import json
from typing import Any

from irqchip_core.errors import InvalidArgument

STANDARD_OUTPUT = "-"
_OURS = "json_is_for_all_commands"


def add_json(command: argparse.ArgumentParser) -> None:
    """Add the option. Plugins may use it for their subcommands, with the functions below."""
    command.add_argument(
        "--json",
        metavar="FILE",
        nargs="?",
        help="print JSON in place of text; with --json=FILE, write it to FILE (- is standard output)",
    )
    command.set_defaults(**{_OURS: True})


def prints_text(args: argparse.Namespace) -> bool:
    """Whether standard output is for text."""
    return bool(args.json != STANDARD_OUTPUT)


def check_file(args: argparse.Namespace) -> None:
    """Refuse a file that cannot be written, before work is done for it.

    Raises:
        InvalidArgument: It cannot be opened.
    """
    if args.json is not None and args.json != STANDARD_OUTPUT:
        try:
            with open(args.json, "a"):
                pass
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InvalidArgument(f"cannot write {args.json}: {reason}", argument="--json") from None


def text_of(data: Any) -> str:
    """What is printed, without the last newline."""
    return json.dumps(data, indent=2)


def write(args: argparse.Namespace, data: Any) -> None:
    """Write `data` where `args` say, if JSON is wanted.

    Raises:
        OSError: It cannot be written; `filename` is that of the file, None for standard output.
    """
    if args.json == STANDARD_OUTPUT:
        print(text_of(data))
    elif args.json is not None:
        try:
            with open(args.json, "w", encoding="utf-8") as file:
                print(text_of(data), file=file)
        except OSError as error:
            raise OSError(error.errno, error.strerror, args.json) from None


def settle(command: argparse.ArgumentParser, words: list[str]) -> list[str]:
    """`words` for a parser to read: a bare --json takes no word after it but ``-``."""
    if not command.get_default(_OURS):
        return words
    settled: list[str] = []
    for index, word in enumerate(words):
        if word == "--":
            return settled + words[index:]
        if word == STANDARD_OUTPUT and words[index - 1] == "--json":
            continue
        settled.append(f"--json={STANDARD_OUTPUT}" if word == "--json" else word)
    return settled


def takes(args: argparse.Namespace, words: list[str], left: list[str]) -> bool:
    """Whether the one word that is `left` after parsing is the file, as it stands after --json; then `args` have it."""
    if len(left) != 1 or ("--json", left[0]) not in itertools.pairwise(words) or left[0].startswith("-"):
        return False
    args.json = left[0]
    return True
