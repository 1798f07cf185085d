"""`UserspaceIrqChip`: all controllers in Python, on any hypervisor that offers the vCPU protocol.

PICs, IOAPIC, PIT and everybody's lines are the `Board`'s, what goes with them is the `BoardChip`'s; local APICs and the
vCPUs' comings and goings are here. The locks and their order are the board's: its `lock` guards local APICs and MP
states too. No thread exists before `finalize_devices`; then one serves all timers.
"""

from __future__ import annotations

from typing import Any

from attrs import frozen
from typing_extensions import override

from irqchip_core.allocator import SystemAllocator
from irqchip_core.arguments import check_int, check_type
from irqchip_core.bus import Bus
from irqchip_core.chip import IrqChipCap, MPState, VcpuRunState
from irqchip_core.clock import Clock
from irqchip_core.errors import InvalidArgument, UnknownVcpu, Unsupported, WrongType
from irqchip_core.exits import MsrExit
from irqchip_core.hookspecs import Probe
from irqchip_core.routes import IOAPIC_PINS, IrqRoute
from irqchip_core.vcpu import Vcpu, VcpuX86_64, Vm
from irqchip_core.x86.board_chip import LAPIC_FREQUENCY, BoardChip
from irqchip_core.x86.counters import ChipCounters, vector_counts
from irqchip_core.x86.destinations import Destinations
from irqchip_core.x86.effects import ApicBaseChanged, Effects, EoiBroadcast, WakeAt
from irqchip_core.x86.lapic import Lapic
from irqchip_core.x86.lapic_registers import (
    IA32_APIC_BASE,
    IA32_TSC,
    IA32_TSC_ADJUST,
    IA32_TSC_DEADLINE,
)
from irqchip_core.x86.msi import Message
from irqchip_core.x86.state import LAPIC_BASE, LapicState
from irqchip_core.x86.state_checks import check_lapic, check_mp_state
from irqchip_userspace.pages import LAPIC_LENGTH, LapicPages
from irqchip_userspace.processors import HALTED, RUNNABLE, Processor

NAME = "userspace"

MAX_VCPUS = 255
"""APIC ids are 8 bits in xAPIC mode, and 255 is the broadcast address."""

APIC_MSRS = (range(0x800, 0x900), range(IA32_TSC_DEADLINE, IA32_TSC_DEADLINE + 1))
HYPERVISOR_MSRS = (IA32_APIC_BASE, IA32_TSC, IA32_TSC_ADJUST)
"""Its own MSRs, whose writes local APIC or deadline must follow."""


def _capabilities(vm: Vm) -> frozenset[IrqChipCap]:
    capabilities = {IrqChipCap.MP_STATE_GET_SET}
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
    except Unsupported:  # then an armed deadline stays when it was due before the guest wrote its time-stamp counter
        vm.exit_on_msrs((*APIC_MSRS, base))


def _protocol_members() -> list[str]:
    return [name for name in vars(Vm) if not name.startswith("_")]


@frozen
class UserspaceChipState:
    """What only this chip has to save: its routes. All else is in the common records."""

    routes: tuple[IrqRoute, ...]


class _Shared:
    """What changes, and is the same for all handles of a chip."""

    def __init__(self, vcpu_count: int) -> None:
        self.tsc_offsets = [0] * vcpu_count  # guest's time-stamp counter less that of the clock
        self.pages: LapicPages | None = None


