"""A pytest plugin for the inside: one line of JSON for each test that starts and for each result.

{"started": nodeid}
{"test": nodeid, "outcome": "passed" | "failed" | "skipped", "seconds": float, "text": why}
"""

from __future__ import annotations

import json

import pytest

REPORT = "/dev/ttyS1"


def send(test: str, outcome: str, seconds: float = 0.0, text: str = "") -> None:
    """Write one line."""
    with open(REPORT, "w") as port:
        port.write(json.dumps({"test": test, "outcome": outcome, "seconds": round(seconds, 3), "text": text}) + "\n")


def result(report: pytest.TestReport | pytest.CollectReport, seconds: float = 0.0) -> None:
    """Send what became of a test, or of a file that could not be collected."""
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
    text = "\n".join([reason, *(f"--- {title}\n{content}" for title, content in report.sections)])
    send(report.nodeid, report.outcome, seconds, text)


def pytest_runtest_logstart(nodeid: str) -> None:
    send(nodeid, "started")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or not report.passed:
        result(report, report.duration)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if not report.passed:
        result(report)
