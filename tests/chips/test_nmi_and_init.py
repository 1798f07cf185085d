"""NMIs beside an INIT: which one the processor takes after it was started, on every chip."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from irqchip_core.chip import MPState
from irqchip_core.hypervisor.vcpu import Vm
from irqchip_core.testing import agent
from irqchip_core.testing.bench import Bench
from irqchip_core.testing.conformance.ipis import command
from irqchip_core.testing.guest_cpu import NMI_VECTOR
from irqchip_core.x86 import msi
from irqchip_core.x86.chip import IrqChipX86_64

pytestmark = pytest.mark.usefixtures("no_leaks")

NMI, INIT, STARTUP = msi.NMI, msi.INIT, msi.STARTUP
START = b"\x90\x90\x90\x66\xe5\x12"  # in real mode: three NOPs, then in $COMMAND, %eax
HANDLER = b"\xb0\x02\xe6\x10\xcf"  # mov $2, %al; out %al, $TAKEN; iret
HANDLER_AT = 0x600


@pytest.fixture
def bench(vm: Vm, chip: IrqChipX86_64) -> Iterator[Bench]:
    with Bench(vm, chip, vcpus=2) as bench:
        yield bench


@pytest.mark.parametrize(
    ("sent", "nmis"),
    [
        ((NMI, INIT, STARTUP), 0),  # lost with what the processor was doing
        ((INIT, NMI, STARTUP), 1),  # waits for the start
        ((INIT, STARTUP, NMI), 1),
        ((NMI, INIT, STARTUP, NMI), 1),
    ],
    ids=lambda value: (
        " ".join({NMI: "NMI", INIT: "INIT", STARTUP: "STARTUP"}[mode] for mode in value)
        if isinstance(value, tuple)
        else None
    ),
)
def test_only_nmis_after_the_init_are_taken(bench: Bench, sent: tuple[int, ...], nmis: int) -> None:
    target, start = bench.cpus[1], agent.STARTUP_VECTOR << 12
    bench.memory[start : start + len(START)] = START
    bench.memory[HANDLER_AT : HANDLER_AT + len(HANDLER)] = HANDLER
    bench.memory[4 * NMI_VECTOR : 4 * NMI_VECTOR + 4] = HANDLER_AT.to_bytes(4, "little")
    for mode in sent:
        vector = agent.STARTUP_VECTOR if mode == STARTUP else 0
        bench.cpu.send_ipi(command(vector, mode=mode), destination=1)
        if bench.chip.get_mp_state(1) is not MPState.RUNNABLE:  # KVM takes an INIT when that is called
            bench.chip.inject_interrupts(target.vcpu)
    target._command = None
    assert target._run(None)
    assert target.taken == [NMI_VECTOR] * nmis
