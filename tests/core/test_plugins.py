"""Discovery and choice, with plugins that are really found by their entry points."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from irqchip_core import cli, selection
from irqchip_core.chip import IrqChip, IrqChipCap
from irqchip_core.clock import VirtualClock
from irqchip_core.errors import (
    DuplicateName,
    InvalidArgument,
    IrqChipError,
    NothingSuitable,
    PluginError,
    UnknownName,
    Unsupported,
    WrongType,
)
from irqchip_core.plugins import PluginRecord, Plugins, discover
from irqchip_core.routes import IrqRoute
from irqchip_core.selection import candidates, create_irqchip, create_vm
from tests.core.table_chip import TableChip

HYPERVISOR = """
from irqchip_core.hookspecs import API_VERSION, Hypervisor, hookimpl

class Vm:
    hypervisor = "{name}"
    clock = tsc_hz = can_exit_on_msrs = None
    def exit_on_msrs(self, msrs): ...
    def map_memory(self, guest_address, size): ...
    def create_vcpu(self, vcpu_id): ...
    def supported_cpuid(self): ...
    def close(self): ...
    def __enter__(self): ...
    def __exit__(self, *exc_info): ...

class Fake(Hypervisor):
    name = "{name}"
    api_version = {api}
    summary = "pretends"
    rank = {rank}
    def probe(self):
        {probe}
    def create_vm(self):
        return Vm()

@hookimpl
def irqchip_hypervisor():
    return Fake()
"""

BACKEND = """
from irqchip_core.chip import IrqChipCap
from irqchip_core.hookspecs import API_VERSION, Backend, Probe, hookimpl

class Fake(Backend):
    name = "{name}"
    api_version = {api}
    summary = "pretends"
    hypervisors = {hypervisors}
    rank = {rank}
    def probe(self, vm):
        {probe}
    def create(self, vm, vcpu_count):
        from tests.core.table_chip import TableChip
        chip = TableChip()
        chip.name = self.name
        return chip

@hookimpl
def irqchip_backend():
    return Fake()
"""

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put distributions of one module each where Python looks for them."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def distribution(name: str, source: str, version: str = "1.0", module: str | None = None) -> None:
        module = module or f"plugin_of_{name}_{tmp_path.name.replace('-', '_')}"
        (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[irqchip]\n{name} = {module}\n")

    return distribution


def backend(
    name: str,
    *,
    api: object = "API_VERSION",
    hypervisors: object = None,
    rank: object = 100,
    probe: str = "return Probe(capabilities=frozenset({IrqChipCap.X2APIC}))",
) -> str:
    return BACKEND.format(name=name, api=api, hypervisors=hypervisors, rank=rank, probe=probe)


def hypervisor(name: str, *, api: object = "API_VERSION", rank: int = 100, probe: str = "return None") -> str:
    return HYPERVISOR.format(name=name, api=api, rank=rank, probe=probe)


def any_vm() -> Any:
    """What a backend that looks at nothing else takes for a VM."""
    return SimpleNamespace(hypervisor="any")


def ours(found: Plugins) -> dict[str, PluginRecord]:
    """The records of this test's own distributions."""
    return {record.name: record for record in found.records if record.module.startswith("plugin_of_")}


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


def test_choice_takes_the_first_that_fits(install: Install) -> None:
    install("hyper", hypervisor("hyper"))
    install("first", backend("first", rank=1, hypervisors="frozenset({'other'})"))
    install("second", backend("second", rank=2, probe="return Probe('this kernel is too old; update it')"))
    install("third", backend("third", rank=3, probe="raise ValueError('oops')"))
    install("fourth", backend("fourth", rank=4, probe="return Probe()"))
    install("fifth", backend("fifth", rank=5))
    found = discover()
    vm = create_vm("hyper", plugins=found)
    reasons = {
        judged.backend.name: judged.refusal for judged in candidates(vm, require=[IrqChipCap.X2APIC], plugins=found)
    }
    assert {name: reasons[name] for name in ("first", "second", "third", "fourth", "fifth")} == {
        "first": "it needs a VM of hypervisor other, not of hyper",
        "second": "this kernel is too old; update it",
        "third": "its probe failed with ValueError: oops",
        "fourth": "it cannot do x2apic on hyper",
        "fifth": None,
    }
    assert create_irqchip(vm=vm, require={IrqChipCap.X2APIC}, plugins=found).name == "fifth"
    assert create_irqchip(vm=vm, plugins=found).name == "fourth"
    assert create_irqchip("fifth", vm=vm, plugins=found).name == "fifth"
    with pytest.raises(NothingSuitable, match="first: it needs a VM of hypervisor other") as caught:
        create_irqchip(vm=vm, require={IrqChipCap.TSC_DEADLINE_TIMER}, plugins=found)
    assert len(caught.value.refusals) == len(found.backends)
    with pytest.raises(NothingSuitable, match="backend second does not fit\n  second: this kernel is too old"):
        create_irqchip("second", vm=vm, plugins=found)
    with pytest.raises(InvalidArgument, match="vcpu_count: a VM has 1 vCPU or more, not 0"):
        create_irqchip(vm=vm, vcpu_count=0, plugins=found)


