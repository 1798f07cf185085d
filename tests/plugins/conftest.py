"""Plugins that are put where Python finds them, for one test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from irqchip_core import selection
from irqchip_core.cli import main as cli
from irqchip_core.cli import select as select_command
from irqchip_core.selection import BACKEND_VARIABLE, HYPERVISOR_VARIABLE
from tests.plugins.fake_plugins import Install, only_ours


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put distributions of one module each where Python looks for them. The user has no wishes of their own."""
    monkeypatch.delenv(BACKEND_VARIABLE, raising=False)
    monkeypatch.delenv(HYPERVISOR_VARIABLE, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))

    def distribution(name: str, source: str, version: str = "1.0", module: str | None = None) -> None:
        module = module or f"plugin_of_{name}_{tmp_path.name.replace('-', '_')}"
        (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[irqchip]\n{name} = {module}\n")

    return distribution


@pytest.fixture
def use(install: Install, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Let the command see what this test has installed, and only that."""

    def found() -> None:
        only = only_ours()
        for module in (cli, select_command, selection):
            monkeypatch.setattr(module, "installed", lambda: only)

    return found
