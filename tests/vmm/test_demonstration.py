"""The demonstration guest on a real hypervisor, and the verdict over it: right when right, wrong when wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from attrs import evolve

from irqchip_core.capabilities import IrqChipCap
from irqchip_vmm import IrqCount, Machine, Outcome, RunResult
from irqchip_vmm.devices.generator import ReportRow
from irqchip_vmm.ending import End
from irqchip_vmm.guest import demonstration_guest, expected_rows
from irqchip_vmm.interrupts import EdgeIrq, LevelIrq
from irqchip_vmm.report import as_json, demonstration_problems, row_problems, table, totals

TIMEOUT = 50


def run(vcpu_count: int, prepare: Callable[[Machine], object] = lambda machine: None) -> tuple[RunResult, list[str]]:
    """Run the guest; returns the result and what is wrong with it."""
    with Machine(vcpu_count=vcpu_count) as machine:
        machine.load(demonstration_guest(memory_size=machine.memory.size, vcpu_count=vcpu_count))
        prepare(machine)
        result = machine.run(TIMEOUT)
        deadline = machine.chip.check_capability(IrqChipCap.TSC_DEADLINE_TIMER)
    return result, demonstration_problems(result, vcpu_count, deadline)


@pytest.mark.kvm
@pytest.mark.usefixtures("no_leaks")
@pytest.mark.parametrize("vcpu_count", [1, 2, 8])
def test_every_interrupt_is_taken_as_often_as_raised(vcpu_count: int) -> None:
    result, problems = run(vcpu_count)
    assert problems == []
    lines = {line.source: line for line in totals(result, vcpu_count)}
    assert lines["ioapic-level"].taken_by_vcpu == [30] * vcpu_count
    assert lines["msi"].taken == lines["msi"].raised == 10 * vcpu_count
    if vcpu_count > 1:
        assert lines["ipi"].taken_by_vcpu == [0] + [10] * (vcpu_count - 1)


@pytest.mark.kvm
@pytest.mark.usefixtures("no_leaks")
@pytest.mark.parametrize("kind", [EdgeIrq, LevelIrq])
def test_an_interrupt_lost_on_the_way_is_seen(monkeypatch: pytest.MonkeyPatch, kind: type[EdgeIrq | LevelIrq]) -> None:
    trigger = kind.trigger

    def lose_the_fifth(irq: EdgeIrq | LevelIrq) -> None:
        if irq.name.startswith("generator") and irq.raised == 4:
            irq.raised += 1
        else:
            trigger(irq)  # type: ignore[arg-type]  # of its own class

    monkeypatch.setattr(kind, "trigger", lose_the_fifth)
    result, problems = run(1)
    assert result.end.outcome is Outcome.EXIT  # the guest gave up waiting, and reported
    assert result.end.status == 3
    assert any("raised" in problem for problem in problems)


@pytest.mark.kvm
@pytest.mark.usefixtures("no_leaks")
def test_an_interrupt_that_was_not_raised_is_seen() -> None:
    def prepare(machine: Machine) -> None:
        machine.generator.msi.set_message(0xFEE00000, 0x99)
        watch = machine.generator.edge.trigger

        def with_company() -> None:
            machine.generator.edge.trigger = watch  # type: ignore[method-assign]
            machine.generator.msi.trigger()
            watch()

        machine.generator.edge.trigger = with_company  # type: ignore[method-assign]

    _, problems = run(1, prepare)
    assert "vCPU 0 took 1 interrupts that were not raised" in problems


@pytest.mark.kvm
@pytest.mark.usefixtures("no_leaks")
def test_without_tsc_deadline_the_guest_leaves_it_out(monkeypatch: pytest.MonkeyPatch) -> None:
    result, problems = run(
        1,
        lambda machine: monkeypatch.setattr(
            machine.chip, "check_capability", lambda cap: cap is not IrqChipCap.TSC_DEADLINE_TIMER
        ),
    )
    assert problems == []
    assert "timer-deadline" not in {row.name for row in result.report or ()}


# --- The verdict, over results made by hand ---


def good_result(vcpu_count: int = 2) -> RunResult:
    rows = [
        ReportRow(name, vcpu, *([0] * 3 if name == "spurious" else [10] * 3))
        for name, vcpu in sorted(expected_rows(vcpu_count, tsc_deadline=True))
    ]
    interrupts = [
        IrqCount("generator-edge", "edge", 9, 10 + 10 * vcpu_count, None),
        IrqCount("generator-level", "level", 10, 10 * vcpu_count, 10 * vcpu_count),
        IrqCount("generator-msi", "msi", 24, 10 * vcpu_count, None),
        IrqCount("com1", "edge", 4, 0, None),
    ]
    return RunResult(End(Outcome.EXIT, 1, 0), 1.5, interrupts, rows, None, {"IoExit": 3}, 0, 0)


def problems_of(result: RunResult) -> list[str]:
    return demonstration_problems(result, 2, tsc_deadline=True)


def test_a_good_result_has_no_problems() -> None:
    assert problems_of(good_result()) == []


@pytest.mark.parametrize("field", ["raised", "taken", "ended"])
@pytest.mark.parametrize("change", [-1, 1])
def test_each_number_of_each_row_counts(field: str, change: int) -> None:
    good = good_result()
    assert good.report is not None
    for at, row in enumerate(good.report):
        if row.name == "spurious" and (change < 0 or field != "taken"):
            continue
        rows = list(good.report)
        rows[at] = evolve(row, **{field: getattr(row, field) + change})
        problems = problems_of(evolve(good, report=rows))
        assert any(row.name in problem or "not raised" in problem for problem in problems), rows[at]


def test_each_row_must_be_there_and_no_other() -> None:
    good = good_result()
    assert good.report is not None
    for at, row in enumerate(good.report):
        rows = [*good.report[:at], *good.report[at + 1 :]]
        assert f"{row.name} on vCPU {row.vcpu} was not tried" in problems_of(evolve(good, report=rows))
    extra = [*good.report, ReportRow("surprise", 1, 1, 1, 1)]
    assert problems_of(evolve(good, report=extra)) == ["surprise on vCPU 1 was not expected"]


def test_a_row_without_any_interrupt_is_no_success() -> None:
    good = good_result()
    assert good.report is not None
    rows = [evolve(row, raised=0, taken=0, ended=0) if row.name == "pit" else row for row in good.report]
    assert problems_of(evolve(good, report=rows)) == ["pit on vCPU 0 was never raised"]


@pytest.mark.parametrize("at", [0, 1, 2])
def test_what_the_device_counted_must_match(at: int) -> None:
    good = good_result()
    interrupts = list(good.interrupts)
    interrupts[at] = evolve(interrupts[at], raised=interrupts[at].raised - 1)
    assert len(problems_of(evolve(good, interrupts=interrupts))) == 1


def test_each_level_interrupt_must_be_resampled() -> None:
    good = good_result()
    interrupts = [evolve(count, resampled=19) if count.kind == "level" else count for count in good.interrupts]
    assert problems_of(evolve(good, interrupts=interrupts)) == ["generator-level: raised 20, and resampled 19 only"]


def test_the_guest_must_be_content_and_must_report() -> None:
    good = good_result()
    assert len(problems_of(evolve(good, end=End(Outcome.EXIT, 3, 0)))) == 1
    assert problems_of(evolve(good, report=None, report_error="it is none")) == ["the guest made no report: it is none"]


def test_rows_of_any_guest() -> None:
    assert row_problems([ReportRow("x", 0, 2, 2, 2)]) == []
    assert row_problems([ReportRow("x", 0, 2, 1, 1)]) == ["x on vCPU 0: raised 2, taken 1, ended 1"]


def test_table() -> None:
    rows = [ReportRow("msi", 1, 3, 3, 3), ReportRow("msi", 0, 2, 2, 2)]
    result = evolve(good_result(), report=rows, interrupts=[good_result().interrupts[2], good_result().interrupts[3]])
    assert table(totals(result, 2), 2).splitlines() == [
        "SOURCE  GSI  RAISED  TAKEN  ENDED  CPU0  CPU1",
        "msi     24   5       5      5      2     3",
        "com1    4    0       -      -      -     -",
    ]


def test_json_keys_are_stable() -> None:
    data = as_json(good_result(), chip="c", hypervisor="h", vcpu_count=2, problems=[])
    assert set(data) == {
        "ok", "problems", "chip", "hypervisor", "vcpus", "outcome", "status", "vcpu", "detail", "seconds", "sources",
        "interrupts", "report", "report_error", "exits", "unclaimed", "device_errors", "counters",
    }  # fmt: skip
    assert set(data["sources"][0]) == {"source", "gsi", "raised", "taken", "ended", "taken_by_vcpu"}
    assert set(data["interrupts"][0]) == {"name", "kind", "gsi", "raised", "resampled"}
    assert set(data["report"][0]) == {"name", "vcpu", "raised", "taken", "ended"}
    assert data["ok"] is True
