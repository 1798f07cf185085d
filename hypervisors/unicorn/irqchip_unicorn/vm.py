"""A virtual machine on Unicorn: its memory, its vCPUs, and whose turn it is."""

from __future__ import annotations

import platform
import sys
import threading
from collections.abc import Iterable
from typing import Self

from irqchip_core.clock import Clock, MonotonicClock, VirtualClock
from irqchip_core.errors import Closed, HypervisorError, InvalidArgument, Unsupported
from irqchip_core.hypervisor.registers import CpuidEntry
from irqchip_unicorn import cpuid
from irqchip_unicorn.memory import GuestMemory
from irqchip_unicorn.turns import Turns
from irqchip_unicorn.vcpu import UnicornVcpu

TSC_HZ = 1_000_000_000
"""The time-stamp counter counts the nanoseconds of the VM's clock."""


class UnicornVm:
    """A VM. Implements ``irqchip_core.hypervisor.vcpu.Vm``. For use from any thread.

    Its vCPUs take turns: one executes guest code at any time, which makes locked instructions atomic.

    Args:
        clock: The guest's time; RDTSC shows its nanoseconds. A `VirtualClock` is moved on by the vCPUs, see
            `UnicornVcpu.run`; if one thread runs them all, the run repeats exactly. Without one: the host's time.

    Raises:
        Unsupported: This platform cannot run Unicorn as it is used here.
    """

    hypervisor = "unicorn"
    tsc_hz = TSC_HZ
    can_exit_on_msrs = True

    def __init__(self, clock: Clock | None = None) -> None:
        if sys.maxsize < 1 << 32 or sys.byteorder != "little":
            raise Unsupported(
                f"{platform.machine()} is not a little-endian machine of 64 bits",
                subject="Unicorn",
                remedy="use a 64-bit Python on x86-64 or arm64",
            )
        self.clock: Clock = MonotonicClock() if clock is None else clock
        self.memory = GuestMemory()
        self.turns = Turns()
        self.msr_exits: tuple[range, ...] = ()
        self._lock = threading.Lock()  # of the two below
        self._vcpus: dict[int, UnicornVcpu] = {}
        self._closed = False

    @property
    def closed(self) -> bool:
        return self._closed

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("Unicorn VM is closed", subject="UnicornVm")

    @property
    def instructions(self) -> int:
        """How many instructions the vCPUs that are open have executed, up to their last slice."""
        with self._lock:
            return sum(vcpu.instructions for vcpu in self._vcpus.values())

    def map_memory(self, guest_address: int, size: int) -> memoryview:
        """Add `size` bytes of zeroed guest memory; the result shows it to the host.

        The view stays valid after `close`, when the guest is no longer behind it.

        Args:
            guest_address: Guest physical address, a multiple of 4096.
            size: Bytes, a multiple of 4096. Host memory is taken as it is touched.

        Raises:
            InvalidArgument: Not such multiples, beyond 51 bits, or the range overlaps another.
        """
        with self._lock:
            self._check_open()
            return self.memory.add(guest_address, size)

    def exit_on_msrs(self, msrs: Iterable[range]) -> None:
        """Report every access to these MSRs as an `MsrExit`.

        Args:
            msrs: Ranges of MSR numbers with a step of 1; they replace those of an earlier call.

        Raises:
            InvalidArgument: A range has another step, or numbers of more than 32 bits.
        """
        self._check_open()
        ranges = tuple(msrs)
        for numbers in ranges:
            if numbers.step != 1 or numbers.start < 0 or numbers.stop > 1 << 32:
                raise InvalidArgument(f"{numbers} is no range of MSRs", subject="Unicorn VM", argument="msrs")
        self.msr_exits = ranges

    def create_vcpu(self, vcpu_id: int) -> UnicornVcpu:
        """Make a vCPU, in real mode at the reset vector.

        Args:
            vcpu_id: From 0.

        Raises:
            InvalidArgument: No 32-bit number.
            HypervisorError: EEXIST: There is a vCPU of this number.
        """
        if not 0 <= vcpu_id < 1 << 32:
            raise InvalidArgument(f"{vcpu_id} is no vCPU number", subject="Unicorn VM", argument="vcpu_id")
        with self._lock:
            self._check_open()
            if vcpu_id in self._vcpus:
                raise HypervisorError(
                    "a vCPU of this number exists (EEXIST)",
                    call="create_vcpu",
                    errno=17,
                    subject="Unicorn VM",
                    remedy="use another number",
                )
            vcpu = self._vcpus[vcpu_id] = UnicornVcpu(self, vcpu_id)
        return vcpu

    def forget_vcpu(self, vcpu: UnicornVcpu) -> None:
        """Called by a vCPU when it is closed."""
        with self._lock:
            self._vcpus.pop(vcpu.id, None)

    def supported_cpuid(self) -> list[CpuidEntry]:
        """What CPUID can truthfully answer; new records each time. In virtual time there are no random numbers."""
        self._check_open()
        return cpuid.supported(repeatable=isinstance(self.clock, VirtualClock))

    def close(self) -> None:
        """Close the vCPUs, as `UnicornVcpu.close` does, and the VM. Closing twice is harmless.

        Guest memory is freed when its last view is gone and no vCPU runs.
        """
        self._closed = True
        with self._lock:
            vcpus = list(self._vcpus.values())
        for vcpu in vcpus:
            vcpu.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<UnicornVm{' closed' if self._closed else ''}, {len(self._vcpus)} vCPUs>"
