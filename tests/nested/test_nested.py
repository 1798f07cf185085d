"""All tests of KVM once more, on a real KVM: what they show here, they show there too, and none is skipped.

The machine boots once for all files that are selected; each file's results become one test.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.nested import machine
from tests.nested.image import ROOT

DEADLINE = 240.0
"""Seconds for all files together. They take about 60 on an idle machine, of which 8 are the boot."""
FILES = sorted(
    str(path.relative_to(ROOT))
    for path in (ROOT / "tests").rglob("test_*.py")
    if "mark.kvm" in path.read_text() and path != Path(__file__)
)


@pytest.fixture(scope="module")
def outcome(request: pytest.FixtureRequest) -> machine.Outcome:
    """Of all selected files' tests."""
    callspecs = [getattr(item, "callspec", None) for item in request.session.items if item.path == request.path]
    return machine.run([*machine.PYTEST, *(spec.params["file"] for spec in callspecs if spec)], deadline=DEADLINE)


def of_file(outcome: machine.Outcome, file: str) -> tuple[list[str], list[str]]:
    """Which of a file's tests passed, and the other ones with the reasons."""
    mine = [record for record in outcome.records if belongs(record, file)]
    results = {record["test"]: record for record in mine if "test" in record}
    passed = [name for name, record in results.items() if record["outcome"] == "passed"]
    wrong = [f"{name} {record['outcome']}\n{record['text']}" for name, record in results.items() if name not in passed]
    wrong += [f"{record['started']} did not end" for record in mine if record.get("started", file) not in results]
    return passed, wrong


def belongs(record: dict[str, Any], file: str) -> bool:
    """Whether a record of report.py is about this file."""
    name: str = record.get("test") or record["started"]
    return name.split("::")[0] == file


@pytest.mark.linux
@pytest.mark.qemu
@pytest.mark.timeout(DEADLINE + 60)
@pytest.mark.parametrize("file", FILES)
def test_on_real_kvm(outcome: machine.Outcome, file: str) -> None:
    passed, wrong = of_file(outcome, file)
    if wrong:
        pytest.fail("\n\n".join(wrong) + unfinished(outcome), pytrace=False)
    if not passed or outcome.status is None:
        pytest.fail(f"{len(passed)} tests of {file} passed{unfinished(outcome)}", pytrace=False)


def unfinished(outcome: machine.Outcome) -> str:
    """What to say of a machine that did not come to its end."""
    if outcome.status is not None:
        return ""
    return f"\n\nThe machine was stopped after {outcome.seconds:.0f} seconds. Its console:\n{outcome.tail()}"
