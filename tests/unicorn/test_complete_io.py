"""What `complete_io` leaves behind: the access done, nothing more executed, and kicks kept."""

from __future__ import annotations

import pytest

from irqchip_core.hypervisor.exits import HltExit, InterruptedExit, IoExit, MmioExit
from irqchip_unicorn import UnicornVm

from .guest import CODE, HALT, Machine


@pytest.mark.parametrize("kicked", [False, True])
def test_a_port_is_read_and_no_more(vm: UnicornVm, kicked: bool) -> None:
    machine = Machine(vm, "real", b"\xe4\x10\xe6\x10" + HALT)  # in $0x10, %al; out %al, $0x10; hlt
    vcpu = machine.vcpu
    exit_ = machine.port()
    exit_.data[0] = 0x5A
    if kicked:
        vcpu.kick()
    assert vcpu.complete_io() == InterruptedExit()
    assert (vcpu.get_regs().rax & 0xFF, vcpu.get_regs().rip) == (0x5A, CODE + 2)
    if kicked:
        assert vcpu.run() == InterruptedExit()
    assert isinstance(vcpu.run(), IoExit)
    assert vcpu.complete_io() == vcpu.complete_io() == InterruptedExit()
    assert vcpu.get_regs().rip == CODE + 4
    assert vcpu.run() == HltExit()


@pytest.mark.parametrize("kicked", [False, True])
def test_memory_is_read_in_its_parts(vm: UnicornVm, kicked: bool) -> None:
    # mov 0x200ffe, %eax; hlt
    machine = Machine(vm, "protected", b"\xa1\xfe\x0f\x20\x00" + HALT)
    exit_, parts = machine.run(), []
    if kicked:
        machine.vcpu.kick()
    while isinstance(exit_, MmioExit):
        parts.append((exit_.address, len(exit_.data)))
        exit_.data[:] = bytes([0x11, 0x22, 0x33, 0x44][: len(exit_.data)])
        exit_ = machine.vcpu.complete_io()
    assert exit_ == InterruptedExit()
    regs = machine.vcpu.get_regs()
    assert regs.rip == CODE + 5
    assert sum(size for _, size in parts) == 4
    assert regs.rax & 0xFF == 0x11
    assert machine.run() == HltExit()


def test_an_msr_is_read(vm: UnicornVm) -> None:
    vm.exit_on_msrs([range(0x800, 0x900)])
    machine = Machine(vm, "protected", b"\xb9\x02\x08\x00\x00\x0f\x32" + HALT)  # mov $0x802, %ecx; rdmsr; hlt
    machine.run()
    machine.vcpu.complete_msr(0x1122334455667788)
    assert machine.vcpu.complete_io() == InterruptedExit()
    regs = machine.vcpu.get_regs()
    assert (regs.rax, regs.rdx, regs.rip) == (0x55667788, 0x11223344, CODE + 7)
    assert machine.vcpu.run() == HltExit()
