"""A machine of one vCPU whose guest (taker.S) takes every interrupt, driven step by step by a test."""

from __future__ import annotations

import enum
import struct
import threading
from pathlib import Path

from irqchip_core.chip import IrqChip
from irqchip_core.exits import InterruptedExit, IoExit
from irqchip_core.x86.chip import IrqChipX86_64
from irqchip_core.x86.registers import DescriptorTable, Regs, Segment
from irqchip_core.x86.state import IoapicState, PicSelect, PicState
from irqchip_kvm import Kvm, KvmVcpu, KvmVm

LOAD_ADDRESS, STUBS, STUB_SIZE = 0x1000, 0x1100, 16
"""Of taker.S."""
STACK = 0x8000
PML4, PDPT, PAGE_DIRECTORY, GDT, IDT = 0x9000, 0xA000, 0xB000, 0xC000, 0xD000
"""Where the host puts the processor's tables (Intel SDM vol. 3, 5.5, 3.5.1 and 7.14.1)."""
MEMORY = 0x10000
CODE_SELECTOR, DATA_SELECTOR = 0x08, 0x10
TAKEN, READY = 0x10, 0x11
"""Ports of taker.S."""
MARKER = 0x21
"""A vector of the lowest priority class that tests may use: taken last of all that is pending."""
HIGH_MARKER = 0xF1
"""One of the highest, taken even while others are in service."""
PATIENCE = 10.0
"""Seconds after which an interrupt that should come is given up."""


def load(memory: memoryview) -> None:
    """Put the guest and the tables it needs into its memory."""
    code = (Path(__file__).parent / "taker.bin").read_bytes()
    memory[LOAD_ADDRESS : LOAD_ADDRESS + len(code)] = code
    gates = [STUBS + STUB_SIZE * vector | CODE_SELECTOR << 16 | 0x8E << 40 for vector in range(256)]
    for address, quads in (
        (PML4, [PDPT | 3]),
        (PDPT, [PAGE_DIRECTORY | 3]),
        (PAGE_DIRECTORY, [0x83]),  # the first 2 MiB, one page
        (GDT, [0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF]),
        (IDT, [quad for gate in gates for quad in (gate, 0)]),
    ):
        memory[address : address + 8 * len(quads)] = struct.pack(f"<{len(quads)}Q", *quads)


def enter_long_mode(vcpu: KvmVcpu) -> None:
    """Set the processor up as the guest expects it."""
    sregs = vcpu.get_sregs()
    sregs.cs = Segment(limit=0xFFFFFFFF, selector=CODE_SELECTOR, type=11, l=1, g=1)
    data = Segment(limit=0xFFFFFFFF, selector=DATA_SELECTOR, db=1, g=1)
    sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data
    sregs.gdt = DescriptorTable(GDT, 3 * 8 - 1)
    sregs.idt = DescriptorTable(IDT, 256 * 16 - 1)
    sregs.cr0 = 1 << 31 | 1 << 5 | 1 << 4 | 1  # PG, NE, ET, PE
    sregs.cr3 = PML4
    sregs.cr4 = 1 << 5  # PAE
    sregs.efer = 1 << 10 | 1 << 8  # LMA, LME
    vcpu.set_sregs(sregs)


class Eoi(enum.IntFlag):
    """What the guest ends an interrupt with."""

    NONE = 0
    LAPIC = 1
    PRIMARY = 2
    SECONDARY = 4


class Taker:
    """The guest, at the point where it has enabled interrupts and waits."""

    def __init__(self, vm: KvmVm, chip: IrqChip, vcpu_id: int = 0) -> None:
        self.vm = vm
        self.chip = chip
        if vcpu_id == 0:
            load(vm.map_memory(0, MEMORY))
        self.vcpu: KvmVcpu = vm.create_vcpu(vcpu_id)
        chip.add_vcpu(vcpu_id, self.vcpu)
        self.vcpu.set_cpuid(vm.supported_cpuid())
        enter_long_mode(self.vcpu)
        self.vcpu.set_regs(Regs(rip=LOAD_ADDRESS, rsp=STACK - 0x1000 * vcpu_id))
        self.eoi = Eoi.LAPIC

    def start(self) -> None:
        """Run until the guest is ready for interrupts."""
        exit_ = self.vcpu.run()
        assert isinstance(exit_, IoExit), exit_
        assert exit_.port == READY

    def take(self, eoi: Eoi | None = None) -> int:
        """Run until the guest takes an interrupt, and let it end that with `eoi`; the vector."""
        vector = self.try_take(eoi, PATIENCE)
        assert vector is not None, "no interrupt came"
        return vector

    def try_take(self, eoi: Eoi | None, patience: float) -> int | None:
        """As `take`; None if `patience` seconds pass without an interrupt."""
        timer = threading.Timer(patience, self.vcpu.kick)
        timer.start()
        vector: int | None = None
        try:
            while True:
                exit_ = self.vcpu.run()
                if isinstance(exit_, InterruptedExit) and not timer.is_alive():
                    return None
                if isinstance(exit_, InterruptedExit):
                    continue  # the Timer is about to end
                assert isinstance(exit_, IoExit), exit_
                assert exit_.port == TAKEN
                if exit_.is_write:
                    vector = exit_.data[0]
                else:
                    exit_.data[0] = self.eoi if eoi is None else eoi
                    return vector
        finally:
            timer.cancel()
            timer.join()

    def take_until_marker(self, eoi: Eoi | None = None, *, marker: int = MARKER) -> list[int]:
        """Send the marker and take interrupts until it comes; the vectors before it.

        What should have come before, and is not in the result, did not come.
        """
        assert self.vm.signal_msi(0xFEE00000, marker)
        taken = []
        while (vector := self.take(eoi)) != marker:
            taken.append(vector)
        return taken

    def ends_at_delivery(self) -> bool:
        """Whether this KVM's local APIC ends an interrupt when it delivers it, without an EOI.

        kvm_pvm does (seen on Linux 6.18): ISR stays empty, so nothing blocks lower priorities, and the IOAPIC
        hears of the end of a level-triggered interrupt too early. kvm_intel and kvm_amd do what the SDM says.
        """
        assert self.vm.signal_msi(0xFEE00000, MARKER)
        assert self.take(Eoi.LAPIC) == MARKER
        isr = self.vcpu.get_lapic_state().regs[0x10:0x18]
        assert self.take_until_marker() == []
        return not any(isr)


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


def open_vm() -> KvmVm:
    """An empty VM."""
    with Kvm() as kvm:
        return kvm.create_vm()
