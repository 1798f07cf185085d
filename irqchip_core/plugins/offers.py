"""What plugins offer, as core uses it: each attribute read once, each method called with a time limit.

Nothing else calls a plugin's backend or hypervisor. Calls that lead back to the same offer, as those of two backends
that wrap each other, are refused, so that a choice comes to an end whatever plugins choose meanwhile.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from typing_extensions import override

from irqchip_core.errors import IrqChipError, PluginError, TimedOut
from irqchip_core.hookspecs import Backend, Hypervisor, Probe
from irqchip_core.plugins.loading import run_with_timeout, time_limit

if TYPE_CHECKING:
    from irqchip_core.chip import IrqChip
    from irqchip_core.clock import VirtualClock
    from irqchip_core.hypervisor.vcpu import Vm

_T = TypeVar("_T")
_under_way: contextvars.ContextVar[tuple[tuple[type, str], ...]] = contextvars.ContextVar("under_way", default=())


def inside_a_backend() -> bool:
    """Whether the caller is called by `probe` or `create` of a backend, as a wrapper's choice is."""
    return bool(_under_way.get())


@contextlib.contextmanager
def _entering(plugin: Backend, name: str) -> Iterator[None]:
    chain, me = _under_way.get(), (type(plugin), name)
    if me in chain:
        way = " -> ".join([*(passed for _, passed in chain[chain.index(me) :]), name])
        raise PluginError(f"it would wrap itself ({way})", subject=name, remedy="let it wrap another one")
    token = _under_way.set((*chain, me))
    try:
        yield
    finally:
        _under_way.reset(token)


class _Calls:
    """The calls of one offer.

    Args:
        whose: The offer's kind, name and plugin, for errors.
        name: The offer's name.
        seconds: What each call may take.
    """

    def __init__(self, whose: str, name: str, seconds: float) -> None:
        self._whose = whose
        self._name = name
        self._seconds = seconds
        self._probe_too_slow = ""

    def _call(self, method: str, function: Callable[[], _T], discard: Callable[[_T], object]) -> _T:
        return run_with_timeout(self._seconds, f"{method} of {self._whose}", function, discard=discard)

    def make(self, method: str, function: Callable[[], _T], *kinds: type) -> _T:
        """What `function` makes; whatever it raises or returns by mistake is a `PluginError` with the offer's name."""
        try:
            made: _T = self._call(method, function, _close)
        except IrqChipError:
            raise
        except (Exception, SystemExit) as error:
            raise PluginError(f"it failed with {type(error).__name__}: {error}", subject=self._name) from error
        self._check_made(made, kinds)
        return made

    def _check_made(self, made: object, kinds: tuple[type, ...]) -> None:
        if not isinstance(made, kinds):
            raise PluginError(f"it made {made!r}, which is no {kinds[0].__name__}", subject=self._name)

    def probe(self, function: Callable[[], _T]) -> _T | str:
        """What `function` returns, or why it failed. One that has not ended in time is not called again."""
        if self._probe_too_slow:
            return self._probe_too_slow
        try:
            return self._call("probe", function, lambda result: None)
        except TimedOut as error:
            if not inside_a_backend():  # where the limit is what the caller has left
                self._probe_too_slow = str(error)
            return str(error)
        except (Exception, SystemExit) as error:  # must not keep the others from being chosen
            return f"its probe failed with {type(error).__name__}: {error}"


def _close(made: Any) -> None:
    """Close what a call has made that was given up meanwhile."""
    if callable(close := getattr(made, "close", None)):
        close()


def _read(offer: Backend | Hypervisor, plugin: object, kind: type[Backend | Hypervisor]) -> None:
    for attribute in kind.__annotations__:
        setattr(offer, attribute, getattr(plugin, attribute, None))


class BackendOffer(Backend):
    """A plugin's backend.

    Args:
        plugin: The backend.
        origin: The plugin, for errors.
        seconds: What each call may take; None for what the user grants.
    """

    def __init__(self, plugin: Backend, origin: str = "", seconds: float | None = None) -> None:
        _read(self, plugin, Backend)
        self.plugin = plugin
        whose = f"backend {self.name}{origin and f' ({origin})'}"
        self._calls = _Calls(whose, self.name, time_limit() if seconds is None else seconds)

    @override
    def probe(self, vm: Vm) -> Probe:
        """What the backend says of `vm`; never raises."""
        answer = self._calls.probe(lambda: self._probe(vm))
        return Probe(answer) if isinstance(answer, str) else answer

    def _probe(self, vm: Vm) -> Probe:
        from irqchip_core.capabilities import AnyCapability

        with _entering(self.plugin, self.name):
            probe = self.plugin.probe(vm)
        if not isinstance(probe, Probe) or not isinstance(probe.refusal, str | None):
            raise TypeError(f"it answered {probe!r}")
        if not all(isinstance(capability, AnyCapability) for capability in probe.capabilities):
            raise TypeError(f"its capabilities are {probe.capabilities!r}")
        return probe

    @override
    def create(self, vm: Vm, vcpu_count: int) -> IrqChip:
        from irqchip_core.chip import IrqChip

        return self._calls.make("create", lambda: self._create(vm, vcpu_count), IrqChip)

    def _create(self, vm: Vm, vcpu_count: int) -> IrqChip:
        with _entering(self.plugin, self.name):
            return self.plugin.create(vm, vcpu_count)


class HypervisorOffer(Hypervisor):
    """A plugin's hypervisor; the arguments are those of `BackendOffer`."""

    def __init__(self, plugin: Hypervisor, origin: str = "", seconds: float | None = None) -> None:
        _read(self, plugin, Hypervisor)
        self.plugin = plugin
        whose = f"hypervisor {self.name}{origin and f' ({origin})'}"
        self._calls = _Calls(whose, self.name, time_limit() if seconds is None else seconds)

    @override
    def probe(self) -> str | None:
        """None if VMs can be made here, else why not; never raises."""
        return self._calls.probe(self._probe)

    def _probe(self) -> str | None:
        answer = self.plugin.probe()
        if not isinstance(answer, str | None):
            raise TypeError(f"it answered {answer!r}")
        return answer

    @override
    def create_vm(self) -> Vm:
        from irqchip_core.hypervisor.vcpu import Vm

        return self._calls.make("create_vm", self.plugin.create_vm, Vm)

    @override
    def create_vm_in_virtual_time(self, clock: VirtualClock) -> Vm:
        from irqchip_core.hypervisor.vcpu import Vm

        return self._calls.make("create_vm_in_virtual_time", lambda: self.plugin.create_vm_in_virtual_time(clock), Vm)

    @override
    def try_create_vm(self, clock: VirtualClock | None = None) -> Vm | str:
        from irqchip_core.hypervisor.vcpu import Vm

        if type(self.plugin).try_create_vm is Hypervisor.try_create_vm or (clock and not self.virtual_time):
            return super().try_create_vm(clock)  # by the calls above
        return self._calls.make("try_create_vm", lambda: self.plugin.try_create_vm(clock), Vm, str)
