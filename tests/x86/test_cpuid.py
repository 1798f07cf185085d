"""CPUID of each vCPU, on made-up hosts."""

from __future__ import annotations

from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from irqchip_core.capabilities import IrqChipCap
from irqchip_core.errors import InvalidArgument, WrongType
from irqchip_core.hypervisor.registers import CpuidEntry
from irqchip_core.x86.cpuid import vcpu_cpuid
from tests.x86.cpuid_hosts import HOSTS

FREQUENCY = 25_000_000
AMD = [name for name in HOSTS if not name.startswith("Intel")]
KVM = [name for name in HOSTS if "KVM" in name]
WITH_TOPOLOGY_EXTENSIONS = ["AMD, KVM", "AMD with leaf 0x80000026, KVM", "Hygon, KVM"]
OWN_LEAVES = {0, 1, 4, 6, 7, 0xA, 0xB, 0x15, 0x18, 0x1F, 0x40000000, 0x40000001, 0x40000010, 0x40000101,
              0x80000001, 0x80000008, 0x8000000A, 0x8000001D, 0x8000001E, 0x80000022, 0x80000026}  # fmt: skip

Leaves = dict[tuple[int, int], CpuidEntry]


def chip(*capabilities: IrqChipCap, lapics_in_hypervisor: bool = False, lapics: bool = True) -> Any:
    return SimpleNamespace(
        check_capability=lambda cap: lapics if cap is IrqChipCap.LOCAL_APIC else cap in capabilities,
        lapic_frequency=lambda: FREQUENCY,
        lapics_in_hypervisor=lambda: lapics_in_hypervisor,
    )


def leaves_of(host: str, vcpu_id: int = 0, vcpu_count: int = 1, made_for: Any = None) -> Leaves:
    return by_leaf(vcpu_cpuid(HOSTS[host], made_for or chip(), vcpu_id, vcpu_count))


def by_leaf(entries: list[CpuidEntry]) -> Leaves:
    leaves = {(entry.function, entry.index): entry for entry in entries}
    assert len(leaves) == len(entries), "a leaf is there twice"
    return leaves


def registers(entry: CpuidEntry) -> tuple[int, int, int, int]:
    return entry.eax, entry.ebx, entry.ecx, entry.edx


def changed(host: str, leaves: Leaves, leaf: int) -> tuple[int, ...]:
    """Bits of EAX, EBX, ECX and EDX that are not the host's."""
    supported = by_leaf(HOSTS[host])[leaf, 0]
    return tuple(now ^ before for now, before in zip(registers(leaves[leaf, 0]), registers(supported), strict=True))


def levels(leaves: Leaves, leaf: int) -> list[tuple[int, ...]]:
    """Of each subleaf: bits to the next level's id, processors, subleaf, level, APIC id."""
    found = [entry for (function, _), entry in sorted(leaves.items()) if function == leaf]
    assert all(entry.significant_index for entry in found)
    return [(entry.eax, entry.ebx, entry.ecx & 0xFF, entry.ecx >> 8, entry.edx) for entry in found]


# Identity and topology

hosts = pytest.mark.parametrize("host", HOSTS)
amd_hosts = pytest.mark.parametrize("host", AMD)


@hosts
@pytest.mark.parametrize(
    ("vcpu_id", "vcpu_count", "apic_id", "processors", "htt"),
    [(0, 1, 0, 1, 0), (5, 6, 5, 6, 1), (254, 255, 254, 255, 1), (255, 256, 255, 255, 1), (0x12B, 300, 0x2B, 255, 1)],
)
def test_leaf_1(host: str, vcpu_id: int, vcpu_count: int, apic_id: int, processors: int, htt: int) -> None:
    features = leaves_of(host, vcpu_id, vcpu_count)[1, 0]
    assert features.ebx == apic_id << 24 | processors << 16 | 0x0800
    assert features.edx >> 28 & 1 == htt
    assert features.edx >> 9 & 1 == 1
    assert features.ecx >> 31 == 1


