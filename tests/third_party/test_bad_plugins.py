"""Plugins that are wrong in every way, really installed: each is reported, and the others keep working."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from attrs import frozen

from tests.third_party.environment import PATIENCE, build_wheels, install_into, run

pytestmark = pytest.mark.timeout(PATIENCE)

PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "bad-{name}"
version = "1.0"
[project.entry-points.irqchip]
{name} = "bad_{name}"
[tool.hatch.build.targets.wheel]
only-include = ["bad_{name}.py"]
"""

BACKEND = """
from irqchip_core.hookspecs import Backend, Hypervisor, Probe, hookimpl

class Mine(Backend):
    name = "{name}"
    api_version = 1
    summary = "fits everywhere"
    rank = 1000
    def probe(self, vm):
        return Probe()
    def create(self, vm, vcpu_count):
        raise NotImplementedError

@hookimpl
def irqchip_backend():
    return Mine()
"""

HYPERVISOR = """
class Host(Hypervisor):
    name = "{name}_host"
    api_version = 1
    summary = "pretends"
    rank = 1000
    def probe(self):
        return "it is not there"
    def create_vm(self):
        raise NotImplementedError

@hookimpl
def irqchip_hypervisor():
    return Host()
"""


@frozen
class Bad:
    """A plugin that cannot be used, and the reason that is to be given."""

    source: str
    reason: str


def changed(old: str, new: str, name: str = "mine") -> str:
    source = BACKEND.format(name=name)
    assert old in source
    return source.replace(old, new)


BAD = {
    "import_error": Bad("import not_there_at_all\n", "ModuleNotFoundError: No module named 'not_there_at_all'"),
    "version": Bad(
        changed("api_version = 1", "api_version = 2"),
        "mine was written for API version 2, this is version 1; install matching versions",
    ),
    "no_argument": Bad(
        BACKEND.format(name="mine") + "\n@hookimpl\ndef irqchip_subcommand():\n    pass\n",
        "irqchip_subcommand lacks its argument; let it take subparsers",
    ),
    "short_create": Bad(
        changed("create(self, vm, vcpu_count)", "create(self, vm)"),
        "create of Mine does not fit: too many positional arguments; let it take (self, vm, vcpu_count)",
    ),
    "more_arguments": Bad(
        changed("irqchip_backend()", "irqchip_backend(vm, chip)"),
        "PluginValidationError: Plugin 'bad-more_arguments:more_arguments' for hook 'irqchip_backend'",
    ),
    "hook_wrapper": Bad(
        changed("@hookimpl", "@hookimpl(wrapper=True)").replace("    return Mine()", "    return (yield)"),
        "irqchip_backend is a hook wrapper; mark it with hookimpl alone",
    ),
    "twin_one": Bad(BACKEND.format(name="twin"), "backend twin is offered by bad-twin_one 1.0 and bad-twin_two 1.0"),
    "twin_two": Bad(BACKEND.format(name="twin"), "backend twin is offered by bad-twin_one 1.0 and bad-twin_two 1.0"),
    "raising": Bad(changed("    return Mine()", "    raise OSError('the disk is full')"), "OSError: the disk is full"),
    "half": Bad(
        BACKEND.format(name="half").replace("return Mine()", "return 5") + HYPERVISOR.format(name="half"),
        "irqchip_backend returned 5; return an instance of Backend",
    ),
    "other_half": Bad(
        BACKEND.format(name="other_half") + HYPERVISOR.format(name="other_half").replace("return Host()", "1 / 0"),
        "ZeroDivisionError: division by zero",
    ),
}

HANGING = {
    "hanging": Bad(
        "import threading\nthreading.Event().wait()\n",
        "the import of entry point hanging (bad_hanging) of bad-hanging 1.0 has not ended in 2 seconds; "
        "repair or uninstall it, or give it more time: IRQCHIP_PLUGIN_TIMEOUT",
    ),
    "hanging_hook": Bad(
        changed("    return Mine()", "    import threading\n    threading.Event().wait()"),
        "irqchip_backend of entry point hanging_hook (bad_hanging_hook) of bad-hanging_hook 1.0 has not ended",
    ),
}
SPINNING = {
    "spinning": Bad("while True:\n    pass\n", "the import of entry point spinning (bad_spinning) of bad-spinning 1.0"),
}
"""It takes half of the interpreter's time from those that are loaded after it, so it is not among them."""
ALL = BAD | HANGING | SPINNING

