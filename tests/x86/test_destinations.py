"""Which local APICs receive a message: physical, logical, broadcast (Intel SDM vol. 3, 12.6.2, 12.12.10)."""

from __future__ import annotations

import pytest

from irqchip_core.errors import InvalidArgument
from irqchip_core.x86.destinations import Destinations
from irqchip_core.x86.lapic import registers as reg
from irqchip_core.x86.lapic.events import PendingEvents
from irqchip_core.x86.lapic.lapic import Lapic
from irqchip_core.x86.msi import (
    ALL_EXCLUDING_SELF,
    ALL_INCLUDING_SELF,
    BROADCAST,
    LOGICAL,
    LOWEST_PRIORITY,
    NMI,
    SELF,
    Message,
)

FLAT, CLUSTER = 0xFFFFFFFF, 0x0FFFFFFF


class Machine:
    """Enabled local APICs with the ids given."""

    def __init__(self, *ids: int, x2apic: bool = False) -> None:
        self.bus = Destinations()
        self.lapics = {apic_id: Lapic(apic_id, timer_hz=10**9) for apic_id in ids}
        for lapic in self.lapics.values():
            self.bus.add(lapic)
            lapic.write(reg.SPIV, 4, 0x1FF, 0)
            if x2apic:
                lapic.write_msr(reg.IA32_APIC_BASE, 0xFEE00C00, 0)

    def set_logical(self, model: int, *ldrs: int) -> None:
        for lapic, ldr in zip(self.lapics.values(), ldrs, strict=True):
            lapic.write(reg.DFR, 4, model, 0)
            lapic.write(reg.LDR, 4, ldr << 24, 0)

    def receivers(self, message: Message, source: int | None = None) -> list[int]:
        sender = None if source is None else self.lapics[source]
        return [lapic.apic_id for lapic in self.bus.receivers(message, sender)]


def physical(destination: int) -> Message:
    return Message(0x45, destination=destination)


def logical(destination: int) -> Message:
    return Message(0x45, destination=destination, destination_mode=LOGICAL)


def test_physical() -> None:
    machine = Machine(0, 1, 5, 254)
    assert [machine.receivers(physical(n)) for n in (0, 5, 254, 2, 253)] == [[0], [5], [254], [], []]
    assert machine.receivers(physical(BROADCAST)) == [0, 1, 5, 254]


def test_physical_in_x2apic_mode_has_32_bits() -> None:
    machine = Machine(0, 0xFF, 0x12345678, x2apic=True)
    assert [machine.receivers(physical(n)) for n in (0xFF, 0x12345678, 0x78)] == [[0xFF], [0x12345678], []]
    assert machine.receivers(physical(BROADCAST)) == [0, 0xFF, 0x12345678]


def test_shorthands() -> None:
    machine = Machine(0, 1, 2)
    found = {
        s: machine.receivers(Message(0x45, shorthand=s), 1) for s in (SELF, ALL_INCLUDING_SELF, ALL_EXCLUDING_SELF)
    }
    assert found == {SELF: [1], ALL_INCLUDING_SELF: [0, 1, 2], ALL_EXCLUDING_SELF: [0, 2]}


def test_logical_flat() -> None:
    machine = Machine(0, 1, 2)
    machine.set_logical(FLAT, 1, 2, 0x84)
    assert [machine.receivers(logical(n)) for n in (1, 3, 0x80, 0x10, BROADCAST)] == [[0], [0, 1], [2], [], [0, 1, 2]]


def test_logical_cluster() -> None:
    machine = Machine(0, 1, 2, 3)
    machine.set_logical(CLUSTER, 0x11, 0x12, 0x21, 0x14)
    assert [machine.receivers(logical(n)) for n in (0x13, 0x21, 0x1F, 0x22, 0x31)] == [[0, 1], [2], [0, 1, 3], [], []]
    assert machine.receivers(logical(BROADCAST)) == [0, 1, 2, 3]


def test_reserved_logical_model_matches_nothing() -> None:
    machine = Machine(0)
    machine.set_logical(0x7FFFFFFF, 1)
    assert machine.receivers(logical(1)) == []


