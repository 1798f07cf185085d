"""``python -m tests.fuzz --seconds N``: random accesses to the x86 parts, alone and beside their oracles."""

from __future__ import annotations

import argparse
import os
import random
import sys

from tests.conftest import NEEDS
from tests.fuzz import fuzz_ioapic, fuzz_lapic, fuzz_pic, fuzz_pit
from tests.fuzz.run import Phase, run

PHASES = (*fuzz_pic.PHASES, *fuzz_pit.PHASES, *fuzz_ioapic.PHASES, *fuzz_lapic.PHASES)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=480, help="how long to run, all together")
    parser.add_argument("--seed", type=int, default=None, help="repeat a run; the default is a new one each time")
    parser.add_argument("--part", choices=sorted({phase.part for phase in PHASES}), help="only this one")
    arguments = parser.parse_args()
    required = os.environ.get("IRQCHIP_REQUIRE", "").replace(",", " ").split()
    phases: list[Phase] = []
    for phase in PHASES:
        if arguments.part not in (None, phase.part):
            continue
        if phase.needs is not None and (reason := NEEDS[phase.needs]()):
            if phase.needs in required:
                parser.error(f"IRQCHIP_REQUIRE names {phase.needs}, but {reason}")
            sys.stdout.write(f"{phase.part} not {phase.beside}: {reason}\n")
            continue
        phases.append(phase)
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().getrandbits(32)
    run(phases, arguments.seconds, seed, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
