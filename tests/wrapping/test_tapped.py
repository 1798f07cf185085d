"""Each interrupt a device raises passes `signalled`: seen, held back, repeated, lost."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from typing_extensions import override

from irqchip_core.chip import IrqChip
from irqchip_core.errors import Closed, InvalidArgument, WrongType
from irqchip_core.events import IrqEdgeEvent, IrqEventIndex, IrqEventSource, IrqLevelEvent, PlatformDeviceId
from irqchip_core.hookspecs import hookimpl
from irqchip_core.routes import IrqRoute
from irqchip_core.selection import create_irqchip
from irqchip_core.testing import FakeVcpu, FakeVm
from irqchip_core.wrapping.tapped import DeviceInterrupt, TappedIrqChip
from irqchip_core.wrapping.wrapped import WrappedIrqChip
from irqchip_core.x86.chip import IrqChipX86_64
from tests.chips.machine import Machine, ioapic_entry, program_ioapic
from tests.core.table_chip import TableChip

pytestmark = pytest.mark.usefixtures("no_leaks")

SOURCE = IrqEventSource(PlatformDeviceId.SERIAL, 0, "COM1")


class HoldingChip(TappedIrqChip):
    """Delivers nothing by itself."""

    def __init__(self, inner: IrqChipX86_64) -> None:
        super().__init__(inner)
        self.held: list[DeviceInterrupt] = []

    @override
    def signalled(self, interrupt: DeviceInterrupt) -> None:
        self.held.append(interrupt)


@pytest.fixture
def wrapper() -> type[WrappedIrqChip]:
    return HoldingChip


def userspace(vm: FakeVm | None = None) -> IrqChipX86_64:
    chip = create_irqchip("userspace", vm=vm or FakeVm())
    assert isinstance(chip, IrqChipX86_64)
    return chip


@pytest.fixture
def holding() -> Iterator[HoldingChip]:
    with HoldingChip(userspace()) as chip:
        yield chip


# On every chip, with a guest


def test_an_edge_is_held_back_delivered_and_repeated(chip: HoldingChip, machine: Machine) -> None:
    program_ioapic(chip, {5: ioapic_entry(0x45)})
    with IrqEdgeEvent() as event:
        chip.register_edge_irq_event(5, event, SOURCE)
        event.trigger()
        assert machine.take_until_marker() == []
        (interrupt,) = chip.held
        assert (interrupt.gsi, interrupt.source, interrupt.is_level) == (5, SOURCE, False)
        for _ in range(3):
            interrupt.deliver()
            assert machine.take() == 0x45
        assert machine.take_until_marker() == []


def test_a_level_interrupt_is_ended_by_the_guest_though_it_was_held_back(chip: HoldingChip, machine: Machine) -> None:
    program_ioapic(chip, {10: ioapic_entry(0x4A, level=True)})
    with IrqLevelEvent() as event:
        chip.register_level_irq_event(10, event, SOURCE)
        for _ in range(2):
            event.trigger()
            assert machine.take_until_marker() == []
            assert not event.clear_resample(0)
            interrupt = chip.held.pop()
            assert interrupt.is_level
            interrupt.deliver()
            assert machine.take() == 0x4A
            assert machine.take_until_marker() == []
            assert event.clear_resample(5)


def test_a_message_passes_too(chip: HoldingChip, machine: Machine) -> None:
    chip.route_irq(IrqRoute.msi(40, 0xFEE00000, 0x51))
    with IrqEdgeEvent() as event:
        chip.register_edge_irq_event(40, event, SOURCE)
        event.trigger()
        assert machine.take_until_marker() == []
        chip.held[0].deliver()
        assert machine.take() == 0x51


def test_what_is_delivered_too_late_reaches_nothing(chip: HoldingChip, machine: Machine) -> None:
    program_ioapic(chip, {5: ioapic_entry(0x45)})
    with IrqEdgeEvent() as event:
        chip.register_edge_irq_event(5, event, SOURCE)
        event.trigger()
        machine.settle()
        chip.unregister_edge_irq_event(5, event)
        chip.held[0].deliver()
        assert machine.take_until_marker() == []


# Bookkeeping


def test_nothing_of_the_contract_is_forgotten() -> None:
    made_of_others = {"snapshot", "restore"}
    contract = {
        name
        for kind in (IrqChip, IrqChipX86_64)
        for name, member in vars(kind).items()
        if callable(member) and not name.startswith("_")
    }
    assert contract - made_of_others == {name for name in vars(WrappedIrqChip) if name in contract}
    assert len(contract) > 30


class Recorder:
    def __init__(self) -> None:
        self.news: list[tuple[object, ...]] = []

    @hookimpl
    def irqchip_event_registered(
        self, chip: object, gsi: int, source: IrqEventSource, index: IrqEventIndex | None
    ) -> None:
        self.news.append(("registered", chip, gsi, source, index))

    @hookimpl
    def irqchip_event_unregistered(self, chip: object, gsi: int) -> None:
        self.news.append(("unregistered", chip, gsi))

    @hookimpl
    def irqchip_routes_changed(self, chip: object) -> None:
        self.news.append(("routes", chip))


def test_observers_hear_of_the_wrapper_once(holding: HoldingChip) -> None:
    recorder = Recorder()
    holding.observers.add(recorder)
    with IrqEdgeEvent() as event:
        index = holding.register_edge_irq_event(5, event, SOURCE)
        holding.unregister_edge_irq_event(5, event)
        holding.unregister_edge_irq_event(5, event)
    holding.set_irq_routes([])
    assert recorder.news == [
        ("registered", holding, 5, SOURCE, index),
        ("unregistered", holding, 5),
        ("routes", holding),
    ]


def test_observers_hear_of_an_open_handle() -> None:
    recorder = Recorder()
    chip = HoldingChip(userspace())
    with chip.try_clone() as clone:
        chip.close()
        clone.observers.add(recorder)
        clone.set_irq_routes([])
        assert recorder.news == [("routes", clone)]


def test_news_of_a_plain_wrapper_are_of_the_wrapper() -> None:
    recorder = Recorder()
    with WrappedIrqChip(userspace()) as chip, IrqEdgeEvent() as event:
        chip.observers.add(recorder)
        index = chip.register_edge_irq_event(5, event, SOURCE)
    assert recorder.news == [("registered", chip, 5, SOURCE, index)]


def test_tokens_are_those_of_devices_and_of_the_inner_chips_own(holding: HoldingChip) -> None:
    with IrqEdgeEvent() as own, IrqEdgeEvent() as event, IrqEdgeEvent() as other:
        inner_index = holding.inner.register_edge_irq_event(7, own, SOURCE)
        assert inner_index is not None
        indices = [holding.register_edge_irq_event(5, e, SOURCE) for e in (event, other)]
        tokens = holding.irq_event_tokens()
        pit = 0  # the inner chip's timer
        assert [token.index for token in tokens] == sorted([pit, inner_index << 1, *indices])
        assert [token.index for token in tokens if token.event == event.get_trigger()] == [indices[0]]
        for token in tokens:
            token.close()
        other.trigger()
        holding.service_irq_event(indices[1])
        holding.service_irq_event(indices[1])  # it is not signalled any more
        assert len(holding.held) == 1
        own.trigger()
        holding.service_irq_event(IrqEventIndex(inner_index << 1))
        assert not own.clear_trigger(0)
        holding.unregister_edge_irq_event(5, other)
        holding.service_irq_event(indices[1])  # nor registered
        for index in (-2, -1, 100, 101):
            with pytest.raises(InvalidArgument, match="no event was registered"):
                holding.service_irq_event(IrqEventIndex(index))
        with pytest.raises(WrongType):
            holding.service_irq_event("1")  # type: ignore[arg-type]


def test_a_refused_registration_leaves_nothing(holding: HoldingChip) -> None:
    with IrqEdgeEvent() as event:
        for gsi in (-1, 1 << 32):
            with pytest.raises(InvalidArgument):
                holding.register_edge_irq_event(gsi, event, SOURCE)
        with pytest.raises(WrongType):
            holding.register_level_irq_event(5, event, SOURCE)  # type: ignore[arg-type]
    with pytest.raises(Closed):
        holding.register_edge_irq_event(5, event, SOURCE)
    for chip in (holding, holding.inner):
        (token,) = chip.irq_event_tokens()
        token.close()
        assert token.source.device_id is PlatformDeviceId.PIT


def test_clones_share_what_is_an_object(holding: HoldingChip) -> None:
    with holding.try_clone() as clone, IrqEdgeEvent() as event:
        index = clone.register_edge_irq_event(5, event, SOURCE)
        event.trigger()
        holding.service_irq_event(index)
        assert len(clone.held) == 1
        clone.close()
        with pytest.raises(Closed):
            clone.service_irq(5, True)
        holding.held[0].deliver()  # the handle it was registered with is gone, the chip is not


def test_after_the_last_handle_nothing_is_delivered() -> None:
    chip = HoldingChip(userspace())
    with IrqEdgeEvent() as event:
        index = chip.register_edge_irq_event(5, event, SOURCE)
        event.trigger()
        chip.service_irq_event(index)
    clone = chip.try_clone()
    chip.close()
    chip.close()
    clone.close()
    chip.held[0].deliver()
    for call in (chip.irq_event_tokens, chip.kick_halted_vcpus, chip.try_clone):
        with pytest.raises(Closed):
            call()


def test_taps_can_be_nested() -> None:
    with HoldingChip(HoldingChip(userspace())) as chip, IrqEdgeEvent() as event:
        index = chip.register_edge_irq_event(5, event, SOURCE)
        assert isinstance(chip.inner, HoldingChip)
        event.trigger()
        chip.service_irq_event(index)
        assert chip.inner.held == []
        chip.held[0].deliver()
        assert len(chip.inner.held) == 1


@pytest.mark.parametrize("kind", [WrappedIrqChip, TappedIrqChip])
def test_only_chips_of_a_pc_can_be_wrapped(kind: type[WrappedIrqChip]) -> None:
    with TableChip() as other, pytest.raises(WrongType, match=r"inner: .*TableChip; give it as IrqChipX86_64"):
        kind(other)  # type: ignore[arg-type]


def test_a_snapshot_of_a_wrapped_chip_is_that_of_the_inner_one(holding: HoldingChip) -> None:
    holding.add_vcpu(0, FakeVcpu())
    holding.set_irq_routes([IrqRoute.ioapic(7)])
    snapshot = holding.snapshot(1)
    with HoldingChip(userspace()) as other:
        other.add_vcpu(0, FakeVcpu())
        other.restore(snapshot, 1)
        assert other.snapshot(1).chip_specific == snapshot.chip_specific
