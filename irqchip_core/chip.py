"""The contract: what every interrupt chip of a virtual machine can do.

`IrqChip` has 22 methods. Devices raise interrupts through registered events or `service_irq`; an irq
loop serves the events the chip does not hand to the kernel; each vCPU's thread calls
`inject_interrupts`, `halted` and `wait_until_runnable` around running guest code. What only x86 has is
in `irqchip_core.x86.chip`.

A GSI ("irq" in the argument names) is a line of the machine: 0-23 are the legacy lines, those above are
given out for MSIs. Every method may be called from any thread, except where it takes a vCPU: those
belong to that vCPU's thread. "Any" includes state of a vCPU that executes guest code: where the hypervisor has that
state, the vCPU is taken out of the guest for it, and its `run` returns `InterruptedExit`. A caller's mistake raises an
`IrqChipError` and changes nothing.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Self

from irqchip_core.allocator import SystemAllocator
from irqchip_core.bus import Bus
from irqchip_core.capabilities import IrqChipCap
from irqchip_core.eventfd import Event
from irqchip_core.events import (
    IrqEdgeEvent,
    IrqEventIndex,
    IrqEventSource,
    IrqEventToken,
    IrqLevelEvent,
)
from irqchip_core.hypervisor.vcpu import Vcpu
from irqchip_core.observers import ChipObservers
from irqchip_core.routes import IrqRoute


class MPState(enum.IntEnum):
    """Multiprocessing state of a vCPU, with the numbers of KVM_MP_STATE_*."""

    RUNNABLE = 0
    UNINITIALIZED = 1
    INIT_RECEIVED = 2
    HALTED = 3
    SIPI_RECEIVED = 4
    STOPPED = 5
    """ARM and RISC-V only; KVM on x86 refuses it."""


class VcpuRunState(enum.Enum):
    """What `wait_until_runnable` waited for."""

    RUNNABLE = "runnable"
    INTERRUPTED = "interrupted"


class IrqChip(ABC):
    """An interrupt chip. Exactly one exists per VM, made after the VM and before its first vCPU.

    Attributes:
        name: Name of the backend, such as ``kvm_kernel``.
        observers: Notified of registrations and routes; shared by all clones.
    """

    name: str
    observers: ChipObservers

    def __init__(self) -> None:
        self.observers = ChipObservers()

    @abstractmethod
    def add_vcpu(self, vcpu_id: int, vcpu: Vcpu) -> None:
        """Add a vCPU to the chip, on that vCPU's thread, before it runs. Replaces an earlier one.

        Raises:
            UnknownVcpu: `vcpu_id` is not below the number of vCPUs the chip was made for.
            WrongType: The chip cannot use this kind of vCPU.
            InvalidArgument: It is a vCPU of another number, or of another VM.
        """

    @abstractmethod
    def register_edge_irq_event(self, irq: int, event: IrqEdgeEvent, source: IrqEventSource) -> IrqEventIndex | None:
        """Let each signal of `event` pulse GSI `irq`.

        Any GSI will do, routed or not; until it has a route its signals reach nothing. Several events
        may share a GSI. The chip keeps its own handle of the event.

        Returns:
            The position in the event table, or None if the kernel waits for the event itself.

        Raises:
            InvalidArgument: `irq` is not an unsigned 32-bit number.
            EventInUse: The kernel waits for this trigger already, on any GSI; or both kernel and chip would.
            Closed: The event or the chip is closed.
        """

    @abstractmethod
    def unregister_edge_irq_event(self, irq: int, event: IrqEdgeEvent) -> None:
        """Undo one registration of `event` (or a clone of it) on `irq`; harmless if there is none.

        The device may have closed `event` before.
        """

    @abstractmethod
    def register_level_irq_event(self, irq: int, event: IrqLevelEvent, source: IrqEventSource) -> IrqEventIndex | None:
        """Let each signal of the trigger assert GSI `irq` until the guest ends the interrupt.

        Then the line is lowered and the resample event signalled. Returns and raises as
        `register_edge_irq_event` does.
        """

    @abstractmethod
    def unregister_level_irq_event(self, irq: int, event: IrqLevelEvent) -> None:
        """Undo one registration of `event` (or a clone of it) on `irq`; harmless if there is none.

        The device may have closed `event` before.
        """

    @abstractmethod
    def route_irq(self, route: IrqRoute) -> None:
        """Add a route, in place of the route or routes of its GSI that it conflicts with; all others stay.

        A pin takes the place of a pin of the same controller, or of a message. A message takes the place of all
        routes of the GSI.

        Raises:
            InvalidRoute: See `RoutingTable`. The routes are as before.
        """

    @abstractmethod
    def set_irq_routes(self, routes: Iterable[IrqRoute]) -> None:
        """Replace all routes. With none, no GSI reaches anything.

        Raises:
            InvalidRoute: See `RoutingTable`. The routes are as before.
        """

    @abstractmethod
    def irq_event_tokens(self) -> list[IrqEventToken]:
        """One token for each event that user space must serve, by index.

        The events in them are clones that belong to the caller.
        """

    @abstractmethod
    def service_irq(self, irq: int, level: bool) -> None:
        """Drive GSI `irq` directly: its pins take `level`, and its MSI, if any, is sent when `level` is true.

        A GSI without a route does nothing.
        """

    @abstractmethod
    def service_irq_event(self, index: IrqEventIndex) -> None:
        """Serve a readable token: consume its event, drive the GSI.

        Raises:
            InvalidArgument: No registration ever had this index.
        """

    @abstractmethod
    def broadcast_eoi(self, vector: int) -> None:
        """Notify the IOAPIC of a local APIC's EOI of `vector` (0-255)."""

    @abstractmethod
    def inject_interrupts(self, vcpu: Vcpu) -> None:
        """Inject what is pending for `vcpu`, or request an interrupt window. After each exit, on its thread."""

    @abstractmethod
    def halted(self, vcpu_id: int) -> None:
        """The vCPU executed HLT, and the exit reached user space."""

    @abstractmethod
    def wait_until_runnable(self, vcpu: Vcpu) -> VcpuRunState:
        """Block until `vcpu` has something to execute, or was interrupted by `kick_halted_vcpus`."""

    @abstractmethod
    def kick_halted_vcpus(self) -> None:
        """Let the current or else the next `wait_until_runnable` of every vCPU return INTERRUPTED, once."""

    @abstractmethod
    def get_mp_state(self, vcpu_id: int) -> MPState:
        """The vCPU's multiprocessing state. At first 0 is RUNNABLE and the others UNINITIALIZED.

        Raises:
            UnknownVcpu: Out of range, or not added.
        """

    @abstractmethod
    def set_mp_state(self, vcpu_id: int, state: MPState) -> None:
        """Set the vCPU's multiprocessing state.

        Raises:
            UnknownVcpu: Out of range, or not added.
            InvalidArgument: The processor has no such state (STOPPED on x86).
        """

    @abstractmethod
    def try_clone(self) -> Self:
        """A second handle on the same chip: all state is shared, and each handle is closed by itself."""

    @abstractmethod
    def finalize_devices(self, allocator: SystemAllocator, io_bus: Bus, mmio_bus: Bus) -> None:
        """Put the chip's own devices on the buses. Once, when all devices are there, before vCPUs run.

        From then on `allocator` gives out numbers above those of the IOAPIC's pins, for MSIs: the next one is the
        lowest free number that is not below the number of pins.

        Raises:
            InvalidArgument: A range is taken, the allocator has no such number, or it is the second call. Buses and
                allocator are as before.
        """

    @abstractmethod
    def process_delayed_irq_events(self) -> None:
        """Serve the events that could not be served at once. When the delayed token is readable.

        Does not wait. Events that still cannot be served stay delayed; the token becomes readable again when they can.
        """

    @abstractmethod
    def irq_delayed_event_token(self) -> Event | None:
        """A clone of the event that is readable while events are delayed and can be served; None if none ever is.

        A vCPU that uses a controller delays the events that drive it. They can be served as soon as it has done.
        """

    @property
    def events_delayed(self) -> bool:
        """Whether events are delayed now, be the delayed token readable already or not yet."""
        return False

    @abstractmethod
    def check_capability(self, capability: IrqChipCap) -> bool:
        """Whether this chip, on this hypervisor, can do that."""

    @abstractmethod
    def close(self) -> None:
        """Give up this handle. The last one disconnects all events. Closing twice is harmless."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
