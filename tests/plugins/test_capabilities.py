"""Capabilities that plugins add: required, shown, probed, and checked by the kit, as those of the contract are."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from irqchip_core.capabilities import Capability, IrqChipCap, has_capability
from irqchip_core.chip import IrqChip
from irqchip_core.cli import main as cli
from irqchip_core.errors import NothingSuitable
from irqchip_core.hypervisor.vcpu import Vm
from irqchip_core.plugins.discovery import installed
from irqchip_core.selection import create_irqchip, create_vm, select
from irqchip_core.testing import lab as lab_module
from irqchip_core.testing.conformance import Conformance, Nonconforming, NotApplicable, handles, needs
from irqchip_core.testing.lab import Lab
from irqchip_core.wrapping.backend import WrapperBackend
from irqchip_userspace.chip import UserspaceIrqChip
from tests.plugins.fake_plugins import Install, any_vm, backend, hypervisor, only_ours, ours

ADDS = """
from irqchip_core import Capability
from irqchip_core.hookspecs import hookimpl

@hookimpl
def irqchip_capabilities():
    return {returned}
"""
POSTED = 'Capability("posted", "messages without an exit", lambda chip: hasattr(chip, "post"))'
CLAIMED = f"from irqchip_core import Capability; return Probe(capabilities=frozenset({{{POSTED}, IrqChipCap.X2APIC}}))"


@pytest.fixture
def posted(install: Install) -> Capability:
    """A plugin's capability, which only the backend that is taken last claims."""
    installed()  # what is really installed is remembered, and not these
    install("here", hypervisor("here"))
    install("plain", backend("plain", rank=1))
    install("posting", backend("posting", rank=2, probe=CLAIMED))
    install("adds", ADDS.format(returned=f"[{POSTED}]"))
    added = only_ours().capabilities["posted"]
    assert isinstance(added, Capability)
    return added


def test_it_can_be_required(posted: Capability) -> None:
    found = only_ours()
    assert list(found.capabilities) == [*(one.value for one in IrqChipCap), "posted"]
    assert create_irqchip(vm=any_vm(), plugins=found).name == "plain"
    assert create_irqchip(vm=any_vm(), require={posted}, plugins=found).name == "posting"
    assert select(require=[posted, IrqChipCap.X2APIC], plugins=found).backend.name == "posting"
    with pytest.raises(NothingSuitable, match="plain: it lacks posted on any"):
        create_irqchip("plain", vm=any_vm(), require={posted}, plugins=found)


@pytest.mark.usefixtures("posted")
def test_commands_know_it(use: Callable[[], None], capsys: pytest.CaptureFixture[str]) -> None:
    use()
    assert cli.main(["select", "--require", "posted"]) == 0
    assert capsys.readouterr().out == "posting on here\n"
    assert cli.main(["probe", "posting", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["on"]["here"]["capabilities"] == ["posted", "x2apic"]
    assert cli.main(["list"]) == 0
    listed = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "capability posted adds 1.0 - messages without an exit" in listed
    with pytest.raises(SystemExit):
        cli.main(["select", "--require", "posed"])
    assert "mp_state_get_set, posted" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("returned", "error"),
    [
        ("None", "irqchip_capabilities returned None; return a list of Capability"),
        ("['posted']", "irqchip_capabilities returned 'posted'; return a list of Capability"),
        ("[Capability('Posted', 'm', bool)]", "'Posted' is not a name; use lower case letters"),
        ("[Capability('posted', '', bool)]", "capability posted has no meaning; give it one line"),
        ("[Capability('posted', 'm', 5)]", "has of capability posted is 5; give a function of a chip"),
        ("[Capability('x2apic', 'm', bool)]", "capability x2apic is there already; give it another name"),
        ("[Capability('posted', 'm', bool)] * 2", "capability posted is there already"),
    ],
)
def test_what_is_none_is_refused_whole(install: Install, returned: str, error: str) -> None:
    install("adds", ADDS.format(returned=returned))
    found = only_ours()
    assert error in ours(found)["adds"].reason
    assert list(found.capabilities) == [one.value for one in IrqChipCap]


def test_two_of_one_name_are_both_refused(install: Install) -> None:
    for name in ("one", "two"):
        install(name, ADDS.format(returned=f"[{POSTED}]"))
    found = only_ours()
    assert "capability posted is offered by one 1.0 and two 1.0" in ours(found)["two"].reason
    assert "posted" not in found.capabilities


def test_a_wrapper_claims_none_of_a_plugin(posted: Capability, monkeypatch: pytest.MonkeyPatch) -> None:
    from irqchip_core import selection

    class Wrapper(WrapperBackend):
        name, api_version, summary, wraps = "wrapper", 1, "wraps", "posting"

        def wrap(self, inner: Any) -> Any:
            return inner

    found = only_ours()
    monkeypatch.setattr(selection, "installed", lambda: found)
    assert Wrapper().probe(any_vm()).capabilities == {IrqChipCap.X2APIC}


class Posting(UserspaceIrqChip):
    def post(self) -> None:
        """Only its presence counts here."""


def kit_for(chip: Callable[[Vm, int], IrqChip], claims: frozenset[Any] | None = None) -> Conformance:
    kit = Conformance()
    kit.lab = Lab(lambda: create_vm("unicorn"), chip, claims=claims)
    return kit


def test_the_kit_knows_it(posted: Capability, monkeypatch: pytest.MonkeyPatch) -> None:
    found = only_ours()
    for module in (lab_module, handles):
        monkeypatch.setattr(module, "installed", lambda: found)

    class Mine(Conformance):
        @needs(posted)
        def test_posted(self) -> None:
            assert has_capability(self.boot().chip, posted)

    for chip, has in ((Posting, True), (UserspaceIrqChip, False)):
        mine, kit = Mine(), kit_for(chip)
        mine.lab = kit.lab
        assert (posted in kit.lab.claims()) is has
        kit.lab.perform(kit.test_capabilities_are_those_claimed)
        kit.lab.perform(kit.test_clone_shares_state)
        if has:
            mine.lab.perform(mine.test_posted)
        else:
            with pytest.raises(NotApplicable, match="needs capability posted, which the chip does not claim"):
                mine.lab.perform(mine.test_posted)
    liar = kit_for(UserspaceIrqChip, frozenset({*IrqChipCap, posted}))
    with pytest.raises(Nonconforming, match=re.escape("check_capability agrees with the backend's probe")):
        liar.lab.perform(liar.test_capabilities_are_those_claimed)