@hosts
def test_leaf_0xb(host: str) -> None:
    for vcpu_id, vcpu_count, bits in ((0, 1, 0), (3, 4, 2), (4, 5, 3), (0x12B, 300, 9)):
        expected = [(0, 1, 0, 1, vcpu_id), (bits, vcpu_count, 1, 2, vcpu_id), (0, 0, 2, 0, vcpu_id)]
        leaves = leaves_of(host, vcpu_id, vcpu_count)
        assert levels(leaves, 0xB) == expected
        assert levels(leaves, 0x1F) == (expected if host.startswith("Intel") else [])


@pytest.mark.parametrize("host", WITH_TOPOLOGY_EXTENSIONS)
def test_amd_identity(host: str) -> None:
    leaves = leaves_of(host, 3, 4)
    assert registers(leaves[0x8000001E, 0]) == (3, 3, 0, 0)  # one thread a core; node 0 of one
    assert registers(leaves_of(host, 0x12B, 300)[0x8000001E, 0]) == (0x12B, 0x2B, 0, 0)


def test_no_amd_identity_without_topology_extensions() -> None:
    host = "AMD without topology extensions, KVM"
    assert not any(changed(host, leaves_of(host, 3, 4), 0x8000001E))
    assert (0x8000001E, 0) not in leaves_of("AMD, emulated", 3, 4)


@amd_hosts
@pytest.mark.parametrize(
    ("vcpu_count", "nc", "size"), [(1, 0, 0), (2, 1, 1), (4, 3, 2), (5, 4, 3), (256, 255, 8), (300, 255, 9)]
)
def test_amd_sizes(host: str, vcpu_count: int, nc: int, size: int) -> None:
    leaves = leaves_of(host, 0, vcpu_count)
    assert leaves[0x80000008, 0].ecx & 0xFFFF == size << 12 | nc
    eax, ebx, ecx, edx = changed(host, leaves, 0x80000008)
    assert (eax, ebx, ecx >> 16, edx) == (0, 0, 0, 0)  # widths of addresses and of the time-stamp counter


@hosts
def test_cmp_legacy_is_amds_and_means_cores(host: str) -> None:
    for vcpu_count in (1, 2):
        cores = host in AMD and vcpu_count > 1
        assert leaves_of(host, 0, vcpu_count)[0x80000001, 0].ecx >> 1 & 1 == cores


def test_amd_extended_topology() -> None:
    host = "AMD with leaf 0x80000026, KVM"
    upper = [(2, 4, index, index + 1, 3) for index in (1, 2, 3)]  # complex, die, socket
    assert levels(leaves_of(host, 3, 4), 0x80000026) == [(0, 1, 0, 1, 3), *upper, (0, 0, 4, 0, 3)]
    assert all((0x80000026, 0) not in leaves_of(other, 3, 4) for other in HOSTS if other != host)


@pytest.mark.parametrize(
    ("vcpu_count", "ids", "cores"), [(1, 0, 0), (4, 3, 3), (5, 7, 7), (64, 63, 63), (300, 511, 63)]
)
def test_caches_of_intel(vcpu_count: int, ids: int, cores: int) -> None:
    leaves = leaves_of("Intel, KVM", 0, vcpu_count)
    caches = [leaves[4, index].eax for index in range(5)]
    assert [eax >> 14 & 0xFFF for eax in caches] == [0, 0, 0, ids, 0]
    assert [eax >> 26 for eax in caches] == [cores] * 4 + [0]
    assert leaves[0x18, 1].edx == 0x22  # a TLB


@pytest.mark.parametrize("host", WITH_TOPOLOGY_EXTENSIONS)
@pytest.mark.parametrize("vcpu_count", [1, 5, 300])
def test_caches_of_amd(host: str, vcpu_count: int) -> None:
    leaves = leaves_of(host, 0, vcpu_count)
    assert [leaves[0x8000001D, index].eax >> 14 for index in range(5)] == [0, 0, 0, vcpu_count - 1, 0]


