"""The KVM oracle's own guest: its bytes are those of its source, and each of its operations works."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.oracles import kvm
from tests.oracles.kvm import KvmMachine

ORACLES = Path(kvm.__file__).parent


@pytest.mark.binutils
def test_mailbox_bytes_are_those_of_the_source(tmp_path: Path) -> None:
    object_, elf, binary = tmp_path / "mailbox.o", tmp_path / "mailbox.elf", tmp_path / "mailbox.bin"
    commands: list[list[str | Path]] = [
        ["as", "--64", ORACLES / "mailbox.S", "-o", object_],
        ["ld", "-m", "elf_x86_64", "-Ttext", "0xA000", object_, "-o", elf],
        ["objcopy", "-O", "binary", "-j", ".text", elf, binary],
    ]
    for command in commands:
        subprocess.run(command, check=True, timeout=30)
    assert binary.read_bytes() == (ORACLES / "mailbox.bin").read_bytes()


@pytest.mark.kvm
def test_mailbox_operations(no_leaks: None) -> None:
    with KvmMachine(2, pit=True) as machine:
        machine.port_out(0x21, 0x5A)
        assert machine.port_in(0x21) == 0x5A
        machine.lapic_write(0xF0, 0x1FF, vcpu=1)
        assert machine.lapic_read(0xF0, vcpu=1) == 0x1FF
        assert machine.lapic_read(0xF0) == 0xFF
        assert machine.rdmsr(0x1B, vcpu=1) == 0xFEE00800
        assert machine.rdmsr(0x802) is None
        assert not machine.wrmsr(0x80B, 0)
        machine.set_cr8(3)
        assert (machine.get_cr8(), machine.lapic_read(0x80)) == (3, 0x30)
        assert machine.rdtsc() < machine.rdtsc()
        assert machine.take_interrupt(vcpu=1) is None
        assert machine.vm.signal_msi(0xFEE01000, 0x45)
        assert machine.take_interrupt(vcpu=1) == 0x45
        assert machine.lapic_read(0x120, vcpu=1) == 0x20
