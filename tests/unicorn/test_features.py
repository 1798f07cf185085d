"""What CPUID announces answers, and what it does not announce faults: instructions, MSRs, CR4 and EFER."""

from __future__ import annotations

import re

import pytest

from irqchip_core.clock import VirtualClock
from irqchip_core.errors import InvalidArgument
from irqchip_core.hypervisor.registers import CpuidEntry
from irqchip_unicorn import UnicornVcpu, UnicornVm
from irqchip_unicorn import features as f
from irqchip_unicorn.features import FEATURES, WORDS, Feature
from tests.guests.assemble import GUESTS

from .guest import CODE, HALT, Machine

UD, GP = 6, 13
EFER_LMA = 1 << 10
OS_CR4 = 0x50620  # what the instructions need: PAE, OSFXSR, OSXMMEXCPT, FSGSBASE, OSXSAVE
_PIECES = re.split(rb"@([\w ]+):", (GUESTS / "features" / "features.bin").read_bytes())
CODE_OF = {name.decode(): code for name, code in zip(_PIECES[1::2], _PIECES[2::2], strict=True)}

ELSEWHERE = {
    # Features without an instruction, an MSR or a bit of their own, and where they are tested.
    "APIC": "test_exits.py",
    "PSE36": "test_paging.py",
    "Page1GB": "test_paging.py",
}
EXECUTED = {
    # What the emulator executes though CPUID does not announce it, and no intercept stops.
    "AVX of 128 bits": "as the SSE instruction without VEX",
    "RTM": "XBEGIN does nothing",
    "WAITPKG": "as another instruction of its group",
    "LWP": "as POP",
}


def machine(vm: UnicornVm, code: bytes, *, mode: str = "long", rcx: int = 0, value: int = 0) -> Machine[UnicornVcpu]:
    made = Machine(vm, mode, code + HALT)
    sregs = made.vcpu.get_sregs()
    sregs.cr4 |= OS_CR4
    made.vcpu.set_sregs(sregs)
    regs = made.vcpu.get_regs()
    regs.rsi, regs.rdi, regs.rcx = 0x7000, 0x20000, rcx
    regs.rax, regs.rdx = value & 0xFFFFFFFF, value >> 32
    made.vcpu.set_regs(regs)
    return made


def fault(made: Machine[UnicornVcpu], length: int) -> int | None:
    """The vector of the handler that is entered, or None if the code ends at its HLT."""
    made.run()
    return None if made.vcpu.get_regs().rip == CODE + length + 1 else made.handler_entered()


def without(feature: Feature, vm: UnicornVm) -> list[CpuidEntry]:
    """What is supported, with the feature hidden."""
    leaf, subleaf, register = feature.word
    entries = vm.supported_cpuid()
    for entry in entries:
        if (entry.function, entry.index) == (leaf, subleaf):
            name = ("eax", "ebx", "ecx", "edx")[register]
            setattr(entry, name, getattr(entry, name) & ~(1 << feature.bit))
    return entries


def test_feature_words_are_the_table(vm: UnicornVm) -> None:
    expected = dict.fromkeys(WORDS, 0)
    for feature in FEATURES:
        assert not expected[feature.word] >> feature.bit & 1, feature
        expected[feature.word] |= 1 << feature.bit
    answers = {(entry.function, entry.index): entry for entry in vm.supported_cpuid()}
    for (leaf, subleaf, register), bits in expected.items():
        entry = answers[leaf, subleaf]
        hypervisor = 1 << 31 if (leaf, register) == (1, f.ECX) else 0
        assert (entry.eax, entry.ebx, entry.ecx, entry.edx)[register] == bits | hypervisor, hex(leaf)


@pytest.mark.parametrize("feature", FEATURES, ids=lambda feature: feature.name)
def test_every_feature_has_something_to_try(feature: Feature) -> None:
    same = next(other for other in FEATURES if other.name == feature.name.removesuffix(" (AMD)"))
    assert same.name in CODE_OF or same.cr4 or same.efer or same.msrs or same.name in ELSEWHERE


@pytest.mark.parametrize("name", [name for name in CODE_OF if not name.startswith("no ")])
def test_announced_instructions_execute(vm: UnicornVm, name: str) -> None:
    assert name in {feature.name for feature in FEATURES}
    code = CODE_OF[name]
    mode = "protected" if name == "SysEnterSysExit" else "long"
    assert fault(machine(vm, code, mode=mode), len(code)) is None


@pytest.mark.parametrize("name", [name.removeprefix("no ") for name in CODE_OF if name.startswith("no ")])
def test_other_instructions_are_undefined(vm: UnicornVm, name: str) -> None:
    code = CODE_OF["no " + name]
    assert fault(machine(vm, code), len(code)) == (None if name in EXECUTED else UD)


MSR_FEATURES = [
    pytest.param(feature, msr, id=f"{feature.name} {msr:#x}") for feature in FEATURES for msr in feature.msrs
]
READ_ONLY = {f.MTRRCAP, f.MCG_CAP, f.MICROCODE}
RDMSR, WRMSR = b"\x0f\x32", b"\x0f\x30"


