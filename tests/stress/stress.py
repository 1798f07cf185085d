"""A machine under stress: a guest (guests/stress/stress.S) that takes interrupts of all kinds on all vCPUs at once.

What must agree is what the sources have raised, what the chip has counted, and what the guest has counted itself.
Sources come in three sorts:

- paced: the next one is raised when the guest has said that it took the last one (devices' lines and messages, one-shot
  timers, the PIT, tokens that vCPUs hand round by IPI, broadcasts that all have to take). None can be coalesced.
- periodic timers: ticks may be coalesced, as their vector has only one bit in the IRR.
- the flood: a device that signals in bursts. Signals are coalesced in its event, and messages in the IRR.
"""

from __future__ import annotations

import struct
import sys
import threading
from array import array
from collections import Counter
from collections.abc import Callable

from attrs import frozen
from typing_extensions import override

from irqchip_core.bus import Access, BusDevice
from irqchip_core.capabilities import IrqChipCap
from irqchip_core.x86.counters import ChipCounters
from irqchip_vmm import Machine, RunResult, load_file
from irqchip_vmm.interrupts import EdgeIrq, LevelIrq
from tests.guests.assemble import GUESTS

# Of smp.inc and stress.S
CPUS, CPU_SIZE, SENT = 0x20000, 0x2000, 0x400
PORTS = 0x510
REPORTED, DONE, READY, FAILED = range(4)
PARAMETERS, PIT_LEFT, PIC_MASKS, REDIRECTION = 0x10000, 0x10004, 0x1000C, 0x10040
TIMER_VECTOR, TIMER_COUNT, TIMER_LEFT, BUSY, LEFT = 0x10200, 0x10300, 0x10400, 0x10500, 0x10800
ONE_SHOT, PERIODIC, DEADLINE, PIT = 0x50, 0x51, 0x52, 0x53
FIRST_TOKEN, TOKENS = 0x60, 16
START, BROADCAST, FLOOD = 0x70, 0x71, 0x80
FIRST_PIC, GOODBYE, FIRST_EDGE, FIRST_LEVEL, FIRST_MSI, DRAIN = 0x20, 0x30, 0x31, 0x38, 0x40, 0x4F

MSI_ADDRESS = 0xFEE00000
ENTRY_LEVEL = 1 << 15
ENTRY_LOGICAL_LOWEST_PRIORITY = 1 << 11 | 1 << 8
ENTRY_MASKED = 1 << 16
PIC_LINES = (6, 12)
EDGE_PINS = (16, 17)
LEVEL_PINS = (18, 19, 20, 21)
MSIS = 4
PERIODIC_NS, ONE_SHOT_NS = 2_000_000, 1_000_000
SAMPLE_NS = 100_000_000
MOST_SAMPLES = 20_000
BURST = 16


@frozen
class Load:
    """How much of everything.

    Attributes:
        tokens: Interrupts of each of the 16 tokens.
        broadcasts: How many are sent; each is taken by all vCPUs but its sender.
        device: Interrupts of each paced line and message.
        timer: Interrupts of each vCPU's timer, and of the PIT.
        flood: Bursts of the flood, `BURST` signals each.
    """

    tokens: int
    broadcasts: int
    device: int
    timer: int
    flood: int


@frozen
class Sample:
    """Memory at some time: blocks of Python's allocator, and bytes of the process in RAM."""

    blocks: int
    resident: int


@frozen
class Outcome:
    """What came of a run.

    Attributes:
        result: The VMM's part.
        raised: By vector: what devices and the guest itself have raised; of timers, what was programmed.
        taken: By (vCPU, vector): what the guest has taken.
        counters: The chip's own, at the end.
        samples: Memory through the run.
        problem: What the guest did not expect, or what did not come in time; empty if all went well.
    """

    result: RunResult
    raised: Counter[int]
    taken: Counter[tuple[int, int]]
    counters: ChipCounters
    samples: list[Sample]
    problem: str

    def taken_of(self, vector: int) -> int:
        return sum(count for (_, other), count in self.taken.items() if other == vector)

    @property
    def total(self) -> int:
        return sum(self.taken.values())


class _Paced:
    """A device that raises its interrupt `count` times, each after the guest has taken the one before."""

    def __init__(self, irq: EdgeIrq | LevelIrq, count: int, done: Callable[[], None]) -> None:
        self.irq = irq
        self._left = count
        self._done = done
        self._lock = threading.Lock()
        self._level = isinstance(irq, LevelIrq)
        self._waiting = 0
        if isinstance(irq, LevelIrq):
            irq.on_resample = self.resampled

    def start(self) -> None:
        self._left -= 1
        self._waiting = 2 if self._level else 1  # for the guest, and for the resample event
        self.irq.trigger()

    def resampled(self) -> None:
        """The guest has taken it, or the chip has lowered its line."""
        with self._lock:
            self._waiting -= 1
            if self._waiting:
                return
            if self._left:
                self.start()
                return
        self._done()


