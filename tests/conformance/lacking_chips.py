"""Chips without some of a PC's controllers, all made from the userspace chip; and wrong ones of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from irqchip_core.bus import Bus
from irqchip_core.capabilities import IrqChipCap
from irqchip_core.errors import Unsupported
from irqchip_core.hypervisor.vcpu import Vm
from irqchip_core.routes import X86_PINS, IrqRoute, IrqSourceChip, MsiSource, RoutingTable
from irqchip_core.x86.chip import IrqChipX86_64
from irqchip_core.x86.chipset.devices import IoapicPage, PicPorts, PitPorts
from irqchip_core.x86.finalization import Place
from irqchip_core.x86.state import ChipSnapshot, IoapicState, PicSelect, PicState, PitState
from irqchip_userspace.chip import UserspaceIrqChip

PIC, IOAPIC, PIT = IrqChipCap.PIC, IrqChipCap.IOAPIC, IrqChipCap.PIT
DEVICES = {PicPorts: PIC, IoapicPage: IOAPIC, PitPorts: PIT}
CONTROLLERS = {IrqSourceChip.PIC_PRIMARY: PIC, IrqSourceChip.PIC_SECONDARY: PIC, IrqSourceChip.IOAPIC: IOAPIC}


class LackingChip(UserspaceIrqChip):
    """Has neither PICs nor IOAPIC nor PIT; a subclass may lack less."""

    lacking: ClassVar[frozenset[IrqChipCap]] = frozenset({PIC, IOAPIC, PIT})

    def __init__(self, vm: Vm, vcpu_count: int) -> None:
        super().__init__(vm, vcpu_count)
        self._capabilities -= self.lacking
        if IOAPIC in self.lacking:
            self._finalization._pins = 0
        pins = {chip: count for chip, count in X86_PINS.items() if CONTROLLERS[chip] not in self.lacking}
        self._change_routes(lambda old: RoutingTable(filter(self._reaches, old), pins=pins, subject=self.name))

    def _reaches(self, route: IrqRoute) -> bool:
        return isinstance(route.source, MsiSource) or CONTROLLERS[route.source.chip] not in self.lacking

    def _places(self, io_bus: Bus, mmio_bus: Bus) -> Iterable[Place]:
        for place in super()._places(io_bus, mmio_bus):
            if not any(isinstance(place[1], kind) and lacks in self.lacking for kind, lacks in DEVICES.items()):
                yield place

    def _owner(self, controller: IrqChipCap) -> type[IrqChipX86_64]:
        """The class whose methods answer for a controller."""
        return IrqChipX86_64 if controller in self.lacking else UserspaceIrqChip

    def get_pic_state(self, select: PicSelect) -> PicState:
        return self._owner(PIC).get_pic_state(self, select)

    def set_pic_state(self, select: PicSelect, state: PicState) -> None:
        self._owner(PIC).set_pic_state(self, select, state)

    def get_ioapic_state(self) -> IoapicState:
        return self._owner(IOAPIC).get_ioapic_state(self)

    def set_ioapic_state(self, state: IoapicState) -> None:
        self._owner(IOAPIC).set_ioapic_state(self, state)

    def get_pit(self) -> PitState:
        return self._owner(PIT).get_pit(self)

    def set_pit(self, state: PitState) -> None:
        self._owner(PIT).set_pit(self, state)

    def pit_uses_speaker_port(self) -> bool:
        return PIT not in self.lacking


class WithoutPics(LackingChip):
    lacking = frozenset({PIC})


class WithoutIoapic(LackingChip):
    lacking = frozenset({IOAPIC})


class WithoutPit(LackingChip):
    lacking = frozenset({PIT})


# Wrong ones


class RecordInvented(LackingChip):
    def get_pit(self) -> PitState:
        return PitState()


class AbsentStateIgnored(LackingChip):
    def set_ioapic_state(self, state: IoapicState) -> None:
        pass


class OtherControllerNamed(LackingChip):
    def get_pic_state(self, select: PicSelect) -> PicState:
        raise Unsupported("the chip has no such thing", subject=self.name)


class InventedRecordSaved(LackingChip):
    def snapshot(self, vcpu_count: int) -> ChipSnapshot:
        snapshot = super().snapshot(vcpu_count)
        snapshot.pit = PitState()
        return snapshot


class AbsentRecordTaken(LackingChip):
    def restore(self, snapshot: ChipSnapshot, vcpu_count: int) -> None:
        snapshot.ioapic = None
        super().restore(snapshot, vcpu_count)


class PinsTaken(LackingChip):
    """Takes a route to a pin that leads nowhere."""

    def __init__(self, vm: Vm, vcpu_count: int) -> None:
        super().__init__(vm, vcpu_count)
        self._change_routes(lambda old: RoutingTable(old, subject=self.name))
