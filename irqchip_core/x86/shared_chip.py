"""`SharedIrqChip`: the base of all chips; `PcIrqChip`: the base of those with all controllers of a PC.

`SharedIrqChip` has handles and their end, the checks of arguments and the calls of observers; `PcIrqChip` also the
state of PICs, IOAPIC and PIT. The derived chip connects events, changes routes and serves its vCPUs.
"""

from __future__ import annotations

import functools
import inspect
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, NoReturn, Protocol, Self

from typing_extensions import override

from irqchip_core.allocator import SystemAllocator
from irqchip_core.arguments import check_int, check_type
from irqchip_core.bus import Bus
from irqchip_core.capabilities import PC_CONTROLLERS, IrqChipCap
from irqchip_core.errors import Closed
from irqchip_core.eventfd import Event
from irqchip_core.events import IrqEdgeEvent, IrqEventIndex, IrqEventSource, IrqLevelEvent
from irqchip_core.hookspecs import irqchip_event_registered, irqchip_event_unregistered, irqchip_routes_changed
from irqchip_core.routes import IrqRoute, RoutingTable
from irqchip_core.x86.chip import IrqChipX86_64
from irqchip_core.x86.finalization import Finalization, Place
from irqchip_core.x86.state import IoapicState, PicSelect, PicState, PitState
from irqchip_core.x86.state_checks import check_ioapic, check_pic, check_pit, check_select

MAX_GSI = (1 << 32) - 1


class _Handles:
    """The number of open handles of a chip."""

    def __init__(self) -> None:
        self.open = 1
        self.lock = threading.Lock()  # nothing else is locked meanwhile


class SharedIrqChip(IrqChipX86_64):
    """One handle of a chip.

    Handles have the same attributes: a subclass keeps what changes in objects that all handles share. No method tests
    whether its handle is open. Instead, a closed handle is of another class (`_closed`), whose every method raises
    `Closed`, and it no longer has these objects (`_Nothing`), so that a method looked up before the end raises, too.

    Args:
        capabilities: The capabilities of the chip.
        pins: Number of inputs of the IOAPIC, if the chip has one. Devices get GSIs above them for their messages.
    """

    _is_closed: ClassVar = False

    def __init__(self, capabilities: frozenset[IrqChipCap], pins: int = 0) -> None:
        super().__init__()
        self._pins = pins
        self._capabilities = capabilities
        self._handles = _Handles()
        self._finalization = Finalization(self.name, pins)

    # For subclasses

    @abstractmethod
    def _connect_event(
        self, gsi: int, event: IrqEdgeEvent | IrqLevelEvent, source: IrqEventSource
    ) -> IrqEventIndex | None:
        """Register an event; returns its index if user space serves it, else None."""

    @abstractmethod
    def _disconnect_event(self, gsi: int, trigger: Event) -> bool:
        """Unregister an event; returns False if it is not registered."""

    @abstractmethod
    def _change_routes(self, change: Callable[[RoutingTable], RoutingTable]) -> RoutingTable:
        """Replace the routing table by `change` of it, and return that. An error of `change` leaves all as it was."""

    def _places(self, io_bus: Bus, mmio_bus: Bus) -> Iterable[Place]:
        """The chip's own devices, with their ranges on the buses."""
        return ()

    def _finalized(self, places: Sequence[Place]) -> None:
        """Start time, as the devices are on their buses now."""

    def _release(self) -> None:
        """Release all resources, after the last handle was closed: its public methods already raise `Closed`."""

    # Handles

    @override
    def try_clone(self) -> Self:
        with self._handles.lock:
            if self._is_closed:  # looked up before
                _Nothing(self.name)._refuse()
            clone = object.__new__(type(self))
            vars(clone).update(vars(self))
            self._handles.open += 1
        return clone

    def __copy__(self) -> Self:
        return self.try_clone()

    @override
    def close(self) -> None:
        with self._handles.lock:
            kind = type(self)
            if kind._is_closed:
                return
            self.__class__ = _closed(kind)
            self._handles.open -= 1
            last = not self._handles.open
        try:
            if last:
                kind._release(self)
        finally:
            nothing = _Nothing(self.name)
            for name in vars(self).keys() - _KEPT:
                setattr(self, name, nothing)

    # Events, lines and routes

    def _check_gsi(self, irq: int) -> None:
        check_int(irq, 0, MAX_GSI, subject=self.name, argument="irq")

    def _register(self, irq: int, event: IrqEdgeEvent | IrqLevelEvent, source: IrqEventSource) -> IrqEventIndex | None:
        self._check_gsi(irq)
        check_type(source, IrqEventSource, subject=self.name, argument="source")
        index = self._connect_event(irq, event, source)
        self.observers.notify(irqchip_event_registered, chip=self, gsi=irq, source=source, index=index)
        return index

    def _unregister(self, irq: int, trigger: Event) -> None:
        self._check_gsi(irq)
        if self._disconnect_event(irq, trigger):
            self.observers.notify(irqchip_event_unregistered, chip=self, gsi=irq)

    @override
    def register_edge_irq_event(self, irq: int, event: IrqEdgeEvent, source: IrqEventSource) -> IrqEventIndex | None:
        check_type(event, IrqEdgeEvent, subject=self.name, argument="event")
        return self._register(irq, event, source)

    @override
    def unregister_edge_irq_event(self, irq: int, event: IrqEdgeEvent) -> None:
        check_type(event, IrqEdgeEvent, subject=self.name, argument="event")
        self._unregister(irq, event.get_trigger())

    @override
    def register_level_irq_event(self, irq: int, event: IrqLevelEvent, source: IrqEventSource) -> IrqEventIndex | None:
        check_type(event, IrqLevelEvent, subject=self.name, argument="event")
        return self._register(irq, event, source)

    @override
    def unregister_level_irq_event(self, irq: int, event: IrqLevelEvent) -> None:
        check_type(event, IrqLevelEvent, subject=self.name, argument="event")
        self._unregister(irq, event.get_trigger())

    @override
    def route_irq(self, route: IrqRoute) -> None:
        self._replace_routes(lambda routes: routes.adding(route))

    @override
    def set_irq_routes(self, routes: Iterable[IrqRoute]) -> None:
        self._replace_routes(lambda old: old.replaced(routes))

    def _replace_routes(self, change: Callable[[RoutingTable], RoutingTable]) -> None:
        self.observers.notify(irqchip_routes_changed, chip=self, routes=self._change_routes(change))

    # Devices and capabilities

    @override
    def finalize_devices(self, allocator: SystemAllocator, io_bus: Bus, mmio_bus: Bus) -> None:
        check_type(io_bus, Bus, subject=self.name, argument="io_bus")
        check_type(mmio_bus, Bus, subject=self.name, argument="mmio_bus")
        places = list(self._places(io_bus, mmio_bus))
        self._finalization.perform(allocator, io_bus, mmio_bus, places)
        self._finalized(places)

    @override
    def check_capability(self, capability: IrqChipCap) -> bool:
        check_type(capability, IrqChipCap, subject=self.name, argument="capability")
        return capability in self._capabilities


