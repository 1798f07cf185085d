"""CPUID of each vCPU: what the hypervisor supports, made to agree with the chip and with the vCPU's number.

`vcpu_cpuid` is what a VMM calls. It writes every field that holds an APIC id, a count of processors or a topology, and
every feature that depends on the local APICs. All other fields stay as the hypervisor gives them: frequencies of the
processor (leaf 0x16), KVM's hints, Hyper-V's leaves, and features that MSRs announce.

The topology is one package with one node and one thread in each core; APIC ids are vCPU ids.

Leaves 0x0 and up: Intel SDM vol. 2, CPUID. 0x80000000 and up: AMD APM vol. 3, appendix E. 0x40000000 and up: Linux,
Documentation/virt/kvm/x86/cpuid.rst; 0x40000010 is VMware's.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from attrs import evolve

from irqchip_core.arguments import check_int
from irqchip_core.capabilities import IrqChipCap
from irqchip_core.hypervisor.registers import CpuidEntry
from irqchip_core.x86.chip import IrqChipX86_64

MAX_XAPIC_ID = 254  # 255 is the broadcast address
MAX_VCPUS = 0xFFFF  # processors of a level in leaf 0xB

EAX, EBX, ECX, EDX = "eax", "ebx", "ecx", "edx"
ALL = 0xFFFFFFFF

# Leaves, and beneath them fields: the register and its bits.
BASIC = 0x00  # EAX: the highest basic leaf; EBX, EDX, ECX: the vendor
FEATURES = 0x01
LOCAL_APIC_ID = EBX, 0xFF << 24
LOGICAL_PROCESSORS = EBX, 0xFF << 16
DTES64 = ECX, 1 << 2  # with DS: counters that fill a buffer, and interrupt when it is full
PDCM = ECX, 1 << 15  # performance capabilities
X2APIC = ECX, 1 << 21
TSC_DEADLINE = ECX, 1 << 24
HYPERVISOR = ECX, 1 << 31
APIC = EDX, 1 << 9
DS = EDX, 1 << 21
HTT = EDX, 1 << 28  # LOGICAL_PROCESSORS is valid
CACHES = 0x04  # Intel's; in each subleaf
CACHE_TYPE = EAX, 0x1F  # 0: no more caches
CACHE_LEVEL = EAX, 7 << 5
CACHE_SHARING = EAX, 0xFFF << 14  # APIC ids less 1
PACKAGE_CORES = EAX, 0x3F << 26  # APIC ids of cores less 1
POWER = 0x06
ARAT = EAX, 1 << 2  # the local APIC timer runs in every C state
STRUCTURED_FEATURES = 0x07
PROCESSOR_TRACE = EBX, 1 << 25
UINTR = EDX, 1 << 5  # user interrupts
PERFORMANCE = 0x0A  # counters, which interrupt through the local APIC
TOPOLOGY = 0x0B
CRYSTAL = 0x15  # EAX, EBX: the TSC's ratio to it; ECX: Hz
TRANSLATION = 0x18  # TLBs, in each subleaf
TLB_SHARING = EDX, 0xFFF << 14  # APIC ids less 1
TOPOLOGY_V2 = 0x1F
EXTENDED = 0x80000000  # EAX: the highest extended leaf
EXTENDED_FEATURES = 0x80000001
CMP_LEGACY = ECX, 1 << 1  # logical processors are cores, not threads
EXT_APIC_SPACE = ECX, 1 << 3  # registers 0x400 and up of the local APIC
IBS = ECX, 1 << 10  # samples, which interrupt through those
TOPOLOGY_EXTENSIONS = ECX, 1 << 22  # leaves 0x8000001D and 0x8000001E
PERF_CTR_EXT_CORE = ECX, 1 << 23
SIZES = 0x80000008
NC = ECX, 0xFF  # processors less 1
APIC_ID_SIZE = ECX, 0xF << 12  # bits
SVM = 0x8000000A
AVIC, X2AVIC = (EDX, 1 << 13), (EDX, 1 << 18)
AMD_CACHES = 0x8000001D  # fields as in leaf 4, but for PACKAGE_CORES
AMD_IDENTITY = 0x8000001E  # EAX: APIC id
CORE_ID = EBX, 0xFF
CORE_THREADS = EBX, 0xFF << 8  # less 1
NODE = ECX, 0x7FF  # its number, and nodes less 1
PERFMON_V2 = 0x80000022
AMD_TOPOLOGY = 0x80000026
HYPERVISOR_BASE, HYPERVISOR_END, HYPERVISOR_STEP = 0x40000000, 0x40010000, 0x100
KVM_FEATURES = 1  # above the leaf with KVM's signature; in EAX
TIMING = 0x40000010  # EBX: local APIC timer in kHz

LEVEL_THREAD, LEVEL_CORE = 1, 2  # of leaves 0xB and 0x1F
LEVEL_AMD_CORE, LEVEL_COMPLEX, LEVEL_DIE, LEVEL_SOCKET = 1, 2, 3, 4  # of leaf 0x80000026
LAST_LEVEL_CACHE = 3

KVM_SIGNATURE = struct.unpack("<3I", b"KVMKVMKVM\0\0\0")  # EBX, ECX, EDX
AMD_VENDORS = {struct.unpack("<3I", name) for name in (b"AuthenticAMD", b"HygonGenuine")}  # EBX, EDX, ECX

Field = tuple[str, int]

NEEDS_HYPERVISOR_LAPICS: dict[int, tuple[Field, ...]] = {
    FEATURES: (DTES64, PDCM, DS),
    STRUCTURED_FEATURES: (PROCESSOR_TRACE, UINTR),
    PERFORMANCE: ((EAX, ALL), (EBX, ALL), (ECX, ALL), (EDX, ALL)),
    EXTENDED_FEATURES: (EXT_APIC_SPACE, IBS, PERF_CTR_EXT_CORE),
    SVM: (AVIC, X2AVIC),
    PERFMON_V2: ((EAX, ALL), (EBX, ALL), (ECX, ALL), (EDX, ALL)),
}
"""Features whose interrupts the hypervisor delivers only through local APICs of its own."""

KVM_NEEDS_HYPERVISOR_LAPICS = (
    1 << 4  # ASYNC_PF: a page that is ready is an interrupt
    | 1 << 6  # PV_EOI: KVM reads the EOI from the guest's memory
    | 1 << 7  # PV_UNHALT: KVM_HC_KICK_CPU finds its target by APIC id; the target sleeps with IF = 0 until it comes
    | 1 << 10  # ASYNC_PF_VMEXIT
    | 1 << 11  # PV_SEND_IPI: a hypercall with a set of APIC ids
    | 1 << 13  # PV_SCHED_YIELD: a hypercall with an APIC id
    | 1 << 14  # ASYNC_PF_INT
)
KVM_NEEDS_USER_SPACE = 1 << 15
"""MSI_EXT_DEST_ID: user space must move bits 5-11 of MSI addresses, as KVM ignores them there. No chip does."""


def vcpu_cpuid(supported: Sequence[CpuidEntry], chip: IrqChipX86_64, vcpu_id: int, vcpu_count: int) -> list[CpuidEntry]:
    """The answers of CPUID on one vCPU, for `set_cpuid`; the records of `supported` are not changed.

    x2APIC mode and TSC-deadline mode are announced exactly if the chip has them. Features that need local APICs of the
    hypervisor are announced only if the chip uses these: KVM's asynchronous page faults, paravirtual EOI, unhalt, yield
    and IPIs, performance counters, and the like. Leaf 0x15 has the frequency of the local APIC timer as core crystal
    clock, which is what that timer counts (SDM vol. 3, 12.5.4); the TSC's ratio to it is left unknown.

    Args:
        supported: The answers that the hypervisor supports (`Vm.supported_cpuid`), with changes of the VMM's own.
        chip: The VM's chip.
        vcpu_id: Number of the vCPU, below `vcpu_count`. It is the APIC id.
        vcpu_count: How many vCPUs the VM has, 1 to 65535. Fields of fewer bits stay at their maximum.

    Raises:
        WrongType, InvalidArgument: A number that is none, or out of range.
    """
    check_int(vcpu_count, 1, MAX_VCPUS, subject="vcpu_cpuid", argument="vcpu_count")
    check_int(vcpu_id, 0, vcpu_count - 1, subject="vcpu_cpuid", argument="vcpu_id")
    leaves = _Leaves(supported)
    _announce_chip(leaves, chip)
    if not chip.lapics_in_hypervisor():
        for function, fields in NEEDS_HYPERVISOR_LAPICS.items():
            for entry in leaves.subleaves(function):
                for field in fields:
                    _put(entry, field, 0)
    _announce_hypervisor(leaves, chip)
    _announce_topology(leaves, vcpu_id, vcpu_count)
    _announce_sharing(leaves, vcpu_count)
    if leaves.is_amd():
        _announce_amd_topology(leaves, vcpu_id, vcpu_count)
    return leaves.all()


def _announce_chip(leaves: _Leaves, chip: IrqChipX86_64) -> None:
    basic, features = leaves.entry(BASIC), leaves.entry(FEATURES)
    lapics = chip.check_capability(IrqChipCap.LOCAL_APIC)
    basic.eax = max(basic.eax, CRYSTAL)
    _put(features, X2APIC, chip.check_capability(IrqChipCap.X2APIC))
    _put(features, TSC_DEADLINE, chip.check_capability(IrqChipCap.TSC_DEADLINE_TIMER))
    _put(features, APIC, lapics)
    _put(leaves.entry(POWER), ARAT, lapics)
    leaves.replace(CRYSTAL, [CpuidEntry(CRYSTAL, eax=int(lapics), ecx=_lapic_frequency(chip))])


def _lapic_frequency(chip: IrqChipX86_64) -> int:
    return chip.lapic_frequency() if chip.check_capability(IrqChipCap.LOCAL_APIC) else 0


def _announce_hypervisor(leaves: _Leaves, chip: IrqChipX86_64) -> None:
    _put(leaves.entry(FEATURES), HYPERVISOR, 1)
    if not leaves.subleaves(HYPERVISOR_BASE):  # or guests read another leaf's answer, as HYPERVISOR is set
        leaves.entry(HYPERVISOR_BASE).eax = HYPERVISOR_BASE
    if leaves.has(TIMING):
        leaves.entry(TIMING).ebx = _lapic_frequency(chip) // 1000
    unsupported = KVM_NEEDS_USER_SPACE | (0 if chip.lapics_in_hypervisor() else KVM_NEEDS_HYPERVISOR_LAPICS)
    for function in range(HYPERVISOR_BASE, HYPERVISOR_END, HYPERVISOR_STEP):  # KVM's leaves follow those of others
        for entry in leaves.subleaves(function):
            if (entry.ebx, entry.ecx, entry.edx) == KVM_SIGNATURE:
                leaves.entry(function + KVM_FEATURES).eax &= ~unsupported


def _announce_topology(leaves: _Leaves, vcpu_id: int, vcpu_count: int) -> None:
    features = leaves.entry(FEATURES)
    _put(features, LOCAL_APIC_ID, vcpu_id & 0xFF)
    _put(features, LOGICAL_PROCESSORS, vcpu_count)
    _put(features, HTT, vcpu_count > 1)
    for function in (TOPOLOGY, TOPOLOGY_V2):
        if function == TOPOLOGY or leaves.has(function):
            leaves.replace(function, _levels(function, vcpu_id, vcpu_count, LEVEL_THREAD, LEVEL_CORE))


def _levels(function: int, vcpu_id: int, vcpu_count: int, *levels: int) -> list[CpuidEntry]:
    """Subleaves of a topology: EAX bits to the next level's id, EBX processors, ECX level and subleaf, EDX APIC id."""
    counts = [(0, 1), *[(_id_bits(vcpu_count), vcpu_count)] * (len(levels) - 1), (0, 0)]
    return [
        CpuidEntry(function, index, True, bits, count, index | level << 8, vcpu_id)
        for index, ((bits, count), level) in enumerate(zip(counts, [*levels, 0], strict=True))
    ]


