"""Virtual environments of their own, and packages built for them, as an author of a backend has them."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import venv
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATIENCE = 280


BUILD = """
import os, sys
from hatchling.build import build_wheel  # PEP 517: in the folder of the package
target, *sources = sys.argv[1:]
for source in sources:
    os.chdir(source)
    print(build_wheel(target))
"""


def build_wheels(sources: list[Path], target: Path) -> list[Path]:
    """Wheels of the packages in these folders, built with the tools of the environment the tests run in."""
    target.mkdir(exist_ok=True)
    succeed([sys.executable, "-c", BUILD, str(target), *map(str, sources)])
    return sorted(target.glob("*.whl"))


def install_into(folder: Path, wheels: list[Path]) -> None:
    """Install wheels, without what they require, into a folder that can be on PYTHONPATH."""
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(folder)]
    succeed([*command, *map(str, wheels)])


def run(
    command: list[str], *, environment: Mapping[str, str] | None = None, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; standard output and standard error are one."""
    return subprocess.run(
        command,
        env=environment,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def succeed(command: list[str]) -> None:
    """Run a command that must succeed."""
    done = run(command)
    assert done.returncode == 0, f"{command}\n{done.stdout}"


def requirements(distributions: list[str]) -> list[str]:
    """What these need from an index: everything but each other."""
    texts = [text for name in distributions for text in importlib.metadata.requires(name) or () if "extra" not in text]
    return sorted({text for text in texts if not re.match("irqchip", text)})


class Environment:
    """A fresh virtual environment with distributions of this repository, not editable ones.

    Args:
        root: Where to make it.
        wheels: The distributions.
        needs: What they and the tests need from an index.
    """

    def __init__(self, root: Path, wheels: list[Path], needs: list[str]) -> None:
        self.bin = root / "bin"
        venv.create(root, with_pip=True)
        pip = [str(self.bin / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        done = run([*pip, "--retries", "1", *needs])
        if done.returncode:
            lines = [line for line in done.stdout.splitlines() if line.startswith("ERROR")]
            reason = f"no package index: {lines[-1] if lines else done.stdout}"
            if "index" in os.environ.get("IRQCHIP_REQUIRE", "").replace(",", " ").split():
                pytest.fail(f"IRQCHIP_REQUIRE names index, but there is {reason}", pytrace=False)
            pytest.skip(reason)
        succeed([*pip, "--no-index", *map(str, wheels)])

    def variables(self) -> dict[str, str]:
        """The environment variables after its activation."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("IRQCHIP_", "PYTHON", "PYTEST", "COV", "TOX"))
        }
        return kept | {"PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}", "VIRTUAL_ENV": str(self.bin.parent)}
