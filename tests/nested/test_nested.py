"""All tests of KVM once more, on a real KVM: what they show here, they show there too, and none is skipped.

The machine boots once for all files that are selected; each file's results become one test.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.nested import machine
from tests.nested.image import ROOT

DEADLINE = 480.0
"""Seconds for all files together, which take about 180 on two processors that do little else, 10 of them the boot."""
ELSEWHERE = ("unicorn", "x86", "conformance")
"""Folders that stay outside: what compares with the Unicorn emulator; what uses KVM as an oracle, since its random
accesses make QEMU's own SVM emulation abort (seen with 7.2); and what tests the kit that `test_conformance` runs."""
OLD_KERNEL = "before Linux"
"""In the reason of a skip: the machine's kernel is Debian's, older than what the test needs."""
FILES = sorted(
    str(path.relative_to(ROOT))
    for path in (ROOT / "tests").rglob("test_*.py")
    if "mark.kvm" in path.read_text() and path != Path(__file__) and path.parent.name not in ELSEWHERE
    if path.name != "test_conformance.py"
)


@pytest.fixture(scope="module")
def outcome(request: pytest.FixtureRequest) -> machine.Outcome:
    """Of all selected files' tests."""
    callspecs = [getattr(item, "callspec", None) for item in request.session.items if item.path == request.path]
    return machine.run(
        [*machine.PYTEST, "-k", "not unicorn", *(spec.params["file"] for spec in callspecs if spec)], deadline=DEADLINE
    )


@pytest.mark.linux
@pytest.mark.qemu
@pytest.mark.timeout(DEADLINE + 60)
@pytest.mark.parametrize("file", FILES)
def test_on_real_kvm(outcome: machine.Outcome, file: str) -> None:
    mine = {record["test"]: record for record in outcome.records if record["test"].split("::")[0] == file}
    wrong = [
        f"{test} {it['outcome']}\n{it['text']}"
        for test, it in mine.items()
        if it["outcome"] != "passed" and not (it["outcome"] == "skipped" and OLD_KERNEL in it["text"])
    ]
    if outcome.status is None:
        wrong.append(f"The machine was stopped after {outcome.seconds:.0f} seconds. Its console:\n{outcome.tail()}")
    elif not mine:
        wrong.append(f"No test of {file} ran. The console:\n{outcome.tail()}")
    if wrong:
        pytest.fail("\n\n".join(wrong), pytrace=False)