@pytest.mark.parametrize(("feature", "msr"), MSR_FEATURES)
def test_msrs_are_there_where_their_feature_is_announced(vm: UnicornVm, feature: Feature, msr: int) -> None:
    code = RDMSR if msr in READ_ONLY else RDMSR + WRMSR + RDMSR
    assert fault(machine(vm, code, rcx=msr), len(code)) is None


@pytest.mark.parametrize(("feature", "msr"), MSR_FEATURES)
@pytest.mark.parametrize("code", [RDMSR, WRMSR])
def test_msrs_fault_where_their_feature_is_hidden(vm: UnicornVm, feature: Feature, msr: int, code: bytes) -> None:
    made = machine(vm, code, rcx=msr)
    made.vcpu.set_cpuid(without(feature, vm))
    assert fault(made, len(code)) == GP


@pytest.mark.parametrize("msr", sorted(f.UNUSED_MSRS), ids=hex)
def test_performance_counters_and_their_like_read_as_0(vm: UnicornVm, msr: int) -> None:
    made = machine(vm, WRMSR + RDMSR, rcx=msr, value=0x123456789)
    assert fault(made, 4) is None
    assert (made.vcpu.get_regs().rax, made.vcpu.get_regs().rdx) == (0, 0)


def test_all_other_msrs_fault(vm: UnicornVm) -> None:
    made = machine(vm, RDMSR)
    there = f.OTHER_MSRS.union(*(feature.msrs for feature in FEATURES))
    found = set()
    for first in (0, 0x40000000, 0x4B564D00, 0xC0000080, 0xC0010000, 0xC0010200, 0xC0011000):
        for msr in range(first, first + 0x100):
            regs = made.vcpu.get_regs()
            regs.rip, regs.rsp, regs.rcx = CODE, 0x8000, msr
            made.vcpu.set_regs(regs)
            if fault(made, 2) is None:
                found.add(msr)
    assert found == {msr for msr in there if msr < 0x100 or msr > 0x1000}


@pytest.mark.parametrize(
    ("msr", "value"),
    [
        pytest.param(f.PAT, 0x02, id="PAT, a reserved type"),
        pytest.param(f.PAT, 0x08 << 56, id="PAT, a reserved type above"),
        pytest.param(0x250, 0x07, id="fixed MTRR, UC- is of the PAT only"),
        pytest.param(0x200, 0x02, id="variable MTRR, a reserved type"),
        pytest.param(0x200, 0x100, id="variable MTRR, a reserved bit"),
        pytest.param(0x200, 1 << 40, id="variable MTRR, beyond the physical address"),
        pytest.param(0x201, 0x400, id="mask of a variable MTRR, a reserved bit"),
        pytest.param(f.MTRR_DEF_TYPE, 0x1000, id="default type, a reserved bit"),
        pytest.param(f.MTRR_DEF_TYPE, 3, id="default type, a reserved type"),
        pytest.param(f.MTRRCAP, 0, id="MTRRcap is read-only"),
        pytest.param(f.MCG_CAP, 0, id="MCG_CAP is read-only"),
        pytest.param(f.MCG_STATUS, 8, id="MCG_STATUS, a reserved bit"),
        pytest.param(f.TSC_AUX, 1 << 32, id="TSC_AUX, beyond 32 bits"),
    ],
)
def test_reserved_values_of_msrs_fault(vm: UnicornVm, msr: int, value: int) -> None:
    assert fault(machine(vm, WRMSR, rcx=msr, value=value), 2) == GP


# --- CR4 and EFER

MOV_CR4 = b"\x0f\x22\xe0\x0f\x20\xe3"  # mov %rax, %cr4; mov %cr4, %rbx
CR4_SET = 0x620
CR4_DEFINED = f.OTHER_CR4 | sum({feature.cr4 for feature in FEATURES})
EFER_SET = 0x500
EFER_DEFINED = sum({feature.efer for feature in FEATURES})
CR4_SMEP = 1 << 20  # the test's pages are the user's: see test_paging.py


@pytest.mark.parametrize("bit", range(64))
def test_cr4_has_the_announced_bits_and_no_others(vm: UnicornVm, bit: int) -> None:
    value = CR4_SET | 1 << bit
    made = machine(vm, MOV_CR4, value=0)
    regs = made.vcpu.get_regs()
    regs.rax = value
    made.vcpu.set_regs(regs)
    if 1 << bit == CR4_SMEP:
        pytest.skip("the next instruction is fetched from a page of the user")
    if CR4_DEFINED >> bit & 1:
        assert fault(made, len(MOV_CR4)) is None
        assert made.vcpu.get_regs().rbx == value
    else:
        assert fault(made, len(MOV_CR4)) == GP
        assert made.vcpu.get_sregs().cr4 == CR4_SET | OS_CR4


HIDDEN_CR4 = [feature for feature in FEATURES if feature.cr4 and feature.name != "PAE"]


