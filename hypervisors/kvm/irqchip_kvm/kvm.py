"""/dev/kvm: what the host's KVM can do, and new VMs from it."""

from __future__ import annotations

import errno
from typing import Self

from irqchip_core.errors import Unsupported
from irqchip_core.hypervisor.registers import CpuidEntry
from irqchip_kvm import abi, records
from irqchip_kvm.abi import Cap
from irqchip_kvm.ioctl import Handle, buffer, open_device
from irqchip_kvm.problems import failure
from irqchip_kvm.vm import KvmVm

KVM_PATH = "/dev/kvm"

_REQUIRED = (Cap.USER_MEMORY, Cap.EXT_CPUID, Cap.IMMEDIATE_EXIT)


class Kvm:
    """The KVM of this host. VMs made by it live on when it is closed.

    Args:
        path: The device.

    Raises:
        HypervisorError: It cannot be opened; the message says what to do.
        Unsupported: It is not KVM of API version 12, or lacks what irqchip cannot do without.
    """

    def __init__(self, path: str = KVM_PATH) -> None:
        self._handle = open_device(path)
        try:
            self._check(path)
        except BaseException:
            self._handle.close()
            raise

    def _check(self, path: str) -> None:
        version = self._handle.try_call(abi.KVM_GET_API_VERSION)
        if version < 0:
            raise Unsupported(
                "it is not a KVM device",
                subject=path,
                remedy=f"put the host's {KVM_PATH} there (docker run --device {KVM_PATH})",
            )
        if version != abi.API_VERSION:
            raise Unsupported(
                f"version {version}, not version {abi.API_VERSION}",
                subject=path,
                remedy="use Linux 4.12 or later on x86-64",
            )
        for cap in _REQUIRED:
            if not self.check_extension(cap):
                raise Unsupported(f"no KVM_CAP_{cap.name}", subject=path, remedy="use Linux 4.12 or later on x86-64")

    def check_extension(self, cap: Cap | int) -> int:
        """What KVM says of a capability: 0 for no, otherwise yes or a number (KVM_CHECK_EXTENSION)."""
        return self._handle.call(abi.KVM_CHECK_EXTENSION, int(cap))

    def supported_cpuid(self) -> list[CpuidEntry]:
        """What CPUID can truthfully answer here (KVM_GET_SUPPORTED_CPUID)."""
        size = abi.CPUID_ENTRY2.size
        return records.cpuid_from_kvm(self._list(abi.KVM_GET_SUPPORTED_CPUID, abi.CPUID2.size, size))

    def msr_index_list(self) -> list[int]:
        """MSRs that a snapshot of a vCPU should have (KVM_GET_MSR_INDEX_LIST)."""
        data = self._list(abi.KVM_GET_MSR_INDEX_LIST, abi.MSR_LIST.size, 4)
        (count,) = abi.MSR_LIST.unpack_from(data)
        return list(memoryview(data)[abi.MSR_LIST.size :].cast("I")[:count])

    def _list(self, request: abi.Request, header: int, entry: int) -> bytes:
        """Request a list with ever more room until it fits. Its header starts with the number of entries."""
        room = 128
        while True:
            data = buffer(room.to_bytes(4, "little") + bytes(header - 4 + room * entry))
            result = self._handle.try_call(request, data)
            if result >= 0:
                return data.raw
            if result != -errno.E2BIG or room > 1 << 16:
                raise failure(request.name, -result, self._handle.subject)
            room *= 2

    def vcpu_mmap_size(self) -> int:
        """Bytes of a vCPU's run area (KVM_GET_VCPU_MMAP_SIZE)."""
        return self._handle.call(abi.KVM_GET_VCPU_MMAP_SIZE)

    def create_vm(self) -> KvmVm:
        """Make an empty VM."""
        run_size, cpuid = self.vcpu_mmap_size(), self.supported_cpuid()
        return KvmVm(Handle(self._handle.call(abi.KVM_CREATE_VM), "KVM VM"), run_size, cpuid)

    @property
    def closed(self) -> bool:
        return self._handle.closed

    def close(self) -> None:
        """Close the device. Closing twice is harmless."""
        self._handle.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Kvm {self._handle.subject}{' closed' if self.closed else ''}>"
