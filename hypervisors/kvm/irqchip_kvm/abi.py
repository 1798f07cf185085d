"""Numbers and layouts of the KVM API on x86-64: <linux/kvm.h> and <asm/kvm.h> as Python constants.

Names are the header's; the kernel's Documentation/virt/kvm/api.rst explains them. Pure data: nothing
here calls the kernel. The tests compare every one of them with the system's own header.
"""

from __future__ import annotations

import enum
from struct import Struct
from typing import NamedTuple

API_VERSION = 12
"""The only version of the API there ever was since Linux 2.6.22 (KVM_GET_API_VERSION)."""

# Structures. The fields are listed where they are packed, in `records` and `vm`.
CPUID2 = Struct("<II")  # nr, padding; entries follow
CPUID_ENTRY2 = Struct("<7I12x")  # function, index, flags, eax, ebx, ecx, edx
DTABLE = Struct("<QH6x")
ENABLE_CAP = Struct("<II4Q64x")  # cap, flags, args
INTERRUPT = Struct("<I")
IOEVENTFD = Struct("<QQIiI36x")  # datamatch, addr, len, fd, flags
IRQCHIP = Struct("<I4x512s")  # chip_id, chip
IRQFD = Struct("<IIII16x")  # fd, gsi, flags, resamplefd
IRQ_LEVEL = Struct("<II")  # irq, level
IRQ_ROUTING = Struct("<II")  # nr, flags; entries follow
IRQ_ROUTING_ENTRY = Struct("<III4xIIII16x")  # gsi, type, flags, then the union: chip and pin, or an MSI
LAPIC_STATE = Struct("<1024s")
MP_STATE = Struct("<I")
MSI = Struct("<IIIII12x")  # address_lo, address_hi, data, flags, devid
MSRS = Struct("<I4x")  # nmsrs; entries follow
MSR_ENTRY = Struct("<I4xQ")  # index, data
MSR_FILTER = Struct("<I4x384x")  # flags, then 16 ranges
MSR_FILTER_RANGE = Struct("<III4xQ")  # flags, nmsrs, base, bitmap
MSR_LIST = Struct("<I")  # nmsrs; indices follow
PIT_CONFIG = Struct("<I60x")  # flags
PIT_STATE2 = Struct("<72sI36x")
REGS = Struct("<18Q")
SEGMENT = Struct("<QIH8BBx")
SREGS = Struct("<192s32s5QQQ4Q")  # 8 segments, 2 tables, cr0 cr2 cr3 cr4 cr8, efer, apic_base, bitmap
USERSPACE_MEMORY_REGION = Struct("<IIQQQ")  # slot, flags, guest_phys_addr, memory_size, userspace_addr
DEVICE_ATTR = Struct("<IIQQ")  # flags, group, attr, addr
DEBUGREGS = Struct("<6Q80x")  # DR0-DR3, DR6, DR7; flags, which must be 0
VCPU_EVENTS = Struct("<4BI4B3BxII4BB26xBQ")


class Request(NamedTuple):
    """An ioctl request: its name for messages, and its number."""

    name: str
    number: int


_KVMIO = 0xAE
_NONE, _WRITE, _READ = 0, 1, 2  # <asm-generic/ioctl.h>, from the caller's point of view


def _request(name: str, direction: int, number: int, size: int) -> Request:
    return Request(name, direction << 30 | size << 16 | _KVMIO << 8 | number)


def _io(name: str, number: int) -> Request:
    return _request(name, _NONE, number, 0)


def _ior(name: str, number: int, size: int) -> Request:
    return _request(name, _READ, number, size)


def _iow(name: str, number: int, size: int) -> Request:
    return _request(name, _WRITE, number, size)


def _iowr(name: str, number: int, size: int) -> Request:
    return _request(name, _READ | _WRITE, number, size)


# Of /dev/kvm
KVM_GET_API_VERSION = _io("KVM_GET_API_VERSION", 0x00)
KVM_CREATE_VM = _io("KVM_CREATE_VM", 0x01)
KVM_GET_MSR_INDEX_LIST = _iowr("KVM_GET_MSR_INDEX_LIST", 0x02, MSR_LIST.size)
KVM_CHECK_EXTENSION = _io("KVM_CHECK_EXTENSION", 0x03)  # of a VM too
KVM_GET_VCPU_MMAP_SIZE = _io("KVM_GET_VCPU_MMAP_SIZE", 0x04)
KVM_GET_SUPPORTED_CPUID = _iowr("KVM_GET_SUPPORTED_CPUID", 0x05, CPUID2.size)

