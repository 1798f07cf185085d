"""The conformance kit itself: how it is run, and what it says."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from irqchip_core.capabilities import IrqChipCap
from irqchip_core.chip import IrqChip
from irqchip_core.cli import main as cli
from irqchip_core.errors import InvalidArgument
from irqchip_core.hypervisor.vcpu import Vm
from irqchip_core.selection import create_irqchip, create_vm
from irqchip_core.testing.conformance import Conformance, Nonconforming, NotApplicable
from irqchip_core.testing.conformance.edge_events import ONCE
from irqchip_core.testing.conformance.results import Results
from irqchip_core.testing.conformance.runner import catalog
from irqchip_core.testing.lab import Lab
from irqchip_core.testing.verdict import check_equal, difference, refused, until

MINE = """
from irqchip_core.testing.conformance import Conformance
from tests.conformance.wrong_chips import UnregistrationIgnored


class TestMine(Conformance):
    hypervisor = "unicorn"

    def create_chip(self, vm, vcpu_count):
        return UnregistrationIgnored(vm, vcpu_count)

    def test_name(self):
        pass  # overridden

    def test_one_of_my_own(self):
        machine = self.boot()
        machine.send_msi(0x51)
        machine.cpu.expect(0x51, rule="an MSI interrupts")
"""


def userspace(vm: Vm, vcpu_count: int) -> IrqChip:
    return create_irqchip("userspace", vm=vm, vcpu_count=vcpu_count)


def lab(**options: Any) -> Lab:
    return Lab(lambda: create_vm("unicorn"), userspace, **options)


def run(arguments: Sequence[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a Python module as a user would, from a directory of theirs."""
    root = Path(__file__).parents[2]
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=50,
    )


def test_there_are_120_scenarios_and_each_states_its_rule() -> None:
    entries = catalog()
    assert len(entries) >= 120
    assert len({name for _, name, _ in entries}) == len(entries)
    assert [name for _, name, rule in entries if not rule.endswith(".")] == []
    collected = {name.removeprefix("test_") for name in dir(Conformance) if name.startswith("test_")}
    assert collected == {name for _, name, _ in entries}


def test_the_plugin_imports_nothing_of_irqchip(tmp_path: Path) -> None:
    (tmp_path / "test_other.py").write_text(
        "import sys\n\ndef test_other():\n"
        "    assert 'pytest_irqchip' in sys.modules\n"
        "    assert not [name for name in sys.modules if name.startswith('irqchip_')]\n"
    )
    result = run(["pytest", "-q", "-p", "no:cacheprovider"], tmp_path)
    assert "1 passed" in result.stdout, result.stdout


# irqchip conformance


def test_json_of_pytest_that_cannot_be_written_is_a_failure(tmp_path: Path) -> None:
    arguments = ["--pyargs", "irqchip_core.testing.conformance.test_conformance", "-k", "tokens", "-q"]
    result = run(["pytest", *arguments, "--irqchip=userspace@unicorn", "--irqchip-json=/dev/full"], tmp_path)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "--irqchip-json: cannot write /dev/full: No space left on device" in result.stdout
    assert "Traceback" not in result.stdout + result.stderr