@pytest.mark.parametrize(
    "answer", ["None", "'viable'", "Probe(refusal=5)", "Probe(capabilities=None)", "Probe(capabilities={'x2apic'})"]
)
def test_a_probe_that_answers_nonsense_is_a_refusal(install: Install, answer: str) -> None:
    install("odd", backend("odd", rank=1, probe=f"return {answer}"))
    install("good", backend("good", rank=2))
    found = discover()
    assert create_irqchip(vm=any_vm(), plugins=found, require={IrqChipCap.X2APIC}).name == "good"
    with pytest.raises(NothingSuitable, match="odd: its probe failed with TypeError"):
        create_irqchip("odd", vm=any_vm(), plugins=found)


@pytest.mark.parametrize(("body", "problem"), [("return None", "it made None"), ("1 / 0", "failed with ZeroDivision")])
def test_a_backend_that_makes_no_chip_is_named(install: Install, body: str, problem: str) -> None:
    install("odd", backend("odd").replace("from tests.core.table_chip import TableChip", body))
    with pytest.raises(PluginError, match=f"odd: .*{problem}"):
        create_irqchip("odd", vm=any_vm(), plugins=discover())


def test_a_hypervisor_that_makes_no_vm_is_named(install: Install) -> None:
    install("odd", hypervisor("odd").replace("return Vm()", "return 5"))
    with pytest.raises(PluginError, match="odd: it made 5, which is no Vm"):
        create_vm("odd", plugins=discover())


def test_requirements_are_capabilities(install: Install) -> None:
    with pytest.raises(WrongType, match="'x2apic' is no capability; give members of IrqChipCap"):
        create_irqchip(vm=any_vm(), require={"x2apic"}, plugins=discover())  # type: ignore[arg-type]


def test_hypervisors_are_chosen_likewise(install: Install) -> None:
    install("none", hypervisor("none", rank=-3, probe="return 'there is no processor'"))
    install("raises", hypervisor("raises", rank=-2, probe="raise OSError('disk')"))
    install("works", hypervisor("works", rank=-1))
    found = discover()
    assert create_vm(plugins=found).hypervisor == "works"
    with pytest.raises(NothingSuitable, match="hypervisor none cannot be used here\n  none: there is no processor"):
        create_vm("none", plugins=found)
    del found.hypervisors["works"]
    for name in ("kvm", "unicorn"):
        found.hypervisors.pop(name, None)
    with pytest.raises(NothingSuitable, match="raises: its probe failed with OSError: disk"):
        create_vm(plugins=found)


def test_a_vm_is_chosen_for_its_chip(install: Install) -> None:
    install("first", hypervisor("first", rank=-3))
    install("second", hypervisor("second", rank=-2))
    install("chip", backend("needs_second", hypervisors="frozenset({'second'})"))
    install("lost", backend("needs_third", hypervisors="frozenset({'third'})"))
    found = discover()
    assert create_vm(plugins=found).hypervisor == "first"
    assert create_vm(backend="needs_second", plugins=found).hypervisor == "second"
    assert create_vm("first", backend="needs_second", plugins=found).hypervisor == "first"  # the chip will say why not
    with pytest.raises(NothingSuitable, match="no hypervisor can be used here for needs_third; pip install"):
        create_vm(backend="needs_third", plugins=found)
    with pytest.raises(UnknownName, match="did you mean needs_second"):
        create_vm(backend="needs_secnd", plugins=found)


IN_VIRTUAL_TIME = """
    virtual_time = True
    def create_vm_in_virtual_time(self, clock):
        vm = Vm()
        vm.clock = clock
        return vm

@hookimpl
"""


