"""The machine of the conformance kit: a VM with the chip under test, guests on its vCPUs, buses and an irq loop.

What a guest must take is demanded of its vCPU (`guest_cpu`); here is what devices and firmware do.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

from irqchip_core.allocator import SystemAllocator
from irqchip_core.bus import Bus
from irqchip_core.capabilities import AnyCapability, IrqChipCap, has_capability
from irqchip_core.chip import MPState
from irqchip_core.events import IrqEdgeEvent, IrqEventIndex, IrqEventSource, IrqLevelEvent, PlatformDeviceId
from irqchip_core.hypervisor.vcpu import Vm
from irqchip_core.irq_loop import IrqLoop
from irqchip_core.routes import IrqRoute
from irqchip_core.testing import agent
from irqchip_core.testing.guest_cpu import GuestCpu
from irqchip_core.testing.verdict import Nonconforming, NotApplicable, not_claimed
from irqchip_core.x86 import msi
from irqchip_core.x86.chip import IrqChipX86_64
from irqchip_core.x86.cpuid import vcpu_cpuid
from irqchip_core.x86.state import IOAPIC_BASE, LAPIC_BASE, PicSelect

SOURCE = IrqEventSource(PlatformDeviceId.SERIAL, 0, "conformance kit")
MSI_GSI = 3000
"""GSI that `Bench.send_msi` routes as it likes."""

IOREGSEL, IOWIN = IOAPIC_BASE, IOAPIC_BASE + 0x10  # 82093AA data sheet, 3.1
IOAPIC_VERSION, FIRST_ENTRY = 0x01, 0x10

ENTRY_LOGICAL, ENTRY_LEVEL, ENTRY_MASKED = 1 << 11, 1 << 15, 1 << 16
ENTRY_REMOTE_IRR = 1 << 14

PIC_PORTS = {PicSelect.PRIMARY: 0x20, PicSelect.SECONDARY: 0xA0}
PIC_BASES = {PicSelect.PRIMARY: 0x30, PicSelect.SECONDARY: 0x38}
ICW1, ICW4_8086, ICW4_AUTO_EOI = 0x11, 0x01, 0x02  # 8259A data sheet
CASCADE = 1 << 2


class Bench:
    """A machine whose guests have local APICs enabled, PICs, if there are any, initialized, and every line masked.

    Args:
        vm: A VM without memory and vCPUs. It is closed with the machine.
        chip: Its chip, closed likewise.
        vcpus: How many vCPUs execute the guest. Those after the first need MP_STATE_GET_SET.
        patience: Seconds to wait for an interrupt that is due.
        firmware: Whether the guests enable local APICs and initialize PICs; otherwise nothing has executed yet, and
            the controllers are as the caller has left them.

    Attributes:
        cpus: The vCPUs; `cpu` is the first.
        indices: What the registration of each device's event returned.
        apics_in_chip: The local APICs are the chip's own, and not the hypervisor's.
    """

    def __init__(
        self, vm: Vm, chip: IrqChipX86_64, *, vcpus: int = 1, patience: float = 10.0, firmware: bool = True
    ) -> None:
        self.vm, self.chip, self.patience = vm, chip, patience
        self.memory = vm.map_memory(0, agent.MEMORY)
        agent.load(self.memory)
        self.io_bus, self.mmio_bus = Bus("I/O"), Bus("MMIO")
        self.allocator = SystemAllocator()
        self.loop = IrqLoop(chip)
        self.cpus: list[GuestCpu] = []
        self.indices: list[IrqEventIndex | None] = []
        self._events: list[IrqEdgeEvent | IrqLevelEvent] = []
        for vcpu_id in range(vcpus):
            vcpu = vm.create_vcpu(vcpu_id)
            chip.add_vcpu(vcpu_id, vcpu)
            vcpu.set_cpuid(vcpu_cpuid(vm.supported_cpuid(), chip, vcpu_id, vcpu_count=vcpus))
            agent.enter(vcpu)
            self.cpus.append(GuestCpu(self, vcpu))
        chip.finalize_devices(self.allocator, self.io_bus, self.mmio_bus)
        self.apics_in_chip = any(base == LAPIC_BASE for base, _, _ in self.mmio_bus.devices())
        self.ioapic_in_chip = any(base == IOAPIC_BASE for base, _, _ in self.mmio_bus.devices())
        self.loop.start()
        for cpu in self.cpus:
            if cpu.id:
                chip.set_mp_state(cpu.id, MPState.RUNNABLE)
            if firmware:
                cpu.enable_apic()
        if firmware and self.has(IrqChipCap.PIC):
            self.init_pics()

    @property
    def cpu(self) -> GuestCpu:
        return self.cpus[0]

    def close(self) -> None:
        self.loop.stop()
        for event in self._events:
            event.close()
        self.chip.close()
        self.vm.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def has(self, capability: AnyCapability) -> bool:
        """Whether the chip has it."""
        return has_capability(self.chip, capability)

    def need(self, *capabilities: AnyCapability) -> None:
        """Raise `NotApplicable` if the chip lacks one of them."""
        for capability in capabilities:
            if not self.has(capability):
                raise not_claimed(capability)

    def settle(self) -> None:
        """Wait until the chip has served all events signalled before."""
        if not self.loop.flush(self.patience):
            raise Nonconforming("the irq loop serves events and comes to rest, but it does not")
        if self.loop.failed:
            raise Nonconforming("service_irq_event serves a readable token, but it raised an error (see the log)")

    # Devices

    def edge(self, gsi: int) -> IrqEdgeEvent:
        """A device with an edge event on `gsi`."""
        event = IrqEdgeEvent()
        self.keep(event)
        self.indices.append(self.chip.register_edge_irq_event(gsi, event, SOURCE))
        return event

    def level(self, gsi: int) -> IrqLevelEvent:
        """A device with a level event on `gsi`."""
        event = IrqLevelEvent()
        self.keep(event)
        self.indices.append(self.chip.register_level_irq_event(gsi, event, SOURCE))
        return event

    def keep(self, *events: IrqEdgeEvent | IrqLevelEvent) -> None:
        """Close these with the machine."""
        self._events += events

    def serves_events(self) -> bool:
        """Whether user space serves the events of this chip, rather than the kernel."""
        with IrqEdgeEvent() as event:
            index: IrqEventIndex | None = self.chip.register_edge_irq_event(23, event, SOURCE)
            self.chip.unregister_edge_irq_event(23, event)
        return index is not None

    def pulse(self, gsi: int) -> None:
        """Raise and lower a line."""
        self.chip.service_irq(gsi, True)
        self.chip.service_irq(gsi, False)

    def send_msi(
        self,
        vector: int,
        *,
        mode: int = msi.FIXED,
        destination: int = 0,
        logical: bool = False,
        hint: bool = False,
        level: bool = False,
    ) -> None:
        """Write an MSI (Intel SDM vol. 3, 12.11), by a route made for it."""
        message = msi.Message(
            vector,
            mode,
            msi.BROADCAST if destination == msi.XAPIC_BROADCAST else destination,
            int(logical),
            trigger_mode=int(level),
            redirection_hint=int(hint),
        )
        self.write_msi(*msi.encode_msi(message))

    def write_msi(self, address: int, data: int) -> None:
        """Write any message."""
        self.need(IrqChipCap.MSI)
        self.chip.route_irq(IrqRoute.msi(MSI_GSI, address, data))
        self.chip.service_irq(MSI_GSI, True)

    def need_on_bus(self, port: int, what: str) -> None:
        """Raise `NotApplicable` if the chip has put nothing at an I/O port."""
        if not any(base <= port < base + length for base, length, _ in self.io_bus.devices()):
            raise NotApplicable(f"needs {what} on the I/O bus; those of a hypervisor are left as they are")

    # Firmware

    def connect(self, gsi: int, vector: int) -> None:
        """Let each edge of a GSI interrupt vCPU 0, by its pin of the IOAPIC or, where there is none, by a message."""
        if self.has(IrqChipCap.IOAPIC):
            self.pin(gsi, vector)
        else:
            self.need(IrqChipCap.MSI)
            self.chip.route_irq(IrqRoute.msi(gsi, msi.MSI_ADDRESS_BASE, vector))

    def ioapic_write(self, register: int, value: int) -> None:
        """Let the guest write a register of the IOAPIC."""
        self.need(IrqChipCap.IOAPIC)
        self.cpu.store(IOREGSEL, register)
        self.cpu.store(IOWIN, value)

    def ioapic_read(self, register: int) -> int:
        """Let the guest read one."""
        self.need(IrqChipCap.IOAPIC)
        self.cpu.store(IOREGSEL, register)
        return self.cpu.load(IOWIN)

    def pin(
        self,
        pin: int,
        vector: int,
        *,
        level: bool = False,
        masked: bool = False,
        mode: int = msi.FIXED,
        destination: int = 0,
        logical: bool = False,
    ) -> None:
        """Let the guest program a redirection entry (82093AA data sheet, 3.2.4)."""
        low = vector | mode << 8 | logical * ENTRY_LOGICAL | level * ENTRY_LEVEL | masked * ENTRY_MASKED
        self.ioapic_write(FIRST_ENTRY + 2 * pin + 1, destination << 24)
        self.ioapic_write(FIRST_ENTRY + 2 * pin, low)

    def entry(self, pin: int) -> int:
        """The lower half of a redirection entry, as the guest reads it."""
        return self.ioapic_read(FIRST_ENTRY + 2 * pin)

    def init_pics(self, *, auto_eoi: bool = False) -> None:
        """Let the guest initialize both PICs, vector bases 0x30 and 0x38, and mask all their lines."""
        self.need(IrqChipCap.PIC)
        icw4 = ICW4_8086 | auto_eoi * ICW4_AUTO_EOI
        for select, port in PIC_PORTS.items():
            cascade = CASCADE if select is PicSelect.PRIMARY else 2
            for at, value in ((port, ICW1), (port + 1, PIC_BASES[select]), (port + 1, cascade), (port + 1, icw4)):
                self.cpu.out(at, value)
        self.unmask_pics()

    def unmask_pics(self, *lines: int) -> None:
        """Let the guest unmask these lines, 0-15, and mask all others."""
        self.need(IrqChipCap.PIC)
        masks = 0xFFFF
        for line in lines:
            masks &= ~(1 << line)
        if masks >> 8 != 0xFF:
            masks &= ~CASCADE
        self.cpu.out(PIC_PORTS[PicSelect.PRIMARY] + 1, masks & 0xFF)
        self.cpu.out(PIC_PORTS[PicSelect.SECONDARY] + 1, masks >> 8)

    # What was seen

    def fingerprint(self) -> dict[str, Any]:
        """All of the chip's state that stands still while nothing happens."""
        chip = self.chip
        lapics = [chip.get_lapic_state(cpu.id) for cpu in self.cpus]
        tokens = chip.irq_event_tokens()
        for token in tokens:
            token.close()
        return {
            "PICs": [chip.get_pic_state(select) for select in PicSelect if self.has(IrqChipCap.PIC)],
            "IOAPIC": chip.get_ioapic_state() if self.has(IrqChipCap.IOAPIC) else None,
            "local APICs": [lapic.regs[:0x38] for lapic in lapics],
            "tokens": [(token.index, token.source) for token in tokens],
        }

    def record(self, *, ordered: bool) -> dict[str, list[int]]:
        """The vectors each vCPU has taken."""
        return {str(cpu.id): cpu.taken if ordered else sorted(cpu.taken) for cpu in self.cpus if cpu.taken}


def lines(pins: Iterable[int]) -> int:
    """A bitmap of pins."""
    return sum(1 << pin for pin in pins)
