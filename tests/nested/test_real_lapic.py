"""What only a KVM whose local APIC waits for the guest's EOI can show: in service, priority, remote IRR."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from irqchip_core.selection import create_vm
from irqchip_core.x86.state import LapicState
from irqchip_kvm import KvmVm
from irqchip_kvm_kernel.chip import KvmKernelIrqChip
from tests.chips.taker import HIGH_MARKER, Eoi, Taker, ioapic_entry, program_ioapic, program_pics

pytestmark = pytest.mark.kvm

ISR, IRR = 0x10, 0x20
"""First registers, each 16 bytes from the next (Intel SDM vol. 3, table 12-1)."""
REMOTE_IRR = 1 << 14


@pytest.fixture
def taker(no_leaks: None) -> Iterator[Taker]:
    with ExitStack() as stack:
        vm = stack.enter_context(create_vm("kvm"))
        chip = stack.enter_context(KvmKernelIrqChip(vm, 1))
        taker = stack.enter_context(Taker(vm, chip))
        program_pics(chip, primary_mask=0xFF)
        program_ioapic(chip, {})
        taker.start()
        if taker.ends_at_delivery():
            pytest.skip("this KVM ends interrupts at delivery (kvm_pvm)")
        yield taker


def vectors(state: LapicState, first: int) -> list[int]:
    """The vectors whose bits are set in the 8 registers from `first` on."""
    return [vector for vector in range(256) if state.regs[first + vector // 32] >> vector % 32 & 1]


def send(taker: Taker, vector: int) -> None:
    assert isinstance(taker.vm, KvmVm)
    assert taker.vm.signal_msi(0xFEE00000, vector)


def test_an_interrupt_is_in_service_from_delivery_to_eoi(taker: Taker) -> None:
    send(taker, 0x51)
    send(taker, 0x41)
    assert taker.take(Eoi.LAPIC) == 0x51  # its handler runs; the EOI comes next
    state = taker.chip.get_lapic_state(0)
    assert (vectors(state, ISR), vectors(state, IRR)) == ([0x51], [0x41])
    assert taker.take(Eoi.LAPIC) == 0x41
    state = taker.chip.get_lapic_state(0)
    assert (vectors(state, ISR), vectors(state, IRR)) == ([0x41], [])


def test_an_interrupt_in_service_blocks_its_class_and_lower_ones_only(taker: Taker) -> None:
    send(taker, 0x51)
    assert taker.take(Eoi.NONE) == 0x51
    send(taker, 0x41)
    send(taker, 0x5F)
    send(taker, 0x61)
    assert taker.take_until_marker(Eoi.LAPIC, marker=HIGH_MARKER) == []  # it, and then 0x61, end themselves only
    assert taker.take(Eoi.LAPIC) == 0x61
    assert taker.take_until_marker(Eoi.LAPIC, marker=HIGH_MARKER) == []
    state = taker.chip.get_lapic_state(0)
    assert (vectors(state, ISR), vectors(state, IRR)) == ([0x51, HIGH_MARKER], [0x41, 0x5F])


def test_remote_irr_is_set_from_delivery_to_eoi(taker: Taker) -> None:
    program_ioapic(taker.chip, {10: ioapic_entry(0x4A, level=True)})
    taker.chip.service_irq(10, True)
    assert taker.take(Eoi.LAPIC) == 0x4A
    assert taker.chip.get_ioapic_state().redirect_table[10] & REMOTE_IRR
    taker.chip.service_irq(10, False)
    assert taker.take_until_marker() == []
    assert not taker.chip.get_ioapic_state().redirect_table[10] & REMOTE_IRR
