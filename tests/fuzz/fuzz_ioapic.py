"""Random accesses, lines, ends and times for the IOAPIC, alone and beside its oracles.

Alone: none raises, and what must hold always holds.
"""

from __future__ import annotations

import random

import attrs

from irqchip_core.x86.effects import Effects, EntriesChanged, PinEnded, WakeAt
from irqchip_core.x86.ioapic import (
    DELIVERY_STATUS,
    ENTRY_WRITABLE_MASK,
    REMOTE_IRR,
    TRIGGER_LEVEL,
    VERSION_82093AA,
    VERSION_ICH,
    Ioapic,
)
from irqchip_core.x86.msi import Message
from tests.fuzz.apic_fuzzer import Fuzzer, any_value, play_of
from tests.fuzz.beside import beside
from tests.fuzz.run import Deadline, Phase
from tests.oracles.kvm import KvmMachine
from tests.oracles.qemu import Qemu
from tests.x86.apic_board import KvmBoard
from tests.x86.apic_model import CPUS, IoapicMachine
from tests.x86.test_ioapic_qemu import QemuIoapic, QemuIoapicMachine

OFFSETS = (0x00, 0x10, 0x10, 0x10, 0x40, 0x04, 0x20, 0xFFF)


class IoapicFuzzer(Fuzzer):
    """One IOAPIC of random shape."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.now = 0
        self.ioapic = Ioapic(rng.choice((24, 24, 120, 240)), rng.choice((VERSION_82093AA, VERSION_ICH)))
        self.ioapic.resample_lines = rng.getrandbits(self.ioapic.pins) & rng.getrandbits(self.ioapic.pins)

    def step(self) -> None:
        rng, ioapic = self.rng, self.ioapic
        choice = rng.random()
        if choice < 0.25:
            ioapic.write(0, 4, 0x10 + rng.randrange(2 * ioapic.pins), self.now)
        elif choice < 0.55:
            self.look_at(
                ioapic.write(rng.choice(OFFSETS), rng.choice((4, 4, 4, 1, 2, 8)), any_value(rng, 64), self.now)
            )
        elif choice < 0.65:
            size = rng.choice((1, 2, 4, 8))
            assert 0 <= ioapic.read(rng.choice(OFFSETS), size, self.now) < 1 << 8 * size
        elif choice < 0.85:
            for message in ioapic.set_line(rng.randrange(ioapic.pins), rng.getrandbits(1)):
                assert isinstance(message, Message)
                if rng.random() < 0.1:
                    ioapic.refused(message)
        elif choice < 0.97:
            self.look_at(ioapic.end_of_interrupt(rng.getrandbits(8), self.now))
        else:
            self.now += rng.randrange(1 << 24)
            self.look_at(ioapic.expire(self.now))

    def look_at(self, effects: Effects) -> None:
        for effect in effects:
            assert isinstance(effect, Message | EntriesChanged | PinEnded | WakeAt)

    def check(self) -> None:
        ioapic = self.ioapic
        for pin, entry in enumerate(ioapic.entries):
            assert not entry & ~(ENTRY_WRITABLE_MASK | REMOTE_IRR | DELIVERY_STATUS)
            assert not entry & REMOTE_IRR or entry & TRIGGER_LEVEL
            assert ioapic._by_vector[entry & 0xFF] >> pin & 1
        assert sum(pins.bit_count() for pins in ioapic._by_vector) == ioapic.pins
        state = ioapic.state(self.now)
        restored = Ioapic.from_state(state, self.now, ioapic.version)
        # A restored IOAPIC sends at once what the saved one would have sent at the next occasion.
        again = attrs.evolve(restored.state(self.now), held_back=state.held_back, held_back_for=state.held_back_for)
        assert again == state


def beside_qemu(rng: random.Random, expired: Deadline) -> int:
    with Qemu() as machine:
        kind = type("Beside", (QemuIoapicMachine,), {"theirs": QemuIoapic(machine)})
        return beside(kind, machine, rng, expired)


def beside_kvm(rng: random.Random, expired: Deadline) -> int:
    with KvmMachine(CPUS) as machine:
        kind = type("Beside", (IoapicMachine,), {"theirs": KvmBoard(machine)})
        return beside(kind, machine, rng, expired)


PHASES = (
    Phase("ioapic", "alone", play_of(IoapicFuzzer), share=0.5),
    Phase("ioapic", "beside QEMU", beside_qemu, share=4, needs="qemu"),
    Phase("ioapic", "beside KVM", beside_kvm, share=4, needs="kvm"),
)
