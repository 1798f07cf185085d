"""Every number and layout of `abi` against the system's own <linux/kvm.h>, by way of a C compiler.

A name that is newer than the header is skipped by name.
"""

from __future__ import annotations

import functools
import subprocess
import tempfile
from pathlib import Path
from struct import Struct

import pytest

from irqchip_kvm import abi
from irqchip_kvm.abi import Cap, ExitReason, Request

pytestmark = pytest.mark.gcc

STRUCTS = {
    "kvm_cpuid2": abi.CPUID2,
    "kvm_cpuid_entry2": abi.CPUID_ENTRY2,
    "kvm_debugregs": abi.DEBUGREGS,
    "kvm_device_attr": abi.DEVICE_ATTR,
    "kvm_dtable": abi.DTABLE,
    "kvm_enable_cap": abi.ENABLE_CAP,
    "kvm_interrupt": abi.INTERRUPT,
    "kvm_ioeventfd": abi.IOEVENTFD,
    "kvm_irqchip": abi.IRQCHIP,
    "kvm_irqfd": abi.IRQFD,
    "kvm_irq_level": abi.IRQ_LEVEL,
    "kvm_irq_routing": abi.IRQ_ROUTING,
    "kvm_irq_routing_entry": abi.IRQ_ROUTING_ENTRY,
    "kvm_lapic_state": abi.LAPIC_STATE,
    "kvm_mp_state": abi.MP_STATE,
    "kvm_msi": abi.MSI,
    "kvm_msrs": abi.MSRS,
    "kvm_msr_entry": abi.MSR_ENTRY,
    "kvm_msr_filter": abi.MSR_FILTER,
    "kvm_msr_filter_range": abi.MSR_FILTER_RANGE,
    "kvm_msr_list": abi.MSR_LIST,
    "kvm_pit_config": abi.PIT_CONFIG,
    "kvm_pit_state2": abi.PIT_STATE2,
    "kvm_regs": abi.REGS,
    "kvm_segment": abi.SEGMENT,
    "kvm_sregs": abi.SREGS,
    "kvm_userspace_memory_region": abi.USERSPACE_MEMORY_REGION,
    "kvm_vcpu_events": abi.VCPU_EVENTS,
}

OFFSETS = {
    "kvm_run, request_interrupt_window": abi.RUN_REQUEST_INTERRUPT_WINDOW,
    "kvm_run, immediate_exit": abi.RUN_IMMEDIATE_EXIT,
    "kvm_run, exit_reason": abi.RUN_EXIT_REASON,
    "kvm_run, ready_for_interrupt_injection": abi.RUN_READY_FOR_INTERRUPT_INJECTION,
    "kvm_run, if_flag": abi.RUN_IF_FLAG,
    "kvm_run, cr8": abi.RUN_CR8,
    "kvm_run, apic_base": abi.RUN_APIC_BASE,
    "kvm_run, io": abi.RUN_EXIT,
    "kvm_run, mmio.data": abi.RUN_MMIO_DATA,
    "kvm_run, msr.error": abi.RUN_MSR_ERROR,
    "kvm_run, msr.data": abi.RUN_MSR_DATA,
    "kvm_run, eoi.vector": abi.RUN_EXIT,
    "kvm_run, fail_entry.hardware_entry_failure_reason": abi.RUN_EXIT,
    "kvm_run, system_event.type": abi.RUN_EXIT,
}

FIELDS: dict[str, tuple[Struct, str, list[str]]] = {
    "exit io": (abi.RUN_IO, "kvm_run", ["io.direction", "io.size", "io.port", "io.count", "io.data_offset"]),
    "exit mmio": (abi.RUN_MMIO, "kvm_run", ["mmio.phys_addr", "mmio.len", "mmio.is_write"]),
    "exit msr": (abi.RUN_MSR, "kvm_run", ["msr.reason", "msr.index", "msr.data"]),
    "exit internal": (abi.RUN_INTERNAL, "kvm_run", ["internal.suberror", "internal.ndata", "internal.data"]),
    "enable_cap": (abi.ENABLE_CAP, "kvm_enable_cap", ["cap", "flags", "args"]),
    "ioeventfd": (abi.IOEVENTFD, "kvm_ioeventfd", ["datamatch", "addr", "len", "fd", "flags"]),
    "irqchip": (abi.IRQCHIP, "kvm_irqchip", ["chip_id", "chip"]),
    "irqfd": (abi.IRQFD, "kvm_irqfd", ["fd", "gsi", "flags", "resamplefd"]),
    "msi route": (
        abi.IRQ_ROUTING_ENTRY,
        "kvm_irq_routing_entry",
        ["gsi", "type", "flags", "u.msi.address_lo", "u.msi.address_hi", "u.msi.data", "u.msi.devid"],
    ),
    "pin route": (
        abi.IRQ_ROUTING_ENTRY,
        "kvm_irq_routing_entry",
        ["gsi", "type", "flags", "u.irqchip.irqchip", "u.irqchip.pin"],
    ),
    "msi": (abi.MSI, "kvm_msi", ["address_lo", "address_hi", "data", "flags", "devid"]),
    "msr entry": (abi.MSR_ENTRY, "kvm_msr_entry", ["index", "data"]),
    "msr filter range": (abi.MSR_FILTER_RANGE, "kvm_msr_filter_range", ["flags", "nmsrs", "base", "bitmap"]),
    "cpuid entry": (
        abi.CPUID_ENTRY2, "kvm_cpuid_entry2", ["function", "index", "flags", "eax", "ebx", "ecx", "edx"],
    ),
    "debugregs": (abi.DEBUGREGS, "kvm_debugregs", ["db", "db[1]", "db[2]", "db[3]", "dr6", "dr7"]),
    "device attr": (abi.DEVICE_ATTR, "kvm_device_attr", ["flags", "group", "attr", "addr"]),
    "segment": (
        abi.SEGMENT, "kvm_segment",
        ["base", "limit", "selector", "type", "present", "dpl", "db", "s", "l", "g", "avl", "unusable"],
    ),
    "regs": (
        abi.REGS, "kvm_regs",
        ["rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", *(f"r{n}" for n in range(8, 16)), "rip", "rflags"],
    ),
    "sregs": (
        abi.SREGS, "kvm_sregs",
        ["cs", "gdt", "cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base", "interrupt_bitmap"],
    ),
    "memory region": (
        abi.USERSPACE_MEMORY_REGION, "kvm_userspace_memory_region",
        ["slot", "flags", "guest_phys_addr", "memory_size", "userspace_addr"],
    ),
    "vcpu events": (
        abi.VCPU_EVENTS, "kvm_vcpu_events",
        ["exception.injected", "exception.nr", "exception.has_error_code", "exception.pending",
         "exception.error_code", "interrupt.injected", "interrupt.nr", "interrupt.soft", "interrupt.shadow",
         "nmi.injected", "nmi.pending", "nmi.masked", "sipi_vector", "flags", "smi.smm", "smi.pending",
         "smi.smm_inside_nmi", "smi.latched_init", "triple_fault.pending", "exception_has_payload",
         "exception_payload"],
    ),
}  # fmt: skip

