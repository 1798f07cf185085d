"""What a processor takes besides vectors: NMI, SMI, INIT, start-up and ExtINT, waiting at its local APIC."""

from __future__ import annotations

from typing import NamedTuple

from irqchip_core.x86.msi import EXTINT, INIT, NMI, SMI, STARTUP

_MAXIMUM_NMIS = 2  # one in its handler and one latched, as on a processor (SDM 7.7.1) and in KVM


class PendingEvents(NamedTuple):
    """The pending events of one local APIC, as `LapicCore.take_events` returns them.

    Attributes:
        nmis: Number of pending NMIs, 0 to 2.
        smi, init: Whether one is pending.
        startup_vector: Vector of the newest start-up IPI after the last INIT, or None.
        extint: Whether an ExtINT message is pending: the 8259A gives its vector when it is acknowledged.
    """

    nmis: int = 0
    smi: bool = False
    init: bool = False
    startup_vector: int | None = None
    extint: bool = False

    def adding(self, delivery_mode: int, vector: int) -> PendingEvents | None:
        """These events and one more; the same object if that changes nothing, None if there is no such event."""
        if delivery_mode == NMI:
            return self if self.nmis == _MAXIMUM_NMIS else self._replace(nmis=self.nmis + 1)
        if delivery_mode == SMI:
            return self if self.smi else self._replace(smi=True)
        if delivery_mode == INIT:
            return self if self == _INIT else _INIT
        if delivery_mode == STARTUP:
            return self if self.startup_vector == vector else self._replace(startup_vector=vector)
        if delivery_mode == EXTINT:
            return self if self.extint else self._replace(extint=True)
        return None


NO_EVENTS = PendingEvents()
_INIT = PendingEvents(init=True)  # INIT discards earlier events, as it resets the processor
