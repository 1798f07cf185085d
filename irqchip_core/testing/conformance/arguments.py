"""Scenarios: wrong arguments are refused by a typed error, and change nothing."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from typing import Any

from irqchip_core.allocator import SystemAllocator
from irqchip_core.bus import Bus
from irqchip_core.capabilities import IrqChipCap
from irqchip_core.chip import MPState
from irqchip_core.errors import Closed, InvalidArgument, IrqChipError, UnknownVcpu, WrongType
from irqchip_core.events import IrqEdgeEvent, IrqLevelEvent
from irqchip_core.hypervisor.exits import MsrExit
from irqchip_core.hypervisor.vcpu import Vcpu
from irqchip_core.routes import IrqRoute
from irqchip_core.testing.bench import SOURCE, Bench
from irqchip_core.testing.conformance.base import Scenarios
from irqchip_core.testing.verdict import Nonconforming, accepted, check, check_equal, refused
from irqchip_core.x86.chip import IrqChipX86_64
from irqchip_core.x86.msi import MSI_ADDRESS_BASE
from irqchip_core.x86.state import IoapicState, PicSelect, PicState, PitState

Kinds = type[Exception] | tuple[type[Exception], ...]

NOTHING = (None, "x", 1.5, True, object())
"""What no argument can be; True only where no bool belongs."""
OUT_OF_RANGE = {
    "irq": (-1, 1 << 32),
    "level": (0, 1, 2),
    "vector": (-1, 256),
    "select": (-1, 2),
    "vcpu_id": (-1, 1),
    "vcpu_count": (-1, 2),
}
"""By argument: values that it cannot have on a chip for one vCPU."""


def refuse_each(machine: Bench, kind: Kinds, calls: dict[str, Callable[[], object]]) -> None:
    """Demand that each call is refused, names what is wrong, and changes nothing."""
    for what, call in calls.items():
        before = machine.fingerprint()
        try:
            with refused(kind, f"{what} is refused"):
                call()
        finally:
            after = machine.fingerprint()
        changed = [part for part, state in before.items() if state != after[part]]
        check(not changed, f"{what} is refused and changes nothing", f"it changed {', '.join(changed)}")


class Arguments(Scenarios):
    """Wrong arguments."""

    def test_gsi_out_of_range(self) -> None:
        """A GSI that is no unsigned 32-bit number is refused everywhere."""
        machine = self.boot()
        edge, level = IrqEdgeEvent(), IrqLevelEvent()
        machine.keep(edge, level)
        for gsi in (-1, 1 << 32):
            refuse_each(machine, InvalidArgument, calls_with_gsi(machine, gsi, edge, level))

    def test_numbers_of_a_wrong_type(self) -> None:
        """What is no number is refused wherever a number belongs."""
        machine = self.boot(chip_vcpus=2)
        edge, level = IrqEdgeEvent(), IrqLevelEvent()
        machine.keep(edge, level)
        vcpu = machine.vm.create_vcpu(1)
        for wrong in ("4", None, 4.0, True):
            calls = calls_with_gsi(machine, wrong, edge, level) | calls_with_number(machine, wrong, vcpu)
            refuse_each(machine, WrongType, calls)

    def test_closed_events(self) -> None:
        """A closed event is refused."""
        machine = self.boot()
        edge, level, half = IrqEdgeEvent(), IrqLevelEvent(), IrqLevelEvent()
        edge.close()
        level.close()
        half.get_resample().close()
        machine.keep(half)
        chip = machine.chip
        refuse_each(
            machine,
            Closed,
            {
                "registering a closed edge event": lambda: chip.register_edge_irq_event(5, edge, SOURCE),
                "registering a closed level event": lambda: chip.register_level_irq_event(5, level, SOURCE),
                "registering half a level event": lambda: chip.register_level_irq_event(5, half, SOURCE),
            },
        )

    def test_descriptor_closed_behind_the_chip(self) -> None:
        """An event whose descriptor was closed elsewhere is refused."""
        machine = self.boot()
        event = IrqEdgeEvent()
        fd = event.get_trigger().fileno()
        os.close(fd)
        try:
            call = lambda: machine.chip.register_edge_irq_event(5, event, SOURCE)  # noqa: E731
            refuse_each(machine, (OSError, IrqChipError), {"registering an event whose descriptor is gone": call})
        finally:
            null = os.open(os.devnull, os.O_RDONLY)
            if null != fd:
                os.dup2(null, fd)
                os.close(null)
            event.close()

    def test_objects_of_a_wrong_type(self) -> None:
        """What is no event, route, MP state or capability of the kind is refused."""
        machine = self.boot()
        machine.connect(5, 0x45)
        edge, level = IrqEdgeEvent(), IrqLevelEvent()
        machine.keep(edge, level)
        chip: Any = machine.chip
        refuse_each(
            machine,
            WrongType,
            {
                "a level event registered as edge": lambda: chip.register_edge_irq_event(5, level, SOURCE),
                "an edge event registered as level": lambda: chip.register_level_irq_event(5, edge, SOURCE),
                "a level event unregistered as edge": lambda: chip.unregister_edge_irq_event(5, level),
                "an edge event unregistered as level": lambda: chip.unregister_level_irq_event(5, edge),
                "a trigger registered as edge event": lambda: chip.register_edge_irq_event(
                    5, edge.get_trigger(), SOURCE
                ),
                "an object unregistered as edge event": lambda: chip.unregister_edge_irq_event(5, object()),
                "an edge event of no source": lambda: chip.register_edge_irq_event(5, edge, "COM1"),
                "a level event of no source": lambda: chip.register_level_irq_event(5, level, None),
                "route_irq of what is no route": lambda: chip.route_irq((5, 0x45)),
                "set_irq_routes of what are no routes": lambda: chip.set_irq_routes([None]),
                "set_irq_routes of what is no list": lambda: chip.set_irq_routes(None),
                "an MP state of a wrong type": lambda: chip.set_mp_state(0, "runnable"),
                "a capability of a wrong type": lambda: chip.check_capability("x2apic"),
            },
        )
        machine.pulse(5)
        machine.cpu.expect(0x45, rule="after refused routes the routes are as before")
        chip.register_edge_irq_event(5, edge, SOURCE)
        chip.register_level_irq_event(10, level, SOURCE)  # both triggers are free still

    def test_every_argument_of_every_method(self) -> None:
        """Each argument of each method is refused if it is of a wrong type, or of a value that nothing has."""
        machine = self.boot()
        calls = arguments(machine)
        methods = inspect.getmembers(IrqChipX86_64, inspect.isfunction)
        missing = {
            name for name, method in methods if not name.startswith("_") and has_parameters(method)
        } - calls.keys()
        assert not missing, f"the kit calls {', '.join(sorted(missing))} with no wrong argument"
        for name, given in calls.items():
            method = getattr(machine.chip, name)
            for at, (argument, value) in enumerate(given.items()):
                wrong = [one for one in NOTHING if not (isinstance(one, bool) and isinstance(value, bool))]
                for one in [*wrong, *OUT_OF_RANGE.get(argument, ())]:
                    values = [*given.values()]
                    values[at] = one
                    call = functools.partial(method, *values)
                    refuse_each(machine, IrqChipError, {f"{name} with {argument} = {one!r:.40}": call})

    def test_vcpu_of_a_stranger(self) -> None:
        """A vCPU that was not added is refused where one is served, though it has the number of one that was."""
        machine, other = self.boot(chip_vcpus=2), self.boot()
        added_to_none = machine.vm.create_vcpu(1)
        for vcpu in (added_to_none, other.cpu.vcpu):
            calls: dict[str, Callable[[], object]] = {
                "inject_interrupts": functools.partial(machine.chip.inject_interrupts, vcpu),
                "wait_until_runnable": functools.partial(machine.chip.wait_until_runnable, vcpu),
            }
            refuse_each(machine, UnknownVcpu, {f"{name} of a vCPU that was not added": calls[name] for name in calls})
        for number in (1, 2, -1):
            call = functools.partial(machine.chip.halted, number)
            refuse_each(machine, UnknownVcpu, {f"halted({number}) of a vCPU that was not added": call})

    def test_eoi_of_no_vector(self) -> None:
        """`broadcast_eoi` takes 0 to 255, and any of these is harmless."""
        machine = self.boot()
        for vector in (-1, 256):
            call = functools.partial(machine.chip.broadcast_eoi, vector)
            refuse_each(machine, InvalidArgument, {f"broadcast_eoi({vector})": call})
        before = machine.fingerprint()
        with accepted("broadcast_eoi takes any vector"):
            for vector in (0, 0x45, 255):
                machine.chip.broadcast_eoi(vector)
        check(machine.fingerprint() == before, "the EOI of a vector that no pin has changes nothing", "it did")

    def test_unrouted_gsis_are_harmless(self) -> None:
        """`service_irq` of any GSI without a route does nothing."""
        machine = self.boot()
        with accepted("service_irq takes any GSI"):
            for gsi in (24, 4095, 4096, 0xFFFFFFFF):
                machine.pulse(gsi)
        machine.cpu.expect_nothing(rule="a GSI without a route reaches nothing")

    def test_errors_say_what_to_do(self) -> None:
        """An error names the chip and the argument, and carries an errno."""
        machine = self.boot()
        try:
            machine.chip.service_irq(-1, True)
        except IrqChipError as error:
            check(error.subject, "an error names the chip it comes from", "it names none")
            check_equal(error.argument, "irq", "an error names the argument at fault")
            check(error.errno > 0, "an error carries an errno", "it has none")
            check(error.remedy, "an error names a remedy", f"it says only {str(error)!r}")
        else:
            raise Nonconforming("service_irq refuses GSI -1, but it was accepted")


def has_parameters(method: Callable[..., object]) -> bool:
    return len(inspect.signature(method).parameters) > 1  # beside self


def arguments(machine: Bench) -> dict[str, dict[str, Any]]:
    """By method: arguments that are right."""
    chip, vcpu = machine.chip, machine.cpu.vcpu
    edge, level = IrqEdgeEvent(), IrqLevelEvent()
    machine.keep(edge, level)
    return {
        "add_vcpu": {"vcpu_id": 0, "vcpu": vcpu},
        "register_edge_irq_event": {"irq": 5, "event": edge, "source": SOURCE},
        "unregister_edge_irq_event": {"irq": 5, "event": edge},
        "register_level_irq_event": {"irq": 5, "event": level, "source": SOURCE},
        "unregister_level_irq_event": {"irq": 5, "event": level},
        "route_irq": {"route": IrqRoute.msi(30, MSI_ADDRESS_BASE, 0x51)},
        "set_irq_routes": {"routes": []},
        "service_irq": {"irq": 5, "level": False},
        "service_irq_event": {"index": 0},
        "broadcast_eoi": {"vector": 0x20},
        "inject_interrupts": {"vcpu": vcpu},
        "halted": {"vcpu_id": 0},
        "wait_until_runnable": {"vcpu": vcpu},
        "get_mp_state": {"vcpu_id": 0},
        "set_mp_state": {"vcpu_id": 0, "state": MPState.RUNNABLE},
        "finalize_devices": {"allocator": SystemAllocator(), "io_bus": Bus("I/O"), "mmio_bus": Bus("MMIO")},
        "check_capability": {"capability": IrqChipCap.X2APIC},
        "handle_msr": {"vcpu": vcpu, "access": MsrExit(0x808, 0, is_write=False)},
        "get_pic_state": {"select": PicSelect.PRIMARY},
        "set_pic_state": {
            "select": PicSelect.PRIMARY,
            "state": chip.get_pic_state(PicSelect.PRIMARY) if machine.has(IrqChipCap.PIC) else PicState(),
        },
        "set_ioapic_state": {
            "state": chip.get_ioapic_state() if machine.has(IrqChipCap.IOAPIC) else IoapicState(),
        },
        "get_lapic_state": {"vcpu_id": 0},
        "set_lapic_state": {"vcpu_id": 0, "state": chip.get_lapic_state(0)},
        "set_pit": {"state": chip.get_pit() if machine.has(IrqChipCap.PIT) else PitState()},
        "snapshot": {"vcpu_count": 1},
        "restore": {"snapshot": chip.snapshot(1), "vcpu_count": 1},
        "check_chip_specific": {"data": chip.snapshot_chip_specific(), "vcpu_count": 1},
        "restore_chip_specific": {"data": chip.snapshot_chip_specific()},
    }


def calls_with_gsi(
    machine: Bench, gsi: Any, edge: IrqEdgeEvent, level: IrqLevelEvent
) -> dict[str, Callable[[], object]]:
    """Each call that takes a GSI."""
    chip = machine.chip
    return {
        f"register_edge_irq_event on GSI {gsi!r}": lambda: chip.register_edge_irq_event(gsi, edge, SOURCE),
        f"unregister_edge_irq_event on GSI {gsi!r}": lambda: chip.unregister_edge_irq_event(gsi, edge),
        f"register_level_irq_event on GSI {gsi!r}": lambda: chip.register_level_irq_event(gsi, level, SOURCE),
        f"unregister_level_irq_event on GSI {gsi!r}": lambda: chip.unregister_level_irq_event(gsi, level),
        f"service_irq of GSI {gsi!r}": lambda: chip.service_irq(gsi, True),
    }


def calls_with_number(machine: Bench, number: Any, vcpu: Vcpu) -> dict[str, Callable[[], object]]:
    """Each call that takes another number."""
    chip = machine.chip
    return {
        f"service_irq_event({number!r})": lambda: chip.service_irq_event(number),
        f"broadcast_eoi({number!r})": lambda: chip.broadcast_eoi(number),
        f"add_vcpu({number!r}, ...)": lambda: chip.add_vcpu(number, vcpu),
        f"get_mp_state({number!r})": lambda: chip.get_mp_state(number),
        f"set_mp_state({number!r}, ...)": lambda: chip.set_mp_state(number, MPState.RUNNABLE),
        f"get_lapic_state({number!r})": lambda: chip.get_lapic_state(number),
    }
