"""Registers and bits of the local APIC: a map, no behavior (Intel SDM vol. 3, chapter 12).

Offsets are those of the xAPIC register page; the x2APIC MSR of offset n is 0x800 + n / 16. Each register's bits stand
beneath it, further to the right. (RO), (RW) and (WO) are what software can do with it.
"""

from __future__ import annotations

from irqchip_core.x86.state import LAPIC_BASE

# fmt: off

# Register page (SDM table 12-1)
ID                                =     0x020       # (RO) all 32 bits in x2APIC mode, else:
XAPIC_ID_MASK                     =         0xFF    #      the low bits of the id, the xAPIC id
XAPIC_ID_SHIFT                    =         24      #      bits 24-31: where the register has it
VERSION                           =     0x030       # (RO)
VERSION_INTEGRATED                =         0x14    #      bits 0-7: an APIC that is not an 82489DX
VERSION_MAXIMUM_LVT_SHIFT         =         16      #      bits 16-23: entries of the local vector table, less 1
VERSION_EOI_BROADCAST_SUPPRESSION =         1 << 24 #      SPIV_SUPPRESS_EOI_BROADCAST can be set
TPR                               =     0x080       # (RW) task priority; APR and PPR are laid out alike
PRIORITY_SUBCLASS                 =         0x0F    #      bits 0-3
PRIORITY_CLASS                    =         0xF0    #      bits 4-7, as of a vector
APR                               =     0x090       # (RO) arbitration priority. Not in x2APIC mode
PPR                               =     0x0A0       # (RO) processor priority
EOI                               =     0x0B0       # (WO) ends the interrupt of highest priority in service
RRD                               =     0x0C0       # (RO) remote read, which nothing supports: 0. Not in x2APIC mode
LDR                               =     0x0D0       # (RW) logical destination. (RO) in x2APIC mode: follows from ID
LDR_MASK                          =         0xFF << 24  #  bits 24-31: logical id
LDR_SHIFT                         =         24
DFR                               =     0x0E0       # (RW) destination format. Not in x2APIC mode
DFR_ONES                          =         0x0FFFFFFF  #  reserved bits, which read 1
DFR_SHIFT                         =         28      #      bits 28-31: model of logical destinations
DFR_FLAT                          =         0xF     #          one bit of the logical id for each APIC
DFR_CLUSTER                       =         0x0     #          four bits for the cluster, four for the APICs in it
SPIV                              =     0x0F0       # (RW) spurious-interrupt vector
SPIV_VECTOR                       =         0xFF    #      bits 0-7
SPIV_SOFTWARE_ENABLE              =         1 << 8  #      the APIC accepts fixed interrupts
SPIV_FOCUS_CHECKING               =         1 << 9  #      only stored
SPIV_SUPPRESS_EOI_BROADCAST       =         1 << 12 #      level-triggered interrupts are ended in the IOAPIC alone
SPIV_MASK                         =         SPIV_VECTOR | SPIV_SOFTWARE_ENABLE | SPIV_FOCUS_CHECKING
SPIV_RESET                        =         0xFF
ISR                               =     0x100       # (RO) in service: eight registers, bit n of all is vector n
TMR                               =     0x180       # (RO) trigger mode, likewise: 1 for level
IRR                               =     0x200       # (RO) interrupt request, likewise
ESR                               =     0x280       # (RW) any write shows the errors since the last; x2APIC: only 0
ESR_MASK                          =         0xFF
ESR_SEND_ILLEGAL_VECTOR           =         1 << 5  #      in a command of this APIC
ESR_RECEIVE_ILLEGAL_VECTOR        =         1 << 6  #      in a message, or in the local vector table
ESR_ILLEGAL_REGISTER              =         1 << 7  #      an access to an offset without a register
LVT_CMCI                          =     0x2F0       # (RW) entry of the local vector table, as LVT_TIMER to LVT_ERROR
ICR_LOW                           =     0x300       # (RW) writing it sends; 64 bits in x2APIC mode. Fields: `msi`
ICR_LOW_MASK                      =         0xCCFFF #      bits 0-11, 14-15 and 18-19 are stored
ICR_X2APIC_RESERVED               =         0xFFF32000  #  all others, but bit 12: delivery status is ignored
ICR_HIGH                          =     0x310       # (RW) not in x2APIC mode
ICR_HIGH_MASK                     =         0xFF << 24  #  bits 24-31: destination
LVT_TIMER                         =     0x320       # (RW)
LVT_THERMAL                       =     0x330       # (RW)
LVT_PERFORMANCE                   =     0x340       # (RW)
LVT_LINT0                         =     0x350       # (RW)
LVT_LINT1                         =     0x360       # (RW)
LVT_ERROR                         =     0x370       # (RW) the last entry; figure 12-8 has the fields of all
LVT_VECTOR                        =         0xFF    #      bits 0-7
LVT_DELIVERY_MODE                 =         7 << 8  #      not of timer and error, which are always fixed
LVT_DELIVERY_MODE_SHIFT           =         8
LVT_NMI                           =         4 << 8  #          delivery mode NMI
LVT_EXTINT                        =         7 << 8  #          delivery mode ExtINT
LVT_DELIVERY_STATUS               =         1 << 12 # (RO)
LVT_POLARITY_LOW                  =         1 << 13 #      LINT0 and LINT1: only stored
LVT_REMOTE_IRR                    =         1 << 14 # (RO) LINT0 and LINT1: a level interrupt waits for its EOI
LVT_LEVEL                         =         1 << 15 #      LINT0 and LINT1: trigger mode
LVT_MASKED                        =         1 << 16 #      no interrupt
LVT_TIMER_PERIODIC                =         1 << 17 #      timer: the low bit of its mode
LVT_TIMER_TSC_DEADLINE            =         1 << 18 #      timer: the high bit of its mode
LVT_TIMER_MODE_SHIFT              =         17      #      timer: bits 17-18, its mode
ONE_SHOT                          =         0       #          count down once
PERIODIC                          =         1       #          count down again and again
TSC_DEADLINE                      =         2       #          expire at a time; 3 is reserved: the timer is stopped
TIMER_INITIAL_COUNT               =     0x380       # (RW)
TIMER_CURRENT_COUNT               =     0x390       # (RO)
TIMER_DIVIDE                      =     0x3E0       # (RW)
TIMER_DIVIDE_MASK                 =         0xB     #      bits 0, 1 and 3
SELF_IPI                          =     0x3F0       # (WO) x2APIC mode only
SELF_IPI_VECTOR                   =         0xFF    #      bits 0-7