@pytest.mark.parametrize("feature", HIDDEN_CR4, ids=lambda feature: feature.name)
def test_cr4_bit_of_a_hidden_feature_is_reserved(vm: UnicornVm, feature: Feature) -> None:
    made = machine(vm, MOV_CR4, value=0x20 | feature.cr4)
    made.vcpu.set_cpuid(without(feature, vm))
    assert fault(made, len(MOV_CR4)) == GP


@pytest.mark.parametrize("bit", [bit for bit in range(64) if 1 << bit not in (1 << 8, EFER_LMA)])
def test_efer_has_the_announced_bits_and_no_others(vm: UnicornVm, bit: int) -> None:
    made = machine(vm, WRMSR, rcx=f.EFER, value=EFER_SET | 1 << bit)
    assert fault(made, 2) == (None if EFER_DEFINED >> bit & 1 else GP)


@pytest.mark.parametrize("feature", [feature for feature in FEATURES if feature.efer], ids=lambda feature: feature.name)
def test_efer_bit_of_a_hidden_feature_is_reserved(vm: UnicornVm, feature: Feature) -> None:
    made = machine(vm, WRMSR, rcx=f.EFER, value=EFER_SET | feature.efer)
    made.vcpu.set_cpuid(without(feature, vm))
    assert fault(made, 2) == GP


CR4_TSD, CR4_DE, CR4_PCE, CR4_OSFXSR, CR4_OSXMMEXCPT, CR4_FSGSBASE, CR4_OSXSAVE = (
    1 << bit for bit in (2, 3, 8, 9, 10, 16, 18)
)


@pytest.mark.parametrize(
    ("code", "user", "bit", "clear", "as_set"),
    [
        pytest.param(b"\x0f\x31", True, CR4_TSD, None, GP, id="TSD: RDTSC of the user"),
        pytest.param(b"\x0f\x01\xf9", True, CR4_TSD, None, GP, id="TSD: RDTSCP of the user"),
        pytest.param(b"\x0f\x31", False, CR4_TSD, None, None, id="TSD: RDTSC of the kernel"),
        pytest.param(b"\x0f\x21\xe0", False, CR4_DE, None, UD, id="DE: MOV from DR4"),
        pytest.param(b"\x0f\x23\xe0", False, CR4_DE, None, UD, id="DE: MOV to DR4"),
        pytest.param(b"\x0f\x33", True, CR4_PCE, GP, None, id="PCE: RDPMC of the user"),
        pytest.param(b"\x0f\x33", False, CR4_PCE, None, None, id="PCE: RDPMC of the kernel"),
        pytest.param(b"\x0f\x58\xc8", False, CR4_OSFXSR, UD, None, id="OSFXSR: ADDPS"),
        pytest.param(b"\xf3\x48\x0f\xae\xc0", False, CR4_FSGSBASE, UD, None, id="FSGSBASE: RDFSBASE"),
        pytest.param(b"\x0f\x01\xd0", False, CR4_OSXSAVE, UD, None, id="OSXSAVE: XGETBV"),
    ],
)
@pytest.mark.parametrize("is_set", [False, True])
def test_cr4_bit_does_what_it_is_for(
    vm: UnicornVm, code: bytes, user: bool, bit: int, clear: int | None, as_set: int | None, is_set: bool
) -> None:
    code += b"\xcd\x80"  # HLT is not for the user
    made = Machine(vm, "long", code, user=user)
    sregs = made.vcpu.get_sregs()
    sregs.cr4 = CR4_SET & ~bit | (bit if is_set else 0)
    made.vcpu.set_sregs(sregs)
    expected = as_set if is_set else clear
    assert made.handler() == (0x80 if expected is None else expected)


@pytest.mark.parametrize(("counter", "vector"), [(0, None), (3, None), (4, GP), (0x40000000, GP)])
def test_rdpmc_has_four_counters(vm: UnicornVm, counter: int, vector: int | None) -> None:
    assert fault(machine(vm, b"\x0f\x33", rcx=counter), 2) == vector


@pytest.mark.parametrize(
    ("register", "bit", "named"),
    [("cr4", 13, "0x2000 of CR4"), ("cr4", 63, "of CR4"), ("efer", 12, "0x1000 of EFER"), ("efer", 14, "of EFER")],
)
def test_set_sregs_refuses_what_cpuid_does_not_announce(vm: UnicornVm, register: str, bit: int, named: str) -> None:
    made = machine(vm, HALT)
    before = sregs = made.vcpu.get_sregs()
    setattr(sregs, register, getattr(sregs, register) | 1 << bit)
    sregs.cr2 = 5
    with pytest.raises(InvalidArgument, match=named):
        made.vcpu.set_sregs(sregs)
    after = made.vcpu.get_sregs()
    assert (after.cr2, getattr(after, register)) == (0, getattr(before, register) & ~(1 << bit))


def test_no_random_numbers_in_virtual_time(vm: UnicornVm) -> None:
    with UnicornVm(VirtualClock()) as repeatable:
        for of, expected in ((vm, 1), (repeatable, 0)):
            entries = {(entry.function, entry.index): entry for entry in of.supported_cpuid()}
            assert (entries[1, 0].ecx >> 30 & 1, entries[7, 0].ebx >> 18 & 1) == (expected, expected)
