"""What a failed call means: from (call, errno) to an error that says what is wrong and what helps.

Two tables; `failure` adds the call and the object. What is in neither becomes a plain
`HypervisorError` with the system's own text.
"""

from __future__ import annotations

import errno as e
import os

from irqchip_core.errors import Closed, EventInUse, HypervisorError, InvalidArgument, InvalidRoute, IrqChipError

_KIND = type[EventInUse] | type[Closed] | type[InvalidArgument] | type[InvalidRoute]

_BEFORE_VCPU = "create the chip before the first vCPU"
_ONE_CHIP = "a VM has one chip, kernel or split; use the one that is there"
_NEED_CHIP = "create the chip in the kernel first (create_irqchip)"
_NEED_LAPIC = "create the chip first (create_irqchip or enable_split_irqchip)"

_PROBLEM = tuple[_KIND | None, str, str]

_PROBLEMS: dict[tuple[str, int], _PROBLEM] = {
    ("open", e.EACCES): (None, "permission denied", "add yourself to group kvm (usermod -aG kvm USER, log in again)"),
    ("open", e.EPERM): (None, "permission denied", "allow the device in the container (docker run --device /dev/kvm)"),
    ("open", e.ENOENT): (
        None, "no such file", "load kvm_intel or kvm_amd, or enable (nested) virtualization in the firmware or host",
    ),
    ("open", e.ENODEV): (None, "no hypervisor behind it", "load kvm_intel or kvm_amd"),
    ("open", e.ENXIO): (None, "no hypervisor behind it", "load kvm_intel or kvm_amd"),
    ("open", e.EISDIR): (None, "it is a directory", "put the device there (docker run --device /dev/kvm)"),
    ("mmap", e.ENOMEM): (None, "not enough memory", "use less guest memory or raise RLIMIT_AS"),
    ("KVM_CREATE_VM", e.ENOMEM): (None, "not enough memory", "close other VMs"),
    ("KVM_CREATE_VM", e.EBUSY): (None, "the processor's virtualization is in use", "stop the other hypervisor"),
    ("KVM_CREATE_VCPU", e.EEXIST): (None, "a vCPU of this number exists", "use another number"),
    ("KVM_CREATE_VCPU", e.EINVAL): (
        None, "the kernel refuses this vCPU number", "stay below max_vcpus() vCPUs and max_vcpu_id()",
    ),
    ("KVM_SET_USER_MEMORY_REGION", e.EEXIST): (
        InvalidArgument, "the range overlaps memory that is mapped already", "choose a free range, or unmap the other",
    ),
    ("KVM_SET_USER_MEMORY_REGION", e.EINVAL): (
        InvalidArgument, "the kernel refuses this range", "use multiples of 4096 below the guest's address width",
    ),
    ("KVM_CREATE_IRQCHIP", e.EEXIST): (None, "the VM has a chip already", _ONE_CHIP),
    ("KVM_CREATE_IRQCHIP", e.EINVAL): (None, "the VM has a vCPU already", _BEFORE_VCPU),
    ("KVM_CREATE_PIT2", e.EEXIST): (None, "the VM has a PIT already", "use the one that is there"),
    ("KVM_CREATE_PIT2", e.ENOENT): (None, "there is no chip in the kernel for it", _NEED_CHIP),
    ("KVM_CAP_SPLIT_IRQCHIP", e.EEXIST): (
        None, "the VM has a chip or a vCPU already", f"{_BEFORE_VCPU}, and only one",
    ),
    ("KVM_CAP_SPLIT_IRQCHIP", e.EINVAL): (None, "the kernel refuses this number of pins", "use 24; 4096 is the most"),
    ("KVM_ENABLE_CAP", e.EINVAL): (
        None, "the kernel cannot enable this, or not with these arguments", "look at check_extension first",
    ),
    ("KVM_IRQFD", e.EBUSY): (
        EventInUse, "the trigger is connected already, on this GSI or another", "deassign it first, or use a new event",
    ),
    ("KVM_IRQFD", e.EBADF): (Closed, "the descriptor is closed", "keep the event open until it is registered"),
    ("KVM_IRQFD", e.EINVAL): (
        InvalidArgument, "not an eventfd, or no chip in the kernel, or a resample event in split mode",
        f"{_NEED_LAPIC}; resample events need create_irqchip",
    ),
    ("KVM_IOEVENTFD", e.EEXIST): (
        EventInUse, "an event waits for the same access already", "deassign it first, or use another value",
    ),
    ("KVM_IOEVENTFD", e.EBADF): (Closed, "the descriptor is closed", "keep the event open until it is registered"),
    ("KVM_IOEVENTFD", e.EINVAL): (
        InvalidArgument,
        "not an eventfd, the address wraps around, a length that is not 0, 1, 2, 4 or 8, or a datamatch without one",
        "give an eventfd and a valid range, and a length of 1, 2, 4 or 8 with datamatch",
    ),
    ("KVM_IOEVENTFD", e.ENOENT): (InvalidArgument, "no such event is assigned", "deassign as it was assigned"),
    ("KVM_IOEVENTFD", e.ENOSPC): (None, "the kernel's bus is full", "use fewer ioeventfds (1000 a bus)"),
    ("KVM_SET_GSI_ROUTING", e.EINVAL): (
        InvalidRoute, "the kernel refuses the routes",
        "one MSI or pins of different controllers a GSI, MSIs only in split mode, and a chip created before",
    ),
    ("KVM_SET_GSI_ROUTING", e.E2BIG): (InvalidRoute, "too many routes", "4096 is the most"),
    ("KVM_IRQ_LINE", e.ENXIO): (None, "there is no chip in the kernel", _NEED_CHIP),
    ("KVM_SIGNAL_MSI", e.EINVAL): (None, "there is no local APIC in the kernel", _NEED_LAPIC),
    ("KVM_GET_IRQCHIP", e.ENXIO): (None, "there is no PIC or IOAPIC in the kernel", _NEED_CHIP),
    ("KVM_SET_IRQCHIP", e.ENXIO): (None, "there is no PIC or IOAPIC in the kernel", _NEED_CHIP),
    ("KVM_GET_PIT2", e.ENXIO): (None, "there is no PIT in the kernel", "create it first (create_pit2)"),
    ("KVM_SET_PIT2", e.ENXIO): (None, "there is no PIT in the kernel", "create it first (create_pit2)"),
    ("KVM_X86_SET_MSR_FILTER", e.EINVAL): (
        InvalidArgument, "the kernel refuses the filter", "leave out 0x800-0x8FF, and use 12288 MSRs a range at most",
    ),
    ("KVM_GET_LAPIC", e.EINVAL): (None, "there is no local APIC in the kernel", _NEED_LAPIC),
    ("KVM_SET_LAPIC", e.EINVAL): (None, "there is no local APIC in the kernel, or the state is not valid", _NEED_LAPIC),
    ("KVM_INTERRUPT", e.ENXIO): (None, "the kernel's chip injects interrupts by itself", "raise them through the chip"),
    ("KVM_INTERRUPT", e.EEXIST): (
        None, "an interrupt is queued already", "inject at most one per exit, and only when ready_for_interrupt()",
    ),
    ("KVM_INTERRUPT", e.EAGAIN): (
        None, "the guest cannot take an interrupt now", "request the interrupt window and try at the next exit",
    ),
    ("KVM_SET_MP_STATE", e.EINVAL): (
        InvalidArgument, "the kernel refuses this state", "use RUNNABLE, or a chip in the kernel for the other states",
    ),
    ("KVM_SET_SREGS", e.EINVAL): (InvalidArgument, "no valid processor state", "check CR0, CR4, EFER and APIC base"),
    ("KVM_SET_CPUID2", e.E2BIG): (InvalidArgument, "too many entries", "256 is the most"),
    ("KVM_SET_CPUID2", e.EINVAL): (
        InvalidArgument, "the kernel refuses the entries", "start from supported_cpuid(), and set them before running",
    ),
    ("KVM_RUN", e.EFAULT): (
        None, "the guest uses an address that has no host memory behind it", "map memory there with map_memory",
    ),
}  # fmt: skip

_OF_ANY_CALL: dict[int, _PROBLEM] = {
    e.EIO: (None, "the VM belongs to the process that made it", "create VM and vCPUs after fork"),
}


def failure(call: str, errno: int, subject: str) -> IrqChipError:
    """The error for `call` on `subject` having failed with `errno`."""
    unknown = _OF_ANY_CALL.get(errno, (None, os.strerror(errno), ""))
    if call.startswith("KVM_CAP_"):  # a capability of which there is nothing more to say
        unknown = _PROBLEMS.get(("KVM_ENABLE_CAP", errno), unknown)
    kind, problem, remedy = _PROBLEMS.get((call, errno), unknown)
    problem = f"{problem} ({e.errorcode.get(errno, errno)})"
    if kind is not None:
        return kind(problem, subject=subject, argument=call, remedy=remedy)
    return HypervisorError(problem, call=call, errno=errno, subject=subject, remedy=remedy)
