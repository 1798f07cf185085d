"""A VM with its chip and vCPUs, made and closed: time, and memory of this process (not of the kernel)."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from benchmarks.host.scale import KVM_CHIPS, Scale, attempt, made
from benchmarks.limits import in_c
from benchmarks.measuring import OURS, Row, Sample, in_turn, timed

PAGE = 4096
IN_KERNEL = {"kvm_kernel": 1, "kvm_split": 2, "userspace": 0}
"""As of create_and_close in limits.c."""


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def _make(stack: ExitStack, chip: str, count: int) -> None:
    vm, irqchip = stack.enter_context(made(chip, "kvm", count))
    for vcpu_id in range(count):
        irqchip.add_vcpu(vcpu_id, vm.create_vcpu(vcpu_id))


def _create_and_close(chip: str, count: int) -> None:
    with ExitStack() as stack:
        _make(stack, chip, count)


def _time(chip: str, count: int, scale: Scale) -> Row:
    ways = {OURS: timed(partial(_create_and_close, chip, count))} | in_c("create_and_close", IN_KERNEL[chip], count)
    return Row("create and close, by vCPUs", f"{chip}: {count}", in_turn(ways, scale.repeats), size=count)


def _memory(chip: str, count: int, scale: Scale) -> Row:
    command = [
        sys.executable,
        "-m",
        "benchmarks.host.lifetime",
        chip,
        str(count),
    ]  # where nothing was made and freed before
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise OSError(done.stderr.strip().splitlines()[-1])
    used = float(done.stdout)
    return Row("memory, by vCPUs", f"{chip}: {count}", {OURS: Sample(used, used, used)}, unit="B", size=count)


def _print_memory(chip: str, count: int) -> None:
    _create_and_close(chip, 1)  # imports and caches
    gc.collect()
    before = _resident()
    with ExitStack() as stack:
        _make(stack, chip, count)
        print(_resident() - before)


def rows(scale: Scale) -> Iterator[Row]:
    """All of this module."""
    counts = [count for count in scale.vcpus if count in (1, 8, 64, 254)]
    for measure, name in ((_memory, "memory, by vCPUs"), (_time, "create and close, by vCPUs")):
        for chip in KVM_CHIPS:
            for count in counts:
                yield attempt(name, f"{chip}: {count}", partial(measure, chip, count, scale))


if __name__ == "__main__":
    _print_memory(sys.argv[1], int(sys.argv[2]))
