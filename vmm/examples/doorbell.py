"""A device of one's own with an interrupt: a doorbell at port 0x510 that raises IRQ 5 whenever the guest rings."""

from pathlib import Path

from irqchip_core.bus import Access, BusDevice
from irqchip_vmm import EdgeIrq, Machine, RunResult, load_file

GUEST = Path(__file__).with_name("doorbell.bin")


class Doorbell(BusDevice):
    """Interrupts the guest whenever it writes."""

    def __init__(self, irq: EdgeIrq) -> None:
        self.irq = irq

    def write(self, access: Access, value: int) -> None:
        self.irq.trigger()


def main() -> RunResult:
    """Run a guest that rings three times."""
    with Machine() as machine:
        machine.add_device(Doorbell(machine.edge_irq(5, name="doorbell")), port=0x510)
        machine.load(load_file(GUEST, memory_size=machine.memory.size))
        return machine.run(timeout=10)


if __name__ == "__main__":
    result = main()
    rung = next(irq for irq in result.interrupts if irq.name == "doorbell")
    print(f"the guest rang {rung.raised} times and ended with status {result.end.status}")