@given(st.sampled_from(sorted(HOSTS)), st.integers(1, 1024), st.booleans(), st.data())
def test_a_guest_finds_one_package_whose_processors_are_all_told_apart(
    host: str, vcpu_count: int, in_hypervisor: bool, data: st.DataObject
) -> None:
    ids = data.draw(st.sets(st.integers(0, vcpu_count - 1), min_size=1, max_size=4))
    found = {vcpu_id: leaves_of(host, vcpu_id, vcpu_count, chip(lapics_in_hypervisor=in_hypervisor)) for vcpu_id in ids}
    for vcpu_id, leaves in found.items():
        assert all(0 <= register < 1 << 32 for entry in leaves.values() for register in registers(entry))
        for leaf in (0xB, 0x1F, 0x80000026):
            for bits, processors, _, level, apic_id in levels(leaves, leaf):
                assert apic_id == vcpu_id
                assert (apic_id >> bits, processors) in ((0, vcpu_count), (vcpu_id, 1)) or not level
        assert leaves[1, 0].ebx >> 24 == vcpu_id & 0xFF
        if host in WITH_TOPOLOGY_EXTENSIONS:
            assert leaves[0x8000001E, 0].eax == vcpu_id
        for leaf, index in leaves:
            if leaf in (4, 0x8000001D) and leaves[leaf, index].eax & 0x1F:
                # AMD APM vol. 3, E.4.15: those with the same id above this many bits share the cache; so says Intel
                bits = (leaves[leaf, index].eax >> 14 & 0xFFF).bit_length()
                last = leaves[leaf, index].eax >> 5 & 7 == 3
                assert (vcpu_id >> bits == 0) if last else bits == 0


# Features of the chip


@hosts
@pytest.mark.parametrize(
    "capabilities", [(), (IrqChipCap.X2APIC,), (IrqChipCap.TSC_DEADLINE_TIMER,), tuple(IrqChipCap)]
)
def test_capabilities_of_the_chip_are_announced(host: str, capabilities: tuple[IrqChipCap, ...]) -> None:
    for before in (0, 1 << 21 | 1 << 24):
        supported = deepcopy(HOSTS[host])
        for entry in supported:
            if entry.function == 1:
                entry.ecx = entry.ecx & ~(1 << 21 | 1 << 24) | before
        ecx = by_leaf(vcpu_cpuid(supported, chip(*capabilities), 0, 1))[1, 0].ecx
        assert ecx >> 21 & 1 == (IrqChipCap.X2APIC in capabilities)
        assert ecx >> 24 & 1 == (IrqChipCap.TSC_DEADLINE_TIMER in capabilities)


@hosts
def test_timer_is_announced(host: str) -> None:
    leaves = leaves_of(host)
    assert leaves[0, 0].eax >= 0x15
    assert leaves[0, 0].eax >= by_leaf(HOSTS[host])[0, 0].eax
    assert registers(leaves[0x15, 0]) == (1, 0, FREQUENCY, 0)
    assert leaves[6, 0].eax & 1 << 2  # it always runs


KVM_LEAVES = {"Intel, KVM behind Hyper-V's leaves": (0x40000100, 0x40000101)}
INTERRUPTS = sum(1 << bit for bit in (4, 6, 7, 10, 11, 13, 14))
EXTENDED_DESTINATIONS = 1 << 15


@pytest.mark.parametrize("host", KVM)
@pytest.mark.parametrize("in_hypervisor", [False, True])
def test_what_kvm_does_with_its_own_local_apics(host: str, in_hypervisor: bool) -> None:
    signature, features = KVM_LEAVES.get(host, (0x40000000, 0x40000001))
    leaves = leaves_of(host, 0, 2, chip(lapics_in_hypervisor=in_hypervisor))
    supported = by_leaf(HOSTS[host])[features, 0]
    removed = EXTENDED_DESTINATIONS if in_hypervisor else EXTENDED_DESTINATIONS | INTERRUPTS
    assert leaves[features, 0].eax == supported.eax & ~removed
    assert registers(leaves[features, 0])[1:] == registers(supported)[1:]  # hints are the VMM's
    assert not any(changed(host, leaves, signature))


