"""What `irqchip run` says at the end: the table, the verdict, the same as JSON.

The table joins what devices raised (counted by the host) with what the guest reported, one line a source as in
/proc/interrupts. The verdict is a list of problems; none means that every interrupt was taken as often as raised.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from attrs import asdict, field, frozen

from irqchip_core.table import format_table
from irqchip_vmm import guest
from irqchip_vmm.devices.generator import ReportRow
from irqchip_vmm.ending import RunResult
from irqchip_vmm.interrupts import IrqCount


@frozen
class SourceTotal:
    """One line of the table.

    Attributes:
        source: The guest's name of the source, or the device's of its interrupt.
        gsi: Its line; None if the source is inside the chip, or the line is not known.
        raised, taken, ended: Sums over all vCPUs; None where they are not counted.
        taken_by_vcpu: `taken` of each vCPU, from 0; empty where it is not counted.
    """

    source: str
    gsi: int | None
    raised: int
    taken: int | None = None
    ended: int | None = None
    taken_by_vcpu: Sequence[int] = field(default=())


def totals(result: RunResult, vcpu_count: int) -> list[SourceTotal]:
    """One line for each source the guest reported and each interrupt of a device that is in none of those."""
    lines, covered = [], set()
    gsis = {row: count.gsi for count in result.interrupts for row in guest.RAISED_BY.get(count.name, ())}
    by_source: dict[str, list[ReportRow]] = {}
    for row in result.report or ():
        by_source.setdefault(row.name, []).append(row)
    for source, rows in by_source.items():
        by_vcpu = {row.vcpu: row.taken for row in rows}
        lines.append(
            SourceTotal(
                source,
                gsis.get(source),
                sum(row.raised for row in rows),
                sum(row.taken for row in rows),
                sum(row.ended for row in rows),
                [by_vcpu.get(vcpu, 0) for vcpu in range(vcpu_count)],
            )
        )
        covered |= {name for name, sources in guest.RAISED_BY.items() if source in sources}
    lines += [
        SourceTotal(count.name, count.gsi, count.raised, None, count.resampled)
        for count in result.interrupts
        if count.name not in covered
    ]
    return lines


def table(lines: Iterable[SourceTotal], vcpu_count: int, width: int | None = None) -> str:
    """The lines for people, `width` as for `format_table`."""
    header = ("SOURCE", "GSI", "RAISED", "TAKEN", "ENDED", *(f"CPU{vcpu}" for vcpu in range(vcpu_count)))
    cells: list[Sequence[str]] = [header]
    for line in lines:
        numbers = (line.gsi, line.raised, line.taken, line.ended)
        by_vcpu = [str(taken) for taken in line.taken_by_vcpu] or ["-"] * vcpu_count
        cells.append((line.source, *("-" if number is None else str(number) for number in numbers), *by_vcpu))
    return format_table(cells, width)


def row_problems(rows: Sequence[ReportRow]) -> list[str]:
    """What the guest's own numbers say went wrong."""
    problems = []
    for row in rows:
        if row.name == guest.SPURIOUS_SOURCE and row.taken:
            problems.append(f"vCPU {row.vcpu} took {row.taken} interrupts that were not raised")
        elif not row.raised == row.taken == row.ended:
            problems.append(f"{row.name} on vCPU {row.vcpu}: raised {row.raised}, taken {row.taken}, ended {row.ended}")
    return problems


def demonstration_problems(result: RunResult, vcpu_count: int, tsc_deadline: bool) -> list[str]:
    """What keeps a run of the demonstration guest from being a success."""
    if result.report is None:
        return [f"the guest made no report{f': {result.report_error}' if result.report_error else ''}"]
    problems = row_problems(result.report)
    found = {(row.name, row.vcpu) for row in result.report}
    expected = guest.expected_rows(vcpu_count, tsc_deadline)
    problems += [f"{name} on vCPU {vcpu} was not tried" for name, vcpu in sorted(expected - found)]
    problems += [f"{name} on vCPU {vcpu} was not expected" for name, vcpu in sorted(found - expected)]
    problems += [
        f"{row.name} on vCPU {row.vcpu} was never raised"
        for row in result.report
        if row.raised == 0 and row.name != guest.SPURIOUS_SOURCE
    ]
    for count in result.interrupts:
        problems += _device_problems(count, result.report)
    if result.end.status != 1:
        problems.append(f"the guest ended with status {result.end.status} instead of 1, its success")
    return problems


def _device_problems(count: IrqCount, report: Sequence[ReportRow]) -> list[str]:
    sources = guest.RAISED_BY.get(count.name, ())
    taken = sum(row.taken for row in report if row.name in sources)
    problems = []
    if sources and count.raised != taken:
        problems.append(f"{count.name}: the device raised {count.raised}, and the guest took {taken}")
    # A chip may resample more often than the guest ends interrupts (KVM does), but never less.
    if sources and count.resampled is not None and count.resampled < count.raised:
        problems.append(f"{count.name}: raised {count.raised}, and resampled {count.resampled} only")
    return problems


def as_json(result: RunResult, *, chip: str, hypervisor: str, vcpu_count: int, problems: list[str]) -> dict[str, Any]:
    """The whole result. The keys are stable: new ones may come, none goes or changes its meaning.

    ``ok``: no ``problems``. ``chip``: its own name, which a wrapper sets.
    ``outcome``, ``status``, ``vcpu``, ``detail``: `End`. ``sources``: `SourceTotal` records.
    ``interrupts``: `IrqCount` records. ``report``: `ReportRow` records, or null. ``counters``: a `ChipCounters` record.
    The rest is as in `RunResult`.
    """
    end = result.end
    return {
        "ok": not problems,
        "problems": problems,
        "chip": chip,
        "hypervisor": hypervisor,
        "vcpus": vcpu_count,
        "outcome": end.outcome.value,
        "status": end.status,
        "vcpu": end.vcpu_id,
        "detail": end.detail,
        "seconds": result.seconds,
        "sources": [asdict(line) for line in totals(result, vcpu_count)],
        "interrupts": [asdict(count) for count in result.interrupts],
        "report": None if result.report is None else [asdict(row) for row in result.report],
        "report_error": result.report_error,
        "exits": dict(result.exits),
        "unclaimed": result.unclaimed,
        "device_errors": result.device_errors,
        "counters": asdict(result.counters),
    }
