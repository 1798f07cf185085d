"""`KvmSplitIrqChip`: local APICs are in the Linux kernel; PICs, IOAPIC, PIT and the lines are a `Chipset`.

`KernelApics` connects the two. Edge events on GSIs that carry a message go to the kernel as irqfds; the chip serves all
other events.

Left out, as KVM's local APICs lack it: ExtINT as a message, and LINT0 in another mode than ExtINT.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from attrs import frozen
from typing_extensions import override

from irqchip_core.arguments import check_int
from irqchip_core.chip import MPState, VcpuRunState
from irqchip_core.clock import Clock
from irqchip_core.errors import EventInUse, InvalidArgument, InvalidRoute, WrongType
from irqchip_core.event_table import EventSlot
from irqchip_core.eventfd import Event
from irqchip_core.events import IrqEdgeEvent, IrqEventIndex, IrqEventSource, IrqLevelEvent
from irqchip_core.hookspecs import Probe, irqchip_event_registered
from irqchip_core.hypervisor.vcpu import Vcpu, Vm
from irqchip_core.routes import IOAPIC_PINS, IrqRoute, MsiSource, PinSource, RoutingTable
from irqchip_core.x86.chipset.chip import ChipsetIrqChip
from irqchip_core.x86.chipset.chipset import Chipset
from irqchip_core.x86.state import MAXIMUM_PINS, LapicState
from irqchip_kvm import Irqfds, KvmVm, VcpuSlots
from irqchip_kvm.abi import Cap
from irqchip_kvm.irqfds import Irqfd
from irqchip_kvm.vcpu_slots import lapic_capabilities, probe_vm
from irqchip_kvm_split.apics import KernelApics

NAME = "kvm_split"

_NEEDED = {
    Cap.SPLIT_IRQCHIP: "local APICs without the other controllers (KVM_CAP_SPLIT_IRQCHIP)",
    Cap.IRQ_ROUTING: "interrupt routing (KVM_CAP_IRQ_ROUTING)",
    Cap.IRQFD: "irqfds (KVM_CAP_IRQFD)",
    Cap.SIGNAL_MSI: "messages from user space (KVM_CAP_SIGNAL_MSI)",
    Cap.MP_STATE: "MP states (KVM_CAP_MP_STATE)",
    Cap.X2APIC_API: "APIC ids of 32 bits (KVM_CAP_X2APIC_API)",
}


def probe(vm: Vm) -> Probe:
    """Whether `vm` can have this chip."""
    return probe_vm(vm, _NEEDED, "use Linux 4.8 or later")


@frozen
class SplitChipState:
    """State beside the common records.

    Attributes:
        routes: The routing table.
        interrupt_bitmaps: By vCPU: the vector that is injected but not yet delivered, as a bit.
        pending_extint: Vector that the PICs have in service and vCPU 0 has not taken yet; None if there is none.
    """

    routes: tuple[IrqRoute, ...]
    interrupt_bitmaps: tuple[int, ...]
    pending_extint: int | None


class KvmSplitIrqChip(ChipsetIrqChip):
    """The chip with local APICs in the kernel.

    Args:
        vm: A KVM VM without vCPUs and without a chip.
        vcpu_count: Maximum number of vCPUs: 1 to `KvmVm.max_vcpu_id`. vCPUs from 255 on can be reached only in
            x2APIC mode, and by messages whose address has the upper bits of the destination in bits 40-63.
        pins: Number of inputs of the IOAPIC, 24 to 240.
        clock: Where PIT and IOAPIC have their time from; None for the host's.

    Raises:
        WrongType: `vm` is not a `KvmVm`.
        InvalidArgument: A number is out of range.
        HypervisorError: KVM refuses to make the chip, because a vCPU or another chip exists.
    """

    name = NAME

    def __init__(self, vm: Vm, vcpu_count: int, *, pins: int = IOAPIC_PINS, clock: Clock | None = None) -> None:
        if not isinstance(vm, KvmVm):
            raise WrongType(
                f"it is a {type(vm).__name__}", subject=NAME, argument="vm", remedy="give an irqchip_kvm.KvmVm"
            )
        check_int(pins, IOAPIC_PINS, MAXIMUM_PINS, subject=NAME, argument="pins")
        self._vcpus = VcpuSlots(NAME, vm, vcpu_count)
        vm.enable_split_irqchip(pins)
        vm.enable_x2apic_api()
        self._vm = vm
        self._irqfds = Irqfds(vm)
        chipset = Chipset(NAME, clock if clock is not None else vm.clock, pins)
        chipset.apics = self._apics = KernelApics(vm, chipset)
        super().__init__(chipset, lapic_capabilities(vm))

    @override
    def _release(self) -> None:
        self._irqfds.close()
        super()._release()

    # vCPUs: the kernel halts, waits and wakes.

    @override
    def add_vcpu(self, vcpu_id: int, vcpu: Vcpu) -> None:
        added = self._vcpus.add(vcpu_id, vcpu)
        if vcpu_id == 0:
            self._apics.pic_output.connect(added)

    @override
    def inject_interrupts(self, vcpu: Vcpu) -> None:
        own = self._vcpus.own(vcpu)
        if own.id == 0:
            self._apics.pic_output.inject(own)

    @override
    def halted(self, vcpu_id: int) -> None:
        _ = self._vcpus[vcpu_id]

    @override
    def wait_until_runnable(self, vcpu: Vcpu) -> VcpuRunState:
        own = self._vcpus.own(vcpu)
        if own.id == 0:
            self._apics.pic_output.enter(own)
        return VcpuRunState.RUNNABLE

    @override
    def kick_halted_vcpus(self) -> None:
        """No action: a halted vCPU sleeps in the kernel, and its own kick ends that."""

    @override
    def get_mp_state(self, vcpu_id: int) -> MPState:
        return self._vcpus.get_mp_state(vcpu_id)

    @override
    def set_mp_state(self, vcpu_id: int, state: MPState) -> None:
        self._vcpus.set_mp_state(vcpu_id, state)
        self._apics.pic_output.look_again()

    # Events: the kernel serves an event that can only cause a message, the chipset any other.

    @override
    def _connect_event(
        self, gsi: int, event: IrqEdgeEvent | IrqLevelEvent, source: IrqEventSource
    ) -> IrqEventIndex | None:
        with self._chipset.routes_lock:
            sources = self._chipset.lines.routes[gsi]
            level = isinstance(event, IrqLevelEvent)
            trigger = event.get_trigger()
            if level and _has_message(sources):
                raise InvalidArgument(
                    f"GSI {gsi} carries a message, whose end no controller reports",
                    subject=NAME,
                    argument="irq",
                    remedy="route the GSI to a pin of the IOAPIC or the PICs, or use an edge event",
                )
            # The kernel takes every signal of an irqfd, and would leave none for the chipset.
            if level or gsi < self._chipset.ioapic.pins or _has_pin(sources):
                self._check_unused(trigger, self._irqfds.connections(), "the kernel serves it")
                return self._chipset.register(gsi, event, source)
            self._check_unused(trigger, self._chipset.events.slots(), "the chip serves it")
            self._irqfds.connect(gsi, event, source)
            return None

    def _check_unused(self, trigger: Event, others: Sequence[Irqfd | EventSlot], problem: str) -> None:
        for other in others:
            if other.trigger == trigger:
                raise EventInUse(
                    f"{problem} already, on GSI {other.gsi}",
                    subject=NAME,
                    argument="event",
                    remedy="unregister it first, or use a new event",
                )

    @override
    def _disconnect_event(self, gsi: int, trigger: Event) -> bool:
        with self._chipset.routes_lock:
            return self._irqfds.disconnect(gsi, trigger) or self._chipset.unregister(gsi, trigger)

    @override
    def _change_routes(self, change: Callable[[RoutingTable], RoutingTable]) -> RoutingTable:
        taken_over: list[tuple[int, IrqEventSource, IrqEventIndex]] = []

        def checked(old: RoutingTable) -> RoutingTable:
            routes = change(old)
            self._check_level_events(routes)
            self._take_over(routes, taken_over)
            return routes

        try:
            return super()._change_routes(checked)
        finally:
            for gsi, source, index in taken_over:
                self.observers.notify(irqchip_event_registered, chip=self, gsi=gsi, source=source, index=index)

    def _check_level_events(self, routes: RoutingTable) -> None:
        for slot in self._chipset.events.slots():
            if slot.resample is not None and _has_message(routes[slot.gsi]):
                device = slot.source.device_name
                raise InvalidRoute(
                    f"{device} has a level event on GSI {slot.gsi}, and no controller reports the end of a message",
                    subject=NAME,
                    argument="route",
                    remedy="unregister the event first, or route another GSI",
                )

    def _take_over(self, routes: RoutingTable, taken: list[tuple[int, IrqEventSource, IrqEventIndex]]) -> None:
        """Move the irqfds of GSIs that get pins to the chipset, as only the chipset can drive pins."""
        for irqfd in self._irqfds.connections():
            if _has_pin(routes[irqfd.gsi]):
                # In this order: until it disconnects the kernel takes each signal, and afterwards the chipset does.
                index = self._chipset.events.append(irqfd.gsi, IrqEdgeEvent(irqfd.trigger), irqfd.source)
                taken.append((irqfd.gsi, irqfd.source, index))
                self._irqfds.disconnect(irqfd.gsi, irqfd.trigger)

    # The x86 extension

    @override
    def get_lapic_state(self, vcpu_id: int) -> LapicState:
        return self._vcpus.get_lapic_state(vcpu_id)

    @override
    def set_lapic_state(self, vcpu_id: int, state: LapicState) -> None:
        self._vcpus.set_lapic_state(vcpu_id, state)
        self._apics.pic_output.look_again()

    @override
    def lapics_in_hypervisor(self) -> bool:
        return True

    @override
    def snapshot_chip_specific(self) -> SplitChipState:
        return SplitChipState(
            routes=tuple(self._chipset.lines.routes),
            interrupt_bitmaps=self._vcpus.interrupt_bitmaps(),
            pending_extint=self._apics.pic_output.pending_extint(),
        )

    @override
    def check_chip_specific(self, data: Any, vcpu_count: int) -> None:
        self._vcpus.check_chip_specific(data, SplitChipState, vcpu_count)
        if data.pending_extint is not None:
            check_int(data.pending_extint, 0, 0xFF, subject=NAME, argument="chip_specific.pending_extint")
        self._check_level_events(self._chipset.lines.routes.replaced(data.routes))  # raises also if they are no routes

    @override
    def restore_chip_specific(self, data: Any) -> None:
        self.check_chip_specific(data, len(self._vcpus))
        self.set_irq_routes(data.routes)
        self._apics.pic_output.restore(data.pending_extint)
        self._vcpus.set_interrupt_bitmaps(data.interrupt_bitmaps)


def _has_pin(sources: tuple[PinSource | MsiSource, ...]) -> bool:
    return any(isinstance(source, PinSource) for source in sources)


def _has_message(sources: tuple[PinSource | MsiSource, ...]) -> bool:
    return any(isinstance(source, MsiSource) for source in sources)