def test_the_command_shows_a_table_and_writes_json(tmp_path: Path) -> None:
    arguments = ["irqchip_core", "conformance", "userspace@unicorn", "-k", "edge_through or token", "--json=a.json"]
    result = run(arguments, tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "userspace on unicorn:" in result.stdout
    assert "Edge events                4       0       0" in result.stdout
    assert "needs events that the kernel serves (a register call that returns None)" in result.stdout
    (chip,) = json.loads((tmp_path / "a.json").read_text())["chips"]
    assert (chip["backend"], chip["hypervisor"], chip["failed"]) == ("userspace", "unicorn", 0)
    edge = next(one for one in chip["scenarios"] if one["scenario"] == "edge_through_the_ioapic")
    assert edge["outcome"] == "passed"
    assert edge["interrupts"] == {"0": [0x45, 0x45, 0x45]}
    assert not (tmp_path / ".pytest_cache").exists()


def test_progress_shows_on_a_terminal(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "irqchip_core", "conformance", "userspace@unicorn", "-k", "edge_through"]
    terminal, its_end = pty.openpty()
    process = subprocess.Popen(command, cwd=tmp_path, stdout=its_end, stderr=its_end, stdin=subprocess.DEVNULL)
    os.close(its_end)
    shown = b""
    with contextlib.suppress(OSError):  # EIO: the other end is closed
        while data := os.read(terminal, 4096):
            shown += data
    os.close(terminal)
    assert process.wait(30) == 0
    assert shown.index(b"100%]") < shown.index(b"conformance of interrupt chips")


def test_chips_of_classes_of_ones_own_are_told_apart() -> None:
    ones = [found("a", "same", {"0": [1]}), {**found("a", "same", {"0": [2]}), "class": "TestMine"}]
    (difference,) = Results(ones).differences()
    assert difference["interrupts"] == {"a on kvm": {"0": [1]}, "a on kvm (TestMine)": {"0": [2]}}


def test_settings_of_the_directory_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --nonsense\npython_files = nothing.py\n")
    (tmp_path / "conftest.py").write_text("raise RuntimeError\n")
    result = run(["irqchip_core", "conformance", "userspace@unicorn", "-k", "edge_through_the_ioapic"], tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.kvm
def test_chips_are_compared(tmp_path: Path) -> None:
    command = ["irqchip_core", "conformance", "--compare", "kvm_kernel", "userspace@unicorn", "-k", "msi or routes"]
    result = run(command, tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "kvm_kernel on kvm and userspace on unicorn gave the same interrupts in " in result.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nonsense"], "no backend is called 'nonsense'"),
        (["kvm_kernel@unicorn"], "it needs a VM of hypervisor kvm, not of unicorn"),
        (["userspace@nonsense"], "no hypervisor is called 'nonsense'"),
        (["userspace@unicorn", "-k", "nonsense"], "no scenario's name matches 'nonsense'"),
        (["userspace@unicorn", "-k", "((("], "Wrong expression passed to '-k'"),
        (["userspace@unicorn", "--json=/dev/null/out.json"], "cannot write /dev/null/out.json: Not a directory"),
    ],
)
def test_mistakes_are_one_message(arguments: list[str], says: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["conformance", *arguments]) == cli.USAGE_ERROR
    assert says in capfd.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["userspace", "--compare", "userspace", "kvm_kernel"]])
def test_a_name_or_two_to_compare(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["conformance", *arguments])
    assert "give a NAME, or --compare A B" in capsys.readouterr().err


def test_a_chip_is_not_compared_with_itself(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["conformance", "--compare", "userspace", "userspace"])
    assert "--compare takes two different chips" in capsys.readouterr().err


def test_the_scenarios_can_be_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["conformance", "--list"]) == 0
    assert "Edge events: edge_through_the_ioapic\n    Each signal is one interrupt" in capsys.readouterr().out


def test_without_pytest_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(["conformance", "userspace"]) == cli.USAGE_ERROR
    assert "pip install 'irqchip-core[conformance]'" in capsys.readouterr().err


# A chip that loses interrupts, installed as a backend

LOSSY = """
from irqchip_core.hookspecs import Backend, Probe, hookimpl
from irqchip_core.testing.conformance.base import choose
from irqchip_core.x86.destinations import Destinations
from tests.conformance.wrong_chips import with_parts

class NothingDelivered(Destinations):
    def deliver(self, message, source=None):
        return ()

class Lossy(Backend):
    name, api_version, summary, rank = "lossy", 1, "loses interrupts", 0

    def probe(self, vm):
        return Probe(capabilities=choose("userspace", "unicorn")[1])

    def create(self, vm, vcpu_count):
        return with_parts(Destinations=NothingDelivered)(vm, vcpu_count)

@hookimpl
def irqchip_backend():
    return Lossy()
"""


@pytest.fixture
def lossy(tmp_path: Path) -> Path:
    """A directory from which Python finds the backend."""
    (tmp_path / "lossy.py").write_text(LOSSY)
    info = tmp_path / "lossy-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lossy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[irqchip]\nlossy = lossy\n")
    return tmp_path


def conformance_of_lossy(where: Path, *arguments: str) -> str:
    result = run(["irqchip_core", "conformance", "lossy@unicorn", *arguments], where)
    assert result.returncode == 1, result.stdout + result.stderr
    return result.stdout


def test_what_takes_long_is_said_while_it_does(lossy: Path) -> None:
    said = conformance_of_lossy(lossy, "-k", "edge_through_the_ioapic")
    where = re.search(
        r"^edge_through_the_ioapic waits; an interrupt counts as lost after [\d.]+ s:\n.*\n.*\n", said, re.MULTILINE
    )
    assert where, said
    assert where[0].splitlines()[1:] == [
        "    Each signal is one interrupt, through an IOAPIC pin.",
        "    machine.cpu.expect(0x45, rule=ONCE)",
    ]
    assert where.start() < said.index("lossy on unicorn:")