def test_virtual_time_is_for_hypervisors_that_have_it(install: Install) -> None:
    install("real", hypervisor("real", rank=-3))
    install("virtual", hypervisor("virtual", rank=-2).replace("@hookimpl\n", IN_VIRTUAL_TIME))
    found = discover()
    clock = VirtualClock()
    vm = create_vm(clock=clock, plugins=found)
    assert (vm.hypervisor, vm.clock) == ("virtual", clock)
    with pytest.raises(NothingSuitable, match="real: its guests run in real time, which never repeats"):
        create_vm("real", clock=clock, plugins=found)
    with pytest.raises(Unsupported, match="real: its guests run in real time"):
        found.hypervisors["real"].create_vm_in_virtual_time(clock)


def test_with_nothing_installed_the_error_says_what_to_install() -> None:
    empty = discover(entry_points=[])
    vm = any_vm()
    with pytest.raises(NothingSuitable, match="no backend is installed; pip install irqchip-kvm-kernel"):
        create_irqchip(vm=vm, plugins=empty)
    with pytest.raises(NothingSuitable, match="pip install irqchip-kvm"):
        create_vm(plugins=empty)


def test_unknown_names_get_a_suggestion(install: Install) -> None:
    install("good", backend("good_chip"))
    install("bad", "raise OSError('disk')")
    found = discover()
    vm = any_vm()
    for name, remedy in [
        ("god_chip", "did you mean good_chip?"),
        ("userspace", "pip install irqchip-userspace"),
        ("usrspace", r"did you mean userspace\? \(pip install irqchip-userspace\)"),
        ("zzz", "installed: .*good_chip"),
        ("bad", r"backend bad is broken: OSError: disk; repair or reinstall bad 1\.0"),
    ]:
        if name.startswith("us") and "userspace" in found.backends:
            continue
        with pytest.raises(UnknownName, match=remedy) as caught:
            create_irqchip(name, vm=vm, plugins=found)
        assert caught.value.name == name


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
        chip.unregister_edge_irq_event(4, event)  # nothing was there: no one is told
        chip.set_irq_routes([IrqRoute.ioapic(4)])
    (observer,) = [plugin for name, plugin in found.manager.list_name_plugin() if name == "observer:observer"]
    assert observer.seen == [  # type: ignore[attr-defined]
        ("created", "good"),
        ("registered", 4, "COM1", 0),
        ("unregistered", 4),
        ("routes", 1),
    ]


def test_an_observer_that_raises_disturbs_no_one(caplog: pytest.LogCaptureFixture) -> None:
    from irqchip_core.observers import ChipObserver

    class Bad(ChipObserver):
        def chip_created(self, chip: IrqChip) -> None:
            raise OSError("disk")

    class Good(ChipObserver):
        told = False

        def chip_created(self, chip: IrqChip) -> None:
            self.told = True

    with TableChip() as chip:
        good = Good()
        chip.observers.add(Bad())
        chip.observers.add(good)
        chip.observers.chip_created(chip)
        assert good.told
    assert "failed in chip_created" in caplog.text


@pytest.fixture
def use(install: Install, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Let the command see what this test has installed, and only that."""

    def found() -> None:
        entry_points = importlib.metadata.entry_points(group="irqchip")
        only = discover(entry_points=[found for found in entry_points if found.value.startswith("plugin_of_")])
        monkeypatch.setattr(cli, "installed", lambda: only)
        monkeypatch.setattr(selection, "installed", lambda: only)

    return found


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
        "backend picky picky 1.0 1 on missing: no: hypervisor missing is not installed",
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


def test_output_that_cannot_be_written_is_no_traceback() -> None:
    with open("/dev/full", "w") as full:
        done = run_command("list", stdout=full)
    assert (done.returncode, done.stderr) == (1, "irqchip: cannot write: No space left on device\n")
    closed = run_command("list", preexec_fn=lambda: os.close(1))
    assert "Traceback" not in closed.stderr
    assert closed.returncode == 1


def test_names_of_the_other_kind_are_told_apart(install: Install) -> None:
    install("hyper", hypervisor("hyper"))
    with pytest.raises(UnknownName, match="no backend is called 'hyper'; hyper is a hypervisor"):
        create_irqchip("hyper", vm=any_vm(), plugins=discover())
    with pytest.raises(UnknownName, match="no hypervisor is called ''"):
        create_vm("", plugins=discover())


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


def test_errors_name_subject_argument_and_remedy() -> None:
    error = IrqChipError("is broken", subject="chip", argument="pin", remedy="mend it")
    assert str(error) == "chip: pin: is broken; mend it"
    assert str(IrqChipError("is broken")) == "is broken"
