"""Scenarios: records of state that a host has edited or damaged."""

from __future__ import annotations

import copy
import enum
from collections.abc import Callable, Iterator
from functools import partial
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from attrs import evolve, fields, has

from irqchip_core.capabilities import IrqChipCap
from irqchip_core.chip import MPState
from irqchip_core.errors import InvalidArgument, WrongType
from irqchip_core.testing.bench import Bench
from irqchip_core.testing.conformance.base import Scenarios, needs
from irqchip_core.testing.conformance.state import controllers
from irqchip_core.testing.conformance.timers import MODE_2, PIT_HZ, start_pit
from irqchip_core.testing.guest_cpu import Eoi
from irqchip_core.testing.verdict import check, check_equal, refused
from irqchip_core.x86.lapic import registers as reg
from irqchip_core.x86.state import PicSelect, PitRwMode, PitRwState

BEYOND = 1 << 300
"""More than any field can hold."""
WRONG: tuple[Any, ...] = ("x", 1.5, object(), MPState, BEYOND, -BEYOND)
"""Nothing of what a field can hold."""
PIC_EDITS: dict[str, Any] = {
    "irr": 0x20,
    "imr": 0xA5,
    "isr": 0x10,
    "priority_add": 3,
    "irq_base": 0x48,
    "read_reg_select": True,
    "special_mask": True,
    "auto_eoi": True,
    "rotate_on_auto_eoi": True,
    "special_fully_nested_mode": True,
    "elcr": 0x10,
}
IOAPIC_EDITS: dict[str, Any] = {"ioregsel": 0x12, "ioapicid": 3 << 24, "current_interrupt_level_bitmap": 1 << 9}
PIT_EDITS: dict[str, Any] = {"flags": 2}
EDITS = {IrqChipCap.PIC: PIC_EDITS, IrqChipCap.IOAPIC: IOAPIC_EDITS, IrqChipCap.PIT: PIT_EDITS}
CHANNEL_EDITS: list[dict[str, Any]] = [
    {"count": 500, "mode": 1},
    {"count": 0x10000, "mode": 0},
    {"count": 1234, "mode": 3, "bcd": True},
    {"count": 77, "mode": 2, "rw_mode": PitRwMode.LEAST, "read_state": PitRwState.LSB, "write_state": PitRwState.LSB},
    {
        "count": 0x1234,
        "mode": 4,
        "rw_mode": PitRwMode.BOTH,
        "read_state": PitRwState.WORD1,
        "write_state": PitRwState.WORD1,
        "reload_value": 0x56,
    },
    {"latched_count": 0x4321, "count_latched": PitRwState.WORD0},
    {"status": 0xB4, "status_latched": True},
]
LAPIC_EDITS = {reg.TPR: 0x30, reg.LDR: 0x02000000, reg.SPIV: 0x1EF, reg.LVT_ERROR: 0x000FE, reg.ICR_HIGH: 0x01000000}


