"""Whether the numbers of a stress run agree: one sentence for each that does not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from irqchip_core.routes import IOAPIC_PINS
from tests.stress.stress import BROADCAST, FIRST_PIC, FLOOD, GOODBYE, PERIODIC, Outcome, Sample

MAY_MERGE = (PERIODIC, FLOOD)

WARM_UP = 1 / 4
"""Of a run: until then caches fill, and numbers that count interrupts grow out of Python's small ones."""
FLAT_BLOCKS, FLAT_BYTES = 2000, 1 << 20
"""What memory may grow after that, however many interrupts there are."""


def problems(outcome: Outcome, vcpu_count: int) -> list[str]:
    """All that is wrong with a run."""
    if outcome.problem:
        return [outcome.problem]
    found = [*_sources(outcome, vcpu_count), *_lines(outcome), *memory(outcome.samples)]
    if outcome.counters.vectors:
        found += _vectors(outcome)
    if outcome.counters.gsis:
        found += _gsis(outcome)
    if outcome.result.device_errors:
        found.append(f"{outcome.result.device_errors} accesses made a device raise")
    return found


def _sources(outcome: Outcome, vcpu_count: int) -> Iterator[str]:
    """The guest took each interrupt that the sources raised, except where hardware coalesces."""
    vectors = outcome.raised.keys() | {vector for _, vector in outcome.taken}
    for vector in sorted(vectors):
        raised, taken = outcome.raised[vector], outcome.taken_of(vector)
        if vector == BROADCAST:
            raised *= vcpu_count - 1
        if vector == FLOOD:
            right = 0 < taken <= raised
        elif vector == PERIODIC:
            right = taken >= raised
        else:
            right = taken == raised
        if not right:
            yield f"vector {vector:#x}: raised {raised}, taken {taken}"


def _lines(outcome: Outcome) -> Iterator[str]:
    """Each level interrupt has been resampled once; KVM may do so once more."""
    for count in outcome.result.interrupts:
        if count.resampled is None or not count.raised:
            continue
        if count.resampled < count.raised or (outcome.counters.vectors and count.resampled > count.raised):
            yield f"{count.name}: raised {count.raised}, resampled {count.resampled}"


def _vectors(outcome: Outcome) -> Iterator[str]:
    """Each request of a local APIC was delivered to the processor or coalesced, and each delivered one was ended."""
    counted = set()
    for count in outcome.counters.vectors:
        place = (count.vcpu, count.vector)
        counted.add(place)
        if count.raised != count.delivered + count.coalesced:
            yield f"{count}: some are missing"
        if not count.delivered == count.ended == outcome.taken[place]:
            yield f"{count}: the guest took {outcome.taken[place]}"
        if count.coalesced and count.vector not in MAY_MERGE:
            yield f"{count}: cannot be coalesced"
    for vcpu, vector in outcome.taken.keys() - counted:
        if not FIRST_PIC <= vector < GOODBYE:
            yield f"vCPU {vcpu} took vector {vector:#x}, and the chip has not counted it"
    if outcome.counters.spurious or outcome.counters.undeliverable:
        yield f"{outcome.counters.spurious} spurious, {outcome.counters.undeliverable} undeliverable"


def _gsis(outcome: Outcome) -> Iterator[str]:
    """The chip has counted each signal of each device, and those that its event coalesced."""
    by_gsi = {count.gsi: count for count in outcome.counters.gsis}
    for irq in outcome.result.interrupts:
        if not irq.raised:
            continue
        count = by_gsi.get(irq.gsi)
        if count is None:
            if outcome.counters.vectors or irq.gsi < IOAPIC_PINS:
                yield f"{irq.name}: signalled {irq.raised}, and the chip has not counted it"
            continue  # of a chip whose local APICs, and so messages, are in the hypervisor
        if count.raised != irq.raised:
            yield f"{irq.name}: signalled {irq.raised}, and the chip counted {count.raised}"
        if irq.name.startswith(f"msi{FLOOD:#x}"):
            arrived = sum(vector.raised for vector in outcome.counters.vectors if vector.vector == FLOOD)
            if count.raised - count.coalesced != arrived:
                yield f"{count}: {arrived} arrived at the local APIC"
        elif count.coalesced:
            yield f"{count}: cannot be coalesced"


def memory(samples: Sequence[Sample]) -> Iterator[str]:
    """Memory stays what it was after the warm-up."""
    warm = samples[int(len(samples) * WARM_UP) :]
    if len(warm) < 2:
        return
    blocks, resident = warm[-1].blocks - warm[0].blocks, warm[-1].resident - warm[0].resident
    if blocks > FLAT_BLOCKS or resident > FLAT_BYTES:
        yield f"memory grew by {blocks} blocks, and by {resident} bytes in RAM"
