"""Random accesses to the 8259 pair, alone and beside its oracles."""

from __future__ import annotations

import random

from irqchip_core.x86.pic import CASCADE
from irqchip_core.x86.state import PicSelect
from tests.fuzz.beside import beside
from tests.fuzz.run import Deadline, Phase
from tests.oracles.kvm import KvmMachine
from tests.oracles.qemu import Qemu
from tests.x86.pic_model import PicMachine
from tests.x86.test_pic_oracles import KvmPic, QemuPic
from tests.x86.watched_pic import WatchedPic as Pic

PORTS = (0x20, 0x21, 0xA0, 0xA1) * 4 + (0x4D0, 0x4D1, 0x22, 0, 0xFFFF, -1)
SIZES = (1,) * 13 + (0, 2, 4)
BATCH = 1000


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
                line = value & 15
                if line != CASCADE:  # the secondary drives it, and a record says what that does
                    pic.set_line(line, bool(value & 16))
            elif pic.interrupt_requested:
                assert 0 <= pic.acknowledge() <= 0xFF
                restored = Pic.from_state(*(pic.state(select) for select in PicSelect))
                assert restored.interrupt_requested == pic.interrupt_requested
        accesses += BATCH
        assert 0 <= pic.ended <= 0xFFFF
        pic.ended, pic.pic.resample_lines = 0, rng.getrandbits(16)
        states = [pic.state(select) for select in PicSelect]
        restored = Pic.from_state(*states)
        assert [restored.state(select) for select in PicSelect] == states
        assert restored.interrupt_requested == pic.interrupt_requested
    return accesses


def beside_qemu(rng: random.Random, expired: Deadline) -> int:
    with Qemu() as machine:
        kind = type("Beside", (PicMachine,), {"oracle": QemuPic(machine)})
        return beside(kind, machine, rng, expired, acknowledge=0.3)  # which takes the longest


def beside_kvm(rng: random.Random, expired: Deadline) -> int:
    with KvmMachine() as machine:
        kind = type("Beside", (PicMachine,), {"oracle": KvmPic(machine)})
        return beside(kind, machine, rng, expired)


PHASES = (
    Phase("pic", "alone", alone, share=0.5),
    Phase("pic", "beside QEMU", beside_qemu, share=4, needs="qemu"),
    Phase("pic", "beside KVM", beside_kvm, share=4, needs="kvm"),
)
