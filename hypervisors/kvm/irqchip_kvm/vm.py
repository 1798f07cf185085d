"""A virtual machine of KVM: its memory, its vCPUs, and the interrupt requests of the VM descriptor.

It makes the kernel's chips on request and passes their state; what a chip *is* belongs to the backends
built on it.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterable, Sequence
from typing import Self

from irqchip_core.arguments import check_int, check_type
from irqchip_core.clock import MonotonicClock
from irqchip_core.errors import InvalidArgument, Unsupported
from irqchip_core.eventfd import Event
from irqchip_core.hypervisor.registers import CpuidEntry
from irqchip_core.routes import IOAPIC_PINS, IrqRoute
from irqchip_core.x86.lapic.registers import IA32_TSC, IA32_TSC_ADJUST
from irqchip_core.x86.state import IoapicState, PicSelect, PicState, PitState
from irqchip_kvm import abi, kvm_layout, records
from irqchip_kvm.abi import Cap
from irqchip_kvm.ioctl import Buffer, Handle, address_of, anonymous_pages, buffer
from irqchip_kvm.problems import failure
from irqchip_kvm.records import MsrRange, pack
from irqchip_kvm.vcpu import KvmVcpu

PAGE_SIZE = 4096

_SUBJECT = "KVM VM"
_PICS = (PicSelect.PRIMARY, PicSelect.SECONDARY)  # IRQCHIP_PIC_MASTER and _SLAVE; the next is the IOAPIC
_U32 = (1 << 32) - 1
_U64 = (1 << 64) - 1

IDENTITY_MAP_ADDRESS = 0xFFFBC000
"""Where KVM on Intel puts a page it needs to run real-mode code (KVM_SET_IDENTITY_MAP_ADDR)."""
TSS_ADDRESS = 0xFFFBD000
"""Likewise three pages (KVM_SET_TSS_ADDR). There, no guest memory can be mapped over these four."""

X2APIC_MSRS = range(0x800, 0x900)


class KvmVm:
    """A VM. Made by `Kvm.create_vm`; implements ``irqchip_core.hypervisor.vcpu.Vm``. For use from any thread.

    Every method raises `Closed` after `close`, and `HypervisorError`, or the more exact error that is named
    with it, if the kernel refuses.
    """

    hypervisor = "kvm"
    clock = MonotonicClock()

    def __init__(self, handle: Handle, run_size: int, cpuid: Sequence[CpuidEntry]) -> None:
        self._handle = handle
        self._run_size = run_size
        self._cpuid = list(cpuid)
        self._has_irqchip = False
        self._lock = threading.Lock()  # of the two below
        self._regions: dict[int, tuple[int, memoryview]] = {}  # by guest address: slot, host memory
        self._vcpus: list[KvmVcpu] = []
        if self.check_extension(Cap.SET_IDENTITY_MAP_ADDR):
            self._call(abi.KVM_SET_IDENTITY_MAP_ADDR, IDENTITY_MAP_ADDRESS.to_bytes(8, "little"))
        if self.check_extension(Cap.SET_TSS_ADDR):
            self._call(abi.KVM_SET_TSS_ADDR, TSS_ADDRESS)

    def _call(self, request: abi.Request, argument: int | Buffer = 0) -> int:
        return self._handle.call(request, argument)

    @property
    def closed(self) -> bool:
        return self._handle.closed

    def close(self) -> None:
        """Close the vCPUs, as `KvmVcpu.close` does, and the VM. Closing twice is harmless.

        Guest memory is freed when its last view is gone and no vCPU runs.
        """
        for vcpu in list(self._vcpus):
            vcpu.close()
        self._handle.close()
        with self._lock:
            self._release_memory()

    def _release_memory(self) -> None:
        if self.closed and not self._vcpus:  # else a vCPU still runs, and comes to forget_vcpu when it is done
            self._regions.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<KvmVm{' closed' if self.closed else ''}, {len(self._vcpus)} vCPUs>"

    # --- what it can do

    def check_extension(self, cap: Cap | int) -> int:
        """What KVM says of a capability: 0 for no, otherwise yes or a number (KVM_CHECK_EXTENSION)."""
        return self._call(abi.KVM_CHECK_EXTENSION, int(cap))

    def supported_cpuid(self) -> list[CpuidEntry]:
        """What CPUID can truthfully answer (KVM_GET_SUPPORTED_CPUID); new records each time."""
        return records.cpuid_from_kvm(records.cpuid_to_kvm(self._cpuid))

    def recommended_vcpus(self) -> int:
        """Number of vCPUs that makes sense here (KVM_CAP_NR_VCPUS)."""
        return self.check_extension(Cap.NR_VCPUS)

    def max_vcpus(self) -> int:
        """Number of vCPUs that is possible (KVM_CAP_MAX_VCPUS)."""
        return self.check_extension(Cap.MAX_VCPUS) or self.recommended_vcpus()

    def max_vcpu_id(self) -> int:
        """Limit that vCPU numbers are below (KVM_CAP_MAX_VCPU_ID)."""
        return self.check_extension(Cap.MAX_VCPU_ID) or self.max_vcpus()

    def enable_cap(self, cap: Cap | int, *args: int) -> None:
        """Switch a capability on for this VM (KVM_ENABLE_CAP), with up to 4 arguments of 64 bits."""
        if len(args) > 4:
            raise InvalidArgument(f"{len(args)} arguments are more than 4", subject=_SUBJECT, argument="args")
        data = pack(abi.ENABLE_CAP, "args", int(cap), 0, *args, *[0] * (4 - len(args)))
        result = self._handle.try_call(abi.KVM_ENABLE_CAP, data)
        if result < 0:
            name = f"KVM_CAP_{cap.name}" if isinstance(cap, Cap) else abi.KVM_ENABLE_CAP.name
            raise failure(name, -result, self._handle.subject)

    def enable_x2apic_api(self) -> None:
        """Let local APICs be what the Intel SDM says they are, as far as the kernel can (KVM_CAP_X2APIC_API).

        APIC ids have 32 bits in `KvmVcpu.get_lapic_state`, in routes and in `signal_msi`, and destination 0xFF is no
        broadcast in x2APIC mode. If the IOAPIC is in user space and the kernel can do it, a guest that suppresses
        the broadcast of EOIs (SDM vol. 3, 12.8.5) causes no `IoapicEoiExit`: it writes the IOAPIC's EOI register.
        Other kernels let such a guest believe so, and report the EOI all the same.

        Before the first vCPU, and after `enable_split_irqchip`.
        """
        flags = abi.X2APIC_API_USE_32BIT_IDS | abi.X2APIC_API_DISABLE_BROADCAST_QUIRK
        flags |= self.check_extension(Cap.X2APIC_API) & abi.X2APIC_ENABLE_SUPPRESS_EOI_BROADCAST
        self.enable_cap(Cap.X2APIC_API, flags)

    # --- memory and processors

    def map_memory(self, guest_address: int, size: int) -> memoryview:
        """Add `size` bytes of zeroed guest memory; the result shows it to the host.

        The view stays valid after `unmap_memory` and `close`, when the guest is no longer behind it.

        Args:
            guest_address: Guest physical address, a multiple of 4096.
            size: Bytes, a multiple of 4096. Host memory is taken as it is touched.

        Raises:
            InvalidArgument: Not such multiples, or beyond 64 bits, or the range overlaps another or, on Intel, the
                pages at `IDENTITY_MAP_ADDRESS`.
        """
        check_int(guest_address, 0, _U64, subject=_SUBJECT, argument="guest_address")
        check_int(size, PAGE_SIZE, (1 << 64) - guest_address, subject=_SUBJECT, argument="size")
        if guest_address % PAGE_SIZE or size % PAGE_SIZE:
            raise InvalidArgument(
                f"[{guest_address:#x}, {guest_address + size:#x}) does not consist of pages",
                subject=_SUBJECT,
                argument="guest_address, size",
                remedy=f"use multiples of {PAGE_SIZE}",
            )
        with self._lock:
            taken = {slot for slot, _ in self._regions.values()}
            slot = next(slot for slot in range(len(taken) + 1) if slot not in taken)
            host_address, memory = anonymous_pages(size)
            self._set_region(slot, guest_address, size, host_address)
            self._regions[guest_address] = (slot, memory)
        return memory

    def unmap_memory(self, guest_address: int) -> None:
        """Take the memory at `guest_address` away from the guest; accesses to it become MMIO.

        Raises:
            InvalidArgument: No memory was mapped at that address.
        """
        check_type(guest_address, int, subject=_SUBJECT, argument="guest_address")
        with self._lock:
            if guest_address not in self._regions:
                raise InvalidArgument(
                    f"no memory is mapped at {guest_address:#x}", subject=_SUBJECT, argument="guest_address"
                )
            self._set_region(self._regions[guest_address][0], guest_address, 0, 0)
            del self._regions[guest_address]

    def _set_region(self, slot: int, guest_address: int, size: int, host_address: int) -> None:
        region = pack(abi.USERSPACE_MEMORY_REGION, "guest_address", slot, 0, guest_address, size, host_address)
        self._call(abi.KVM_SET_USER_MEMORY_REGION, region)

    def create_vcpu(self, vcpu_id: int) -> KvmVcpu:
        """Make a vCPU. A chip in the kernel must exist before the first one.

        Args:
            vcpu_id: From 0; below `max_vcpu_id`.
        """
        check_int(vcpu_id, 0, _U32, subject=_SUBJECT, argument="vcpu_id")
        with self._lock:
            handle = Handle(self._call(abi.KVM_CREATE_VCPU, vcpu_id), f"KVM vCPU {vcpu_id}")
            vcpu = KvmVcpu(self, handle, vcpu_id, self._run_size)
            self._vcpus.append(vcpu)
        return vcpu

    def forget_vcpu(self, vcpu: KvmVcpu) -> None:
        """Called by a vCPU when it is closed."""
        with self._lock:
            if vcpu in self._vcpus:
                self._vcpus.remove(vcpu)
                self._release_memory()

    # --- chips

    def create_irqchip(self) -> None:
        """Put PICs, IOAPIC and local APICs into the kernel, with a PC's default routes (KVM_CREATE_IRQCHIP)."""
        self._call(abi.KVM_CREATE_IRQCHIP)
        self._has_irqchip = True

    def create_pit2(self, flags: int = 0) -> None:
        """Put the PIT into the kernel too (KVM_CREATE_PIT2).

        Args:
            flags: KVM_PIT_*; abi.PIT_SPEAKER_DUMMY makes the kernel answer port 0x61.
        """
        if not self._has_irqchip and not self.closed:  # Linux 6.1 would make a PIT whose interrupts go nowhere
            raise failure(abi.KVM_CREATE_PIT2.name, errno.ENOENT, self._handle.subject)
        self._call(abi.KVM_CREATE_PIT2, pack(abi.PIT_CONFIG, "flags", flags))

    def enable_split_irqchip(self, pins: int = IOAPIC_PINS) -> None:
        """Put only the local APICs into the kernel (KVM_CAP_SPLIT_IRQCHIP).

        Args:
            pins: Pins of the IOAPIC in user space: EOIs of level MSI routes with a GSI below are reported.
        """
        self.enable_cap(Cap.SPLIT_IRQCHIP, pins)

    def get_pic_state(self, select: PicSelect) -> PicState:
        check_int(select, *_PICS, subject=_SUBJECT, argument="select")
        return kvm_layout.pic_from_kvm(self._get_irqchip(select))

    def set_pic_state(self, select: PicSelect, state: PicState) -> None:
        check_int(select, *_PICS, subject=_SUBJECT, argument="select")
        self._call(abi.KVM_SET_IRQCHIP, abi.IRQCHIP.pack(select, kvm_layout.pic_to_kvm(state)))

    def get_ioapic_state(self) -> IoapicState:
        return kvm_layout.ioapic_from_kvm(self._get_irqchip(abi.IRQCHIP_IOAPIC))

    def set_ioapic_state(self, state: IoapicState) -> None:
        self._call(abi.KVM_SET_IRQCHIP, abi.IRQCHIP.pack(abi.IRQCHIP_IOAPIC, kvm_layout.ioapic_to_kvm(state)))

    def _get_irqchip(self, chip_id: int) -> bytes:
        data = buffer(abi.IRQCHIP.pack(chip_id, b""))
        self._call(abi.KVM_GET_IRQCHIP, data)
        body: bytes = abi.IRQCHIP.unpack(data.raw)[1]
        return body

    def get_pit(self) -> PitState:
        data = buffer(abi.PIT_STATE2.size)
        self._call(abi.KVM_GET_PIT2, data)
        return kvm_layout.pit_from_kvm(data.raw)

    def set_pit(self, state: PitState) -> None:
        self._call(abi.KVM_SET_PIT2, kvm_layout.pit_to_kvm(state))

    # --- interrupts

    def set_gsi_routing(self, routes: Iterable[IrqRoute]) -> None:
        """Replace all routes (KVM_SET_GSI_ROUTING).

        Raises:
            InvalidRoute: The kernel refuses one; the routes are as before.
        """
        self._call(abi.KVM_SET_GSI_ROUTING, records.routes_to_kvm(routes))

    def assign_irqfd(self, gsi: int, trigger: Event, resample: Event | None = None) -> None:
        """Let the kernel turn signals of `trigger` into interrupts on `gsi` (KVM_IRQFD).

        The kernel keeps its own hold on the events: they may be closed.

        Args:
            gsi: Any 32-bit number; one without a route reaches nothing.
            trigger: Each signal pulses the line or, with `resample`, asserts it.
            resample: Signalled when the guest ends the interrupt and the line goes down. Not in split mode.

        Raises:
            EventInUse: The trigger is assigned already, to whichever GSI.
            Closed: An event is closed.
            InvalidArgument: There is no chip in the kernel, or none with resample events.
        """
        check_type(resample, (Event, type(None)), subject=_SUBJECT, argument="resample")
        if resample is None:
            self._irqfd(gsi, trigger, 0, 0)
        else:
            self._irqfd(gsi, trigger, abi.IRQFD_FLAG_RESAMPLE, resample.fileno())

    def deassign_irqfd(self, gsi: int, trigger: Event) -> None:
        """Undo `assign_irqfd` of this event, or a clone of it, on `gsi`; harmless if there is none."""
        self._irqfd(gsi, trigger, abi.IRQFD_FLAG_DEASSIGN, 0)

    def _irqfd(self, gsi: int, trigger: Event, flags: int, resample_fd: int) -> None:
        check_int(gsi, 0, _U32, subject=_SUBJECT, argument="gsi")
        check_type(trigger, Event, subject=_SUBJECT, argument="trigger")
        self._call(abi.KVM_IRQFD, abi.IRQFD.pack(trigger.fileno(), gsi, flags, resample_fd))

    def assign_ioeventfd(
        self, event: Event, address: int, length: int = 0, *, port: bool = False, datamatch: int | None = None
    ) -> None:
        """Let the kernel signal `event` when the guest writes there, without an exit (KVM_IOEVENTFD).

        Args:
            event: What to signal.
            address: Guest physical address, or I/O port if `port`.
            length: Bytes of the write: 1, 2, 4 or 8; 0 for any.
            port: Whether `address` is an I/O port.
            datamatch: Only for this value; needs a `length`.

        Raises:
            EventInUse: An event waits for the same write already.
            InvalidArgument: A number is out of range.
        """
        self._ioeventfd(event, address, length, port, datamatch, 0)

    def deassign_ioeventfd(
        self, event: Event, address: int, length: int = 0, *, port: bool = False, datamatch: int | None = None
    ) -> None:
        """Undo `assign_ioeventfd` with the same arguments.

        Raises:
            InvalidArgument: There is no such event.
        """
        self._ioeventfd(event, address, length, port, datamatch, abi.IOEVENTFD_FLAG_DEASSIGN)

    def _ioeventfd(
        self, event: Event, address: int, length: int, port: bool, datamatch: int | None, flags: int
    ) -> None:
        if port:
            flags |= abi.IOEVENTFD_FLAG_PIO
        if datamatch is not None:
            flags |= abi.IOEVENTFD_FLAG_DATAMATCH
        data = pack(abi.IOEVENTFD, "address", datamatch or 0, address, length, event.fileno(), flags)
        self._call(abi.KVM_IOEVENTFD, data)

    def signal_msi(self, address: int, data: int) -> bool:
        """Send one message-signaled interrupt (KVM_SIGNAL_MSI).

        Args:
            address: 64 bits.
            data: 32 bits.

        Returns:
            Whether a local APIC took it. A destination that no local APIC has is no error.
        """
        check_int(address, 0, _U64, subject=_SUBJECT, argument="address")
        check_int(data, 0, _U32, subject=_SUBJECT, argument="data")
        message = abi.MSI.pack(address & 0xFFFFFFFF, address >> 32, data, 0, 0)
        result = self._handle.try_call(abi.KVM_SIGNAL_MSI, message)
        if result == -errno.EPERM:  # the kernel's -1 for "no destination", which only looks like an errno
            return False
        if result < 0:
            raise failure(abi.KVM_SIGNAL_MSI.name, -result, self._handle.subject)
        return result > 0

    def irq_line(self, gsi: int, level: bool) -> None:
        """Set the level of a line (KVM_IRQ_LINE). A line without a route is ignored."""
        check_int(gsi, 0, _U32, subject=_SUBJECT, argument="gsi")
        self._call(abi.KVM_IRQ_LINE, abi.IRQ_LEVEL.pack(gsi, 1 if level else 0))

    # --- MSRs and time

    @property
    def tsc_hz(self) -> int:
        """Frequency of the guest's time-stamp counter in Hz (KVM_GET_TSC_KHZ); 0 if the kernel does not report it."""
        return max(0, self._handle.try_call(abi.KVM_GET_TSC_KHZ)) * 1000

    @property
    def can_exit_on_msrs(self) -> bool:
        """Whether `exit_on_msrs` works with this kernel (Linux 5.10 and newer)."""
        return bool(self.check_extension(Cap.X86_USER_SPACE_MSR) and self.check_extension(Cap.X86_MSR_FILTER))

    def exit_on_msrs(self, msrs: Iterable[range]) -> None:
        """Report every access to these MSRs as an `MsrExit`, before the first vCPU runs.

        The x2APIC's, 0x800 to 0x8FF, cannot be filtered; without a chip in the kernel they are reported all the same,
        as MSRs that do not exist.

        Raises:
            Unsupported: IA32_TSC or IA32_TSC_ADJUST is among them, and this kernel (Linux before 5.16) has no way to
                do exactly what the guest's write would have done.
        """
        msrs = list(msrs)
        writes_tsc = any(IA32_TSC in one or IA32_TSC_ADJUST in one for one in msrs)
        if writes_tsc and not self.check_extension(Cap.VCPU_ATTRIBUTES):
            raise Unsupported(
                "this kernel's KVM lacks KVM_CAP_VCPU_ATTRIBUTES", subject=_SUBJECT, remedy="use Linux 5.16 or newer"
            )
        self.enable_user_space_msr()
        self.set_msr_filter(MsrRange(one.start, len(one)) for one in msrs if one.start not in X2APIC_MSRS)

    def enable_user_space_msr(self) -> None:
        """Get an `MsrExit` instead of #GP in the guest (KVM_CAP_X86_USER_SPACE_MSR)."""
        reasons = abi.MSR_EXIT_REASON_INVAL | abi.MSR_EXIT_REASON_UNKNOWN | abi.MSR_EXIT_REASON_FILTER
        self.enable_cap(Cap.X86_USER_SPACE_MSR, reasons)

    def set_msr_filter(self, ranges: Iterable[MsrRange]) -> None:
        """Take these MSRs away from the kernel (KVM_X86_SET_MSR_FILTER); without any, undo that.

        Accesses raise #GP, or with `enable_user_space_msr` an `MsrExit`. The x2APIC's MSRs, 0x800 to 0x8FF,
        cannot be filtered.

        Raises:
            InvalidArgument: More than 16 ranges, or one that is empty or too long.
        """
        ranges = list(ranges)
        if len(ranges) > abi.MSR_FILTER_MAX_RANGES:
            raise InvalidArgument(
                f"{len(ranges)} ranges are more than {abi.MSR_FILTER_MAX_RANGES}", subject=_SUBJECT, argument="ranges"
            )
        data = bytearray(abi.MSR_FILTER.pack(abi.MSR_FILTER_DEFAULT_ALLOW))
        bitmaps = []  # alive until the call is over
        for number, msrs in enumerate(ranges):
            longest = 8 * abi.MSR_FILTER_MAX_BITMAP_SIZE
            if not 1 <= msrs.count <= longest or not (msrs.read or msrs.write):
                raise InvalidArgument(f"{msrs} is empty or longer than {longest}", subject=_SUBJECT, argument="ranges")
            bitmap = buffer(-(-msrs.count // 64) * 8)  # a bit of 0 denies; the kernel reads whole 64-bit words
            bitmaps.append(bitmap)
            flags = (abi.MSR_FILTER_READ if msrs.read else 0) | (abi.MSR_FILTER_WRITE if msrs.write else 0)
            offset = 8 + number * abi.MSR_FILTER_RANGE.size
            packed = pack(abi.MSR_FILTER_RANGE, "ranges", flags, msrs.count, msrs.base, address_of(bitmap))
            data[offset : offset + len(packed)] = packed
        self._call(abi.KVM_X86_SET_MSR_FILTER, bytes(data))