def test_after_many_failures_less_is_waited(lossy: Path) -> None:
    said = conformance_of_lossy(lossy, "-k", "msi", "--maxfail=6")
    found = re.search(
        r"lost after ([\d.]+) s:.*5 scenarios failed: an interrupt counts as lost after ([\d.]+) s", said, re.DOTALL
    )
    assert found, said
    assert float(found[2]) < float(found[1])


@pytest.mark.parametrize(
    ("option", "failures"), [(["-x"], 1), (["--exitfirst"], 1), (["--maxfail", "2"], 2), (["--maxfail=3"], 3)]
)
def test_a_run_stops_at_failures(lossy: Path, option: list[str], failures: int) -> None:
    said = conformance_of_lossy(lossy, "--patience", "0.1", "-k", "msi or cap", *option)
    assert f"stopping after {failures} failures" in said
    assert re.search(rf"^all +\d+ +{failures} +\d", said, re.MULTILINE), said


def test_failures_that_are_alike_have_one_line(lossy: Path) -> None:
    said = conformance_of_lossy(lossy, "--patience", "0.1", "-k", "msi or ipi or route or vector")
    failed = said.partition("failed:\n")[2].splitlines()
    (one,) = (line for line in failed if " was lost: it took nothing where " in line)
    match = re.match(r"  (\w+), and the like in (\d+) more \(\w+ to \w+\): .*, but on vCPU 0 0x51 was lost: ", one)
    assert match, failed
    assert int(match[2]) > 20


def test_few_failures_have_a_line_for_each_reason() -> None:
    ones = [{**found("a", f"s{n}", {}, "failed"), "reason": f"rule {n // 2}, but it is {n // 2}"} for n in range(4)]
    assert Results(ones).lines()[-3:] == ["failed:", "  s0, s1: rule 0, but it is 0", "  s2, s3: rule 1, but it is 1"]


def test_a_hundred_failures_with_one_reason_have_one_line() -> None:
    ones = [{**found("a", f"s{n}", {}, "failed"), "reason": "RuntimeError: no"} for n in range(100)]
    assert Results(ones).lines()[-2:] == ["failed:", "  s0, and the same in 99 more (s1 to s99): RuntimeError: no"]


@pytest.mark.parametrize("count", ["0", "-1", "x", "1.5"])
def test_a_number_of_failures_is_1_or_more(count: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["conformance", "userspace", f"--maxfail={count}"])
    assert f"{count} is not 1 or more" in capsys.readouterr().err


# In pytest


def test_pytest_runs_it_on_any_chip(tmp_path: Path) -> None:
    command = ["pytest", "-q", "-p", "no:cacheprovider", "--pyargs", "irqchip_core.testing.conformance"]
    result = run([*command, "--irqchip", "userspace", "--irqchip-hypervisor", "unicorn", "-k", "use_after"], tmp_path)
    assert "1 passed" in result.stdout, result.stdout
    result = run(command, tmp_path)
    assert "the conformance kit needs --irqchip NAME" in result.stdout + result.stderr


