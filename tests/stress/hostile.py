"""A machine with a guest that means harm (guests/stress/hostile.S)."""

from __future__ import annotations

import gc
import struct
import sys

from typing_extensions import override

from irqchip_core.bus import Access, BusDevice
from irqchip_core.x86.msi import decode_icr, decode_msi
from irqchip_vmm import Machine, Outcome, RunResult, load_file
from tests.guests.assemble import GUESTS

# Of smp.inc and hostile.S
CPUS, CPU_SIZE = 0x20000, 0x2000
SEED, HOSTILE, ATTACKS = 0x400, 0x408, 0x40C
TICK_PORT = 0x510
SPARE = 0x10000
STUCK_LINES = (20, 21)
"""Level lines that are high and stay so."""
BROADCAST_ADDRESS, START_UP = 0xFEEFF000, 6 << 8 | 0x08
REVIVAL_NS = 20_000_000
FOREVER = 1 << 32
LEGAL_ENDS = (Outcome.STOPPED, Outcome.TIMEOUT, Outcome.TRIPLE_FAULT, Outcome.ERROR)
"""A guest may well shoot itself; KVM's internal error, when it runs where there is no code, is one of the ways."""


class HostileMachine(BusDevice):
    """A machine whose last vCPU is the victim, and all others attack.

    Args:
        chip, hypervisor: Names.
        seed: Of the attacks; not 0.
        attackers: How many.
        spare: Whether the victim is safe from INIT and SMI.

    Attributes:
        ticks: Number of ticks that the victim has reported.
    """

    debug_label = "victim's ticks"

    def __init__(self, chip: str, hypervisor: str, seed: int, *, attackers: int = 1, spare: bool = True) -> None:
        self.machine = Machine(chip=chip, hypervisor=hypervisor, vcpu_count=attackers + 1)
        self.seed = seed
        self.attackers = attackers
        self.ticks = 0
        self._wanted: tuple[int, int] | None = None
        self._revival = None if spare else self.machine.msi_irq(name="start-up")
        memory = self.machine.memory
        self.machine.add_device(self, port=TICK_PORT, length=1)
        self.machine.load(load_file(GUESTS / "stress" / "hostile.bin", memory_size=memory.size))
        memory.write(SPARE, struct.pack("<I", spare))
        for vcpu in range(attackers):
            page = CPUS + CPU_SIZE * vcpu
            memory.write(page + SEED, struct.pack("<QI", (seed + vcpu) * 0x9E3779B97F4A7C15 & (1 << 64) - 1, 1))

    def close(self) -> None:
        self.machine.close()

    @property
    def attacks(self) -> int:
        """How many there were."""
        found = 0
        for vcpu in range(self.attackers):
            data = self.machine.memory.read(CPUS + CPU_SIZE * vcpu + ATTACKS, 4)
            assert data is not None
            found += int.from_bytes(data, "little")
        return found

    def run(self, timeout: float, *, attacks: int = 0, ticks: int = FOREVER) -> RunResult:
        """Run until there were so many attacks, and so many ticks of the victim."""
        self._wanted = (attacks, ticks)
        for line in STUCK_LINES:
            self.machine.chip.service_irq(line, True)
        if self._revival is not None:
            assert self._revival.set_message(BROADCAST_ADDRESS, START_UP)
            self._revive()
        return self.machine.run(timeout)

    def _revive(self) -> None:
        """Start those that an INIT has stopped, again and again."""
        assert self._revival is not None
        self._revival.trigger()
        self.machine.call_later(REVIVAL_NS, self._revive)

    @override
    def write(self, access: Access, value: int) -> None:
        self.ticks += 1
        assert self._wanted is not None
        if self.ticks >= self._wanted[1] and self.attacks >= self._wanted[0]:
            self.machine.stop()


def problems(hostile: HostileMachine, result: RunResult) -> list[str]:
    """What is wrong after a run, whatever became of the guest: one sentence for each."""
    found = []
    if result.end.outcome not in LEGAL_ENDS:
        found.append(f"seed {hostile.seed}: {result.end}")
    if result.end.outcome is Outcome.ERROR and "the hypervisor cannot" not in result.end.detail:
        found.append(f"seed {hostile.seed}: {result.end.detail}")
    if result.device_errors:
        found.append(f"seed {hostile.seed}: {result.device_errors} accesses made a device raise")
    return found


def memory_kept() -> int:
    """Blocks of Python's allocator in use, without what the two caches of messages hold (at most 4096 each)."""
    decode_icr.cache_clear()
    decode_msi.cache_clear()
    gc.collect()
    return sys.getallocatedblocks()
