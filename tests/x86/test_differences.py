"""Every named difference of an oracle is in the documentation, and no other name is."""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path

import pytest

from tests.x86 import apic_board, pic_model, pit_model

DOCS = Path(__file__).parents[2] / "docs"
NAME = re.compile(r"^\| `([A-Z0-9_]+)` \|", re.MULTILINE)


@pytest.mark.parametrize(
    ("page", "named"),
    [
        ("oracle-differences.md", [*pic_model.Difference, *pit_model.Difference]),
        ("oracle-differences-apic.md", [*apic_board.Difference]),
    ],
    ids=["pic and pit", "apics"],
)
def test_documentation_lists_the_differences_that_tests_name(page: str, named: list[Enum]) -> None:
    listed = NAME.findall((DOCS / page).read_text(encoding="utf-8"))
    assert set(listed) == {difference.name for difference in named}
