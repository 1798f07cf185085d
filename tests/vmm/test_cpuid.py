"""CPUID on each vCPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from irqchip_core.chip import IrqChipCap
from irqchip_core.x86.cpuid import vcpu_cpuid
from irqchip_core.x86.registers import CpuidEntry

SUPPORTED = [
    CpuidEntry(0, eax=0x0D, ebx=1, ecx=2, edx=3),
    CpuidEntry(1, eax=0x600F20, ebx=0xAABB0800, ecx=0, edx=0x1),
    CpuidEntry(7, 0, True, ebx=5),
    CpuidEntry(0x1F, 0, True, eax=9),
    CpuidEntry(0x80000000, eax=0x80000008),
]


def chip(*capabilities: IrqChipCap) -> Any:
    return SimpleNamespace(check_capability=lambda cap: cap in capabilities, lapic_frequency=lambda: 25_000_000)


def by_leaf(entries: list[CpuidEntry]) -> dict[tuple[int, int], CpuidEntry]:
    return {(entry.function, entry.index): entry for entry in entries}


def test_identity_and_count() -> None:
    leaves = by_leaf(vcpu_cpuid(SUPPORTED, chip(), 5, 6))
    assert leaves[1, 0].ebx == 5 << 24 | 6 << 16 | 0x0800
    assert leaves[1, 0].edx == 1 | 1 << 9 | 1 << 28
    assert [leaves[0xB, n].edx for n in range(3)] == [5, 5, 5]
    assert [(leaves[0xB, n].eax, leaves[0xB, n].ebx, leaves[0xB, n].ecx) for n in range(3)] == [
        (0, 1, 0x100),
        (3, 6, 0x201),
        (0, 0, 2),
    ]
    assert (0x1F, 0) not in leaves


@pytest.mark.parametrize(
    ("capabilities", "ecx"),
    [
        ((), 1 << 31),
        ((IrqChipCap.X2APIC,), 1 << 31 | 1 << 21),
        ((IrqChipCap.TSC_DEADLINE_TIMER,), 1 << 31 | 1 << 24),
    ],
)
def test_what_the_chip_can_do_decides(capabilities: tuple[IrqChipCap, ...], ecx: int) -> None:
    for before in (0, 1 << 21 | 1 << 24):
        supported = [CpuidEntry(1, ecx=before)]
        assert by_leaf(vcpu_cpuid(supported, chip(*capabilities), 0, 1))[1, 0].ecx == ecx


def test_timer_frequency_is_reachable() -> None:
    leaves = by_leaf(vcpu_cpuid(SUPPORTED, chip(), 0, 1))
    assert leaves[0, 0] == CpuidEntry(0, eax=0x15, ebx=1, ecx=2, edx=3)
    assert leaves[0x15, 0].ecx == 25_000_000


def test_what_is_not_ours_stays() -> None:
    leaves = by_leaf(vcpu_cpuid(SUPPORTED, chip(), 0, 1))
    assert leaves[7, 0] == SUPPORTED[2]
    assert leaves[0x80000000, 0] == SUPPORTED[4]
