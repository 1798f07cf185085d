"""`UserspaceIrqChip`: all controllers in Python, on any hypervisor that offers the vCPU protocol.

PICs, IOAPIC, PIT and the lines are a `Chipset`, and `ChipsetIrqChip` has the methods for them; the local APICs are
`UserspaceApics`. Here are the other methods of the contract, with the checks of their arguments. No thread exists
before `finalize_devices`; then one serves all timers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from attrs import frozen
from typing_extensions import override

from irqchip_core.arguments import check_int, check_type
from irqchip_core.bus import Bus
from irqchip_core.capabilities import PC_CONTROLLERS, IrqChipCap
from irqchip_core.chip import MPState, VcpuRunState
from irqchip_core.clock import Clock
from irqchip_core.errors import InvalidArgument, UnknownVcpu, Unsupported, WrongType
from irqchip_core.hookspecs import Probe
from irqchip_core.hypervisor.exits import MsrExit
from irqchip_core.hypervisor.vcpu import Vcpu, VcpuX86_64, Vm
from irqchip_core.routes import IOAPIC_PINS, IrqRoute
from irqchip_core.x86.chipset.chip import LAPIC_FREQUENCY, ChipsetIrqChip
from irqchip_core.x86.chipset.chipset import Chipset
from irqchip_core.x86.counters import ChipCounters
from irqchip_core.x86.finalization import Place
from irqchip_core.x86.lapic.pages import LAPIC_LENGTH, LapicPages
from irqchip_core.x86.lapic.registers import IA32_APIC_BASE, IA32_TSC, IA32_TSC_ADJUST, IA32_TSC_DEADLINE
from irqchip_core.x86.state import LAPIC_BASE, MAXIMUM_PINS, LapicState
from irqchip_core.x86.state_checks import check_lapic, check_mp_state
from irqchip_userspace.apics import UserspaceApics
from irqchip_userspace.processor import HALTED, RUNNABLE, Processor

NAME = "userspace"

MAX_VCPUS = 255
"""APIC ids are 8 bits in xAPIC mode, and 255 is the broadcast address."""

APIC_MSRS = (range(0x800, 0x900), range(IA32_TSC_DEADLINE, IA32_TSC_DEADLINE + 1))
HYPERVISOR_MSRS = (IA32_APIC_BASE, IA32_TSC, IA32_TSC_ADJUST)
"""MSRs of the hypervisor whose writes the local APIC or an armed deadline must follow."""


def _capabilities(vm: Vm) -> frozenset[IrqChipCap]:
    capabilities = {*PC_CONTROLLERS, IrqChipCap.MP_STATE_GET_SET}
    if vm.can_exit_on_msrs:
        capabilities.add(IrqChipCap.X2APIC)
        if vm.tsc_hz:
            capabilities.add(IrqChipCap.TSC_DEADLINE_TIMER)
    return frozenset(capabilities)


def probe(vm: Vm) -> Probe:
    """Whether `vm` can have this chip."""
    if not isinstance(vm, Vm):
        missing = ", ".join(name for name in _protocol_members() if not hasattr(vm, name))
        return Probe(f"the VM of hypervisor {getattr(vm, 'hypervisor', type(vm).__name__)} lacks {missing}")
    return Probe(capabilities=_capabilities(vm))


def _exit_on_msrs(vm: Vm) -> None:
    base, *tsc = (range(index, index + 1) for index in HYPERVISOR_MSRS)
    try:
        vm.exit_on_msrs((*APIC_MSRS, base, *tsc))
    except Unsupported:  # then a write of the time-stamp counter does not move an armed deadline
        vm.exit_on_msrs((*APIC_MSRS, base))


def _protocol_members() -> list[str]:
    return [name for name in vars(Vm) if not name.startswith("_")]


@frozen
class UserspaceChipState:
    """State beside the common records: the routes."""

    routes: tuple[IrqRoute, ...]


class UserspaceIrqChip(ChipsetIrqChip):
    """The chip in user space.

    Args:
        vm: A VM without vCPUs and without a chip in its hypervisor.
        vcpu_count: Maximum number of vCPUs, 1 to 255; their APIC ids are 0 and up.
        pins: Number of inputs of the IOAPIC, 24 to 240.
        clock: The clock of all timers; None for that of the VM.

    Raises:
        WrongType: `vm` does not offer what the chip needs.
        InvalidArgument: A number is out of range.
    """

    name = NAME

    def __init__(self, vm: Vm, vcpu_count: int, *, pins: int = IOAPIC_PINS, clock: Clock | None = None) -> None:
        refusal = probe(vm).refusal
        if refusal is not None:
            remedy = "give a VM of irqchip_core.hypervisor.vcpu.Vm's protocol"
            raise WrongType(refusal, subject=NAME, argument="vm", remedy=remedy)
        check_int(vcpu_count, 1, MAX_VCPUS, subject=NAME, argument="vcpu_count")
        check_int(pins, IOAPIC_PINS, MAXIMUM_PINS, subject=NAME, argument="pins")
        capabilities = _capabilities(vm)
        if vm.can_exit_on_msrs:
            _exit_on_msrs(vm)
        chipset = Chipset(NAME, clock if clock is not None else vm.clock, pins)
        chipset.apics = self._apics = UserspaceApics(
            chipset,
            vcpu_count,
            timer_hz=LAPIC_FREQUENCY,
            tsc_hz=vm.tsc_hz if IrqChipCap.TSC_DEADLINE_TIMER in capabilities else 0,
            x2apic=IrqChipCap.X2APIC in capabilities,
            exits_on_msrs=vm.can_exit_on_msrs,
        )
        super().__init__(chipset, capabilities)

    def _processor(self, vcpu_id: int) -> Processor:
        check_type(vcpu_id, int, subject=NAME, argument="vcpu_id")
        processors = self._apics.processors
        processor = processors[vcpu_id] if 0 <= vcpu_id < len(processors) else None
        if processor is None or processor.vcpu is None:
            raise UnknownVcpu(
                f"there is no vCPU {vcpu_id}", subject=NAME, argument="vcpu_id", remedy="give it to add_vcpu first"
            )
        return processor

    def _own(self, vcpu: Vcpu) -> Processor:
        vcpu_id: Any = getattr(vcpu, "id", None)
        processor = self._processor(vcpu_id)
        if processor.vcpu is not vcpu:
            raise UnknownVcpu(
                f"this vCPU {vcpu_id} is not the chip's",
                subject=NAME,
                argument="vcpu",
                remedy="give it to add_vcpu first",
            )
        return processor

    @override
    def _release(self) -> None:
        with self._chipset.lock:
            for processor in self._apics.processors:
                processor.interrupt()  # nothing else would end the sleep of its thread
        super()._release()

    # vCPUs

    @override
    def add_vcpu(self, vcpu_id: int, vcpu: Vcpu) -> None:
        processors = self._apics.processors
        check_type(vcpu_id, int, subject=NAME, argument="vcpu_id")
        if not 0 <= vcpu_id < len(processors):
            raise UnknownVcpu(
                f"vCPU {vcpu_id} is beyond the {len(processors)} the chip was made for",
                subject=NAME,
                argument="vcpu_id",
                remedy="make the chip with a larger vcpu_count",
            )
        if not isinstance(vcpu, VcpuX86_64):
            raise WrongType(
                f"it is a {type(vcpu).__name__}",
                subject=NAME,
                argument="vcpu",
                remedy="give a vCPU of irqchip_core.hypervisor.vcpu.VcpuX86_64's protocol",
            )
        if vcpu.id != vcpu_id:
            raise InvalidArgument(
                f"it is vCPU {vcpu.id}, not {vcpu_id}", subject=NAME, argument="vcpu", remedy="add it as its own number"
            )
        sregs = vcpu.get_sregs()
        with self._chipset.lock:
            processors[vcpu_id].connect(vcpu)
            sregs.apic_base = processors[vcpu_id].lapic.apic_base
        vcpu.set_sregs(sregs)

    @override
    def inject_interrupts(self, vcpu: Vcpu) -> None:
        self._apics.inject(self._own(vcpu))

    @override
    def halted(self, vcpu_id: int) -> None:
        processor = self._processor(vcpu_id)
        with self._chipset.lock:
            if processor.mp_state is RUNNABLE:
                processor.mp_state = HALTED

    @override
    def wait_until_runnable(self, vcpu: Vcpu) -> VcpuRunState:
        return self._apics.wait(self._own(vcpu), vcpu)

    @override
    def kick_halted_vcpus(self) -> None:
        with self._chipset.lock:
            for processor in self._apics.processors:
                processor.interrupt()

    @override
    def get_mp_state(self, vcpu_id: int) -> MPState:
        return self._processor(vcpu_id).mp_state

    @override
    def set_mp_state(self, vcpu_id: int, state: MPState) -> None:
        processor = self._processor(vcpu_id)
        check_mp_state(state, subject=NAME)
        with self._chipset.lock:
            processor.mp_state = state
            processor.wake()

    @override
    def handle_msr(self, vcpu: VcpuX86_64, access: MsrExit) -> bool:
        processor = self._own(vcpu)
        if type(access) is not MsrExit:  # called for each interrupt in x2APIC mode: the quick test first
            check_type(access, MsrExit, subject=NAME, argument="access")
        if access.index in HYPERVISOR_MSRS:
            self._apics.access_hypervisor_msr(processor, access)
            return True
        if not any(access.index in msrs for msrs in APIC_MSRS):
            return False
        self._apics.access_msr(processor, access)
        return True

    @override
    def _places(self, io_bus: Bus, mmio_bus: Bus) -> Iterable[Place]:
        pages = LapicPages(self._apics, len(self._apics.processors), mmio_bus)
        return [*super()._places(io_bus, mmio_bus), (mmio_bus, pages, LAPIC_BASE, LAPIC_LENGTH)]

    @override
    def _finalized(self, places: Sequence[Place]) -> None:
        (pages,) = (device for _, device, _, _ in places if isinstance(device, LapicPages))
        with self._chipset.lock:
            self._apics.pages = pages
            for processor in self._apics.processors:  # state may have been set before
                pages.follow(processor.lapic.apic_id, processor.lapic.apic_base)
        super()._finalized(places)

    # The x86 extension

    @override
    def get_lapic_state(self, vcpu_id: int) -> LapicState:
        return self._apics.get_state(self._processor(vcpu_id))

    @override
    def set_lapic_state(self, vcpu_id: int, state: LapicState) -> None:
        processor = self._processor(vcpu_id)
        check_lapic(state, vcpu_id, x2apic=IrqChipCap.X2APIC in self._capabilities, subject=NAME)
        self._apics.set_state(processor, state)

    @override
    def counters(self) -> ChipCounters:
        return self._apics.counters()

    @override
    def snapshot_chip_specific(self) -> UserspaceChipState:
        return UserspaceChipState(tuple(self._chipset.lines.routes))

    @override
    def check_chip_specific(self, data: Any, vcpu_count: int) -> None:
        check_type(vcpu_count, int, subject=NAME, argument="vcpu_count")
        count = len(self._apics.processors)
        if not isinstance(data, UserspaceChipState) or vcpu_count != count:
            raise InvalidArgument(
                f"it is not the state of a {NAME} chip of {count} vCPUs",
                subject=NAME,
                argument="chip_specific",
                remedy="restore what a chip of this backend gave that was made for as many vCPUs",
            )
        self._chipset.lines.routes.replaced(data.routes)  # raises if they are no routes

    @override
    def restore_chip_specific(self, data: Any) -> None:
        self.check_chip_specific(data, len(self._apics.processors))
        self.set_irq_routes(data.routes)
