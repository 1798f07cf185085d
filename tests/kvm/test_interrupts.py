"""Interrupts through the VM's requests, as the guest of long.S takes them; and what the kernel refuses."""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from irqchip_core.errors import Closed, EventInUse, HypervisorError, InvalidArgument, InvalidRoute, WrongType
from irqchip_core.eventfd import Event
from irqchip_core.hypervisor.exits import HltExit, IoExit, MmioExit
from irqchip_core.routes import GSI_COUNT, IrqRoute, IrqSourceChip, PinSource, default_routes
from irqchip_kvm import Cap, KvmVcpu, KvmVm
from irqchip_kvm.ioctl import Handle

from .guest import HALT, PATIENCE, long_mode_taker, real_mode, run_until_exit, running, taken

pytestmark = pytest.mark.kvm

LAPIC = 0xFEE00000
LEVEL = 1 << 15
MARKER = 0x21
"""A vector of the lowest priority: taken after everything else that is pending."""


@pytest.fixture
def kernel_vm(vm: KvmVm) -> KvmVm:
    vm.create_irqchip()
    vm.create_pit2()
    return vm


@pytest.fixture
def guest(kernel_vm: KvmVm) -> KvmVcpu:
    return long_mode_taker(kernel_vm)


def route_pin(vm: KvmVm, pin: int, entry: int) -> None:
    """Program one redirection entry of the kernel's IOAPIC."""
    state = vm.get_ioapic_state()
    state.redirect_table[pin] = entry
    vm.set_ioapic_state(state)


