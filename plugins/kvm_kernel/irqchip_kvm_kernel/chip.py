"""`KvmKernelIrqChip`: PIC, IOAPIC, PIT and local APICs are all in the Linux kernel.

Devices' events go to the kernel as irqfds, so no interrupt passes through user space, there is nothing for
an irq loop to serve, and the kernel lets a halted vCPU sleep inside KVM_RUN. What is left here is
bookkeeping: the routing table that was last accepted, which events are connected, and the vCPUs.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from typing import Any, Self

from attrs import frozen
from typing_extensions import override

from irqchip_core.allocator import SystemAllocator
from irqchip_core.arguments import check_int, check_type
from irqchip_core.bus import Bus
from irqchip_core.chip import IrqChipCap, MPState, VcpuRunState
from irqchip_core.errors import Closed, WrongType
from irqchip_core.events import Event, IrqEdgeEvent, IrqEventIndex, IrqEventSource, IrqEventToken, IrqLevelEvent
from irqchip_core.hookspecs import Probe
from irqchip_core.routes import IOAPIC_PINS, IrqRoute, RoutingTable, default_routes
from irqchip_core.vcpu import Vcpu, Vm
from irqchip_core.x86.chip import IrqChipX86_64
from irqchip_core.x86.finalization import Finalization
from irqchip_core.x86.state import IoapicState, LapicState, PicSelect, PicState, PitState
from irqchip_core.x86.state_checks import check_ioapic, check_pic, check_pit, check_select
from irqchip_kvm import Irqfds, KvmVm, VcpuSlots
from irqchip_kvm.abi import PIT_SPEAKER_DUMMY, Cap
from irqchip_kvm.vcpu_slots import lapic_capabilities, probe_vm

_log = logging.getLogger(__name__)

NAME = "kvm_kernel"

LAPIC_FREQUENCY = 1_000_000_000
"""KVM's local APIC timers count nanoseconds (APIC_BUS_CYCLE_NS is 1 unless user space changes it)."""

_NEEDED = {
    Cap.IRQCHIP: "an interrupt chip in the kernel (KVM_CAP_IRQCHIP)",
    Cap.PIT2: "a PIT in the kernel (KVM_CAP_PIT2)",
    Cap.IRQ_ROUTING: "interrupt routing (KVM_CAP_IRQ_ROUTING)",
    Cap.IRQFD: "irqfds (KVM_CAP_IRQFD)",
    Cap.IRQFD_RESAMPLE: "resampling irqfds (KVM_CAP_IRQFD_RESAMPLE)",
    Cap.MP_STATE: "MP states (KVM_CAP_MP_STATE)",
}


def probe(vm: Vm) -> Probe:
    """Whether `vm` can have this chip."""
    return probe_vm(vm, _NEEDED, "use a kernel with CONFIG_KVM_IOAPIC")


@frozen
class KernelChipState:
    """What only this chip has to save. All else is in the common records.

    Attributes:
        routes: The routing table.
        interrupt_bitmaps: Of each vCPU, as a bit, the vector that is injected but not yet delivered.
    """

    routes: tuple[IrqRoute, ...]
    interrupt_bitmaps: tuple[int, ...]


class _Shared:
    """State of the chip, common to all its handles. `lock` guards everything that changes."""

    def __init__(self, vm: KvmVm, vcpu_count: int) -> None:
        self.vm = vm
        self.vcpus = VcpuSlots(NAME, vm, vcpu_count)
        self.irqfds = Irqfds(vm)
        self.routes = RoutingTable(default_routes(), subject=NAME)  # KVM_CREATE_IRQCHIP installs the same
        self.finalization = Finalization(NAME, IOAPIC_PINS)
        self.capabilities = lapic_capabilities(vm)
        self.handles = 1
        self.lock = threading.Lock()


