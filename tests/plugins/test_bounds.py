"""Plugins that never end, or that choose one another: each choice comes to an end, and names the one at fault."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from irqchip_core import selection
from irqchip_core.capabilities import IrqChipCap
from irqchip_core.cli import main as cli
from irqchip_core.clock import VirtualClock
from irqchip_core.errors import NothingSuitable, PluginError, TimedOut
from irqchip_core.hookspecs import Backend, Hypervisor, Probe
from irqchip_core.hypervisor.vcpu import Vm
from irqchip_core.plugins import offers
from irqchip_core.plugins.discovery import Plugins, discover
from irqchip_core.plugins.offers import BackendOffer, HypervisorOffer
from irqchip_core.routes import IrqRoute
from irqchip_core.selection import candidates, choose, create_irqchip, create_vm, select
from irqchip_core.testing import FakeVm
from tests.core.table_chip import TableChip
from tests.plugins.fake_plugins import Install, any_vm, backend, hypervisor, only_ours

PATIENCE = 30.0
SHORT = 0.2
"""Seconds that a call may take which never ends."""


# Wrappers

WRAPPER = """
from irqchip_core.hookspecs import API_VERSION, Backend, Probe, hookimpl
from irqchip_core.wrapping.backend import WrapperBackend
from irqchip_core.wrapping.wrapped import WrappedIrqChip

class Wrapping(WrapperBackend):
    name = "{name}"
    api_version = API_VERSION
    summary = "wraps"
    wraps = {wraps!r}
    def wrap(self, inner):
        return WrappedIrqChip(inner)

@hookimpl
def irqchip_backend():
    return Wrapping()
"""

BY_HAND = """
from irqchip_core.hookspecs import API_VERSION, Backend, Probe, hookimpl
from irqchip_core.selection import candidates, create_irqchip
from irqchip_core.wrapping.wrapped import WrappedIrqChip

class Wrapping(Backend):
    name = "{name}"
    api_version = API_VERSION
    summary = "wraps whatever fits, with no class of irqchip's to help"
    wrapper = True
    def probe(self, vm):
        for candidate in candidates(vm):
            if candidate.refusal is None:
                return candidate.probe
        return Probe("there is none")
    def create(self, vm, vcpu_count):
        return WrappedIrqChip(create_irqchip(vm=vm, vcpu_count=vcpu_count))

@hookimpl
def irqchip_backend():
    return Wrapping()
"""

WRAPPERS = {
    "one": WRAPPER.format(name="one", wraps=None),
    "two": WRAPPER.format(name="two", wraps=None),
    "by_hand": BY_HAND.format(name="by_hand"),
    "other_by_hand": BY_HAND.format(name="other_by_hand"),
    "of_one": WRAPPER.format(name="of_one", wraps="one"),
    "of_itself": WRAPPER.format(name="of_itself", wraps="of_itself"),
    "of_each": WRAPPER.format(name="of_each", wraps="of_other"),
    "of_other": WRAPPER.format(name="of_other", wraps="of_each"),
}
FIT = ("one", "two", "by_hand", "other_by_hand", "of_one")
"""Those of them that find a chip to wrap."""


@pytest.fixture
def wrappers(install: Install) -> None:
    for name, source in WRAPPERS.items():
        install(name, source)


def command(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """`irqchip` as a process of its own, where this test's plugins are installed beside the others."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("IRQCHIP_")}
    environment = kept | {"PYTHONPATH": str(folder)} | variables
    argv = [sys.executable, "-m", "irqchip_core", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=50, check=False, env=environment)