@pytest.mark.binutils
def test_guest_is_what_its_source_says(tmp_path: Path) -> None:
    here = Path(__file__).parent
    subprocess.run(["as", "--64", "-o", tmp_path / "long.o", here / "long.S"], check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", tmp_path / "long.o", tmp_path / "long.bin"], check=True)
    assert (tmp_path / "long.bin").read_bytes() == (here / "long.bin").read_bytes()


# --- events


def test_edge_irqfd(kernel_vm: KvmVm, guest: KvmVcpu) -> None:
    route_pin(kernel_vm, 10, 0x41)
    with Event() as trigger:
        kernel_vm.assign_irqfd(10, trigger)
        for _ in range(3):
            trigger.signal()
            assert taken(guest) == 0x41


def test_irqfd_wakes_a_guest_that_is_halted_in_the_kernel(kernel_vm: KvmVm, guest: KvmVcpu) -> None:
    route_pin(kernel_vm, 10, 0x41)
    with Event() as trigger, running(guest) as runner:
        kernel_vm.assign_irqfd(10, trigger)
        before = runner.exits
        trigger.signal()
        while runner.exits == before:  # the suite's timeout bounds this
            assert not runner.error
        assert runner.interrupted == 0


def test_the_kernel_keeps_its_own_hold_on_the_event(kernel_vm: KvmVm, guest: KvmVcpu) -> None:
    route_pin(kernel_vm, 10, 0x41)
    with Event() as device:
        with device.clone() as trigger:
            kernel_vm.assign_irqfd(10, trigger)
        device.signal()
        assert taken(guest) == 0x41


def test_level_irqfd_resamples_at_the_end_of_interrupt(kernel_vm: KvmVm, guest: KvmVcpu) -> None:
    route_pin(kernel_vm, 11, LEVEL | 0x42)
    with Event() as trigger, Event() as resample:
        kernel_vm.assign_irqfd(11, trigger, resample)
        for _ in range(3):
            trigger.signal()
            assert taken(guest) == 0x42
            if any(guest.get_lapic_state().regs[0x10:0x18]):  # ISR; a KVM that ends interrupts by itself leaves it 0
                assert not resample.reset()
            kernel_vm.signal_msi(LAPIC, MARKER)
            assert taken(guest) == MARKER  # by now the EOI of the first has been
            assert resample.wait(PATIENCE)


def test_deassigned_irqfd_is_silent(kernel_vm: KvmVm, guest: KvmVcpu) -> None:
    route_pin(kernel_vm, 10, 0x41)
    with Event() as trigger, trigger.clone() as clone:
        kernel_vm.assign_irqfd(10, trigger)
        kernel_vm.deassign_irqfd(10, clone)
        trigger.signal()
        kernel_vm.signal_msi(LAPIC, MARKER)
        assert taken(guest) == MARKER
        kernel_vm.assign_irqfd(10, trigger)  # what was signalled meanwhile is still in the counter
        assert taken(guest) == 0x41


def test_irqfd_in_use(kernel_vm: KvmVm) -> None:
    with Event() as trigger, trigger.clone() as clone:
        kernel_vm.assign_irqfd(10, trigger)
        with pytest.raises(EventInUse, match="connected already"):
            kernel_vm.assign_irqfd(10, trigger)
        with pytest.raises(EventInUse):
            kernel_vm.assign_irqfd(11, clone)
        kernel_vm.deassign_irqfd(10, trigger)
        kernel_vm.assign_irqfd(11, clone)


def test_deassigning_what_is_not_assigned(kernel_vm: KvmVm) -> None:
    with Event() as trigger:
        kernel_vm.deassign_irqfd(10, trigger)


def test_irqfd_of_a_closed_event(kernel_vm: KvmVm) -> None:
    trigger = Event()
    trigger.close()
    with pytest.raises(Closed):
        kernel_vm.assign_irqfd(10, trigger)


def test_irqfd_without_a_chip(vm: KvmVm) -> None:
    with Event() as trigger, pytest.raises(InvalidArgument, match="create_irqchip"):
        vm.assign_irqfd(10, trigger)


def test_resample_in_split_mode(vm: KvmVm) -> None:
    vm.enable_split_irqchip()
    with Event() as trigger, Event() as resample, pytest.raises(InvalidArgument, match="split"):
        vm.assign_irqfd(10, trigger, resample)


@pytest.mark.parametrize("gsi", [-1, 1 << 32])
def test_gsi_out_of_range(kernel_vm: KvmVm, gsi: int) -> None:
    with Event() as trigger, pytest.raises(InvalidArgument, match="gsi"):
        kernel_vm.assign_irqfd(gsi, trigger)
    with pytest.raises(InvalidArgument, match="gsi"):
        kernel_vm.irq_line(gsi, True)


# --- lines, messages, routes


def test_irq_line(kernel_vm: KvmVm, guest: KvmVcpu) -> None:
    route_pin(kernel_vm, 12, LEVEL | 0x43)
    kernel_vm.irq_line(12, True)
    assert taken(guest) == 0x43
    assert taken(guest) == 0x43  # still high
    kernel_vm.irq_line(12, False)
    kernel_vm.signal_msi(LAPIC, MARKER)
    while (vector := taken(guest)) == 0x43:  # the one that was pending when the line went down
        pass
    assert vector == MARKER
    kernel_vm.irq_line(4000000000, True)  # no such line: ignored


def test_msi(kernel_vm: KvmVm, guest: KvmVcpu) -> None:
    assert kernel_vm.signal_msi(LAPIC, 0x44)
    assert taken(guest) == 0x44
    assert kernel_vm.signal_msi(LAPIC | 0xFF << 12, 0x45)  # broadcast
    assert taken(guest) == 0x45


def test_msi_that_nobody_takes(kernel_vm: KvmVm, guest: KvmVcpu) -> None:
    assert not kernel_vm.signal_msi(LAPIC | 7 << 12, 0x44)


@pytest.mark.parametrize(("address", "data"), [(-1, 0), (1 << 64, 0), (LAPIC, 1 << 32), (LAPIC, -1)])
def test_msi_out_of_range(kernel_vm: KvmVm, address: int, data: int) -> None:
    with pytest.raises(InvalidArgument, match=r"KVM VM: (address|data): "):
        kernel_vm.signal_msi(address, data)


@pytest.mark.parametrize("other", ["4", None, 4.0, True])
def test_what_is_no_number_or_event(kernel_vm: KvmVm, other: Any) -> None:
    with Event() as trigger:
        for call in (
            lambda: kernel_vm.assign_irqfd(other, trigger),
            lambda: kernel_vm.deassign_irqfd(other, trigger),
            lambda: kernel_vm.irq_line(other, True),
            lambda: kernel_vm.signal_msi(other, 0),
            lambda: kernel_vm.signal_msi(LAPIC, other),
            lambda: kernel_vm.assign_irqfd(4, other),
        ):
            with pytest.raises(WrongType, match=r"KVM VM: \w+: .* give it as (int|Event)"):
                call()
        resample: Any = trigger.fileno()
        with pytest.raises(WrongType, match="KVM VM: resample: "):
            kernel_vm.assign_irqfd(4, trigger, resample)


def test_routes_take_effect_and_go(kernel_vm: KvmVm, guest: KvmVcpu) -> None:
    with Event() as trigger:
        kernel_vm.assign_irqfd(100, trigger)
        kernel_vm.set_gsi_routing([IrqRoute.msi(100, LAPIC, 0x46)])
        trigger.signal()
        assert taken(guest) == 0x46
        kernel_vm.set_gsi_routing([])
        trigger.signal()
        kernel_vm.signal_msi(LAPIC, MARKER)
        assert taken(guest) == MARKER


@pytest.mark.parametrize(
    "bad",
    [
        [IrqRoute.msi(100, LAPIC, 1), IrqRoute.ioapic(5), IrqRoute.msi(5, LAPIC, 1)],
        [IrqRoute(5, PinSource(IrqSourceChip.IOAPIC, 24))],
        [IrqRoute(5, PinSource(IrqSourceChip.IOAPIC, 5)), IrqRoute(5, PinSource(IrqSourceChip.IOAPIC, 6))],
        [IrqRoute(5, PinSource(IrqSourceChip.GIC, 5))],
        [IrqRoute.msi(GSI_COUNT, LAPIC, 1)],
        [IrqRoute.msi(1, 1 << 64, 1)],
        [IrqRoute.msi(1, LAPIC, -1)],
        [IrqRoute.msi(gsi % GSI_COUNT, LAPIC, 1) for gsi in range(GSI_COUNT + 1)],
    ],
)
def test_refused_routes_change_nothing(kernel_vm: KvmVm, guest: KvmVcpu, bad: list[IrqRoute]) -> None:
    route_pin(kernel_vm, 5, 0x47)
    with pytest.raises(InvalidRoute):
        kernel_vm.set_gsi_routing(bad)
    kernel_vm.irq_line(5, True)
    assert taken(guest) == 0x47


def test_as_many_routes_as_there_can_be(kernel_vm: KvmVm) -> None:
    kernel_vm.set_gsi_routing(IrqRoute.msi(gsi, LAPIC, 0x50) for gsi in range(GSI_COUNT))
    kernel_vm.set_gsi_routing(default_routes())


def test_pins_cannot_be_routed_in_split_mode(vm: KvmVm) -> None:
    vm.enable_split_irqchip()
    with pytest.raises(InvalidRoute, match="MSIs only in split mode"):
        vm.set_gsi_routing([IrqRoute.ioapic(5)])


# --- ioeventfd


def test_port_ioeventfd(vm: KvmVm) -> None:
    # mov $1, %al; out %al, $0x10; mov $2, %al; out %al, $0x10; hlt
    vcpu, _ = real_mode(vm, b"\xb0\x01\xe6\x10\xb0\x02\xe6\x10" + HALT)
    with Event() as event:
        vm.assign_ioeventfd(event, 0x10, 1, port=True, datamatch=1)
        exit_ = run_until_exit(vcpu)
        assert isinstance(exit_, IoExit)
        assert exit_.data[0] == 2
        assert event.reset()
        assert vcpu.run() == HltExit()
        assert not event.reset()
        vm.deassign_ioeventfd(event, 0x10, 1, port=True, datamatch=1)
        with pytest.raises(InvalidArgument, match="no such event"):
            vm.deassign_ioeventfd(event, 0x10, 1, port=True, datamatch=1)


def test_mmio_ioeventfd(vm: KvmVm) -> None:
    # mov $0x2000, %ax; mov %ax, %ds; mov %al, 0x10; mov %al, 0x18; hlt
    vcpu, _ = real_mode(vm, b"\xb8\x00\x20\x8e\xd8\xa2\x10\x00\xa2\x18\x00" + HALT)
    with Event() as event:
        vm.assign_ioeventfd(event, 0x20010)
        exit_ = run_until_exit(vcpu)
        assert isinstance(exit_, MmioExit)
        assert exit_.address == 0x20018
        assert event.reset()


def test_ioeventfd_refused(vm: KvmVm) -> None:
    with Event() as event, Event() as other:
        vm.assign_ioeventfd(event, 0x10, 1, port=True)
        with pytest.raises(EventInUse):
            vm.assign_ioeventfd(other, 0x10, 1, port=True)
        with pytest.raises(InvalidArgument):
            vm.assign_ioeventfd(other, 0x20, 3, port=True)
        with pytest.raises(InvalidArgument):
            vm.assign_ioeventfd(other, -1, 4)
        with pytest.raises(InvalidArgument, match="or a datamatch without one"):
            vm.assign_ioeventfd(other, 0x30, port=True, datamatch=1)


def test_a_pit_whose_interrupts_would_go_nowhere_is_not_asked_for(vm: KvmVm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux 6.1 would make it, 6.18 refuses."""
    with monkeypatch.context() as patch:
        patch.setattr(Handle, "call", pytest.fail)
        with pytest.raises(HypervisorError, match="create the chip in the kernel first") as caught:
            vm.create_pit2()
    assert (caught.value.call, caught.value.errno) == ("KVM_CREATE_PIT2", errno.ENOENT)
    vm.create_irqchip()
    vm.create_pit2()


# --- chips that cannot be, in the order of the errors' table


def with_vcpu(vm: KvmVm) -> None:
    vm.create_vcpu(0)


def with_kernel_chip(vm: KvmVm) -> None:
    vm.create_irqchip()
    vm.create_pit2()


def with_split_chip(vm: KvmVm) -> None:
    vm.enable_split_irqchip()


def with_nothing(vm: KvmVm) -> None:
    pass


@pytest.mark.parametrize(
    ("prepare", "refused", "call", "remedy"),
    [
        (with_vcpu, KvmVm.create_irqchip, "KVM_CREATE_IRQCHIP", "before the first vCPU"),
        (with_kernel_chip, KvmVm.create_irqchip, "KVM_CREATE_IRQCHIP", "one chip"),
        (with_split_chip, KvmVm.create_irqchip, "KVM_CREATE_IRQCHIP", "one chip"),
        (with_vcpu, KvmVm.enable_split_irqchip, "KVM_CAP_SPLIT_IRQCHIP", "before the first vCPU"),
        (with_kernel_chip, KvmVm.enable_split_irqchip, "KVM_CAP_SPLIT_IRQCHIP", "only one"),
        (with_nothing, lambda vm: vm.enable_split_irqchip(4097), "KVM_CAP_SPLIT_IRQCHIP", "4096 is the most"),
        (with_nothing, KvmVm.create_pit2, "KVM_CREATE_PIT2", "create_irqchip"),
        (with_split_chip, KvmVm.create_pit2, "KVM_CREATE_PIT2", "create_irqchip"),
        (with_kernel_chip, KvmVm.create_pit2, "KVM_CREATE_PIT2", "already"),
        (with_nothing, lambda vm: vm.irq_line(1, True), "KVM_IRQ_LINE", "create_irqchip"),
        (with_nothing, lambda vm: vm.get_ioapic_state(), "KVM_GET_IRQCHIP", "create_irqchip"),
        (with_split_chip, lambda vm: vm.get_ioapic_state(), "KVM_GET_IRQCHIP", "create_irqchip"),
        (with_nothing, lambda vm: vm.get_pit(), "KVM_GET_PIT2", "create_pit2"),
        (with_nothing, lambda vm: vm.signal_msi(LAPIC, 1), "KVM_SIGNAL_MSI", "enable_split_irqchip"),
        (with_vcpu, with_vcpu, "KVM_CREATE_VCPU", "another number"),
        (with_nothing, lambda vm: vm.create_vcpu(vm.max_vcpu_id()), "KVM_CREATE_VCPU", "max_vcpu_id"),
        (with_nothing, lambda vm: vm.enable_cap(1), "KVM_ENABLE_CAP", "look at check_extension first"),
        (with_nothing, lambda vm: vm.enable_cap(Cap.PIT2), "KVM_CAP_PIT2", "look at check_extension first"),
    ],
)
def test_refusals(
    vm: KvmVm, prepare: Callable[[KvmVm], None], refused: Callable[[KvmVm], None], call: str, remedy: str
) -> None:
    prepare(vm)
    with pytest.raises(HypervisorError) as caught:
        refused(vm)
    assert caught.value.call == call
    assert caught.value.errno
    assert remedy in str(caught.value)
