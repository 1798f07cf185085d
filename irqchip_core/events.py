"""Interrupt events: what a device signals and a chip (or the kernel) waits for.

An edge event is one `Event`; a level event is a pair: the device signals the trigger to assert its line, and the chip
signals the resample event when the guest has ended the interrupt (as KVM's irqfd with KVM_IRQFD_FLAG_RESAMPLE does).

Not here: which GSI an event belongs to. The chip keeps that.
"""

from __future__ import annotations

import enum
import os
import socket
from typing import NewType, Self

from attrs import field, frozen, validators

from irqchip_core.eventfd import Event, SocketPairEvent


class IrqEdgeEvent:
    """One signal is one pulse: the line is asserted and at once deasserted.

    Args:
        trigger: An event to adopt; a new one is made without it.
    """

    __slots__ = ("_trigger",)

    def __init__(self, trigger: Event | None = None) -> None:
        self._trigger = Event() if trigger is None else trigger

    def get_trigger(self) -> Event:
        """The trigger itself, not a clone."""
        return self._trigger

    def trigger(self) -> None:
        """Raise the interrupt (device side)."""
        self._trigger.signal()

    def clear_trigger(self, timeout: float | None = None) -> bool:
        """Wait for the trigger and consume it (chip side); False if `timeout` seconds passed."""
        return self._trigger.wait(timeout)

    def try_clone(self) -> Self:
        """An event with a second descriptor on the same counter."""
        return type(self)(self._trigger.clone())

    def as_raw_fds(self) -> list[int]:
        """The trigger's descriptor."""
        return [self._trigger.fileno()]

    def close(self) -> None:
        self._trigger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._trigger!r})"


class IrqLevelEvent:
    """One signal asserts the line, which stays asserted until the guest ends the interrupt.

    Then the chip lowers the line and signals the resample event; the device looks at its own state
    and triggers again if it still needs service.

    Args:
        trigger: An event to adopt; a new one is made without it.
        resample: Likewise.
    """

    __slots__ = ("_resample", "_trigger")

    def __init__(self, trigger: Event | None = None, resample: Event | None = None) -> None:
        self._trigger = Event() if trigger is None else trigger
        self._resample = Event() if resample is None else resample

    def get_trigger(self) -> Event:
        """The trigger itself, not a clone."""
        return self._trigger

    def get_resample(self) -> Event:
        """The resample event itself, not a clone."""
        return self._resample

    def trigger(self) -> None:
        """Assert the line (device side)."""
        self._trigger.signal()

    def clear_trigger(self, timeout: float | None = None) -> bool:
        """Wait for the trigger and consume it (chip side); False if `timeout` seconds passed."""
        return self._trigger.wait(timeout)

    def trigger_resample(self) -> None:
        """Notify the device that the guest has ended the interrupt (chip side)."""
        self._resample.signal()

    def clear_resample(self, timeout: float | None = None) -> bool:
        """Wait for the end of the interrupt and consume it (device side); False on timeout."""
        return self._resample.wait(timeout)

    def try_clone(self) -> Self:
        """An event with second descriptors on the same two counters."""
        trigger = self._trigger.clone()
        try:
            return type(self)(trigger, self._resample.clone())
        except BaseException:
            trigger.close()
            raise

    def as_raw_fds(self) -> list[int]:
        """Descriptors of trigger and resample, in this order."""
        return [self._trigger.fileno(), self._resample.fileno()]

    def send(self, connection: socket.socket) -> None:
        """Hand the event to another process over a Unix socket (SCM_RIGHTS)."""
        socket.send_fds(connection, [b"L"], [*self._trigger.descriptors(), *self._resample.descriptors()])

    @classmethod
    def receive(cls, connection: socket.socket) -> Self:
        """Take the event that `send` put on the other end of `connection`.

        Raises:
            EOFError: The other end closed, or sent something that is not a level event.
        """
        data, fds, _flags, _address = socket.recv_fds(connection, 1, 4)
        if data == b"L" and len(fds) == 2:
            return cls(Event.from_fd(fds[0]), Event.from_fd(fds[1]))
        if data == b"L" and len(fds) == 4:
            return cls(SocketPairEvent.from_fds(*fds[:2]), SocketPairEvent.from_fds(*fds[2:]))
        for fd in fds:
            os.close(fd)
        raise EOFError(f"expected a level event with 2 or 4 descriptors, got {data!r} with {len(fds)}")

    def close(self) -> None:
        self._trigger.close()
        self._resample.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._trigger!r}, {self._resample!r})"


class PlatformDeviceId(enum.IntEnum):
    """Devices that are not on a PCI bus."""

    PIT = 1
    PIC = 2
    IOAPIC = 3
    SERIAL = 4
    CMOS = 5
    I8042 = 6
    PL030 = 7
    ACPI_PM_RESOURCE = 8
    GOLDFISH_BATTERY = 9
    DEBUG_CONSOLE = 10
    PROXY_DEVICE = 11
    VFIO_PLATFORM_DEVICE = 12
    USERSPACE_IRQ_CHIP = 16
    VM_WATCHDOG = 17
    PFLASH = 18
    VIRTIO_MMIO = 19
    VIRTUAL_PMC = 21
    VIRT_CPUFREQ = 22
    FW_CFG = 23


@frozen
class PciDeviceId:
    """A PCI device by its ids, 16 bits each."""

    vendor: int = field(validator=[validators.ge(0), validators.le(0xFFFF)])
    device: int = field(validator=[validators.ge(0), validators.le(0xFFFF)])


DeviceId = PlatformDeviceId | PciDeviceId


@frozen
class IrqEventSource:
    """The device that an event belongs to. For statistics and logs; never used for routing.

    Attributes:
        device_id: What kind of device it is.
        queue_id: Which of its interrupts, from 0; 0 for a device with one.
        device_name: Text for tables and logs.
    """

    device_id: DeviceId
    queue_id: int = field(validator=validators.ge(0))
    device_name: str


IrqEventIndex = NewType("IrqEventIndex", int)
"""Position in a chip's event table, unique for the life of the chip."""


@frozen(eq=False)
class IrqEventToken:
    """What an irq loop waits on: when `event` is readable, call ``service_irq_event(index)``.

    Attributes:
        index: Position of the registration in the chip's event table.
        source: The device it was registered for.
        event: A clone of the trigger that belongs to the receiver of the token; keep it open while it
            is polled, close it (or the token) afterwards.
    """

    index: IrqEventIndex
    source: IrqEventSource
    event: Event

    def close(self) -> None:
        self.event.close()
