"""Our IOAPIC and local APICs against KVM's in sequences written by hand, and where the two must differ.

A scenario is played to both boards and answers what it saw. Every `Difference` of KVM's has one that shows it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from irqchip_core.chip import MPState
from irqchip_core.x86.lapic import registers as reg
from irqchip_core.x86.lapic.events import PendingEvents
from tests.oracles.kvm import KvmMachine
from tests.x86.apic_board import IOWIN, AnyBoard, Board, Difference, KvmBoard

pytestmark = pytest.mark.kvm

CPUS = 3
LEVEL, MASKED, REMOTE_IRR = 0x8000, 0x10000, 0x4000
Scenario = Callable[[AnyBoard], object]


@pytest.fixture(scope="module")
def machine() -> Iterator[KvmMachine]:
    with KvmMachine(CPUS) as made:
        yield made


@pytest.fixture
def boards(machine: KvmMachine) -> tuple[Board, KvmBoard]:
    ours, theirs = Board(CPUS), KvmBoard(machine)
    theirs.reset_like(ours)
    for board in (ours, theirs):
        for number in range(CPUS):
            board.write_lapic(number, reg.SPIV, 0x1FF)
    return ours, theirs


def entry(board: AnyBoard, pin: int, low: int, destination: int = 0) -> None:
    board.write_ioapic(0x11 + 2 * pin, destination << 24)
    board.write_ioapic(0x10 + 2 * pin, low)


def taken(board: AnyBoard, number: int = 0) -> list[int]:
    """Vectors taken and ended until none is left, 8 at most."""
    vectors: list[int] = []
    while len(vectors) < 8 and (vector := board.take_interrupt(number)) is not None:
        vectors.append(vector)
        board.write_lapic(number, reg.EOI, 0)
    return vectors


def irr(board: AnyBoard, vector: int) -> list[bool]:
    """Which local APICs have the vector requested."""
    offset = reg.IRR + vector // 32 * 0x10
    return [board.read_lapic(number, offset) >> vector % 32 & 1 != 0 for number in range(CPUS)]


def x2apic(board: AnyBoard) -> None:
    for number in range(CPUS):
        assert board.wrmsr(number, reg.IA32_APIC_BASE, 0xFEE00C00 | (0x100 if number == 0 else 0))


def level_line_until_it_falls(board: AnyBoard) -> object:
    entry(board, 9, 0x45 | LEVEL)
    board.set_line(9, 1)
    seen: list[object] = [board.read_ioapic(0x22), board.take_interrupt(0)]
    board.write_lapic(0, reg.EOI, 0)
    seen += [board.read_ioapic(0x22), board.take_interrupt(0)]
    board.set_line(9, 0)
    board.write_lapic(0, reg.EOI, 0)
    return [*seen, board.read_ioapic(0x22), board.take_interrupt(0)]


def masked_edge(board: AnyBoard) -> object:
    entry(board, 9, 0x45 | MASKED)
    board.set_line(9, 1)
    entry(board, 9, 0x45)
    seen = taken(board)
    board.set_line(9, 0)
    board.set_line(9, 1)
    return seen, taken(board)


def masked_level(board: AnyBoard) -> object:
    entry(board, 9, 0x45 | LEVEL | MASKED)
    board.set_line(9, 1)
    entry(board, 9, 0x45 | LEVEL)
    board.set_line(9, 0)
    return taken(board)


def edge_trick_clears_remote_irr(board: AnyBoard) -> object:
    entry(board, 9, 0x45 | LEVEL)
    board.set_line(9, 1)
    entry(board, 9, 0x45 | MASKED)
    seen = board.read_ioapic(0x22)
    board.set_line(9, 0)
    entry(board, 9, 0x45 | LEVEL)
    return seen, board.read_ioapic(0x22)


def two_pins_of_one_vector(board: AnyBoard) -> object:
    for pin in (9, 10):
        entry(board, pin, 0x45 | LEVEL)
        board.set_line(pin, 1)
    board.set_line(10, 0)
    board.take_interrupt(0)
    board.write_lapic(0, reg.EOI, 0)
    return board.read_ioapic(0x22), board.read_ioapic(0x24)


def logical_flat_entry(board: AnyBoard) -> object:
    flat(board)
    entry(board, 9, 0x845, 5)
    board.set_line(9, 1)
    return irr(board, 0x45)


def cluster_destination(board: AnyBoard) -> object:
    for number, ldr in enumerate((0x11, 0x12, 0x21)):
        board.write_lapic(number, reg.DFR, 0)
        board.write_lapic(number, reg.LDR, ldr << 24)
    board.send(0xFEE13004, 0x45)
    return irr(board, 0x45)


def flat(board: AnyBoard) -> None:
    for number in range(CPUS):
        board.write_lapic(number, reg.LDR, 1 << 24 + number)


def lowest_priority_among_equals(board: AnyBoard) -> object:
    flat(board)
    for vector in range(0x40, 0x46):
        board.send(0xFEE07004, 0x100 | vector)
    return [irr(board, vector) for vector in range(0x40, 0x46)]


def redirection_hint(board: AnyBoard) -> object:
    board.send(0xFEEFF008, 0x46)
    return irr(board, 0x46)


def nesting_and_priorities(board: AnyBoard) -> object:
    for vector in (0x31, 0x45, 0x4F):
        board.send(0xFEE00000, vector)
    seen: list[object] = [board.take_interrupt(0), board.take_interrupt(0)]
    board.send(0xFEE00000, 0x51)
    seen += [board.take_interrupt(0), board.read_lapic(0, reg.PPR)]
    for _ in range(2):
        board.write_lapic(0, reg.EOI, 0)
    return [*seen, board.read_lapic(0, reg.PPR), board.take_interrupt(0), board.take_interrupt(0)]


def tpr_by_cr8(board: AnyBoard) -> object:
    board.send(0xFEE00000, 0x45)
    board.set_cr8(0, 4)
    seen = [board.take_interrupt(0), board.read_lapic(0, reg.TPR)]
    board.set_cr8(0, 3)
    return [*seen, board.take_interrupt(0)]


def software_disabled(board: AnyBoard) -> object:
    board.send(0xFEE00000, 0x45)
    board.write_lapic(0, reg.SPIV, 0xFF)
    board.send(0xFEE00000, 0x46)
    board.write_lapic(0, reg.LVT_TIMER, 0x45)
    return [board.read_lapic(0, lvt) for lvt in (reg.LVT_TIMER, reg.LVT_ERROR)], taken(board)


def shorthands(board: AnyBoard) -> object:
    seen = []
    for shorthand, vector in enumerate((0x41, 0x42, 0x43), start=1):
        board.write_lapic(1, reg.ICR_LOW, shorthand << 18 | 0x4000 | vector)
        seen.append(irr(board, vector))
    return seen


def x2apic_destinations(board: AnyBoard) -> object:
    x2apic(board)
    for destination, vector in ((1, 0x41), (0xFF, 0x42), (0xFFFFFFFF, 0x43)):
        board.wrmsr(0, 0x830, destination << 32 | 0x4000 | vector)
    board.wrmsr(0, 0x830, 6 << 32 | 0x4844)
    board.wrmsr(2, 0x83F, 0x45)
    return [[board.rdmsr(number, 0x822) for number in range(CPUS)], board.rdmsr(2, 0x80D)]


def base_faults(board: AnyBoard) -> object:
    seen = [board.wrmsr(1, reg.IA32_APIC_BASE, 0xFEE00000 | value) for value in (0x400, 0xA00, 0x801, 0xC00, 0x800)]
    return [*seen, board.wrmsr(1, reg.IA32_APIC_BASE, 0xFEE00000), board.wrmsr(1, reg.IA32_APIC_BASE, 0xFEE00C00)]


def relocation(board: AnyBoard) -> object:
    board.wrmsr(1, reg.IA32_APIC_BASE, 0xFED01800)
    return board.rdmsr(1, reg.IA32_APIC_BASE)


def timer_modes(board: AnyBoard) -> object:
    seen: list[object] = []
    for lvt in (0x45, 0x20045, 0x40045, 0x45):
        board.write_lapic(0, reg.LVT_TIMER, lvt)
        seen.append(board.read_lapic(0, reg.TIMER_INITIAL_COUNT))
        board.write_lapic(0, reg.TIMER_INITIAL_COUNT, 0xFFFFFFFF)
        seen += [board.read_lapic(0, reg.TIMER_INITIAL_COUNT), board.read_lapic(0, reg.TIMER_CURRENT_COUNT) > 1 << 31]
    return seen


def tsc_deadline_msr(board: AnyBoard) -> object:
    seen = [board.wrmsr(0, reg.IA32_TSC_DEADLINE, 1 << 62), board.rdmsr(0, reg.IA32_TSC_DEADLINE)]
    board.write_lapic(0, reg.LVT_TIMER, 0x40045)
    board.wrmsr(0, reg.IA32_TSC_DEADLINE, 1 << 62)
    return [*seen, board.rdmsr(0, reg.IA32_TSC_DEADLINE)]


def new_divisor_keeps_the_count(board: AnyBoard) -> object:
    board.write_lapic(0, reg.LVT_TIMER, 0x10045)
    board.write_lapic(0, reg.TIMER_DIVIDE, 0xB)
    board.write_lapic(0, reg.TIMER_INITIAL_COUNT, 0xFFFFFFFF)
    board.write_lapic(0, reg.TIMER_DIVIDE, 0xA)
    return board.read_lapic(0, reg.TIMER_CURRENT_COUNT) > 0x80000000


def refused_level(board: AnyBoard) -> object:
    entry(board, 9, 0x45 | LEVEL, 7)  # no local APIC has id 7
    board.set_line(9, 1)
    seen = [board.read_ioapic(0x22)]
    board.write_lapic(0, reg.SPIV, 0xFF)
    entry(board, 9, 0x45 | LEVEL)
    seen.append(board.read_ioapic(0x22))
    board.write_lapic(0, reg.SPIV, 0x1FF)
    board.set_line(9, 1)
    return [*seen, board.read_ioapic(0x22)]


SCENARIOS: list[Scenario] = [
    refused_level,
    level_line_until_it_falls,
    masked_edge,
    masked_level,
    edge_trick_clears_remote_irr,
    two_pins_of_one_vector,
    logical_flat_entry,
    cluster_destination,
    lowest_priority_among_equals,
    redirection_hint,
    nesting_and_priorities,
    tpr_by_cr8,
    software_disabled,
    shorthands,
    x2apic_destinations,
    base_faults,
    relocation,
    timer_modes,
    tsc_deadline_msr,
    new_divisor_keeps_the_count,
]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_both_agree_on(scenario: Scenario, boards: tuple[Board, KvmBoard]) -> None:
    ours, theirs = boards
    assert scenario(theirs) == scenario(ours)


# Events of a processor, which its KVM takes at once when it runs: so look before it does


@pytest.mark.parametrize(
    ("low", "ours", "nmis", "mp_state"),
    [
        (0x4400, PendingEvents(nmis=1), 1, MPState.RUNNABLE),
        (0x4500, PendingEvents(init=True), 0, MPState.INIT_RECEIVED),
        (0x0500, PendingEvents(init=True), 0, MPState.INIT_RECEIVED),
        (0xC500, PendingEvents(init=True), 0, MPState.INIT_RECEIVED),
        (0x8500, None, 0, MPState.RUNNABLE),
    ],
)
def test_nmi_and_init_reach_the_other_processor(
    low: int, ours: PendingEvents | None, nmis: int, mp_state: MPState
) -> None:
    board = Board(2)
    with KvmMachine(2) as machine:
        for each in (board, KvmBoard(machine)):
            each.write_lapic(0, reg.SPIV, 0x1FF)
            each.write_lapic(0, reg.ICR_HIGH, 1 << 24)
            each.write_lapic(0, reg.ICR_LOW, low)
        assert board.lapics[1].take_events() == ours
        assert machine.vcpus[1].get_vcpu_events().nmi_pending == nmis
        assert machine.vcpus[1].get_mp_state() == mp_state


def test_startup_ipi_reaches_the_other_processor() -> None:
    board = Board(2)
    with KvmMachine(2) as machine:
        for each in (board, KvmBoard(machine)):
            each.write_lapic(0, reg.SPIV, 0x1FF)
            each.write_lapic(0, reg.ICR_HIGH, 1 << 24)
            for low in (0x4500, 0x4699):
                each.write_lapic(0, reg.ICR_LOW, low)
        assert board.lapics[1].take_events() == PendingEvents(init=True, startup_vector=0x99)
        machine.vcpus[1].get_mp_state()  # takes the INIT, and then the start-up
        assert machine.vcpus[1].get_mp_state() == MPState.RUNNABLE
        assert machine.vcpus[1].get_sregs().cs.base == 0x99000


# The timer's expiry, in real time on KVM's side

TIMEOUT = 5_000_000_000  # nanoseconds


@pytest.mark.parametrize(
    ("lvt", "count", "deadline"), [(0x45, 200_000, None), (0x20045, 200_000, None), (0x40045, None, 200_000)]
)
def test_timer_interrupts_on_both(
    lvt: int, count: int | None, deadline: int | None, boards: tuple[Board, KvmBoard], machine: KvmMachine
) -> None:
    ours, theirs = boards
    seen = []
    for board in (ours, theirs):
        board.write_lapic(0, reg.LVT_TIMER, lvt)
        board.write_lapic(0, reg.TIMER_DIVIDE, 0xB)
        if count is not None:
            board.write_lapic(0, reg.TIMER_INITIAL_COUNT, count)
        if deadline is not None:
            now = machine.rdtsc() if isinstance(board, KvmBoard) else 0
            board.wrmsr(0, reg.IA32_TSC_DEADLINE, now + deadline)
        end = time.monotonic_ns() + TIMEOUT
        while not irr(board, 0x45)[0] and time.monotonic_ns() < end:
            if isinstance(board, Board):
                board.now += 50_000
                board.lapics[0].expire(board.now, tsc=board.now)
        initial, current = (board.read_lapic(0, at) for at in (reg.TIMER_INITIAL_COUNT, reg.TIMER_CURRENT_COUNT))
        seen.append((board.take_interrupt(0), initial, current > 0, board.rdmsr(0, reg.IA32_TSC_DEADLINE)))
        board.write_lapic(0, reg.TIMER_INITIAL_COUNT, 0)
    assert seen[0] == seen[1] == (0x45, count or 0, lvt == 0x20045, 0)


# Differences


def write_apic_id(board: AnyBoard) -> object:
    board.write_lapic(1, reg.ID, 0x22000000)
    return board.read_lapic(1, reg.ID)


def illegal_ipi(board: AnyBoard) -> object:
    board.write_lapic(0, reg.ICR_LOW, 0x44005)
    board.write_lapic(0, reg.ESR, 0)
    return board.read_lapic(0, reg.ESR)


def illegal_vector(board: AnyBoard) -> object:
    board.send(0xFEE00000, 5)
    return board.read_lapic(0, reg.IRR)


def read_apr(board: AnyBoard) -> object:
    board.write_lapic(0, reg.TPR, 0x50)
    return board.read_lapic(0, reg.APR)


def reserved_entry_bits(board: AnyBoard) -> object:
    entry(board, 9, 0xFFFE0045)
    return board.read_ioapic(0x22)


def reserved_x2apic_bits(board: AnyBoard) -> object:
    x2apic(board)
    return board.wrmsr(0, 0x80F, 0x401FF)


def level_ipi(board: AnyBoard) -> object:
    board.write_lapic(0, reg.ICR_LOW, 0x4C045)
    return board.read_lapic(0, reg.TMR + 0x20)


def disable_and_enable(board: AnyBoard) -> object:
    for value in (0xFEE00000, 0xFEE00800):
        board.wrmsr(1, reg.IA32_APIC_BASE, value)
    return board.read_lapic(1, reg.SPIV)


def lowest_priority_among_different(board: AnyBoard) -> object:
    flat(board)
    board.write_lapic(0, reg.TPR, 0x80)
    board.send(0xFEE07004, 0x142)  # 0x42 mod 3 is 0
    return irr(board, 0x42)


def lowest_priority_broadcast(board: AnyBoard) -> object:
    board.send(0xFEEFF000, 0x142)
    return irr(board, 0x42)


def lowest_priority_of_some_absent(board: AnyBoard) -> object:
    x2apic(board)
    board.send(0xFEE1100C, 0x31)  # of ids 0 and 4 the vector chooses the second, which is not there
    return board.rdmsr(0, 0x821)


def lowest_priority_of_some_disabled(board: AnyBoard) -> object:
    x2apic(board)
    board.wrmsr(1, 0x80F, 0xFF)
    board.send(0xFEE0300C, 0x31)  # of ids 0 and 1 the vector chooses the second, which is software-disabled
    return board.rdmsr(0, 0x821)


def msi_broadcast_in_x2apic_mode(board: AnyBoard) -> object:
    x2apic(board)
    board.send(0xFEEFF000, 0x45)
    return board.rdmsr(1, 0x822)


def absent_ioapic_register(board: AnyBoard) -> object:
    return board.read_ioapic(3)


def byte_to_the_window(board: AnyBoard) -> object:
    board.write_ioapic(0x10, MASKED | 0x45)
    if isinstance(board, Board):
        board.ioapic.write(IOWIN, 1, 0x31, 0)
    else:
        board.machine.write(0xFEC00000 + IOWIN, 0x31, 1)
    return board.read_ioapic(0x10)


def level_nmi_entry(board: AnyBoard) -> object:
    entry(board, 9, 0x400 | LEVEL, 1)
    board.set_line(9, 1)
    return board.read_ioapic(0x22)


def eoi_for_an_entry_of_another(board: AnyBoard) -> object:
    entry(board, 9, 0x45 | LEVEL, 2)
    board.set_line(9, 1)
    board.take_interrupt(2)
    entry(board, 9, 0x46, 2)
    board.read_lapic(2, reg.PPR)  # KVM looks at the entries when the processor runs
    entry(board, 10, 0x45 | LEVEL, 0)
    board.set_line(10, 1)
    board.set_line(10, 0)
    board.write_lapic(2, reg.EOI, 0)
    return board.read_ioapic(0x24)


def edge_with_the_vector_of_a_level(board: AnyBoard) -> object:
    entry(board, 9, 0x45, 0)
    board.set_line(9, 1)
    entry(board, 10, 0x45 | LEVEL, 0)
    board.set_line(10, 1)
    board.take_interrupt(0)
    board.set_line(10, 0)
    board.write_lapic(0, reg.EOI, 0)
    return board.take_interrupt(0)


DIFFERENCES: dict[Difference, tuple[Scenario, object, object]] = {
    Difference.APIC_ID_WRITABLE: (write_apic_id, 0x01000000, 0x22000000),
    Difference.NO_ESR: (illegal_ipi, 0x60, 0),
    Difference.VECTORS_0_TO_15_ACCEPTED: (illegal_vector, 0, 0x20),
    Difference.NO_APR: (read_apr, 0x50, 0),
    Difference.RESERVED_BITS_KEPT: (reserved_entry_bits, 0x45, 0xFFFE0045),
    Difference.X2APIC_RESERVED_BITS_ACCEPTED: (reserved_x2apic_bits, False, True),
    Difference.LEVEL_IPIS: (level_ipi, 0, 0x20),
    Difference.DISABLE_KEEPS_REGISTERS: (disable_and_enable, 0xFF, 0x1FF),
    Difference.LOWEST_PRIORITY_BY_VECTOR: (lowest_priority_among_different, [False, True, False], [True, False, False]),
    Difference.LOWEST_PRIORITY_BROADCAST_TO_ALL: (lowest_priority_broadcast, [True, False, False], [True] * 3),
    Difference.LOWEST_PRIORITY_TO_ABSENT: (lowest_priority_of_some_absent, 0x20000, 0),
    Difference.LOWEST_PRIORITY_TO_DISABLED: (lowest_priority_of_some_disabled, 0x20000, 0),
    Difference.MSI_BROADCAST_IN_X2APIC_MODE: (msi_broadcast_in_x2apic_mode, 0x20, 0),
    Difference.EOI_OF_OWN_ENTRIES_ONLY: (eoi_for_an_entry_of_another, 0x45 | LEVEL, 0x45 | LEVEL | REMOTE_IRR),
    Difference.EOI_RESENDS_EDGES: (edge_with_the_vector_of_a_level, None, 0x45),
    Difference.IOAPIC_ABSENT_REGISTERS_READ_ONES: (absent_ioapic_register, 0, 0xFFFFFFFF),
    Difference.IOAPIC_WINDOW_OF_ANY_SIZE: (byte_to_the_window, MASKED | 0x45, 0x31),
    Difference.IOAPIC_LEVEL_NMI: (level_nmi_entry, 0x400 | LEVEL, 0x400 | LEVEL | REMOTE_IRR),
}


@pytest.mark.parametrize("difference", Difference, ids=lambda difference: difference.name)
def test_each_difference_is_real_and_named(difference: Difference, boards: tuple[Board, KvmBoard]) -> None:
    scenario, our_answer, their_answer = DIFFERENCES[difference]
    ours, theirs = boards
    assert scenario(ours) == our_answer
    assert scenario(theirs) == their_answer
    if difference is Difference.APIC_ID_WRITABLE:
        theirs.write_lapic(1, reg.ID, 0x01000000)
