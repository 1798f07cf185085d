"""Checks of state records: a chip checks a whole record before it changes anything.

`state` has the values that each field can hold. Here are the walk over the fields of a record, and the rules between
two fields, or between a field and the controller that takes it over. Every chip can take over a record that passes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Container
from functools import partial
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from attrs import fields, has

from irqchip_core.arguments import check_int, check_type
from irqchip_core.capabilities import IrqChipCap
from irqchip_core.chip import MPState
from irqchip_core.errors import InvalidArgument
from irqchip_core.x86.lapic import registers as reg
from irqchip_core.x86.state import (
    ELCR_MASKS,
    MODE_UNKNOWN,
    NARROW_SELECTOR_PINS,
    PIT_WIRED_GATES,
    SIZE,
    VALUES,
    ChipSnapshot,
    IoapicState,
    LapicState,
    PicSelect,
    PicState,
    PitRwMode,
    PitRwState,
    PitState,
)

_APIC_BASE_BITS = (1 << 52) - 1 & ~0xFFF | reg.APIC_BASE_BSP | reg.APIC_BASE_EN | reg.APIC_BASE_EXTD
_LAPIC_ID = reg.ID >> 4
_MANY = (1 << 32) - 1
_BYTES = {
    PitRwMode.NONE: (PitRwState.NONE,),
    PitRwMode.LEAST: (PitRwState.NONE, PitRwState.LSB),
    PitRwMode.MOST: (PitRwState.NONE, PitRwState.MSB),
    PitRwMode.BOTH: (PitRwState.NONE, PitRwState.WORD0, PitRwState.WORD1),
}
"""By access mode of an 8254 counter: the bytes that the next access can transfer."""


def check_select(select: PicSelect, *, subject: str) -> None:
    """Refuse a value that names neither 8259A."""
    check_int(select, PicSelect.PRIMARY, PicSelect.SECONDARY, subject=subject, argument="select")


def check_pic(state: PicState, select: PicSelect, *, subject: str, argument: str = "state") -> None:
    """Refuse a value that is not the state of the 8259A `select`.

    Raises:
        WrongType: The state, or a field in it, is of another type.
        InvalidArgument: A value is out of range, or contradicts another one.
    """
    check_record(state, PicState, subject=subject, argument=argument)
    check_select(select, subject=subject)
    mask = ELCR_MASKS[select]
    _demand(state.elcr_mask, (mask,), subject, f"{argument}.elcr_mask")
    if state.elcr & ~mask:
        _refuse(f"{state.elcr} has bits outside of elcr_mask", subject, f"{argument}.elcr", f"give bits of {mask}")


def check_ioapic(state: IoapicState, pins: int, *, subject: str, argument: str = "state") -> None:
    """Refuse a value that is not the state of an IOAPIC with `pins` inputs; raises as `check_pic`."""
    check_record(state, IoapicState, subject=subject, argument=argument)
    if len(state.redirect_table) != pins:
        _refuse(
            f"it has {len(state.redirect_table)} pins, not {pins}",
            subject,
            f"{argument}.redirect_table",
            "restore into an IOAPIC with as many pins as the saved one has",
        )
    bits = range(1 << pins)
    _demand(state.ioregsel, range(1 << (8 if pins <= NARROW_SELECTOR_PINS else 9)), subject, f"{argument}.ioregsel")
    _demand(state.current_interrupt_level_bitmap, bits, subject, f"{argument}.current_interrupt_level_bitmap")
    _demand(state.held_back, bits, subject, f"{argument}.held_back")
    for pin in state.successive_eois:
        _demand(pin, range(pins), subject, f"{argument}.successive_eois")


def check_lapic(state: LapicState, apic_id: int, *, x2apic: bool, subject: str, argument: str = "state") -> None:
    """Refuse a value that is not the state of the local APIC with this initial id; raises as `check_pic`.

    Args:
        state: The value.
        apic_id: Number of the vCPU.
        x2apic: Whether the local APIC has x2APIC mode.
        subject: Name of the chip.
        argument: Name of the caller's argument, for error messages.
    """
    check_record(state, LapicState, subject=subject, argument=argument)
    base = state.apic_base
    if base is None:
        return
    extended = base & reg.APIC_BASE_EXTD != 0
    if base & ~_APIC_BASE_BITS or (extended and not (x2apic and base & reg.APIC_BASE_EN)):
        _refuse(
            f"{base:#x} is no value of IA32_APIC_BASE here",
            subject,
            f"{argument}.apic_base",
            "restore into a local APIC with the features of the saved one",
        )
    if extended:  # in x2APIC mode the id is read-only (Intel SDM vol. 3, table 12-6)
        _demand(state.regs[_LAPIC_ID], (apic_id,), subject, f"{argument}.regs[{_LAPIC_ID}]")


def check_pit(state: PitState, *, subject: str, argument: str = "state") -> None:
    """Refuse a value that is not the state of a PC's 8254; raises as `check_pic`."""
    check_record(state, PitState, subject=subject, argument=argument)
    for number, channel in enumerate(state.channels):
        where = f"{argument}.channels[{number}]"
        if PIT_WIRED_GATES[number] and not channel.gate:
            _refuse("the gate of this counter is wired high", subject, f"{where}.gate", "give True")
        if channel.mode == MODE_UNKNOWN:
            _demand(channel.rw_mode, (PitRwMode.NONE,), subject, f"{where}.rw_mode")
        for name in ("read_state", "write_state"):
            _demand(getattr(channel, name), _BYTES[channel.rw_mode], subject, f"{where}.{name}")
        if channel.write_state is not PitRwState.WORD1:
            _demand(channel.reload_value, (0,), subject, f"{where}.reload_value")