def _announce_sharing(leaves: _Leaves, vcpu_count: int) -> None:
    """The package shares the last cache level, a core the others. Intel counts APIC ids, AMD counts processors."""
    ids = 1 << _id_bits(vcpu_count)
    for function, sharing in ((CACHES, ids), (AMD_CACHES, vcpu_count)):
        for entry in leaves.subleaves(function):
            if _get(entry, CACHE_TYPE):
                _put(entry, CACHE_SHARING, sharing - 1 if _get(entry, CACHE_LEVEL) >= LAST_LEVEL_CACHE else 0)
                if function == CACHES:
                    _put(entry, PACKAGE_CORES, ids - 1)
    for entry in leaves.subleaves(TRANSLATION):
        _put(entry, TLB_SHARING, 0)


def _announce_amd_topology(leaves: _Leaves, vcpu_id: int, vcpu_count: int) -> None:
    if leaves.has(EXTENDED_FEATURES):
        _put(leaves.entry(EXTENDED_FEATURES), CMP_LEGACY, vcpu_count > 1)
    if leaves.has(SIZES):
        _put(leaves.entry(SIZES), NC, vcpu_count - 1)
        _put(leaves.entry(SIZES), APIC_ID_SIZE, _id_bits(vcpu_count))
    if leaves.has(AMD_IDENTITY) and _get(leaves.entry(EXTENDED_FEATURES), TOPOLOGY_EXTENSIONS):
        identity = leaves.entry(AMD_IDENTITY)
        identity.eax = vcpu_id
        _put(identity, CORE_ID, vcpu_id & 0xFF)
        _put(identity, CORE_THREADS, 0)
        _put(identity, NODE, 0)
    if leaves.has(AMD_TOPOLOGY):
        levels = (LEVEL_AMD_CORE, LEVEL_COMPLEX, LEVEL_DIE, LEVEL_SOCKET)
        leaves.replace(AMD_TOPOLOGY, _levels(AMD_TOPOLOGY, vcpu_id, vcpu_count, *levels))