class UserspaceIrqChip(BoardChip):
    """The chip in user space.

    Args:
        vm: A VM without vCPUs and without a chip in its hypervisor.
        vcpu_count: How many vCPUs it will have at most, 1 to 255; their APIC ids are 0 and up.
        pins: Number of inputs of the IOAPIC, 24 to 240.
        clock: Where all timers have their time from, if not from the VM's.

    Raises:
        WrongType: `vm` does not offer what the chip needs.
        InvalidArgument: A number is out of range.
    """

    name = NAME

    def __init__(self, vm: Vm, vcpu_count: int, *, pins: int = IOAPIC_PINS, clock: Clock | None = None) -> None:
        refusal = probe(vm).refusal
        if refusal is not None:
            raise WrongType(refusal, subject=NAME, argument="vm", remedy="give a VM of irqchip_core.vcpu.Vm's protocol")
        check_int(vcpu_count, 1, MAX_VCPUS, subject=NAME, argument="vcpu_count")
        super().__init__(pins, _capabilities(vm), clock if clock is not None else vm.clock)
        self._shared = _Shared(vcpu_count)
        self._exits_on_msrs = vm.can_exit_on_msrs
        if self._exits_on_msrs:
            _exit_on_msrs(vm)
        self._lock = self._board.lock
        self._destinations = Destinations()
        self._processors: list[Processor] = []
        tsc_hz = vm.tsc_hz if IrqChipCap.TSC_DEADLINE_TIMER in self._capabilities else 0
        for apic_id in range(vcpu_count):
            lapic = Lapic(
                apic_id,
                timer_hz=LAPIC_FREQUENCY,
                tsc_hz=tsc_hz,
                bsp=apic_id == 0,
                x2apic=IrqChipCap.X2APIC in self._capabilities,
                virtual_wire=True,
            )
            self._destinations.add(lapic)
            self._processors.append(Processor(lapic, self._lock))
        self._tsc_hz = tsc_hz

    def _processor(self, vcpu_id: int) -> Processor:
        self._check_open()
        check_type(vcpu_id, int, subject=NAME, argument="vcpu_id")
        processor = self._processors[vcpu_id] if 0 <= vcpu_id < len(self._processors) else None
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
    def _disconnect(self) -> None:
        with self._lock:
            for processor in self._processors:
                processor.interrupt()  # nobody else would wake it up

    # vCPUs

    @override
    def add_vcpu(self, vcpu_id: int, vcpu: Vcpu) -> None:
        self._check_open()
        check_type(vcpu_id, int, subject=NAME, argument="vcpu_id")
        if not 0 <= vcpu_id < len(self._processors):
            raise UnknownVcpu(
                f"vCPU {vcpu_id} is beyond the {len(self._processors)} the chip was made for",
                subject=NAME,
                argument="vcpu_id",
                remedy="make the chip with a larger vcpu_count",
            )
        if not isinstance(vcpu, VcpuX86_64):
            raise WrongType(
                f"it is a {type(vcpu).__name__}",
                subject=NAME,
                argument="vcpu",
                remedy="give a vCPU of irqchip_core.vcpu.VcpuX86_64's protocol",
            )
        if vcpu.id != vcpu_id:
            raise InvalidArgument(
                f"it is vCPU {vcpu.id}, not {vcpu_id}", subject=NAME, argument="vcpu", remedy="add it as its own number"
            )
        processor = self._processors[vcpu_id]
        sregs = vcpu.get_sregs()
        with self._lock:
            processor.vcpu = vcpu
            processor.entered = False
            processor.nmi_given = True
            processor.unseen = True
            sregs.apic_base = processor.lapic.apic_base
            processor.push()
        vcpu.set_sregs(sregs)

    @override
    def inject_interrupts(self, vcpu: Vcpu) -> None:
        processor = self._own(vcpu)
        with self._lock:
            self._attend(processor)
            effects = self._pull(processor)
            self._inject(processor)
        self._after(processor, effects)

    def _attend(self, processor: Processor) -> None:
        processor.attend()
        if processor.fresh:
            processor.hand_over()
            self._follow_tsc(processor)

    def _follow_tsc(self, processor: Processor) -> None:
        """Let an armed deadline count on what the time-stamp counter is now, which only its own thread can tell."""
        if processor.lapic.timer.tsc_deadline:
            assert processor.vcpu is not None
            now, tsc = self._clock.now(), processor.vcpu.tsc()
            self._learn_tsc(processor, now, tsc)
            self._carry_out(processor, processor.lapic.expire(now, tsc))

    def _learn_tsc(self, processor: Processor, now: int, tsc: int) -> None:
        self._shared.tsc_offsets[processor.lapic.apic_id] = tsc - now * self._tsc_hz // 1_000_000_000

    def _pull(self, processor: Processor) -> Effects:
        """The effects of what the guest did by itself, without an exit.

        That is CR8 alone where MSRs can exit: see `HYPERVISOR_MSRS`, and README.md, "What the guest does between two
        exits". Where they cannot, IA32_APIC_BASE too.
        """
        processor.pull()
        if self._exits_on_msrs or processor.vcpu is None or not processor.entered:
            return ()
        # Without x2APIC mode each value can follow each other one, so whatever the guest wrote in between is no matter.
        base = processor.vcpu.apic_base
        if base == processor.lapic.apic_base:
            return ()
        return self._carry_out(processor, processor.lapic.write_msr(IA32_APIC_BASE, base, self._clock.now()) or ())

    def _inject(self, processor: Processor) -> None:
        """Give the processor what is pending for it, or ask for an interrupt window."""
        processor.unseen = False
        processor.take_events()
        vcpu, lapic = processor.vcpu, processor.lapic
        if vcpu is None or not processor.can_run():
            return
        extint = processor.extint or self._extint_requested(processor)
        pending = extint or lapic.pending_vector() >= 0
        if pending and processor.mp_state is HALTED and not processor.entered:
            vcpu.complete_io()  # restored: what has never run cannot tell yet whether it is ready
        if pending and vcpu.ready_for_interrupt():
            if extint:  # the PICs first, as in KVM
                vector = self._board.pic.acknowledge()
                processor.extint = False
                self._board.update_interrupt_line()
            else:
                vector = lapic.acknowledge()
            vcpu.interrupt(vector)
            processor.mp_state = RUNNABLE
            pending = self._extint_requested(processor) or lapic.pending_vector() >= 0
        vcpu.set_interrupt_window_requested(pending)
        processor.push()

    def _extint_requested(self, processor: Processor) -> bool:
        # The PICs' INT output is wired to the boot processor's LINT0 only.
        return processor.lapic.apic_id == 0 and processor.lapic.extint_requested()

    def _after(self, processor: Processor, effects: Effects) -> None:
        """Do what cannot be done with the lock held."""
        for effect in effects:
            if isinstance(effect, EoiBroadcast):
                self._board.broadcast_eoi(effect.vector)
            elif isinstance(effect, ApicBaseChanged) and self._shared.pages is not None:
                self._shared.pages.follow(processor.lapic.apic_id, effect.value)
        self._board.settle_pics()

    @override
    def halted(self, vcpu_id: int) -> None:
        processor = self._processor(vcpu_id)
        with self._lock:
            if processor.mp_state is RUNNABLE:
                processor.mp_state = HALTED

    @override
    def wait_until_runnable(self, vcpu: Vcpu) -> VcpuRunState:
        processor = self._own(vcpu)
        while True:
            with self._lock:
                effects = self._wait(processor)
            if effects is None:
                return VcpuRunState.INTERRUPTED
            self._after(processor, effects)
            if processor.mp_state is RUNNABLE:
                processor.entered = True
                return VcpuRunState.RUNNABLE

    def _wait(self, processor: Processor) -> Effects | None:
        """Sleep until the processor can execute, effects are to be seen to, or (None) it was interrupted."""
        while True:
            self._attend(processor)
            if processor.interrupted:
                processor.interrupted = False
                return None
            if processor.mp_state is RUNNABLE and not processor.unseen and not processor.lapic.events.init:
                return ()
            effects = self._pull(processor)
            self._inject(processor)
            if effects or self._board.pic.ended or processor.mp_state is RUNNABLE:
                return effects
            processor.sleep()

    @override
    def kick_halted_vcpus(self) -> None:
        self._check_open()
        with self._lock:
            for processor in self._processors:
                processor.interrupt()

    @override
    def get_mp_state(self, vcpu_id: int) -> MPState:
        return self._processor(vcpu_id).mp_state

    @override
    def set_mp_state(self, vcpu_id: int, state: MPState) -> None:
        processor = self._processor(vcpu_id)
        check_mp_state(state, subject=NAME)
        with self._lock:
            processor.mp_state = state
            processor.unseen = True  # what waited for this state
            processor.wake()

    # Messages and the PICs' output, with the lock held

    @override
    def _deliver(self, message: Message, source: Lapic | None = None) -> bool:
        """Give a message to those it is for; False if there is nobody."""
        takers = self._destinations.deliver(message, source)
        for lapic in takers:
            self._processors[lapic.apic_id].wake()
        return bool(takers)

    @override
    def _interrupt_line_changed(self, level: bool) -> None:
        processor = self._processors[0]
        processor.lapic.set_lint(0, level)
        if level:
            processor.wake()

    def _carry_out(self, processor: Processor, effects: Effects) -> Effects:
        """Do what a local APIC asks for; returns what is left for `_after`."""
        left: list[Any] = []
        for effect in effects:
            if isinstance(effect, Message):
                self._deliver(effect, processor.lapic)
            elif isinstance(effect, WakeAt):
                if effect.time is not None:
                    self._wake_at(effect.time)
            else:
                left.append(effect)
        return tuple(left)

    # What the guest does to its local APIC

    def _read_lapic(self, vcpu_id: int, offset: int, size: int) -> int:
        processor = self._processors[vcpu_id]
        with self._lock:
            effects = self._pull(processor)
            value = processor.lapic.read(offset, size, self._clock.now())
        if effects:
            self._after(processor, effects)
        return value

    def _write_lapic(self, vcpu_id: int, offset: int, size: int, value: int) -> None:
        processor = self._processors[vcpu_id]
        with self._lock:
            effects = self._pull(processor)
            effects += self._carry_out(processor, processor.lapic.write(offset, size, value, self._clock.now()))
            processor.push()
        if effects:
            self._after(processor, effects)

    @override
    def handle_msr(self, vcpu: VcpuX86_64, access: MsrExit) -> bool:
        processor = self._own(vcpu)
        if type(access) is not MsrExit:  # once an interrupt in x2APIC mode, so this look comes first
            check_type(access, MsrExit, subject=NAME, argument="access")
        if access.index in HYPERVISOR_MSRS:
            self._handle_hypervisor_msr(processor, access)
            return True
        if not any(access.index in msrs for msrs in APIC_MSRS):
            return False
        deadline = access.index == IA32_TSC_DEADLINE
        tsc = vcpu.tsc() if deadline else 0
        with self._lock:
            effects = self._pull(processor)
            now = self._clock.now()
            if deadline:
                self._learn_tsc(processor, now, tsc)
            if not access.is_write:
                value = processor.lapic.read_msr(access.index, now)
                fault = value is None
            else:
                value = 0
                done = processor.lapic.write_msr(access.index, access.value, now, tsc)
                fault = done is None
                effects += self._carry_out(processor, done or ())
                processor.push()
        vcpu.complete_msr(value or 0, fault=fault)
        self._after(processor, effects)
        return True

    def _handle_hypervisor_msr(self, processor: Processor, access: MsrExit) -> None:
        """Access an MSR that is the hypervisor's, and of whose change the local APIC must know at once."""
        vcpu, lapic = processor.vcpu, processor.lapic
        assert vcpu is not None
        new_base = access.is_write and access.index == IA32_APIC_BASE
        with self._lock:
            effects = self._pull(processor)
            if (new_base and not lapic.allows_base(access.value)) or not vcpu.perform_msr(access):
                vcpu.complete_msr(fault=True)
            elif new_base:
                done = lapic.write_msr(IA32_APIC_BASE, access.value, self._clock.now()) or ()
                effects += self._carry_out(processor, done)
                processor.push()
            elif access.is_write:
                self._follow_tsc(processor)
        self._after(processor, effects)

    # Timers

    @override
    def _catch_up(self) -> int | None:
        deadlines = [self._board.expire()]
        with self._lock:
            now = self._clock.now()
            for processor, offset in zip(self._processors, self._shared.tsc_offsets, strict=True):
                lapic = processor.lapic
                if lapic.wake_at is not None:
                    if lapic.wake_at <= now:
                        self._carry_out(processor, lapic.expire(now, now * self._tsc_hz // 1_000_000_000 + offset))
                        processor.wake()
                    deadlines.append(lapic.wake_at)
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    @override
    def finalize_devices(self, allocator: SystemAllocator, io_bus: Bus, mmio_bus: Bus) -> None:
        pages = LapicPages(self, mmio_bus)
        self._finalize(allocator, io_bus, mmio_bus, [(mmio_bus, pages, LAPIC_BASE, LAPIC_LENGTH)])
        self._shared.pages = pages

    # The x86 extension

    @override
    def get_lapic_state(self, vcpu_id: int) -> LapicState:
        processor = self._processor(vcpu_id)
        with self._lock:
            processor.pull()
            state = processor.lapic.state(self._clock.now())
            state.extint = state.extint or processor.extint
            return state

    @override
    def set_lapic_state(self, vcpu_id: int, state: LapicState) -> None:
        processor = self._processor(vcpu_id)
        check_lapic(state, vcpu_id, x2apic=IrqChipCap.X2APIC in self._capabilities, subject=NAME)
        with self._lock:
            processor.lapic.set_state(state, self._clock.now())
            if vcpu_id == 0:  # KVM's records do not tell the level of LINT0
                processor.lapic.set_lint(0, self._board.pic.interrupt_requested)
            if processor.lapic.wake_at is not None:
                self._wake_at(processor.lapic.wake_at)
            processor.extint = processor.entered = False
            processor.fresh = True
            processor.wake()
            base = processor.lapic.apic_base
        if self._shared.pages is not None:
            self._shared.pages.follow(vcpu_id, base)

    @override
    def counters(self) -> ChipCounters:
        self._check_open()
        gsis = self._board.gsi_counts()
        with self._lock:
            lapics = [processor.lapic for processor in self._processors]
            return ChipCounters(
                gsis,
                tuple(count for lapic in lapics for count in vector_counts(lapic)),
                sum(lapic.spurious for lapic in lapics),
                self._destinations.undeliverable,
            )

    @override
    def snapshot_chip_specific(self) -> UserspaceChipState:
        self._check_open()
        return UserspaceChipState(tuple(self._board.routes))

    @override
    def check_chip_specific(self, data: Any, vcpu_count: int) -> None:
        self._check_open()
        check_type(vcpu_count, int, subject=NAME, argument="vcpu_count")
        if not isinstance(data, UserspaceChipState) or vcpu_count != len(self._processors):
            raise InvalidArgument(
                f"it is not the state of a {NAME} chip of {len(self._processors)} vCPUs",
                subject=NAME,
                argument="chip_specific",
                remedy="restore what a chip of this backend gave that was made for as many vCPUs",
            )
        self._board.routes.replaced(data.routes)  # raises if they are none

    @override
    def restore_chip_specific(self, data: Any) -> None:
        self.check_chip_specific(data, len(self._processors))
        self.set_irq_routes(data.routes)
