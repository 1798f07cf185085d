"""Discovery and choice, with plugins that are really found by their entry points."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from irqchip_core.chip import IrqChip
from irqchip_core.cli import main as cli
from irqchip_core.errors import DuplicateName, InvalidArgument, IrqChipError, PluginError
from irqchip_core.hookspecs import hookimpl
from irqchip_core.plugins.discovery import discover
from irqchip_core.routes import IrqRoute
from irqchip_core.selection import create_irqchip
from tests.core.table_chip import TableChip
from tests.plugins.fake_plugins import Install, any_vm, backend, hypervisor, ours


def test_finds_what_is_installed(install: Install) -> None:
    install("one", backend("one", rank=3))
    install("two", backend("two", rank=2))
    install("hyper", hypervisor("hyper"))
    found = discover()
    assert {name: record.error for name, record in ours(found).items()} == {"hyper": None, "one": None, "two": None}
    assert [name for name in found.backends if name in ("one", "two")] == ["two", "one"]
    assert found.hypervisors["hyper"].summary == "pretends"
    assert ours(found)["one"].version == "1.0"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import does_not_exist", "ModuleNotFoundError: No module named 'does_not_exist'"),
        ("1 +", "SyntaxError: invalid syntax"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        (backend("bad", api=7), "bad was written for API version 7, this is version 1"),
        (backend("Bad-Name"), "'Bad-Name' is not a name"),
        (backend("bad").replace("return Fake()", "return 5"), "irqchip_backend returned 5"),
        (backend("bad").replace("return Fake()", "raise OSError('disk')"), "OSError: disk"),
        (backend("bad").replace("irqchip_backend()", "irqchip_backned()"), "unknown hook 'irqchip_backned'"),
        (backend("bad").replace("irqchip_backend()", "irqchip_backend(vm)"), "Argument(s) {'vm'} are declared"),
        (backend("bad").replace("    def create(", "    def make("), "Can't instantiate abstract class Fake"),
        (backend("bad", rank="'low'"), "the rank of Fake is 'low'"),
        (backend("bad", hypervisors="'kvm'"), "hypervisors of Fake are 'kvm'"),
        (backend("bad").replace('summary = "pretends"', "pass"), "Fake has no summary"),
        (backend("bad").replace("api_version =", "version ="), "bad was written for API version None"),
    ],
)
def test_a_bad_plugin_is_a_record_with_its_reason(install: Install, source: str, reason: str) -> None:
    install("bad", source)
    install("good", backend("good"))
    found = discover()
    record = ours(found)["bad"]
    assert reason in record.reason or reason in str(record.error)
    assert "good" in found.backends
    assert "bad" not in found.backends
    assert all("bad" not in str(name) for name, _ in found.manager.list_name_plugin())
    with pytest.raises(PluginError, match=r"bad 1\.0: "):
        discover(strict=True)


def test_a_half_registered_plugin_leaves_nothing(install: Install) -> None:
    source = hypervisor("half") + backend("half").replace("return Fake()", "raise OSError('disk')")
    install("half", source)
    found = discover()
    assert "half" not in found.hypervisors
    assert ours(found)["half"].hypervisor is None
    assert not found.manager.hook.irqchip_hypervisor.get_hookimpls() or all(
        "half" not in implementation.plugin_name
        for implementation in found.manager.hook.irqchip_hypervisor.get_hookimpls()
    )


def test_a_name_offered_twice_is_refused_and_both_are_named(install: Install) -> None:
    install("first", backend("same"))
    install("second", backend("same"), "2.0")
    install("good", backend("good"))
    found = discover()
    assert "same" not in found.backends
    assert "good" in found.backends
    vm = any_vm()
    with pytest.raises(DuplicateName, match=r"same is offered by first 1\.0 and second 2\.0; uninstall all but one"):
        create_irqchip("same", vm=vm, plugins=found)


OBSERVER = """
from irqchip_core.hookspecs import hookimpl
seen = []

@hookimpl
def irqchip_created(chip):
    seen.append(("created", chip.name))

@hookimpl
def irqchip_event_registered(chip, gsi, source, index):
    seen.append(("registered", gsi, source.device_name, index))

@hookimpl
def irqchip_event_unregistered(chip, gsi):
    seen.append(("unregistered", gsi))

