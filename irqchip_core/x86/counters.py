"""What became of interrupts, as a chip that emulates controllers has counted it: plain records."""

from __future__ import annotations

from collections.abc import Iterator

from attrs import frozen

from irqchip_core.x86.lapic_core import LapicCore


@frozen
class GsiCount:
    """One GSI.

    Attributes:
        gsi: Its number.
        sources: Names of those whose events drive it, in order of registration.
        raised: How often it was asserted: signals of events, and direct calls.
        merged: How many of these were signals that came before an earlier one was served, as an event's counter
            merges them. The controllers saw the others.
    """

    gsi: int
    sources: tuple[str, ...]
    raised: int
    merged: int


@frozen
class VectorCount:
    """One vector of one vCPU's local APIC; what the 8259s gave is not among them.

    Attributes:
        vcpu: Number of the vCPU.
        vector: 0-255.
        raised: Requests the local APIC accepted, its own timer's included.
        delivered: How many of them the processor took.
        coalesced: How many found the same vector pending already, or are ticks that passed before the timer was
            served. The rest, ``raised - delivered - coalesced``, is pending, or an INIT or disabling took it away.
        ended: How many were ended by software.
    """

    vcpu: int
    vector: int
    raised: int
    delivered: int
    coalesced: int
    ended: int


@frozen
class ChipCounters:
    """All of them.

    Attributes:
        gsis: Those that were asserted, by number.
        vectors: Those that were raised, by vCPU and number.
        spurious: Acknowledgements of local APICs that found nothing any more.
        undeliverable: Messages that no local APIC accepted.
    """

    gsis: tuple[GsiCount, ...] = ()
    vectors: tuple[VectorCount, ...] = ()
    spurious: int = 0
    undeliverable: int = 0


def vector_counts(lapic: LapicCore) -> Iterator[VectorCount]:
    """What became of each vector that was raised at `lapic` so far."""
    columns = zip(lapic.raised, lapic.delivered, lapic.coalesced, lapic.ended, strict=True)
    for vector, counts in enumerate(columns):
        if counts[0]:
            yield VectorCount(lapic.apic_id, vector, *counts)