# Machine-specific registers
IA32_TSC                          =     0x10        # (RW) time-stamp counter
IA32_APIC_BASE                    =     0x1B        # (RW)
APIC_BASE_BSP                     =         1 << 8  #      boot processor
APIC_BASE_EXTD                    =         1 << 10 #      x2APIC mode
APIC_BASE_EN                      =         1 << 11 #      global enable
APIC_BASE_ADDRESS_SHIFT           =         12      #      from bit 12: number of the register page
APIC_BASE_RESET                   =         LAPIC_BASE | APIC_BASE_EN
IA32_TSC_ADJUST                   =     0x3B        # (RW)
IA32_TSC_DEADLINE                 =     0x6E0       # (RW)
X2APIC_MSR_BASE                   =     0x800       # the registers above in x2APIC mode
X2APIC_MSR_LAST                   =     0x8FF

# fmt: on

LVT_READ_ONLY = LVT_DELIVERY_STATUS | LVT_REMOTE_IRR
_LVT_ANY = LVT_VECTOR | LVT_MASKED
_LVT_LINT = _LVT_ANY | LVT_DELIVERY_MODE | LVT_POLARITY_LOW | LVT_LEVEL
LVT_WRITABLE = {
    LVT_CMCI: _LVT_ANY | LVT_DELIVERY_MODE,
    LVT_TIMER: _LVT_ANY | LVT_TIMER_PERIODIC | LVT_TIMER_TSC_DEADLINE,
    LVT_THERMAL: _LVT_ANY | LVT_DELIVERY_MODE,
    LVT_PERFORMANCE: _LVT_ANY | LVT_DELIVERY_MODE,
    LVT_LINT0: _LVT_LINT,
    LVT_LINT1: _LVT_LINT,
    LVT_ERROR: _LVT_ANY,
}
"""The entries of the local vector table, and their writable bits."""
LVT_TIMER_WITHOUT_TSC_DEADLINE = _LVT_ANY | LVT_TIMER_PERIODIC