@hookimpl
def irqchip_routes_changed(routes):
    seen.append(("routes", len(list(routes))))
"""


def test_observers_follow_the_life_of_a_chip(install: Install) -> None:
    from irqchip_core.events import IrqEdgeEvent, IrqEventSource, PlatformDeviceId

    install("observer", OBSERVER)
    install("good", backend("good"))
    found = discover()
    vm = any_vm()
    with create_irqchip("good", vm=vm, plugins=found) as chip, IrqEdgeEvent() as event:
        chip.register_edge_irq_event(4, event, IrqEventSource(PlatformDeviceId.SERIAL, 0, "COM1"))
        chip.unregister_edge_irq_event(4, event)
        chip.unregister_edge_irq_event(4, event)  # not registered: no observer is called
        chip.set_irq_routes([IrqRoute.ioapic(4)])
    (observer,) = [plugin for name, plugin in found.manager.list_name_plugin() if name == "observer:observer"]
    assert observer.seen == [  # type: ignore[attr-defined]
        ("created", "good"),
        ("registered", 4, "COM1", 0),
        ("unregistered", 4),
        ("routes", 1),
    ]


def test_a_plugin_that_raises_when_told_disturbs_no_one(install: Install, caplog: pytest.LogCaptureFixture) -> None:
    install("observer_a", OBSERVER)
    install("observer_b", OBSERVER.replace("    seen.append(", "    1 / 0, ("))
    install("observer_c", OBSERVER)
    install("good", backend("good"))
    found = discover()
    with create_irqchip("good", vm=any_vm(), plugins=found) as chip:
        chip.set_irq_routes([IrqRoute.ioapic(4)])
    plugins: list[tuple[str, Any]] = found.manager.list_name_plugin()
    seen = {name: plugin.seen for name, plugin in plugins if "observer" in name}
    expected = [("created", "good"), ("routes", 1)]
    assert seen == {
        "observer_a:observer_a": expected,
        "observer_b:observer_b": [],
        "observer_c:observer_c": expected,
    }
    assert "plugin observer_b:observer_b failed in irqchip_created" in caplog.text
    assert "plugin observer_b:observer_b failed in irqchip_routes_changed" in caplog.text


def test_an_observer_that_raises_disturbs_no_other(caplog: pytest.LogCaptureFixture) -> None:
    class Bad:
        @hookimpl
        def irqchip_routes_changed(self) -> None:
            raise OSError("disk")

    class Good:
        notified = 0

        @hookimpl
        def irqchip_routes_changed(self, routes: list[IrqRoute], chip: IrqChip) -> None:
            assert (routes, chip.name) == ([IrqRoute.ioapic(4)], "table")
            self.notified += 1

    good = [Good(), Good()]
    with TableChip() as chip:
        for observer in (good[0], Bad(), good[1]):
            chip.observers.add(observer)
        chip.set_irq_routes([IrqRoute.ioapic(4)])
        assert [observer.notified for observer in good] == [1, 1]
        for observer in good:
            chip.observers.remove(observer)
            chip.observers.remove(observer)
        chip.set_irq_routes([IrqRoute.ioapic(4)])
        assert [observer.notified for observer in good] == [1, 1]
    assert re.search(r"observer <.*Bad object.*> failed in irqchip_routes_changed", caplog.text)


class Misspelt:
    @hookimpl
    def irqchip_routes_change(self, routes: object) -> None: ...


class WrongArgument:
    @hookimpl
    def irqchip_routes_changed(self, table: object) -> None: ...


class Wrapping:
    @hookimpl(wrapper=True)
    def irqchip_routes_changed(self) -> Iterator[None]:
        yield


@pytest.mark.parametrize(
    ("observer", "reason"),
    [(Misspelt(), "irqchip_routes_change"), (WrongArgument(), "table"), (Wrapping(), "hook wrapper")],
)
def test_an_observer_that_could_not_be_called_is_refused_whole(observer: object, reason: str) -> None:
    class Before:
        notified = 0

        @hookimpl
        def irqchip_routes_changed(self) -> None:
            self.notified += 1

    before = Before()
    with TableChip() as chip:
        chip.observers.add(before)
        with pytest.raises(InvalidArgument, match=reason):
            chip.observers.add(observer)
        with pytest.raises(InvalidArgument, match="registered already"):
            chip.observers.add(before)
        chip.set_irq_routes([])
        assert before.notified == 1


def test_one_module_by_two_entry_points_keeps_the_hooks_of_the_first(install: Install) -> None:
    install("observer", OBSERVER)
    install("good", backend("good"))
    installed = {entry_point.name: entry_point for entry_point in importlib.metadata.entry_points(group="irqchip")}
    again = importlib.metadata.EntryPoint("same", installed["observer"].value, "irqchip")
    found = discover(entry_points=[installed["good"], installed["observer"], again])
    assert len(found.broken()) == 1
    with create_irqchip("good", vm=any_vm(), plugins=found):
        pass
    (seen,) = [vars(plugin)["seen"] for _, plugin in found.manager.list_name_plugin() if "seen" in vars(plugin)]
    assert seen == [("created", "good")]


def test_list_shows_every_plugin_with_its_reason(
    install: Install, use: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    install("hyper", hypervisor("hyper"))
    install("absent", hypervisor("absent", probe="return 'there is no processor'"))
    install("good", backend("good"))
    install("picky", backend("picky", hypervisors="frozenset({'missing'})"))
    install("bad", "raise OSError('disk')")
    install("extra", OBSERVER)
    use()
    assert cli.main(["list"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "KIND NAME DISTRIBUTION API HERE",
        "hypervisor absent absent 1.0 1 no: there is no processor",
        "plugin bad bad 1.0 - broken: OSError: disk",
        "plugin extra extra 1.0 - loaded",
        "backend good good 1.0 1 on absent: no: there is no processor",
        "backend good good 1.0 1 on hyper: viable (x2apic)",
        "hypervisor hyper hyper 1.0 1 usable",
        "backend picky picky 1.0 1 on missing: no: no hypervisor is called 'missing'; installed: absent, hyper",
    ]
    assert cli.main(["list", "--json"]) == 0
    entries = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert entries["good"]["on"]["hyper"] == {"viable": True, "reason": None, "capabilities": ["x2apic"]}
    assert entries["bad"]["error"] == "OSError: disk"
    assert entries["absent"]["viable"] is False


def test_probe_answers_with_its_exit_status(
    install: Install, use: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    install("hyper", hypervisor("hyper"))
    install("good", backend("good"))
    install("picky", backend("picky", probe="return Probe('too old; update it')"))
    use()
    assert cli.main(["probe", "good"]) == 0
    assert capsys.readouterr().out == "good: pretends\non hyper: viable (x2apic)\n"
    assert cli.main(["probe", "picky", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["on"]["hyper"]["reason"] == "too old; update it"
    assert cli.main(["probe", "goood"]) == 2
    assert capsys.readouterr().err == "irqchip: no backend is called 'goood'; did you mean good?\n"
    assert cli.main(["probe", "good", "--hypervisor", "nowhere"]) == 2
    assert "no hypervisor is called 'nowhere'" in capsys.readouterr().err


SUBCOMMAND = """
from irqchip_core.errors import InvalidArgument
from irqchip_core.hookspecs import hookimpl

