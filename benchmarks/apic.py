"""What the IOAPIC and the local APIC cost; part of ``python -m benchmarks.parts``.

Aims on CPython 3.11: 2 us for an access, 1 us for accept + acknowledge + EOI, and a physical IPI that costs the
same with 2 local APICs and with 256.
"""

from __future__ import annotations

from itertools import count

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from irqchip_core.x86.destinations import Destinations
from irqchip_core.x86.ioapic import IOREGSEL, IOWIN, Ioapic
from irqchip_core.x86.lapic import registers as reg
from irqchip_core.x86.lapic.lapic import Lapic
from irqchip_core.x86.msi import LEVEL, LOGICAL, LOWEST_PRIORITY, Message, decode_msi

VECTOR = 0x45
TRIGGER_LEVEL = 0x8000


def lapics(number: int) -> tuple[Destinations, list[Lapic]]:
    """Enabled, in x2APIC mode, on one bus."""
    bus = Destinations()
    made = [Lapic(apic_id, timer_hz=10**9, tsc_hz=2 * 10**9) for apic_id in range(number)]
    for lapic in made:
        bus.add(lapic)
        lapic.write(reg.SPIV, 4, 0x1FF, 0)
        lapic.write_msr(reg.IA32_APIC_BASE, 0xFEE00C00, 0)
    return bus, made


@pytest.fixture
def lapic() -> Lapic:
    """In xAPIC mode."""
    made = Lapic(0, timer_hz=10**9, tsc_hz=2 * 10**9)
    made.write(reg.SPIV, 4, 0x1FF, 0)
    made.write(reg.TIMER_INITIAL_COUNT, 4, 0xFFFFFFFF, 0)
    return made


@pytest.fixture
def ioapic() -> Ioapic:
    made = Ioapic()
    for pin in range(24):
        made.write(IOREGSEL, 4, 0x10 + 2 * pin, 0)
        made.write(IOWIN, 4, VECTOR + pin | (TRIGGER_LEVEL if pin >= 16 else 0), 0)
    return made


@pytest.mark.benchmark(group="register access")
@pytest.mark.parametrize("name", ["TPR", "PPR", "ISR", "LVT_TIMER", "TIMER_CURRENT_COUNT"])
def test_lapic_read(lapic: Lapic, name: str, benchmark: BenchmarkFixture) -> None:
    benchmark(lapic.read, getattr(reg, name), 4, 1000)


@pytest.mark.benchmark(group="register access")
@pytest.mark.parametrize("name", ["TPR", "EOI", "LVT_TIMER", "ICR_LOW", "TIMER_INITIAL_COUNT"])
def test_lapic_write(lapic: Lapic, name: str, benchmark: BenchmarkFixture) -> None:
    benchmark(lapic.write, getattr(reg, name), 4, VECTOR, 1000)


@pytest.mark.benchmark(group="register access")
def test_x2apic_write_icr(benchmark: BenchmarkFixture) -> None:
    _, (sender, _) = lapics(2)
    assert benchmark(sender.write_msr, 0x830, 1 << 32 | VECTOR, 0)


@pytest.mark.benchmark(group="register access")
def test_write_tsc_deadline(lapic: Lapic, benchmark: BenchmarkFixture) -> None:
    lapic.write(reg.LVT_TIMER, 4, 0x40045, 0)
    deadline = count(10**12)
    benchmark(lambda: lapic.write_msr(reg.IA32_TSC_DEADLINE, next(deadline), 0, 0))


@pytest.mark.benchmark(group="register access")
def test_ioapic_select_and_read(ioapic: Ioapic, benchmark: BenchmarkFixture) -> None:
    def both() -> int:
        ioapic.write(IOREGSEL, 4, 0x14, 0)
        return ioapic.read(IOWIN, 4, 0)

    assert benchmark(both) == VECTOR + 2


@pytest.mark.benchmark(group="register access")
def test_ioapic_write_entry(ioapic: Ioapic, benchmark: BenchmarkFixture) -> None:
    ioapic.write(IOREGSEL, 4, 0x14, 0)
    benchmark(ioapic.write, IOWIN, 4, VECTOR, 0)


@pytest.mark.benchmark(group="line to vector")
def test_ioapic_line_to_vector(ioapic: Ioapic, lapic: Lapic, benchmark: BenchmarkFixture) -> None:
    """An edge: up, through the bus to the local APIC, taken and ended, down."""
    bus = Destinations()
    bus.add(lapic)

    def pulse() -> int:
        (message,) = ioapic.set_line(4, 1)
        assert isinstance(message, Message)
        bus.deliver(message)
        vector = lapic.acknowledge()
        lapic.end_of_interrupt()
        ioapic.set_line(4, 0)
        return vector

    assert benchmark(pulse) == VECTOR + 4


@pytest.mark.benchmark(group="line to vector")
def test_msi_to_vector(lapic: Lapic, benchmark: BenchmarkFixture) -> None:
    bus = Destinations()
    bus.add(lapic)

    def send() -> int:
        message = decode_msi(0xFEE00000, VECTOR)
        assert message is not None
        bus.deliver(message)
        vector = lapic.acknowledge()
        lapic.end_of_interrupt()
        return vector

    assert benchmark(send) == VECTOR


@pytest.mark.benchmark(group="accept + acknowledge + EOI")
def test_lapic_accept_acknowledge_eoi(lapic: Lapic, benchmark: BenchmarkFixture) -> None:
    message = Message(VECTOR)

    def serve() -> int:
        lapic.accept(message)
        vector = lapic.acknowledge()
        lapic.end_of_interrupt()
        return vector

    assert benchmark(serve) == VECTOR


@pytest.mark.benchmark(group="line to vector")
def test_ioapic_level_line_to_vector(ioapic: Ioapic, lapic: Lapic, benchmark: BenchmarkFixture) -> None:
    """A level: up, taken, and ended, which goes on to the IOAPIC, once the line is down."""
    message = Message(VECTOR + 20, trigger_mode=LEVEL)
    assert ioapic.set_line(20, 1) == (message,)

    def serve() -> int:
        lapic.accept(message)
        vector = lapic.acknowledge()
        for effect in lapic.end_of_interrupt():
            ioapic.set_line(20, 0)
            ioapic.end_of_interrupt(effect[0], 0)
        ioapic.set_line(20, 1)
        return vector

    assert benchmark(serve) == VECTOR + 20


@pytest.mark.benchmark(group="IPI")
@pytest.mark.parametrize("number", [2, 256])
def test_physical_ipi(number: int, benchmark: BenchmarkFixture) -> None:
    bus, made = lapics(number)
    sender, receiver = made[0], made[-1]

    def send() -> int:
        effects = sender.write_msr(0x830, (number - 1) << 32 | VECTOR, 0)
        assert effects
        bus.deliver(effects[0], sender)  # type: ignore[arg-type]
        vector = receiver.acknowledge()
        receiver.end_of_interrupt()
        return vector

    assert benchmark(send) == VECTOR


@pytest.mark.benchmark(group="IPI")
@pytest.mark.parametrize("mode", [0, LOWEST_PRIORITY])
def test_logical_ipi_to_a_cluster_of_16(mode: int, benchmark: BenchmarkFixture) -> None:
    bus, _ = lapics(256)
    benchmark(bus.receivers, Message(VECTOR, mode, 0x3_FFFF, LOGICAL))