def check_mp_state(state: MPState, *, subject: str, argument: str = "state") -> None:
    """Refuse a value that is no MP state of an x86 processor; raises as `check_pic`."""
    check_type(state, MPState, subject=subject, argument=argument)
    if state is MPState.STOPPED:
        _refuse("x86 has no such state", subject, argument, "give another MPState")


def check_snapshot(
    snapshot: ChipSnapshot, vcpu_count: int, *, has: Callable[[IrqChipCap], bool], pins: int, subject: str
) -> None:
    """Refuse a value that is not the snapshot of such a chip, without its chip-specific part; raises as `check_pic`.

    Args:
        snapshot: The value.
        vcpu_count: How many vCPUs the chip has.
        has: Whether the chip has a capability.
        pins: How many inputs its IOAPIC has, if it has one.
        subject: Name of the chip.
    """
    check_type(snapshot, ChipSnapshot, subject=subject, argument="snapshot")
    check_int(vcpu_count, 0, _MANY, subject=subject, argument="vcpu_count")
    for what, records, capability in (
        ("local APICs", snapshot.lapics, IrqChipCap.LOCAL_APIC),
        ("MP states", snapshot.mp_states, IrqChipCap.MP_STATE_GET_SET),
    ):
        count = vcpu_count if has(capability) else 0
        check_type(records, list, subject=subject, argument="snapshot")
        if len(records) != count:
            _refuse(
                f"it has {len(records)} {what}, not {count}",
                subject,
                "snapshot",
                "restore into a machine with as many as the saved one has",
            )
    checks: dict[str, tuple[IrqChipCap, Callable[..., None]]] = {
        "pic_primary": (IrqChipCap.PIC, partial(check_pic, select=PicSelect.PRIMARY)),
        "pic_secondary": (IrqChipCap.PIC, partial(check_pic, select=PicSelect.SECONDARY)),
        "ioapic": (IrqChipCap.IOAPIC, partial(check_ioapic, pins=pins)),
        "pit": (IrqChipCap.PIT, check_pit),
    }
    for name, (capability, check) in checks.items():
        record, argument = getattr(snapshot, name), f"snapshot.{name}"
        if has(capability):
            check(record, subject=subject, argument=argument)
        elif record is not None:
            remedy = "restore into a chip with the controllers of the saved one"
            _refuse(f"the chip has no {capability.value}", subject, argument, remedy)
    for number, lapic in enumerate(snapshot.lapics):
        x2apic = has(IrqChipCap.X2APIC)
        check_lapic(lapic, number, x2apic=x2apic, subject=subject, argument=f"snapshot.lapics[{number}]")
    for number, mp_state in enumerate(snapshot.mp_states):
        check_mp_state(mp_state, subject=subject, argument=f"snapshot.mp_states[{number}]")


# The walk


def check_record(record: object, kind: type, *, subject: str, argument: str) -> None:
    """Refuse a value that is no `kind`, or has a field whose value its type or its metadata exclude."""
    check_type(record, kind, subject=subject, argument=argument)
    types = _types(kind)
    for field in fields(kind):
        where = f"{argument}.{field.name}"
        _check(getattr(record, field.name, None), types[field.name], field.metadata, subject, where)


@functools.cache
def _types(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _check(value: Any, kind: Any, limits: Any, subject: str, argument: str) -> None:
    if isinstance(kind, UnionType):
        if value is None:
            return
        kind = next(one for one in get_args(kind) if one is not NoneType)
    origin = get_origin(kind)
    if origin is list:
        check_type(value, list, subject=subject, argument=argument)
        _demand(len(value), limits[SIZE], subject, argument, "elements")
        for number, element in enumerate(value):
            _check(element, get_args(kind)[0], limits, subject, f"{argument}[{number}]")
    elif origin is dict:
        check_type(value, dict, subject=subject, argument=argument)
        key_kind, value_kind = get_args(kind)
        for key, element in value.items():
            check_type(key, key_kind, subject=subject, argument=argument)
            _check(element, value_kind, limits, subject, f"{argument}[{key}]")
    elif has(kind):
        check_record(value, kind, subject=subject, argument=argument)
    else:
        check_type(value, kind, subject=subject, argument=argument)
        if kind is int:
            _demand(value, limits[VALUES], subject, argument)


def _demand(number: int, values: Container[int], subject: str, argument: str, what: str = "") -> None:
    if int(number) in values:  # int: a range finds an enumeration's member only by comparing one by one
        return
    if isinstance(values, range):
        wanted = f"{values[0]} to {values[-1]}" + (f" in steps of {values.step}" if values.step > 1 else "")
    else:
        wanted = " or ".join(map(str, values))  # type: ignore[call-overload]
    found = f"{number} {what}".rstrip()
    _refuse(f"it has {found}" if what else f"it is {found}", subject, argument, f"give {wanted}")


def _refuse(problem: str, subject: str, argument: str, remedy: str) -> None:
    raise InvalidArgument(problem, subject=subject, argument=argument, remedy=remedy)