_KEPT = {"observers", "_handles", "_pins", "_capabilities"}
"""Attributes that a closed handle still has."""


class _Nothing:
    """In a closed handle, the value of each attribute that held an object shared by all handles."""

    def __init__(self, subject: str) -> None:
        self._subject = subject

    def _refuse(self, *args: object) -> NoReturn:
        raise Closed("the chip is closed", subject=self._subject, remedy="keep the handle open, or use another clone")

    __getattr__ = __getitem__ = __len__ = __call__ = _refuse


@functools.cache
def _closed(kind: type[SharedIrqChip]) -> Any:
    """The class of a closed handle of a `kind`: its every method but `close` raises `Closed`."""

    def refuse(self: SharedIrqChip, *args: object, **options: object) -> NoReturn:
        _Nothing(self.name)._refuse()

    refused = [name for name, _ in inspect.getmembers(kind, inspect.isfunction) if not name.startswith("_")]
    members = {name: refuse for name in refused if name != "close"}
    return type(f"Closed{kind.__name__}", (kind,), {"__doc__": "A closed handle.", "_is_closed": True, **members})


class Controllers(Protocol):
    """PICs, IOAPIC and PIT, in user space or in the hypervisor. Arguments are checked before each call."""

    def get_pic_state(self, select: PicSelect) -> PicState: ...
    def set_pic_state(self, select: PicSelect, state: PicState) -> None: ...
    def get_ioapic_state(self) -> IoapicState: ...
    def set_ioapic_state(self, state: IoapicState) -> None: ...
    def get_pit(self) -> PitState: ...
    def set_pit(self, state: PitState) -> None: ...


class PcIrqChip(SharedIrqChip):
    """A chip with all controllers of a PC.

    Args:
        pins: Number of inputs of the IOAPIC.
        capabilities: The capabilities of the chip besides the controllers.
        controllers: The chip's PICs, IOAPIC and PIT.
    """

    def __init__(self, pins: int, capabilities: frozenset[IrqChipCap], controllers: Controllers) -> None:
        super().__init__(PC_CONTROLLERS | capabilities, pins)
        self._controllers = controllers

    @override
    def get_pic_state(self, select: PicSelect) -> PicState:
        check_select(select, subject=self.name)
        return self._controllers.get_pic_state(select)

    @override
    def set_pic_state(self, select: PicSelect, state: PicState) -> None:
        check_pic(state, select, subject=self.name)
        self._controllers.set_pic_state(select, state)

    @override
    def get_ioapic_state(self) -> IoapicState:
        return self._controllers.get_ioapic_state()

    @override
    def set_ioapic_state(self, state: IoapicState) -> None:
        check_ioapic(state, self._pins, subject=self.name)
        self._controllers.set_ioapic_state(state)

    @override
    def get_pit(self) -> PitState:
        return self._controllers.get_pit()

    @override
    def set_pit(self, state: PitState) -> None:
        check_pit(state, subject=self.name)
        self._controllers.set_pit(state)
