"""How a run ends, and the first cause winning: devices, vCPU threads and the host may all end it at once.

And what became of it.
"""

from __future__ import annotations

import enum
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType

from attrs import field, frozen

from irqchip_core.x86.counters import ChipCounters
from irqchip_vmm.devices.generator import ReportRow
from irqchip_vmm.interrupts import IrqCount

SIGNAL_SECONDS = 0.5
"""How long a signal may go unnoticed at most."""


class Outcome(enum.Enum):
    """Why the run ended. Values are those of ``irqchip run --json``."""

    EXIT = "exit"
    """The guest wrote to the exit port."""
    RESET = "reset"
    """The guest requested a reset: keyboard controller, or the hypervisor's own way."""
    SHUTDOWN = "shutdown"
    """The guest requested a shutdown of the hypervisor."""
    TRIPLE_FAULT = "triple_fault"
    """An exception while the guest could not take one."""
    TIMEOUT = "timeout"
    """The time given to `Machine.run` ran out."""
    STOPPED = "stopped"
    """The host called `Machine.stop`."""
    ERROR = "error"
    """A vCPU could not go on, or a part of the machine failed."""


@frozen
class End:
    """The end of a run.

    Attributes:
        outcome: Why.
        status: Exit status; None unless the guest wrote one to the exit port.
        vcpu_id: On which vCPU; None if on none.
        detail: One sentence for people; empty if the outcome says all.
    """

    outcome: Outcome
    status: int | None = None
    vcpu_id: int | None = None
    detail: str = ""


@frozen
class RunResult:
    """What became of a run.

    Attributes:
        end: How it ended.
        seconds: How long it took.
        interrupts: What each device raised.
        report: What the guest reported to the interrupt generator; None if nothing.
        report_error: Why the last report was refused; None if none was.
        exits: How often the vCPUs left guest code, by kind of exit.
        unclaimed: Accesses of the guest that no device answered.
        device_errors: Exceptions of devices that were logged and ignored.
        counters: What the chip counted; empty for controllers in the hypervisor.
    """

    end: End
    seconds: float
    interrupts: Sequence[IrqCount]
    report: Sequence[ReportRow] | None
    report_error: str | None
    exits: Mapping[str, int]
    unclaimed: int
    device_errors: int
    counters: ChipCounters = field(factory=ChipCounters)


class Ending:
    """Holds the first `End`.

    Args:
        on_end: Called once, on the thread that ends the run.
    """

    def __init__(self, on_end: Callable[[], object]) -> None:
        self._on_end = on_end
        self._lock = threading.Lock()
        self._happened = threading.Event()
        self.end: End | None = None

    def finish(self, outcome: Outcome, status: int | None = None, vcpu_id: int | None = None, detail: str = "") -> None:
        """End the run, unless it has ended already. From any thread."""
        with self._lock:
            if self.end is not None:
                return
            self.end = End(outcome, status, vcpu_id, detail)
        self._happened.set()
        self._on_end()

    def wait(self, timeout: float | None) -> bool:
        """Wait for the end; False if `timeout` seconds passed first.

        Python's own signal handlers (Ctrl-C) run only when the main thread comes back from waiting, and the kernel may
        give a signal to another thread, which does not wake this one. So it never waits long at once.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = SIGNAL_SECONDS if deadline is None else min(SIGNAL_SECONDS, deadline - time.monotonic())
            if self._happened.wait(max(0.0, left)):
                return True
            if left < SIGNAL_SECONDS:
                return False


@contextmanager
def ctrl_c_later() -> Iterator[None]:
    """Let a Ctrl-C that comes meanwhile count at the end.

    `KeyboardInterrupt` out of `Thread.start` leaves a thread that runs, and that cannot be joined yet.
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    came: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: came.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if came:
            handler(*came[0])