def test_logical_in_x2apic_mode_is_a_cluster_of_16() -> None:
    machine = Machine(0, 1, 15, 16, 0x123, x2apic=True)
    found = [machine.receivers(logical(n)) for n in (0x0003, 0x8000, 0x1_0001, 0x12_0008, 0x2_0001, BROADCAST)]
    assert found == [[0, 1], [15], [16], [0x123], [], [0, 1, 15, 16, 0x123]]


def test_logical_ids_follow_what_the_guest_writes() -> None:
    machine = Machine(0, 1)
    machine.set_logical(FLAT, 1, 2)
    assert machine.receivers(logical(2)) == [1]
    machine.lapics[0].write(reg.LDR, 4, 2 << 24, 0)
    assert machine.receivers(logical(2)) == [0, 1]
    machine.lapics[0].write(reg.DFR, 4, CLUSTER, 0)
    assert machine.receivers(logical(1)) == []
    machine.lapics[0].write_msr(reg.IA32_APIC_BASE, 0xFEE00C00, 0)
    assert machine.receivers(logical(1)) == [0]  # by its x2APIC logical id
    machine.lapics[0].set_state(Lapic(0, timer_hz=1).state(0), 0)
    assert machine.receivers(logical(1)) == []


def test_lowest_priority_goes_to_the_lowest() -> None:
    machine = Machine(0, 1, 2)
    for apic_id, tpr in ((0, 0x40), (1, 0x20), (2, 0x30)):
        machine.lapics[apic_id].write(reg.TPR, 4, tpr, 0)
    assert machine.receivers(Message(0x45, LOWEST_PRIORITY, BROADCAST)) == [1]
    machine.lapics[1].accept(Message(0x91))  # a pending interrupt counts
    assert machine.receivers(Message(0x45, LOWEST_PRIORITY, BROADCAST)) == [2]


def test_equal_priorities_are_told_apart_by_the_vector() -> None:
    machine = Machine(0, 1, 2)
    assert [machine.receivers(Message(v, LOWEST_PRIORITY, BROADCAST)) for v in (0x30, 0x31, 0x32)] == [[0], [1], [2]]


def test_lowest_priority_and_logical_set() -> None:
    machine = Machine(0, 1, 2)
    machine.set_logical(FLAT, 1, 2, 4)
    machine.lapics[1].write(reg.TPR, 4, 0x20, 0)
    assert machine.receivers(Message(0x45, LOWEST_PRIORITY, 6, LOGICAL)) == [2]


def test_redirection_hint_chooses_one() -> None:
    machine = Machine(0, 1)
    assert machine.receivers(Message(0x31, destination=BROADCAST, redirection_hint=1)) == [1]


def test_software_disabled_lapics_do_not_arbitrate() -> None:
    machine = Machine(0, 1)
    machine.lapics[0].write(reg.SPIV, 4, 0xFF, 0)
    assert machine.receivers(Message(0x30, LOWEST_PRIORITY, BROADCAST)) == [1]
    machine.lapics[1].write(reg.SPIV, 4, 0xFF, 0)
    assert machine.receivers(Message(0x30, LOWEST_PRIORITY, BROADCAST)) == []


def test_deliver_lets_all_accept_and_counts_what_nobody_gets() -> None:
    machine = Machine(0, 1)
    assert len(machine.bus.deliver(Message(0, NMI, BROADCAST))) == 2
    assert [lapic.take_events() for lapic in machine.lapics.values()] == [PendingEvents(nmis=1)] * 2
    assert machine.bus.deliver(physical(9)) == ()
    machine.lapics[1].write(reg.SPIV, 4, 0xFF, 0)
    assert machine.bus.deliver(physical(1)) == ()
    assert [lapic.apic_id for lapic in machine.bus.deliver(physical(BROADCAST))] == [0]
    assert machine.bus.undeliverable == 2


def test_two_lapics_cannot_share_an_id() -> None:
    machine = Machine(0)
    with pytest.raises(InvalidArgument, match="id 0 already"):
        machine.bus.add(Lapic(0, timer_hz=1))


def test_physical_destination_looks_at_no_other_lapic() -> None:
    machine = Machine(*range(256), x2apic=True)
    machine.bus._all = ()  # what a scan would go through
    assert machine.receivers(physical(200)) == [200]
