"""The processor state that a VMM or a chip reads and writes: plain records, the same on any hypervisor.

Field names are those of the Intel SDM. `Regs`, `Sregs`, `Segment` and `DescriptorTable` hold what KVM_GET_REGS
and KVM_GET_SREGS hold; `CpuidEntry` is one answer of the CPUID instruction.
"""

from __future__ import annotations

from attrs import define, field


@define
class Regs:
    """General-purpose registers, 64 bits each. RFLAGS bit 1 is always set on real hardware."""

    rax: int = 0
    rbx: int = 0
    rcx: int = 0
    rdx: int = 0
    rsi: int = 0
    rdi: int = 0
    rsp: int = 0
    rbp: int = 0
    r8: int = 0
    r9: int = 0
    r10: int = 0
    r11: int = 0
    r12: int = 0
    r13: int = 0
    r14: int = 0
    r15: int = 0
    rip: int = 0
    rflags: int = 0x2


@define
class Segment:
    """A segment register with its hidden part (Intel SDM vol. 3, 3.4.3)."""

    base: int = 0
    limit: int = 0xFFFF
    selector: int = 0
    type: int = 3  # data, read/write, accessed
    present: int = 1
    dpl: int = 0
    db: int = 0
    s: int = 1
    l: int = 0  # noqa: E741  (the SDM's name of the bit)
    g: int = 0
    avl: int = 0
    unusable: int = 0


@define
class DescriptorTable:
    """GDTR or IDTR."""

    base: int = 0
    limit: int = 0xFFFF


@define
class Sregs:
    """Segment, descriptor-table and control registers, and the injected-interrupt bitmap.

    Attributes:
        efer: MSR 0xC0000080.
        apic_base: MSR 0x1B.
        interrupt_bitmap: 256 bits; bit v is set while vector v is injected but not yet delivered.
    """

    cs: Segment = field(factory=Segment)
    ds: Segment = field(factory=Segment)
    es: Segment = field(factory=Segment)
    fs: Segment = field(factory=Segment)
    gs: Segment = field(factory=Segment)
    ss: Segment = field(factory=Segment)
    tr: Segment = field(factory=Segment)
    ldt: Segment = field(factory=Segment)
    gdt: DescriptorTable = field(factory=DescriptorTable)
    idt: DescriptorTable = field(factory=DescriptorTable)
    cr0: int = 0
    cr2: int = 0
    cr3: int = 0
    cr4: int = 0
    cr8: int = 0
    efer: int = 0
    apic_base: int = 0
    interrupt_bitmap: int = 0


@define
class CpuidEntry:
    """The answer of CPUID for one leaf.

    Attributes:
        function: EAX on entry.
        index: ECX on entry; meaningful only if `significant_index`.
        significant_index: Whether this leaf depends on ECX (KVM_CPUID_FLAG_SIGNIFCANT_INDEX).
    """

    function: int
    index: int = 0
    significant_index: bool = False
    eax: int = 0
    ebx: int = 0
    ecx: int = 0
    edx: int = 0
