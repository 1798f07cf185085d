"""The operations that guest.S can measure, in its order."""

from __future__ import annotations

from attrs import frozen


@frozen
class Operation:
    """One row of the guest.

    Attributes:
        name: For the table.
        times: How often it is performed in one pass.
        per: How many accesses one operation consists of.
        vcpus: How many vCPUs it needs.
    """

    name: str
    times: int
    per: int = 1
    vcpus: int = 1


PASSES = 25  # of guest.S, in each run
MANY, SOME = 300, 60  # a pass takes a few milliseconds: some of them are not disturbed

OPERATIONS = [
    Operation("nothing (the guest's loop)", MANY),
    Operation("CPUID", MANY),
    Operation("CR8 read", MANY),
    Operation("CR8 write", MANY),
    Operation("MSR of KVM (IA32_PAT)", MANY),
    Operation("port of the VMM", MANY),
    Operation("PIC port read", MANY),
    Operation("PIC port write", MANY),
    Operation("PIT port read", MANY),
    Operation("PIT port write", MANY),
    Operation("LAPIC read", MANY),
    Operation("TPR write", MANY),
    Operation("EOI write", MANY),
    Operation("ICR write, to no vCPU", MANY),
    Operation("self-IPI with EOI, at the next exit", SOME),
    Operation("self-IPI from HLT", SOME),
    Operation("LAPIC timer to handler", SOME),
    Operation("TSC deadline to handler", SOME),
    Operation("IOAPIC edge with EOI", SOME),
    Operation("IOAPIC level with EOI", SOME),
    Operation("PIC interrupt with EOI", SOME),
    Operation("MSI with EOI", SOME),
    Operation("redirection entry rewrite", SOME, per=2),
    Operation("IPI to a vCPU that exits", SOME, vcpus=2),
    Operation("IPI to a vCPU in HLT", SOME, vcpus=2),
    Operation("port of the VMM, both vCPUs", MANY, vcpus=2),
    Operation("x2APIC read", MANY),
    Operation("x2APIC TPR write", MANY),
    Operation("x2APIC EOI write", MANY),
    Operation("x2APIC ICR write, to no vCPU", MANY),
    Operation("x2APIC self-IPI with EOI, at the next exit", SOME),
]
