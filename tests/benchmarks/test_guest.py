"""The guest measures under irqchip's VMM and under QEMU. What the figures are is no test's business."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.guest.programs import PAIRS, Program, ours, run
from benchmarks.guest.rows import OPERATIONS, PASSES

SHORT = 8
PORT, MSI, EDGE, LEVEL, PIC, SECOND_VCPU, X2APIC = (
    next(number for number, operation in enumerate(OPERATIONS) if operation.name.startswith(name))
    for name in ("port", "MSI", "IOAPIC edge", "IOAPIC level", "PIC interrupt", "IPI to a vCPU in HLT", "x2APIC self")
)


@pytest.mark.kvm
@pytest.mark.qemu
@pytest.mark.parametrize("program", [program for pair in PAIRS for program in pair], ids=lambda program: program.name)
def test_program_gives_cycles_for_an_access_and_for_an_interrupt(program: Program) -> None:
    for row in (PORT, MSI):
        done = run(program, row, SHORT, limit=20)
        assert len(done.passes) == PASSES, done
        assert min(done.passes) > 0


@pytest.mark.kvm
@pytest.mark.parametrize("chip", ["kvm_kernel", "kvm_split", "userspace"])
def test_interrupts_of_each_kind_are_measured_under_every_chip(chip: str) -> None:
    for row in (EDGE, LEVEL, PIC, SECOND_VCPU, X2APIC):
        done = run(ours(chip), row, SHORT, vcpus=OPERATIONS[row].vcpus, limit=20)
        assert len(done.passes) == PASSES, done


@pytest.mark.kvm
def test_row_that_the_guest_cannot_run_has_a_reason() -> None:
    done = run(ours("kvm_kernel"), SECOND_VCPU, SHORT, vcpus=1, limit=20)
    assert (done.passes, done.reason) == ((), "there is no second vCPU")


def test_program_that_hangs_is_killed_and_reported() -> None:
    sleeper = Program("sleeper", (sys.executable, "-c", "import time; time.sleep(60)"))
    assert "hangs" in run(sleeper, 0, SHORT, limit=0.2).reason


def test_program_that_fails_is_reported_with_its_last_words() -> None:
    failing = Program("failing", (sys.executable, "-c", "import sys; sys.exit('no such machine')"))
    assert run(failing, 0, SHORT, limit=20).reason == "gave no figures: no such machine"


def test_table_of_rows_is_as_long_as_the_guests() -> None:
    source = Path(run.__code__.co_filename).with_name("guest.S").read_text()
    table = source[source.index("rows:   .quad") : source.index("rows_end:")]
    assert sum(line.count("row_") for line in table.splitlines()) == len(OPERATIONS)