def test_an_author_subclasses_it(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(MINE)
    result = run(
        ["pytest", "-q", "-p", "no:cacheprovider", "-k", "unregistered_event_reaches or test_name or my_own"], tmp_path
    )
    assert "1 failed, 2 passed" in result.stdout, result.stdout
    assert "an unregistered edge event reaches nothing, but on vCPU 0 0x45 came, which was not sent" in result.stdout


# What a lab does


def test_a_capability_that_is_not_claimed_is_named() -> None:
    kit = Conformance()
    kit.lab = lab(claims=frozenset({IrqChipCap.LOCAL_APIC, IrqChipCap.MP_STATE_GET_SET}))
    with pytest.raises(NotApplicable, match="needs capability x2apic, which the chip does not claim"):
        kit.lab.perform(kit.test_x2apic_registers)
    kit.lab.perform(kit.test_mp_state_is_kept)


def test_without_a_probe_the_chip_is_believed() -> None:
    assert lab().claims() == frozenset(IrqChipCap)


@pytest.mark.usefixtures("no_leaks")
def test_machines_are_closed_when_a_scenario_fails() -> None:
    here = lab()

    def fail() -> None:
        machine = here.boot()
        machine.edge(5)
        machine.level(10)
        raise Nonconforming("it is wrong")

    with pytest.raises(Nonconforming, match="it is wrong"):
        here.perform(fail)


def test_a_scenario_that_hangs_is_given_up() -> None:
    here = lab(patience=0.2)
    with pytest.raises(Nonconforming, match=r"every call comes back, but this one hangs:[^$]*sleep_for_long"):
        here.perform(sleep_for_long)


def sleep_for_long() -> None:
    time.sleep(30)


def test_a_subclass_without_a_chip_says_what_to_do() -> None:
    kit = Conformance()
    kit.hypervisor = "unicorn"
    here = kit.open_lab(patience=1)
    with pytest.raises(InvalidArgument, match="set `backend`, override `create_chip`, or run pytest with --irqchip"):
        here.perform(kit.test_name)


# What is said


@pytest.mark.parametrize(
    ("taken", "expected", "says"),
    [
        ([], [], ""),
        ([0x45], [0x45], ""),
        ([], [0x45], "0x45 was lost: it took nothing where 0x45 was due"),
        ([0x45, 0x45], [0x45], "0x45 came 2 times: it took 0x45, 0x45 where 0x45 was due"),
        ([0x46], [0x45], "0x45 was lost and 0x46 came, which was not sent: it took 0x46 where 0x45 was due"),
        ([0x51, 0x61], [0x61, 0x51], "the order is wrong: it took 0x51, 0x61 where 0x61, 0x51 was due"),
    ],
)
def test_differences_name_the_fault(taken: list[int], expected: list[int], says: str) -> None:
    assert difference(taken, expected) == says


def test_demands_name_rule_and_finding() -> None:
    with pytest.raises(Nonconforming, match="the mask is kept, but it is 1 and not 2"):
        check_equal(1, 2, "the mask is kept")
    with (
        pytest.raises(Nonconforming, match=r"it is refused \(ValueError\), but it was accepted"),
        refused(ValueError, "it is refused"),
    ):
        pass
    with pytest.raises(Nonconforming, match="but it raised KeyError"), refused(ValueError, "it is refused"):
        raise KeyError
    with pytest.raises(Nonconforming, match=r"it comes, but it has not after 0\.01 s"):
        until(lambda: False, 0.01, "it comes")


def found(
    backend: str, scenario: str, interrupts: dict[str, list[int]] | None, outcome: str = "passed"
) -> dict[str, Any]:
    return {
        "backend": backend, "hypervisor": "kvm", "class": "", "topic": "T", "scenario": scenario, "outcome": outcome,
        "reason": "", "interrupts": interrupts, "open": "", "seconds": 0.1,
    }  # fmt: skip


def test_comparison_shows_other_interrupts_only() -> None:
    results = Results(
        [
            found("a", "same", {"0": [1]}),
            found("a", "other", {"0": [1, 2]}),
            found("a", "open", None),
            found("a", "absent", {"0": [1]}),
            found("b", "same", {"0": [1]}),
            found("b", "other", {"0": [2, 1]}),
            found("b", "open", {"0": [7]}),
            found("b", "absent", {}, "not applicable"),
        ]
    )
    assert [one["scenario"] for one in results.differences()] == ["other"]
    text = "\n".join(results.lines())
    assert "a on kvm and b on kvm gave the same interrupts in 1 of 2 scenarios." in text
    assert "b on kvm: vCPU 0 took 0x02, 0x01" in text
    assert "2 scenarios are not applicable to all of them, or leave the interrupts open." in text


# docs/conformance.md

PAGE = Path(__file__).parents[2] / "docs" / "conformance.md"
COMMANDS = re.findall(r"^((?:irqchip conformance|pytest --irqchip) .*)$", PAGE.read_text(), re.MULTILINE)
EXAMPLE = re.compile(r"^```sh\nirqchip ([^\n]*)\n```\n\nends with\n\n```text\n(.*?)```", re.MULTILINE | re.DOTALL)


@pytest.mark.kvm
@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_docs_work(command: str, tmp_path: Path) -> None:
    words = shlex.split(command.replace("mychip", "userspace"))
    module = [*words[:1], "-p", "no:cacheprovider"] if words[0] == "pytest" else ["irqchip_core"]
    if "-k" not in words:
        words += ["-k", "use_after_close"]  # the whole kit is run by tests/chips
    result = run([*module, *words[1:]], tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_result_in_the_docs_is_what_comes(tmp_path: Path) -> None:
    command, shown = EXAMPLE.findall(PAGE.read_text())[0]
    result = run(["irqchip_core", *shlex.split(command)], tmp_path)
    assert shown in result.stdout


def test_the_docs_show_a_message_as_it_is() -> None:
    (message,) = re.findall(r"^  edge_through_the_ioapic: (.*)$", PAGE.read_text(), re.MULTILINE)
    assert message.endswith(difference([], [0x45]))
    assert ONCE in message
