"""The errors irqchip raises on purpose.

Each names what it happened to, the argument at fault and what to do about it, and carries the
errno that the KVM API or the contract gives for the same mistake (0 where there is none).
"""

from __future__ import annotations

import errno as _errno
from collections.abc import Iterable


class IrqChipError(Exception):
    """Base of all irqchip errors.

    Attributes:
        subject: The chip, hypervisor or plugin it happened to; empty if none.
        argument: Name of the argument at fault; empty if no single one is.
        problem: What is wrong, one sentence without its period.
        remedy: What the caller can do; empty if nothing is known to help.
        errno: An ``errno`` number, or 0.
    """

    errno: int = 0

    def __init__(self, problem: str, *, subject: str = "", argument: str = "", remedy: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.subject = subject
        self.argument = argument
        self.remedy = remedy

    def __str__(self) -> str:
        head = ": ".join(part for part in (self.subject, self.argument, self.problem) if part)
        return f"{head}; {self.remedy}" if self.remedy else head


class InvalidArgument(IrqChipError, ValueError):
    """An argument has a value that no chip of this kind can accept."""

    errno = _errno.EINVAL


class WrongType(IrqChipError, TypeError):
    """An object of a kind this chip cannot use, such as another hypervisor's vCPU."""

    errno = _errno.EINVAL


class InvalidRoute(InvalidArgument):
    """A route that names a missing pin, a GSI out of range, or that conflicts with another route."""


class UnknownVcpu(IrqChipError, LookupError):
    """The vCPU number is out of range, or its vCPU was not given to the chip yet."""

    errno = _errno.ENOENT


class EventInUse(IrqChipError):
    """The trigger of this event is connected already, to what allows no second user of it."""

    errno = _errno.EBUSY


class Closed(IrqChipError, ValueError):
    """The chip, event, vCPU or VM was used after it was closed."""

    errno = _errno.EBADF


class Unsupported(IrqChipError):
    """The chip or the hypervisor cannot do this at all."""

    errno = _errno.ENOTSUP


class Exhausted(IrqChipError):
    """No free number of the requested kind is left."""

    errno = _errno.ENOSPC


class HypervisorError(IrqChipError):
    """A call to the hypervisor failed.

    Attributes:
        call: The call that failed, such as ``KVM_SET_GSI_ROUTING``.
    """

    def __init__(self, problem: str, *, call: str, errno: int, subject: str = "", remedy: str = "") -> None:
        super().__init__(problem, subject=subject, argument=call, remedy=remedy)
        self.call = call
        self.errno = errno


class PluginError(IrqChipError):
    """A plugin could not be loaded, or does not fit this version of irqchip."""


class TimedOut(PluginError):
    """A plugin's code has not come to an end in the time it has."""

    errno = _errno.ETIMEDOUT


class DuplicateName(PluginError):
    """Two distributions offer a backend or hypervisor of the same name."""


class UnknownName(PluginError, LookupError):
    """No installed plugin offers this name.

    Attributes:
        name: The requested name.
        suggestion: The nearest installed name, or None.
    """

    def __init__(
        self, problem: str, *, name: str, suggestion: str | None = None, argument: str = "", remedy: str = ""
    ) -> None:
        super().__init__(problem, argument=argument, remedy=remedy)
        self.name = name
        self.suggestion = suggestion


class NothingSuitable(IrqChipError, LookupError):
    """No installed backend, or no hypervisor, fits.

    Attributes:
        refusals: One ``(name, reason)`` pair for each candidate.
    """

    errno = _errno.ENOTSUP

    def __init__(
        self, problem: str, *, refusals: Iterable[tuple[str, str]], argument: str = "", remedy: str = ""
    ) -> None:
        super().__init__(problem, argument=argument, remedy=remedy)
        self.refusals = tuple(refusals)

    def __str__(self) -> str:
        lines = [super().__str__()]
        lines += [f"  {name}: {reason}" for name, reason in self.refusals]
        return "\n".join(lines)
