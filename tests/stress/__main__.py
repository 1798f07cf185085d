"""A million interrupts and more: ``python -m tests.stress [--chip userspace] [--hypervisor kvm] [--interrupts N]``."""

from __future__ import annotations

import argparse
import sys
import threading

from tests.stress.accounts import problems
from tests.stress.stress import BROADCAST, FLOOD, PERIODIC, TOKENS, Load, Stress

SHARES = {"tokens": 0.65, "broadcasts": 0.2, "device": 0.1, "timer": 0.05}
"""Of all interrupts; the flood comes on top."""
DEVICES = 12


def load_of(interrupts: int, vcpu_count: int) -> Load:
    """A load of at least that many."""
    share = {name: int(part * interrupts) + 1 for name, part in SHARES.items()}
    return Load(
        tokens=share["tokens"] // TOKENS + 1,
        broadcasts=share["broadcasts"] // max(1, vcpu_count - 1) + 1,
        device=share["device"] // DEVICES + 1,
        timer=share["timer"] // (vcpu_count + 1) + 1,
        flood=interrupts // 200 + 1,
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.stress", description=__doc__)
    parser.add_argument("--chip", default="userspace")
    parser.add_argument("--hypervisor", default="kvm")
    parser.add_argument("--vcpus", type=int, default=8)
    parser.add_argument("--interrupts", type=int, default=1_000_000)
    parser.add_argument("--timeout", type=float, default=1200, help="seconds")
    args = parser.parse_args()
    stress = Stress(args.chip, args.hypervisor, args.vcpus, load_of(args.interrupts, args.vcpus))
    try:
        outcome = stress.run(args.timeout)
    finally:
        stress.close()
    found = problems(outcome, args.vcpus)
    if threading.active_count() != 1:
        found.append(f"threads left: {threading.enumerate()}")
    if outcome.total < args.interrupts:
        found.append(f"only {outcome.total} interrupts")
    seconds = outcome.result.seconds
    print(f"{args.chip} on {args.hypervisor}, {args.vcpus} vCPUs: {outcome.total} interrupts taken in {seconds:.1f} s,")
    print(f"{outcome.total / seconds:.0f} a second; {sum(outcome.result.exits.values())} exits")
    for name, vector in (("periodic", PERIODIC), ("flood", FLOOD), ("broadcast", BROADCAST)):
        counts = [count for count in outcome.counters.vectors if count.vector == vector]
        print(
            f"  {name}: requested {sum(c.raised for c in counts)}, delivered {sum(c.delivered for c in counts)}, "
            f"coalesced {sum(c.coalesced for c in counts)}, ended {sum(c.ended for c in counts)}"
        )
    coalesced = sum(count.coalesced for count in outcome.counters.gsis)
    print(f"  events: signalled {sum(count.raised for count in outcome.counters.gsis)}, coalesced {coalesced}")
    for at in (0.05, 0.25, 0.5, 0.75, 1):
        sample = outcome.samples[min(int(at * len(outcome.samples)), len(outcome.samples) - 1)]
        print(f"  memory after {at:4.0%}: {sample.blocks} blocks, {sample.resident >> 10} KiB in RAM")
    for problem in found:
        print(problem, file=sys.stderr)
    print("every interrupt is accounted for" if not found else f"{len(found)} problems")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
