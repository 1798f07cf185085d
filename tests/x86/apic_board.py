"""An IOAPIC and local APICs wired together: ours, and KVM's in the same shape, to be compared.

Where KVM differs from the manuals `Difference` has a name for it; docs/oracle-differences-apic.md explains each.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

import attrs

from irqchip_core.chip import MPState
from irqchip_core.x86.destinations import Destinations
from irqchip_core.x86.effects import Effects, EoiBroadcast
from irqchip_core.x86.ioapic import VERSION_82093AA, Ioapic
from irqchip_core.x86.lapic import registers as reg
from irqchip_core.x86.lapic.core import NO_VECTOR, LapicCore
from irqchip_core.x86.lapic.lapic import Lapic
from irqchip_core.x86.msi import Message, decode_msi
from irqchip_core.x86.state import IOAPIC_BASE, LAPIC_BASE
from tests.oracles.kvm import KvmMachine

IOREGSEL, IOWIN = 0x00, 0x10
LINES = 24
ENTRY_BITS = 0xFF << 56 | 0x1FFFF
HZ = 1_000_000_000  # KVM's bus clock
TSC_HZ = 1_000_000_000


class Difference(enum.Enum):
    """The names under which docs/oracle-differences-apic.md lists what KVM does otherwise than the manuals."""

    APIC_ID_WRITABLE = enum.auto()
    NO_ESR = enum.auto()
    VECTORS_0_TO_15_ACCEPTED = enum.auto()
    NO_APR = enum.auto()
    RESERVED_BITS_KEPT = enum.auto()
    X2APIC_RESERVED_BITS_ACCEPTED = enum.auto()
    LEVEL_IPIS = enum.auto()
    DISABLE_KEEPS_REGISTERS = enum.auto()
    LOWEST_PRIORITY_BY_VECTOR = enum.auto()
    LOWEST_PRIORITY_BROADCAST_TO_ALL = enum.auto()
    LOWEST_PRIORITY_TO_ABSENT = enum.auto()
    LOWEST_PRIORITY_TO_DISABLED = enum.auto()
    MSI_BROADCAST_IN_X2APIC_MODE = enum.auto()
    EOI_OF_OWN_ENTRIES_ONLY = enum.auto()
    EOI_RESENDS_EDGES = enum.auto()
    IOAPIC_ABSENT_REGISTERS_READ_ONES = enum.auto()
    IOAPIC_WINDOW_OF_ANY_SIZE = enum.auto()
    IOAPIC_LEVEL_NMI = enum.auto()


@attrs.frozen
class LapicView:
    """What of a local APIC must agree; by offset."""

    registers: dict[int, int]
    timer_runs: bool


class Pending(NamedTuple):
    """What of an IOAPIC must agree."""

    select: int
    identifier: int
    entries: tuple[int, ...]


COMPARED = (
    reg.ID, reg.VERSION, reg.TPR, reg.PPR, reg.LDR, reg.DFR, reg.SPIV, *range(reg.ISR, reg.ESR, 0x10), reg.ICR_LOW,
    reg.ICR_HIGH, *range(reg.LVT_TIMER, reg.LVT_ERROR + 0x10, 0x10), reg.TIMER_INITIAL_COUNT, reg.TIMER_DIVIDE,
)  # fmt: skip


COMPARED_BITS = dict.fromkeys(COMPARED, 0xFFFFFFFF)
"""Without the bits KVM keeps in reserved and read-only places (RESERVED_BITS_KEPT)."""
COMPARED_BITS.update((lvt, bits) for lvt, bits in reg.LVT_WRITABLE.items() if lvt in COMPARED)
COMPARED_BITS[reg.ICR_LOW] = reg.ICR_LOW_MASK & ~(1 << 12)


def compared(regs: list[int]) -> dict[int, int]:
    """By offset, what must agree of a local APIC's registers."""
    return {offset: regs[offset >> 4] & bits for offset, bits in COMPARED_BITS.items()}


