"""Machines that play one sequence to our IOAPIC and local APICs and to KVM's, comparing all state."""

from __future__ import annotations

from typing import ClassVar

from irqchip_core.x86.lapic import registers as reg
from irqchip_core.x86.msi import LOGICAL, VECTOR_MASK, Message, decode_redirection_entry
from tests.x86.apic_board import LINES, Board, KvmBoard
from tests.x86.sequences import SequenceMachine, action, beginning

CPUS = 3
FEW_PINS = [2, 9, 23]
FEW_VECTORS = [0x31, 0x32, 0x45, 0xFF]
NUMBERS = range(CPUS)
LEVEL = 1 << 15
MSRS = [0x1B, 0x6E0, 0x802, 0x80D, 0x830, *range(0x800, 0x900)]
HUGE_COUNTS = [0, 0x80000000, 0xF0000001, 0xFFFFFFFF]  # do not run out during a test


class ApicMachine(SequenceMachine):
    """Plays the same to both boards."""

    theirs: ClassVar[KvmBoard]

    def __init__(self) -> None:
        super().__init__()
        self.ours = Board(CPUS)

    @beginning()
    def start(self) -> None:
        self.theirs.reset_like(self.ours)
        for number in range(CPUS):
            self.write_lapic(number, reg.SPIV, 0x1FF)

    def write_lapic(self, number: int, offset: int, value: int) -> None:
        self.ours.write_lapic(number, offset, value)
        self.theirs.write_lapic(number, offset, value)

    def agree(self) -> None:
        for number in range(CPUS):
            assert self.theirs.view_lapic(number) == self.ours.view_lapic(number), f"local APIC {number}"

    @action(number=NUMBERS)
    def take(self, number: int) -> None:
        assert self.theirs.take_interrupt(number) == self.ours.take_interrupt(number)

    def same_choice(self, destination: int, logical: bool) -> bool:
        """Whether KVM, which looks at the vector alone, chooses one by lowest priority as we do."""
        if len({lapic.arbitration_priority() for lapic in self.ours.lapics}) > 1:
            return False  # LOWEST_PRIORITY_BY_VECTOR
        if not logical:
            return destination != 0xFF  # LOWEST_PRIORITY_BROADCAST_TO_ALL
        first = self.ours.lapics[0]
        places = 0xFFFF if first.x2apic_mode else 0xFF if first.logical_address()[1] == reg.DFR_FLAT else 0xF
        named = self.ours.bus.receivers(Message(0x45, destination=destination, destination_mode=LOGICAL))
        # LOWEST_PRIORITY_TO_ABSENT, LOWEST_PRIORITY_TO_DISABLED
        return sum(lapic.software_enabled() for lapic in named) == (destination & places).bit_count()


class IoapicMachine(ApicMachine):
    """Lines and redirection entries, with local APICs that accept everything."""

    def agree(self) -> None:
        super().agree()
        assert self.theirs.view_ioapic() == self.ours.view_ioapic()

    @action(pin=FEW_PINS, level=range(2))
    def line(self, pin: int, level: int) -> None:
        for board in (self.ours, self.theirs):
            board.set_line(pin, level)

    @action(pin=FEW_PINS)
    def pulse(self, pin: int) -> None:
        for board in (self.ours, self.theirs):
            board.set_line(pin, 1)
            board.set_line(pin, 0)

    @action(
        pin=FEW_PINS,
        vector=FEW_VECTORS,
        flags=[0, LEVEL, LEVEL, LEVEL | 1 << 16, 1 << 16, LEVEL | 1 << 13, 1 << 13, 0x5000],
        noise=[0, 0, 0xFFFE0000],
    )
    def entry_low(self, pin: int, vector: int, flags: int, noise: int) -> None:
        for board in (self.ours, self.theirs):
            board.write_ioapic(0x10 + 2 * pin, vector | flags | noise)

    @action(pin=FEW_PINS, destination=[0, 1, 2, 7, 0xFF], noise=[0, 0xFFFFFF])
    def entry_high(self, pin: int, destination: int, noise: int) -> None:
        for board in (self.ours, self.theirs):
            board.write_ioapic(0x11 + 2 * pin, destination << 24 | noise)

    @action(register=[0, 1, 2, 3, 0x0F, 0x40, 0xFF], value=range(2**32))
    def other_register(self, register: int, value: int) -> None:
        for board in (self.ours, self.theirs):
            board.write_ioapic(register, value)

    @action(register=[0, 1, 2, *range(0x10, 0x10 + 2 * LINES), 0x40, 0xFF])
    def read_register(self, register: int) -> None:
        mask = 0xFFFFFFFF
        if 0x10 <= register < 0x10 + 2 * LINES:  # RESERVED_BITS_KEPT
            mask = 0xFF000000 if register & 1 else 0x1FFFF
        assert self.theirs.read_ioapic(register) & mask == self.ours.read_ioapic(register) & mask

    @action(number=NUMBERS)
    def end(self, number: int) -> None:
        if self.same_end(number):
            self.write_lapic(number, reg.EOI, 0)

    def same_end(self, number: int) -> bool:
        """Whether KVM's IOAPIC does as ours at the EOI of what `number` has in service."""
        lapic, ioapic = self.ours.lapics[number], self.ours.ioapic
        vector = lapic.isr.bit_length() - 1
        lines = ioapic.state(0).current_interrupt_level_bitmap
        levels = False
        sent_here = False
        for pin, entry in enumerate(ioapic.entries):
            if entry & VECTOR_MASK != vector:
                continue
            if entry & LEVEL:
                levels = True
                sent_here |= lapic in self.ours.bus.receivers(decode_redirection_entry(entry))
            elif lines >> pin & 1:
                return False  # EOI_RESENDS_EDGES
        return sent_here or not levels  # EOI_OF_OWN_ENTRIES_ONLY

    @action(number=NUMBERS, enabled=(False, True))
    def software_enable(self, number: int, enabled: bool) -> None:
        self.write_lapic(number, reg.SPIV, 0x1FF if enabled else 0xFF)


