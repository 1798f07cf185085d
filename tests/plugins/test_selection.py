"""Choice: by name, by what the chip must be able to do, by preference, by the user."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from irqchip_core.capabilities import IrqChipCap
from irqchip_core.cli import main as cli
from irqchip_core.clock import VirtualClock
from irqchip_core.errors import InvalidArgument, NothingSuitable, PluginError, UnknownName, Unsupported, WrongType
from irqchip_core.plugins.discovery import discover, installed
from irqchip_core.selection import BACKEND_VARIABLE, HYPERVISOR_VARIABLE, candidates, create_irqchip, create_vm, select
from tests.plugins.fake_plugins import Install, any_vm, backend, hypervisor, only_ours


def test_choice_takes_the_first_that_fits(install: Install) -> None:
    install("hyper", hypervisor("hyper"))
    install("first", backend("first", rank=1, hypervisors="frozenset({'other'})"))
    install("second", backend("second", rank=2, probe="return Probe('this kernel is too old; update it')"))
    install("third", backend("third", rank=3, probe="raise ValueError('oops')"))
    install("fourth", backend("fourth", rank=4, probe="return Probe()"))
    install("fifth", backend("fifth", rank=5))
    found = only_ours()
    vm = create_vm("hyper", plugins=found)
    reasons = {
        judged.backend.name: judged.refusal for judged in candidates(vm, require=[IrqChipCap.X2APIC], plugins=found)
    }
    assert {name: reasons[name] for name in ("first", "second", "third", "fourth", "fifth")} == {
        "first": "it needs a VM of hypervisor other, not of hyper",
        "second": "this kernel is too old; update it",
        "third": "its probe failed with ValueError: oops",
        "fourth": "it lacks x2apic on hyper",
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
    found = only_ours()
    assert create_vm(plugins=found).hypervisor == "works"
    with pytest.raises(NothingSuitable, match="hypervisor none cannot be used here\n  none: there is no processor"):
        create_vm("none", plugins=found)
    del found.hypervisors["works"]
    with pytest.raises(NothingSuitable, match="raises: its probe failed with OSError: disk"):
        create_vm(plugins=found)


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
    found = only_ours()
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


def test_names_of_the_other_kind_are_told_apart(install: Install) -> None:
    install("hyper", hypervisor("hyper"))
    with pytest.raises(UnknownName, match="no backend is called 'hyper'; hyper is a hypervisor"):
        create_irqchip("hyper", vm=any_vm(), plugins=discover())
    with pytest.raises(UnknownName, match="no hypervisor is called ''"):
        create_vm("", plugins=discover())


# Preference, and what is never taken unasked


def test_the_preferred_come_first_in_their_order(install: Install) -> None:
    for rank, name in enumerate(("first", "second", "third", "fourth")):
        install(name, backend(name, rank=rank))
    install("picky", backend("picky", rank=4, probe="return Probe('too old; update it')"))
    found = only_ours()

    def taken(*prefer: str) -> str:
        return create_irqchip(vm=any_vm(), prefer=prefer, plugins=found).name

    assert taken() == "first"
    assert taken("third", "second") == "third"
    assert taken("picky", "fourth") == "fourth"
    assert taken("missing", "second") == "second"
    assert taken("missing") == "first"
    judged = candidates(any_vm(), prefer=["fourth", "second"], plugins=found)
    assert [candidate.backend.name for candidate in judged] == ["fourth", "second", "first", "third", "picky"]


def test_a_preferred_chip_must_do_what_is_required(install: Install) -> None:
    install("weak", backend("weak", probe="return Probe()"))
    install("strong", backend("strong"))
    chip = create_irqchip(vm=any_vm(), prefer=["weak"], require={IrqChipCap.X2APIC}, plugins=only_ours())
    assert chip.name == "strong"


def test_where_nothing_fits_the_missing_preferred_are_named_too(install: Install) -> None:
    install("picky", backend("picky", probe="return Probe('too old; update it')"))
    with pytest.raises(NothingSuitable) as caught:
        create_irqchip(vm=any_vm(), prefer=["pickyy"], plugins=only_ours())
    assert caught.value.refusals == (
        ("picky", "too old; update it"),
        ("pickyy", "no backend is called 'pickyy'; did you mean picky?"),
    )


@pytest.mark.parametrize("prefer", ["first", [5]])
def test_preferences_are_a_list_of_names(prefer: object) -> None:
    with pytest.raises(WrongType, match=r"prefer: .*; give "):
        create_irqchip(vm=any_vm(), prefer=prefer, plugins=discover(entry_points=[]))  # type: ignore[arg-type]


WRAPPER = backend("wrapper", rank=-1).replace("summary =", "wrapper = True\n    summary =")


def test_a_wrapper_is_never_taken_unasked(install: Install) -> None:
    install("wrapper", WRAPPER)
    install("plain", backend("plain"))
    found = only_ours()
    assert create_irqchip(vm=any_vm(), plugins=found).name == "plain"
    assert create_irqchip("wrapper", vm=any_vm(), plugins=found).name == "wrapper"
    assert create_irqchip(vm=any_vm(), prefer=["wrapper"], plugins=found).name == "wrapper"
    del found.backends["plain"]
    with pytest.raises(NothingSuitable, match="wrapper: it wraps another chip, and is taken only by name"):
        create_irqchip(vm=any_vm(), plugins=found)


def test_whether_it_wraps_is_a_yes_or_no(install: Install) -> None:
    install("odd", WRAPPER.replace("wrapper = True", "wrapper = 'plain'"))
    (record,) = only_ours().broken()
    assert record.reason == "wrapper of Fake is 'plain'; say True or False"


# The user's wishes


def test_the_environment_names_what_the_program_does_not(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("one", backend("one", rank=1))
    install("two", backend("two", rank=2, probe="return Probe()"))
    install("here", hypervisor("here", rank=1))
    install("there", hypervisor("there", rank=2))
    found = only_ours()
    monkeypatch.setenv(BACKEND_VARIABLE, "two")
    monkeypatch.setenv(HYPERVISOR_VARIABLE, "there")
    assert create_irqchip(vm=any_vm(), plugins=found).name == "two"
    assert create_irqchip(vm=any_vm(), prefer=["one"], plugins=found).name == "two"
    assert create_irqchip("one", vm=any_vm(), plugins=found).name == "one"
    assert create_vm(plugins=found).hypervisor == "there"
    assert create_vm("here", plugins=found).hypervisor == "here"
    chosen = select(plugins=found)
    assert (chosen.backend.name, chosen.hypervisor) == ("two", "there")
    with pytest.raises(NothingSuitable, match=r"^IRQCHIP_BACKEND: backend two does not fit\n  two: it lacks"):
        create_irqchip(vm=any_vm(), require={IrqChipCap.X2APIC}, plugins=found)
    monkeypatch.setenv(BACKEND_VARIABLE, "three")
    monkeypatch.setenv(HYPERVISOR_VARIABLE, "nowhere")
    with pytest.raises(UnknownName, match=r"^IRQCHIP_BACKEND: no backend is called 'three'"):
        create_irqchip(vm=any_vm(), plugins=found)
    with pytest.raises(UnknownName, match=r"^IRQCHIP_HYPERVISOR: no hypervisor is called 'nowhere'"):
        create_vm(plugins=found)


# Chip and hypervisor together


def test_select_takes_the_hypervisor_on_which_a_chip_fits(install: Install) -> None:
    install("here", hypervisor("here", rank=1))
    install("there", hypervisor("there", rank=2))
    install("absent", hypervisor("absent", rank=0, probe="return 'there is no processor'"))
    install("local", backend("local", rank=1, hypervisors="frozenset({'here'})", probe="return Probe()"))
    install("any", backend("any", rank=2, probe="return Probe()"))
    install("strong", backend("strong", rank=3, hypervisors="frozenset({'there', 'absent'})"))
    found = only_ours()

    def taken(name: str | None = None, **wishes: object) -> str:
        chosen = select(name, plugins=found, **wishes)  # type: ignore[arg-type]
        return f"{chosen.backend.name} on {chosen.hypervisor}"

    assert taken() == "local on here"
    assert taken(hypervisor="there") == "any on there"
    assert taken(require={IrqChipCap.X2APIC}) == "strong on there"
    assert taken(prefer=["strong"]) == "strong on there"
    assert taken(prefer=["any", "strong"]) == "any on here"
    assert taken("strong") == "strong on there"
    with pytest.raises(NothingSuitable) as caught:
        taken(require={IrqChipCap.TSC_DEADLINE_TIMER})
    assert caught.value.refusals == (
        ("any on absent", "there is no processor"),
        ("strong on absent", "there is no processor"),
        ("local on here", "it lacks tsc_deadline_timer on here"),
        ("any on here", "it lacks tsc_deadline_timer on here"),
        ("any on there", "it lacks tsc_deadline_timer on there"),
        ("strong on there", "it lacks tsc_deadline_timer on there"),
    )
    with pytest.raises(NothingSuitable, match="local on there: it needs a VM of hypervisor here, not of there"):
        taken("local", hypervisor="there")


def test_select_without_a_hypervisor_says_what_to_install(install: Install) -> None:
    install("any", backend("any"))
    with pytest.raises(NothingSuitable, match="no hypervisor is installed; pip install irqchip-kvm"):
        select(plugins=only_ours())
    install("local", backend("local", hypervisors="frozenset({'kvm'})"))
    with pytest.raises(NothingSuitable, match="local on kvm: no hypervisor is called 'kvm'; pip install irqchip-kvm"):
        select(plugins=only_ours())


def test_the_order_of_this_projects_chips() -> None:
    ours = ("kvm_kernel", "kvm_split", "userspace")
    order = [name for name in installed().backends if name in ours]
    assert order == [name for name in ours if name in order]
    assert [name for name in installed().hypervisors if name in ("kvm", "unicorn")] == ["kvm", "unicorn"]


@pytest.mark.kvm
@pytest.mark.parametrize(
    ("wishes", "chosen"),
    [
        ({}, "kvm_kernel on kvm"),
        ({"require": {IrqChipCap.X2APIC}}, "kvm_kernel on kvm"),
        ({"prefer": ["userspace"]}, "userspace on kvm"),
        ({"prefer": ["nothing_known", "userspace"]}, "userspace on kvm"),
        ({"hypervisor": "unicorn"}, "userspace on unicorn"),
        ({"hypervisor": "unicorn", "prefer": ["kvm_kernel"]}, "userspace on unicorn"),
    ],
)
def test_the_choice_on_this_machine(
    wishes: dict[str, object], chosen: str, monkeypatch: pytest.MonkeyPatch, no_leaks: None
) -> None:
    monkeypatch.delenv(BACKEND_VARIABLE, raising=False)
    monkeypatch.delenv(HYPERVISOR_VARIABLE, raising=False)
    candidate = select(**wishes)  # type: ignore[arg-type]
    assert f"{candidate.backend.name} on {candidate.hypervisor}" == chosen


# The command


def test_the_command_explains_its_choice(
    install: Install, use: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    install("here", hypervisor("here", rank=1))
    install("local", backend("local", rank=1, hypervisors="frozenset({'here'})", probe="return Probe()"))
    install("one", backend("one", rank=2))
    install("two", backend("two", rank=3))
    install("wrapper", WRAPPER)
    install("bad", "raise OSError('disk')")
    use()
    assert cli.main(["select", "--require", "x2apic", "--prefer", "gone,two", "--explain"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "BACKEND HYPERVISOR CAPABILITIES VERDICT",
        "two here x2apic chosen: preferred",
        "wrapper here x2apic no: it wraps another chip, and is taken only by name",
        "local here - no: it lacks x2apic on here",
        "one here x2apic fits, but two on here comes first",
        "gone - - no backend is called 'gone'; did you mean one?",
        "bad - - broken: OSError: disk",
    ]
    assert cli.main(["select"]) == 0
    assert capsys.readouterr().out == "local on here\n"
    assert cli.main(["select", "wrapper", "--explain"]) == 0
    assert "chosen: asked for" in capsys.readouterr().out
    assert cli.main(["select", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["chosen"] == {"backend": "local", "hypervisor": "here"}
    assert answer["others"] == {"bad": "broken: OSError: disk"}
    assert [(one["backend"], one["viable"]) for one in answer["candidates"]] == [
        ("wrapper", False),
        ("local", True),
        ("one", True),
        ("two", True),
    ]


def test_the_command_says_what_the_environment_wants(
    install: Install, use: Callable[[], None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    install("here", hypervisor("here"))
    install("one", backend("one"))
    install("two", backend("two"))
    use()
    monkeypatch.setenv(BACKEND_VARIABLE, "two")
    assert cli.main(["select", "--explain"]) == 0
    out = capsys.readouterr().out
    assert "chosen: IRQCHIP_BACKEND names it" in out
    assert "one" not in out


@pytest.mark.parametrize("options", [[], ["--explain"], ["--json"]])
def test_the_command_fails_where_nothing_fits(
    install: Install, use: Callable[[], None], capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    install("here", hypervisor("here"))
    install("one", backend("one"))
    use()
    assert cli.main(["select", "--require", "tsc_deadline_timer", *options]) == 1
    printed = capsys.readouterr()
    assert "it lacks tsc_deadline_timer on here" in printed.out + printed.err


def test_the_command_knows_its_capabilities(use: Callable[[], None], capsys: pytest.CaptureFixture[str]) -> None:
    use()
    with pytest.raises(SystemExit) as caught:
        cli.main(["select", "--require", "x2apic,speed"])
    assert caught.value.code == 2
    assert "'speed' is no capability; choose from pic, ioapic, pit, local_apic, msi, tsc_" in capsys.readouterr().err
    assert cli.main(["select", "nobody"]) == 2
    assert cli.main(["select", "--hypervisor", "nowhere"]) == 2
