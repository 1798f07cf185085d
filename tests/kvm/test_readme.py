"""The example of the README does what the README says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "hypervisors" / "kvm" / "README.md"


@pytest.mark.kvm
def test_example(no_leaks: None, capsys: pytest.CaptureFixture[str]) -> None:
    found = re.search(r"```python\n(.*?)```.*?```text\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    exec(compile(found[1], README.name, "exec"), {})
    assert capsys.readouterr().out == found[2]
