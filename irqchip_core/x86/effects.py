"""Effects: what a part of a chip requests of its owner. Plain values, returned in a tuple, to be carried out in order.

A part returns ``()`` when nothing is to be done. An `msi.Message` is an effect, too: it is to be delivered to the
local APICs.

    part      effects
    Lines     DriveLine, DrivePin, Message, Resample
    Pic       IntChanged, LineEnded
    Ioapic    Message, EntriesChanged, PinEnded, WakeAt
    Pit       TimerRose, WakeAt
    Lapic     Message, EoiBroadcast, ApicBaseChanged, WakeAt
"""

from __future__ import annotations

from typing import NamedTuple

# Lines


class DriveLine(NamedTuple):
    """Input `line` of the PICs, 0-15, is to be driven."""

    line: int
    high: bool


class DrivePin(NamedTuple):
    """Input `pin` of the IOAPIC is to be driven."""

    pin: int
    high: bool


class Resample(NamedTuple):
    """The devices with level events on `gsi` are to check whether they need service again."""

    gsi: int


# PICs


class IntChanged(NamedTuple):
    """The INT output to the processor has changed."""

    high: bool


class LineEnded(NamedTuple):
    """The interrupt of input `line`, 0-15, one of the part's `resample_lines`, has ended.

    Attributes:
        line: The input.
        lowered: The part took the line low, as it is level-triggered: it is to be driven anew.
    """

    line: int
    lowered: bool


# IOAPIC


class EntriesChanged(NamedTuple):
    """The redirection entries of `pins`, as bits, have changed."""

    pins: int


class PinEnded(NamedTuple):
    """The interrupt of input `pin`, one of the part's `resample_lines`, has ended.

    The part took the line of the pin low: it is to be driven anew.
    """

    pin: int


# PIT


class TimerRose(NamedTuple):
    """OUT of counter 0 has risen `edges` times since the last such effect: one timer interrupt."""

    edges: int


# Local APICs


class EoiBroadcast(NamedTuple):
    """A local APIC ended level-triggered interrupt `vector`: every IOAPIC receives it (Intel SDM vol. 3, 12.8.5)."""

    vector: int


class ApicBaseChanged(NamedTuple):
    """The guest moved, enabled, disabled or switched its local APIC; `value` is IA32_APIC_BASE."""

    value: int


# Time


class WakeAt(NamedTuple):
    """The part's `expire` is to be called at `time`, nanoseconds on the owner's clock.

    It replaces the part's earlier `WakeAt`; None: `expire` need not be called.
    """

    time: int | None


Effects = tuple[NamedTuple, ...]
EOI_BROADCASTS = tuple((EoiBroadcast(vector),) for vector in range(256))
"""For each vector the effects of ending it, made once."""
