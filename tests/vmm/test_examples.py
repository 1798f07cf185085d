"""The examples, run as they are."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

import irqchip_vmm

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "vmm" / "examples" / "doorbell.py"


@pytest.mark.kvm
@pytest.mark.usefixtures("no_leaks")
def test_doorbell(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert capsys.readouterr().out == "the guest rang 3 times and ended with status 7\n"


def test_the_readme_shows_the_example_as_it_is() -> None:
    readme = (ROOT / "vmm" / "README.md").read_text()
    shown = readme.split("```python\n")[1].split("```")[0]
    source = EXAMPLE.read_text()
    for block in shown.strip().split("\n\n\n"):
        assert block in source
    assert irqchip_vmm.Machine.__doc__
