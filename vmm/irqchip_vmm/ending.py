"""How a run ends, and the first cause winning: devices, vCPU threads and the host may all end it at once."""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable

from attrs import frozen


class Outcome(enum.Enum):
    """Why the run ended. Values are those of ``irqchip run --json``."""

    EXIT = "exit"
    """The guest wrote to the exit port."""
    RESET = "reset"
    """The guest asked for a reset: keyboard controller, or the hypervisor's own way."""
    SHUTDOWN = "shutdown"
    """The guest asked the hypervisor for a shutdown."""
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
        """Wait for the end; False if `timeout` seconds passed first."""
        return self._happened.wait(timeout)
