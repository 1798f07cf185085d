"""Scenarios: capabilities, vCPUs, buses, clones, and the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from irqchip_core.allocator import SystemAllocator
from irqchip_core.bus import Bus
from irqchip_core.capabilities import IrqChipCap, has_capability
from irqchip_core.chip import IrqChip, MPState
from irqchip_core.errors import Closed, InvalidArgument, IrqChipError, UnknownVcpu, WrongType
from irqchip_core.events import IrqEdgeEvent, IrqEventIndex, IrqLevelEvent
from irqchip_core.hookspecs import hookimpl
from irqchip_core.plugins.discovery import installed
from irqchip_core.routes import IrqRoute
from irqchip_core.testing.bench import SOURCE, Bench
from irqchip_core.testing.conformance.base import Scenarios, needs
from irqchip_core.testing.conformance.vcpus import need_sleep_in_chip
from irqchip_core.testing.verdict import NotApplicable, accepted, check, check_equal, refused
from irqchip_core.x86.chip import IrqChipX86_64
from irqchip_core.x86.lapic import registers as reg
from irqchip_core.x86.msi import MSI_ADDRESS_BASE


class Basics(Scenarios):
    """Capabilities, vCPUs and buses."""

    def test_capabilities_are_those_claimed(self) -> None:
        """`check_capability` says what the backend's probe says."""
        machine = self.boot()
        can = {capability for capability in installed().capabilities.values() if machine.has(capability)}
        claims = self.lab.claims()
        names = ", ".join(sorted(one.value for one in can ^ claims))
        check(can == claims, "check_capability agrees with the backend's probe", f"they differ in {names}")

    def test_name(self) -> None:
        """A chip has the name of its backend."""
        machine = self.boot()
        check(isinstance(machine.chip.name, str) and machine.chip.name, "a chip has a name", repr(machine.chip.name))
        check(self.backend in (None, machine.chip.name), "a chip has its backend's name", repr(machine.chip.name))

    def test_lapic_frequency(self) -> None:
        """The local APIC timers have an input clock."""
        frequency = self.boot().chip.lapic_frequency()
        check(
            1_000_000 <= frequency <= 1 << 32, "the timers' input clock fits CPUID leaf 0x15", f"it is {frequency} Hz"
        )

    def test_vcpu_out_of_range(self) -> None:
        """A vCPU beyond the number that the chip was made for is refused."""
        machine = self.boot()
        vcpu = machine.vm.create_vcpu(1)
        for vcpu_id in (1, -1):
            with refused(UnknownVcpu, f"add_vcpu refuses vCPU {vcpu_id} of a chip for one"):
                machine.chip.add_vcpu(vcpu_id, vcpu)

    def test_vcpu_of_another_number(self) -> None:
        """A vCPU is added as its own number."""
        machine = self.boot(chip_vcpus=2)
        vcpu = machine.vm.create_vcpu(1)
        with refused(InvalidArgument, "add_vcpu refuses a vCPU as another number"):
            machine.chip.add_vcpu(0, vcpu)
        machine.send_msi(0x51)
        machine.cpu.expect(0x51, rule="a refused add_vcpu leaves the vCPU that was there")

    def test_vcpu_of_a_wrong_type(self) -> None:
        """What is no vCPU is refused."""
        machine = self.boot(chip_vcpus=2)
        with refused(WrongType, "add_vcpu refuses what is no vCPU"):
            machine.chip.add_vcpu(1, object())  # type: ignore[arg-type]

    def test_vcpu_added_again(self) -> None:
        """A vCPU may be added again."""
        machine = self.boot()
        with accepted("a vCPU can be added again"):
            machine.chip.add_vcpu(0, machine.cpu.vcpu)
        machine.send_msi(0x51)
        machine.cpu.expect(0x51, rule="a vCPU added again takes interrupts")

    def test_devices_are_put_on_buses_once(self) -> None:
        """A second `finalize_devices` is refused and puts nothing on the buses."""
        machine = self.boot()
        with machine.chip.try_clone() as clone:
            for chip in (machine.chip, clone):
                for fresh in (False, True):
                    io_bus, mmio_bus = (Bus("I/O"), Bus("MMIO")) if fresh else (machine.io_bus, machine.mmio_bus)
                    allocator = SystemAllocator() if fresh else machine.allocator
                    before = io_bus.devices(), mmio_bus.devices()
                    with refused(InvalidArgument, "a second finalize_devices is refused"):
                        chip.finalize_devices(allocator, io_bus, mmio_bus)
                    after = io_bus.devices(), mmio_bus.devices()
                    check(before == after, "a second finalize_devices changes no bus", "it did")
                    if fresh:
                        check_equal(allocator.allocate_irq(), 9, "a second finalize_devices changes no allocator")

    def test_devices_find_their_place_taken(self) -> None:
        """Where a range is taken, `finalize_devices` is refused and leaves buses and allocator as they were."""
        machine = self.boot()
        if not machine.mmio_bus.devices():
            raise NotApplicable("needs controllers on the buses; this chip's are all in the hypervisor")
        places = [(0, *place) for place in machine.io_bus.devices()]
        places += [(1, *place) for place in machine.mmio_bus.devices()]
        vm = self.lab.create_vm()
        with vm, self.lab.create_chip(vm) as chip:
            allocator = SystemAllocator()
            for which, base, length, device in places:
                buses = Bus("I/O"), Bus("MMIO")
                buses[which].insert(device, base + length - 1, 1)
                with refused(InvalidArgument, "finalize_devices refuses a bus whose range is taken"):
                    chip.finalize_devices(allocator, *buses)
                left = buses[0].devices() + buses[1].devices()
                check_equal(len(left), 1, "a refused finalize_devices leaves nothing on the buses")
            _finalize(chip, allocator)
            due = _pins(chip) or SystemAllocator().allocate_irq()
            check_equal(allocator.allocate_irq(), due, "a refused finalize_devices takes no number")

    @needs(IrqChipCap.IOAPIC)
    def test_numbers_of_pins_are_kept(self) -> None:
        """After `finalize_devices` devices get the free numbers from the number of pins up, each of them once."""
        machine = self.boot()
        pins = _pins(machine.chip)
        check_equal(
            machine.allocator.allocate_irq(), pins, "the first number after finalize_devices is the number of pins"
        )
        machine.chip.route_irq(IrqRoute.msi(pins, MSI_ADDRESS_BASE, 0x51))
        machine.edge(pins).trigger()
        machine.cpu.expect(0x51, rule="the first number after finalize_devices carries a message")
        for allocator, due in (
            (SystemAllocator(), [pins, pins + 2, pins + 3]),
            (SystemAllocator(first=5), [pins, pins + 2, pins + 3]),
            (SystemAllocator(first=pins + 1), [pins + 3, pins + 4, pins + 5]),
            (SystemAllocator(reserved=frozenset({pins, pins + 3})), [pins + 2, pins + 4, pins + 5]),
        ):
            vm = self.lab.create_vm()
            with vm, self.lab.create_chip(vm) as chip:
                given = [
                    allocator.allocate_irq() or 0,
                    next(irq for irq in (pins + 1, pins + 2) if allocator.reserve_irq(irq)),
                ]
                _finalize(chip, allocator)
                rule = "after finalize_devices the next numbers are the free ones from the number of pins up"
                check_equal([allocator.allocate_irq() for _ in due], due, rule)
                rule = "finalize_devices leaves to devices the numbers they have"
                check(not any(allocator.reserve_irq(irq) for irq in given), rule, "it freed some")

    @needs(IrqChipCap.IOAPIC)
    def test_allocator_without_a_number_above_the_pins(self) -> None:
        """An allocator with no free number above the pins' is refused, and it and the buses stay as they were."""
        vm = self.lab.create_vm()
        with vm, self.lab.create_chip(vm) as chip:
            pins = _pins(chip)
            for reserved in (frozenset[int](), frozenset(range(pins, pins + 3))):
                allocator = SystemAllocator(5, pins + 2 if reserved else pins - 4, reserved)
                io_bus, mmio_bus = Bus("I/O"), Bus("MMIO")
                with refused(InvalidArgument, "finalize_devices refuses an allocator without a number above the pins'"):
                    chip.finalize_devices(allocator, io_bus, mmio_bus)
                rule = "a refused finalize_devices leaves the allocator as it was"
                low = range(5, pins if reserved else pins - 3)
                check_equal([allocator.allocate_irq() for _ in low], list(low), rule)
                check_equal(allocator.allocate_irq(), None, rule)
                left = io_bus.devices() + mmio_bus.devices()
                check_equal(left, [], "a refused finalize_devices leaves nothing on the buses")
            with accepted("a chip that refused finalize_devices takes it later"):
                _finalize(chip, SystemAllocator())

    def test_observers_are_told(self) -> None:
        """Observers are notified of registrations and routes, once each, with the GSI."""
        machine = self.boot()
        notified: list[tuple[str, int]] = []

        class Observer:
            @hookimpl
            def irqchip_event_registered(self, gsi: int) -> None:
                notified.append(("registered", gsi))

            @hookimpl
            def irqchip_event_unregistered(self, gsi: int) -> None:
                notified.append(("unregistered", gsi))

            @hookimpl
            def irqchip_routes_changed(self, routes: Iterable[IrqRoute]) -> None:
                notified.append(("routes", sum(route.gsi == 200 for route in routes)))

        machine.chip.observers.add(Observer())
        event = machine.edge(7)
        machine.chip.unregister_edge_irq_event(7, event)
        machine.chip.unregister_edge_irq_event(7, event)
        machine.chip.route_irq(IrqRoute.msi(200, MSI_ADDRESS_BASE, 0x51))
        expected = [("registered", 7), ("unregistered", 7), ("routes", 1)]
        check_equal(notified, expected, "observers are notified once of each registration and of new routes")

    def test_lapic_state_of_an_unknown_vcpu(self) -> None:
        """There is no local APIC of a vCPU that was not added."""
        machine = self.boot(chip_vcpus=2)
        state = machine.chip.get_lapic_state(0)
        for vcpu_id in (1, 2, -1):
            with refused(UnknownVcpu, f"get_lapic_state refuses vCPU {vcpu_id}, which was not added"):
                machine.chip.get_lapic_state(vcpu_id)
            with refused(UnknownVcpu, f"set_lapic_state refuses vCPU {vcpu_id}, which was not added"):
                machine.chip.set_lapic_state(vcpu_id, state)

    def test_number_of_vcpus(self) -> None:
        """A chip is made for one vCPU or more."""
        with self.lab.create_vm() as vm, refused(IrqChipError, "a chip for no vCPU is refused"):
            self.lab.create_chip(vm, 0).close()