# These are spoiled after they are installed.
HALF_REMOVED = "half_removed"
MALFORMED = "malformed"
GOOD = "good"


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two folders with all of them installed: those that hang, and the others."""
    root = tmp_path_factory.mktemp("bad")
    sources = {name: bad.source for name, bad in ALL.items()}
    sources |= {name: BACKEND.format(name=name) for name in (GOOD, HALF_REMOVED, MALFORMED)}
    for name, source in sources.items():
        folder = root / "sources" / name
        folder.mkdir(parents=True)
        (folder / "pyproject.toml").write_text(PYPROJECT.format(name=name))
        (folder / f"bad_{name}.py").write_text(source)
    wheels = build_wheels(sorted((root / "sources").iterdir()), root / "wheels")
    names = {wheel: wheel.name.split("-")[0].removeprefix("bad_") for wheel in wheels}
    assert ALL.keys() <= set(names.values())
    install_into(root / "hanging", [wheel for wheel, name in names.items() if name in HANGING])
    install_into(root / "spinning", [wheel for wheel, name in names.items() if name in SPINNING])
    install_into(root / "site", [wheel for wheel, name in names.items() if name not in HANGING | SPINNING])
    (root / "site" / f"bad_{HALF_REMOVED}-1.0.dist-info" / "METADATA").unlink()
    return root / "hanging", root / "site"


@pytest.fixture
def site(sites: tuple[Path, Path]) -> Path:
    """The folder of those that do not hang."""
    return sites[1]


@pytest.fixture
def spinning(sites: tuple[Path, Path]) -> Path:
    """The folder of the one that spins."""
    return sites[0].parent / "spinning"


def python(where: Iterable[Path], *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python where those plugins are installed beside everything else."""
    path = os.pathsep.join(map(str, where))
    environment = os.environ | {"PYTHONPATH": path, "IRQCHIP_PLUGIN_TIMEOUT": "2"} | variables
    return run([sys.executable, *arguments], environment=environment)


@pytest.fixture(scope="module")
def listed(sites: tuple[Path, Path]) -> dict[str, dict[str, object]]:
    """What `irqchip list` says of each distribution."""
    done = python(sites, "-m", "irqchip_core", "list", "--json")
    assert done.returncode == 0, done.stdout
    return {entry["distribution"]: entry for entry in json.loads(done.stdout)}


@pytest.mark.parametrize("name", BAD | HANGING)
def test_the_list_shows_the_reason(listed: dict[str, dict[str, object]], name: str) -> None:
    error = str(listed[f"bad-{name}"]["error"])
    assert (BAD | HANGING)[name].reason in error
    assert "\n" not in error


def test_the_others_keep_working(listed: dict[str, dict[str, object]]) -> None:
    for distribution in (f"bad-{GOOD}", "irqchip-userspace", "irqchip-kvm-kernel", "irqchip-kvm", "irqchip-vmm"):
        assert listed[distribution]["error"] is None
    broken = {name for name, entry in listed.items() if entry["error"] is not None}
    assert broken == {f"bad-{name}" for name in BAD | HANGING}


def test_one_that_spins_is_left_behind(spinning: Path, site: Path) -> None:
    done = python([spinning, site], "-m", "irqchip_core", "list", "--json")
    assert done.returncode == 0, done.stdout
    entries = {entry["distribution"]: entry for entry in json.loads(done.stdout)}
    assert SPINNING["spinning"].reason in entries["bad-spinning"]["error"]
    assert entries[f"bad-{GOOD}"]["error"] is None


def test_one_that_was_removed_by_half_still_has_a_line(listed: dict[str, dict[str, object]]) -> None:
    assert listed["unknown"]["name"] == HALF_REMOVED


