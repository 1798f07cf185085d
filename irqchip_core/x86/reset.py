"""The state of a processor after INIT, after a start-up IPI, and as the firmware of a PC leaves it."""

from __future__ import annotations

from irqchip_core.hypervisor.exits import InterruptedExit
from irqchip_core.hypervisor.registers import DescriptorTable, Regs, Segment, Sregs
from irqchip_core.hypervisor.vcpu import VcpuX86_64
from irqchip_core.x86.chip import IrqChipX86_64
from irqchip_core.x86.lapic import registers as reg

_MODES = {reg.LVT_LINT0: reg.LVT_EXTINT, reg.LVT_LINT1: reg.LVT_NMI}

CR0_ET = 1 << 4
CR0_KEPT = 3 << 29  # CD and NW survive INIT
RESET_RIP = 0xFFF0
FAMILY_6 = 0x600  # in EDX
CODE, LDT, BUSY_TSS = 11, 2, 11  # segment types


def connect_local_interrupts(chip: IrqChipX86_64, vcpu_id: int) -> None:
    """Put LINT0 in ExtINT mode and LINT1 in NMI mode, as the firmware of a PC does; the masks stay.

    The PICs are wired to LINT0 and the NMI line to LINT1 (Intel SDM vol. 3, 12.5.1). To be called when the chip has
    the vCPU, before the vCPU runs.

    Raises:
        UnknownVcpu: The chip does not have the vCPU.
    """
    state = chip.get_lapic_state(vcpu_id)
    for offset, mode in _MODES.items():
        state.regs[offset >> 4] = state.regs[offset >> 4] & ~reg.LVT_DELIVERY_MODE | mode
    chip.set_lapic_state(vcpu_id, state)


def take_init(vcpu: VcpuX86_64, apic_base: int) -> None:
    """Put the processor in its state after INIT (Intel SDM vol. 3, table 11-1). On the vCPU's thread.

    The chip keeps whether the processor then executes from the reset vector or waits for a start-up IPI.

    Args:
        vcpu: The vCPU.
        apic_base: IA32_APIC_BASE, which INIT keeps.
    """
    while not isinstance(vcpu.complete_io(), InterruptedExit):
        pass  # else the access of the last exit would be completed into the registers set here
    vcpu.take_init()
    old = vcpu.get_sregs()
    vcpu.set_sregs(
        Sregs(
            cs=Segment(base=0xFFFF0000, selector=0xF000, type=CODE),
            ldt=Segment(type=LDT, s=0),
            tr=Segment(type=BUSY_TSS, s=0),
            gdt=DescriptorTable(),
            idt=DescriptorTable(),
            cr0=old.cr0 & CR0_KEPT | CR0_ET,
            cr8=0,
            apic_base=apic_base,
        )
    )
    vcpu.set_regs(Regs(rip=RESET_RIP, rdx=FAMILY_6))


def take_startup(vcpu: VcpuX86_64, vector: int) -> None:
    """Let the processor, which is in its state after INIT, execute at `vector` << 12 (Intel SDM vol. 3, 12.6.1)."""
    sregs = vcpu.get_sregs()
    sregs.cs = Segment(base=vector << 12, selector=vector << 8, type=CODE)
    vcpu.set_sregs(sregs)
    regs = vcpu.get_regs()
    regs.rip = 0
    vcpu.set_regs(regs)
