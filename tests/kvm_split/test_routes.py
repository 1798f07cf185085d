"""Which routes and redirection entries the chip passes on to KVM, and which events the kernel serves."""

from __future__ import annotations

import errno
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from irqchip_core.errors import EventInUse, HypervisorError, InvalidArgument, InvalidRoute
from irqchip_core.events import IrqEdgeEvent, IrqEventSource, IrqLevelEvent, PlatformDeviceId
from irqchip_core.routes import IrqRoute, IrqSourceChip, MsiSource, PinSource, default_routes
from irqchip_kvm import KvmVm
from irqchip_kvm_split.chip import KvmSplitIrqChip
from tests.chips.machine import MARKER_ROUTES, Machine, ioapic_entry, program_ioapic

pytestmark = pytest.mark.kvm

SOURCE = IrqEventSource(PlatformDeviceId.SERIAL, 0, "COM1")
IOAPIC, LAPIC = 0xFEC00000, 0xFEE00000
LEVEL, MASKED = 1 << 15, 1 << 16
LEVEL_ASSERT = 1 << 14  # of an MSI's data


class SetRouting:
    """Records the tables that a VM gets by KVM_SET_GSI_ROUTING."""

    def __init__(self, vm: KvmVm, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tables: list[dict[int, MsiSource]] = []
        set_gsi_routing = vm.set_gsi_routing

        def record(routes: Any) -> None:
            routes = list(routes)
            set_gsi_routing(routes)
            self.tables.append({route.gsi: route.source for route in routes})

        monkeypatch.setattr(vm, "set_gsi_routing", record)

    def new(self) -> list[dict[int, MsiSource]]:
        """The tables since the last look."""
        tables, self.tables = self.tables, []
        return tables


@pytest.fixture
def updates(vm: KvmVm, monkeypatch: pytest.MonkeyPatch) -> SetRouting:
    return SetRouting(vm, monkeypatch)


class Entries:
    """Writes redirection entries as a guest does, half by half."""

    def __init__(self, machine: Machine) -> None:
        self._bus = machine.mmio_bus

    def write(self, register: int, value: int) -> None:
        self._bus.write(IOAPIC, 4, register)
        self._bus.write(IOAPIC + 0x10, 4, value)

    def low(self, pin: int, value: int) -> None:
        self.write(0x10 + 2 * pin, value)

    def high(self, pin: int, value: int) -> None:
        self.write(0x11 + 2 * pin, value)


def test_each_reprogrammed_level_entry_costs_one_update_and_no_other_write_any(
    updates: SetRouting, machine: Machine
) -> None:
    entries = Entries(machine)
    updates.new()
    messages = {route.gsi: route.source for route in MARKER_ROUTES}
    entries.high(10, 1 << 24)
    assert updates.new() == []  # masked
    entries.low(10, 0x4A | LEVEL)
    first = MsiSource(LAPIC | 1 << 12, 0x4A | LEVEL | LEVEL_ASSERT)
    assert updates.new() == [{10: first, **messages}]
    for value in (0x4A | LEVEL, 0x4A | LEVEL | MASKED, 0x4A | LEVEL, 0x4A | LEVEL | 1 << 13):
        entries.low(10, value)  # nothing new, the mask, the polarity: not for KVM
    assert updates.new() == []
    entries.low(10, 0x4B | LEVEL | MASKED)
    entries.high(10, 0)
    entries.low(10, 0x4B | LEVEL)
    second = MsiSource(LAPIC, 0x4B | LEVEL | LEVEL_ASSERT)
    assert updates.new() == [{10: second, **messages}]
    for pin in range(10):
        entries.low(pin, 0x30 + pin)  # edges have no end
        entries.low(pin, 0x40 + pin)
    assert updates.new() == []
    entries.low(10, 0x4B)
    assert updates.new() == [messages]
    entries.low(11, 0x4C | 4 << 8 | LEVEL)  # an NMI is sent as an edge, whatever its entry says
    assert updates.new() == []


def test_a_masked_entry_keeps_its_route_while_its_end_is_awaited(
    updates: SetRouting, machine: Machine, chip: KvmSplitIrqChip
) -> None:
    entries = Entries(machine)
    entries.low(10, 0x4A | LEVEL)
    chip.service_irq(10, True)  # in the local APIC now
    entries.low(10, 0x4A | LEVEL | MASKED)
    updates.new()
    entries.low(11, 0x4B | LEVEL)
    (table,) = updates.new()
    assert {10, 11} < set(table)
    chip.service_irq(10, False)
    assert machine.take() == 0x4A
    assert machine.take_until_marker() == []
    assert not chip.get_ioapic_state().redirect_table[10] & 1 << 14
    entries.low(11, 0x4C | LEVEL)
    (table,) = updates.new()
    assert 10 not in table


@pytest.mark.parametrize("lowered", [True, False])
def test_an_entry_that_gets_another_destination_keeps_its_route_until_its_interrupt_has_ended(
    updates: SetRouting, machine: Machine, chip: KvmSplitIrqChip, lowered: bool
) -> None:
    entries = Entries(machine)
    entries.low(10, 0x4A | LEVEL)
    chip.service_irq(10, True)  # in vCPU 0's local APIC now
    updates.new()
    entries.high(10, 1 << 24)
    entries.low(11, 0x4B | LEVEL)
    (table,) = updates.new()
    assert table[10] == MsiSource(LAPIC, 0x4A | LEVEL | LEVEL_ASSERT)
    if lowered:
        chip.service_irq(10, False)
    assert machine.take() == 0x4A
    assert machine.take_until_marker() == []
    assert not chip.get_ioapic_state().redirect_table[10] & 1 << 14
    (table,) = updates.new()
    assert table[10] == MsiSource(LAPIC | 1 << 12, 0x4A | LEVEL | LEVEL_ASSERT)


def test_restored_entries_are_passed_on_as_they_are(
    updates: SetRouting, machine: Machine, chip: KvmSplitIrqChip
) -> None:
    entries = Entries(machine)
    entries.low(10, 0x4A | LEVEL)
    state = chip.get_ioapic_state()
    state.redirect_table[10] = 1 << 56 | 0x4B | LEVEL | 1 << 14  # in service somewhere else
    state.redirect_table[11] = 0x4C | LEVEL | 1 << 14 | MASKED
    updates.new()
    chip.set_ioapic_state(state)
    (table,) = updates.new()
    assert table[10] == MsiSource(LAPIC | 1 << 12, 0x4B | LEVEL | LEVEL_ASSERT)
    assert table[11] == MsiSource(LAPIC, 0x4C | LEVEL | LEVEL_ASSERT)


def test_kvm_knows_the_route_before_a_line_that_was_high_interrupts(machine: Machine, chip: KvmSplitIrqChip) -> None:
    chip.service_irq(10, True)
    Entries(machine).low(10, 0x4A | LEVEL)
    chip.service_irq(10, False)
    assert machine.take() == 0x4A
    assert machine.take_until_marker() == []
    assert not chip.get_ioapic_state().redirect_table[10] & 1 << 14  # its EOI was reported


def test_only_messages_on_gsis_above_the_pins_are_passed_on(updates: SetRouting, chip: KvmSplitIrqChip) -> None:
    chip.route_irq(IrqRoute.ioapic(30 - 10))
    chip.set_irq_routes(default_routes())
    assert updates.new() == []
    chip.set_irq_routes([IrqRoute.msi(5, LAPIC, 0x45), IrqRoute.msi(24, LAPIC, 0x50)])
    assert updates.new() == [{24: MsiSource(LAPIC, 0x50)}]
    chip.route_irq(IrqRoute.msi(25, 1 << 32 | LAPIC, 0x51))  # no local APIC is there, and KVM would refuse it
    chip.route_irq(IrqRoute.msi(26, 0x1234, 0x51))
    assert updates.new() == []
    chip.service_irq(25, True)


def test_a_message_on_a_reserved_gsi_is_sent_by_the_chip(chip: KvmSplitIrqChip, machine: Machine) -> None:
    chip.set_irq_routes([*MARKER_ROUTES, IrqRoute.msi(5, LAPIC, 0x45)])
    with IrqEdgeEvent() as event:
        assert chip.register_edge_irq_event(5, event, SOURCE) is not None
        event.trigger()
        assert machine.take() == 0x45


def test_what_kvm_refuses_changes_nothing(
    chip: KvmSplitIrqChip, vm: KvmVm, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    program_ioapic(chip, {5: ioapic_entry(0x45)})

    def refuse(routes: object) -> None:
        raise HypervisorError("not enough memory", call="KVM_SET_GSI_ROUTING", errno=12)

    calls: list[Callable[[], None]] = [
        lambda: chip.route_irq(IrqRoute.msi(30, LAPIC, 0x50)),
        lambda: chip.set_irq_routes([]),
    ]
    with monkeypatch.context() as patch:
        patch.setattr(vm, "set_gsi_routing", refuse)
        for call in calls:
            with pytest.raises(HypervisorError):
                call()
    chip.service_irq(30, True)
    chip.service_irq(5, True)
    assert machine.take_until_marker() == [0x45]


def test_an_entry_that_kvm_refuses_interrupts_and_is_passed_on_again(
    chip: KvmSplitIrqChip, vm: KvmVm, machine: Machine, updates: SetRouting, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(routes: object) -> None:
        raise HypervisorError("not enough memory", call="KVM_SET_GSI_ROUTING", errno=12)

    entries = Entries(machine)
    entries.low(10, 0x49 | LEVEL)
    updates.new()
    entries.low(10, 0x49 | LEVEL | MASKED)
    chip.service_irq(10, True)
    with monkeypatch.context() as patch:
        patch.setattr(vm, "set_gsi_routing", refuse)
        entries.low(10, 0x4A | LEVEL)  # the guest gets no exit for it
    assert machine.mmio_bus.errors == 1
    chip.service_irq(10, False)
    assert updates.new() == []
    entries.high(11, 1 << 24)  # any change
    assert [table[10].data & 0xFF for table in updates.new()] == [0x4A]
    assert machine.take() == 0x4A
    assert machine.take_until_marker() == []
    assert not chip.get_ioapic_state().redirect_table[10] & 1 << 14


def test_routes_of_many_threads_all_count(vm: KvmVm, chip: KvmSplitIrqChip) -> None:
    for vcpu_id in (0, 1):
        chip.add_vcpu(vcpu_id, vm.create_vcpu(vcpu_id))
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda gsi: chip.route_irq(IrqRoute.msi(gsi, LAPIC, 0x50)), range(100, 200)))
    assert {route.gsi for route in chip.snapshot_chip_specific().routes} >= set(range(100, 200))


# Events: in the kernel, or in the chip


def test_edge_events_of_messages_are_the_kernels_and_all_others_the_chips(chip: KvmSplitIrqChip) -> None:
    chip.route_irq(IrqRoute(30, PinSource(IrqSourceChip.IOAPIC, 10)))
    with IrqEdgeEvent() as on_pin, IrqEdgeEvent() as on_message, IrqEdgeEvent() as on_line, IrqLevelEvent() as level:
        assert chip.register_edge_irq_event(23, on_pin, SOURCE) == 1  # 0 is the timer's
        assert chip.register_edge_irq_event(24, on_message, SOURCE) is None
        with pytest.raises(EventInUse):
            chip.register_edge_irq_event(25, on_message, SOURCE)
        assert chip.register_edge_irq_event(30, on_line, SOURCE) == 2
        assert chip.register_level_irq_event(31, level, SOURCE) == 3
        tokens = chip.irq_event_tokens()
        assert [token.index for token in tokens] == [0, 1, 2, 3]
        for token in tokens:
            token.close()


@pytest.mark.parametrize(("first", "second"), [(30, 5), (5, 30)])
def test_the_kernel_and_the_chip_cannot_both_listen_to_an_event(
    chip: KvmSplitIrqChip, machine: Machine, first: int, second: int
) -> None:
    """Each signal is taken by the first reader: an event is served in one place."""
    program_ioapic(chip, {5: ioapic_entry(0x45)})
    chip.route_irq(IrqRoute.msi(30, LAPIC, 0x50))
    vectors = {5: 0x45, 30: 0x50}
    with IrqEdgeEvent() as event, event.try_clone() as clone:
        chip.register_edge_irq_event(first, event, SOURCE)
        with pytest.raises(EventInUse, match=f"serves it already, on GSI {first}; unregister it first"):
            chip.register_edge_irq_event(second, clone, SOURCE)
        event.trigger()
        assert machine.take_until_marker() == [vectors[first]]
        chip.unregister_edge_irq_event(first, event)
        chip.register_edge_irq_event(second, clone, SOURCE)
        event.trigger()
        assert machine.take_until_marker() == [vectors[second]]


def test_an_event_that_cannot_be_taken_over_stays_with_the_kernel(
    chip: KvmSplitIrqChip, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    chip.route_irq(IrqRoute.msi(30, LAPIC, 0x50))
    with IrqEdgeEvent() as event:
        chip.register_edge_irq_event(30, event, SOURCE)
        with monkeypatch.context() as patch:
            patch.setattr(chip._chipset.events, "append", refuse)
            with pytest.raises(OSError, match="Too many open files"):
                chip.set_irq_routes([*MARKER_ROUTES, IrqRoute(30, PinSource(IrqSourceChip.IOAPIC, 10))])
        event.trigger()
        assert machine.take_until_marker() == [0x50]


def test_an_event_whose_gsi_gets_a_pin_is_served_by_the_chip_from_then_on(
    chip: KvmSplitIrqChip, machine: Machine
) -> None:
    program_ioapic(chip, {10: ioapic_entry(0x4A)})
    with IrqEdgeEvent() as event, IrqEdgeEvent() as other:
        for one in (event, other):
            assert chip.register_edge_irq_event(30, one, SOURCE) is None
        chip.route_irq(IrqRoute(30, PinSource(IrqSourceChip.IOAPIC, 10)))
        for one in (event, other, event):
            one.trigger()
            assert machine.take() == 0x4A
        chip.unregister_edge_irq_event(30, other)
        chip.set_irq_routes([*MARKER_ROUTES, IrqRoute.msi(30, LAPIC, 0x50)])
        other.trigger()
        event.trigger()  # still served here, and still arrives
        assert machine.take() == 0x50
        assert machine.take_until_marker() == []


def test_a_level_event_above_the_pins_works_through_a_pin(chip: KvmSplitIrqChip, machine: Machine) -> None:
    program_ioapic(chip, {10: ioapic_entry(0x4A, level=True)})
    chip.route_irq(IrqRoute(30, PinSource(IrqSourceChip.IOAPIC, 10)))
    with IrqLevelEvent() as event:
        chip.register_level_irq_event(30, event, SOURCE)
        for _ in range(3):
            event.trigger()
            assert machine.take() == 0x4A
            assert machine.take_until_marker() == []
            assert event.clear_resample(5)


def test_a_level_event_and_a_message_are_refused_whichever_comes_first(chip: KvmSplitIrqChip, machine: Machine) -> None:
    program_ioapic(chip, {10: ioapic_entry(0x4A, level=True)})
    chip.route_irq(IrqRoute.msi(30, LAPIC, 0x50))
    with IrqLevelEvent() as event:
        with pytest.raises(InvalidArgument, match="GSI 30 carries a message, whose end no controller reports; route"):
            chip.register_level_irq_event(30, event, SOURCE)
        chip.register_level_irq_event(31, event, SOURCE)
        calls: list[Callable[[], None]] = [
            lambda: chip.route_irq(IrqRoute.msi(31, LAPIC, 0x51)),
            lambda: chip.set_irq_routes([IrqRoute.msi(31, LAPIC, 0x51)]),
        ]
        for call in calls:
            with pytest.raises(InvalidRoute, match="COM1 has a level event on GSI 31, and no controller"):
                call()
        chip.service_irq(30, True)
        assert machine.take() == 0x50
        chip.unregister_level_irq_event(31, event)
        chip.route_irq(IrqRoute.msi(31, LAPIC, 0x51))
