"""Where the scenarios of the conformance kit get their machines, and what is remembered of a run.

A scenario that hangs, wherever it may, is given up with the place where it hangs.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable

from attrs import define, field

from irqchip_core.capabilities import AnyCapability, IrqChipCap, has_capability
from irqchip_core.chip import IrqChip
from irqchip_core.hypervisor.vcpu import Vm
from irqchip_core.plugins.discovery import installed
from irqchip_core.testing.bench import Bench
from irqchip_core.testing.patience import Patience
from irqchip_core.testing.verdict import Nonconforming, NotApplicable, not_claimed
from irqchip_core.x86.chip import IrqChipX86_64

SLOW = 1.0
"""Seconds after which a scenario is said to wait."""
HANG = 4
"""Times the patience after which a scenario counts as hanging."""
FRAMES_SHOWN = 4
_KIT = os.path.dirname(__file__)
_BASE = os.path.join(_KIT, "conformance", "base.py")  # whose decorators enclose scenarios


@define
class Record:
    """What a scenario saw, for comparison with other chips.

    Attributes:
        interrupts: By vCPU, the vectors taken; None if it cannot be compared.
        note: What the contract leaves open here, if it does.
    """

    interrupts: dict[str, list[int]] | None = field(factory=dict[str, list[int]])
    note: str = ""


class Lab:
    """Makes machines with the chip under test.

    Args:
        create_vm: Makes an empty VM.
        create_chip: Makes the chip for a VM and a number of vCPUs.
        claims: The capabilities that the backend claims there; None to believe each chip.
        patience: Seconds to wait for an interrupt that is due; None to learn them.

    Attributes:
        patience: How long an interrupt that is due is waited for.
        record: Of the scenario performed last.
    """

    def __init__(
        self,
        create_vm: Callable[[], Vm],
        create_chip: Callable[[Vm, int], IrqChip],
        *,
        claims: frozenset[AnyCapability] | None = None,
        patience: Patience | float | None = None,
    ) -> None:
        self.create_vm = create_vm
        self._create_chip = create_chip
        self._claims = claims
        self.patience = patience if isinstance(patience, Patience) else Patience(patience)
        self.record = Record()
        self._ordered = True
        self._machines: list[Bench] = []

    # For scenarios

    def create_chip(self, vm: Vm, vcpu_count: int = 1) -> IrqChipX86_64:
        """The chip alone; the scenario closes it."""
        chip = self._create_chip(vm, vcpu_count)
        if not isinstance(chip, IrqChipX86_64):
            raise NotApplicable(f"the kit is for chips of x86; {chip.name} is no IrqChipX86_64")
        return chip

    def boot(self, vcpus: int = 1, *, chip_vcpus: int | None = None) -> Bench:
        """A machine with guests on `vcpus` vCPUs; its chip is made for `chip_vcpus`. Closed by itself."""
        self.need(IrqChipCap.LOCAL_APIC)  # by which the guests take interrupts, and are enabled to
        if vcpus > 1:
            self.need(IrqChipCap.MP_STATE_GET_SET)
        began = time.monotonic()
        vm = self.create_vm()
        try:
            chip = self.create_chip(vm, vcpus if chip_vcpus is None else chip_vcpus)
            machine = Bench(vm, chip, vcpus=vcpus, patience=self.patience.seconds)
        except BaseException:
            vm.close()
            raise
        self.patience.booted(time.monotonic() - began)
        machine.patience = self.patience.seconds
        self._machines.append(machine)
        return machine

    def claims(self) -> frozenset[AnyCapability]:
        """The capabilities the chip is said to have."""
        if self._claims is None:
            with self.create_vm() as vm, self.create_chip(vm) as chip:
                known = installed().capabilities.values()
                self._claims = frozenset(capability for capability in known if has_capability(chip, capability))
        return self._claims

    def need(self, capability: AnyCapability) -> None:
        """Raise `NotApplicable` if the chip does not claim `capability`."""
        if capability not in self.claims():
            raise not_claimed(capability)

    def leave_open(self, note: str, *, order_only: bool = False) -> None:
        """Chips may differ here.

        Args:
            note: What the contract leaves open.
            order_only: Only the order of the interrupts is left open, and not which come.
        """
        self.record.note = note
        self._ordered = False
        if not order_only:
            self.record.interrupts = None

    # For the code that performs scenarios

    def perform(self, scenario: Callable[[], None], on_wait: Callable[[str], object] = lambda line: None) -> None:
        """Perform a scenario on a thread of its own, and close its machines.

        Args:
            scenario: The scenario.
            on_wait: Called with the line of the scenario that takes long, once, while it does.

        Raises:
            Nonconforming: The chip broke the contract, or hangs.
            NotApplicable: The scenario cannot be played here.
        """
        self.record, self._ordered = Record(), True
        failures: list[BaseException] = []

        def perform() -> None:
            try:
                scenario()
            except BaseException as error:
                failures.append(error)
            finally:
                self._finish(failures)

        thread = threading.Thread(target=perform, name="scenario", daemon=True)
        thread.start()
        began, waits = time.monotonic(), False
        while thread.is_alive() and (passed := time.monotonic() - began) < HANG * self.patience.seconds:
            if passed >= SLOW and not waits:
                waits = True
                on_wait(_line(thread))
            thread.join(0.5)  # in short pieces, so that Ctrl-C comes through
        if thread.is_alive():
            self._machines = []  # what hangs cannot be closed
            raise Nonconforming(f"every call comes back, but this one hangs:\n{_where(thread)}")
        if failures:
            raise failures[0]

    def _finish(self, failures: list[BaseException]) -> None:
        """Note what was seen, and close what is left."""
        machines, self._machines = self._machines, []
        if self.record.interrupts is not None:
            for machine in machines:
                for cpu, vectors in machine.record(ordered=self._ordered).items():
                    self.record.interrupts.setdefault(cpu, []).extend(vectors)
        for machine in machines:
            try:
                machine.close()
            except Exception as error:
                failures.append(error)


def _stack(thread: threading.Thread) -> list[traceback.FrameSummary]:
    frame = sys._current_frames().get(thread.ident or 0)
    return list(traceback.extract_stack(frame)) if frame else []


def _where(thread: threading.Thread) -> str:
    """The innermost frames of a thread, of the kit's own only the last: the same for all scenarios that hang there."""
    stack = _stack(thread)
    kits = [at for at, frame in enumerate(stack) if frame.filename.startswith(_KIT)]
    return "".join(traceback.format_list(stack[max([*kits[-1:], len(stack) - FRAMES_SHOWN]) :])).rstrip()


def _line(thread: threading.Thread) -> str:
    """The line of its scenario that a thread executes."""
    stack = _stack(thread)
    began = next((at for at, frame in enumerate(stack) if frame.filename == __file__), len(stack))
    inside = [frame for frame in stack[began + 1 :] if frame.filename != _BASE]
    return inside[0].line or "" if inside else ""
