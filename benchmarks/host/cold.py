"""Starting: an interpreter that imports irqchip_core, lists plugins or chooses a chip; beside one that does nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial

from benchmarks.host.scale import Scale
from benchmarks.measuring import OURS, Row, in_turn, timed

STARTED = 9
"""How often each is started."""
BARE = "the bare interpreter"
STARTS: dict[str, list[str]] = {
    "import irqchip_core": ["-c", "import irqchip_core"],
    "irqchip --help": ["-m", "irqchip_core", "--help"],
    "irqchip list": ["-m", "irqchip_core", "list"],
    "choose": ["-c", "from irqchip_core.selection import choose\nwith choose().vm: pass"],
    "import irqchip_vmm.Machine": ["-c", "from irqchip_vmm import Machine"],
}


def _start(arguments: list[str]) -> None:
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)


def rows(scale: Scale) -> Iterator[Row]:
    """All of this module."""
    for name, arguments in STARTS.items():
        ways: dict[str, Callable[[], float]] = {
            OURS: timed(partial(_start, arguments)),
            BARE: timed(partial(_start, ["-c", ""])),
        }
        yield Row("start", name, in_turn(ways, min(scale.repeats, STARTED)))
