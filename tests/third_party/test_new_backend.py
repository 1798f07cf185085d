"""`irqchip new-backend`: what it writes, and what it refuses to."""

from __future__ import annotations

import ast
import errno
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from irqchip_core.cli import main as cli
from irqchip_core.cli.new_backend import write_backend
from irqchip_core.errors import DuplicateName, InvalidArgument, IrqChipError
from irqchip_core.hookspecs import API_VERSION
from tests.third_party.environment import ROOT, build_wheels, run

WRITTEN = {
    "README.md",
    "pyproject.toml",
    "irqchip_my_chip2/__init__.py",
    "irqchip_my_chip2/chip.py",
    "irqchip_my_chip2/plugin.py",
    "irqchip_my_chip2/py.typed",
    "tests/test_my_chip2.py",
}


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_the_package_is_whole_and_says_its_name_everywhere(tmp_path: Path) -> None:
    root = write_backend("my_chip2", tmp_path / "place")
    assert root == tmp_path / "place" / "irqchip-my-chip2"
    assert files(root) == WRITTEN
    project = tomllib.loads((root / "pyproject.toml").read_text())
    assert project["project"]["name"] == "irqchip-my-chip2"
    assert project["project"]["entry-points"]["irqchip"] == {"my_chip2": "irqchip_my_chip2.plugin"}
    assert project["project"]["dependencies"] == ["irqchip-core>=0.1,<0.2"]
    for path in root.rglob("*.py"):
        ast.parse(path.read_text())
    assert "class MyChip2IrqChip(TappedIrqChip):" in (root / "irqchip_my_chip2/chip.py").read_text()
    assert f"api_version = {API_VERSION} " in (root / "irqchip_my_chip2/plugin.py").read_text()
    for path in root.rglob("*"):
        assert not path.is_file() or "$" not in path.read_text(), path


@pytest.mark.parametrize("from_parts", [False, True])
def test_its_types_are_strict(tmp_path: Path, from_parts: bool) -> None:
    pytest.importorskip("mypy", reason="mypy is not installed; pip install mypy")
    root = write_backend("typed", tmp_path, from_parts=from_parts)
    done = run([sys.executable, "-m", "mypy", "--strict", "irqchip_typed", "tests"], folder=root)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "name", ["", "9lives", "My", "my-chip", "my chip", "a_", "_a", "a__b", "é", "a/b", "..", "a\n", "$name"]
)
def test_names_that_are_none_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^new-backend: name: .* cannot be the name of a backend"):
        write_backend(name, tmp_path)
    assert files(tmp_path) == set()


@pytest.mark.parametrize(
    ("name", "owner"),
    [
        ("userspace", "irqchip-userspace"),  # a backend
        ("kvm", "irqchip-kvm"),  # a hypervisor
        ("kvm_split", "irqchip-kvm-split"),  # known, if not installed
        ("vmm", "irqchip-vmm"),  # a plugin that is neither
        ("core", "a module irqchip_core"),
    ],
)
def test_names_that_are_taken_are_refused(tmp_path: Path, name: str, owner: str) -> None:
    with pytest.raises(DuplicateName, match=f"the name {name} belongs to {owner}; choose another one"):
        write_backend(name, tmp_path)
    assert files(tmp_path) == set()


def test_nothing_that_exists_is_touched(tmp_path: Path) -> None:
    (tmp_path / "irqchip-one").mkdir()
    (tmp_path / "irqchip-two").symlink_to("nowhere")
    (tmp_path / "file").write_text("mine")
    for name, folder in (("one", tmp_path), ("two", tmp_path), ("three", tmp_path / "file")):
        with pytest.raises(InvalidArgument, match=r"^new-backend: directory: .* exists; give another place"):
            write_backend(name, folder)
    assert files(tmp_path) == {"file"}
    assert (tmp_path / "file").read_text() == "mine"


def test_parents_of_the_parent_are_not_made(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"^new-backend: directory: .*/new does not exist; make it, or give"):
        write_backend("one", tmp_path / "new" / "place")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_whole_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def touch(self: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "touch", touch)  # the last file
    with pytest.raises(IrqChipError, match="irqchip-full cannot be written: No space left on device"):
        write_backend("full", tmp_path)
    with pytest.raises(IrqChipError, match="irqchip-full cannot be written: No space left on device"):
        write_backend("full", tmp_path / "place")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(IrqChipError, match="File name too long"):
        write_backend("a" * 300, tmp_path)


def test_the_command_says_what_to_do_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["new-backend", "mine"]) == 0
    assert "  pip install -e irqchip-mine\n" in capsys.readouterr().out
    assert cli.main(["new-backend", "mine"]) == 2
    assert capsys.readouterr().err.startswith("irqchip: new-backend: directory: irqchip-mine exists;")


def test_the_template_is_in_the_wheel(tmp_path: Path) -> None:
    (wheel,) = build_wheels([ROOT], tmp_path)
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if name.startswith("irqchip_core/cli/template/")}
    template = "irqchip_core/cli/template"
    assert inside == {f"{template}/{path.name}" for path in (ROOT / template).iterdir()}
    assert len(inside) == 11
