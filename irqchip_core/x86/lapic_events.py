"""What a processor takes besides vectors: NMI, SMI, INIT, start-up and ExtINT, waiting at its local APIC."""

from __future__ import annotations

from typing import NamedTuple

from irqchip_core.x86.msi import EXTINT, INIT, NMI, SMI, STARTUP

_MAXIMUM_NMIS = 2  # one being taken and one latched, as on a processor and in KVM


class PendingEvents(NamedTuple):
    """Such events, as `LapicCore.take_events` hands them out.

    Attributes:
        nmis: How many, 0 to 2.
        smi, init: Whether one came.
        startup_vector: That of the newest start-up IPI after the last INIT, or None.
        extint: An ExtINT message came: the vector is to be asked of the 8259.
    """

    nmis: int = 0
    smi: bool = False
    init: bool = False
    startup_vector: int | None = None
    extint: bool = False

    def adding(self, delivery_mode: int, vector: int) -> PendingEvents | None:
        """These and one more; the same object if it makes no difference, None if there is no such event."""
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
_INIT = PendingEvents(init=True)  # INIT takes away what came before it: it would be dropped with the processor's state
