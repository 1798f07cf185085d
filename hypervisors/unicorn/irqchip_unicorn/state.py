"""Between an engine's context and irqchip's records of processor state, and what follows from that state."""

from __future__ import annotations

from irqchip_core.errors import InvalidArgument
from irqchip_core.hypervisor.registers import DescriptorTable, Regs, Segment, Sregs
from irqchip_unicorn import context as c
from irqchip_unicorn.context import Context

# RFLAGS
CF, TF, IF, DF, NT, RF, VM, AC = 1, 1 << 8, 1 << 9, 1 << 10, 1 << 14, 1 << 16, 1 << 17, 1 << 18
IOPL_SHIFT = 12
RFLAGS_FIXED = 2
RFLAGS_DEFINED = 0x3F7FD7
# CR0, CR4, EFER
CR0_PE, CR0_WP, CR0_NW, CR0_CD, CR0_PG = 1, 1 << 16, 1 << 29, 1 << 30, 1 << 31
CR0_RESET = 0x60000010
CR4_TSD, CR4_DE, CR4_PSE, CR4_PAE, CR4_MCE, CR4_PGE, CR4_PCE = (1 << bit for bit in range(2, 9))
CR4_OSFXSR, CR4_OSXMMEXCPT, CR4_FSGSBASE, CR4_OSXSAVE = 1 << 9, 1 << 10, 1 << 16, 1 << 18
CR4_SMEP, CR4_SMAP = 1 << 20, 1 << 21
EFER_SCE, EFER_LME, EFER_LMA, EFER_NXE, EFER_SVME = 1, 1 << 8, 1 << 10, 1 << 11, 1 << 12
# Flags of a segment, as in the high half of its descriptor
DESC_ACCESSED, DESC_WRITABLE, DESC_CONFORMING, DESC_CODE = 1 << 8, 1 << 9, 1 << 10, 1 << 11
DESC_EXPAND_DOWN = 1 << 10
DESC_S, DESC_P, DESC_L, DESC_B, DESC_G = 1 << 12, 1 << 15, 1 << 21, 1 << 22, 1 << 23
DESC_DPL_SHIFT = 13

_SEGMENTS = {"es": c.ES, "cs": c.CS, "ss": c.SS, "ds": c.DS, "fs": c.FS, "gs": c.GS, "ldt": c.LDTR, "tr": c.TR}
_M64 = (1 << 64) - 1
_ENCODING = (
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip",
)  # fmt: skip

# hflags that say nothing about the state below and stay as they are
_HFLAGS_KEPT = c.HF_INHIBIT_IRQ | c.HF_GUEST | 1 << 16 | 1 << 18 | 1 << 24 | 1 << 25 | 1 << 26


def _number(value: int, bits: int, name: str) -> int:
    if not 0 <= value < 1 << bits:
        raise InvalidArgument(f"{value:#x} is not of {bits} bits", subject="Unicorn vCPU", argument=name)
    return value


def get_regs(context: Context) -> Regs:
    return Regs(**dict(zip(_ENCODING, context.registers, strict=True)), rflags=context.rflags)


def set_regs(context: Context, regs: Regs) -> None:
    values = tuple(_number(getattr(regs, name), 64, name) for name in _ENCODING)
    rflags = _number(regs.rflags, 64, "rflags") & RFLAGS_DEFINED | RFLAGS_FIXED
    context.registers = values
    context.rflags = rflags
    update_hflags(context)


def get_sregs(context: Context, apic_base: int, injected: int | None) -> Sregs:
    sregs = Sregs(
        cr0=context.cr(0), cr2=context.cr(2), cr3=context.cr(3), cr4=context.cr(4), cr8=context.v_tpr,
        efer=context.efer, apic_base=apic_base, interrupt_bitmap=0 if injected is None else 1 << injected,
    )  # fmt: skip
    for name, number in _SEGMENTS.items():
        setattr(sregs, name, _segment_from(*context.segment(number)))
    for name, number in (("gdt", c.GDTR), ("idt", c.IDTR)):
        _, base, limit, _ = context.segment(number)
        setattr(sregs, name, DescriptorTable(base, limit))
    return sregs