# Of a VM
KVM_CREATE_VCPU = _io("KVM_CREATE_VCPU", 0x41)
KVM_SET_USER_MEMORY_REGION = _iow("KVM_SET_USER_MEMORY_REGION", 0x46, USERSPACE_MEMORY_REGION.size)
KVM_SET_TSS_ADDR = _io("KVM_SET_TSS_ADDR", 0x47)
KVM_SET_IDENTITY_MAP_ADDR = _iow("KVM_SET_IDENTITY_MAP_ADDR", 0x48, 8)
KVM_CREATE_IRQCHIP = _io("KVM_CREATE_IRQCHIP", 0x60)
KVM_IRQ_LINE = _iow("KVM_IRQ_LINE", 0x61, IRQ_LEVEL.size)
KVM_GET_IRQCHIP = _iowr("KVM_GET_IRQCHIP", 0x62, IRQCHIP.size)
KVM_SET_IRQCHIP = _ior("KVM_SET_IRQCHIP", 0x63, IRQCHIP.size)  # the direction is the header's mistake
KVM_SET_GSI_ROUTING = _iow("KVM_SET_GSI_ROUTING", 0x6A, IRQ_ROUTING.size)
KVM_IRQFD = _iow("KVM_IRQFD", 0x76, IRQFD.size)
KVM_CREATE_PIT2 = _iow("KVM_CREATE_PIT2", 0x77, PIT_CONFIG.size)
KVM_IOEVENTFD = _iow("KVM_IOEVENTFD", 0x79, IOEVENTFD.size)
KVM_GET_PIT2 = _ior("KVM_GET_PIT2", 0x9F, PIT_STATE2.size)
KVM_SET_PIT2 = _iow("KVM_SET_PIT2", 0xA0, PIT_STATE2.size)
KVM_ENABLE_CAP = _iow("KVM_ENABLE_CAP", 0xA3, ENABLE_CAP.size)
KVM_SIGNAL_MSI = _iow("KVM_SIGNAL_MSI", 0xA5, MSI.size)
KVM_X86_SET_MSR_FILTER = _iow("KVM_X86_SET_MSR_FILTER", 0xC6, MSR_FILTER.size)

# Of a vCPU
KVM_RUN = _io("KVM_RUN", 0x80)
KVM_GET_REGS = _ior("KVM_GET_REGS", 0x81, REGS.size)
KVM_SET_REGS = _iow("KVM_SET_REGS", 0x82, REGS.size)
KVM_GET_SREGS = _ior("KVM_GET_SREGS", 0x83, SREGS.size)
KVM_SET_SREGS = _iow("KVM_SET_SREGS", 0x84, SREGS.size)
KVM_INTERRUPT = _iow("KVM_INTERRUPT", 0x86, INTERRUPT.size)
KVM_GET_MSRS = _iowr("KVM_GET_MSRS", 0x88, MSRS.size)
KVM_SET_MSRS = _iow("KVM_SET_MSRS", 0x89, MSRS.size)
KVM_GET_LAPIC = _ior("KVM_GET_LAPIC", 0x8E, LAPIC_STATE.size)
KVM_SET_LAPIC = _iow("KVM_SET_LAPIC", 0x8F, LAPIC_STATE.size)
KVM_SET_CPUID2 = _iow("KVM_SET_CPUID2", 0x90, CPUID2.size)
KVM_GET_MP_STATE = _ior("KVM_GET_MP_STATE", 0x98, MP_STATE.size)
KVM_SET_MP_STATE = _iow("KVM_SET_MP_STATE", 0x99, MP_STATE.size)
KVM_NMI = _io("KVM_NMI", 0x9A)
KVM_GET_TSC_KHZ = _io("KVM_GET_TSC_KHZ", 0xA3)
KVM_GET_VCPU_EVENTS = _ior("KVM_GET_VCPU_EVENTS", 0x9F, VCPU_EVENTS.size)
KVM_SET_VCPU_EVENTS = _iow("KVM_SET_VCPU_EVENTS", 0xA0, VCPU_EVENTS.size)
KVM_SET_DEVICE_ATTR = _iow("KVM_SET_DEVICE_ATTR", 0xE1, DEVICE_ATTR.size)
KVM_GET_DEVICE_ATTR = _iow("KVM_GET_DEVICE_ATTR", 0xE2, DEVICE_ATTR.size)
KVM_SET_DEBUGREGS = _iow("KVM_SET_DEBUGREGS", 0xA2, DEBUGREGS.size)


