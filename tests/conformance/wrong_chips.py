"""Chips with one fault each, all made from the userspace chip. The conformance kit must find every one."""

from __future__ import annotations

import copy
import errno
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from typing import Any, Self
from unittest import mock

import irqchip_core.x86.chipset.chipset
import irqchip_userspace.apics
import irqchip_userspace.chip
from irqchip_core.allocator import SystemAllocator
from irqchip_core.bus import Bus, BusDevice
from irqchip_core.capabilities import IrqChipCap
from irqchip_core.chip import IrqChip, MPState, VcpuRunState
from irqchip_core.errors import HypervisorError, InvalidArgument, InvalidRoute, IrqChipError, UnknownVcpu, WrongType
from irqchip_core.event_table import EventSlot, EventTable
from irqchip_core.eventfd import Event
from irqchip_core.events import IrqEdgeEvent, IrqEventIndex, IrqEventSource, IrqLevelEvent
from irqchip_core.hypervisor.vcpu import Vcpu, Vm
from irqchip_core.routes import IrqRoute, MsiSource
from irqchip_core.x86 import msi
from irqchip_core.x86.chipset.chipset import Chipset
from irqchip_core.x86.chipset.lines import Lines
from irqchip_core.x86.destinations import Destinations
from irqchip_core.x86.effects import DriveLine, DrivePin, Effects, Resample
from irqchip_core.x86.finalization import Place
from irqchip_core.x86.ioapic import MASKED as ENTRY_MASKED
from irqchip_core.x86.ioapic import Ioapic
from irqchip_core.x86.lapic import registers as reg
from irqchip_core.x86.lapic.core import IGNORED, LapicCore
from irqchip_core.x86.lapic.events import PendingEvents
from irqchip_core.x86.lapic.lapic import Lapic
from irqchip_core.x86.lapic.registers import IA32_APIC_BASE
from irqchip_core.x86.msi import Message
from irqchip_core.x86.pic import Pic
from irqchip_core.x86.pit import Pit
from irqchip_core.x86.state import ChipSnapshot, LapicState, PicSelect, PicState, PitState
from irqchip_userspace.apics import UserspaceApics
from irqchip_userspace.chip import UserspaceIrqChip
from irqchip_userspace.processor import ASLEEP, Processor

Maker = Callable[[Vm, int], IrqChip]


MODULES = (irqchip_userspace.chip, irqchip_userspace.apics, irqchip_core.x86.chipset.chipset)


def with_parts(chip: type[UserspaceIrqChip] = UserspaceIrqChip, **parts: type) -> Maker:
    """A userspace chip with other classes for its parts."""

    def create(vm: Vm, vcpu_count: int) -> IrqChip:
        with ExitStack() as patches:
            replaced = set()
            for module in MODULES:
                for name in parts.keys() & vars(module).keys():
                    patches.enter_context(mock.patch.object(module, name, parts[name]))
                    replaced.add(name)
            assert replaced == set(parts), f"no scenario uses {set(parts) - replaced}"
            return chip(vm, vcpu_count)

    return create


# Events


class EveryOtherEdgeLost(Chipset):
    _served = 0

    def _signalled(self, index: IrqEventIndex, slot: EventSlot, signals: int) -> None:
        self._served += 1
        if self._served % 2:
            super()._signalled(index, slot, signals)


class DeliveredTwice(Chipset):
    _last: tuple[IrqEventIndex, EventSlot] | None = None

    def _signalled(self, index: IrqEventIndex, slot: EventSlot, signals: int) -> None:
        self._last = index, slot
        super()._signalled(index, slot, signals)

    def again(self) -> None:
        if (last := self._last) is not None:
            self._last = None
            with self.lock:
                super()._signalled(*last, 1)


class DeliveredTwiceApics(UserspaceApics):
    """The second comes after the EOI of the first, or else the two would be coalesced."""

    def write(self, vcpu_id: int, offset: int, size: int, value: int) -> None:
        super().write(vcpu_id, offset, size, value)
        if offset == 0xB0:
            assert isinstance(self._chipset, DeliveredTwice)
            self._chipset.again()


class UnregistrationIgnored(UserspaceIrqChip):
    def unregister_edge_irq_event(self, irq: int, event: IrqEdgeEvent) -> None:
        pass