def set_sregs(context: Context, sregs: Sregs, cr4_defined: int, efer_defined: int) -> None:
    """Set all but `apic_base` and `interrupt_bitmap`.

    Args:
        context: Where.
        sregs: What.
        cr4_defined: The bits of CR4 that the vCPU's CPUID announces.
        efer_defined: Likewise of EFER.

    Raises:
        InvalidArgument: A number does not fit, or they are no state a processor can be in; nothing is changed.
    """
    cr0, cr4, efer = sregs.cr0, sregs.cr4, sregs.efer
    for name in ("cr0", "cr2", "cr3", "cr4", "efer"):
        _number(getattr(sregs, name), 64, name)
    _number(sregs.cr8, 4, "cr8")
    long = bool(cr0 & CR0_PG and efer & EFER_LME)
    problem = ""
    if cr0 & CR0_PG and not cr0 & CR0_PE:
        problem = "paging without protection"
    elif long and not cr4 & CR4_PAE:
        problem = "long mode without CR4.PAE"
    elif long != bool(efer & EFER_LMA):
        problem = "EFER.LMA does not follow from CR0.PG and EFER.LME"
    elif reserved := cr4 & ~cr4_defined:
        problem = f"CPUID announces nothing that has the bits {reserved:#x} of CR4"
    elif reserved := efer & ~(efer_defined | EFER_LMA):
        problem = f"CPUID announces nothing that has the bits {reserved:#x} of EFER"
    if problem:
        raise InvalidArgument(problem, subject="Unicorn vCPU", argument="sregs", remedy="check CR0, CR4 and EFER")
    segments = [(number, *_segment_to(name, getattr(sregs, name))) for name, number in _SEGMENTS.items()]
    for name, number in (("gdt", c.GDTR), ("idt", c.IDTR)):
        table = getattr(sregs, name)
        segments.append((number, 0, _number(table.base, 64, name), _number(table.limit, 16, name), 0))
    for segment in segments:
        context.set_segment(*segment)
    for number, value in ((0, cr0), (2, sregs.cr2), (3, sregs.cr3), (4, cr4)):
        context.set_cr(number, value)
    context.efer = efer
    context.v_tpr = sregs.cr8
    update_hflags(context)


def _segment_from(selector: int, base: int, limit: int, flags: int) -> Segment:
    present = flags >> 15 & 1
    return Segment(
        base=base, limit=limit, selector=selector, type=flags >> 8 & 15, present=present, dpl=flags >> 13 & 3,
        db=flags >> 22 & 1, s=flags >> 12 & 1, l=flags >> 21 & 1, g=flags >> 23 & 1, avl=flags >> 20 & 1,
        unusable=1 - present,
    )  # fmt: skip


def _segment_to(name: str, segment: Segment) -> tuple[int, int, int, int]:
    for field, bits in (("type", 4), ("dpl", 2), ("base", 64), ("limit", 32), ("selector", 16)):
        _number(getattr(segment, field), bits, f"{name}.{field}")
    flags = segment.type << 8 | segment.dpl << 13
    for bit, shift in ((segment.s, 12), (segment.avl, 20), (segment.l, 21), (segment.db, 22), (segment.g, 23)):
        flags |= (1 if bit else 0) << shift
    if segment.present and not segment.unusable:
        flags |= DESC_P
    return segment.selector, segment.base, segment.limit, flags


def update_hflags(context: Context) -> None:
    """Make `hflags` follow from the control registers, RFLAGS and segments."""
    cr0, cr4, rflags = context.cr(0), context.cr(4), context.rflags
    cs, ss = context.segment(c.CS)[3], context.segment(c.SS)[3]
    hflags = context.hflags & _HFLAGS_KEPT
    if cr0 & CR0_PE and not rflags & VM:
        hflags |= ss >> DESC_DPL_SHIFT & c.HF_CPL
    elif rflags & VM:
        hflags |= 3
    hflags |= c.HF_PE if cr0 & CR0_PE else 0
    hflags |= (cr0 >> 1 & 7) << c.HF_MP_SHIFT
    hflags |= rflags & (TF | VM | 3 << IOPL_SHIFT)
    hflags |= c.HF_OSFXSR if cr4 & CR4_OSFXSR else 0
    hflags |= c.HF_SMAP if cr4 & CR4_SMAP else 0
    hflags |= c.HF_LMA if context.efer & EFER_LMA else 0
    if hflags & c.HF_LMA and cs & DESC_L:
        hflags |= c.HF_CS32 | c.HF_SS32 | c.HF_CS64
    else:
        hflags |= (c.HF_CS32 if cs & DESC_B else 0) | (c.HF_SS32 if ss & DESC_B else 0)
        bases = context.segment(c.DS)[1] | context.segment(c.ES)[1] | context.segment(c.SS)[1]
        if not cr0 & CR0_PE or rflags & VM or not cs & DESC_B or bases:
            hflags |= c.HF_ADDSEG
    context.hflags = hflags


def cpl(context: Context) -> int:
    """Current privilege level."""
    return context.hflags & c.HF_CPL


def reset(context: Context) -> None:
    """The state after power-up (Intel SDM vol. 3, table 11-1)."""
    context.registers = (0,) * 16 + (0xFFF0,)
    context.set_register(c.RDX, 0x600)  # family 6
    context.rflags = RFLAGS_FIXED
    set_sregs(
        context,
        Sregs(
            cs=Segment(base=0xFFFF0000, selector=0xF000, type=11),
            tr=Segment(type=11, s=0),
            ldt=Segment(type=2, s=0),
            cr0=CR0_RESET,
        ),
        cr4_defined=0,
        efer_defined=0,
    )
    reset_debug_registers(context)


def reset_debug_registers(context: Context) -> None:
    """Debug registers as after power-up and INIT (same table)."""
    for number in range(4):
        context.set_dr(number, 0)
    context.set_dr(6, 0xFFFF0FF0)
    context.set_dr(7, 0x400)