def _pins(chip: IrqChipX86_64) -> int:
    """GSIs below this are pins of the IOAPIC, if there is one."""
    return len(chip.get_ioapic_state().redirect_table) if chip.check_capability(IrqChipCap.IOAPIC) else 0


def _finalize(chip: IrqChip, allocator: SystemAllocator) -> None:
    chip.finalize_devices(allocator, Bus("I/O"), Bus("MMIO"))


class Handles(Scenarios):
    """Clones and the end."""

    def test_clone_shares_events_and_routes(self) -> None:
        """What is registered or routed through a clone is there for all."""
        machine = self.boot()
        machine.connect(5, 0x45)
        with machine.chip.try_clone() as clone, IrqEdgeEvent() as event:
            clone.register_edge_irq_event(5, event, SOURCE)
            clone.route_irq(IrqRoute.msi(30, MSI_ADDRESS_BASE, 0x51))
            machine.chip.route_irq(IrqRoute.msi(31, MSI_ADDRESS_BASE, 0x52))
            rule = "a clone shares routes with its original"
            machine.chip.service_irq(30, True)
            machine.cpu.expect(0x51, rule=rule)
            clone.service_irq(31, True)
            machine.cpu.expect(0x52, rule=rule)
            event.trigger()
            machine.cpu.expect(0x45, rule="an event registered through a clone is served")
            machine.chip.unregister_edge_irq_event(5, event)
            event.trigger()
            machine.cpu.expect_nothing(rule="an event registered through a clone is unregistered through the original")

    def test_clone_made_before_sees_what_comes_after(self) -> None:
        """A clone made before a registration or a route sees it."""
        machine = self.boot()
        with machine.chip.try_clone() as clone:
            machine.chip.route_irq(IrqRoute.msi(30, MSI_ADDRESS_BASE, 0x51))
            clone.service_irq(30, True)
            machine.cpu.expect(0x51, rule="a clone sees routes that are made after it")
            machine.chip.set_irq_routes([])
            clone.service_irq(30, True)
            machine.cpu.expect_nothing(rule="a clone sees when routes go")
            with IrqEdgeEvent() as event:
                index = machine.chip.register_edge_irq_event(7, event, SOURCE)
                if index is not None:
                    tokens = clone.irq_event_tokens()
                    found = index in [token.index for token in tokens]
                    for token in tokens:
                        token.close()
                    check(found, "a clone sees events that are registered after it", "it has no token of one")

    def test_clone_shares_state(self) -> None:
        """State set through a clone is the original's."""
        machine = self.boot()
        with machine.chip.try_clone() as clone:
            state = clone.get_lapic_state(0)
            state.regs[reg.TPR >> 4] = 0x30
            clone.set_lapic_state(0, state)
            found = machine.chip.get_lapic_state(0).regs[reg.TPR >> 4]
            check_equal(hex(found), "0x30", "a clone shares the local APICs with its original")
            check_equal(machine.cpu.apic_read(reg.TPR), 0x30, "a clone shares the local APICs with the guest")
            known = installed().capabilities.values()
            capabilities = [has_capability(clone, one) == machine.has(one) for one in known]
            check(all(capabilities), "a clone has the capabilities of its original", "they differ")

    @needs(IrqChipCap.MP_STATE_GET_SET)
    def test_clone_shares_vcpus(self) -> None:
        """A clone has the vCPUs that were added through another handle, and their MP states."""
        machine = self.boot(chip_vcpus=2)
        with machine.chip.try_clone() as clone:
            machine.chip.add_vcpu(1, machine.vm.create_vcpu(1))
            clone.set_mp_state(1, MPState.HALTED)
            check_equal(machine.chip.get_mp_state(1), MPState.HALTED, "a clone shares MP states with its original")

    def test_clone_kicks(self) -> None:
        """A kick through a clone interrupts a vCPU that waits in the original."""
        machine = self.boot()
        need_sleep_in_chip(machine)
        with machine.chip.try_clone() as clone:
            clone.kick_halted_vcpus()
        state = machine.chip.wait_until_runnable(machine.cpu.vcpu)
        check_equal(state.name, "INTERRUPTED", "a kick through a clone is every handle's")

    def test_clone_is_closed_by_itself(self) -> None:
        """Closing a clone, twice even, leaves the others as they were."""
        machine = self.boot()
        machine.connect(5, 0x45)
        event = machine.edge(5)
        clone = machine.chip.try_clone()
        with accepted("closing a handle twice is harmless"):
            clone.close()
            clone.close()
        event.trigger()
        machine.cpu.expect(0x45, rule="closing a clone leaves the chip at work")
        with refused(Closed, "a closed clone refuses everything"):
            clone.service_irq(5, True)

    def test_clone_outlives_its_original(self) -> None:
        """A clone goes on when its original was closed."""
        vm = self.lab.create_vm()
        with vm:
            original = self.lab.create_chip(vm)
            clone = original.try_clone()
            original.close()
            with clone, accepted("a clone outlives its original"):
                clone.service_irq(5, True)
                clone.route_irq(IrqRoute.msi(30, MSI_ADDRESS_BASE, 0x51))

    def test_use_after_close(self) -> None:
        """Every method of a closed chip raises `Closed`."""
        machine = self.boot()
        clone = machine.chip.try_clone()
        calls = every_call(clone, machine)
        clone.close()
        for name, call in calls.items():
            with refused(Closed, f"{name} of a closed chip is refused"):
                call()

    def test_last_close_disconnects_events(self) -> None:
        """The last close disconnects all events: their signals stay with the device."""
        vm = self.lab.create_vm()
        with vm, IrqEdgeEvent() as event, IrqLevelEvent() as level:
            chip = self.lab.create_chip(vm)
            clone = chip.try_clone()
            chip.register_edge_irq_event(100, event, SOURCE)
            clone.register_level_irq_event(10, level, SOURCE)
            chip.close()
            clone.close()
            event.trigger()
            level.trigger()
            rule = "the last close disconnects all events"
            check(event.clear_trigger(0), rule, "the signal of an edge event was consumed")
            check(level.clear_trigger(0), rule, "the signal of a level event was consumed")

    def test_close_in_any_order(self) -> None:
        """A chip may be closed before or after its VM."""
        vm = self.lab.create_vm()
        chip = self.lab.create_chip(vm)
        with IrqEdgeEvent() as event, accepted("a chip can be closed after its VM"):
            chip.register_edge_irq_event(5, event, SOURCE)
            vm.close()
            chip.close()


