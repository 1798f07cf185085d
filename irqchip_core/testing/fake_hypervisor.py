"""A VM and vCPUs that execute nothing: they remember what a chip does to them."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Self

from irqchip_core.clock import Clock, MonotonicClock
from irqchip_core.hypervisor.exits import Exit, InterruptedExit, MsrExit
from irqchip_core.hypervisor.registers import CpuidEntry, Regs, Sregs
from irqchip_core.x86.lapic.registers import IA32_APIC_BASE, IA32_TSC

APIC_BASE_RESET = 0xFEE00900


class FakeVcpu:
    """Implements `irqchip_core.hypervisor.vcpu.VcpuX86_64`. Attributes are set and looked at by the test.

    Attributes:
        ready: Whether an external interrupt can be injected.
        injected: Vectors injected, in order.
        nmis: How many NMIs were injected.
        nmi_waits: One of them has not been delivered; `run` delivers it.
        in_nmi_handler: NMIs are blocked.
        inits: How many INITs it took.
        window_requested: Whether an exit is requested as soon as `ready`.
        kicks: How often the vCPU was kicked.
        exits: What `run` returns, first to last; then it waits for a kick.
        refused_msrs: MSRs whose accesses `perform_msr` refuses.
        msr: The answer to the last MSR exit: its value, or None for #GP.
    """

    def __init__(self, vcpu_id: int = 0) -> None:
        self._id = vcpu_id
        self.ready = True
        self.injected: list[int] = []
        self.nmis = 0
        self.nmi_waits = False
        self.in_nmi_handler = False
        self.inits = 0
        self.window_requested = False
        self.kicks = 0
        self.exits: list[Exit] = []
        self.msr: int | None = None
        self.cr8 = 0
        self.apic_base = APIC_BASE_RESET & ~0x100 | (0x100 if vcpu_id == 0 else 0)
        self.tsc_value = 0
        self.refused_msrs: set[int] = set()
        self._kicked = threading.Event()
        self._regs = Regs()
        self._sregs = Sregs(apic_base=self.apic_base)

    @property
    def id(self) -> int:
        return self._id

    def run(self) -> Exit:
        self.nmi_waits = self.nmi_waits and self.in_nmi_handler
        if self.exits:
            return self.exits.pop(0)
        self._kicked.wait()
        self._kicked.clear()
        return InterruptedExit()

    def complete_io(self) -> Exit:
        return InterruptedExit()

    def kick(self) -> None:
        self.kicks += 1
        self._kicked.set()

    def ready_for_interrupt(self) -> bool:
        return self.ready

    def interrupt(self, vector: int) -> None:
        assert self.ready, "a chip injects only when the vCPU is ready"
        self.injected.append(vector)
        self.ready = False

    def inject_nmi(self) -> None:
        self.nmis += 1
        self.nmi_waits = True

    def nmi_pending(self) -> bool:
        return self.nmi_waits

    def nmi_blocked(self) -> bool:
        return self.in_nmi_handler

    def take_init(self) -> None:
        self.inits += 1

    def set_interrupt_window_requested(self, requested: bool) -> None:
        self.window_requested = requested

    def tsc(self) -> int:
        return self.tsc_value

    def complete_msr(self, value: int = 0, *, fault: bool = False) -> None:
        self.msr = None if fault else value

    def perform_msr(self, access: MsrExit) -> bool:
        if access.index in self.refused_msrs:
            return False
        if access.index == IA32_TSC:
            self.tsc_value = access.value if access.is_write else self.tsc_value
        elif access.index == IA32_APIC_BASE and access.is_write:
            self.apic_base = self._sregs.apic_base = access.value
        self.msr = 0 if access.is_write else {IA32_TSC: self.tsc_value, IA32_APIC_BASE: self.apic_base}[access.index]
        return True

    def get_regs(self) -> Regs:
        return self._regs

    def set_regs(self, regs: Regs) -> None:
        self._regs = regs

    def get_sregs(self) -> Sregs:
        return self._sregs

    def set_sregs(self, sregs: Sregs) -> None:
        self._sregs = sregs
        self.apic_base = sregs.apic_base

    def set_cpuid(self, entries: Sequence[CpuidEntry]) -> None:
        pass

    def close(self) -> None:
        pass


class FakeVm:
    """Implements `irqchip_core.hypervisor.vcpu.Vm`.

    Attributes:
        msrs: The MSRs whose accesses are reported as exits.
        clock: The time of its chip.
    """

    hypervisor = "fake"

    def __init__(self, *, tsc_hz: int = 1_000_000_000, can_exit_on_msrs: bool = True) -> None:
        self.tsc_hz = tsc_hz
        self.can_exit_on_msrs = can_exit_on_msrs
        self.msrs: list[range] = []
        self.clock: Clock = MonotonicClock()

    def map_memory(self, guest_address: int, size: int) -> memoryview:
        return memoryview(bytearray(size))

    def exit_on_msrs(self, msrs: Iterable[range]) -> None:
        self.msrs = list(msrs)

    def create_vcpu(self, vcpu_id: int) -> FakeVcpu:
        return FakeVcpu(vcpu_id)

    def supported_cpuid(self) -> list[CpuidEntry]:
        return []

    def close(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def read_msr(index: int) -> MsrExit:
    """The guest executes RDMSR."""
    return MsrExit(index, 0, is_write=False)


def write_msr(index: int, value: int) -> MsrExit:
    """The guest executes WRMSR."""
    return MsrExit(index, value, is_write=True)
