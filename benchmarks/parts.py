"""``python -m benchmarks.parts``: what an access to each part costs, without a VM. Runs pytest-benchmark on itself.

Each benchmark puts its part back where it was, so that every round does the same.
"""

from __future__ import annotations

import sys
from itertools import count

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks import apic
from irqchip_core.x86.pic import Pic
from irqchip_core.x86.pit import Pit


@pytest.fixture
def pic() -> Pic:
    pair = Pic()
    for port, words in ((0x20, (0x20, 0x04, 0x01)), (0xA0, (0x70, 0x02, 0x01))):
        pair.write(port, 1, 0x11)
        for word in words:
            pair.write(port + 1, 1, word)
    return pair


@pytest.mark.benchmark(group="register access")
def test_pic_read_imr(pic: Pic, benchmark: BenchmarkFixture) -> None:
    assert benchmark(pic.read, 0x21, 1) == (0, ())


@pytest.mark.benchmark(group="register access")
def test_pic_write_imr(pic: Pic, benchmark: BenchmarkFixture) -> None:
    benchmark(pic.write, 0x21, 1, 0xFF)


@pytest.mark.benchmark(group="line to vector")
@pytest.mark.parametrize("line", [5, 12])
def test_pic_line_to_vector(pic: Pic, line: int, benchmark: BenchmarkFixture) -> None:
    """A device raises its line, and the processor has the vector; the line falls again. Auto-EOI ends it."""
    for port in (0x20, 0xA0):
        for at, word in enumerate((0x11, 0x20, 0x04, 0x03)):
            pic.write(port + (at > 0), 1, word)

    def pulse() -> int:
        pic.set_line(line, True)
        vector, _ = pic.acknowledge()
        pic.set_line(line, False)
        return vector

    assert benchmark(pulse) & 7 == line & 7


@pytest.mark.benchmark(group="accept + acknowledge + EOI")
def test_pic_acknowledge_and_eoi(pic: Pic, benchmark: BenchmarkFixture) -> None:
    """Of a line that stays high, level-triggered, so that the next round finds it requested again."""
    pic.write(0x4D0, 1, 0x20)
    pic.set_line(5, True)

    def serve() -> int:
        vector = pic.acknowledge()[0] if pic.interrupt_requested else 0
        pic.write(0x20, 1, 0x20)
        return vector

    assert benchmark(serve) == 0x25


@pytest.fixture
def pit() -> Pit:
    timer = Pit()
    for port, value in ((0x43, 0x34), (0x40, 0x9C), (0x40, 0x2E)):  # 100 Hz
        timer.write(port, 1, value, 0)
    return timer


@pytest.mark.benchmark(group="register access")
def test_pit_read_count(pit: Pit, benchmark: BenchmarkFixture) -> None:
    clock = count(0, 1000)
    benchmark(lambda: pit.read(0x40, 1, next(clock)))


@pytest.mark.benchmark(group="register access")
def test_pit_write_count(pit: Pit, benchmark: BenchmarkFixture) -> None:
    clock = count(0, 1000)
    benchmark(lambda: pit.write(0x40, 1, 0x2E, next(clock)))


@pytest.mark.benchmark(group="timer")
def test_pit_expiry(pit: Pit, benchmark: BenchmarkFixture) -> None:
    """What the owner of the timer does when it wakes: take the edges, ask for the next."""
    clock = count(0, 10_000_000)

    assert benchmark(lambda: pit.expire(next(clock)))


if __name__ == "__main__":
    columns = ["--benchmark-columns=min,median,iqr", "--benchmark-group-by=group", "--benchmark-sort=name"]
    sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", *columns, *sys.argv[1:], __file__, apic.__file__]))
