"""Each fuzzer of the APICs, for a moment."""

from __future__ import annotations

import random
from itertools import count

import pytest

from tests.fuzz import fuzz_ioapic, fuzz_lapic
from tests.fuzz.apic_fuzzer import STEPS
from tests.fuzz.run import Phase


@pytest.mark.parametrize("phase", [phase for module in (fuzz_ioapic, fuzz_lapic) for _, phase in module.PHASES])
def test_fuzz(phase: Phase) -> None:
    rounds = count(1)
    assert phase(random.Random(1), lambda: next(rounds) > 3) == 3 * STEPS
