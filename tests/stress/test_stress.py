"""Interrupts of all kinds at once on all vCPUs, every one accounted for; the long version is ``tox -e stress``."""

from __future__ import annotations

import pytest

from tests.chips.conftest import CHIPS
from tests.stress.accounts import problems
from tests.stress.stress import Load, Stress

pytestmark = pytest.mark.usefixtures("no_leaks")

LOADS = {
    "kvm": (8, Load(tokens=600, broadcasts=400, device=200, timer=200, flood=100)),
    "unicorn": (2, Load(tokens=250, broadcasts=100, device=60, timer=60, flood=30)),
}
"""vCPUs, and how much; an emulator has one of its vCPUs at work at a time."""


@pytest.mark.parametrize("names", CHIPS)
def test_every_interrupt_is_accounted_for(names: tuple[str, str]) -> None:
    chip, hypervisor = names
    vcpu_count, load = LOADS[hypervisor]
    stress = Stress(chip, hypervisor, vcpu_count, load)
    try:
        outcome = stress.run(timeout=50)
    finally:
        stress.close()
    assert problems(outcome, vcpu_count) == []
    assert outcome.total > vcpu_count * 2000
