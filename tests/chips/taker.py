"""A machine of one vCPU whose guest (taker.S) takes every interrupt, driven step by step by a test."""

from __future__ import annotations

import enum
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from irqchip_core.allocator import SystemAllocator
from irqchip_core.bus import Bus
from irqchip_core.chip import VcpuRunState
from irqchip_core.exits import Exit, HltExit, InterruptedExit, IoapicEoiExit, IoExit, IrqWindowExit, MsrExit
from irqchip_core.irq_loop import IrqLoop
from irqchip_core.routes import IrqRoute
from irqchip_core.testing.agent import CODE_SELECTOR, enter_long_mode
from irqchip_core.vcpu import Vm
from irqchip_core.x86.chip import IrqChipX86_64
from irqchip_core.x86.cpuid import vcpu_cpuid
from irqchip_core.x86.registers import Regs
from irqchip_core.x86.state import IoapicState, PicSelect, PicState

LOAD_ADDRESS, STUBS, STUB_SIZE = 0x1000, 0x1100, 16
"""Of taker.S."""
STACK = 0x8000
PML4, PDPT, PAGE_DIRECTORY, GDT, IDT = 0x9000, 0xA000, 0xB000, 0xC000, 0xD000
"""Where the host puts the processor's tables (Intel SDM vol. 3, 5.5, 3.5.1 and 7.14.1)."""
MEMORY = 0x10000
TAKEN, READY = 0x10, 0x11
"""Ports of taker.S."""
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


class Eoi(enum.IntFlag):
    """What the guest ends an interrupt with."""

    NONE = 0
    LAPIC = 1
    PRIMARY = 2
    SECONDARY = 4


class Taker:
    """The guest, at the point where it has enabled interrupts and waits.

    Args:
        vm: A VM without memory.
        chip: Its chip.
        vcpu_id: Which vCPU runs the guest; number 0 comes first.
    """

    def __init__(self, vm: Vm, chip: IrqChipX86_64, vcpu_id: int = 0) -> None:
        self.vm = vm
        self.chip = chip
        if vcpu_id == 0:
            load(vm.map_memory(0, MEMORY))
        self.vcpu = vm.create_vcpu(vcpu_id)
        chip.add_vcpu(vcpu_id, self.vcpu)
        self.vcpu.set_cpuid(vcpu_cpuid(vm.supported_cpuid(), chip, vcpu_id, vcpu_count=2))
        enter_long_mode(self.vcpu, pml4=PML4, gdt=GDT, idt=IDT)
        self.vcpu.set_regs(Regs(rip=LOAD_ADDRESS, rsp=STACK - 0x1000 * vcpu_id))
        self.eoi = Eoi.LAPIC
        self.io_bus, self.mmio_bus = Bus("I/O"), Bus("MMIO")
        chip.finalize_devices(SystemAllocator(), self.io_bus, self.mmio_bus)
        for route in MARKER_ROUTES:
            chip.route_irq(route)
        self._loop = IrqLoop(chip)
        self._loop.start()

    @classmethod
    @contextmanager
    def ready(cls, vm: Vm, chip: IrqChipX86_64) -> Iterator[Self]:
        """The guest on vCPU 0, ready, with all lines masked in PICs and IOAPIC."""
        with cls(vm, chip) as taker:
            program_pics(chip, primary_mask=0xFF)
            program_ioapic(chip, {})
            taker.start()
            yield taker

    def close(self) -> None:
        self._loop.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def start(self) -> None:
        """Run until the guest is ready for interrupts."""
        exit_ = self._until_io(PATIENCE)
        assert exit_ is not None
        assert exit_.port == READY

    def settle(self) -> None:
        """Wait until all events signalled before have reached the chip."""
        assert self._loop.flush(PATIENCE)

    def take(self, eoi: Eoi | None = None) -> int:
        """Run until the guest takes an interrupt, and let it end that with `eoi`; the vector."""
        vector = self.try_take(eoi, PATIENCE)
        assert vector is not None, "no interrupt came"
        return vector

    def try_take(self, eoi: Eoi | None, patience: float) -> int | None:
        """As `take`; None if `patience` seconds pass without an interrupt."""
        vector: int | None = None
        while (exit_ := self._until_io(patience)) is not None:
            assert exit_.port == TAKEN
            if exit_.is_write:
                vector = exit_.data[0]
            else:
                exit_.data[0] = self.eoi if eoi is None else eoi
                return vector
        return None

    def _until_io(self, patience: float) -> IoExit | None:
        """Run as a VMM does until the guest uses its own ports; None if `patience` seconds pass."""
        late = threading.Event()  # Timer.finished is set only after the kick has had its effect
        timer = threading.Timer(patience, self._interrupt, (late,))
        timer.start()
        try:
            while True:
                self.chip.inject_interrupts(self.vcpu)
                if self.chip.wait_until_runnable(self.vcpu) is VcpuRunState.INTERRUPTED:
                    return None
                exit_ = self.vcpu.run()
                if isinstance(exit_, IoExit) and exit_.port in (TAKEN, READY):
                    return exit_
                if isinstance(exit_, InterruptedExit) and late.is_set():
                    return None
                self._serve(exit_)
        finally:
            timer.cancel()
            timer.join()

    def _interrupt(self, late: threading.Event) -> None:
        late.set()
        self.vcpu.kick()
        self.chip.kick_halted_vcpus()

    def _serve(self, exit_: Exit) -> None:
        match exit_:
            case IoExit(is_write=True):
                self.io_bus.write(exit_.port, exit_.size, int.from_bytes(exit_.data, "little"))
            case IoExit():
                value = self.io_bus.read(exit_.port, exit_.size) or 0
                exit_.data[:] = value.to_bytes(exit_.size, "little")
            case MsrExit():
                assert self.chip.handle_msr(self.vcpu, exit_), exit_
            case HltExit():
                self.chip.halted(self.vcpu.id)
            case IoapicEoiExit():
                self.chip.broadcast_eoi(exit_.vector)
            case InterruptedExit() | IrqWindowExit():
                pass
            case _:
                raise AssertionError(f"{exit_} at RIP {self.vcpu.get_regs().rip:#x}")

    def take_until_marker(self, eoi: Eoi | None = None, *, marker: int = MARKER) -> list[int]:
        """Send the marker and take interrupts until it comes; the vectors before it.

        What should have come before, and is not in the result, did not come.
        """
        self.settle()
        self.chip.service_irq(MARKER_GSI if marker == MARKER else HIGH_MARKER_GSI, True)
        taken = []
        while (vector := self.take(eoi)) != marker:
            taken.append(vector)
        return taken

    def ends_at_delivery(self) -> bool:
        """Whether this chip's local APIC ends an interrupt when it delivers it, without an EOI.

        kvm_pvm's does (seen on Linux 6.18): ISR stays empty, so nothing blocks lower priorities, and the IOAPIC
        hears of the end of a level-triggered interrupt too early. kvm_intel's and kvm_amd's do what the SDM says.
        """
        self.chip.service_irq(MARKER_GSI, True)
        assert self.take(Eoi.LAPIC) == MARKER
        isr = self.chip.get_lapic_state(self.vcpu.id).regs[0x10:0x18]
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