class ClosedEventKept(EventTable):
    """A closed event is no stranger's, but is not found."""

    def remove(self, gsi: int, trigger: Event) -> EventSlot | None:
        return None if trigger.closed else super().remove(gsi, trigger)


class UnregistrationOfAnyGsi(EventTable):
    def remove(self, gsi: int, trigger: Event) -> EventSlot | None:
        for slot in self.slots():
            if slot.trigger == trigger:
                return super().remove(slot.gsi, trigger)
        return None


class AllOfAGsiUnregistered(UserspaceIrqChip):
    def unregister_edge_irq_event(self, irq: int, event: IrqEdgeEvent) -> None:
        for slot in self._chipset.events.slots():
            if slot.gsi == irq:
                self._chipset.unregister(irq, slot.trigger)


class EveryEventDelayedAndLost(Chipset):
    def service_event(self, index: IrqEventIndex) -> None:
        if self.events.take(index)[1]:
            self.lock.delayed.append((index, 1))
            self.lock.trigger.signal()

    def process_delayed(self) -> None:
        self.lock.delayed.clear()
        super().process_delayed()


class MessagesAreDelayed(Chipset):
    """Every event is delayed, that of a message too."""

    def service_event(self, index: IrqEventIndex) -> None:
        if self.events.take(index)[1]:
            self.lock.delayed.append((index, 1))


class ServiceWaitsForASignal(UserspaceIrqChip):
    def service_irq_event(self, index: IrqEventIndex) -> None:
        slot = self._chipset.events.slot(index)
        if slot is not None:
            slot.trigger.wait()
            slot.trigger.signal()
        super().service_irq_event(index)


class IndexUsedAgain(EventTable):
    def append(self, gsi: int, event: IrqEdgeEvent | IrqLevelEvent, source: IrqEventSource) -> IrqEventIndex:
        self._next = max(self._slots, default=-1) + 1
        return super().append(gsi, event, source)


# Level events


class ResampleForgotten(Lines):
    def _ended(self, ended: int, lowered: bool) -> Effects:
        return tuple(effect for effect in super()._ended(ended, lowered) if not isinstance(effect, Resample))


class LevelNeverLowered(Lines):
    def _ended(self, ended: int, lowered: bool) -> Effects:
        effects = super()._ended(ended, lowered)
        return tuple(effect._replace(high=True) if hasattr(effect, "high") else effect for effect in effects)

    def remove_level_event(self, gsi: int) -> Effects:
        super().remove_level_event(gsi)
        return ()


class LineStaysHigh(Ioapic):
    """The resample event is signalled, but the line stays high."""

    def _lower(self, pin: int) -> None:
        pass


class LineLeftHigh(Lines):
    def _note(self, gsi: int, source: int, high: bool) -> None:
        if high or source != 4:  # a level event's
            super()._note(gsi, source, high)


class EoiOfTheNextPin(Ioapic):
    """The EOI of one pin's vector ends the next pin."""

    def end_of_interrupt(self, vector: int, now: int) -> Effects:
        table = self.state(now).redirect_table
        vectors = [entry & 0xFF for entry in table]
        if vector in vectors[:-1]:
            vector = vectors[vectors.index(vector) + 1]
        return super().end_of_interrupt(vector, now)


class EveryLineResampled(Lines):
    def _ended(self, ended: int, lowered: bool) -> Effects:
        effects = super()._ended(ended, lowered)
        return (*effects, *(Resample(gsi) for gsi in self._level_events)) if effects else ()


class EveryInterruptEndsAtOnce(Lapic):
    def acknowledge(self) -> int:
        vector = super().acknowledge()
        self.end_of_interrupt()
        return vector


# Controllers


class NmisAreAFlag(Lapic):
    def take_events(self) -> PendingEvents | None:
        events = super().take_events()
        return events and events._replace(nmis=min(events.nmis, 1))


class OneNmiALook(Lapic):
    def take_events(self) -> PendingEvents | None:
        events = super().take_events()
        if events is None or events.nmis < 2:
            return events
        self.events = PendingEvents(nmis=events.nmis - 1)
        return events._replace(nmis=1)