class Records(Scenarios):
    """Records of state that a host has edited or damaged."""

    def test_edited_records_are_read_back(self) -> None:
        """What a host puts into a record is what is read back, and the guest has it."""
        machine = self.boot()
        chip = machine.chip
        for capability, get, put in controllers(chip):
            edit(get, put, EDITS[capability])
        if machine.has(IrqChipCap.PIC):
            check_equal(machine.cpu.in_(0x21), 0xA5, "set_pic_state is what the guest reads")

    @needs(IrqChipCap.PIT)
    def test_edited_pit_is_read_back(self) -> None:
        """What a host puts into the record of a counter is what is read back, whatever it counted before."""
        machine = self.boot()
        chip = machine.chip
        fresh = chip.get_pit()
        start_pit(machine.cpu, MODE_2, 0x4321)
        for before in (fresh, chip.get_pit()):
            for edits in CHANNEL_EDITS:
                for number in range(3):
                    record = copy.deepcopy(before)
                    for name, value in edits.items():
                        setattr(record.channels[number], name, value)
                    chip.set_pit(record)
                    channel = chip.get_pit().channels[number]
                    for name, value in edits.items():
                        check_equal(getattr(channel, name), value, f"{name} of PIT counter {number} is what was set")

    @needs(IrqChipCap.PIT)
    def test_edited_pit_counts(self) -> None:
        """A counter that a host has set counts, and interrupts, from then on."""
        machine = self.boot()
        machine.unmask_pics(0)
        chip = machine.chip
        for mode in (2, 3, 0, 4):
            state = chip.get_pit()
            state.channels[0].mode = mode
            state.channels[0].count = PIT_HZ // 200
            chip.set_pit(state)
            machine.cpu.expect_next(0x30, rule=f"a counter set to mode {mode} interrupts")
            machine.cpu.end(Eoi.PRIMARY)
            if mode in (2, 3):
                machine.cpu.expect_next(0x30, rule=f"a counter set to mode {mode} interrupts again and again")
                machine.cpu.end(Eoi.PRIMARY)
        self.lab.leave_open("how often the PIT interrupts")

    def test_edited_secondary_pic_interrupts(self) -> None:
        """A request that a host puts into the secondary PIC comes, and so does the next one."""
        machine = self.boot()
        machine.unmask_pics(12)
        state = machine.chip.get_pic_state(PicSelect.SECONDARY)
        for _ in range(2):
            state.irr = 1 << 4
            machine.chip.set_pic_state(PicSelect.SECONDARY, state)
            rule = "a request that is put into the secondary PIC interrupts"
            machine.cpu.expect_next(0x3C, rule=rule)
            machine.cpu.end(Eoi.PRIMARY | Eoi.SECONDARY)
        machine.cpu.expect_nothing(rule="a request interrupts once")

    def test_edited_secondary_pic_is_quiet(self) -> None:
        """A request that a host takes from the secondary PIC is gone, and the line interrupts when it rises again."""
        machine = self.boot()
        machine.unmask_pics(12)
        quiet = [machine.chip.get_pic_state(select) for select in PicSelect]
        machine.pulse(12)
        for select in reversed(PicSelect):
            machine.chip.set_pic_state(select, quiet[select])
        machine.pulse(12)
        machine.cpu.expect(
            0x3C, rule="a request after one that was taken back interrupts", eoi=Eoi.PRIMARY | Eoi.SECONDARY
        )

    def test_edited_lapic_is_read_back(self) -> None:
        """What a host puts into the registers of a local APIC is what is read back, and the guest has it."""
        machine = self.boot()
        for offset, value in LAPIC_EDITS.items():
            state = machine.chip.get_lapic_state(0)
            state.regs[offset >> 4] = value
            machine.chip.set_lapic_state(0, state)
            found = machine.chip.get_lapic_state(0).regs[offset >> 4]
            check_equal(hex(found), hex(value), f"register {offset:#x} of the local APIC is what was set")
            check_equal(hex(machine.cpu.apic_read(offset)), hex(value), "set_lapic_state is what the guest reads")

    def test_edited_lapic_timer_counts(self) -> None:
        """A timer whose counts a host has set counts from the current one, however it counted before."""
        machine = self.boot()
        hz = machine.chip.lapic_frequency()
        for mode in (0, 1):
            state = machine.chip.get_lapic_state(0)
            for offset, value in (
                (reg.LVT_TIMER, 0x61 | mode << reg.LVT_TIMER_MODE_SHIFT),
                (reg.TIMER_DIVIDE, 0xB),
                (reg.TIMER_INITIAL_COUNT, hz if mode == 0 else hz // 50),
                (reg.TIMER_CURRENT_COUNT, hz // 100),
            ):
                state.regs[offset >> 4] = value
            machine.chip.set_lapic_state(0, state)
            machine.cpu.expect_next(0x61, rule="a timer that is set to count runs out")
            machine.cpu.end(Eoi.LAPIC)
        machine.cpu.expect_next(0x61, rule="a timer that is set to be periodic runs out again")
        machine.cpu.end(Eoi.LAPIC)
        self.lab.leave_open("how often the timer runs out")

    def test_damaged_records(self) -> None:
        """What no controller can hold is refused, wherever in a record it stands, and nothing has changed."""
        machine = self.boot()
        chip: Any = machine.chip
        setters: list[tuple[Any, Callable[[Any], None]]] = [
            (chip.get_lapic_state(0), partial(chip.set_lapic_state, 0)),
            *((get(), put) for _, get, put in controllers(chip)),
        ]
        for record, put in setters:
            refuse_each_damage(machine, record, put)

    def test_damaged_snapshots(self) -> None:
        """`restore` finds damage anywhere in a snapshot before anything changes."""
        machine = self.boot()
        snapshot = machine.chip.snapshot(1)
        snapshot.lapics[0].regs[reg.TPR >> 4] ^= 0x30
        if snapshot.pic_primary is not None:
            snapshot.pic_primary.imr ^= 0xFF
        if snapshot.pit is not None:
            snapshot.pit.channels[0].count = 77
        if snapshot.ioapic is not None:
            snapshot.ioapic.redirect_table[3] = 0x43
        refuse_each_damage(machine, snapshot, lambda damaged: machine.chip.restore(damaged, 1))


def edit(get: Callable[[], Any], put: Callable[[Any], None], edits: dict[str, Any]) -> None:
    """Demand that each field can be set to that value."""
    for name, value in edits.items():
        record = get()
        setattr(record, name, value)
        put(record)
        check_equal(getattr(get(), name), value, f"{name} of a {type(record).__name__} is what was set")


def refuse_each_damage(machine: Bench, record: Any, put: Callable[[Any], None]) -> None:
    """Demand that `put` refuses `record` with any one thing wrong in it, and changes nothing."""
    before = machine.fingerprint()
    for where, damaged in damages(record, type(record), type(record).__name__):
        try:
            with refused((WrongType, InvalidArgument), f"{where} is refused"):
                put(damaged)
        finally:
            after = machine.fingerprint()
        changed = [part for part, state in before.items() if state != after[part]]
        check(not changed, f"{where} is refused and changes nothing", f"it changed {', '.join(changed)}")


def damages(value: Any, kind: Any, where: str) -> Iterator[tuple[str, Any]]:
    """Copies of `value` with one thing wrong in each, and what that is."""
    kinds = get_args(kind) or (kind,)
    if get_origin(kind) is list:
        wrong: list[Any] = [None, (), [*value, *value[:1]] if value else [BEYOND], value[:-1] if value else BEYOND]
        for at in {0, len(value) - 1} if value else ():
            for what, element in damages(value[at], kinds[0], f"{where}[{at}]"):
                yield what, [*value[:at], element, *value[at + 1 :]]
    elif get_origin(kind) is tuple:
        wrong = [None, BEYOND, *((one, *value[1:]) for one in (None, *WRONG))]
    elif get_origin(kind) is dict:
        wrong = [None, [], {BEYOND: 1}, {-1: 1}, {"0": 1}, {0: BEYOND}, {0: -1}, {0: None}]
    elif kind is Any:
        wrong = [None, BEYOND]
    else:
        wrong = [one for one in WRONG if not isinstance(one, kinds) or one in (BEYOND, -BEYOND)]
        wrong += [] if NoneType in kinds else [None]
        wrong += [1] if kind is bool or isinstance(value, enum.Enum) else [True]
    for one in wrong:
        yield f"{where} = {one!r:.40}", one
    if has(type(value)):
        types = get_type_hints(type(value))
        for field in fields(type(value)):
            name = field.name
            for what, element in damages(getattr(value, name), types[name], f"{where}.{name}"):
                yield what, evolve(value, **{name: element})
