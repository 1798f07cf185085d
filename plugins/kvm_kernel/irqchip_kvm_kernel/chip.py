"""`KvmKernelIrqChip`: PIC, IOAPIC, PIT and local APICs are all in the Linux kernel.

Devices' events go to the kernel as irqfds, so no interrupt passes through user space, the irq loop has no event to
serve, and the kernel lets a halted vCPU sleep inside KVM_RUN. This class keeps the routing table that KVM accepted
last, the connected events, and the vCPUs.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from attrs import frozen
from typing_extensions import override

from irqchip_core.arguments import check_int, check_type
from irqchip_core.chip import MPState, VcpuRunState
from irqchip_core.errors import WrongType
from irqchip_core.eventfd import Event
from irqchip_core.events import IrqEdgeEvent, IrqEventIndex, IrqEventSource, IrqEventToken, IrqLevelEvent
from irqchip_core.hookspecs import Probe
from irqchip_core.hypervisor.vcpu import Vcpu, Vm
from irqchip_core.routes import IOAPIC_PINS, IrqRoute, RoutingTable, default_routes
from irqchip_core.x86.shared_chip import PcIrqChip
from irqchip_core.x86.state import LapicState
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
    """State beside the common records.

    Attributes:
        routes: The routing table.
        interrupt_bitmaps: By vCPU: the vector that is injected but not yet delivered, as a bit.
    """

    routes: tuple[IrqRoute, ...]
    interrupt_bitmaps: tuple[int, ...]


class _Routes:
    """The routing table that KVM accepted last, the same for all handles."""

    def __init__(self) -> None:
        self.table = RoutingTable(default_routes(), subject=NAME)  # KVM_CREATE_IRQCHIP installs the same
        self.lock = threading.Lock()


class KvmKernelIrqChip(PcIrqChip):
    """The chip in the kernel.

    Args:
        vm: A KVM VM without vCPUs and without a chip.
        vcpu_count: Maximum number of vCPUs: 1 to `KvmVm.max_vcpu_id`.

    Raises:
        WrongType: `vm` is not a `KvmVm`.
        InvalidArgument: `vcpu_count` is out of range.
        HypervisorError: KVM refuses to make the chip, because a vCPU or another chip exists.
    """

    name = NAME

    def __init__(self, vm: Vm, vcpu_count: int) -> None:
        if not isinstance(vm, KvmVm):
            raise WrongType(
                f"it is a {type(vm).__name__}", subject=NAME, argument="vm", remedy="give an irqchip_kvm.KvmVm"
            )
        self._vcpus = VcpuSlots(NAME, vm, vcpu_count)
        self._vm = vm
        self._irqfds = Irqfds(vm)
        self._routes = _Routes()
        super().__init__(IOAPIC_PINS, lapic_capabilities(vm), vm)
        vm.create_irqchip()
        vm.create_pit2(PIT_SPEAKER_DUMMY)  # gate and OUT of counter 2 at port 0x61, by which guests measure time
        vm.enable_x2apic_api()

    @override
    def _release(self) -> None:
        self._irqfds.close()

    @override
    def add_vcpu(self, vcpu_id: int, vcpu: Vcpu) -> None:
        self._vcpus.add(vcpu_id, vcpu)

    # Events: KVM_IRQFD, edge or with a resample event. The kernel serves them.

    @override
    def _connect_event(
        self, gsi: int, event: IrqEdgeEvent | IrqLevelEvent, source: IrqEventSource
    ) -> IrqEventIndex | None:
        self._irqfds.connect(gsi, event, source)
        return None

    @override
    def _disconnect_event(self, gsi: int, trigger: Event) -> bool:
        return self._irqfds.disconnect(gsi, trigger)

    # Routes: KVM_SET_GSI_ROUTING takes the whole table; the new table is kept only after KVM accepted it.

    @override
    def _change_routes(self, change: Callable[[RoutingTable], RoutingTable]) -> RoutingTable:
        with self._routes.lock:
            table = change(self._routes.table)
            self._vm.set_gsi_routing(table)
            self._routes.table = table
        return table

    @override
    def irq_event_tokens(self) -> list[IrqEventToken]:
        return []

    @override
    def service_irq(self, irq: int, level: bool) -> None:
        self._check_gsi(irq)
        if level is not True and level is not False:
            check_type(level, bool, subject=NAME, argument="level")
        self._vm.irq_line(irq, level)

    @override
    def service_irq_event(self, index: IrqEventIndex) -> None:
        check_type(index, int, subject=NAME, argument="index")
        _log.error("%s: event %d is served by the kernel, not by service_irq_event", NAME, index)

    @override
    def broadcast_eoi(self, vector: int) -> None:
        check_int(vector, 0, 255, subject=NAME, argument="vector")
        _log.error(
            "%s: the IOAPIC in the kernel has seen the EOI of vector %d already",
            NAME,
            vector,
        )

    # vCPUs: the kernel injects, halts, waits and wakes.

    @override
    def inject_interrupts(self, vcpu: Vcpu) -> None:
        self._vcpus.own(vcpu)

    @override
    def halted(self, vcpu_id: int) -> None:
        _ = self._vcpus[vcpu_id]

    @override
    def wait_until_runnable(self, vcpu: Vcpu) -> VcpuRunState:
        self._vcpus.own(vcpu)
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

    @override
    def process_delayed_irq_events(self) -> None:
        """No action: the kernel delays no event."""

    @override
    def irq_delayed_event_token(self) -> Event | None:
        return None

    # The x86 extension

    @override
    def get_lapic_state(self, vcpu_id: int) -> LapicState:
        return self._vcpus.get_lapic_state(vcpu_id)

    @override
    def set_lapic_state(self, vcpu_id: int, state: LapicState) -> None:
        self._vcpus.set_lapic_state(vcpu_id, state)

    @override
    def lapic_frequency(self) -> int:
        return LAPIC_FREQUENCY

    @override
    def pit_uses_speaker_port(self) -> bool:
        return False  # on no bus: KVM answers port 0x61 itself (KVM_PIT_SPEAKER_DUMMY)

    @override
    def lapics_in_hypervisor(self) -> bool:
        return True

    @override
    def snapshot_chip_specific(self) -> KernelChipState:
        return KernelChipState(tuple(self._routes.table), self._vcpus.interrupt_bitmaps())

    @override
    def check_chip_specific(self, data: Any, vcpu_count: int) -> None:
        self._vcpus.check_chip_specific(data, KernelChipState, vcpu_count)
        self._routes.table.replaced(data.routes)  # raises if they are no routes

    @override
    def restore_chip_specific(self, data: Any) -> None:
        self.check_chip_specific(data, len(self._vcpus))
        self.set_irq_routes(data.routes)
        self._vcpus.set_interrupt_bitmaps(data.interrupt_bitmaps)
