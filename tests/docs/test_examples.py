"""Every Python example in README.md and the guides runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("*/*/README.md"))]


def _examples(page: Path) -> list[Any]:
    """The page's examples as parameters, each known by its line."""
    text = page.read_text()
    return [
        pytest.param(page, match[1], id=f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, match.start()) + 2}")
        for match in FENCE.finditer(text)
    ]


EXAMPLES = [example for page in PAGES for example in _examples(page)]


@pytest.mark.kvm
@pytest.mark.usefixtures("no_leaks")
@pytest.mark.parametrize(("page", "code"), EXAMPLES)
def test_example(page: Path, code: str) -> None:
    exec(compile(code, str(page), "exec"), {"__name__": "example"})


def test_the_readme_shows_how_to_choose_a_chip_in_15_lines() -> None:
    example, *_ = FENCE.findall((ROOT / "README.md").read_text())
    lines = [line for line in example.splitlines() if line.strip()]
    assert len(lines) <= 15
    assert "create_irqchip" in example
