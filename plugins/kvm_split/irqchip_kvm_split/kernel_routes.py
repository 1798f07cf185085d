"""`KernelRoutes`: the routing table in KVM, which follows the IOAPIC's entries and the chip's messages.

GSIs below the number of pins are reserved (the argument of KVM_CAP_SPLIT_IRQCHIP). There the MSI route of GSI n is the
redirection entry of IOAPIC pin n, while that is level-triggered. The route sends nothing: by it KVM finds the vectors
that end at the IOAPIC, and reports their EOIs by KVM_EXIT_IOAPIC_EOI. (An EOI of a level-triggered message on a GSI
that is not reserved is never reported. kvm_pvm reports the EOI when it delivers, before the guest's handler has run.)
Edge-triggered entries have no end to report, and no route here.

While an interrupt of a pin waits for its end, KVM keeps the route by which it was sent: the guest may have given the
entry another destination meanwhile, and older kernels (such as Linux 6.1) do not check what is in service. Until then
the pin sends nothing.

GSIs from the number of pins on have the messages of the chip's own routes, for their irqfds.
"""

from __future__ import annotations

from functools import lru_cache

from irqchip_core.routes import IrqRoute, MsiSource, RoutingTable
from irqchip_core.x86.ioapic import MASKED, REMOTE_IRR, Ioapic
from irqchip_core.x86.msi import LEVEL, decode_msi, decode_redirection_entry, encode_msi
from irqchip_kvm import KvmVm


class KernelRoutes:
    """The routing table in KVM. To be used with the chipset's lock held.

    Args:
        vm: A VM with a split chip that has as many reserved pins as `ioapic`, and no routes.
        ioapic: The IOAPIC in user space.

    Attributes:
        updates: How often KVM_SET_GSI_ROUTING was called.
    """

    def __init__(self, vm: KvmVm, ioapic: Ioapic) -> None:
        self._vm = vm
        self._ioapic = ioapic
        self._pins: list[IrqRoute | None] = [None] * ioapic.pins
        self._messages: list[IrqRoute] = []
        self._changed = 0  # pins, as bits, whose entries KVM has not accepted yet
        self.updates = 0

    def entries_changed(self, changed: int) -> None:
        """Follow redirection entries: one update if KVM needs a changed one, otherwise none.

        KVM does not need a masked entry yet, and may keep an older route for it: that costs only exits.

        Args:
            changed: The pins, as bits.
        """
        self._changed |= changed
        left = self._changed
        while left:
            pin = left.bit_length() - 1
            left ^= 1 << pin
            new = self._pin_route(pin)
            if new != self._pins[pin] and (new is not None or not self._ioapic.entries[pin] & MASKED):
                self._update(self._messages)
                return
        self._changed = 0

    def routes_changed(self, routes: RoutingTable) -> None:
        """Follow the chip's routes. An error of `KvmVm.set_gsi_routing` is raised, and KVM keeps the old ones."""
        messages = [route for route in routes if route.gsi >= self._ioapic.pins and _is_message(route)]
        if messages != self._messages:
            self._update(messages)

    def _pin_route(self, pin: int) -> IrqRoute | None:
        entry = self._ioapic.entries[pin]
        return _route_of(pin, self._ioapic.sent[pin] if entry & REMOTE_IRR else entry)

    def _update(self, messages: list[IrqRoute]) -> None:
        self.updates += 1
        pins = [self._pin_route(pin) for pin in range(self._ioapic.pins)]
        self._vm.set_gsi_routing([*(route for route in pins if route is not None), *messages])
        self._pins, self._messages = pins, messages
        self._changed = 0


@lru_cache(maxsize=1024)
def _route_of(pin: int, entry: int) -> IrqRoute | None:
    """The route that KVM must have for a redirection entry; None if there is no EOI to wait for."""
    if entry & MASKED:
        return None
    message = decode_redirection_entry(entry)
    return IrqRoute.msi(pin, *encode_msi(message)) if message.trigger_mode == LEVEL else None


def _is_message(route: IrqRoute) -> bool:
    """Whether its address belongs to a local APIC. Guests can write others, and KVM would refuse some of these."""
    source = route.source
    return isinstance(source, MsiSource) and decode_msi(source.address, source.data) is not None
