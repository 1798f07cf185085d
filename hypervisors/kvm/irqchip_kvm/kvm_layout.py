"""KVM's binary layouts of the state records, as in <asm/kvm.h>.

They are struct kvm_pic_state, kvm_ioapic_state, kvm_lapic_state and kvm_pit_state2. Pure bytes in and
out; no ioctl is made here. A value that the kernel should not have (such as an initialization state of 7) is
read as the reset value.
"""

from __future__ import annotations

import enum
import struct
from typing import TypeVar

from irqchip_core.errors import InvalidArgument
from irqchip_core.routes import IOAPIC_PINS
from irqchip_core.x86.state import (
    LAPIC_REGISTERS,
    IoapicState,
    LapicState,
    PicInitState,
    PicState,
    PitChannelState,
    PitRwMode,
    PitRwState,
    PitState,
)

_PIC = struct.Struct("<16B")
_IOAPIC = struct.Struct(f"<Q4I{IOAPIC_PINS}Q")
_IOAPIC_ID_SHIFT = 24  # KVM keeps the id's 4 bits, not the register
_IOAPIC_ID_MASK = 0xF << _IOAPIC_ID_SHIFT
_LAPIC = struct.Struct("<" + "I12x" * LAPIC_REGISTERS)
_PIT_CHANNEL = struct.Struct("<IH10Bq")
_PIT = struct.Struct("<72sI36x")

_E = TypeVar("_E", bound=enum.IntEnum)


def _known(kind: type[_E], value: int) -> _E:
    """`value` as a member of `kind`, or the reset value 0 if it is none."""
    try:
        return kind(value)
    except ValueError:
        return kind(0)


def _pack(layout: struct.Struct, what: str, *values: int | bytes) -> bytes:
    try:
        return layout.pack(*values)
    except struct.error as error:
        raise InvalidArgument(f"a field does not fit KVM's layout: {error}", argument=what) from None


def pic_to_kvm(state: PicState) -> bytes:
    """16 bytes of struct kvm_pic_state."""
    s = state
    return _pack(
        _PIC, "PicState",
        s.last_irr, s.irr, s.imr, s.isr, s.priority_add, s.irq_base, s.read_reg_select, s.poll,
        s.special_mask, s.init_state, s.auto_eoi, s.rotate_on_auto_eoi,
        s.special_fully_nested_mode, s.use_4_byte_icw, s.elcr, s.elcr_mask,
    )  # fmt: skip


def pic_from_kvm(data: bytes | bytearray | memoryview) -> PicState:
    """The first 16 bytes of `data` as struct kvm_pic_state."""
    v = _PIC.unpack_from(data)
    return PicState(
        last_irr=v[0],
        irr=v[1],
        imr=v[2],
        isr=v[3],
        priority_add=v[4],
        irq_base=v[5],
        read_reg_select=bool(v[6]),
        poll=bool(v[7]),
        special_mask=bool(v[8]),
        init_state=_known(PicInitState, v[9]),
        auto_eoi=bool(v[10]),
        rotate_on_auto_eoi=bool(v[11]),
        special_fully_nested_mode=bool(v[12]),
        use_4_byte_icw=bool(v[13]),
        elcr=v[14],
        elcr_mask=v[15],
    )


def ioapic_to_kvm(state: IoapicState) -> bytes:
    """216 bytes of struct kvm_ioapic_state, which has 24 pins."""
    if len(state.redirect_table) != IOAPIC_PINS:
        raise InvalidArgument(
            f"KVM's IOAPIC has {IOAPIC_PINS} entries, not {len(state.redirect_table)}", argument="redirect_table"
        )
    if state.ioapicid & ~_IOAPIC_ID_MASK:
        raise InvalidArgument(f"{state.ioapicid:#x} has more than an id in bits 24-27", argument="ioapicid")
    return _pack(
        _IOAPIC, "IoapicState",
        state.base_address, state.ioregsel, state.ioapicid >> _IOAPIC_ID_SHIFT, state.current_interrupt_level_bitmap, 0,
        *state.redirect_table,
    )  # fmt: skip


def ioapic_from_kvm(data: bytes | bytearray | memoryview) -> IoapicState:
    """The first 216 bytes of `data` as struct kvm_ioapic_state."""
    base_address, ioregsel, ioapicid, levels, _pad, *entries = _IOAPIC.unpack_from(data)
    return IoapicState(base_address, ioregsel & 0xFF, ioapicid << _IOAPIC_ID_SHIFT & _IOAPIC_ID_MASK, levels, entries)


def lapic_to_kvm(state: LapicState) -> bytes:
    """1024 bytes of struct kvm_lapic_state."""
    return _pack(_LAPIC, "LapicState", *state.regs)


def lapic_from_kvm(data: bytes | bytearray | memoryview) -> LapicState:
    """The first 1024 bytes of `data` as struct kvm_lapic_state."""
    return LapicState(list(_LAPIC.unpack_from(data)))


def pit_to_kvm(state: PitState) -> bytes:
    """112 bytes of struct kvm_pit_state2."""
    if len(state.channels) != 3:
        raise InvalidArgument(f"a PIT has 3 channels, not {len(state.channels)}", argument="channels")
    channels = b"".join(
        _pack(
            _PIT_CHANNEL, "PitChannelState",
            c.count, c.latched_count, c.count_latched, c.status_latched, c.status, c.read_state or c.rw_mode,
            c.write_state or c.rw_mode, c.reload_value, c.rw_mode, c.mode, c.bcd, c.gate, c.count_load_time,
        )
        for c in state.channels
    )  # fmt: skip
    return _pack(_PIT, "PitState", channels, state.flags)


def pit_from_kvm(data: bytes | bytearray | memoryview) -> PitState:
    """The first 112 bytes of `data` as struct kvm_pit_state2."""
    channels, flags = _PIT.unpack_from(data)
    return PitState(
        [
            PitChannelState(
                count=v[0],
                latched_count=v[1],
                count_latched=_known(PitRwState, v[2]),
                status_latched=bool(v[3]),
                status=v[4],
                read_state=_known(PitRwState, v[5]),
                write_state=_known(PitRwState, v[6]),
                reload_value=v[7] if v[6] == PitRwState.WORD1 else 0,  # the kernel keeps write_latch after its use
                rw_mode=_known(PitRwMode, v[8]),
                mode=v[9],
                bcd=bool(v[10]),
                gate=bool(v[11]),
                count_load_time=v[12],
            )
            for v in _PIT_CHANNEL.iter_unpack(channels)
        ],
        flags,
    )
