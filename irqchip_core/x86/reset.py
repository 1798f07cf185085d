"""The state a processor starts in, beyond what its hypervisor and `vcpu_cpuid` give it."""

from __future__ import annotations

from irqchip_core.x86 import lapic_registers as reg
from irqchip_core.x86.chip import IrqChipX86_64

_MODES = {reg.LVT_LINT0: reg.LVT_EXTINT, reg.LVT_LINT1: reg.LVT_NMI}


def connect_local_interrupts(chip: IrqChipX86_64, vcpu_id: int) -> None:
    """Put LINT0 in ExtINT mode and LINT1 in NMI mode, as a PC's firmware does; the masks stay as they are.

    The PICs are wired to LINT0 and the NMI line to LINT1 (Intel SDM vol. 3, 12.5.1). To be called when the chip has
    the vCPU, before that runs.

    Raises:
        UnknownVcpu: The chip does not have the vCPU.
    """
    state = chip.get_lapic_state(vcpu_id)
    for offset, mode in _MODES.items():
        state.regs[offset >> 4] = state.regs[offset >> 4] & ~reg.LVT_DELIVERY_MODE | mode
    chip.set_lapic_state(vcpu_id, state)