def greet(args):
    if args.name == "nobody":
        raise InvalidArgument("nobody is not a name", argument="name", remedy="give one")
    print("hello", args.name)
    return 7

@hookimpl
def irqchip_subcommand(subparsers):
    parser = subparsers.add_parser("greet", help="greet someone")
    parser.add_argument("name")
    parser.set_defaults(run=greet)
"""


def test_a_plugin_whose_subcommand_fails_takes_nothing_down(
    install: Install, use: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    install("greeter", SUBCOMMAND)
    install("raiser", SUBCOMMAND.replace("parser = ", "raise OSError('disk')\n    parser = "))
    install("twice", SUBCOMMAND)  # the name `greet` is taken
    use()
    assert cli.main(["greet", "world"]) == 7
    assert cli.main(["list"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "plugin raiser raiser 1.0 - broken: OSError: disk" in lines
    assert any(line.startswith("plugin twice twice 1.0 - broken: ArgumentError") for line in lines)


def run_command(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """`irqchip` as a process of its own."""
    argv = [sys.executable, "-m", "irqchip_core", *arguments]
    return subprocess.run(argv, stderr=subprocess.PIPE, text=True, timeout=50, check=False, **options)


EVERY_COMMAND = [
    "",
    "--help",
    "--version",
    "list",
    "list --json",
    "probe userspace",
    "probe userspace --json",
    "select",
    "select --explain",
    "select --json",
    "run --hypervisor unicorn",
    "run --hypervisor unicorn --json",
    "conformance --list",
    "conformance --list --json",
    "conformance userspace@unicorn -k tokens",
    "conformance userspace@unicorn -k tokens --json",
]


@pytest.mark.parametrize("command", EVERY_COMMAND)
def test_output_that_cannot_be_written_is_an_error(command: str) -> None:
    with open("/dev/full", "w") as full:
        done = run_command(*command.split(), stdout=full)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "irqchip: cannot write: No space left on device"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", EVERY_COMMAND)
def test_a_reader_that_went_away_is_no_error(command: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as closed:
        done = run_command(*command.split(), stdout=closed)
    assert done.returncode == 0, done.stderr
    assert "cannot write" not in done.stderr
    assert "Traceback" not in done.stderr


def test_the_status_is_the_commands_own_without_a_reader_and_without_a_word() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as closed:
        argv = [sys.executable, "-m", "irqchip_core", "probe", "kvm_kernel", "--hypervisor", "unicorn"]
        assert subprocess.run(argv, stdout=closed, stderr=closed, timeout=50, check=False).returncode == 1
        argv = [sys.executable, "-m", "irqchip_core", "probe", "nothing"]
        assert subprocess.run(argv, stdout=closed, stderr=closed, timeout=50, check=False).returncode == 2


@pytest.mark.parametrize("descriptor", [1, 2])
def test_a_closed_stream_is_an_error(descriptor: int) -> None:
    closed = run_command("list", preexec_fn=lambda: os.close(descriptor))
    assert closed.returncode == 1
    assert "Traceback" not in closed.stderr
    said = "irqchip: standard output and standard error must be open; give /dev/null for what is not wanted\n"
    assert closed.stderr == ("" if descriptor == 2 else said)


JSON_COMMANDS = [
    ("list", ["list"]),
    ("probe", ["probe", "userspace"]),
    ("select", ["select"]),
    ("run", ["run", "--hypervisor", "unicorn"]),
    ("conformance", ["conformance", "userspace@unicorn", "-k", "tokens"]),
    ("conformance", ["conformance", "--list"]),
]


def without_times(data: Any) -> Any:
    """What two runs have in common."""
    if isinstance(data, dict):
        return {key: without_times(value) for key, value in data.items() if key not in ("seconds", "exits", "counters")}
    return [without_times(one) for one in data] if isinstance(data, list) else data


@pytest.mark.parametrize(("name", "command"), JSON_COMMANDS, ids=lambda value: " ".join(value))
def test_json_is_on_standard_output_or_in_a_file(tmp_path: Path, name: str, command: list[str]) -> None:
    plain = run_command(*command, stdout=subprocess.PIPE)
    printed = run_command(command[0], "--json", *command[1:], stdout=subprocess.PIPE)  # takes no word after it
    dash = [run_command(*command, *option, stdout=subprocess.PIPE) for option in (["--json=-"], ["--json", "-"])]
    path = tmp_path / "out.json"
    filed = run_command(*command, f"--json={path}", stdout=subprocess.PIPE)
    assert [done.returncode for done in (plain, printed, *dash, filed)] == [0] * 5
    data = without_times(json.loads(printed.stdout))
    for text in (dash[0].stdout, dash[1].stdout, path.read_text()):
        assert without_times(json.loads(text)) == data
    # With a file, standard output has what it has without.
    assert filed.stdout.splitlines()[:3] == plain.stdout.splitlines()[:3]
    with pytest.raises(ValueError, match="Expecting value"):
        json.loads(filed.stdout)


def test_a_word_after_json_is_the_commands_own_if_it_takes_one(tmp_path: Path) -> None:
    done = run_command("probe", "--json", "userspace", stdout=subprocess.PIPE)
    assert json.loads(done.stdout)["backend"] == "userspace"
    done = run_command("probe", "userspace", "--json", "out.json", stdout=subprocess.PIPE, cwd=tmp_path)
    assert done.stdout.startswith("userspace: ")
    assert json.loads((tmp_path / "out.json").read_text())["backend"] == "userspace"
    done = run_command("probe", "userspace", "--json", "out.json", "more", stdout=subprocess.PIPE)
    assert done.returncode == 2
    assert "unrecognized arguments: out.json more" in done.stderr


@pytest.mark.parametrize(("name", "command"), JSON_COMMANDS, ids=lambda value: " ".join(value))
def test_a_file_for_json_that_cannot_be_written_is_an_error(name: str, command: list[str]) -> None:
    done = run_command(*command, "--json=/dev/full", stdout=subprocess.DEVNULL)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "irqchip: cannot write /dev/full: No space left on device"


@pytest.mark.parametrize("command", [["run", "--hypervisor", "unicorn"], ["conformance", "userspace@unicorn"]])
def test_a_file_for_json_is_opened_before_the_work(command: list[str]) -> None:
    done = run_command(*command, "--json=/dev/null/out.json", stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "irqchip: --json: cannot write /dev/null/out.json: Not a directory\n"


def test_the_same_thing_has_the_same_key_in_every_json() -> None:
    def of(*command: str) -> Any:
        return json.loads(run_command(*command, "--json", stdout=subprocess.PIPE).stdout)

    listed = next(entry for entry in of("list") if entry["backend"] == "userspace")
    probed, selected = of("probe", "userspace"), of("select", "userspace", "--hypervisor", "unicorn")
    ran, played = of("run", "--hypervisor", "unicorn"), of("conformance", "userspace@unicorn", "-k", "tokens")
    for one in (probed, selected["chosen"], selected["candidates"][0], ran, played["chips"][0]):
        assert one["backend"] == "userspace"
    for one in (selected["chosen"], selected["candidates"][0], ran, played["chips"][0]):
        assert one["hypervisor"] == "unicorn"
    for one in (listed["on"]["unicorn"], probed["on"]["unicorn"], selected["candidates"][0]):
        assert (one["viable"], one["reason"], len(one["capabilities"])) == (True, None, 8)
    (scenario, *_), (rule, *_) = played["chips"][0]["scenarios"], of("conformance", "--list")
    assert scenario.keys() >= {"topic", "scenario"} <= rule.keys()


def test_plugins_add_subcommands(install: Install, use: Callable[[], None], capsys: pytest.CaptureFixture[str]) -> None:
    install("greeter", SUBCOMMAND)
    use()
    assert cli.main(["greet", "world"]) == 7
    assert capsys.readouterr().out == "hello world\n"
    assert cli.main(["greet", "nobody"]) == 2
    assert capsys.readouterr().err == "irqchip: name: nobody is not a name; give one\n"
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0
    assert "greet someone" in capsys.readouterr().out


def test_a_bare_command_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("usage: irqchip ")
    assert "show every plugin found" in printed.out
    assert printed.err == ""


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["lst"], "did you mean list?"),
        (["prob", "userspace", "--json"], "did you mean probe?"),
        (["newbackend"], "did you mean new-backend?"),
        (["xyzzy"], "commands: list, probe, select, new-backend, conformance"),
    ],
)
def test_a_misspelt_command_gets_a_suggestion(
    words: list[str], remedy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2
    assert capsys.readouterr().err.startswith(f"irqchip: no command is called {words[0]!r}; {remedy}")


def test_the_version_names_each_distribution(
    install: Install, use: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    install("good", backend("good"), "2.5")
    install("bad", "raise OSError('disk')")
    use()
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    core, *others = capsys.readouterr().out.splitlines()
    assert core.startswith("irqchip-core ")
    assert others == ["bad 1.0", "good 2.5"]


def test_a_plugin_that_offers_both_has_both_lines(
    install: Install, use: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    install(
        "both",
        hypervisor("hyper").replace("class Fake(", "class Host(").replace("return Fake()", "return Host()")
        + backend("chip"),
    )
    use()
    assert cli.main(["list"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[1:] == ["backend chip both 1.0 1 on hyper: viable (x2apic)", "hypervisor hyper both 1.0 1 usable"]


def test_errors_name_subject_argument_and_remedy() -> None:
    error = IrqChipError("is broken", subject="chip", argument="pin", remedy="mend it")
    assert str(error) == "chip: pin: is broken; mend it"
    assert str(IrqChipError("is broken")) == "is broken"
