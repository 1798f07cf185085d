"""The conformance kit on a real KVM: every chip passes what applies to it there, and they give the same interrupts."""

from __future__ import annotations

import pytest

from tests.nested import machine

CHIPS = ("kvm_kernel", "kvm_split", "userspace@kvm")
DEADLINE = 900.0
"""Seconds for the three, which take about 400 on a processor that does little else."""


@pytest.mark.linux
@pytest.mark.qemu
@pytest.mark.timeout(DEADLINE + 60)
def test_every_chip_conforms_on_real_kvm() -> None:
    kit = ["--pyargs", "irqchip_core.testing.conformance", *(f"--irqchip={chip}" for chip in CHIPS)]
    outcome = machine.run(
        ["python", "-m", "pytest", "-q", "--tb=no", "-p", "no:cacheprovider", *kit], deadline=DEADLINE
    )
    assert outcome.status == 0, outcome.tail(200)
    assert "waits for its EOI" not in outcome.console  # this KVM's local APIC does