class LowestVectorFirst(Lapic):
    """Pending vectors come in the wrong order."""

    def acknowledge(self) -> int:
        held = self.irr
        self.irr = held & -held
        if self.irr.bit_length() - 1 < self._floor:
            self.irr = held
        vector = super().acknowledge()
        self.irr = held & ~(1 << vector)
        return vector


class TaskPriorityIgnored(Lapic):
    def _update_ppr(self) -> None:
        tpr, self._tpr = self._tpr, 0
        super()._update_ppr()
        self._tpr = tpr


class MaskIgnored(Ioapic):
    def _set_entry(self, pin: int, value: int) -> Effects:
        if value & 0xFF:
            value &= ~ENTRY_MASKED
        return super()._set_entry(pin, value)


class EdgeWhileHigh(Ioapic):
    """An edge-triggered pin fires at each assertion, risen or not."""

    def set_line(self, pin: int, level: int) -> Effects:
        if level:
            super().set_line(pin, 0)
        return super().set_line(pin, level)


class MaskedPicLineForgotten(Pic):
    def set_line(self, line: int, high: bool) -> Effects:
        if self._chips[line >> 3].imr >> (line & 7) & 1:
            return ()
        return super().set_line(line, high)


class PicPriorityReversed(Pic):
    """The line of highest number comes first."""

    def acknowledge(self) -> tuple[int, Effects]:
        chip = self._primary
        requests = chip.irr & ~chip.imr & ~4
        if requests & requests - 1:
            highest = 1 << requests.bit_length() - 1
            others = chip.irr & ~highest
            chip.irr &= highest
            self._update()
            vector, effects = super().acknowledge()
            chip.irr |= others
            self._update()
            return vector, (*effects, *self._effects())
        return super().acknowledge()


class SecondaryPicIsThePrimary(Chipset):
    def carry_out(self, effects: Effects) -> None:
        super().carry_out(
            tuple(
                effect._replace(line=effect.line & 7) if isinstance(effect, DriveLine) else effect for effect in effects
            )
        )


class SpeakerPortConstant(Pit):
    def read(self, port: int, size: int, now: int) -> int:
        return 0x20 if port == 0x61 else super().read(port, size, now)


