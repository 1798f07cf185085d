"""A device's end of an interrupt: an edge line, a level line or a message, registered with the chip and counted.

Get one from `Machine.edge_irq`, `Machine.level_irq` or `Machine.msi_irq`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import ClassVar, Generic, TypeVar

from attrs import evolve, frozen
from typing_extensions import override

from irqchip_core.chip import IrqChip
from irqchip_core.errors import IrqChipError
from irqchip_core.events import IrqEdgeEvent, IrqEventSource, IrqLevelEvent
from irqchip_core.routes import IrqRoute

_Event = TypeVar("_Event", bound=IrqEdgeEvent | IrqLevelEvent)


@frozen
class IrqCount:
    """What a device did with one of its interrupts.

    Attributes:
        name: The device's name for it.
        kind: ``edge``, ``level`` or ``msi``.
        gsi: Its number.
        raised: How often the device signaled it.
        resampled: How often the resample event reported the guest's EOI to the device; None unless level.
    """

    name: str
    kind: str
    gsi: int
    raised: int
    resampled: int | None


class DeviceIrq(Generic[_Event]):
    """What every interrupt of a device has, whatever its kind.

    Args:
        chip: The chip.
        gsi: The number of the interrupt.
        source: The device that raises it.
        event: Its event, which it closes.
        register: The chip's method that connects such an event.
        unregister: The one that disconnects it.
    """

    kind: ClassVar[str]

    def __init__(
        self,
        chip: IrqChip,
        gsi: int,
        source: IrqEventSource,
        event: _Event,
        register: Callable[[int, _Event, IrqEventSource], object],
        unregister: Callable[[int, _Event], object],
    ) -> None:
        self.gsi = gsi
        self.name = source.device_name
        self.raised = 0
        self.event = event
        self._chip = chip
        self._unregister = unregister
        self._lock = threading.Lock()
        try:
            register(gsi, event, source)
        except BaseException:
            event.close()
            raise

    def trigger(self) -> None:
        """Raise the interrupt. From any thread."""
        with self._lock:
            self.raised += 1
        self.event.trigger()

    def count(self) -> IrqCount:
        return IrqCount(self.name, self.kind, self.gsi, self.raised, None)

    def close(self) -> None:
        """Disconnect it from the chip. The event is closed even if the chip raises."""
        try:
            self._unregister(self.gsi, self.event)
        finally:
            self.event.close()


class EdgeIrq(DeviceIrq[IrqEdgeEvent]):
    """One `trigger` is one pulse of line `gsi`."""

    kind = "edge"

    def __init__(self, chip: IrqChip, gsi: int, source: IrqEventSource) -> None:
        connect, disconnect = chip.register_edge_irq_event, chip.unregister_edge_irq_event
        super().__init__(chip, gsi, source, IrqEdgeEvent(), connect, disconnect)


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


class LevelIrq(DeviceIrq[IrqLevelEvent]):
    """One `trigger` asserts line `gsi` until the guest ends the interrupt; then `on_resample` is called.

    Attributes:
        on_resample: Called on the device loop's thread. Looks at the device's state, and triggers again if it
            still needs service.
        event: The pair of events. The code that waits for its resample event calls `resample` when that is readable.
    """

    kind = "level"

    def __init__(self, chip: IrqChip, gsi: int, source: IrqEventSource) -> None:
        self.resampled = 0
        self.on_resample: Callable[[], object] = lambda: None
        connect, disconnect = chip.register_level_irq_event, chip.unregister_level_irq_event
        super().__init__(chip, gsi, source, IrqLevelEvent(), connect, disconnect)

    def resample(self) -> None:
        """The guest has ended the interrupt, and the chip has lowered the line."""
        if self.event.get_resample().reset():
            self.resampled += 1
            self.on_resample()

    @override
    def count(self) -> IrqCount:
        return evolve(super().count(), resampled=self.resampled)