def test_the_table_shows_reasons_and_chips(site: Path) -> None:
    done = python([site], "-m", "irqchip_core", "list")
    assert done.returncode == 0, done.stdout
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert (
        "plugin import_error bad-import_error 1.0 - broken: ModuleNotFoundError: No module named 'not_there_at_all'"
        in (lines)
    )
    assert any(re.match(r"backend good bad-good 1\.0 1 on \w+: ", line) for line in lines)


def test_a_choice_is_made_all_the_same(site: Path) -> None:
    done = python([site], "-m", "irqchip_core", "select", GOOD, "--explain", IRQCHIP_BACKEND="")
    assert done.returncode == 0, done.stdout
    assert "chosen: asked for" in done.stdout
    done = python([site], "-m", "irqchip_core", "select", "--explain", IRQCHIP_BACKEND="")
    assert "broken: OSError: the disk is full" in done.stdout


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("half", "irqchip_backend returned 5; return an instance of Backend"),
        ("twin", "backend twin is offered by"),
        ("raising", "backend raising is broken: OSError: the disk is full; repair or reinstall bad-raising 1.0"),
    ],
)
def test_asked_for_by_name_it_is_told_why_not(site: Path, name: str, problem: str) -> None:
    done = python([site], "-m", "irqchip_core", "probe", name)
    assert done.returncode == 2
    assert problem in done.stdout
    assert "Traceback" not in done.stdout


STRICT = """
import sys
from importlib.metadata import entry_points
from irqchip_core.plugins.discovery import discover
from irqchip_core.errors import PluginError

wanted = [found for found in entry_points(group="irqchip") if found.name in sys.argv[1:]]
assert wanted
try:
    discover(strict=True, entry_points=wanted)
except PluginError as error:
    print(error)
else:
    sys.exit("nothing was raised")
"""


@pytest.mark.parametrize("name", ALL)
def test_strict_raises(sites: tuple[Path, Path], spinning: Path, name: str) -> None:
    names = ["twin_one", "twin_two"] if name.startswith("twin") else [name]
    done = python([*sites, spinning], "-c", STRICT, *names)
    assert done.returncode == 0, done.stdout
    assert done.stdout.startswith("bad-twin_one 1.0: " if name.startswith("twin") else f"bad-{name} 1.0: ")
    assert ALL[name].reason in done.stdout


def test_a_slow_plugin_is_named_while_it_is_waited_for(sites: tuple[Path, Path]) -> None:
    done = python(sites, "-c", STRICT, "hanging", IRQCHIP_PLUGIN_TIMEOUT="2.5")
    assert done.stdout.splitlines()[0] == (
        "irqchip: still waiting for the import of entry point hanging (bad_hanging) of bad-hanging 1.0, "
        "up to 2.5 seconds"
    )


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan", "1e300"])
def test_the_time_to_wait_is_a_number_of_seconds(site: Path, text: str) -> None:
    done = python([site], "-m", "irqchip_core", "list", IRQCHIP_PLUGIN_TIMEOUT=text)
    assert done.returncode == 2
    assert (
        done.stdout == f"irqchip: IRQCHIP_PLUGIN_TIMEOUT: '{text}' is not a time to wait; give seconds, more than 0\n"
    )


def test_a_malformed_distribution_takes_no_one_down(site: Path) -> None:
    """Last, as it spoils what the others look at."""
    (site / f"bad_{MALFORMED}-1.0.dist-info" / "entry_points.txt").write_text("[irqchip]\nno equals sign\n")
    (site / "stranger-1.0.dist-info").mkdir()
    (site / "stranger-1.0.dist-info" / "entry_points.txt").write_text("[console_scripts]\nno equals sign\n")
    done = python([site], "-m", "irqchip_core", "list", "--json")
    assert done.returncode == 0, done.stdout
    entries = {entry["distribution"]: entry for entry in json.loads(done.stdout)}
    assert entries[f"bad-{MALFORMED}"]["error"] == "its entry_points.txt is malformed; reinstall bad-malformed"
    assert entries[f"bad-{GOOD}"]["error"] is None
    assert entries["irqchip-userspace"]["error"] is None
