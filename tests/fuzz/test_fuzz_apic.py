"""Each fuzzer of the APICs, for a moment."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tests.fuzz.fuzz_ioapic import IoapicFuzzer
from tests.fuzz.fuzz_lapic import LapicFuzzer
from tests.fuzz.harness import STEPS_OF_ONE, Fuzzer, fuzz


@pytest.mark.parametrize("make", [IoapicFuzzer, LapicFuzzer])
def test_fuzz(make: Callable[[random.Random], Fuzzer]) -> None:
    assert fuzz(make, seconds=0.5, seed=1) >= STEPS_OF_ONE
