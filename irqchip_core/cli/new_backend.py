"""`irqchip new-backend`: writes a package that is a backend already, for its author to change.

The files are those of the folder `template`, with names filled in (`string.Template`).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.resources
import importlib.util
import re
import shutil
from pathlib import Path
from string import Template

from irqchip_core.errors import DuplicateName, InvalidArgument, IrqChipError
from irqchip_core.hookspecs import API_VERSION
from irqchip_core.plugins.discovery import PluginRecord, Plugins, installed
from irqchip_core.plugins.lookup import DISTRIBUTIONS

COMMAND = "new-backend"

_FILES = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    "init.py": "$module/__init__.py",
    "plugin.py": "$module/plugin.py",
    "chip.py": "$module/chip.py",
    "test_backend.py": "tests/test_$name.py",
}
"""Which file of the template goes where, for a wrapper."""
_FROM_PARTS = {
    "pyproject.toml": "pyproject.toml",
    "parts_README.md": "README.md",
    "init.py": "$module/__init__.py",
    "parts_plugin.py": "$module/plugin.py",
    "parts_chip.py": "$module/chip.py",
    "parts_vcpus.py": "$module/vcpus.py",
    "parts_test_backend.py": "tests/test_$name.py",
}
"""The same, for a chip from the ground up."""

_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
"""A backend's name that, with its underscores made dashes, is part of a distribution's name too."""


def add_new_backend(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``new-backend``."""
    command = subparsers.add_parser(
        COMMAND,
        help="write a package that is a backend of your own",
        description="Write irqchip-NAME, a package whose chip wraps the one that fits, with tests, types and a README. "
        "Install it, and it can be chosen.",
    )
    command.add_argument("name", metavar="NAME", help="lower case letters, digits, and underscores between them")
    command.add_argument(
        "--directory",
        metavar="DIR",
        type=Path,
        default=Path(),
        help="where to make it (default: here); made if only its last part is missing",
    )
    command.add_argument(
        "--from-parts",
        action="store_true",
        help="a chip from the ground up instead, of local APICs and messages, as a micro-VM has it",
    )
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    root = write_backend(args.name, args.directory, from_parts=args.from_parts)
    print(f"{root} is made. What to do with it:")
    for line in (
        f"pip install -e {root}",
        f"irqchip probe {args.name}",
        f"irqchip conformance {args.name}" if args.from_parts else f"irqchip run --chip {args.name}",
        f"pytest {root}",
    ):
        print(f"  {line}")
    return 0


def write_backend(name: str, directory: Path, *, from_parts: bool = False) -> Path:
    """Write the package of a backend.

    Args:
        name: What its chip is chosen by.
        directory: Where to make the folder of the package; made if its own parent exists.
        from_parts: Whether its chip is one from the ground up, and not a wrapper.

    Returns:
        That folder, ``irqchip-NAME`` with dashes for underscores.

    Raises:
        InvalidArgument: `name` is not made of lower case letters, digits and single underscores between them, or
            the folder exists, or the parent of `directory` does not.
        DuplicateName: The name, or that of the module, is taken.
        IrqChipError: The folder cannot be written; then it is not there.
    """
    if not _NAME.fullmatch(name):
        raise InvalidArgument(
            f"{name!r} cannot be the name of a backend and of a module",
            subject=COMMAND,
            argument="name",
            remedy="use lower case letters, digits, and single underscores between them",
        )
    names = _names(name)
    _refuse_taken(name, names["module"], installed())
    root = directory / names["distribution"]
    with contextlib.ExitStack() as undo:
        try:
            if not directory.is_dir():
                directory.mkdir()
                undo.callback(directory.rmdir)
            root.mkdir()
            undo.callback(shutil.rmtree, root, ignore_errors=True)
            _write(root, names, _FROM_PARTS if from_parts else _FILES)
        except FileExistsError:
            raise _wrong(
                f"{root if directory.is_dir() else directory} exists", "give another place, or another name"
            ) from None
        except FileNotFoundError:
            raise _wrong(f"{directory.parent} does not exist", "make it, or give another place") from None
        except OSError as error:
            raise IrqChipError(
                f"{root} cannot be written: {error.strerror}", subject=COMMAND, argument="directory"
            ) from None
        undo.pop_all()
    return root


def _wrong(problem: str, remedy: str) -> InvalidArgument:
    return InvalidArgument(problem, subject=COMMAND, argument="directory", remedy=remedy)


def _names(name: str) -> dict[str, str]:
    major, minor = importlib.metadata.version("irqchip-core").split(".")[:2]
    return {
        "name": name,
        "class_name": "".join(part.capitalize() for part in name.split("_")),
        "module": f"irqchip_{name}",
        "distribution": f"irqchip-{name.replace('_', '-')}",
        "api_version": str(API_VERSION),
        "version": f"{major}.{minor}",
        "next_version": f"{major}.{int(minor) + 1}",
    }


def _refuse_taken(name: str, module: str, plugins: Plugins) -> None:
    owner = next((record.distribution for record in plugins.records if name in _claims(record)), None)
    for known in DISTRIBUTIONS.values():
        owner = owner or known.get(name)
    if owner is None and importlib.util.find_spec(module) is not None:
        owner = f"a module {module}"
    if owner is not None:
        raise DuplicateName(
            f"the name {name} belongs to {owner}", subject=COMMAND, argument="name", remedy="choose another one"
        )


def _claims(record: PluginRecord) -> set[str]:
    offers = (record.backend, record.hypervisor)
    return {record.name, *(offer.name for offer in offers if offer is not None)}


def _write(root: Path, names: dict[str, str], files: dict[str, str]) -> None:
    template = importlib.resources.files("irqchip_core.cli") / "template"
    for source, target in files.items():
        path = root / Template(target).substitute(names)
        path.parent.mkdir(exist_ok=True)
        text = (template / f"{source}.template").read_text(encoding="utf-8")
        path.write_text(Template(text).substitute(names), encoding="utf-8")
    (root / names["module"] / "py.typed").touch()
