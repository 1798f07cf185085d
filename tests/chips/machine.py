"""The conformance kit's machine for tests of one vCPU; they program the controllers by state."""

from __future__ import annotations

from irqchip_core.hypervisor.vcpu import VcpuX86_64, Vm
from irqchip_core.routes import IrqRoute
from irqchip_core.testing.bench import Bench
from irqchip_core.testing.guest_cpu import Eoi
from irqchip_core.x86.chip import IrqChipX86_64
from irqchip_core.x86.state import IoapicState, PicSelect, PicState

MARKER = 0x21
"""A vector of the lowest priority class that tests may use: taken last of all that is pending."""
HIGH_MARKER = 0xF1
"""One of the highest, taken even while others are in service."""
MARKER_GSI, HIGH_MARKER_GSI = 4000, 4001
MARKER_ROUTES = [
    IrqRoute.msi(MARKER_GSI, 0xFEE00000, MARKER),
    IrqRoute.msi(HIGH_MARKER_GSI, 0xFEE00000, HIGH_MARKER),
]
PATIENCE = 10.0
"""Seconds after which an interrupt that should come is given up."""


class Machine(Bench):
    """A guest on vCPU 0 in x2APIC mode, with all lines masked in PICs and IOAPIC.

    Args:
        vm: A VM without memory and vCPUs.
        chip: Its chip.
        firmware: As of `Bench`.
    """

    def __init__(self, vm: Vm, chip: IrqChipX86_64, *, firmware: bool = True) -> None:
        super().__init__(vm, chip, patience=PATIENCE, firmware=firmware)
        if firmware:
            assert self.cpu.enter_x2apic()
        for route in MARKER_ROUTES:
            chip.route_irq(route)

    @property
    def vcpu(self) -> VcpuX86_64:
        return self.cpu.vcpu

    def take(self, eoi: Eoi = Eoi.LAPIC) -> int:
        """Halt until an interrupt comes, and let the guest end it with `eoi`; the vector."""
        vector = self.cpu.take()
        assert vector is not None, "no interrupt came"
        self.cpu.end(eoi)
        return vector

    def take_until_marker(self, eoi: Eoi = Eoi.LAPIC, *, marker: int = MARKER) -> list[int]:
        """Send the marker and take interrupts until it comes; the vectors before it.

        What should have come before, and is not in the result, did not come.
        """
        self.settle()
        self.chip.service_irq(MARKER_GSI if marker == MARKER else HIGH_MARKER_GSI, True)
        taken = []
        while (vector := self.take(eoi)) != marker:
            taken.append(vector)
        return taken

    def sleep(self) -> None:
        """Let the guest halt, and come out by a kick."""
        assert self.cpu.take(patience=0.05) is None


def ioapic_entry(vector: int, *, level: bool = False, masked: bool = False, active_low: bool = False) -> int:
    """A redirection entry to APIC id 0, fixed and physical (82093AA data sheet, 3.2.4)."""
    return vector | active_low << 13 | level << 15 | masked << 16


def program_ioapic(chip: IrqChipX86_64, entries: dict[int, int]) -> None:
    """Give these pins these redirection entries and mask all others."""
    state = chip.get_ioapic_state()
    table = [entries.get(pin, 1 << 16) for pin in range(24)]
    chip.set_ioapic_state(
        IoapicState(state.base_address, 0, state.ioapicid, state.current_interrupt_level_bitmap, table)
    )


def program_pics(chip: IrqChipX86_64, *, primary_mask: int, secondary_mask: int = 0xFF) -> None:
    """Initialize the PICs with vector bases 0x30 and 0x38 and these mask registers."""
    for select, base, mask, elcr_mask in (
        (PicSelect.PRIMARY, 0x30, primary_mask, 0xF8),
        (PicSelect.SECONDARY, 0x38, secondary_mask, 0xDE),
    ):
        chip.set_pic_state(select, PicState(irq_base=base, imr=mask, use_4_byte_icw=True, elcr_mask=elcr_mask))
