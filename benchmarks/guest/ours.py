"""The guest under irqchip's VMM, as a program of its own: ``python -m benchmarks.guest.ours CHIP VCPUS COMMAND_LINE``.

COM1 is standard output. With ``--profile`` the functions in which the first vCPU's thread spends its time are printed
on standard error, with their shares of all that is not KVM_RUN.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import sys
import threading
from pathlib import Path
from types import FrameType

from typing_extensions import override

from irqchip_core.bus import Access, BusDevice
from irqchip_vmm import Machine, MsiIrq, load_file

GUEST = Path(__file__).with_name("guest.bin")
DOORBELL, DOORBELL_LENGTH = 0xFEA00000, 0x1000  # as in guest.S
MSI_ADDRESS, MSI_VECTOR = 0xFEE00000, 0x40
FUNCTIONS = 12
"""How many functions are printed."""


class Doorbell(BusDevice):
    """Sends a message when its page is written, as the device of QEMU's does that the guest uses there."""

    debug_label = "doorbell"

    def __init__(self, irq: MsiIrq) -> None:
        self._irq = irq

    @override
    def write(self, access: Access, value: int) -> None:
        self._irq.trigger()


def run(chip: str, vcpus: int, command_line: str) -> None:
    """Run the guest to its end."""
    with Machine(hypervisor="kvm", chip=chip, vcpu_count=vcpus, console=_write) as machine:
        irq = machine.msi_irq(name="doorbell")
        irq.set_message(MSI_ADDRESS, MSI_VECTOR)
        machine.add_device(Doorbell(irq), mmio=DOORBELL, length=DOORBELL_LENGTH)
        machine.load(load_file(GUEST, memory_size=machine.memory.size, command_line=command_line))
        machine.run()


def _write(data: bytes) -> None:
    os.write(1, data)


def _profiled(chip: str, vcpus: int, command_line: str) -> None:
    profile = cProfile.Profile()

    def start(frame: FrameType, event: str, argument: object) -> None:
        sys.setprofile(None)
        if threading.current_thread().name == "vCPU 0":
            profile.enable()

    threading.setprofile(start)
    run(chip, vcpus, command_line)
    profile.create_stats()
    stats = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    spent = {key: own for key, (_, _, own, _, _) in stats.items() if key[2] != "try_call"}  # which is in KVM_RUN
    total = sum(spent.values())
    for (file, _, function), own in sorted(spent.items(), key=lambda item: -item[1])[:FUNCTIONS]:
        place = f"{Path(file).stem}.{function}" if file != "~" else function
        print(f"function {own / total:.4f} {place}", file=sys.stderr)


def main() -> None:
    """Run or profile."""
    parser = argparse.ArgumentParser()
    parser.add_argument("chip")
    parser.add_argument("vcpus", type=int)
    parser.add_argument("command_line")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    (_profiled if options.profile else run)(options.chip, options.vcpus, options.command_line)


if __name__ == "__main__":
    main()
