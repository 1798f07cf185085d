"""NMIs: one is taken, one is held, and none is lost, on every chip (Intel SDM vol. 3, 7.7.1)."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from irqchip_core.bus import Bus
from irqchip_core.chip import MPState, VcpuRunState
from irqchip_core.hypervisor.exits import IoExit
from irqchip_core.vcpu_loop import VcpuLoop
from irqchip_vmm import Machine, Outcome, load_file
from tests.chips.test_init import CODE, Pair
from tests.guests.assemble import GUESTS

pytestmark = pytest.mark.usefixtures("no_leaks")

COUNTED, MODE, ROUNDS = 0x18000, 0x18008, 1000  # of nmi.S
SPIN, HALT, OUTPUT = range(3)
PATIENCE = 50
NMI, FIXED = 0x4400, 0x4000
NMI_HANDLER, INTERRUPT_HANDLER, ENTERED = 0x6000, 0x6100, 0x30


@pytest.mark.parametrize("mode", [SPIN, HALT, OUTPUT], ids=["spins", "halts", "exits"])
def test_two_nmis_in_quick_succession_are_both_taken(names: tuple[str, str], mode: int) -> None:
    chip, hypervisor = names
    with Machine(chip=chip, hypervisor=hypervisor, vcpu_count=2) as machine:
        machine.load(load_file(GUESTS / "multiboot" / "nmi.bin", memory_size=machine.memory.size, command_line=""))
        machine.memory.write(MODE, struct.pack("<I", mode))
        result = machine.run(PATIENCE)
        counted = machine.memory.read(COUNTED, 4)
    assert counted is not None
    assert int.from_bytes(counted, "little") == 2 * ROUNDS
    assert result.end.outcome is Outcome.EXIT


@pytest.fixture(params=[pytest.param("kvm", marks=pytest.mark.kvm), "unicorn"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """A vCPU that halts, and again in its NMI handler, which lets interrupts in."""
    pair = Pair(request.param, b"\xf4\xeb\xfd")  # hlt, again and again
    handler = bytes([0xE6, ENTERED, 0xFB, 0xF4, 0xCF])  # out %al, $ENTERED; sti; hlt; iret
    pair.memory[NMI_HANDLER : NMI_HANDLER + len(handler)] = handler
    pair.memory[INTERRUPT_HANDLER] = 0xCF
    pair.memory[4 * 2 : 4 * 3] = struct.pack("<HH", NMI_HANDLER, 0)
    pair.memory[4 * 0x41 : 4 * 0x42] = struct.pack("<HH", INTERRUPT_HANDLER, 0)
    registers = pair.vcpu.get_regs()
    registers.rip, registers.rsp = CODE, 0x4000
    pair.vcpu.set_regs(registers)
    state = pair.x86.get_lapic_state(1)
    state.regs[0xF0 >> 4] = 0x1FF
    pair.x86.set_lapic_state(1, state)
    yield pair
    pair.close()


def nmis_until_it_sleeps(pair: Pair) -> int:
    """Run as a VMM does until the vCPU is halted; how often it has entered the NMI handler."""
    loop = VcpuLoop(pair.vcpu, pair.x86, Bus("I/O"), pair.mmio)
    while True:
        assert loop.step() is None
        if isinstance(loop.last_exit, IoExit):
            assert loop.last_exit.port == ENTERED
        if pair.chip.get_mp_state(1) is MPState.HALTED:
            return loop.exits.get(IoExit, 0)


def test_an_nmi_that_is_blocked_ends_no_hlt_until_an_iret_unblocks_it(pair: Pair) -> None:
    assert nmis_until_it_sleeps(pair) == 0
    pair.send(NMI)
    assert nmis_until_it_sleeps(pair) == 1  # and is in the handler
    for _ in range(2):
        pair.send(NMI)
        pair.chip.inject_interrupts(pair.vcpu)
        assert pair.chip.get_mp_state(1) is MPState.HALTED
        pair.chip.kick_halted_vcpus()
        assert pair.chip.wait_until_runnable(pair.vcpu) is VcpuRunState.INTERRUPTED
    pair.send(FIXED | 0x41)
    assert nmis_until_it_sleeps(pair) == 1  # the IRET of any handler unblocks NMIs; one was held, and not two


def test_of_two_nmis_to_a_halted_vcpu_the_second_comes_when_the_first_has_ended(pair: Pair) -> None:
    assert nmis_until_it_sleeps(pair) == 0
    pair.memory[NMI_HANDLER + 2 : NMI_HANDLER + 4] = b"\x90\x90"  # no HLT in the handler
    pair.send(NMI)
    pair.send(NMI)
    assert nmis_until_it_sleeps(pair) == 2