class Counter2Early(Pit):
    def write(self, port: int, size: int, value: int, now: int) -> Effects:
        return super().write(port, size, value // 2 if port == 0x42 else value, now)


class WideAccessesIgnored(Chipset):
    """Its devices get what they do not take."""

    def places(self, io_bus: Bus, mmio_bus: Bus) -> list[Place]:
        places = super().places(io_bus, mmio_bus)
        for _, device, _, _ in places:
            device.width = 8
        return places


class TimerEarly(Lapic):
    def write(self, offset: int, size: int, value: int, now: int) -> Effects:
        return super().write(offset, size, value // 20 if offset == 0x380 else value, now)


class OneShotRepeats(Lapic):
    def write(self, offset: int, size: int, value: int, now: int) -> Effects:
        return super().write(offset, size, value | 1 << 17 if offset == 0x320 else value, now)


# Routes and messages


class RouteLeaks(Lines):
    """A GSI sends its neighbor's message, too."""

    def edge(self, gsi: int, signals: int) -> Effects:
        return (*super().edge(gsi, signals), *self._ways[gsi + 1].messages)

    def drive(self, gsi: int, high: bool) -> Effects:
        return (*super().drive(gsi, high), *(self._ways[gsi + 1].messages if high else ()))


class GsiInsteadOfPin(Lines):
    def drive(self, gsi: int, high: bool) -> Effects:
        return _to_pin(super().drive(gsi, high), gsi)

    def edge(self, gsi: int, signals: int) -> Effects:
        return _to_pin(super().edge(gsi, signals), gsi)


def _to_pin(effects: Effects, gsi: int) -> Effects:
    return tuple(
        effect._replace(pin=gsi) if isinstance(effect, DrivePin) and gsi < 24 else effect for effect in effects
    )


class MessageOnDeassertion(Lines):
    def drive(self, gsi: int, high: bool) -> Effects:
        return (*super().drive(gsi, high), *(() if high else self._ways[gsi].messages))


class ShorthandIgnoresTheSender(Destinations):
    """All excluding self is all."""

    def deliver(self, message: Message, source: LapicCore | None = None) -> tuple[LapicCore, ...]:
        if message.shorthand == msi.ALL_EXCLUDING_SELF:
            message = message._replace(shorthand=msi.ALL_INCLUDING_SELF)
        return super().deliver(message, source)


class LogicalIsPhysical(Destinations):
    def deliver(self, message: Message, source: LapicCore | None = None) -> tuple[LapicCore, ...]:
        return super().deliver(message._replace(destination_mode=msi.PHYSICAL), source)


class LowestPriorityToAll(Destinations):
    def deliver(self, message: Message, source: LapicCore | None = None) -> tuple[LapicCore, ...]:
        if message.delivery_mode == msi.LOWEST_PRIORITY:
            message = message._replace(delivery_mode=msi.FIXED, redirection_hint=0)
        return super().deliver(message, source)


class RefusedTableHalfTaken(UserspaceIrqChip):
    """`set_irq_routes` keeps what came before the bad route."""

    def set_irq_routes(self, routes: Iterable[IrqRoute]) -> None:
        routes = list(routes)
        try:
            super().set_irq_routes(routes)
        except InvalidRoute:
            for route in routes:
                super().route_irq(route)
            raise


class RouteReplacesItsGsi(UserspaceIrqChip):
    """A new route replaces all routes of its GSI, those of other controllers too."""

    def route_irq(self, route: IrqRoute) -> None:
        super().set_irq_routes([*(old for old in self._chipset.lines.routes if old.gsi != route.gsi), route])


class MessageBesidePinsRefused(UserspaceIrqChip):
    """A message and a pin cannot be exchanged for one another."""

    def route_irq(self, route: IrqRoute) -> None:
        kinds = {type(source) for source in self._chipset.lines.routes[route.gsi]}
        if kinds - {type(route.source)}:
            raise InvalidRoute("a GSI carries one MSI or pins", subject=self.name)
        super().route_irq(route)


class TwoMessagesOnAGsi(UserspaceIrqChip):
    def set_irq_routes(self, routes: Iterable[IrqRoute]) -> None:
        only = {route.gsi: route for route in routes if isinstance(route.source, MsiSource)}
        super().set_irq_routes([route for route in routes if only.get(route.gsi, route) is route])


# vCPUs


class KickIgnored(UserspaceIrqChip):
    def kick_halted_vcpus(self) -> None:
        pass


class KickDoesNotWake(Processor):
    """A kick is only seen by the next wait, and not by the one that blocks."""

    __slots__ = ()

    def interrupt(self) -> None:
        self.interrupted = True


class KicksPileUp(UserspaceIrqChip):
    _kicks = 0

    def kick_halted_vcpus(self) -> None:
        type(self)._kicks += 1
        super().kick_halted_vcpus()

    def wait_until_runnable(self, vcpu: Vcpu) -> Any:
        state = super().wait_until_runnable(vcpu)
        if state.name == "INTERRUPTED" and type(self)._kicks > 1:
            type(self)._kicks -= 1
            self._apics.processors[vcpu.id].interrupted = True
        return state


class SleepersNotWoken(Processor):
    __slots__ = ()

    def wake(self) -> None:
        if self.activity is not ASLEEP:
            super().wake()


class RunnersNotKicked(Processor):
    """An interrupt waits until the guest exits by itself."""

    __slots__ = ()

    def wake(self) -> None:
        if self.activity is ASLEEP:
            super().wake()


class MpStateNotKept(UserspaceIrqChip):
    def set_mp_state(self, vcpu_id: int, state: MPState) -> None:
        super().set_mp_state(vcpu_id, MPState.RUNNABLE if state is MPState.HALTED else state)


class BaseSeenLate(UserspaceIrqChip):
    """Learns of IA32_APIC_BASE at the next exit, when the guest may have written it twice."""

    def __init__(self, vm: Vm, vcpu_count: int) -> None:
        super().__init__(vm, vcpu_count)
        vm.exit_on_msrs([msrs for msrs in irqchip_userspace.chip.APIC_MSRS if IA32_APIC_BASE not in msrs])
        self._apics._exits_on_msrs = False


class InitNeedsItsLevel(Lapic):
    """Each INIT with level 0 is a de-assert, that of an edge too."""

    def accept(self, message: Message) -> int:
        return IGNORED if message.level == 0 else super().accept(message)


class DeassertIsAnInit(Lapic):
    def accept(self, message: Message) -> int:
        return super().accept(message._replace(level=1))


class NmisBlockedAfterInit(Processor):
    __slots__ = ()

    def _initialize(self) -> None:
        assert self.vcpu is not None
        with mock.patch.object(self.vcpu, "take_init"):
            super()._initialize()


class InterruptStartsAnyProcessor(UserspaceApics):
    def deliver(self, message: Message, source: Lapic | None = None) -> bool:
        found = super().deliver(message, source)
        for lapic in self._destinations.receivers(message, source):
            self.processors[lapic.apic_id].mp_state = MPState.RUNNABLE
        return found


# Handles, state and arguments


class NumberBurnt(UserspaceIrqChip):
    """`finalize_devices` takes the first number above the pins, which no device gets."""

    def finalize_devices(self, allocator: SystemAllocator, io_bus: Bus, mmio_bus: Bus) -> None:
        super().finalize_devices(allocator, io_bus, mmio_bus)
        allocator.allocate_irq()


class PinsGivenOut(UserspaceIrqChip):
    """`finalize_devices` leaves the numbers of the pins to any device."""

    def finalize_devices(self, allocator: SystemAllocator, io_bus: Bus, mmio_bus: Bus) -> None:
        super().finalize_devices(SystemAllocator(), io_bus, mmio_bus)


class RefusedAllocatorEmptied(UserspaceIrqChip):
    """`finalize_devices` takes the numbers of the pins one by one, and keeps them if there is none above."""

    def finalize_devices(self, allocator: SystemAllocator, io_bus: Bus, mmio_bus: Bus) -> None:
        while (irq := allocator.allocate_irq()) is not None and irq < 23:
            pass
        super().finalize_devices(allocator, io_bus, mmio_bus)


class RefusedDevicesStay(UserspaceIrqChip):
    """`finalize_devices` looks at the allocator when the devices are on the buses."""

    def finalize_devices(self, allocator: SystemAllocator, io_bus: Bus, mmio_bus: Bus) -> None:
        try:
            super().finalize_devices(allocator, io_bus, mmio_bus)
        except InvalidArgument:
            io_bus.insert(BusDevice(), 0x20, 2)
            raise


class FinalizedTwice(UserspaceIrqChip):
    def finalize_devices(self, allocator: SystemAllocator, io_bus: Bus, mmio_bus: Bus) -> None:
        with suppress(InvalidArgument):
            super().finalize_devices(allocator, io_bus, mmio_bus)


class BusyWhileItExecutes(UserspaceIrqChip):
    """As requests of a hypervisor are refused while a vCPU is in the guest."""

    def __init__(self, vm: Vm, vcpu_count: int) -> None:
        super().__init__(vm, vcpu_count)
        self._executing: set[int] = set()

    def wait_until_runnable(self, vcpu: Vcpu) -> VcpuRunState:
        state = super().wait_until_runnable(vcpu)
        self._executing.add(vcpu.id)
        return state

    def inject_interrupts(self, vcpu: Vcpu) -> None:
        self._executing.discard(vcpu.id)
        super().inject_interrupts(vcpu)

    def get_lapic_state(self, vcpu_id: int) -> LapicState:
        if vcpu_id in self._executing:
            raise HypervisorError("it executes", call="KVM_GET_LAPIC", errno=errno.EBUSY, subject="vCPU")
        return super().get_lapic_state(vcpu_id)


class StaleClone(UserspaceIrqChip):
    """A clone has the routes of the time it was made."""

    def try_clone(self) -> Self:
        clone = super().try_clone()
        clone._chipset = copy.copy(self._chipset)
        clone._chipset.lines = copy.copy(self._chipset.lines)
        return clone


class CloneClosesAll(UserspaceIrqChip):
    def close(self) -> None:
        self._handles.open = min(self._handles.open, 1)
        super().close()


class UsableAfterClose(UserspaceIrqChip):
    def close(self) -> None:
        kind = type(self)
        super().close()
        self.__class__ = kind


class CapabilityNotAdmitted(UserspaceIrqChip):
    def check_capability(self, capability: IrqChipCap) -> bool:
        return super().check_capability(capability) and capability is not IrqChipCap.TSC_DEADLINE_TIMER


class CapabilityLied(Lapic):
    """Claims x2apic, but has local APICs without it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "x2apic": False})


class LapicIdsFromOne(Lapic):
    """Its id register shows one more than the id at which interrupts find it."""

    def read(self, offset: int, size: int, now: int) -> int:
        return super().read(offset, size, now) + (1 << 24 if offset == reg.ID else 0)


class LapicsDenied(UserspaceIrqChip):
    """Has the local APICs, and says that they are the hypervisor's."""

    def lapics_in_hypervisor(self) -> bool:
        return True


class RoutesNotSaved(UserspaceIrqChip):
    def restore(self, snapshot: ChipSnapshot, vcpu_count: int) -> None:
        routes = tuple(self._chipset.lines.routes)
        super().restore(snapshot, vcpu_count)
        self.set_irq_routes(routes)


class PendingNotSaved(Lapic):
    def set_state(self, *args: Any, **kwargs: Any) -> None:
        super().set_state(*args, **kwargs)
        self.irr = 0


class AnyGsiTaken(UserspaceIrqChip):
    def _check_gsi(self, irq: int) -> None:
        pass


class WrongKindOfError(UserspaceIrqChip):
    def _check_gsi(self, irq: int) -> None:
        if not 0 <= irq < 1 << 32:
            raise RuntimeError("bad GSI")


class RefusedRegistrationStays(UserspaceIrqChip):
    """A closed event is refused, but its place in the table is taken."""

    def register_edge_irq_event(self, irq: int, event: IrqEdgeEvent, source: IrqEventSource) -> IrqEventIndex | None:
        if event.get_trigger().closed:
            with IrqEdgeEvent() as other:
                super().register_edge_irq_event(irq, other, source)
        return super().register_edge_irq_event(irq, event, source)


# Records


class EditedCountLost(UserspaceIrqChip):
    """What goes on inside a counter counts, and not what its record says."""

    def set_pit(self, state: PitState) -> None:
        for channel in state.channels if isinstance(state, PitState) else ():
            if channel.counting is not None:
                channel.count = channel.counting.count_register or 0x10000
        super().set_pit(state)


class EditedPitStandsStill(UserspaceIrqChip):
    def set_pit(self, state: PitState) -> None:
        super().set_pit(state)
        for counter in self._chipset.pit._counters:
            counter.load = counter.running = False


class CascadeOfTheRecord(UserspaceIrqChip):
    """A secondary that requests already has no edge for the primary."""

    def set_pic_state(self, select: PicSelect, state: PicState) -> None:
        primary = self._chipset.pic._primary.irr
        super().set_pic_state(select, state)
        if select is PicSelect.SECONDARY:
            self._chipset.pic._primary.irr = primary
            self._chipset.pic._update()
            with self._chipset.lock:
                self._chipset.carry_out(self._chipset.pic._effects())


class CurrentCountIgnored(Lapic):
    """A restored timer counts only from where it was."""

    def set_state(self, state: LapicState, now: int, tsc: int = 0) -> None:
        super().set_state(state, now, tsc)
        if state.timer_elapsed is None:
            self.timer.running = False
            self.timer.wake_at = None


class DamagedRecordIgnored(UserspaceIrqChip):
    """A damaged record is not taken, and that is all."""

    def set_pit(self, state: PitState) -> None:
        with suppress(IrqChipError):
            super().set_pit(state)


class HalfRestored(UserspaceIrqChip):
    """`restore` sets one record before it looks at the next."""

    def restore(self, snapshot: ChipSnapshot, vcpu_count: int) -> None:
        if isinstance(snapshot, ChipSnapshot) and isinstance(snapshot.pic_primary, PicState):
            with suppress(IrqChipError):
                self.set_pic_state(PicSelect.PRIMARY, snapshot.pic_primary)
        super().restore(snapshot, vcpu_count)


class AnyoneHalts(UserspaceIrqChip):
    def halted(self, vcpu_id: int) -> None:
        with suppress(UnknownVcpu, WrongType):
            super().halted(vcpu_id)