class KvmKernelIrqChip(IrqChipX86_64):
    """The chip in the kernel.

    Args:
        vm: A KVM VM without vCPUs and without a chip.
        vcpu_count: How many vCPUs it will have at most: 1 to `KvmVm.max_vcpu_id`.

    Raises:
        WrongType: `vm` is not a `KvmVm`.
        InvalidArgument: `vcpu_count` is out of range.
        HypervisorError: KVM refuses to make the chip, because a vCPU or another chip exists.
    """

    name = NAME

    def __init__(self, vm: Vm, vcpu_count: int) -> None:
        super().__init__()
        if not isinstance(vm, KvmVm):
            raise WrongType(
                f"it is a {type(vm).__name__}", subject=NAME, argument="vm", remedy="give an irqchip_kvm.KvmVm"
            )
        shared = _Shared(vm, vcpu_count)
        vm.create_irqchip()
        vm.create_pit2(PIT_SPEAKER_DUMMY)  # the gate and OUT of counter 2 at port 0x61, which guests measure time with
        vm.enable_x2apic_api()
        self._state: _Shared | None = shared

    @property
    def _shared(self) -> _Shared:
        if self._state is None:
            raise Closed("the chip is closed", subject=NAME, remedy="keep the handle open, or use another clone")
        return self._state

    def _check_open(self) -> None:
        """For methods that leave all else to the kernel: raises `Closed` if this handle is closed."""
        _ = self._shared

    @override
    def add_vcpu(self, vcpu_id: int, vcpu: Vcpu) -> None:
        self._shared.vcpus.add(vcpu_id, vcpu)

    # Events: KVM_IRQFD, edge or with a resample event. The kernel listens; nothing is served here.

    def _register(self, irq: int, event: IrqEdgeEvent | IrqLevelEvent, source: IrqEventSource) -> None:
        shared = self._shared
        self._check_gsi(irq)
        check_type(source, IrqEventSource, subject=NAME, argument="source")
        shared.irqfds.connect(irq, event, source)
        self.observers.event_registered(self, irq, source, None)

    def _unregister(self, irq: int, trigger: Event) -> None:
        shared = self._shared
        self._check_gsi(irq)
        if shared.irqfds.disconnect(irq, trigger):
            self.observers.event_unregistered(self, irq)

    def _check_gsi(self, irq: int) -> None:
        check_int(irq, 0, (1 << 32) - 1, subject=NAME, argument="irq")

    @override
    def register_edge_irq_event(self, irq: int, event: IrqEdgeEvent, source: IrqEventSource) -> IrqEventIndex | None:
        check_type(event, IrqEdgeEvent, subject=NAME, argument="event")
        self._register(irq, event, source)
        return None

    @override
    def unregister_edge_irq_event(self, irq: int, event: IrqEdgeEvent) -> None:
        check_type(event, IrqEdgeEvent, subject=NAME, argument="event")
        self._unregister(irq, event.get_trigger())

    @override
    def register_level_irq_event(self, irq: int, event: IrqLevelEvent, source: IrqEventSource) -> IrqEventIndex | None:
        check_type(event, IrqLevelEvent, subject=NAME, argument="event")
        self._register(irq, event, source)
        return None

    @override
    def unregister_level_irq_event(self, irq: int, event: IrqLevelEvent) -> None:
        check_type(event, IrqLevelEvent, subject=NAME, argument="event")
        self._unregister(irq, event.get_trigger())

    # Routes: KVM_SET_GSI_ROUTING takes the whole table, so ours is kept only when KVM took it.

    def _commit(self, shared: _Shared, routes: RoutingTable) -> None:
        shared.vm.set_gsi_routing(routes)
        shared.routes = routes

    @override
    def route_irq(self, route: IrqRoute) -> None:
        shared = self._shared
        with shared.lock:
            self._commit(shared, shared.routes.adding(route))
        self.observers.routes_changed(self, shared.routes)

    @override
    def set_irq_routes(self, routes: Iterable[IrqRoute]) -> None:
        shared = self._shared
        with shared.lock:
            self._commit(shared, shared.routes.replaced(routes))
        self.observers.routes_changed(self, shared.routes)

    @override
    def irq_event_tokens(self) -> list[IrqEventToken]:
        self._check_open()
        return []

    @override
    def service_irq(self, irq: int, level: bool) -> None:
        self._check_gsi(irq)
        if level is not True and level is not False:
            check_type(level, bool, subject=NAME, argument="level")
        self._shared.vm.irq_line(irq, level)

    @override
    def service_irq_event(self, index: IrqEventIndex) -> None:
        self._check_open()
        check_type(index, int, subject=NAME, argument="index")
        _log.error("%s: asked to serve event %d, but the kernel serves all events itself", NAME, index)

    @override
    def broadcast_eoi(self, vector: int) -> None:
        self._check_open()
        check_int(vector, 0, 255, subject=NAME, argument="vector")
        _log.error("%s: told of the EOI of vector %d, which the IOAPIC in the kernel has seen itself", NAME, vector)

    # vCPUs: the kernel injects, halts, waits and wakes.

    @override
    def inject_interrupts(self, vcpu: Vcpu) -> None:
        self._shared.vcpus.own(vcpu)

    @override
    def halted(self, vcpu_id: int) -> None:
        _ = self._shared.vcpus[vcpu_id]

    @override
    def wait_until_runnable(self, vcpu: Vcpu) -> VcpuRunState:
        self._shared.vcpus.own(vcpu)
        return VcpuRunState.RUNNABLE

    @override
    def kick_halted_vcpus(self) -> None:
        self._check_open()

    @override
    def get_mp_state(self, vcpu_id: int) -> MPState:
        return self._shared.vcpus.get_mp_state(vcpu_id)

    @override
    def set_mp_state(self, vcpu_id: int, state: MPState) -> None:
        self._shared.vcpus.set_mp_state(vcpu_id, state)

    @override
    def try_clone(self) -> Self:
        shared = self._shared
        clone = type(self).__new__(type(self))
        IrqChipX86_64.__init__(clone, self.observers)
        with shared.lock:
            shared.handles += 1
        clone._state = shared
        return clone

    @override
    def finalize_devices(self, allocator: SystemAllocator, io_bus: Bus, mmio_bus: Bus) -> None:
        self._shared.finalization.perform(allocator, io_bus, mmio_bus)

    @override
    def process_delayed_irq_events(self) -> None:
        self._check_open()

    @override
    def irq_delayed_event_token(self) -> Event | None:
        self._check_open()
        return None

    @override
    def check_capability(self, capability: IrqChipCap) -> bool:
        shared = self._shared
        check_type(capability, IrqChipCap, subject=NAME, argument="capability")
        return capability in shared.capabilities

    @override
    def close(self) -> None:
        shared, self._state = self._state, None
        if shared is None:
            return
        with shared.lock:
            shared.handles -= 1
            if shared.handles:
                return
        shared.irqfds.close()

    # The x86 extension: KVM_GET/SET_IRQCHIP, _LAPIC, _PIT2.

    @override
    def get_pic_state(self, select: PicSelect) -> PicState:
        vm = self._shared.vm
        check_select(select, subject=NAME)
        return vm.get_pic_state(select)

    @override
    def set_pic_state(self, select: PicSelect, state: PicState) -> None:
        vm = self._shared.vm
        check_pic(state, select, subject=NAME)
        vm.set_pic_state(select, state)

    @override
    def get_ioapic_state(self) -> IoapicState:
        return self._shared.vm.get_ioapic_state()

    @override
    def set_ioapic_state(self, state: IoapicState) -> None:
        vm = self._shared.vm
        check_ioapic(state, IOAPIC_PINS, subject=NAME)
        vm.set_ioapic_state(state)

    @override
    def get_lapic_state(self, vcpu_id: int) -> LapicState:
        return self._shared.vcpus.get_lapic_state(vcpu_id)

    @override
    def set_lapic_state(self, vcpu_id: int, state: LapicState) -> None:
        self._shared.vcpus.set_lapic_state(vcpu_id, state)

    @override
    def get_pit(self) -> PitState:
        return self._shared.vm.get_pit()

    @override
    def set_pit(self, state: PitState) -> None:
        vm = self._shared.vm
        check_pit(state, subject=NAME)
        vm.set_pit(state)

    @override
    def lapic_frequency(self) -> int:
        self._check_open()
        return LAPIC_FREQUENCY

    @override
    def pit_uses_speaker_port(self) -> bool:
        self._check_open()
        return False  # on no bus: KVM answers port 0x61 itself, as with KVM_PIT_SPEAKER_DUMMY

    @override
    def lapics_in_hypervisor(self) -> bool:
        self._check_open()
        return True

    @override
    def snapshot_chip_specific(self) -> KernelChipState:
        shared = self._shared
        return KernelChipState(tuple(shared.routes), shared.vcpus.interrupt_bitmaps())

    @override
    def check_chip_specific(self, data: Any, vcpu_count: int) -> None:
        shared = self._shared
        shared.vcpus.check_chip_specific(data, KernelChipState, vcpu_count)
        shared.routes.replaced(data.routes)  # raises if they are none

    @override
    def restore_chip_specific(self, data: Any) -> None:
        vcpus = self._shared.vcpus
        self.check_chip_specific(data, len(vcpus))
        self.set_irq_routes(data.routes)
        vcpus.set_interrupt_bitmaps(data.interrupt_bitmaps)
