"""Counters of interrupts, by GSI and by vector, of a chip that emulates controllers: plain records."""

from __future__ import annotations

from collections.abc import Iterator

from attrs import frozen

from irqchip_core.x86.lapic.core import LapicCore


@frozen
class GsiCount:
    """One GSI.

    Attributes:
        gsi: Its number.
        sources: Names of the devices whose events drive it, in order of registration.
        raised: How often it was asserted: signals of events, and direct calls.
        coalesced: How many of these were coalesced in the counter of an event: signals that came before an earlier one
            was served. The controllers received the others.
    """

    gsi: int
    sources: tuple[str, ...]
    raised: int
    coalesced: int


@frozen
class VectorCount:
    """One vector of one vCPU's local APIC; vectors of the 8259As are not counted.

    Attributes:
        vcpu: Number of the vCPU.
        vector: 0-255.
        raised: Requests that the local APIC accepted, its own timer's included.
        delivered: How many of them the processor took.
        coalesced: How many came while the same vector was pending, or are ticks that passed before the timer was
            served. ``raised - delivered - coalesced`` are pending, or were discarded by an INIT or by disabling.
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
    """All counters of a chip.

    Attributes:
        gsis: The GSIs that were asserted, in order of their numbers.
        vectors: The vectors that were raised, in order of vCPU and number.
        spurious: Acknowledgements of local APICs while no interrupt was pending.
        undeliverable: Messages that no local APIC accepted.
    """

    gsis: tuple[GsiCount, ...] = ()
    vectors: tuple[VectorCount, ...] = ()
    spurious: int = 0
    undeliverable: int = 0


def vector_counts(lapic: LapicCore) -> Iterator[VectorCount]:
    """The counters of each vector that was raised at `lapic` so far."""
    columns = zip(lapic.raised, lapic.delivered, lapic.coalesced, lapic.ended, strict=True)
    for vector, counts in enumerate(columns):
        if counts[0]:
            yield VectorCount(lapic.apic_id, vector, *counts)
