"""A device's end of an interrupt: an edge line, a level line or a message, registered with the chip and counted.

Get one from `Machine.edge_irq`, `Machine.level_irq` or `Machine.msi_irq`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from attrs import frozen

from irqchip_core.chip import IrqChip
from irqchip_core.errors import IrqChipError
from irqchip_core.events import IrqEdgeEvent, IrqEventSource, IrqLevelEvent
from irqchip_core.routes import IrqRoute


@frozen
class IrqCount:
    """What a device did with one of its interrupts.

    Attributes:
        name: The device's name for it.
        kind: ``edge``, ``level`` or ``msi``.
        gsi: Its number.
        raised: How often the device signaled it.
        resampled: How often the chip told the device that the guest had ended it; None unless level.
    """

    name: str
    kind: str
    gsi: int
    raised: int
    resampled: int | None


class EdgeIrq:
    """One `trigger` is one pulse of line `gsi`."""

    kind = "edge"

    def __init__(self, chip: IrqChip, gsi: int, source: IrqEventSource) -> None:
        self.gsi = gsi
        self.name = source.device_name
        self.raised = 0
        self._chip = chip
        self._lock = threading.Lock()
        self._event = IrqEdgeEvent()
        try:
            chip.register_edge_irq_event(gsi, self._event, source)
        except BaseException:
            self._event.close()
            raise

    def trigger(self) -> None:
        """Raise the interrupt. From any thread."""
        with self._lock:
            self.raised += 1
        self._event.trigger()

    def count(self) -> IrqCount:
        return IrqCount(self.name, self.kind, self.gsi, self.raised, None)

    def close(self) -> None:
        """Disconnect it from the chip."""
        self._chip.unregister_edge_irq_event(self.gsi, self._event)
        self._event.close()


class MsiIrq(EdgeIrq):
    """One `trigger` sends the message, once `set_message` has said which."""

    kind = "msi"

    def set_message(self, address: int, data: int) -> bool:
        """Route the GSI to a message the guest has programmed.

        Returns:
            False if the chip refuses it; then the message before stays.
        """
        try:
            self._chip.route_irq(IrqRoute.msi(self.gsi, address, data))
        except IrqChipError:
            return False
        return True


class LevelIrq:
    """One `trigger` asserts line `gsi` until the guest ends the interrupt; then `on_resample` is called.

    Attributes:
        on_resample: Called on the device loop's thread. Looks at the device's state, and triggers again if it
            still wants service.
        event: The pair of events. Whoever waits on its resample event calls `resample` when it is readable.
    """

    kind = "level"

    def __init__(self, chip: IrqChip, gsi: int, source: IrqEventSource) -> None:
        self.gsi = gsi
        self.name = source.device_name
        self.raised = 0
        self.resampled = 0
        self.on_resample: Callable[[], object] = lambda: None
        self._chip = chip
        self._lock = threading.Lock()
        self.event = IrqLevelEvent()
        try:
            chip.register_level_irq_event(gsi, self.event, source)
        except BaseException:
            self.event.close()
            raise

    def trigger(self) -> None:
        """Assert the line. From any thread."""
        with self._lock:
            self.raised += 1
        self.event.trigger()

    def resample(self) -> None:
        """The guest has ended the interrupt, and the chip has lowered the line."""
        if self.event.get_resample().reset():
            self.resampled += 1
            self.on_resample()

    def count(self) -> IrqCount:
        return IrqCount(self.name, self.kind, self.gsi, self.raised, self.resampled)

    def close(self) -> None:
        """Disconnect it from the chip."""
        self._chip.unregister_level_irq_event(self.gsi, self.event)
        self.event.close()