def every_call(chip: IrqChip, machine: Bench) -> dict[str, Callable[[], object]]:
    """A call of each of the 22 methods that works on an open chip, but for `try_clone` and `finalize_devices` twice."""
    edge, level = IrqEdgeEvent(), IrqLevelEvent()
    machine.keep(edge, level)
    vcpu = machine.cpu.vcpu
    return {
        "add_vcpu": lambda: chip.add_vcpu(0, vcpu),
        "register_edge_irq_event": lambda: chip.register_edge_irq_event(5, edge, SOURCE),
        "unregister_edge_irq_event": lambda: chip.unregister_edge_irq_event(5, edge),
        "register_level_irq_event": lambda: chip.register_level_irq_event(5, level, SOURCE),
        "unregister_level_irq_event": lambda: chip.unregister_level_irq_event(5, level),
        "route_irq": lambda: chip.route_irq(IrqRoute.msi(30, MSI_ADDRESS_BASE, 0x51)),
        "set_irq_routes": lambda: chip.set_irq_routes([]),
        "irq_event_tokens": lambda: chip.irq_event_tokens(),
        "service_irq": lambda: chip.service_irq(5, False),
        "service_irq_event": lambda: chip.service_irq_event(IrqEventIndex(0)),
        "broadcast_eoi": lambda: chip.broadcast_eoi(0x20),
        "inject_interrupts": lambda: chip.inject_interrupts(vcpu),
        "halted": lambda: chip.halted(0),
        "wait_until_runnable": lambda: chip.wait_until_runnable(vcpu),
        "kick_halted_vcpus": lambda: chip.kick_halted_vcpus(),
        "get_mp_state": lambda: chip.get_mp_state(0),
        "set_mp_state": lambda: chip.set_mp_state(0, MPState.RUNNABLE),
        "try_clone": lambda: chip.try_clone(),
        "finalize_devices": lambda: chip.finalize_devices(SystemAllocator(), Bus("I/O"), Bus("MMIO")),
        "process_delayed_irq_events": lambda: chip.process_delayed_irq_events(),
        "irq_delayed_event_token": lambda: chip.irq_delayed_event_token(),
        "check_capability": lambda: chip.check_capability(IrqChipCap.X2APIC),
    }
