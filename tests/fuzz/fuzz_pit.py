"""Random accesses to the 8254, alone, beside single CLK pulses and beside its oracles."""

from __future__ import annotations

import random

from irqchip_core.x86.pit import Pit
from irqchip_core.x86.pit_counter import Counter
from tests.fuzz.beside import beside
from tests.fuzz.run import Deadline, Phase
from tests.oracles.kvm import KvmMachine
from tests.oracles.qemu import Qemu
from tests.x86.pit_model import LOADED, PitMachine, Window
from tests.x86.pit_reference import ReferenceCounter
from tests.x86.test_pit_oracles import KvmPit, QemuPit

PORTS = (0x40, 0x41, 0x42, 0x43) * 5 + (0x61, 0x61, 0x44, 0, -1)
SIZES = (1,) * 14 + (0, 2)
STEPS = (0, 1, 400, 838, 839, 10**5, 10**9, 10**15)
BATCH = 1000


def alone(rng: random.Random, expired: Deadline) -> int:
    """Any port, size, value and time: bytes stay bytes, no edge is before its time, and a record restores all."""
    pit, now, accesses = Pit(), 0, 0
    while not expired():
        for draw in rng.choices(range(1 << 32), k=BATCH):
            now += STEPS[draw >> 29] * (draw & 0xF)
            port, size, value = PORTS[(draw >> 4) % len(PORTS)], SIZES[draw >> 9 & 15], draw >> 13 & 0x1FF
            if draw >> 22 & 3 != 3:
                pit.write(port, size, value, now)
            else:
                assert 0 <= pit.read(port, size, now) <= 0xFF
            if draw >> 24 & 15 == 0:
                edge = pit.next_rising_edge(now)
                assert edge is None or edge > now
                assert pit.take_rising_edges(now) >= 0
        accesses += BATCH
        state = pit.state(now)
        moved = rng.randrange(1 << 62)
        assert Pit.from_state(state, moved).state(moved).channels[0].counting == state.channels[0].counting
        if now > 1 << 61:
            pit, now = Pit(), 0
    return accesses


def beside_single_pulses(rng: random.Random, expired: Deadline) -> int:
    """One counter: each jump of time against as many pulses, one by one."""
    accesses = 0
    while not expired():
        gate = rng.random() < 0.5
        ours, reference, tick = Counter(gate), ReferenceCounter(gate), 0
        for _ in range(200):
            if rng.random() < 0.15 or not accesses:
                word = rng.randrange(0x10, 0x40)
                ours.set_control(word)
                reference.control(word)
            elif rng.random() < 0.3:
                level = rng.random() < 0.7
                ours.set_gate(level)
                reference.set_gate(level)
            else:
                byte = rng.choice((0, 0, 2, 3, 4, 5, 9, rng.randrange(2, 256)))
                if ours.access:
                    ours.write(byte)
                    reference.write(byte)
            if ours.mode == 3 and ours.count_register == 1:
                break  # the data sheet leaves this count open
            jump = rng.choice((0, 1, 2, 5, 30, 300))
            tick += jump
            for _ in range(jump):
                reference.pulse()
            ours.advance(tick)
            assert (ours.output, ours.rising_edges, ours.null_count) == (reference.out, reference.edges, reference.null)
            assert not reference.counting or ours.count() == reference.element
            accesses += 2
    return accesses


class RunningQemuPit(QemuPit):
    """QEMU's 8254 while its time goes on, which is faster than to stop and start it."""

    stopped = False

    def read(self, port: int) -> tuple[int, Window]:
        return self._qemu.timed(f"inb {port:#x}")

    def write(self, port: int, value: int) -> Window:
        return self._qemu.timed(f"outb {port:#x} {value:#x}")[1]

    def let_pass(self, ns: int) -> None:
        if ns <= LOADED:
            return  # until the next command is there more time will have passed
        until = self._qemu.clock() + ns
        while self._qemu.clock() < until:
            pass


def beside_qemu(rng: random.Random, expired: Deadline) -> int:
    with Qemu() as machine:
        kind = type("Beside", (PitMachine,), {"oracle": QemuPit(machine)})
        return beside(kind, machine, rng, expired)


def beside_running_qemu(rng: random.Random, expired: Deadline) -> int:
    with Qemu() as machine:
        kind = type("Beside", (PitMachine,), {"oracle": RunningQemuPit(machine)})
        machine.qmp("cont")
        return beside(kind, machine, rng, expired, let_pass=0.1)


def beside_kvm(rng: random.Random, expired: Deadline) -> int:
    with KvmMachine() as machine:
        kind = type("Beside", (PitMachine,), {"oracle": KvmPit(machine)})
        return beside(kind, machine, rng, expired, let_pass=0.1)


PHASES = (
    Phase("pit", "alone", alone, share=0.5),
    Phase("pit", "beside single pulses", beside_single_pulses, share=0.5),
    Phase("pit", "beside QEMU", beside_qemu, share=1, needs="qemu"),
    Phase("pit", "beside QEMU", beside_running_qemu, share=4, needs="qemu"),
    Phase("pit", "beside KVM", beside_kvm, share=4, needs="kvm"),
)
