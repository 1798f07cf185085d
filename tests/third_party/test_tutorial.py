"""docs/backends.md, step by step: its files are written, its commands run, in a fresh virtual environment."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from attrs import define, field

from tests.third_party.environment import PATIENCE, ROOT, Environment, build_wheels, requirements, run

pytestmark = pytest.mark.timeout(PATIENCE)

PAGE = ROOT / "docs" / "backends.md"
BLOCK = re.compile(
    r"^```(console|\{code-block\} python)\n(?::caption: (\S+)\n)?\n?(.*?)^```$", re.MULTILINE | re.DOTALL
)
FOLDERS = [".", "hypervisors/kvm", "plugins/kvm_kernel", "plugins/userspace", "vmm"]
DISTRIBUTIONS = ["irqchip-core", "irqchip-kvm", "irqchip-kvm-kernel", "irqchip-userspace", "irqchip-vmm"]


@define
class Step:
    """One block of the page: a file, or commands with what they print."""

    line: int
    path: str
    text: str

    @property
    def title(self) -> str:
        return f"{self.line}: {self.path or self.text.splitlines()[0]}"


def _steps() -> list[Step]:
    text = PAGE.read_text()
    return [Step(text.count("\n", 0, match.start()) + 1, match[2] or "", match[3]) for match in BLOCK.finditer(text)]


STEPS = _steps()


@define
class Tutorial:
    """A reader that follows the page from its beginning.

    Attributes:
        folder: Where they are.
        environment: Where they install.
        done: How many steps they have done.
    """

    folder: Path
    environment: Environment
    done: int = 0
    failed: list[str] = field(factory=list)

    def follow(self, number: int) -> None:
        """Do all steps up to this one."""
        assert not self.failed, f"an earlier step failed: {self.failed[0]}"
        for step in STEPS[self.done : number + 1]:
            self.done += 1
            self.failed.append(step.title)
            if step.path:
                (self.folder / step.path).write_text(step.text)
            else:
                self._run(step.text)
            self.failed.clear()

    def _run(self, block: str) -> None:
        for command, expected in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE):
            done = run(["sh", "-c", command], environment=self.environment.variables(), folder=self.folder)
            assert done.returncode == 0, f"$ {command}\n{done.stdout}"
            assert _pattern(expected).fullmatch(_words(done.stdout)), f"$ {command}\n{done.stdout}\nis not\n{expected}"


def _words(text: str) -> str:
    """The text with one space where there are several."""
    return "".join(f"{' '.join(line.split())}\n" for line in text.splitlines())


def _pattern(expected: str) -> re.Pattern[str]:
    """A line of dots stands for any lines, dots in a line for anything in it."""
    parts = []
    for line in _words(expected).splitlines():
        if line == "...":
            parts.append(r"(?:.*\n)*")
        else:
            parts.append(".*".join(map(re.escape, line.split("..."))) + r"\n")
    return re.compile("".join(parts))


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory: pytest.TempPathFactory) -> Tutorial:
    root = tmp_path_factory.mktemp("tutorial")
    folders, distributions = list(FOLDERS), list(DISTRIBUTIONS)
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        folders.append("hypervisors/unicorn")
        distributions.append("irqchip-unicorn")
    wheels = build_wheels([ROOT / folder for folder in folders], root / "wheels")
    environment = Environment(root / "environment", wheels, [*requirements(distributions), "pytest"])
    folder = root / "work"
    folder.mkdir()
    return Tutorial(folder, environment)


@pytest.mark.parametrize("number", range(len(STEPS)), ids=[step.title for step in STEPS])
def test_step(tutorial: Tutorial, number: int) -> None:
    tutorial.follow(number)


def test_the_page_has_files_and_commands() -> None:
    """The pattern above finds every block of the page."""
    text = PAGE.read_text()
    assert text.count("\n```") == 2 * len(STEPS)
    assert sum(bool(step.path) for step in STEPS) == text.count(":caption:") > 3
