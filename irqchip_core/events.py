"""Interrupt events: what a device signals and a chip (or the kernel) waits for.

An `Event` counts signals and has a file descriptor: an eventfd, or a pair of sockets where there is none. An edge
event is one of them; a level event is a pair: the device signals the trigger to assert its line, and the chip signals
the resample event when the guest has ended the interrupt (as KVM's irqfd with KVM_IRQFD_FLAG_RESAMPLE does).

Not here: which GSI an event belongs to. The chip keeps that.
"""

from __future__ import annotations

import contextlib
import enum
import os
import selectors
import socket
import stat
import time
from typing import TYPE_CHECKING, Any, NewType, Self

from attrs import field, frozen, validators

from irqchip_core.errors import Closed

if TYPE_CHECKING:
    from irqchip_core.socket_pair import SocketPairEvent

PollSelector: type[selectors.BaseSelector] = getattr(selectors, "PollSelector", selectors.SelectSelector)
"""The best selector that takes a descriptor of any number and any kind, where the system has such a one."""

_ONE = (1).to_bytes(8, "little")


def _open_file_identity(fd: int) -> object:
    """A value that is equal for two descriptors of one open eventfd or socket, and only for those.

    Each socket has an inode. All eventfds share one, so fstat does not distinguish them; the kernel numbers them in
    /proc/<pid>/fdinfo since Linux 5.2. Without that line only the descriptor itself is known.
    """
    try:
        status = os.fstat(fd)
        if stat.S_ISSOCK(status.st_mode):
            return status.st_dev, status.st_ino
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("eventfd-id:"):
                    return int(line.split()[1])
    except OSError:
        pass
    return object()


def _socket_pair() -> type[SocketPairEvent]:
    from irqchip_core.socket_pair import SocketPairEvent  # which is an Event

    return SocketPairEvent


class Event:
    """A counting wake-up object with a descriptor: a Linux eventfd, not in semaphore mode.

    Two events are equal when both are descriptors of the same counter: an event and its clones are,
    two events created separately never are.

    Where Python has no `os.eventfd`, ``Event()`` makes a pair of connected sockets that behaves the same, but for the
    count: signals beyond what the sockets hold are coalesced, uncounted.
    """

    __slots__ = ("_fd", "_identity")

    def __new__(cls) -> Self:
        kind: Any = _socket_pair() if cls is Event and not hasattr(os, "eventfd") else cls
        event: Self = object.__new__(kind)
        return event

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._identity: object = None

    @classmethod
    def from_fd(cls, fd: int) -> Self:
        """Adopt eventfd `fd`, which this event closes from now on, and make it non-blocking."""
        event = object.__new__(cls)
        os.set_blocking(fd, False)
        event._fd = fd
        event._identity = None
        return event

    def fileno(self) -> int:
        """The descriptor, readable while the counter is not 0. Raises `Closed`."""
        if self._fd < 0:
            raise Closed("the event is closed", subject="Event", remedy="keep it open while it is registered or polled")
        return self._fd

    @property
    def closed(self) -> bool:
        return self._fd < 0

    def signal(self) -> None:
        """Add 1 to the counter. A counter at its maximum (2**64 - 2) stays there."""
        with contextlib.suppress(BlockingIOError):  # saturated: one wait consumes all signals anyway
            os.write(self.fileno(), _ONE)

    def reset(self) -> int:
        """Set the counter to 0 without blocking; returns what it was."""
        try:
            return int.from_bytes(os.read(self.fileno(), 8), "little")
        except BlockingIOError:
            return 0

    def wait(self, timeout: float | None = None) -> bool:
        """Block until the counter is not 0, then set it to 0.

        Args:
            timeout: Seconds to wait at most; None waits without limit.

        Returns:
            False if the time ran out. Any number of signals is consumed by one wait.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with PollSelector() as selector:
            selector.register(self.fileno(), selectors.EVENT_READ)
            while not self.reset():  # another waiter may have consumed what was seen
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return False
                selector.select(left)
        return True

    def clone(self) -> Self:
        """A second descriptor on the same counter."""
        copy = object.__new__(type(self))
        copy._fd = os.dup(self.fileno())
        copy._identity = self._identify()
        return copy

    def close(self) -> None:
        """Close the descriptor. Closing twice is harmless. A closed event is still equal to its clones."""
        if self._identity is None:
            self._identity = _open_file_identity(self._fd)
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def descriptors(self) -> list[int]:
        """All it takes to rebuild the event in another process."""
        return [self.fileno()]

    def _identify(self) -> object:
        if self._identity is None:
            self._identity = _open_file_identity(self.fileno())
        return self._identity

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Event):
            return NotImplemented
        return self is other or self._identify() == other._identify()

    def __hash__(self) -> int:
        return hash(self._identify())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        # An event that is dropped must not leak its descriptor; __init__ may have failed before _fd.
        if getattr(self, "_fd", -1) >= 0:
            self._identity = self._identity or object()  # there is nothing left to compare it with
            self.close()

    def __repr__(self) -> str:
        return f"<Event fd={self._fd}>" if self._fd >= 0 else "<Event closed>"


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
    and triggers again if it still wants service.

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
            return cls(_socket_pair().from_fds(*fds[:2]), _socket_pair().from_fds(*fds[2:]))
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
