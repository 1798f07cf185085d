"""Hostile guests, one seed after another: ``python -m tests.stress.soak [--seconds 60] [--chip C --hypervisor H]``."""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections import Counter
from contextlib import closing

from tests.stress.hostile import HostileMachine, memory_kept, problems

SPARED_TICKS = 300
SPARED_TIMEOUT = 30.0
CHAOS_SECONDS = 1.0


def soak(chip: str, hypervisor: str, seconds: float) -> list[str]:
    """Try seeds for so long, with and without a spared victim; what went wrong."""
    found: list[str] = []
    ends: Counter[str] = Counter()
    attacks = ticks = seed = 0
    kept = None
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        seed += 1
        spare = seed % 2 == 0
        with closing(HostileMachine(chip, hypervisor, seed, attackers=1 if spare else 2, spare=spare)) as hostile:
            if spare:
                result = hostile.run(SPARED_TIMEOUT, ticks=SPARED_TICKS)
                if hostile.ticks < SPARED_TICKS:
                    found.append(f"seed {seed}: {hostile.ticks} ticks only, then {result.end}")
            else:
                result = hostile.run(CHAOS_SECONDS)
            found += problems(hostile, result)
            attacks += hostile.attacks
            ticks += hostile.ticks
            ends[result.end.outcome.value] += 1
        del hostile
        kept = kept or memory_kept()
    grown = memory_kept() - (kept or 0)
    print(f"{chip} on {hypervisor}: {seed} guests, {attacks} attacks, {ticks} ticks of victims; {dict(ends)};")
    print(f"  {grown} blocks of memory more at the end, {threading.active_count() - 1} threads left")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.stress.soak", description=__doc__)
    parser.add_argument("--chip")
    parser.add_argument("--hypervisor", default="kvm")
    parser.add_argument("--seconds", type=float, default=60, help="for each chip")
    args = parser.parse_args()
    places = [("userspace", "kvm"), ("userspace", "unicorn"), ("kvm_kernel", "kvm")]
    if args.chip:
        places = [(args.chip, args.hypervisor)]
    found = [problem for place in places for problem in soak(*place, args.seconds)]
    for problem in found:
        print(problem, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
