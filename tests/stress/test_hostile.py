"""A guest that means harm to the interrupt controllers harms itself at most."""

from __future__ import annotations

import logging
import time
from contextlib import closing

import pytest

from irqchip_vmm import Outcome
from tests.chips.conftest import CHIPS
from tests.stress.hostile import HostileMachine, memory_kept, problems

pytestmark = [pytest.mark.usefixtures("no_leaks"), pytest.mark.parametrize("names", CHIPS)]

ATTACKS = {"kvm": 500, "unicorn": 150}
"""And as many ticks of the other vCPU, by hypervisor: two vCPUs of Unicorn take turns at every exit. Not more attacks:
an attacker can end in a storm of its own, as from 8259s that end level interrupts by themselves, and get no further.
`tests.stress.soak` goes on for longer."""
SECONDS_OF_CHAOS = 0.7
MOST_BLOCKS = 3000
"""What a run may leave in memory: modules imported late, and the like."""
CLOSE_SECONDS = 5


@pytest.mark.parametrize("seed", [1, 2])
def test_another_vcpu_makes_progress(names: tuple[str, str], seed: int, caplog: pytest.LogCaptureFixture) -> None:
    with closing(HostileMachine(*names, seed)) as hostile:
        result = hostile.run(40, attacks=ATTACKS[names[1]], ticks=ATTACKS[names[1]])
        assert result.end.outcome is Outcome.STOPPED, f"{hostile.attacks} attacks, {hostile.ticks} ticks"
        assert problems(hostile, result) == []
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_the_vmm_lives_when_nobody_is_spared(names: tuple[str, str], caplog: pytest.LogCaptureFixture) -> None:
    attacks, kept = 0, None
    for seed in (1, 2, 3, 4):
        with closing(HostileMachine(*names, seed, attackers=2, spare=False)) as hostile:
            result = hostile.run(SECONDS_OF_CHAOS)
            assert problems(hostile, result) == []
            attacks += hostile.attacks
            start = time.monotonic()
        assert time.monotonic() - start < CLOSE_SECONDS
        del hostile
        kept = kept or memory_kept()
        assert memory_kept() < kept + MOST_BLOCKS
    assert attacks > 100
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
