"""Each topic of ``python -m benchmarks.host`` runs and gives numbers. What they are is no test's business."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.host.__main__ import TOPICS
from benchmarks.measuring import OURS, Row, Sample
from benchmarks.plot import drawing
from benchmarks.results import load, quantity, tables

SVG = "{http://www.w3.org/2000/svg}"
ROOT = Path(__file__).parent.parent.parent


@pytest.mark.kvm
@pytest.mark.parametrize("topic", TOPICS)
def test_topic_gives_numbers(topic: str, tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks.host", "--quick", topic, "--json", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=55)
    assert done.returncode == 0, done.stderr
    rows = load(file)
    assert rows
    measured = [row for row in rows if OURS in row.samples]
    without = [row.reason for row in rows if OURS not in row.samples]
    assert all("no gcc" in reason for reason in without), without
    assert all(row.samples[OURS].low <= row.samples[OURS].median <= row.samples[OURS].high for row in measured)
    assert all(row.samples[OURS].median > 0 for row in measured if row.unit == "s")
    assert {"processors", "python", "date"} <= json.loads(file.read_text())["machine"].keys()


def test_table_has_the_limit_and_what_an_earlier_run_measured() -> None:
    row = Row("exit", "port", {OURS: Sample(4e-6, 3e-6, 5e-6), "C": Sample(2e-6, 2e-6, 2e-6)})
    before = Row("exit", "port", {OURS: Sample(8e-6, 8e-6, 8e-6)})
    missing = Row("exit", "page", reason="there is no KVM")
    lines = tables([row, missing], [before]).splitlines()
    assert lines[1].split("  ")[0] == "port"
    assert "4 us" in lines[1]
    assert "2 us (x 2.00, lowest x 1.50)" in lines[1]
    assert lines[1].endswith("0.50")
    assert "there is no KVM" in lines[2]


def test_plot_has_a_line_for_each_chip_with_a_point_for_each_size() -> None:
    sample = {OURS: Sample(1e-6, 1e-6, 1e-6)}
    rows = [Row("by vCPUs", f"{chip}: {size}", sample, size=size) for chip in ("a", "b") for size in (1, 8, 254)]
    found = ElementTree.fromstring(drawing([*rows, Row("no size", "c", sample)]))
    assert [len(str(line.get("points")).split()) for line in found.iter(f"{SVG}polyline")] == [3, 3]
    assert "no size" not in {text.text for text in found.iter(f"{SVG}text")}


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(3.4e-7, "s", "340 ns"), (2.5e-6, "s", "2.5 us"), (0.02, "s", "20 ms"), (12, "s", "12 s"), (8192, "B", "8 KiB")],
)
def test_quantity(value: float, unit: str, text: str) -> None:
    assert quantity(value, unit) == text
