"""`UserspaceApics`: the local APICs in Python and their vCPUs, as the `LocalApics` of a chipset.

It delivers the messages of the chipset, carries out the guests' accesses to their local APICs, and injects pending
interrupts into vCPUs. Methods take the chipset's lock; those of `LocalApics` and the private ones are called with it.
"""

from __future__ import annotations

from irqchip_core.chip import VcpuRunState
from irqchip_core.hypervisor.exits import MsrExit
from irqchip_core.hypervisor.vcpu import Vcpu
from irqchip_core.routes import RoutingTable
from irqchip_core.x86.chipset.chipset import Chipset
from irqchip_core.x86.counters import ChipCounters, vector_counts
from irqchip_core.x86.destinations import Destinations
from irqchip_core.x86.effects import ApicBaseChanged, Effects
from irqchip_core.x86.lapic.lapic import Lapic
from irqchip_core.x86.lapic.pages import LapicPages
from irqchip_core.x86.lapic.registers import IA32_APIC_BASE, IA32_TSC_DEADLINE
from irqchip_core.x86.msi import Message
from irqchip_core.x86.state import LapicState
from irqchip_userspace.processor import HALTED, RUNNABLE, SETTLED, Authority, Processor

SECOND = 1_000_000_000


class UserspaceApics:
    """Implements `irqchip_core.x86.chipset.chipset.LocalApics`.

    Args:
        chipset: The chipset.
        vcpu_count: Number of local APICs; their ids are 0 and up.
        timer_hz: Input clock of the timers.
        tsc_hz: Frequency of the guest's time-stamp counter; 0: no TSC-deadline mode.
        x2apic: Whether the local APICs have x2APIC mode.
        exits_on_msrs: Whether the guest's writes of IA32_APIC_BASE cause exits.

    Attributes:
        processors: The vCPUs, by number.
        pages: The register pages; None until they are on a bus.
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

    # Calls of the chipset

    def deliver(self, message: Message, source: Lapic | None = None) -> bool:
        """Deliver a message, as `LocalApics.deliver`; `source` is the sender of an IPI."""
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
        """No action: the IOAPIC sends complete messages."""

    def commit_routes(self, routes: RoutingTable) -> None:
        """No action: only the chipset uses routes."""

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
        """Carry out the effects of a local APIC."""
        for effect in effects:
            if isinstance(effect, Message):
                self.deliver(effect, processor.lapic)
            elif not isinstance(effect, ApicBaseChanged):
                self._chipset.carry_out((effect,))
            elif self.pages is not None:
                self.pages.follow(processor.lapic.apic_id, effect.value)

    # vCPUs. On their own threads

    def inject(self, processor: Processor) -> None:
        """Inject the pending interrupt into the vCPU, or request an interrupt window."""
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
            vcpu.complete_io()  # restored: before its first run it is undefined whether a vCPU is ready
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
        """Update the local APIC by what the guest changed without an exit.

        The guest changes CR8 so, and IA32_APIC_BASE if MSRs cannot exit: see README.md, "What the guest does between
        two exits".
        """
        processor.sync_from_vcpu()
        if self._exits_on_msrs or processor.vcpu is None or processor.authority is not Authority.GUEST:
            return
        # Without x2APIC mode any value can follow any other, so values that the guest wrote in between have no effect.
        base = processor.vcpu.apic_base
        if base != processor.lapic.apic_base:
            self._carry_out(processor, processor.lapic.write_msr(IA32_APIC_BASE, base, self._now()) or ())

    def _follow_tsc(self, processor: Processor) -> None:
        """Recompute an armed deadline by the present time-stamp counter, which only the vCPU's own thread can read."""
        if processor.lapic.timer.tsc_deadline:
            assert processor.vcpu is not None
            now, tsc = self._now(), processor.vcpu.tsc()
            self._tsc_is(processor, now, tsc)
            self._carry_out(processor, processor.lapic.expire(now, tsc))

    def _tsc_is(self, processor: Processor, now: int, tsc: int) -> None:
        processor.tsc_offset = tsc - now * self._tsc_hz // SECOND

    # Accesses of the guest to its local APIC

    def read(self, vcpu_id: int, offset: int, size: int) -> int:
        """Read the register page."""
        processor = self.processors[vcpu_id]
        with self._lock:
            self._sync_from_vcpu(processor)
            return processor.lapic.read(offset, size, self._now())

    def write(self, vcpu_id: int, offset: int, size: int, value: int) -> None:
        """Write the register page."""
        processor = self.processors[vcpu_id]
        with self._lock:
            self._sync_from_vcpu(processor)
            self._carry_out(processor, processor.lapic.write(offset, size, value, self._now()))
            processor.sync_to_vcpu()

    def access_msr(self, processor: Processor, access: MsrExit) -> None:
        """Carry out RDMSR or WRMSR of a register of the local APIC, and complete it."""
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
        """Carry out RDMSR or WRMSR of an MSR of the hypervisor whose writes the local APIC must follow at once."""
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
        """State of a local APIC. An ExtINT message counts as pending until the PICs are acknowledged."""
        with self._lock:
            processor.sync_from_vcpu()
            state = processor.lapic.state(self._now())
            state.extint = state.extint or processor.pending_extint
            return state

    def set_state(self, processor: Processor, state: LapicState) -> None:
        """Set the state of a local APIC; the vCPU's thread then hands CR8 and IA32_APIC_BASE over to the hypervisor."""
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
        """The counters of GSIs and vectors."""
        gsis = self._chipset.gsi_counts()
        with self._lock:
            lapics = [processor.lapic for processor in self.processors]
            return ChipCounters(
                gsis,
                tuple(count for lapic in lapics for count in vector_counts(lapic)),
                sum(lapic.spurious for lapic in lapics),
                self._destinations.undeliverable,
            )
