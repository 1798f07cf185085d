"""An access that KVM hands to user space is complete, and state can be read, only after KVM_RUN is entered again."""

from __future__ import annotations

import pytest

from irqchip_core.errors import Closed, HypervisorError
from irqchip_core.hypervisor.exits import HltExit, InterruptedExit, IoExit, MmioExit
from irqchip_kvm import KvmVm
from irqchip_kvm.abi import Request

from .guest import CODE, COUNT_FOREVER, HALT, real_mode, run_until_exit, running

pytestmark = pytest.mark.kvm

# in $0x10, %al; out %al, $0x10; hlt
IN_OUT = b"\xe4\x10\xe6\x10" + HALT


def test_complete_io_finishes_the_access_and_executes_nothing_more(vm: KvmVm) -> None:
    vcpu, _ = real_mode(vm, IN_OUT)
    exit_ = vcpu.run()
    assert isinstance(exit_, IoExit)
    exit_.data[0] = 0x5A
    assert vcpu.complete_io() == InterruptedExit()
    assert (vcpu.get_regs().rax & 0xFF, vcpu.get_regs().rip) == (0x5A, CODE + 2)
    exit_ = vcpu.run()
    assert isinstance(exit_, IoExit)
    assert exit_.is_write
    assert vcpu.complete_io() == vcpu.complete_io() == InterruptedExit()
    assert vcpu.get_regs().rip == CODE + 4
    assert vcpu.run() == HltExit()


def test_a_guest_restored_after_complete_io_does_not_repeat_the_access(vm: KvmVm) -> None:
    vcpu, _ = real_mode(vm, b"\xe6\x10" + HALT)
    assert isinstance(vcpu.run(), IoExit)
    vcpu.complete_io()
    vcpu.set_regs(vcpu.get_regs())
    assert vcpu.run() == HltExit()


def test_complete_io_gives_the_rest_of_an_access(vm: KvmVm) -> None:
    # mov $0x2000, %ax; mov %ax, %ds; mov $0x44332211, %eax; mov %eax, 0xffe; hlt
    vcpu, _ = real_mode(vm, b"\xb8\x00\x20\x8e\xd8\x66\xb8\x11\x22\x33\x44\x66\xa3\xfe\x0f" + HALT)
    parts = []
    exit_ = run_until_exit(vcpu)
    while isinstance(exit_, MmioExit):
        parts.append((exit_.address, bytes(exit_.data)))
        exit_ = vcpu.complete_io()
    assert exit_ == InterruptedExit()
    assert parts == [(0x20FFE, b"\x11\x22"), (0x21000, b"\x33\x44")]
    assert vcpu.get_regs().rip == CODE + 15
    assert vcpu.run() == HltExit()


def test_a_string_instruction_is_complete_up_to_what_was_served(vm: KvmVm) -> None:
    # mov $0x10, %dx; mov $3, %cx; mov $0x1000, %si; rep outsb; hlt
    code = b"\xba\x10\x00\xb9\x03\x00\xbe\x00\x10\xf3\x6e" + HALT
    vcpu, _ = real_mode(vm, code)
    out = b""
    while (exit_ := vcpu.run()) != HltExit():
        while isinstance(exit_, IoExit):
            out += bytes(exit_.data)
            exit_ = vcpu.complete_io()
        assert exit_ == InterruptedExit()
        assert vcpu.get_regs().rcx & 0xFFFF == 3 - len(out)
    assert out == code[:3]


@pytest.mark.parametrize("when", ["before", "during"])
def test_complete_io_keeps_a_kick_for_the_next_run(vm: KvmVm, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    vcpu, _ = real_mode(vm, IN_OUT)
    assert isinstance(vcpu.run(), IoExit)
    with monkeypatch.context() as patch:
        if when == "before":
            vcpu.kick()
        else:
            enter = vcpu._try_call

            def kick_and_enter(request: Request) -> int:
                vcpu.kick()
                return enter(request)

            patch.setattr(vcpu, "_try_call", kick_and_enter)
        assert vcpu.complete_io() == InterruptedExit()
    assert vcpu.run() == InterruptedExit()
    assert isinstance(vcpu.run(), IoExit)


def test_complete_io_of_a_running_or_closed_vcpu_is_refused(vm: KvmVm) -> None:
    vcpu, memory = real_mode(vm, COUNT_FOREVER)
    with running(vcpu) as runner:
        while not any(memory[0x2000:0x2002]):  # until it is in the guest; the suite's timeout bounds this
            pass
        with pytest.raises(HypervisorError, match="running on thread"):
            vcpu.complete_io()
        assert runner.interrupted == 0
    vcpu.close()
    with pytest.raises(Closed):
        vcpu.complete_io()
