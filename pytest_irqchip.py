"""The pytest plugin of irqchip-core: runs the conformance kit, and has no effect on any other test.

It is a module of its own, as every pytest run loads it where irqchip-core is installed: nothing of irqchip is
imported before a scenario of the kit is collected.
"""

from __future__ import annotations

from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("irqchip", "conformance kit of irqchip")
    group.addoption(
        "--irqchip",
        action="append",
        default=[],
        metavar="NAME[@HYPERVISOR]",
        help="backend to run `--pyargs irqchip_core.testing.conformance` on; several are compared with one another",
    )
    group.addoption("--irqchip-hypervisor", metavar="NAME", help="hypervisor to run it on, if the backend names none")
    group.addoption("--irqchip-json", metavar="FILE", help="write what the scenarios found to FILE")
    group.addoption(
        "--irqchip-patience",
        type=float,
        metavar="SECONDS",
        help="after which an interrupt that is due counts as lost (default: learned from how long machines boot here)",
    )


_found: list[dict[str, Any]] = []
RESULTS = pytest.StashKey[Any]()
"""What the scenarios found, after the last one."""
_unwritten = pytest.StashKey[str]()


@pytest.fixture(scope="class")
def irqchip_target() -> None:
    """Backend and hypervisor that are named on the command line, for the scenarios of the kit."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if getattr(metafunc.cls, "irqchip_conformance", False):
        from irqchip_core.testing.conformance import runner

        runner.parametrize(metafunc)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> object | None:
    if not getattr(pyfuncitem.cls, "irqchip_conformance", False):
        return None
    from irqchip_core.testing.conformance import runner

    runner.perform(pyfuncitem)
    return True


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Remember what was found where the summary is written (with xdist, that is another process)."""
    found: Any = dict(report.user_properties).get("irqchip")
    if found is not None and report.when == "call":
        _found.append({**found, "seconds": round(report.duration, 3)})


def pytest_sessionstart(session: pytest.Session) -> None:
    _found.clear()


def pytest_configure(config: pytest.Config) -> None:
    if path := config.getoption("irqchip_json"):
        try:
            with open(path, "a"):  # better known now than after the last scenario
                pass
        except OSError as error:
            raise pytest.UsageError(f"--irqchip-json: cannot write {path}: {error.strerror}") from None


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if _found:
        from irqchip_core.testing.conformance.results import Results

        results = session.config.stash[RESULTS] = Results(_found)
        if path := session.config.getoption("irqchip_json"):
            try:
                results.write(path)
            except OSError as error:
                session.config.stash[_unwritten] = f"--irqchip-json: cannot write {path}: {error.strerror}"
                session.exitstatus = pytest.ExitCode.TESTS_FAILED
        if results.differences() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    results = config.stash.get(RESULTS, None)
    if results is not None:
        terminalreporter.section("conformance of interrupt chips", sep="=")
        for line in results.lines():
            terminalreporter.write_line(line)
        if unwritten := config.stash.get(_unwritten, None):
            terminalreporter.write_line(unwritten, red=True)
