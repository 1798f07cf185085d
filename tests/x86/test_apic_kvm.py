"""Our IOAPIC and local APICs against KVM's: the same random sequences, and all state after each step."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.oracles.kvm import KvmMachine
from tests.x86.apic_board import KvmBoard
from tests.x86.apic_model import CPUS, ApicMachine, IoapicMachine, LapicMachine

pytestmark = pytest.mark.kvm

SETTINGS = settings(
    max_examples=250,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    derandomize=True,
)


@pytest.fixture(scope="module")
def kvm_board() -> Iterator[KvmBoard]:
    with KvmMachine(CPUS) as machine:
        yield KvmBoard(machine)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", [IoapicMachine, LapicMachine])
def test_apics_agree_in_random_sequences(kind: type[ApicMachine], kvm_board: KvmBoard) -> None:
    machine = type(kind.__name__, (kind,), {"theirs": kvm_board})
    run_state_machine_as_test(machine, settings=SETTINGS)
