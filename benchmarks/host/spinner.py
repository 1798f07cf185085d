"""A guest that does nothing but count interrupts of one vector, on a thread of its own.

It is in long mode with the tables of the conformance kit's guest; RDI is at the local APIC's page.
"""

from __future__ import annotations

import ctypes
import time
from typing import Self

from irqchip_core.allocator import SystemAllocator
from irqchip_core.bus import Bus
from irqchip_core.events import IrqEdgeEvent, IrqEventSource, PlatformDeviceId
from irqchip_core.hypervisor.registers import Regs
from irqchip_core.hypervisor.vcpu import VcpuX86_64, Vm
from irqchip_core.irq_loop import IrqLoop
from irqchip_core.routes import IOAPIC_PINS, IrqRoute
from irqchip_core.testing import agent
from irqchip_core.vcpu_loop import VcpuThread, stop_vcpus
from irqchip_core.x86.chip import IrqChipX86_64
from irqchip_core.x86.cpuid import vcpu_cpuid
from irqchip_core.x86.state import LAPIC_BASE

VECTOR = 0x55
COUNTER, READY = 0x20000, 0x20008
HANDLER = agent.ENTRY + 0x80
MSI_ADDRESS = 0xFEE00000

CODE = bytes.fromhex(
    "C7 87 F0 00 00 00 FF 01 00 00"  # mov dword ptr [rdi + SPIV], enabled, vector 0xFF
    "FF 04 25 08 00 02 00"  # inc dword ptr [READY]
    "FB"  # sti
    "F3 90 EB FC"  # 1: pause; jmp 1b
)
HANDLER_CODE = bytes.fromhex(
    "FF 04 25 00 00 02 00"  # inc dword ptr [COUNTER]
    "C7 87 B0 00 00 00 00 00 00 00"  # mov dword ptr [rdi + EOI], 0
    "48 CF"  # iretq
)


class Spinner:
    """The machine with that guest; `event` is an MSI of that vector. A context manager.

    Args:
        vm: A VM without memory and vCPUs, with `chip`.
        chip: Its chip.

    Attributes:
        counter: Address, in this process, of the 32 bits in which the guest counts.
    """

    def __init__(self, vm: Vm, chip: IrqChipX86_64) -> None:
        memory = vm.map_memory(0, agent.MEMORY)
        agent.load(memory)
        memory[agent.ENTRY :][: len(CODE)] = CODE
        memory[HANDLER:][: len(HANDLER_CODE)] = HANDLER_CODE
        stub = agent.STUBS + agent.STUB_SIZE * VECTOR
        memory[stub : stub + 5] = b"\xe9" + (HANDLER - stub - 5).to_bytes(4, "little", signed=True)  # jmp
        self.counter = ctypes.addressof(ctypes.c_uint32.from_buffer(memory, COUNTER))
        self._ready = memory[READY : READY + 4]
        self.event = IrqEdgeEvent()
        chip.register_edge_irq_event(IOAPIC_PINS, self.event, IrqEventSource(PlatformDeviceId.SERIAL, 0, "benchmark"))
        chip.route_irq(IrqRoute.msi(IOAPIC_PINS, MSI_ADDRESS, VECTOR))
        io_bus, mmio_bus = Bus("I/O"), Bus("MMIO")
        chip.finalize_devices(SystemAllocator(), io_bus, mmio_bus)

        def prepare(vcpu: VcpuX86_64) -> None:
            vcpu.set_cpuid(vcpu_cpuid(vm.supported_cpuid(), chip, 0, vcpu_count=1))
            agent.enter(vcpu)
            vcpu.set_regs(Regs(rip=agent.ENTRY, rsp=agent.STACKS + agent.STACK_SIZE, rdi=LAPIC_BASE))

        self._thread = VcpuThread(vm, chip, 0, io_bus, mmio_bus, prepare)
        self._loop = IrqLoop(chip)

    def __enter__(self) -> Self:
        self._loop.start()
        self._thread.start()
        deadline = time.monotonic() + 10
        while not any(self._ready):
            if time.monotonic() > deadline:
                raise OSError(f"the guest does not start: {self._thread.outcome}")
            time.sleep(0.001)
        return self

    def __exit__(self, *exc_info: object) -> None:
        stop_vcpus([self._thread], 10)
        self._loop.stop()
        self.event.close()