class Board:
    """Our parts."""

    def __init__(self, count: int) -> None:
        self.ioapic = Ioapic(version=VERSION_82093AA)
        self.bus = Destinations()
        self.lapics = [
            Lapic(n, timer_hz=HZ, tsc_hz=TSC_HZ, bsp=n == 0, cmci=False, eoi_suppression=False) for n in range(count)
        ]
        for lapic in self.lapics:
            self.bus.add(lapic)
        self.now = 0

    def deliver(self, message: Message, source: LapicCore | None = None) -> None:
        if not self.bus.deliver(message, source):
            self.ioapic.refused(message)

    def carry_out(self, effects: Effects, source: LapicCore | None = None) -> None:
        for effect in effects:
            if isinstance(effect, Message):
                self.deliver(effect, source)
            elif isinstance(effect, EoiBroadcast):
                self.carry_out(self.ioapic.end_of_interrupt(effect.vector, self.now))

    def write_ioapic(self, register: int, value: int) -> None:
        self.ioapic.write(IOREGSEL, 4, register, self.now)
        self.carry_out(self.ioapic.write(IOWIN, 4, value, self.now))

    def read_ioapic(self, register: int) -> int:
        self.ioapic.write(IOREGSEL, 4, register, self.now)
        return self.ioapic.read(IOWIN, 4, self.now)

    def set_line(self, pin: int, level: int) -> None:
        self.carry_out(self.ioapic.set_line(pin, level))

    def send(self, address: int, data: int) -> None:
        if message := decode_msi(address, data):
            self.deliver(message)

    def write_lapic(self, number: int, offset: int, value: int) -> None:
        lapic = self.lapics[number]
        self.carry_out(lapic.write(offset, 4, value, self.now), lapic)

    def read_lapic(self, number: int, offset: int) -> int:
        return self.lapics[number].read(offset, 4, self.now)

    def wrmsr(self, number: int, index: int, value: int) -> bool:
        lapic = self.lapics[number]
        effects = lapic.write_msr(index, value, self.now, tsc=0)
        self.carry_out(effects or (), lapic)
        return effects is not None

    def rdmsr(self, number: int, index: int) -> int | None:
        return self.lapics[number].read_msr(index, self.now)

    def set_cr8(self, number: int, value: int) -> None:
        self.lapics[number].cr8 = value

    def get_cr8(self, number: int) -> int:
        return self.lapics[number].cr8

    def take_interrupt(self, number: int) -> int | None:
        lapic = self.lapics[number]
        return None if lapic.pending_vector() == NO_VECTOR else lapic.acknowledge()

    def view_ioapic(self) -> Pending:
        state = self.ioapic.state(self.now)
        return Pending(state.ioregsel, state.ioapicid, tuple(state.redirect_table))

    def view_lapic(self, number: int) -> LapicView:
        lapic = self.lapics[number]
        regs = lapic.state(self.now).regs
        running = lapic.timer.current_count(self.now) != 0
        return LapicView(compared(regs), running)


class KvmBoard:
    """KVM's."""

    def __init__(self, machine: KvmMachine) -> None:
        self.machine = machine

    def reset_like(self, board: Board) -> None:
        vm = self.machine.vm
        for line in range(LINES):
            self.machine.set_line(line, False)
        vm.set_ioapic_state(board.ioapic.state(0))
        for vcpu, lapic in zip(self.machine.vcpus, board.lapics, strict=True):
            vcpu.set_mp_state(MPState.RUNNABLE)
            vcpu.set_msrs({reg.IA32_APIC_BASE: lapic.apic_base})
            self.copy_lapic(board, lapic.apic_id)

    def copy_lapic(self, board: Board, number: int) -> None:
        self.machine.vcpus[number].set_lapic_state(board.lapics[number].state(board.now))

    def write_ioapic(self, register: int, value: int) -> None:
        self.machine.write(IOAPIC_BASE + IOREGSEL, register)
        self.machine.write(IOAPIC_BASE + IOWIN, value)

    def read_ioapic(self, register: int) -> int:
        self.machine.write(IOAPIC_BASE + IOREGSEL, register)
        return self.machine.read(IOAPIC_BASE + IOWIN)

    def set_line(self, pin: int, level: int) -> None:
        self.machine.set_line(pin, bool(level))

    def send(self, address: int, data: int) -> None:
        self.machine.signal_msi(address, data)

    def write_lapic(self, number: int, offset: int, value: int) -> None:
        self.machine.write(LAPIC_BASE + offset, value, vcpu=number)

    def read_lapic(self, number: int, offset: int) -> int:
        return self.machine.read(LAPIC_BASE + offset, vcpu=number)

    def wrmsr(self, number: int, index: int, value: int) -> bool:
        return self.machine.wrmsr(index, value, vcpu=number)

    def rdmsr(self, number: int, index: int) -> int | None:
        return self.machine.rdmsr(index, vcpu=number)

    def set_cr8(self, number: int, value: int) -> None:
        self.machine.set_cr8(value, vcpu=number)

    def get_cr8(self, number: int) -> int:
        return self.machine.get_cr8(vcpu=number)

    def take_interrupt(self, number: int) -> int | None:
        return self.machine.take_interrupt(vcpu=number)

    def view_ioapic(self) -> Pending:
        state = self.machine.vm.get_ioapic_state()
        return Pending(state.ioregsel, state.ioapicid, tuple(entry & ENTRY_BITS for entry in state.redirect_table))

    def view_lapic(self, number: int) -> LapicView:
        """From KVM_GET_LAPIC, except for PPR, which is worked out when the guest reads it."""
        vcpu = self.machine.vcpus[number]
        regs = vcpu.get_lapic_state().regs
        registers = compared(regs)
        base = vcpu.apic_base
        if base & reg.APIC_BASE_EXTD:
            registers[reg.PPR] = self.machine.rdmsr(0x80A, vcpu=number) or 0
        elif base & reg.APIC_BASE_EN:
            registers[reg.PPR] = self.read_lapic(number, reg.PPR)
        return LapicView(registers, regs[reg.TIMER_CURRENT_COUNT >> 4] != 0)


AnyBoard = Board | KvmBoard