@pytest.mark.parametrize(
    ("host", "leaf", "bits"),
    [
        ("Intel, KVM", 1, (0, 0, 1 << 2 | 1 << 15, 1 << 21)),  # DTES64, PDCM, DS
        ("Intel, KVM", 7, (0, 1 << 25, 0, 1 << 5)),  # processor trace, user interrupts
        ("Intel, KVM", 0xA, (0x08300802, 0, 0xF, 0x8603)),
        ("AMD, KVM", 0x80000001, (0, 0, 1 << 3 | 1 << 10 | 1 << 23, 0)),  # extended APIC space, IBS, core counters
        ("AMD, KVM", 0x8000000A, (0, 0, 0, 1 << 13 | 1 << 18)),  # AVIC, x2AVIC
        ("AMD with leaf 0x80000026, KVM", 0x80000022, (3, 6, 0, 0)),
    ],
)
def test_what_interrupts_through_the_hypervisors_local_apics_only(
    host: str, leaf: int, bits: tuple[int, int, int, int]
) -> None:
    supported = deepcopy(HOSTS[host])
    for entry in supported:
        if (entry.function, entry.index) == (leaf, 0):
            for register, more in zip(("eax", "ebx", "ecx", "edx"), bits, strict=True):
                setattr(entry, register, getattr(entry, register) | more)
    for in_hypervisor in (False, True):
        found = by_leaf(vcpu_cpuid(supported, chip(lapics_in_hypervisor=in_hypervisor), 0, 1))[leaf, 0]
        announced = tuple(register & more for register, more in zip(registers(found), bits, strict=True))
        assert announced == (bits if in_hypervisor else (0, 0, 0, 0))


def test_leaves_of_another_hypervisor_are_its_own() -> None:
    host = "Intel, another hypervisor"
    leaves = leaves_of(host)
    assert not any(changed(host, leaves, 0x40000000))
    assert not any(changed(host, leaves, 0x40000001))  # its bits mean something else than KVM's
    assert registers(leaves[0x40000010, 0]) == (0x278D00, FREQUENCY // 1000, 0, 0)


def test_the_hypervisors_range_is_there_even_if_it_is_empty() -> None:
    assert registers(leaves_of("AMD, emulated")[0x40000000, 0]) == (0x40000000, 0, 0, 0)


# All else


@hosts
@pytest.mark.parametrize("in_hypervisor", [False, True])
def test_what_is_not_the_chips_stays(host: str, in_hypervisor: bool) -> None:
    before = deepcopy(HOSTS[host])
    leaves = leaves_of(host, 3, 4, chip(lapics_in_hypervisor=in_hypervisor))
    assert HOSTS[host] == before
    for key, entry in by_leaf(before).items():
        if key[0] not in OWN_LEAVES:
            assert leaves[key] == entry
    assert list(leaves) == sorted(leaves)


def test_of_two_records_for_a_leaf_the_first_counts() -> None:
    entries = vcpu_cpuid([CpuidEntry(7, ebx=1), CpuidEntry(7, ebx=2)], chip(), 0, 1)
    assert by_leaf(entries)[7, 0].ebx == 1


@pytest.mark.parametrize(
    ("vcpu_id", "vcpu_count", "error"),
    [
        (1, 1, InvalidArgument),
        (-1, 1, InvalidArgument),
        (0, 0, InvalidArgument),
        (0, 1 << 16, InvalidArgument),
        (None, 1, WrongType),
        (0, "1", WrongType),
        (True, 2, WrongType),
    ],
)
def test_numbers_that_are_none(vcpu_id: Any, vcpu_count: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="vcpu_cpuid"):
        vcpu_cpuid(HOSTS["AMD, KVM"], chip(), vcpu_id, vcpu_count)
