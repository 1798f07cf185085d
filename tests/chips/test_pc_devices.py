"""A PC's devices as a guest finds them beside each chip: port 0x61, and wide accesses to devices of 8 bits."""

from __future__ import annotations

import copy
from unittest import mock

import pytest
from typing_extensions import override

from irqchip_core.bus import Access, Bus, BusDevice
from irqchip_core.clock import Clock, VirtualClock
from irqchip_core.x86.state import PitChannelState, PitRwMode, PitRwState, PitState
from irqchip_vmm import Machine, Outcome, load_file
from irqchip_vmm.devices.speaker import SpeakerPort
from tests.guests.assemble import GUESTS

pytestmark = pytest.mark.usefixtures("no_leaks")
TIMEOUT = 20
PORT = 0x510
GATE, SPEAKER, OUTPUT = 0x01, 0x02, 0x20
PULSES_NS = 0x8000 * 1_000_000_000 // 1_193_182
"""What 32768 pulses of the PIT's clock take: 27.46 ms."""


class Stopwatch(BusDevice):
    """Records the values that a guest writes, and when."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.written: list[int] = []
        self.times: list[int] = []

    @override
    def write(self, access: Access, value: int) -> None:
        self.written.append(value)
        self.times.append(self.clock.now())


def run(guest: str, names: tuple[str, str], *, deterministic: bool = False) -> tuple[Stopwatch, Outcome]:
    chip, hypervisor = names
    with Machine(hypervisor=hypervisor, chip=chip, deterministic=deterministic) as machine:
        stopwatch = Stopwatch(machine.vm.clock)
        machine.add_device(stopwatch, port=PORT)
        machine.load(load_file(GUESTS / f"real/{guest}.bin", memory_size=machine.memory.size))
        return stopwatch, machine.run(TIMEOUT).end.outcome


def calibrate(names: tuple[str, str], *, deterministic: bool = False) -> int:
    """Nanoseconds from the count to the output of counter 2 as a guest sees them."""
    stopwatch, outcome = run("calibrate", names, deterministic=deterministic)
    assert outcome is Outcome.EXIT
    # With mode 0 the output falls, but KVM's only when the count comes.
    assert [value & (GATE | SPEAKER) for value in stopwatch.written] == [0, GATE, GATE, GATE, SPEAKER]
    assert [value & OUTPUT for value in stopwatch.written[3:]] == [OUTPUT, OUTPUT]
    return stopwatch.times[3] - stopwatch.times[2]


def test_counter_2_takes_its_time_at_port_0x61(names: tuple[str, str]) -> None:
    times = [calibrate(names) for _ in range(3)]
    assert min(times) >= PULSES_NS
    assert min(times) < 1.5 * PULSES_NS, times  # at least one run was not held up by the host


def test_counter_2_is_exact_in_virtual_time() -> None:
    names = ("userspace", "unicorn")
    time = calibrate(names, deterministic=True)
    assert PULSES_NS < time < PULSES_NS + 5_000  # a pulse to load the count, and a round of the guest's loop
    assert calibrate(names, deterministic=True) == time


@pytest.mark.kvm
def test_the_vmm_has_port_0x61_for_a_chip_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("irqchip_kvm_kernel.chip.PIT_SPEAKER_DUMMY", 0)
    times = [calibrate(("kvm_kernel", "kvm")) for _ in range(3)]
    assert PULSES_NS <= min(times) < 1.5 * PULSES_NS


def test_the_vmm_s_gate_of_counter_2_stops_it() -> None:
    """As GRUB waits: the count is written while the gate is low."""
    clock = VirtualClock(5 * PULSES_NS)
    counter = PitChannelState(
        count=0x8000,
        mode=0,
        rw_mode=PitRwMode.BOTH,
        read_state=PitRwState.WORD0,
        write_state=PitRwState.WORD0,
        count_load_time=clock.now(),
    )
    state = PitState([PitChannelState(gate=True), PitChannelState(gate=True), counter])
    bus = Bus()
    bus.insert(SpeakerPort(mock.Mock(get_pit=lambda: copy.deepcopy(state)), clock), 0x61, 1)

    def seen() -> int:
        return (bus.read(0x61, 1) or 0) & (GATE | SPEAKER | OUTPUT)

    clock.advance(10 * PULSES_NS)
    bus.write(0x61, 1, SPEAKER)
    assert seen() == SPEAKER
    bus.write(0x61, 1, GATE)
    clock.advance(PULSES_NS // 2)
    assert seen() == GATE
    bus.write(0x61, 1, 0)
    clock.advance(10 * PULSES_NS)
    assert seen() == 0
    bus.write(0x61, 1, GATE)
    clock.advance(PULSES_NS // 2 - 2000)
    assert seen() == GATE
    clock.advance(4000)
    assert seen() == GATE | OUTPUT
    counter.count_load_time = clock.now()  # the guest writes the count again
    assert seen() == GATE
    clock.advance(PULSES_NS + 2000)
    assert seen() == GATE | OUTPUT


MSR = 0xB0  # CTS, DSR and DCD, as nothing is connected
EXPECTED = [
    ("CMOS by a word", 0x7C),
    ("CMOS read by a word", 0x7C00),
    ("CMOS by a double word", 0x5D),
    ("CMOS read by a double word", 0x5D00),
    ("CMOS by a string of words, first", 0x21),
    ("CMOS by a string of words, second", 0x32),
    ("CMOS by a string of words, third", 0x43),
    ("CMOS read by a string of words", 0x4343),
    ("MSR and SCR by a word", 0xA500 | MSR),
    ("IER by a word with THR", 0x02),
]
ON_THE_BUS = [("ISR and IMR by a word", 0x5A00), ("ELCR by a word", 0x0620), ("status of PIT counter 1", 0x34)]
"""KVM's own PIC and PIT take accesses of all sizes for themselves, and make a byte of them or nothing."""


def test_wide_accesses_reach_devices_of_8_bits_byte_by_byte(names: tuple[str, str]) -> None:
    stopwatch, outcome = run("wide", names)
    assert outcome is Outcome.RESET
    expected = EXPECTED if names[0] == "kvm_kernel" else EXPECTED + ON_THE_BUS
    written = stopwatch.written[: len(expected)]
    assert [(what, value) for (what, _), value in zip(expected, written, strict=True)] == expected
