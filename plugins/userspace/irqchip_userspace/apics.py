"""`UserspaceApics`: the local APICs and their vCPUs, on the other side of a chipset.

What the chipset sends is delivered here, what guests do to their local APICs is carried out, and what is pending is
given to vCPUs. Methods take the chipset's lock, except for those of `LocalApics` and the private ones: they need it.
"""

from __future__ import annotations

from irqchip_core.chip import VcpuRunState
from irqchip_core.exits import MsrExit
from irqchip_core.routes import RoutingTable
from irqchip_core.vcpu import Vcpu
from irqchip_core.x86.chipset.chipset import Chipset
from irqchip_core.x86.counters import ChipCounters, vector_counts
from irqchip_core.x86.destinations import Destinations
from irqchip_core.x86.effects import ApicBaseChanged, Effects
from irqchip_core.x86.lapic import Lapic
from irqchip_core.x86.lapic_registers import IA32_APIC_BASE, IA32_TSC_DEADLINE
from irqchip_core.x86.msi import Message
from irqchip_core.x86.state import LapicState
from irqchip_userspace.pages import LapicPages
from irqchip_userspace.processor import HALTED, RUNNABLE, SETTLED, Authority, Processor

SECOND = 1_000_000_000


class UserspaceApics:
    """Implements `irqchip_core.x86.chipset.chipset.LocalApics`.

    Args:
        chipset: The other side.
        vcpu_count: How many there are; their ids are 0 and up.
        timer_hz: Input clock of their timers.
        tsc_hz: Frequency of the guest's time-stamp counter; 0: no TSC-deadline mode.
        x2apic: Whether they have x2APIC mode.
        exits_on_msrs: Whether the guest's writes of IA32_APIC_BASE come as exits.

    Attributes:
        processors: By number.
        pages: Where guests find the registers, once that is on a bus.
    """

    def __init__(
        self, chipset: Chipset, vcpu_count: int, *, timer_hz: int, tsc_hz: int, x2apic: bool, exits_on_msrs: bool
    ) -> None:
        self.lock_free = False
        self.pages: LapicPages | None = None
        self.processors: list[Processor] = []
        self._chipset = chipset
        self._lock = chipset.lock
        self._now = chipset.clock.now
        self._tsc_hz = tsc_hz
        self._exits_on_msrs = exits_on_msrs
        self._destinations = Destinations()
        for apic_id in range(vcpu_count):
            lapic = Lapic(apic_id, timer_hz=timer_hz, tsc_hz=tsc_hz, bsp=apic_id == 0, x2apic=x2apic, virtual_wire=True)
            self._destinations.add(lapic)
            self.processors.append(Processor(lapic, self._lock))

    # What the chipset sends

    def deliver(self, message: Message, source: Lapic | None = None) -> bool:
        """See `LocalApics`; `source` is the sender of an IPI."""
        receivers = self._destinations.deliver(message, source)
        for lapic in receivers:
            self.processors[lapic.apic_id].wake()
        return bool(receivers)

    def int_changed(self, high: bool) -> None:
        processor = self.processors[0]
        processor.lapic.set_lint(0, high)
        if high:
            processor.wake()

    def entries_changed(self, pins: int) -> None:
        """Nothing: messages come as they are."""

    def commit_routes(self, routes: RoutingTable) -> None:
        """Nothing: routes are the chipset's alone."""

    def expire(self, now: int) -> int | None:
        deadlines = []
        for processor in self.processors:
            lapic = processor.lapic
            if lapic.wake_at is not None and lapic.wake_at <= now:
                self._carry_out(processor, lapic.expire(now, now * self._tsc_hz // SECOND + processor.tsc_offset))
                processor.wake()
            if lapic.wake_at is not None:
                deadlines.append(lapic.wake_at)
        return min(deadlines, default=None)

    def _carry_out(self, processor: Processor, effects: Effects) -> None:
        """Do what a local APIC asks for."""
        for effect in effects:
            if isinstance(effect, Message):
                self.deliver(effect, processor.lapic)
            elif not isinstance(effect, ApicBaseChanged):
                self._chipset.carry_out((effect,))
            elif self.pages is not None:
                self.pages.follow(processor.lapic.apic_id, effect.value)

    # vCPUs. On their own threads

    def inject(self, processor: Processor) -> None:
        """Give the processor what is pending for it, or ask for an interrupt window."""
        with self._lock:
            self._look(processor)

    def wait(self, processor: Processor, vcpu: Vcpu) -> VcpuRunState:
        """Sleep until the processor can execute, was interrupted, or has another vCPU than this."""
        with self._lock:
            while processor.vcpu is vcpu:
                if processor.interrupted:
                    processor.interrupted = False
                    return VcpuRunState.INTERRUPTED
                if processor.activity is not SETTLED:
                    self._look(processor)
                elif processor.mp_state is RUNNABLE:
                    processor.enter()
                    return VcpuRunState.RUNNABLE
                else:
                    processor.sleep()
        return VcpuRunState.INTERRUPTED

    def _look(self, processor: Processor) -> None:
        processor.look(self._follow_tsc)
        self._sync_from_vcpu(processor)
        processor.take_events()
        vcpu, lapic = processor.vcpu, processor.lapic
        if vcpu is None or not processor.can_run():
            return
        extint = processor.pending_extint or self._extint_requested(processor)
        pending = extint or lapic.pending_vector() >= 0
        if pending and processor.mp_state is HALTED and processor.authority is Authority.BOTH:
            vcpu.complete_io()  # restored: what has never run cannot tell yet whether it is ready
        if pending and vcpu.ready_for_interrupt():
            if extint:  # the PICs first, as in KVM
                vector, effects = self._chipset.pic.acknowledge()
                processor.pending_extint = False
                self._chipset.carry_out(effects)
            else:
                vector = lapic.acknowledge()
            vcpu.interrupt(vector)
            processor.mp_state = RUNNABLE
            pending = self._extint_requested(processor) or lapic.pending_vector() >= 0
        vcpu.set_interrupt_window_requested(pending)
        processor.sync_to_vcpu()

    def _extint_requested(self, processor: Processor) -> bool:
        # The PICs' INT output is wired to the boot processor's LINT0 only.
        return processor.lapic.apic_id == 0 and processor.lapic.extint_requested()

    def _sync_from_vcpu(self, processor: Processor) -> None:
        """Let the local APIC follow what the guest did by itself, without an exit.

        That is CR8 alone where MSRs can exit: see README.md, "What the guest does between two exits". Where they
        cannot, IA32_APIC_BASE too.
        """
        processor.sync_from_vcpu()
        if self._exits_on_msrs or processor.vcpu is None or processor.authority is not Authority.GUEST:
            return
        # Without x2APIC mode each value can follow each other one, so whatever the guest wrote in between is no matter.
        base = processor.vcpu.apic_base
        if base != processor.lapic.apic_base:
            self._carry_out(processor, processor.lapic.write_msr(IA32_APIC_BASE, base, self._now()) or ())

    def _follow_tsc(self, processor: Processor) -> None:
        """Let an armed deadline count on what the time-stamp counter is now, which only its own thread can tell."""
        if processor.lapic.timer.tsc_deadline:
            assert processor.vcpu is not None
            now, tsc = self._now(), processor.vcpu.tsc()
            self._tsc_is(processor, now, tsc)
            self._carry_out(processor, processor.lapic.expire(now, tsc))

    def _tsc_is(self, processor: Processor, now: int, tsc: int) -> None:
        processor.tsc_offset = tsc - now * self._tsc_hz // SECOND

    # What the guest does to its local APIC

    def read(self, vcpu_id: int, offset: int, size: int) -> int:
        """A read of the register page."""
        processor = self.processors[vcpu_id]
        with self._lock:
            self._sync_from_vcpu(processor)
            return processor.lapic.read(offset, size, self._now())

    def write(self, vcpu_id: int, offset: int, size: int, value: int) -> None:
        """A write of the register page."""
        processor = self.processors[vcpu_id]
        with self._lock:
            self._sync_from_vcpu(processor)
            self._carry_out(processor, processor.lapic.write(offset, size, value, self._now()))
            processor.sync_to_vcpu()

    def access_msr(self, processor: Processor, access: MsrExit) -> None:
        """RDMSR or WRMSR of one of the local APIC's registers, and its answer."""
        vcpu, lapic = processor.vcpu, processor.lapic
        assert vcpu is not None
        deadline = access.index == IA32_TSC_DEADLINE
        tsc = vcpu.tsc() if deadline else 0
        with self._lock:
            self._sync_from_vcpu(processor)
            now = self._now()
            if deadline:
                self._tsc_is(processor, now, tsc)
            if access.is_write:
                effects = lapic.write_msr(access.index, access.value, now, tsc)
                value, fault = 0, effects is None
                self._carry_out(processor, effects or ())
                processor.sync_to_vcpu()
            else:
                read = lapic.read_msr(access.index, now)
                value, fault = read or 0, read is None
        vcpu.complete_msr(value, fault=fault)

    def access_hypervisor_msr(self, processor: Processor, access: MsrExit) -> None:
        """RDMSR or WRMSR of an MSR that is the hypervisor's, and that the local APIC must follow at once."""
        vcpu, lapic = processor.vcpu, processor.lapic
        assert vcpu is not None
        new_base = access.is_write and access.index == IA32_APIC_BASE
        with self._lock:
            self._sync_from_vcpu(processor)
            if (new_base and not lapic.allows_base(access.value)) or not vcpu.perform_msr(access):
                vcpu.complete_msr(fault=True)
            elif new_base:
                self._carry_out(processor, lapic.write_msr(IA32_APIC_BASE, access.value, self._now()) or ())
                processor.sync_to_vcpu()
            elif access.is_write:
                self._follow_tsc(processor)

    # State

    def get_state(self, processor: Processor) -> LapicState:
        """Its state; an ExtINT message that was taken from it and not answered is in it still."""
        with self._lock:
            processor.sync_from_vcpu()
            state = processor.lapic.state(self._now())
            state.extint = state.extint or processor.pending_extint
            return state

    def set_state(self, processor: Processor, state: LapicState) -> None:
        """Set it; the vCPU's thread hands CR8 and IA32_APIC_BASE over to the hypervisor."""
        lapic = processor.lapic
        with self._lock:
            lapic.set_state(state, self._now())
            if lapic.apic_id == 0:  # KVM's records do not have the level of LINT0
                lapic.set_lint(0, self._chipset.pic.interrupt_requested)
            self._chipset.wake_at(lapic.wake_at)
            processor.pending_extint = False
            processor.state_changed()
            if self.pages is not None:
                self.pages.follow(lapic.apic_id, lapic.apic_base)

    def counters(self) -> ChipCounters:
        """What became of interrupts."""
        gsis = self._chipset.gsi_counts()
        with self._lock:
            lapics = [processor.lapic for processor in self.processors]
            return ChipCounters(
                gsis,
                tuple(count for lapic in lapics for count in vector_counts(lapic)),
                sum(lapic.spurious for lapic in lapics),
                self._destinations.undeliverable,
            )