def _id_bits(vcpu_count: int) -> int:
    """Number of APIC id bits that distinguish the processors."""
    return (vcpu_count - 1).bit_length()


def _get(entry: CpuidEntry, field: Field) -> int:
    register, mask = field
    value: int = (getattr(entry, register) & mask) // (mask & -mask)
    return value


def _put(entry: CpuidEntry, field: Field, value: int) -> None:
    """Set a field; a value with too many bits becomes the highest value of the field."""
    register, mask = field
    lowest = mask & -mask
    setattr(entry, register, getattr(entry, register) & ~mask | min(value, mask // lowest) * lowest)


class _Leaves:
    """Copies of the answers, by leaf and subleaf. If there are two for the same, the first is used."""

    def __init__(self, entries: Sequence[CpuidEntry]) -> None:
        self._entries = {(entry.function, entry.index): evolve(entry) for entry in reversed(entries)}

    def is_amd(self) -> bool:
        basic = self.entry(BASIC)
        return (basic.ebx, basic.edx, basic.ecx) in AMD_VENDORS

    def has(self, function: int) -> bool:
        """Whether it is at most the highest leaf of its range (basic, hypervisor's, extended)."""
        first = self._entries.get((function & 0xC0000000, 0))
        return first is not None and function <= first.eax

    def entry(self, function: int) -> CpuidEntry:
        """The leaf, or its first subleaf; added if it is missing."""
        return self._entries.setdefault((function, 0), CpuidEntry(function))

    def subleaves(self, function: int) -> list[CpuidEntry]:
        return [entry for entry in self._entries.values() if entry.function == function]

    def replace(self, function: int, entries: Sequence[CpuidEntry]) -> None:
        for entry in self.subleaves(function):
            del self._entries[entry.function, entry.index]
        self._entries.update({(entry.function, entry.index): entry for entry in entries})

    def all(self) -> list[CpuidEntry]:
        return [self._entries[key] for key in sorted(self._entries)]
