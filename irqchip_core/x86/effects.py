"""What the controllers ask their owner to do: plain values, returned in a tuple, in order.

A part returns ``()`` when nothing is to be done. Besides these, an `msi.Message` in the tuple is to be
delivered to the local APICs.
"""

from __future__ import annotations

from typing import NamedTuple


class EoiBroadcast(NamedTuple):
    """A local APIC ended level-triggered interrupt `vector`: tell every IOAPIC (Intel SDM vol. 3, 12.8.5)."""

    vector: int


class Resample(NamedTuple):
    """The interrupt of IOAPIC pin `pin` has ended: its device is to look whether it wants service again."""

    pin: int


class WakeAt(NamedTuple):
    """Call the part's `expire` at `time`, nanoseconds on the owner's clock.

    It replaces what the part asked before; None takes that back.
    """

    time: int | None


class ApicBaseChanged(NamedTuple):
    """The guest moved, enabled, disabled or switched its local APIC; `value` is IA32_APIC_BASE."""

    value: int


Effects = tuple[NamedTuple, ...]
EOI_BROADCASTS = tuple((EoiBroadcast(vector),) for vector in range(256))
"""For each vector the effects of ending it, made once."""