@pytest.mark.usefixtures("wrappers")
def test_the_list_says_which_wrappers_fit(tmp_path: Path) -> None:
    done = command(tmp_path, "list", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    entries = {entry["name"]: entry for entry in json.loads(done.stdout)}
    on_unicorn = {name: entries[name]["on"]["unicorn"] for name in WRAPPERS}
    assert {name for name, answer in on_unicorn.items() if answer["viable"]} == set(FIT)
    assert "of_itself: wraps: it is to wrap itself; name another one" in on_unicorn["of_itself"]["reason"]
    assert "it would wrap itself (of_each -> of_other -> of_each)" in on_unicorn["of_each"]["reason"]
    assert "it would wrap itself (of_other -> of_each -> of_other)" in on_unicorn["of_other"]["reason"]


@pytest.mark.usefixtures("wrappers")
@pytest.mark.parametrize("name", [*FIT, None])
def test_a_guest_runs_on_a_chip_among_wrappers(tmp_path: Path, name: str | None) -> None:
    """Named on the command line, or by the user, whose wish for a wrapper is not the wrapper's own."""
    wishes: list[tuple[list[str], dict[str, str]]] = [([], {})]
    if name is not None:
        wishes = [(["--chip", name], {}), ([], {"IRQCHIP_BACKEND": name})]
    for options, variables in wishes:
        done = command(tmp_path, "run", "--hypervisor", "unicorn", "--json", *options, **variables)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["chip"] == ("wrapped" if name else "userspace")


@pytest.mark.usefixtures("wrappers")
@pytest.mark.parametrize(("name", "way"), [("of_itself", "is to wrap itself"), ("of_each", "of_each -> of_other ->")])
def test_wrappers_that_lead_to_themselves_are_refused(tmp_path: Path, name: str, way: str) -> None:
    done = command(tmp_path, "run", "--hypervisor", "unicorn", "--chip", name)
    assert (done.returncode, done.stdout) == (2, "")
    assert way in done.stderr


class Counting(Backend):
    api_version = 1
    summary = "counts its probes"
    probed = 0

    def __init__(self, name: str, *, wraps: bool = False) -> None:
        self.name = name
        self.wrapper = wraps

    def probe(self, vm: Vm) -> Probe:
        self.probed += 1
        if self.wrapper:
            candidates(vm)
        return Probe()

    def create(self, vm: Vm, vcpu_count: int) -> TableChip:
        return TableChip()


def offer(monkeypatch: pytest.MonkeyPatch, *backends: Backend) -> Plugins:
    found = discover(entry_points=[])
    found.backends = {one.name: BackendOffer(one, seconds=PATIENCE) for one in backends}
    monkeypatch.setattr(selection, "installed", lambda: found)
    return found


def test_a_wrapper_that_chooses_probes_no_wrapper(monkeypatch: pytest.MonkeyPatch) -> None:
    inner, wrappers = Counting("inner"), [Counting(f"wrapper{number}", wraps=True) for number in range(5)]
    offer(monkeypatch, *wrappers, inner)
    with create_irqchip("wrapper0", vm=FakeVm()):
        assert [wrapper.probed for wrapper in wrappers] == [1, 0, 0, 0, 0]
    assert inner.probed == 1
    assert [one.refusal is None for one in candidates(FakeVm())] == [False] * 5 + [True]
    assert [wrapper.probed for wrapper in wrappers] == [2, 1, 1, 1, 1]


def test_a_choice_probes_no_more_than_it_must(monkeypatch: pytest.MonkeyPatch) -> None:
    wrapper, first, second = Counting("wrapper", wraps=True), Counting("first"), Counting("second")
    offer(monkeypatch, wrapper, first, second)
    create_irqchip(vm=FakeVm()).close()
    assert (wrapper.probed, first.probed, second.probed) == (0, 1, 0)


# Time limits


@pytest.fixture
def stop(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """What hanging plugins wait for; their threads are joined in the end."""
    event, before = threading.Event(), set(threading.enumerate())
    monkeypatch.setattr(offers, "stop", event, raising=False)
    yield event
    event.set()
    for thread in set(threading.enumerate()) - before:
        thread.join(PATIENCE)
        assert not thread.is_alive()


HANG = "__import__('irqchip_core.plugins.offers').plugins.offers.stop.wait()"


def hanging(source: str, old: str) -> str:
    assert old in source
    return source.replace(old, f"{HANG}; {old}")


def ours(timeout: float = SHORT) -> Plugins:
    found = only_ours(timeout=timeout)
    assert not found.broken()
    return found


@pytest.mark.usefixtures("stop")
def test_a_probe_that_hangs_is_named_and_not_waited_for_again(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("slow", backend("slow", rank=1, probe=HANG))
    install("good", backend("good", rank=2))
    found = ours()
    assert create_irqchip(vm=any_vm(), plugins=found).name == "good"
    threads = threading.active_count()
    with pytest.raises(
        NothingSuitable,
        match=r"slow: probe of backend slow \(entry point slow \(plugin_of_slow\w*\) of slow 1\.0\) has not ended in "
        r"0\.2 seconds; repair or uninstall it, or give it more time: IRQCHIP_PLUGIN_TIMEOUT",
    ):
        create_irqchip("slow", vm=any_vm(), plugins=found)
    assert threading.active_count() == threads


@pytest.mark.usefixtures("stop")
def test_a_create_that_hangs_is_named(install: Install) -> None:
    install("slow", hanging(backend("slow"), "from tests.core.table_chip import"))
    with pytest.raises(TimedOut, match=r"^create of backend slow \(entry point .*\) has not ended in 0\.2 seconds"):
        create_irqchip("slow", vm=any_vm(), plugins=ours())


@pytest.mark.usefixtures("stop")
@pytest.mark.parametrize(("method", "old"), [("probe", "return None"), ("create_vm", "return Vm()")])
def test_a_hypervisor_that_hangs_is_named(install: Install, method: str, old: str) -> None:
    install("slow", hanging(hypervisor("slow", rank=1), old))
    install("good", hypervisor("good", rank=2))
    install("chip", backend("chip"))
    found = ours()
    with pytest.raises(PluginError if method == "create_vm" else NothingSuitable) as caught:
        create_vm("slow", plugins=found)
    assert f"{method} of hypervisor slow (entry point slow " in str(caught.value)
    chosen = choose(plugins=found)
    with chosen.vm:
        assert chosen.vm.hypervisor == "good"
    assert f"{method} of hypervisor slow " in chosen.passed_over["slow"]


@pytest.mark.usefixtures("stop")
def test_the_one_inside_a_wrapper_is_named_rather_than_the_wrapper(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("slow", backend("slow", probe=HANG))
    install("wrapper", WRAPPER.format(name="wrapper", wraps="slow"))
    found = ours(timeout=2.0)
    monkeypatch.setattr(selection, "installed", lambda: found)
    with pytest.raises(NothingSuitable, match=r"there is no chip to wrap: slow: probe of backend slow \(.* in 1\.[78]"):
        create_irqchip("wrapper", vm=any_vm(), plugins=found)


@pytest.mark.usefixtures("stop")
def test_an_attribute_that_hangs_is_part_of_its_hook(install: Install) -> None:
    slow = backend("slow").replace('name = "slow"', f"@property\n    def name(self): {HANG}")
    install("slow", slow)
    (record,) = only_ours(timeout=SHORT).broken()
    assert record.reason.startswith("irqchip_backend of entry point slow (plugin_of_slow")


SUBCOMMAND = f"""
from irqchip_core.hookspecs import hookimpl

@hookimpl
def irqchip_subcommand(subparsers):
    {HANG}
"""


@pytest.mark.usefixtures("stop")
def test_a_subcommand_that_is_never_added_is_named(
    install: Install, use: Callable[[], None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    install("slow", SUBCOMMAND)
    use()
    monkeypatch.setenv("IRQCHIP_PLUGIN_TIMEOUT", str(SHORT))
    assert cli.main(["list"]) == 0
    assert "irqchip_subcommand of entry point slow (plugin_of_slow" in capsys.readouterr().out


OBSERVER = """
from irqchip_core.hookspecs import hookimpl
seen = []

@hookimpl
def irqchip_created(chip):
    {action}

@hookimpl
def irqchip_routes_changed(routes):
    seen.append(len(list(routes)))
"""


@pytest.mark.usefixtures("stop")
def test_a_hook_that_hangs_is_named_and_its_plugin_left_out(
    install: Install, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("slow", OBSERVER.format(action=HANG))
    install("exits", OBSERVER.format(action="raise SystemExit(3)"))
    install("good", backend("good"))
    found = ours()
    monkeypatch.setenv("IRQCHIP_PLUGIN_TIMEOUT", str(SHORT))
    with create_irqchip("good", vm=any_vm(), plugins=found) as chip:
        chip.set_irq_routes([IrqRoute.ioapic(4)])
    seen = {name: vars(plugin)["seen"] for name, plugin in found.manager.list_name_plugin() if "seen" in vars(plugin)}
    assert seen == {"slow:slow": [], "exits:exits": [1]}
    assert "irqchip_created of plugin slow:slow has not ended in 0.2 seconds" in caplog.text


class Late(Hypervisor):
    """Makes its VM when it is given up already."""

    name = "late"
    api_version = 1
    summary = "late"

    def __init__(self) -> None:
        self.given_up, self.closed = threading.Event(), threading.Event()

    def probe(self) -> str | None:
        return None

    def create_vm(self) -> Vm:
        assert self.given_up.wait(PATIENCE)
        vm = FakeVm()
        vm.close = self.closed.set  # type: ignore[method-assign]
        return vm


def test_what_is_made_too_late_is_closed() -> None:
    late = Late()
    with pytest.raises(TimedOut, match=r"^create_vm of hypervisor late has not ended"):
        HypervisorOffer(late, seconds=SHORT).create_vm()
    late.given_up.set()
    assert late.closed.wait(PATIENCE)


# What ends the wrong way


def test_a_plugin_that_exits_ends_no_choice(install: Install) -> None:
    install("exits", backend("exits", rank=1, probe="raise SystemExit(3)"))
    install("exits_later", backend("exits_later").replace("from tests.core", "exit(3)\n        from tests.core"))
    install("hyper_exits", hypervisor("hyper_exits", rank=1, probe="exit(3)"))
    install("hyper_odd", hypervisor("hyper_odd", rank=2, probe="return 5"))
    install("hyper", hypervisor("hyper", rank=3))
    found = ours(PATIENCE)
    assert select(plugins=found).backend.name == "exits_later"
    with pytest.raises(NothingSuitable, match="exits: its probe failed with SystemExit: 3"):
        create_irqchip("exits", vm=any_vm(), plugins=found)
    with pytest.raises(PluginError, match="exits_later: it failed with SystemExit: 3"):
        create_irqchip("exits_later", vm=any_vm(), plugins=found)
    with pytest.raises(NothingSuitable, match="hyper_exits: its probe failed with SystemExit: 3"):
        create_vm("hyper_exits", plugins=found)
    with pytest.raises(NothingSuitable, match="hyper_odd: its probe failed with TypeError: it answered 5"):
        create_vm("hyper_odd", plugins=found)


def test_an_offer_has_what_its_plugin_says(install: Install) -> None:
    install("good", backend("good", rank=7, hypervisors="frozenset({'here'})"))
    good = ours(PATIENCE).backends["good"]
    assert (good.name, good.rank, good.hypervisors, good.wrapper) == ("good", 7, frozenset({"here"}), False)
    assert good.probe(any_vm()).capabilities == {IrqChipCap.X2APIC}


class InTime(Hypervisor):
    """Makes its own VMs in virtual time, and says so by itself."""

    name, api_version, summary, virtual_time = "in_time", 1, "tries", True

    def probe(self) -> str | None:
        raise AssertionError("the VM that it makes is its answer")

    def create_vm(self) -> Vm:
        raise AssertionError

    def try_create_vm(self, clock: VirtualClock | None = None) -> Vm | str:
        return "there is no processor" if clock is None else FakeVm()


def test_a_hypervisor_may_answer_by_making_its_vm() -> None:
    found = discover(entry_points=[])
    found.hypervisors = {"in_time": HypervisorOffer(InTime(), seconds=PATIENCE)}
    assert isinstance(create_vm(clock=VirtualClock(), plugins=found), FakeVm)
    with pytest.raises(NothingSuitable, match="in_time: there is no processor"):
        create_vm(plugins=found)