class Cap(enum.IntEnum):
    """The capabilities for KVM_CHECK_EXTENSION that irqchip uses (KVM_CAP_*)."""

    IRQCHIP = 0
    USER_MEMORY = 3
    SET_TSS_ADDR = 4
    EXT_CPUID = 7
    NR_VCPUS = 9
    NR_MEMSLOTS = 10
    MP_STATE = 14
    USER_NMI = 22
    IRQ_ROUTING = 25
    IRQFD = 32
    PIT2 = 33
    SET_BOOT_CPU_ID = 34
    IOEVENTFD = 36
    SET_IDENTITY_MAP_ADDR = 37
    VCPU_EVENTS = 41
    INTERNAL_ERROR_DATA = 40
    MAX_VCPUS = 66
    TSC_DEADLINE_TIMER = 72
    SIGNAL_MSI = 77
    IRQFD_RESAMPLE = 82
    CHECK_EXTENSION_VM = 105
    SPLIT_IRQCHIP = 121
    VCPU_ATTRIBUTES = 127
    MAX_VCPU_ID = 128
    X2APIC_API = 129
    IMMEDIATE_EXIT = 136
    X86_USER_SPACE_MSR = 188
    X86_MSR_FILTER = 189


class ExitReason(enum.IntEnum):
    """kvm_run.exit_reason, those of x86 that have no decoder too (KVM_EXIT_*)."""

    UNKNOWN = 0
    EXCEPTION = 1
    IO = 2
    HYPERCALL = 3
    DEBUG = 4
    HLT = 5
    MMIO = 6
    IRQ_WINDOW_OPEN = 7
    SHUTDOWN = 8
    FAIL_ENTRY = 9
    INTR = 10
    SET_TPR = 11
    TPR_ACCESS = 12
    NMI = 16
    INTERNAL_ERROR = 17
    SYSTEM_EVENT = 24
    IOAPIC_EOI = 26
    HYPERV = 27
    X86_RDMSR = 29
    X86_WRMSR = 30
    DIRTY_RING_FULL = 31
    X86_BUS_LOCK = 33
    XEN = 34
    NOTIFY = 37


# struct kvm_run: byte offsets
RUN_REQUEST_INTERRUPT_WINDOW = 0
RUN_IMMEDIATE_EXIT = 1
RUN_EXIT_REASON = 8
RUN_READY_FOR_INTERRUPT_INJECTION = 12
RUN_IF_FLAG = 13
RUN_CR8 = 16
RUN_APIC_BASE = 24
RUN_EXIT = 32  # the union of what each exit adds
RUN_MMIO_DATA = 40
RUN_MSR_ERROR = 32
RUN_MSR_DATA = 48

RUN_U32 = Struct("<I")
RUN_U64 = Struct("<Q")
RUN_IO = Struct("<BBHIQ")  # direction, size, port, count, data_offset
RUN_MMIO = Struct("<Q8xIB")  # phys_addr, data, len, is_write
RUN_MSR = Struct("<8xIIQ")  # error, reason, index, data; the u64 is aligned by the two u32 before it
RUN_INTERNAL = Struct("<II16Q")  # suberror, ndata, data

EXIT_IO_OUT = 1

# Flags
IRQFD_FLAG_DEASSIGN = 1 << 0
IRQFD_FLAG_RESAMPLE = 1 << 1
IOEVENTFD_FLAG_DATAMATCH = 1 << 0
IOEVENTFD_FLAG_PIO = 1 << 1
IOEVENTFD_FLAG_DEASSIGN = 1 << 2
IRQ_ROUTING_IRQCHIP = 1
IRQ_ROUTING_MSI = 2
IRQCHIP_PIC_MASTER = 0
IRQCHIP_PIC_SLAVE = 1
IRQCHIP_IOAPIC = 2
CPUID_FLAG_SIGNIFCANT_INDEX = 1 << 0  # the header's spelling
MSR_FILTER_READ = 1 << 0
MSR_FILTER_WRITE = 1 << 1
MSR_FILTER_DEFAULT_ALLOW = 0
MSR_FILTER_MAX_RANGES = 16
MSR_FILTER_MAX_BITMAP_SIZE = 0x600
MSR_EXIT_REASON_INVAL = 1 << 0
MSR_EXIT_REASON_UNKNOWN = 1 << 1
MSR_EXIT_REASON_FILTER = 1 << 2
PIT_SPEAKER_DUMMY = 1  # KVM_CREATE_PIT2, flags: the PIT answers port 0x61
X2APIC_API_USE_32BIT_IDS = 1 << 0
X2APIC_API_DISABLE_BROADCAST_QUIRK = 1 << 1
X2APIC_ENABLE_SUPPRESS_EOI_BROADCAST = 1 << 2  # this and the next: Linux 6.19, and kernels it was ported back to
X2APIC_DISABLE_SUPPRESS_EOI_BROADCAST = 1 << 3
VCPU_TSC_CTRL, VCPU_TSC_OFFSET = 0, 0
DR6_RESET, DR7_RESET = 0xFFFF0FF0, 0x400  # Intel SDM vol. 3, table 11-1
VCPUEVENT_VALID_NMI_PENDING = 1 << 0
VCPUEVENT_VALID_SIPI_VECTOR = 1 << 1
VCPUEVENT_VALID_SHADOW = 1 << 2
VCPUEVENT_VALID_SMM = 1 << 3
