"""Random accesses, messages, pins and times for local APICs, alone and beside KVM's.

Alone: none raises, and what must hold always holds.
"""

from __future__ import annotations

import random

from irqchip_core.x86.counters import vector_counts
from irqchip_core.x86.destinations import Destinations
from irqchip_core.x86.effects import ApicBaseChanged, Effects, EoiBroadcast, WakeAt
from irqchip_core.x86.lapic import registers as reg
from irqchip_core.x86.lapic.core import COALESCED, DELIVERED, IGNORED, NO_VECTOR
from irqchip_core.x86.lapic.lapic import Lapic
from irqchip_core.x86.msi import Message, decode_msi
from tests.fuzz.apic_fuzzer import Fuzzer, any_value, play_of
from tests.fuzz.beside import beside
from tests.fuzz.run import Deadline, Phase
from tests.oracles.kvm import KvmMachine
from tests.x86.apic_board import KvmBoard
from tests.x86.apic_model import CPUS, LapicMachine

MSRS = (reg.IA32_APIC_BASE, reg.IA32_TSC_DEADLINE, *range(0x800, 0x840), 0x8FF, 0x7FF, 0x900)
BASES = (0xFEE00000, 0xFEE00800, 0xFEE00C00, 0xFEE00C00, 0xFED00900, 0xFEE00400)


class LapicFuzzer(Fuzzer):
    """Three local APICs on one bus."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.now = 0
        self.bus = Destinations()
        self.timer_hz, self.tsc_hz = rng.choice((1, 10**9, 25_000_000, 10**10)), rng.choice((0, 2_100_000_000))
        self.lapics = [
            Lapic(apic_id, timer_hz=self.timer_hz, tsc_hz=self.tsc_hz, bsp=apic_id == 0, cmci=rng.random() < 0.8)
            for apic_id in (0, 5, 0x123)
        ]
        for lapic in self.lapics:
            self.bus.add(lapic)
            if rng.random() < 0.5:
                lapic.write_msr(reg.IA32_APIC_BASE, 0xFEE00C00, 0)

    def tsc(self) -> int:
        return self.now * 21 // 10

    def step(self) -> None:
        rng = self.rng
        lapic = rng.choice(self.lapics)
        choice = rng.random()
        if choice < 0.3:
            offset = rng.randrange(0x40) << 4 if rng.random() < 0.95 else rng.randrange(1 << 13)
            size = rng.choice((4, 4, 4, 4, 1, 2, 8))
            self.carry_out(lapic.write(offset, size, any_value(rng, 8 * size), self.now), lapic)
        elif choice < 0.55:
            index = rng.choice(MSRS)
            value = (
                rng.choice(BASES) if index == reg.IA32_APIC_BASE else any_value(rng, 64 if rng.random() < 0.3 else 32)
            )
            self.carry_out(lapic.write_msr(index, value, self.now, self.tsc()) or (), lapic)
        elif choice < 0.65:
            size = rng.choice((1, 2, 4, 4, 4, 8))
            assert 0 <= lapic.read(rng.randrange(0x400) & ~0xF, size, self.now) < 1 << 8 * size
            answer = lapic.read_msr(rng.choice(MSRS), self.now)
            assert answer is None or 0 <= answer < 1 << 64
        elif choice < 0.8:
            message = decode_msi(0xFEE00000 | rng.getrandbits(20), rng.getrandbits(16))
            assert message is not None
            self.bus.deliver(message)
        elif choice < 0.9:
            vector = lapic.pending_vector()
            taken = lapic.acknowledge()
            assert vector in (NO_VECTOR, taken)
            lapic.take_events()
            if rng.random() < 0.7:
                self.carry_out(lapic.end_of_interrupt(), lapic)
        elif choice < 0.95:
            lapic.set_lint(rng.getrandbits(1), rng.getrandbits(1))
            assert lapic.deliver_lvt(rng.choice(list(lapic.lvt_writable))) in (IGNORED, COALESCED, DELIVERED)
        else:
            self.now += rng.randrange(1 << rng.randrange(1, 40))
            for each in self.lapics:
                self.carry_out(each.expire(self.now, self.tsc()), each)
                assert each.wake_at is None or each.wake_at > self.now

    def carry_out(self, effects: Effects, source: Lapic) -> None:
        for effect in effects:
            if isinstance(effect, Message):
                self.bus.deliver(effect, source)
            else:
                assert isinstance(effect, EoiBroadcast | WakeAt | ApicBaseChanged)

    def check(self) -> None:
        for lapic in self.lapics:
            assert not (lapic.irr | lapic.isr | lapic.tmr) & 0xFFFF
            assert max(lapic.irr, lapic.isr, lapic.tmr) < 1 << 256
            assert not lapic.x2apic_mode or lapic.hardware_enabled
            in_service = max(0, lapic.isr.bit_length() - 1) >> 4
            assert lapic.ppr >> 4 == max(lapic.tpr >> 4, in_service)
            assert lapic.pending_vector() == NO_VECTOR or lapic.pending_vector() >> 4 > lapic.ppr >> 4
            assert lapic.events.nmis <= 2
            state = lapic.state(self.now)
            assert all(0 <= value < 1 << 32 for value in state.regs)
            restored = Lapic(
                lapic.apic_id, timer_hz=self.timer_hz, tsc_hz=self.tsc_hz, cmci=reg.LVT_CMCI in lapic.lvt_writable
            )
            restored.set_state(state, self.now, self.tsc())
            timer = lapic.timer
            # Of a timer that was periodic from the beginning it would be the moment of its reload.
            expired_before_periodic = timer.mode == reg.PERIODIC and timer.initial_count and not timer.running
            assert expired_before_periodic or restored.state(self.now) == state
        for count in (count for lapic in self.lapics for count in vector_counts(lapic)):
            assert count.raised >= count.delivered + count.coalesced
            assert count.delivered >= count.ended


def beside_kvm(rng: random.Random, expired: Deadline) -> int:
    with KvmMachine(CPUS) as machine:
        kind = type("Beside", (LapicMachine,), {"theirs": KvmBoard(machine)})
        return beside(kind, machine, rng, expired)


PHASES = (
    Phase("lapic", "alone", play_of(LapicFuzzer), share=0.5),
    Phase("lapic", "beside KVM", beside_kvm, share=8, needs="kvm"),
)
