"""Between KVM's structures and the records of irqchip_core: bytes in and out, no calls.

The layouts of the interrupt controllers are in `kvm_layout`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from operator import attrgetter

from attrs import define, fields, frozen

from irqchip_core.errors import InvalidArgument, InvalidRoute
from irqchip_core.hypervisor.registers import CpuidEntry, DescriptorTable, Regs, Segment, Sregs
from irqchip_core.routes import IrqRoute, IrqSourceChip, MsiSource
from irqchip_kvm import abi

_SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")


@define
class VcpuEvents:
    """What a vCPU is about to take: exceptions, interrupts, NMIs, SMIs (KVM_GET_VCPU_EVENTS).

    All are integers of 8 bits, `exception_error_code`, `sipi_vector` and `flags` of 32 and `exception_payload`
    of 64. `flags` are KVM_VCPUEVENT_VALID_*: which optional fields were filled, or shall be set.
    """

    exception_injected: int = 0
    exception_nr: int = 0
    exception_has_error_code: int = 0
    exception_pending: int = 0
    exception_error_code: int = 0
    interrupt_injected: int = 0
    interrupt_nr: int = 0
    interrupt_soft: int = 0
    interrupt_shadow: int = 0
    nmi_injected: int = 0
    nmi_pending: int = 0
    nmi_masked: int = 0
    sipi_vector: int = 0
    flags: int = 0
    smi_smm: int = 0
    smi_pending: int = 0
    smi_inside_nmi: int = 0
    smi_latched_init: int = 0
    triple_fault_pending: int = 0
    exception_has_payload: int = 0
    exception_payload: int = 0


def pack(layout: struct.Struct, what: str, *values: int | bytes) -> bytes:
    """`values` in `layout`.

    Raises:
        InvalidArgument: One does not fit; `what` is the argument it names.
    """
    try:
        return layout.pack(*values)
    except struct.error as error:
        raise InvalidArgument(f"a value does not fit: {error}", subject="KVM", argument=what) from None


# The fields of these three records are in the order of KVM's structures.
_regs_values = attrgetter(*(field.name for field in fields(Regs)))
_segment_values = attrgetter(*(field.name for field in fields(Segment)))
_events_values = attrgetter(*(field.name for field in fields(VcpuEvents)))


def regs_to_kvm(regs: Regs) -> bytes:
    return pack(abi.REGS, "Regs", *_regs_values(regs))


def regs_from_kvm(data: bytes) -> Regs:
    return Regs(*abi.REGS.unpack(data))


def events_to_kvm(events: VcpuEvents) -> bytes:
    return pack(abi.VCPU_EVENTS, "VcpuEvents", *_events_values(events))


def events_from_kvm(data: bytes) -> VcpuEvents:
    return VcpuEvents(*abi.VCPU_EVENTS.unpack(data))


def sregs_to_kvm(sregs: Sregs) -> bytes:
    segments = b"".join(pack(abi.SEGMENT, name, *_segment_values(getattr(sregs, name))) for name in _SEGMENTS)
    tables = b"".join(pack(abi.DTABLE, "gdt, idt", table.base, table.limit) for table in (sregs.gdt, sregs.idt))
    if not 0 <= sregs.interrupt_bitmap < 1 << 256:
        raise InvalidArgument("it has 256 bits", subject="KVM", argument="interrupt_bitmap")
    bitmap = struct.unpack("<4Q", sregs.interrupt_bitmap.to_bytes(32, "little"))
    return pack(
        abi.SREGS, "Sregs", segments, tables,
        sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4, sregs.cr8, sregs.efer, sregs.apic_base,
        *bitmap,
    )  # fmt: skip


def sregs_from_kvm(data: bytes) -> Sregs:
    segments, tables, cr0, cr2, cr3, cr4, cr8, efer, apic_base, *bitmap = abi.SREGS.unpack(data)
    cs, ds, es, fs, gs, ss, tr, ldt = (Segment(*values) for values in abi.SEGMENT.iter_unpack(segments))
    gdt, idt = (DescriptorTable(*values) for values in abi.DTABLE.iter_unpack(tables))
    interrupt_bitmap = int.from_bytes(struct.pack("<4Q", *bitmap), "little")
    return Sregs(
        cs, ds, es, fs, gs, ss, tr, ldt, gdt, idt, cr0, cr2, cr3, cr4, cr8, efer, apic_base, interrupt_bitmap
    )  # fmt: skip


def cpuid_to_kvm(entries: Sequence[CpuidEntry]) -> bytes:
    """What KVM_SET_CPUID2 takes."""
    packed = [
        pack(
            abi.CPUID_ENTRY2, "CpuidEntry",
            entry.function, entry.index, abi.CPUID_FLAG_SIGNIFCANT_INDEX if entry.significant_index else 0,
            entry.eax, entry.ebx, entry.ecx, entry.edx,
        )
        for entry in entries
    ]  # fmt: skip
    return abi.CPUID2.pack(len(packed), 0) + b"".join(packed)


def cpuid_from_kvm(data: bytes) -> list[CpuidEntry]:
    count, _ = abi.CPUID2.unpack_from(data)
    entries = data[abi.CPUID2.size : abi.CPUID2.size + count * abi.CPUID_ENTRY2.size]
    return [
        CpuidEntry(function, index, bool(flags & abi.CPUID_FLAG_SIGNIFCANT_INDEX), eax, ebx, ecx, edx)
        for function, index, flags, eax, ebx, ecx, edx in abi.CPUID_ENTRY2.iter_unpack(entries)
    ]


_CHIP_IDS = {
    IrqSourceChip.PIC_PRIMARY: abi.IRQCHIP_PIC_MASTER,
    IrqSourceChip.PIC_SECONDARY: abi.IRQCHIP_PIC_SLAVE,
    IrqSourceChip.IOAPIC: abi.IRQCHIP_IOAPIC,
}


def routes_to_kvm(routes: Iterable[IrqRoute]) -> bytes:
    """What KVM_SET_GSI_ROUTING takes.

    Raises:
        InvalidRoute: A number does not fit, or a controller is not of x86.
    """
    packed = []
    for route in routes:
        source = route.source
        if isinstance(source, MsiSource):
            kind = abi.IRQ_ROUTING_MSI
            values = (source.address & 0xFFFFFFFF, source.address >> 32, source.data, 0)
        elif source.chip in _CHIP_IDS:
            kind = abi.IRQ_ROUTING_IRQCHIP
            values = (_CHIP_IDS[source.chip], source.pin, 0, 0)
        else:
            raise InvalidRoute(f"{route}: x86 has no {source.chip.value}", subject="KVM", argument="routes")
        try:
            packed.append(abi.IRQ_ROUTING_ENTRY.pack(route.gsi, kind, 0, *values))
        except struct.error as error:
            raise InvalidRoute(f"{route}: {error}", subject="KVM", argument="routes") from None
    return abi.IRQ_ROUTING.pack(len(packed), 0) + b"".join(packed)


@frozen
class MsrRange:
    """Neighboring MSRs whose accesses go to user space (KVM_X86_SET_MSR_FILTER).

    Attributes:
        base: The first one.
        count: How many, 1 to 12288.
        read, write: Which accesses; the others stay with the kernel.
    """

    base: int
    count: int = 1
    read: bool = True
    write: bool = True
