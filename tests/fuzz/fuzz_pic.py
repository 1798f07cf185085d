"""``python -m tests.fuzz.fuzz_pic --seconds N``: random accesses to the 8259 pair, alone and beside its oracles."""

from __future__ import annotations

import random

from irqchip_core.x86.pic import Pic
from irqchip_core.x86.state import PicSelect
from tests.fuzz.run import Deadline, Phase, main
from tests.oracles.kvm import KvmMachine
from tests.oracles.qemu import Qemu
from tests.x86.pic_model import PicMachine, PicOracle
from tests.x86.test_pic_oracles import KvmPic, QemuPic

PORTS = (0x20, 0x21, 0xA0, 0xA1) * 4 + (0x4D0, 0x4D1, 0x22, 0, 0xFFFF, -1)
SIZES = (1,) * 13 + (0, 2, 4)
BATCH = 1000
SEQUENCE = 60
"""Steps beside an oracle before both start anew."""


def alone(rng: random.Random, expired: Deadline) -> int:
    """Any port, size and value, lines and acknowledges: the registers stay registers, and a record restores all."""
    pic, accesses = Pic(), 0
    while not expired():
        for draw in rng.choices(range(1 << 32), k=BATCH):
            port, size, value = PORTS[draw % len(PORTS)], SIZES[draw >> 8 & 15], draw >> 12 & 0x1FF
            action = draw >> 22
            if action < 350:
                pic.write(port, size, value)
            elif action < 600:
                assert 0 <= pic.read(port, size) <= 0xFF
            elif action < 900:
                pic.set_line(value & 15, bool(value & 16))
            elif pic.interrupt_requested:
                assert 0 <= pic.acknowledge() <= 0xFF
        accesses += BATCH
        assert 0 <= pic.ended <= 0xFFFF
        pic.ended = 0
        states = [pic.state(select) for select in PicSelect]
        restored = Pic.from_state(*states)
        assert [restored.state(select) for select in PicSelect] == states
        assert restored.interrupt_requested == pic.interrupt_requested
    return accesses


def step(machine: PicMachine, rng: random.Random) -> None:
    """One of the rules of `PicMachine`, at random, and its comparison of all registers."""
    select, value = rng.randrange(2), rng.randrange(256)
    match rng.randrange(9):
        case 0:
            machine.drive(line=value & 15, high=value > 127)
        case 1:
            machine.pulse(line=value & 15)
        case 2:
            machine.acknowledge()
        case 3:
            machine.ocw1(select=select, mask=value & rng.randrange(256))
        case 4:
            machine.ocw2(select=select, ocw2=value & 7, line=value >> 3 & 7)
        case 5:
            machine.ocw3(select=select, ocw3=rng.choice((0x08, 0x28, 0x48, 0x68)), read=value & 3)
        case 6:
            machine.poll(select=select, register=rng.choice(((0x20, 0xA0), (0x21, 0xA1))))
        case 7:
            machine.elcr(select=select, value=value)
        case 8 if value < 64:
            icw1 = 0x10 | rng.choice((0, 1, 2, 3, 8, 9))
            machine.initialization(select=select, icw1=icw1, base=rng.randrange(0x20, 256), icw4=value & 0x1F)
        case _:
            machine.restore()
    machine.registers_agree()


def beside(oracle: PicOracle, rng: random.Random, expired: Deadline) -> int:
    """Play sequences of steps until the deadline."""
    Machine = type("Machine", (PicMachine,), {"oracle": oracle})  # noqa: N806
    steps = 0
    while not expired():
        machine = Machine()
        machine.start(icw4=(rng.choice((0x01, 0x03, 0x11, 0x13)), rng.choice((0x01, 0x03, 0x11, 0x13))))
        for _ in range(SEQUENCE):
            step(machine, rng)
        steps += SEQUENCE
    return steps * ACCESSES_PER_STEP


ACCESSES_PER_STEP = 15
"""Register accesses of a step and of the comparison after it, at least."""


def beside_qemu(rng: random.Random, expired: Deadline) -> int:
    with Qemu() as machine:
        return beside(QemuPic(machine), rng, expired)


def beside_kvm(rng: random.Random, expired: Deadline) -> int:
    with KvmMachine() as machine:
        return beside(KvmPic(machine), rng, expired)


PHASES: tuple[tuple[str, Phase], ...] = (("alone", alone), ("beside QEMU", beside_qemu), ("beside KVM", beside_kvm))

if __name__ == "__main__":
    main("Random accesses to the 8259 pair.", PHASES)