REQUESTS = {value.name: value.number for value in vars(abi).values() if isinstance(value, Request)}
CONSTANTS = {
    "KVM_API_VERSION": abi.API_VERSION,
    "KVM_EXIT_IO_OUT": abi.EXIT_IO_OUT,
    "KVM_CPUID_FLAG_SIGNIFCANT_INDEX": abi.CPUID_FLAG_SIGNIFCANT_INDEX,
    **{f"KVM_CAP_{cap.name}": cap.value for cap in Cap},
    **{f"KVM_EXIT_{reason.name}": reason.value for reason in ExitReason},
    **{
        f"KVM_{name}": value
        for name, value in vars(abi).items()
        if name.startswith(
            ("IRQFD_", "IOEVENTFD_", "IRQ_ROUTING_", "IRQCHIP_", "MSR_", "X2APIC_", "VCPU_TSC_", "VCPUEVENT_")
        )
        and isinstance(value, int)
    },
}


def field_offsets(layout: Struct) -> list[int]:
    """Where each value of `layout` starts, found by packing a 1 into one value at a time."""
    count = len(layout.unpack(bytes(layout.size)))
    offsets = []
    for number in range(count):
        values: list[int | bytes] = [
            (b"\1" if at == number else b"") if isinstance(blank, bytes) else int(at == number)
            for at, blank in enumerate(layout.unpack(bytes(layout.size)))
        ]
        offsets.append(layout.pack(*values).index(1))
    return offsets


@functools.cache
def header() -> dict[str, int]:
    """The compiler's value of every expression that the tests use; macros that the header lacks are left out."""
    expressions = [f"sizeof(struct {name})" for name in STRUCTS]
    expressions += [f"offsetof(struct {which})" for which in OFFSETS]
    expressions += [f"offsetof(struct {name}, {field})" for _, name, fields in FIELDS.values() for field in fields]
    lines = ["#include <stddef.h>", "#include <stdio.h>", "#include <linux/kvm.h>", "int main(void) {"]
    lines += [f'printf("%s=%lld\\n", "{what}", (long long)({what}));' for what in dict.fromkeys(expressions)]
    for name in [*REQUESTS, *CONSTANTS]:
        lines += [f"#ifdef {name}", f'printf("{name}=%lld\\n", (long long)({name}));', "#endif"]
    lines += ["return 0; }"]
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder, "header.c"), Path(folder, "header")
        source.write_text("\n".join(lines))
        done = subprocess.run(["gcc", "-w", "-o", program, source], capture_output=True, text=True, check=False)
        if "linux/kvm.h" in done.stderr:
            pytest.skip("no <linux/kvm.h>; apt-get install linux-libc-dev")
        assert done.returncode == 0, done.stderr
        output = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in (line.rsplit("=", 1) for line in output.splitlines())}


def test_every_structure_is_checked() -> None:
    layouts = {value for name, value in vars(abi).items() if isinstance(value, Struct) and not name.startswith("RUN_")}
    assert layouts == set(STRUCTS.values())


@pytest.mark.parametrize("name", STRUCTS)
def test_size(name: str) -> None:
    assert STRUCTS[name].size == header()[f"sizeof(struct {name})"]


@pytest.mark.parametrize("which", OFFSETS)
def test_run_area(which: str) -> None:
    assert OFFSETS[which] == header()[f"offsetof(struct {which})"]


@pytest.mark.parametrize("what", FIELDS)
def test_fields(what: str) -> None:
    layout, name, fields = FIELDS[what]
    base = abi.RUN_EXIT if name == "kvm_run" else 0
    expected = [header()[f"offsetof(struct {name}, {field})"] - base for field in fields]
    found = field_offsets(layout)
    if name == "kvm_sregs":  # the 8 segments and the 2 tables are one value each
        found = [*found[:2], *found[2:10]]
    assert found[: len(expected)] == expected


@pytest.mark.parametrize("name", REQUESTS)
def test_request(name: str) -> None:
    if name not in header():
        pytest.skip(f"{name} is newer than this <linux/kvm.h>")
    assert REQUESTS[name] == header()[name]


@pytest.mark.parametrize("name", CONSTANTS)
def test_constant(name: str) -> None:
    if name not in header():
        pytest.skip(f"{name} is newer than this <linux/kvm.h>")
    assert CONSTANTS[name] == header()[name]
