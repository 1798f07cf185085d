"""What CPUID answers on each vCPU: what the hypervisor supports, with what only the VMM and its chip know.

Leaves and bits: Intel SDM vol. 2, CPUID. Topology: one package, one thread a core.
"""

from __future__ import annotations

from collections.abc import Sequence

from attrs import evolve

from irqchip_core.chip import IrqChipCap
from irqchip_core.x86.chip import IrqChipX86_64
from irqchip_core.x86.registers import CpuidEntry

BASIC, FEATURES, TOPOLOGY, CRYSTAL, TOPOLOGY_V2 = 0x00, 0x01, 0x0B, 0x15, 0x1F
FEATURES_ECX_X2APIC = 1 << 21
FEATURES_ECX_TSC_DEADLINE = 1 << 24
FEATURES_ECX_HYPERVISOR = 1 << 31
FEATURES_EDX_APIC = 1 << 9
FEATURES_EDX_HTT = 1 << 28  # the count of logical processors is valid
LEVEL_THREAD, LEVEL_CORE = 1 << 8, 2 << 8
MAX_XAPIC_ID = 254  # 255 is the broadcast address


def _with(value: int, bits: int, on: bool) -> int:
    return value | bits if on else value & ~bits


def vcpu_cpuid(supported: Sequence[CpuidEntry], chip: IrqChipX86_64, vcpu_id: int, vcpu_count: int) -> list[CpuidEntry]:
    """The CPUID entries of vCPU `vcpu_id`.

    x2APIC and TSC-deadline timer are there exactly if the chip has them. Leaf 0x15 has the chip's timer frequency as
    core crystal clock, which is what the local APIC timer counts (SDM vol. 3, 12.5.4); the TSC's ratio is left unknown.
    """
    replaced = (BASIC, FEATURES, TOPOLOGY, CRYSTAL, TOPOLOGY_V2)
    entries = [entry for entry in supported if entry.function not in replaced]
    first = {entry.function: entry for entry in reversed(supported) if entry.function in replaced}
    basic = first.get(BASIC, CpuidEntry(BASIC))
    entries.append(evolve(basic, eax=max(basic.eax, CRYSTAL)))

    features = first.get(FEATURES, CpuidEntry(FEATURES))
    ecx = _with(features.ecx, FEATURES_ECX_X2APIC, chip.check_capability(IrqChipCap.X2APIC))
    ecx = _with(ecx, FEATURES_ECX_TSC_DEADLINE, chip.check_capability(IrqChipCap.TSC_DEADLINE_TIMER))
    entries.append(
        evolve(
            features,
            ebx=features.ebx & 0xFFFF | vcpu_count << 16 | vcpu_id << 24,
            ecx=ecx | FEATURES_ECX_HYPERVISOR,
            edx=_with(features.edx, FEATURES_EDX_HTT, vcpu_count > 1) | FEATURES_EDX_APIC,
        )
    )

    id_bits = (vcpu_count - 1).bit_length()
    for index, shift, count, level in ((0, 0, 1, LEVEL_THREAD), (1, id_bits, vcpu_count, LEVEL_CORE), (2, 0, 0, 0)):
        entries.append(CpuidEntry(TOPOLOGY, index, True, shift, count, index | level, vcpu_id))
    entries.append(CpuidEntry(CRYSTAL, eax=1, ecx=chip.lapic_frequency()))
    return sorted(entries, key=lambda entry: (entry.function, entry.index))
