"""Routes and registrations: all that a VM with many devices sets up, one by one and at once.

The limit is one KVM_SET_GSI_ROUTING of the same number of routes, one KVM_IRQFD or, where events
stay in user space, a copy of an eventfd.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator
from functools import partial

from benchmarks.host.scale import KVM_CHIPS, Scale, attempt, made
from benchmarks.limits import bare_ioctl, descriptor, in_c
from benchmarks.measuring import IOCTL, OURS, Row, Sample, Way, in_turn, timed
from irqchip_core.events import IrqEdgeEvent, IrqEventSource, PlatformDeviceId
from irqchip_core.routes import GSI_COUNT, IOAPIC_PINS, IrqRoute, default_routes
from irqchip_core.x86.chip import IrqChipX86_64

SOURCE = IrqEventSource(PlatformDeviceId.DEBUG_CONSOLE, 0, "benchmark")
KVM_SET_GSI_ROUTING = 0x4008AE6A
MSI_ADDRESS = 0xFEE00000
ROUTES_AT_RESET = len(default_routes())


def _messages(count: int) -> list[IrqRoute]:
    return [
        IrqRoute.msi(gsi, MSI_ADDRESS, 0x30 + gsi % 200)
        for gsi in range(IOAPIC_PINS, min(IOAPIC_PINS + count, GSI_COUNT))
    ]


def _kernel_table(count: int) -> ctypes.Array[ctypes.c_char]:
    """What KVM_SET_GSI_ROUTING takes for as many messages."""
    entry = struct.Struct("<III4xIIII16x")
    entries = (
        entry.pack(gsi, 2, 0, MSI_ADDRESS, 0, 0x30 + gsi % 200, 0)
        for gsi in range(IOAPIC_PINS, min(IOAPIC_PINS + count, GSI_COUNT))
    )
    table = b"".join(entries)
    return ctypes.create_string_buffer(struct.pack("<II", len(table) // entry.size, 0) + table)


def _limits(chip: str, table: ctypes.Array[ctypes.c_char], times: int) -> dict[str, Way]:
    if chip == "userspace":
        return {}
    fd = descriptor("kvm-vm")
    request = KVM_SET_GSI_ROUTING
    return {IOCTL: bare_ioctl(fd, request, table, times)} | in_c("repeat_ioctl", fd, request, table, times)


def _replace_one(chip: str, count: int, scale: Scale) -> Row:
    """One route replaced among `count`, as a guest does that moves an MSI."""
    with made(chip, "kvm") as (_, irqchip):
        irqchip.set_irq_routes([*default_routes(), *_messages(count - ROUTES_AT_RESET)])
        gsi = IOAPIC_PINS if count > ROUTES_AT_RESET else IOAPIC_PINS - 1
        others = [IrqRoute.msi(gsi, MSI_ADDRESS, vector) for vector in (0x40, 0x41)]

        def replace() -> None:
            for route in others:
                irqchip.route_irq(route)

        way = timed(replace)
        ways = {OURS: lambda: way() / 2} | _limits(chip, _kernel_table(count), 5)
        samples = in_turn(ways, scale.repeats)
    return Row("route_irq among so many", f"{chip}: {count}", samples, size=count)


def _all_at_once(chip: str, scale: Scale) -> Row:
    routes = _messages(scale.events - ROUTES_AT_RESET)
    with made(chip, "kvm") as (_, irqchip):
        ways = {OURS: timed(partial(irqchip.set_irq_routes, routes))}
        ways |= _limits(chip, _kernel_table(len(routes)), 1)
        return Row("set_irq_routes", f"{chip}: {len(routes)} at once", in_turn(ways, scale.repeats))


def _one_by_one(chip: str, scale: Scale) -> Row:
    """The whole of it, once: it takes seconds."""
    routes = _messages(scale.events - ROUTES_AT_RESET)
    with made(chip, "kvm") as (_, irqchip):

        def add() -> None:
            for route in routes:
                irqchip.route_irq(route)

        seconds = timed(add)()
    name = f"{chip}: {len(routes)} one by one, all together"
    return Row("set_irq_routes", name, {OURS: Sample(seconds, seconds, seconds)})


def _register(chip: str, scale: Scale) -> Iterator[Row]:
    """Register so many events, each on a GSI of its own, and unregister them again; per event."""
    count = min(scale.events, GSI_COUNT - IOAPIC_PINS)
    with made(chip, "kvm") as (_, irqchip):
        events = [IrqEdgeEvent() for _ in range(count)]
        try:
            limits = [_register_limits(irqchip, events[0], undo, scale) for undo in (False, True)]
            passes = [_pass(irqchip, events) for _ in range(min(scale.repeats, 3))]
        finally:
            for event in events:
                event.close()
    for at, name in enumerate(("register", "unregister")):
        samples = {OURS: Sample.of(one[at] / count for one in passes), **limits[at]}
        yield Row("register and unregister an event", f"{chip}: {name}, each of {count}", samples)


def _pass(irqchip: IrqChipX86_64, events: list[IrqEdgeEvent]) -> tuple[float, float]:
    def register() -> None:
        for gsi, event in enumerate(events, IOAPIC_PINS):
            irqchip.register_edge_irq_event(gsi, event, SOURCE)

    def unregister() -> None:
        for gsi, event in enumerate(events, IOAPIC_PINS):
            irqchip.unregister_edge_irq_event(gsi, event)

    return timed(register)(), timed(unregister)()


def _register_limits(irqchip: IrqChipX86_64, event: IrqEdgeEvent, undo: bool, scale: Scale) -> dict[str, Sample]:
    index = irqchip.register_edge_irq_event(IOAPIC_PINS, event, SOURCE)
    irqchip.unregister_edge_irq_event(IOAPIC_PINS, event)
    trigger, times = event.get_trigger().fileno(), scale.times // 100
    if index is None:
        ways = in_c("repeat_irqfd", descriptor("kvm-vm"), trigger, IOAPIC_PINS, undo, times)
    else:
        ways = in_c("repeat_copy", trigger, undo, times)
    return in_turn(ways, scale.repeats)


def rows(scale: Scale) -> Iterator[Row]:
    """All of this module."""
    for chip in KVM_CHIPS:
        for count in sorted({ROUTES_AT_RESET, *scale.sizes()[2:-1], min(scale.events, 4000)}):
            measure = partial(_replace_one, chip, count, scale)
            yield attempt("route_irq among so many", f"{chip}: {count}", measure)
    for chip in KVM_CHIPS:
        yield attempt("set_irq_routes", f"{chip}: at once", partial(_all_at_once, chip, scale))
        yield attempt("set_irq_routes", f"{chip}: one by one", partial(_one_by_one, chip, scale))
    for chip in KVM_CHIPS:
        group = "register and unregister an event"
        try:
            yield from _register(chip, scale)
        except Exception as error:
            yield Row(group, chip, reason=str(error))
