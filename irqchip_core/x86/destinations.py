"""Which local APICs receive a message: physical, logical and broadcast destinations, and lowest priority.

Intel SDM vol. 3, 12.6.2 (xAPIC) and 12.12.10 (x2APIC). A physical destination is one look-up, however many
local APICs there are. Logical destinations of xAPIC mode depend on LDR and DFR, which guests write: each is
resolved when it is first used, and all are dropped when such a register changes.
"""

from __future__ import annotations

from irqchip_core.errors import InvalidArgument
from irqchip_core.x86.lapic import registers as reg
from irqchip_core.x86.lapic.core import IGNORED, LapicCore
from irqchip_core.x86.msi import (
    ALL_EXCLUDING_SELF,
    BROADCAST,
    LOWEST_PRIORITY,
    NO_SHORTHAND,
    PHYSICAL,
    SELF,
    XAPIC_BROADCAST,
    Message,
)

Receivers = tuple[LapicCore, ...]


class Destinations:
    """The local APICs of a machine, by all destinations that a message can have.

    `receivers` only reads the local APICs, so it needs no lock of theirs; `deliver` changes them.

    Attributes:
        undeliverable: Number of messages that no APIC accepted.
    """

    __slots__ = ("_all", "_by_id", "_logical", "undeliverable")

    def __init__(self) -> None:
        self._by_id: dict[int, LapicCore] = {}
        self._all: Receivers = ()
        self._logical: dict[int, Receivers] = {}
        self.undeliverable = 0

    def add(self, lapic: LapicCore) -> None:
        """Add a local APIC.

        Raises:
            InvalidArgument: Another one has its id.
        """
        if lapic.apic_id in self._by_id:
            raise InvalidArgument(
                f"there is a local APIC with id {lapic.apic_id} already",
                subject="Destinations",
                argument="lapic",
                remedy="give each local APIC an id of its own",
            )
        self._by_id[lapic.apic_id] = lapic
        self._all = tuple(self._by_id[apic_id] for apic_id in sorted(self._by_id))
        lapic.destinations = self
        self.forget()

    def forget(self) -> None:
        """Drop the resolved destinations: mode, LDR or DFR of a local APIC has changed."""
        self._logical = {}

    def receivers(self, message: Message, source: LapicCore | None = None) -> Receivers:
        """The local APICs that `message` is for, in order of their ids.

        Each of them may still ignore it: see `LapicCore.accept`. For lowest-priority delivery, and for a message with
        a redirection hint, it is one APIC at most. `source` is the sender of an IPI.
        """
        found = self._named(message, source)
        if (message.delivery_mode == LOWEST_PRIORITY or message.redirection_hint) and len(found) > 1:
            return _of_lowest_priority(found, message.vector)
        return found

    def deliver(self, message: Message, source: LapicCore | None = None) -> Receivers:
        """Let the receivers of `message` accept it; returns the ones that did, whose vCPUs are to be kicked."""
        found = self.receivers(message, source)
        if len(found) == 1:
            taken: Receivers = found if found[0].accept(message) != IGNORED else ()
        else:
            taken = tuple(lapic for lapic in found if lapic.accept(message) != IGNORED)
        if not taken:
            self.undeliverable += 1
        return taken

    def _named(self, message: Message, source: LapicCore | None) -> Receivers:
        if message.shorthand != NO_SHORTHAND:
            if message.shorthand == SELF:
                return source.alone if source else ()
            if message.shorthand == ALL_EXCLUDING_SELF:
                return tuple(lapic for lapic in self._all if lapic is not source)
            return self._all
        destination = message.destination
        if destination == BROADCAST:
            return self._all
        if message.destination_mode == PHYSICAL:
            lapic = self._by_id.get(destination)
            return lapic.alone if lapic else ()
        known = self._logical  # if another thread calls forget(), the result below goes into the dropped table
        if (found := known.get(destination)) is None:
            found = self._match_logical(destination)
            if destination <= XAPIC_BROADCAST:
                known[destination] = found
        return found

    def _match_logical(self, destination: int) -> Receivers:
        cluster = destination >> 16 << 4
        found = [
            lapic
            for place in range(16)
            if destination >> place & 1 and (lapic := self._by_id.get(cluster | place)) and lapic.x2apic_mode
        ]
        if destination > XAPIC_BROADCAST:  # only x2APIC mode has so many bits, and its LDR follows from the id
            return tuple(found)
        found += [lapic for lapic in self._all if not lapic.x2apic_mode and _matches_xapic(lapic, destination)]
        return tuple(sorted(found, key=lambda lapic: lapic.apic_id))


def _matches_xapic(lapic: LapicCore, destination: int) -> bool:
    """Whether an 8-bit logical destination names this APIC in xAPIC mode (SDM 12.6.2.2)."""
    logical_id, model = lapic.logical_address()
    if model == reg.DFR_FLAT:
        return destination & logical_id != 0
    if model == reg.DFR_CLUSTER:
        return destination >> 4 == logical_id >> 4 and destination & logical_id & 0xF != 0
    return False


def _of_lowest_priority(candidates: Receivers, vector: int) -> Receivers:
    """The APIC with the lowest arbitration priority (SDM 12.6.2.4); among equals the vector decides.

    The manual does not say which of several equals receives the message. A choice by vector keeps no state; KVM does
    the same.
    """
    enabled = [lapic for lapic in candidates if lapic.software_enabled()]
    if not enabled:
        return ()
    priorities = [lapic.arbitration_priority() for lapic in enabled]
    lowest = min(priorities)
    equals = [lapic for lapic, priority in zip(enabled, priorities, strict=True) if priority == lowest]
    return equals[vector % len(equals)].alone