class LapicMachine(ApicMachine):
    """Registers, messages, modes and destinations of the local APICs."""

    x2apic = False

    def access(self, number: int, offset: int, value: int) -> None:
        """Write a register by the interface of the mode."""
        if not self.x2apic:
            self.write_lapic(number, offset, value)
            return
        index = 0x800 + (offset >> 4)
        assert self.theirs.wrmsr(number, index, value) == self.ours.wrmsr(number, index, value), hex(value)

    @action(number=NUMBERS)
    def end(self, number: int) -> None:
        self.access(number, reg.EOI, 0)

    @action(number=NUMBERS, value=range(0x100))
    def tpr(self, number: int, value: int) -> None:
        self.access(number, reg.TPR, value)

    @action(number=NUMBERS, value=range(16))
    def cr8(self, number: int, value: int) -> None:
        for board in (self.ours, self.theirs):
            board.set_cr8(number, value)
        assert self.theirs.get_cr8(number) == self.ours.get_cr8(number)

    @action(number=NUMBERS, value=[0x1FF, 0x1FF, 0x1EF, 0xFF, 0x3FF])
    def spiv(self, number: int, value: int) -> None:
        self.access(number, reg.SPIV, value)

    @action(
        number=NUMBERS,
        lvt=[reg.LVT_TIMER, reg.LVT_THERMAL, reg.LVT_PERFORMANCE, reg.LVT_LINT0, reg.LVT_LINT1, reg.LVT_ERROR],
        value=range(0x80000),
    )
    def lvt(self, number: int, lvt: int, value: int) -> None:
        value |= 0x10  # a legal vector; nothing here makes an entry interrupt
        value &= self.ours.lapics[number].lvt_writable[lvt]
        if lvt == reg.LVT_TIMER and value >> 17 == 3:
            value ^= 1 << 17  # a reserved mode
        self.access(number, lvt, value)

    @action(number=NUMBERS, value=HUGE_COUNTS)
    def initial_count(self, number: int, value: int) -> None:
        self.access(number, reg.TIMER_INITIAL_COUNT, value)

    @action(number=NUMBERS, value=[0, 1, 2, 3, 8, 9, 0xA, 0xB])
    def divide(self, number: int, value: int) -> None:
        self.access(number, reg.TIMER_DIVIDE, value)

    @action(number=NUMBERS, value=[0, 2**62, 2**64 - 1])
    def tsc_deadline(self, number: int, value: int) -> None:
        assert self.theirs.wrmsr(number, reg.IA32_TSC_DEADLINE, value) == self.ours.wrmsr(
            number, reg.IA32_TSC_DEADLINE, value
        )
        assert self.theirs.rdmsr(number, reg.IA32_TSC_DEADLINE) == self.ours.rdmsr(number, reg.IA32_TSC_DEADLINE)

    @action(number=NUMBERS, value=[0x01FFFFFF, 0x02000000, 0x11000000, 0x12000000, 0x23000000, 0])
    def ldr(self, number: int, value: int) -> None:
        if self.x2apic:
            return
        self.access(number, reg.LDR, value)

    @action(value=[0xFFFFFFFF, 0x0FFFFFFF, 0, 0xF0000000])
    def dfr(self, value: int) -> None:
        if self.x2apic:
            return
        for number in range(CPUS):
            self.access(number, reg.DFR, value)

    @action(
        number=NUMBERS,
        destination=[0, 1, 2, 3, 7, 0x11, 0x13, 0xFF],
        vector=FEW_VECTORS,
        flags=[0, 0x800, 0x100, 0x900, 0x40000, 0x80000, 0xC0000],
    )
    def ipi(self, number: int, destination: int, vector: int, flags: int) -> None:
        if self.x2apic:
            return
        if flags & 0x100 and not self.same_choice(destination, flags & 0x800 != 0):
            return
        self.access(number, reg.ICR_HIGH, destination << 24)
        self.access(number, reg.ICR_LOW, vector | 0x4000 | flags)

    @action(
        number=NUMBERS,
        destination=[0, 1, 2, 3, 7, 0xFF, 0x10001, 0xFFFFFFFF],
        vector=FEW_VECTORS,
        flags=[0, 0x800, 0x100, 0x900, 0x40000, 0x80000, 0xC0000, 0x1000, 0x2000, 0x10000, 1 << 31],
    )
    def x2apic_ipi(self, number: int, destination: int, vector: int, flags: int) -> None:
        if not self.x2apic:
            return
        if flags & 0x100 and not self.same_choice(destination, flags & 0x800 != 0):
            return
        self.access(number, reg.ICR_LOW, destination << 32 | vector | 0x4000 | flags)

    @action(number=NUMBERS, value=[*FEW_VECTORS, 0x120, 0x80000045])
    def self_ipi(self, number: int, value: int) -> None:
        if not self.x2apic:
            return
        self.access(number, reg.SELF_IPI, value)

    @action(
        destination=[0, 1, 2, 3, 7, 0x11, 0x13, 0xFF],
        vector=FEW_VECTORS,
        mode=[0, 4, 8, 0xC],
        flags=[0, 0x100, 0x8000, 0xC000],
    )
    def msi(self, destination: int, vector: int, mode: int, flags: int) -> None:
        if destination == 0xFF and self.x2apic:
            return  # MSI_BROADCAST_IN_X2APIC_MODE
        if (flags & 0x100 or mode & 8) and not self.same_choice(destination, mode & 4 != 0):
            return
        for board in (self.ours, self.theirs):
            board.send(0xFEE00000 | destination << 12 | mode, vector | flags)

    @action(number=NUMBERS, index=MSRS)
    def rdmsr(self, number: int, index: int) -> None:
        if index in (0x828, 0x839):
            return  # NO_ESR, and a count that runs
        mask = LVT_AND_ICR_BITS.get(index, 2**64 - 1)
        ours, theirs = self.ours.rdmsr(number, index), self.theirs.rdmsr(number, index)
        assert (theirs if theirs is None else theirs & mask) == ours

    @action(number=NUMBERS, value=[0, 0x400, 0x800, 0x801, 0xC00, 0xA00, 1 << 60 | 0x800])
    def base(self, number: int, value: int) -> None:
        """Switches that fault, or change nothing; those that do are `mode`'s."""
        value |= 0xFEE00000 | (0x100 if number == 0 else 0)
        mode = value & 0xC00
        if mode == 0 or (mode == 0xC00 and not self.x2apic and not value & 0x201):
            return
        assert self.theirs.wrmsr(number, reg.IA32_APIC_BASE, value) == self.ours.wrmsr(
            number, reg.IA32_APIC_BASE, value
        )
        assert self.theirs.rdmsr(number, reg.IA32_APIC_BASE) == self.ours.rdmsr(number, reg.IA32_APIC_BASE)

    @action()
    def mode(self) -> None:
        """Switch all: to x2APIC mode, or out of it by way of being disabled."""
        for number in range(CPUS):
            base = 0xFEE00000 | (0x100 if number == 0 else 0)
            for value in (base, base | 0x800) if self.x2apic else (base | 0xC00,):
                for board in (self.ours, self.theirs):
                    assert board.wrmsr(number, reg.IA32_APIC_BASE, value)
                if not value & 0x800:
                    # DISABLE_KEEPS_REGISTERS
                    self.theirs.copy_lapic(self.ours, number)
        self.x2apic = not self.x2apic


LVT_AND_ICR_BITS = {0x800 + (lvt >> 4): bits for lvt, bits in reg.LVT_WRITABLE.items()} | {
    0x830: 0xFFFFFFFF << 32 | reg.ICR_LOW_MASK & ~(1 << 12)
}
