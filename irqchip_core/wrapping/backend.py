"""`WrapperBackend`: a backend whose chips wrap those of another, whichever fits."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from typing_extensions import override

from irqchip_core.errors import NothingSuitable, PluginError, WrongType
from irqchip_core.hookspecs import Backend, Probe

if TYPE_CHECKING:
    from irqchip_core.hypervisor.vcpu import Vm
    from irqchip_core.selection import Candidate
    from irqchip_core.x86.chip import IrqChipX86_64


class WrapperBackend(Backend):
    """Can serve a VM if the backend it wraps can, and has that one's capabilities, but for those that plugins add.

    Attributes:
        wraps: Name of the backend to wrap, which may be a wrapper; None for the first that fits and is none.
    """

    wrapper = True
    wraps: str | None = None

    @abstractmethod
    def wrap(self, inner: IrqChipX86_64) -> IrqChipX86_64:
        """Make the chip around `inner`, which belongs to it from now on."""

    def _choose(self, vm: Vm) -> Candidate:
        from irqchip_core.selection import candidates

        if self.wraps == self.name:
            raise PluginError("it is to wrap itself", subject=self.name, argument="wraps", remedy="name another one")
        judged = candidates(vm, name=self.wraps)
        for candidate in judged:
            if candidate.refusal is None:
                return candidate
        refusals = [(candidate.backend.name, candidate.refusal or "") for candidate in judged]
        raise NothingSuitable("there is no chip to wrap", refusals=refusals, argument=self.name)

    @override
    def probe(self, vm: Vm) -> Probe:
        from irqchip_core.capabilities import IrqChipCap

        try:
            able = self._choose(vm).probe.capabilities
        except NothingSuitable as error:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in error.refusals)
            return Probe(f"there is no chip to wrap: {reasons or 'none is installed'}")
        # A wrapper passes on the methods of the contract, and so nothing of a plugin's own.
        return Probe(capabilities=frozenset(one for one in able if isinstance(one, IrqChipCap)))

    @override
    def create(self, vm: Vm, vcpu_count: int) -> IrqChipX86_64:
        from irqchip_core.x86.chip import IrqChipX86_64

        inner = self._choose(vm).backend.create(vm, vcpu_count)
        try:
            if not isinstance(inner, IrqChipX86_64):
                raise WrongType(f"{inner.name} is not a chip of a PC", subject=self.name, argument="wraps")
            return self.wrap(inner)
        except BaseException:
            inner.close()
            raise
