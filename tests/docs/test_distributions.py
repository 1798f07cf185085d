"""The seven distributions agree: on versions, on each other, and with the files that list them."""

from __future__ import annotations

import configparser
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PROJECTS: dict[str, dict[str, Any]] = {
    f"./{path.parent.relative_to(ROOT)}".rstrip("."): tomllib.loads(path.read_text())["project"]
    for path in [ROOT / "pyproject.toml", *sorted(ROOT.glob("*/*/pyproject.toml")), ROOT / "vmm/pyproject.toml"]
}
CORE = PROJECTS["./"]
FOLDERS = pytest.mark.parametrize("folder", PROJECTS)


def _folders(text: str) -> set[str]:
    """The folders among the words of `text`, as they are in `PROJECTS`."""
    return {f"./{word.removeprefix('./')}".rstrip(".") for word in text.split() if word != "-e"}


def _requirement(text: str) -> tuple[str, str]:
    """Name and range of versions."""
    match = re.fullmatch(r"([\w-]+)(?:\[\w+\])?(.*)", text)
    assert match, text
    return match[1], match[2]


def test_there_are_seven() -> None:
    assert sorted(project["name"] for project in PROJECTS.values()) == [
        "irqchip-core",
        "irqchip-kvm",
        "irqchip-kvm-kernel",
        "irqchip-kvm-split",
        "irqchip-unicorn",
        "irqchip-userspace",
        "irqchip-vmm",
    ]


@FOLDERS
@pytest.mark.parametrize("field", ["version", "license", "requires-python", "authors"])
def test_all_say_the_same_of(field: str, folder: str) -> None:
    assert PROJECTS[folder][field] == CORE[field]


@FOLDERS
def test_each_has_the_license_text(folder: str) -> None:
    assert (ROOT / folder / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


@FOLDERS
def test_they_require_each_other_in_this_minor_version(folder: str) -> None:
    major, minor, *_ = CORE["version"].split(".")
    names = {project["name"] for project in PROJECTS.values()}
    ours = {name: versions for name, versions in map(_requirement, PROJECTS[folder]["dependencies"]) if name in names}
    assert set(ours.values()) <= {f">={major}.{minor},<{major}.{int(minor) + 1}"}
    assert "irqchip-core" in ours or folder == "./"


@FOLDERS
def test_the_readme_has_the_license_of_each_dependency(folder: str) -> None:
    names = {project["name"] for project in PROJECTS.values()}
    project = PROJECTS[folder]
    rows = re.findall(r"^\| ([\w-]+) \| `([\w-]+)` \| .+ \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    theirs = {name for name, _ in map(_requirement, project["dependencies"]) if name not in names}
    assert {name for name, needed_by in rows if needed_by == project["name"]} == theirs


def test_the_changelog_begins_with_this_version() -> None:
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert next(heading for heading in headings if heading != "Unreleased") == CORE["version"]


def test_requirements_txt_has_all() -> None:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert _folders(" ".join(line for line in lines if not line.startswith("#"))) == set(PROJECTS)


def test_contributing_installs_all() -> None:
    [folders] = re.findall(r"^pip install (-e .+)$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert _folders(folders) == set(PROJECTS)


def test_tox_installs_all() -> None:
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini")
    assert _folders(tox["testenv"]["deps"]) == set(PROJECTS)


@FOLDERS
def test_the_versions_of_python_are_those_of_tox_and_ci(folder: str) -> None:
    prefix = "Programming Language :: Python :: "
    listed = [text.removeprefix(prefix) for text in PROJECTS[folder]["classifiers"] if re.match(prefix + r"3\.", text)]
    [matrix] = re.findall(r"^ +python: \[(.+)\]$", (ROOT / ".github/workflows/ci.yml").read_text(), re.MULTILINE)
    assert re.findall(r"\bpy3(\d+)\b", (ROOT / "tox.ini").read_text().split("env_list")[1].split("\n")[0]) == [
        version.removeprefix("3.") for version in listed
    ]
    assert re.findall(r"[\d.]+", matrix) == listed
    assert PROJECTS[folder]["requires-python"] == f">={listed[0]}"


@pytest.mark.parametrize("path", [".github/workflows/ci.yml", ".pre-commit-config.yaml"])
def test_what_ci_and_pre_commit_call_is_in_tox(path: str) -> None:
    called = set(",".join(re.findall(r"tox.* -e ([\w,]+)$", (ROOT / path).read_text(), re.MULTILINE)).split(","))
    known = set(re.findall(r"^\[testenv:(\w+)\]$", (ROOT / "tox.ini").read_text(), re.MULTILINE))
    assert called - {"py"} <= known
    assert called >= {"lint", "floors", "types", "docs"}