class Stress(BusDevice):
    """One run.

    Args:
        chip, hypervisor: Names.
        vcpu_count: 1 to 64.
        load: How much.
    """

    debug_label = "stress"
    self_synchronized = True

    def __init__(self, chip: str, hypervisor: str, vcpu_count: int, load: Load) -> None:
        self.machine = Machine(chip=chip, hypervisor=hypervisor, vcpu_count=vcpu_count)
        self.vcpu_count = vcpu_count
        self.load = load
        self.raised: Counter[int] = Counter()
        self.problem = ""
        self._lock = threading.Lock()
        self._ready = 0
        self._paced: dict[int, _Paced] = {}
        self._running: set[object] = set()  # what is not done yet
        self._samples = array("q", bytes(16 * MOST_SAMPLES))  # made before, so as not to be what grows
        self._sampled = 0
        self._bursts = load.flood
        self._drained = 0
        self._goodbyes = 0

    def close(self) -> None:
        self.machine.close()

    # Setting up

    def _set_up(self) -> None:
        machine, load = self.machine, self.load
        machine.add_device(self, port=PORTS, length=4)
        guest = load_file(GUESTS / "stress" / "stress.bin", memory_size=machine.memory.size)
        machine.load(guest)
        self._entries = [ENTRY_MASKED] * 24
        everyone = (1 << min(self.vcpu_count, 8)) - 1
        for line in PIC_LINES:
            self._pace(FIRST_PIC + line, machine.edge_irq(line, name=f"pic{line}"))
        for number, pin in enumerate(EDGE_PINS):
            vector = FIRST_EDGE + number
            self._pace(vector, machine.edge_irq(pin, name=f"edge{pin}"))
            self._entries[pin] = vector | ENTRY_LOGICAL_LOWEST_PRIORITY | everyone << 56
        for number, pin in enumerate(LEVEL_PINS):
            vector = FIRST_LEVEL + number
            self._pace(vector, machine.level_irq(pin, name=f"level{pin}"))
            self._entries[pin] = vector | ENTRY_LEVEL | number % self.vcpu_count << 56
        for number in range(MSIS):
            self._pace(
                FIRST_MSI + number, self._msi(FIRST_MSI + number, (self.vcpu_count - 1 - number) % self.vcpu_count)
            )
        self._entries[0] = PIT  # to vCPU 0, which starts it before the others are ready
        self._set_up_timers()
        self._u32(PARAMETERS, self.vcpu_count)
        self._u32(PIC_MASKS, 0xFF & ~(1 << 6 | 1 << 2) | (0xFF & ~(1 << 4)) << 8)
        machine.memory.write(REDIRECTION, struct.pack("<24Q", *self._entries))
        self._starts = []
        for number in range(TOKENS):
            vector = FIRST_TOKEN + number
            self._u32(LEFT + 4 * vector, load.tokens - 1)
            self._starts.append(self._msi(vector, number % self.vcpu_count))
            self.raised[vector] += 1
            self._running.add(vector)
        if self.vcpu_count > 1 and load.broadcasts:
            self._u32(LEFT + 4 * BROADCAST, load.broadcasts)
            self._starts.append(self._msi(START, 0))
            self.raised[START] += 1
            self._running.add(BROADCAST)
        flooded = self.vcpu_count - 1
        self._flood = self._msi(FLOOD, flooded)
        self._drain = self._msi(DRAIN, flooded)
        self._running.add(FLOOD)
        self._goodbye = [self._msi(GOODBYE, vcpu) for vcpu in range(self.vcpu_count)]

    def _set_up_timers(self) -> None:
        machine, load = self.machine, self.load
        kinds = [ONE_SHOT, PERIODIC]
        if machine.chip.check_capability(IrqChipCap.TSC_DEADLINE_TIMER):
            kinds.append(DEADLINE)
        hz = machine.chip.lapic_frequency()
        for vcpu in range(self.vcpu_count):
            kind = kinds[vcpu % len(kinds)]
            nanoseconds = PERIODIC_NS if kind == PERIODIC else ONE_SHOT_NS
            frequency = machine.vm.tsc_hz if kind == DEADLINE else hz
            self._u32(TIMER_VECTOR + 4 * vcpu, kind)
            self._u32(TIMER_COUNT + 4 * vcpu, nanoseconds * frequency // 1_000_000_000)
            self._u32(TIMER_LEFT + 4 * vcpu, load.timer)
            self._u32(BUSY + 4 * vcpu, 200 if vcpu % 4 == 3 else 0)
            self.raised[kind] += load.timer
            self._running.add((vcpu, kind))
        self._u32(PIT_LEFT, load.timer)
        self.raised[PIT] += load.timer
        self._running.add(PIT)

    def _u32(self, address: int, value: int) -> None:
        self.machine.memory.write(address, struct.pack("<I", value))

    def _msi(self, vector: int, vcpu: int) -> EdgeIrq:
        irq = self.machine.msi_irq(name=f"msi{vector:#x}-{vcpu}")
        assert irq.set_message(MSI_ADDRESS | vcpu << 12, vector)
        return irq

    def _pace(self, vector: int, irq: EdgeIrq | LevelIrq) -> None:
        self._paced[vector] = _Paced(irq, self.load.device, lambda: self._done(vector))
        self._running.add(vector)
        self.raised[vector] += self.load.device

    # Running

    def run(self, timeout: float) -> Outcome:
        """Run it all to the end, or for `timeout` seconds."""
        self._set_up()
        machine = self.machine
        machine.call_later(SAMPLE_NS, self._sample)
        result = machine.run(timeout)
        taken: Counter[tuple[int, int]] = Counter()
        for vcpu in range(self.vcpu_count):
            page = machine.memory.read(CPUS + CPU_SIZE * vcpu, 2 * 0x400)
            assert page is not None
            counts = struct.unpack("<512I", page)
            taken.update({(vcpu, vector): count for vector, count in enumerate(counts[:256]) if count})
            self.raised.update({vector: count for vector, count in enumerate(counts[256:]) if count})
        if self._running and not self.problem:
            self.problem = f"not done: {sorted(map(str, self._running))}; {result.end}"
        return Outcome(result, self.raised, taken, machine.chip.counters(), self._all_samples(), self.problem)

    def _sample(self) -> None:
        with open("/proc/self/statm", encoding="ascii") as statm:
            pages = int(statm.read().split()[1])
        at = 2 * (self._sampled % MOST_SAMPLES)
        self._samples[at] = sys.getallocatedblocks()
        self._samples[at + 1] = pages * 4096
        self._sampled += 1
        self.machine.call_later(SAMPLE_NS, self._sample)

    def _all_samples(self) -> list[Sample]:
        return [Sample(*self._samples[2 * at : 2 * at + 2]) for at in range(min(self._sampled, MOST_SAMPLES))]

    @override
    def write(self, access: Access, value: int) -> None:
        if access.offset == REPORTED:
            self._told(value)
        elif access.offset == DONE:
            self._done((access.vcpu_id, value) if ONE_SHOT <= value <= DEADLINE else value)
        elif access.offset == READY:
            with self._lock:
                self._ready += 1
                ready = self._ready
            if ready == self.vcpu_count:
                self._start_sources()
        else:
            self.problem = f"vCPU {access.vcpu_id} took vector {value:#x}"
            self.machine.stop()

    def _start_sources(self) -> None:
        for paced in self._paced.values():
            paced.start()
        for irq in self._starts:
            irq.trigger()
        self._burst()

    def _told(self, vector: int) -> None:
        if vector == DRAIN:
            self._drain_told()
        elif vector == GOODBYE:
            self._say_goodbye()
        else:
            self._paced[vector].resampled()

    def _done(self, what: object) -> None:
        with self._lock:
            if what not in self._running:
                self.problem = f"{what} was done twice"
            self._running.discard(what)
            if self._running:
                return
        self._say_goodbye()

    def _say_goodbye(self) -> None:
        """Let each vCPU take what may be left, which has a higher priority, and end the run."""
        if self._goodbyes == self.vcpu_count:
            self.machine.stop()
            return
        self._goodbyes += 1
        self.raised[GOODBYE] += 1
        self._goodbye[self._goodbyes - 1].trigger()

    # The flood

    def _burst(self) -> None:
        self._bursts -= 1
        self.raised[FLOOD] += BURST
        for _ in range(BURST):
            self._flood.trigger()
        self._send_drain()

    def _send_drain(self) -> None:
        self.raised[DRAIN] += 1
        self._drain.trigger()

    def _drain_told(self) -> None:
        """The chip has served what was signalled before the drain, or will soon; then all is taken before the next."""
        if self._bursts:
            self._burst()
            return
        served = {count.gsi: count.raised for count in self.machine.chip.counters().gsis}
        self._drained += served.get(self._flood.gsi, self.raised[FLOOD]) == self.raised[FLOOD]
        if self._drained == 2:
            self._done(FLOOD)
        else:
            self._send_drain()
