"""Registers and bits of the local APIC: a map, no behavior (Intel SDM vol. 3, chapter 12).

Offsets are those of the xAPIC register page; the x2APIC MSR of offset n is 0x800 + n / 16.
"""

from __future__ import annotations

from irqchip_core.x86.state import LAPIC_BASE

# Register page (SDM table 12-1)
ID = 0x020  # (RO) bits 24-31; all 32 in x2APIC mode
VERSION = 0x030  # (RO)
VERSION_INTEGRATED = 0x14
VERSION_MAXIMUM_LVT_SHIFT = 16
VERSION_EOI_BROADCAST_SUPPRESSION = 1 << 24
TPR = 0x080  # (RW) bits 0-7
APR = 0x090  # (RO) not in x2APIC mode
PPR = 0x0A0  # (RO)
EOI = 0x0B0  # (WO)
RRD = 0x0C0  # (RO) remote read, which nothing supports: 0. Not in x2APIC mode
LDR = 0x0D0  # (RW) bits 24-31. (RO) in x2APIC mode, where it follows from the id
LDR_MASK = 0xFF000000
DFR = 0x0E0  # (RW) bits 28-31. Not in x2APIC mode
DFR_ONES = 0x0FFFFFFF
DFR_FLAT = 0xF
DFR_CLUSTER = 0x0
SPIV = 0x0F0  # (RW) spurious-interrupt vector
SPIV_SOFTWARE_ENABLE = 1 << 8
SPIV_SUPPRESS_EOI_BROADCAST = 1 << 12
SPIV_MASK = 0x3FF  # bit 9, focus checking, is only stored
SPIV_RESET = 0xFF
ISR = 0x100  # (RO) eight registers
TMR = 0x180  # (RO) eight registers
IRR = 0x200  # (RO) eight registers
ESR = 0x280  # (RW) any write shows what went wrong since the last; 0 only in x2APIC mode
ESR_SEND_ILLEGAL_VECTOR = 1 << 5
ESR_RECEIVE_ILLEGAL_VECTOR = 1 << 6
ESR_ILLEGAL_REGISTER = 1 << 7
LVT_CMCI = 0x2F0
ICR_LOW = 0x300  # (RW) writing it sends; 64 bits wide in x2APIC mode
ICR_LOW_MASK = 0xCCFFF
ICR_X2APIC_RESERVED = 0xFFF32000  # bit 12, delivery status, is ignored instead
ICR_HIGH = 0x310  # (RW) bits 24-31. Not in x2APIC mode
ICR_HIGH_MASK = 0xFF000000
LVT_TIMER = 0x320
LVT_TIMER_MODE_SHIFT = 17
LVT_THERMAL = 0x330
LVT_PERFORMANCE = 0x340
LVT_LINT0 = 0x350
LVT_LINT1 = 0x360
LVT_ERROR = 0x370
TIMER_INITIAL_COUNT = 0x380  # (RW)
TIMER_CURRENT_COUNT = 0x390  # (RO)
TIMER_DIVIDE = 0x3E0  # (RW)
TIMER_DIVIDE_MASK = 0xB
SELF_IPI = 0x3F0  # (WO) bits 0-7; x2APIC mode only

# Local vector table entry (SDM figure 12-8). Not named: 0-7 vector.
LVT_DELIVERY_MODE = 7 << 8
LVT_NMI = 4 << 8
LVT_EXTINT = 7 << 8
LVT_DELIVERY_STATUS = 1 << 12  # (RO)
LVT_REMOTE_IRR = 1 << 14  # (RO)
LVT_LEVEL = 1 << 15
LVT_MASKED = 1 << 16
LVT_READ_ONLY = LVT_DELIVERY_STATUS | LVT_REMOTE_IRR
LVT_WRITABLE = {
    LVT_CMCI: 0x107FF,
    LVT_TIMER: 0x700FF,
    LVT_THERMAL: 0x107FF,
    LVT_PERFORMANCE: 0x107FF,
    LVT_LINT0: 0x1A7FF,
    LVT_LINT1: 0x1A7FF,
    LVT_ERROR: 0x100FF,
}
LVT_TIMER_WITHOUT_TSC_DEADLINE = 0x300FF

# Timer modes, bits 17-18 of the timer's entry. 3 is reserved: the timer stands still.
ONE_SHOT = 0
PERIODIC = 1
TSC_DEADLINE = 2

# Machine-specific registers
IA32_TSC = 0x10
IA32_TSC_ADJUST = 0x3B
IA32_APIC_BASE = 0x1B
APIC_BASE_BSP = 1 << 8
APIC_BASE_EXTD = 1 << 10  # x2APIC mode
APIC_BASE_EN = 1 << 11
APIC_BASE_ADDRESS_SHIFT = 12
APIC_BASE_RESET = LAPIC_BASE | APIC_BASE_EN
IA32_TSC_DEADLINE = 0x6E0
X2APIC_MSR_BASE = 0x800
X2APIC_MSR_LAST = 0x8FF
