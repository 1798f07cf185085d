"""Interrupts on their way through the two halves of the chip: none lost, each ended."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from irqchip_core.chip import MPState
from irqchip_core.errors import HypervisorError
from irqchip_core.events import IrqEdgeEvent, IrqEventSource, IrqLevelEvent, PlatformDeviceId
from irqchip_core.hypervisor.exits import InterruptedExit
from irqchip_core.routes import IrqRoute
from irqchip_core.testing.guest_cpu import Eoi
from irqchip_core.testing.verdict import NotApplicable
from irqchip_core.x86.state import ELCR_MASKS, PicSelect, PicState
from irqchip_kvm import Cap, KvmVcpu, KvmVm, abi
from irqchip_kvm_split.chip import KvmSplitIrqChip
from tests.chips.machine import HIGH_MARKER, PATIENCE, Machine, ioapic_entry, program_ioapic, program_pics

pytestmark = pytest.mark.kvm

SOURCE = IrqEventSource(PlatformDeviceId.SERIAL, 0, "COM1")
LAPIC, IOAPIC, IOAPIC_EOIR = 0xFEE00000, 0xFEC00000, 0xFEC00040
REMOTE_IRR, LEVEL, MASKED = 1 << 14, 1 << 15, 1 << 16
LINT0, SPIV, IRR = 0x35, 0xF, 0x20
"""Registers of LapicState (Intel SDM vol. 3, table 12-1)."""
EXTINT, LVT_MASKED, SUPPRESS_EOI_BROADCASTS = 7 << 8, 1 << 16, 1 << 12


def sleeping(machine: Machine) -> KvmVcpu:
    """Let the guest go to sleep in the kernel, and come out by a kick."""
    vcpu = machine.vcpu
    assert isinstance(vcpu, KvmVcpu)
    assert machine.take_until_marker() == []
    while vcpu.get_mp_state() is not MPState.HALTED:
        machine.sleep()
    return vcpu


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread is about to do."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0)


# Ends


def test_a_level_entry_waits_for_the_end_and_then_interrupts_again(chip: KvmSplitIrqChip, machine: Machine) -> None:
    program_ioapic(chip, {10: ioapic_entry(0x4A, level=True)})
    chip.service_irq(10, True)
    assert chip.get_ioapic_state().redirect_table[10] & REMOTE_IRR
    for _ in range(5):
        assert machine.take() == 0x4A
    chip.service_irq(10, False)
    assert machine.take_until_marker() in ([], [0x4A])
    assert machine.take_until_marker() == []
    assert not chip.get_ioapic_state().redirect_table[10] & REMOTE_IRR


def test_nothing_ends_before_the_guest_says_so(chip: KvmSplitIrqChip, machine: Machine) -> None:
    try:
        machine.cpu.require_eoi()
    except NotApplicable as reason:
        pytest.skip(str(reason))
    program_ioapic(chip, {10: ioapic_entry(0x4A, level=True)})
    with IrqLevelEvent() as event:
        chip.register_level_irq_event(10, event, SOURCE)
        event.trigger()
        assert machine.take(Eoi.NONE) == 0x4A
        assert machine.take_until_marker(marker=HIGH_MARKER) == []
        assert chip.get_ioapic_state().redirect_table[10] & REMOTE_IRR
        assert not event.clear_resample(0)


def test_a_level_event_registered_after_finalize_devices_is_resampled(chip: KvmSplitIrqChip, machine: Machine) -> None:
    program_ioapic(chip, {pin: ioapic_entry(0x40 + pin, level=True) for pin in (10, 11)})
    with IrqLevelEvent() as one, IrqLevelEvent() as other:
        for pin, event in ((10, one), (11, other)):
            chip.register_level_irq_event(pin, event, SOURCE)
            event.trigger()
            assert machine.take() == 0x40 + pin
            assert machine.take_until_marker() == []
            assert event.clear_resample(5)
        chip.unregister_level_irq_event(10, one)
        other.trigger()
        assert machine.take() == 0x4B
        assert machine.take_until_marker() == []
        assert other.clear_resample(5)
        assert not one.clear_resample(0)


def test_a_guest_that_suppresses_the_broadcast_ends_interrupts_at_the_ioapic(
    vm: KvmVm, chip: KvmSplitIrqChip, machine: Machine
) -> None:
    if not vm.check_extension(Cap.X2APIC_API) & abi.X2APIC_ENABLE_SUPPRESS_EOI_BROADCAST:
        pytest.skip("this kernel reports the EOI all the same (before Linux 6.19)")
    program_ioapic(chip, {10: ioapic_entry(0x4A, level=True)})
    state = chip.get_lapic_state(0)
    state.regs[SPIV] |= SUPPRESS_EOI_BROADCASTS
    chip.set_lapic_state(0, state)
    with IrqLevelEvent() as event:
        chip.register_level_irq_event(10, event, SOURCE)
        for _ in range(2):
            event.trigger()
            assert machine.take() == 0x4A
            assert machine.take_until_marker() == []
            assert not event.clear_resample(0)
            machine.mmio_bus.write(IOAPIC_EOIR, 4, 0x4A)
            assert event.clear_resample(0)


def test_a_level_interrupt_that_no_local_apic_takes_waits_for_no_end(chip: KvmSplitIrqChip, machine: Machine) -> None:
    program_ioapic(chip, {10: 7 << 56 | ioapic_entry(0x4A, level=True)})
    chip.service_irq(10, True)
    assert not chip.get_ioapic_state().redirect_table[10] & REMOTE_IRR


# From the IOAPIC to the local APIC


def test_an_interrupt_of_the_ioapic_is_in_the_local_apic_when_the_call_returns(
    chip: KvmSplitIrqChip, machine: Machine
) -> None:
    machine.loop.stop()  # no irq loop: nothing to serve is in between
    program_ioapic(chip, {5: ioapic_entry(0x45)})
    chip.service_irq(5, True)
    assert irr(chip, 0) >> 0x45 & 1


def test_a_tick_of_the_rtc_is_sent_although_the_last_one_has_not_ended(chip: KvmSplitIrqChip, machine: Machine) -> None:
    """KVM does not report the end of an edge, so ticks are not held back."""
    program_ioapic(chip, {8: ioapic_entry(0x48)})
    for _ in range(3):
        chip.service_irq(8, True)
        chip.service_irq(8, False)
        assert irr(chip, 0) >> 0x48 & 1
        machine.cpu.end(Eoi.LAPIC)  # of the last one
        assert machine.cpu.take() == 0x48


def test_an_interrupt_whose_entry_gets_another_destination_in_service_ends(
    chip: KvmSplitIrqChip, machine: Machine
) -> None:
    program_ioapic(chip, {10: ioapic_entry(0x4A, level=True)})
    with IrqLevelEvent() as event:
        chip.register_level_irq_event(10, event, SOURCE)
        event.trigger()
        assert machine.cpu.take() == 0x4A
        for register, value in ((0, 0x11 + 2 * 10), (0x10, 1 << 24)):
            machine.mmio_bus.write(IOAPIC + register, 4, value)
        machine.cpu.end(Eoi.LAPIC)
        assert machine.take_until_marker() == []
        assert event.clear_resample(5)
        assert not chip.get_ioapic_state().redirect_table[10] & REMOTE_IRR


def test_a_line_that_is_high_interrupts_and_ends_by_what_its_entry_was_reprogrammed_to(
    chip: KvmSplitIrqChip, machine: Machine
) -> None:
    for entry in (0x49 | LEVEL, 0x49 | LEVEL | MASKED):
        for register, value in ((0, 0x10 + 2 * 10), (0x10, entry)):
            machine.mmio_bus.write(IOAPIC + register, 4, value)
    chip.service_irq(10, True)
    machine.mmio_bus.write(IOAPIC + 0x10, 4, 0x4A | LEVEL)
    chip.service_irq(10, False)
    assert machine.take() == 0x4A
    assert machine.take_until_marker() == []
    assert not chip.get_ioapic_state().redirect_table[10] & REMOTE_IRR


# The PICs


@pytest.fixture
def pic(chip: KvmSplitIrqChip, machine: Machine) -> Iterator[IrqEdgeEvent]:
    """An edge event on line 5 of the PICs, unmasked: vector 0x35."""
    program_pics(chip, primary_mask=0xFF & ~(1 << 5))
    with IrqEdgeEvent() as event:
        chip.register_edge_irq_event(5, event, SOURCE)
        yield event


def test_a_vcpu_that_sleeps_in_the_kernel_wakes_for_the_pics(machine: Machine, pic: IrqEdgeEvent) -> None:
    rounds = 200
    taken = threading.Semaphore(0)

    def device() -> None:
        for _ in range(rounds):
            pic.trigger()
            if not taken.acquire(timeout=PATIENCE):
                return

    thread = threading.Thread(target=device)
    sleeping(machine)
    thread.start()
    for _ in range(rounds):
        assert machine.take(Eoi.PRIMARY) == 0x35
        taken.release()
    thread.join()


def test_an_interrupt_of_the_pics_between_two_runs_is_not_lost(
    chip: KvmSplitIrqChip, machine: Machine, pic: IrqEdgeEvent
) -> None:
    for _ in range(3):
        sleeping(machine)
        chip.inject_interrupts(machine.vcpu)
        pic.trigger()  # after the look, before the entry
        machine.settle()
        assert isinstance(machine.vcpu.run(), InterruptedExit)
        assert machine.take(Eoi.PRIMARY) == 0x35


def test_an_interrupt_of_the_pics_on_the_vcpus_own_thread_is_injected_before_the_entry(
    chip: KvmSplitIrqChip, machine: Machine
) -> None:
    """A VMM of one thread serves its devices there, and no kick is needed."""
    program_pics(chip, primary_mask=0xFF & ~(1 << 5))
    vcpu = sleeping(machine)
    chip.inject_interrupts(vcpu)
    chip.service_irq(5, True)
    chip.wait_until_runnable(vcpu)
    assert vcpu.queued_interrupt() == 0x35
    assert machine.take(Eoi.PRIMARY) == 0x35


def test_a_vcpu_that_goes_on_on_another_thread_is_kicked_from_the_first(
    chip: KvmSplitIrqChip, machine: Machine
) -> None:
    """As in a pool of threads, each of which makes a step."""
    program_pics(chip, primary_mask=0xFF & ~(1 << 5))
    vcpu = sleeping(machine)
    chip.inject_interrupts(vcpu)
    exits = []

    def go_on() -> None:
        chip.wait_until_runnable(vcpu)
        exits.append(vcpu.run())

    thread = threading.Thread(target=go_on)
    thread.start()
    until(lambda: vcpu._runner != 0)
    chip.service_irq(5, True)
    thread.join(PATIENCE)
    came = list(exits)
    vcpu.kick()
    thread.join()
    assert came == [InterruptedExit()]
    assert machine.take(Eoi.PRIMARY) == 0x35


def test_the_chip_can_be_used_by_a_thread_that_keeps_the_vcpu_from_running(
    chip: KvmSplitIrqChip, machine: Machine
) -> None:
    """Another thread stops the vCPU meanwhile, and has no lock."""
    vcpu = sleeping(machine)
    vectors = []
    thread = threading.Thread(target=lambda: vectors.append(chip._apics.pic_output.pending_extint()))
    with vcpu.stopped():
        thread.start()
        until(lambda: len(vcpu._wanted) == 2)
        chip.get_pit()
    thread.join()
    assert vectors == [None]


@pytest.mark.parametrize("behind_its_back", [False, True])
def test_an_interrupt_of_the_pics_waits_for_lint0(
    chip: KvmSplitIrqChip, machine: Machine, behind_its_back: bool
) -> None:
    program_pics(chip, primary_mask=0xFF & ~(1 << 5))
    state = chip.get_lapic_state(0)
    sleeping(machine)
    for closed in (EXTINT | LVT_MASKED, 0x50, 4 << 8):  # masked, fixed with a vector, NMI
        state.regs[LINT0] = closed
        chip.set_lapic_state(0, state)
        chip.service_irq(5, True)
        chip.service_irq(5, False)
        assert machine.take_until_marker() == []
        assert chip.get_pic_state(PicSelect.PRIMARY).irr == 1 << 5  # not given to KVM
        vcpu = sleeping(machine)
        state.regs[LINT0] = EXTINT
        if behind_its_back:
            vcpu.set_lapic_state(state)
        else:
            chip.set_lapic_state(0, state)
            assert vcpu.run() == InterruptedExit()  # a VMM that runs on without a look is made to look
        assert machine.take(Eoi.PRIMARY | Eoi.LAPIC) == 0x35


def test_a_level_event_is_resampled_when_pics_end_interrupts_by_themselves(
    chip: KvmSplitIrqChip, machine: Machine
) -> None:
    for select, base, mask in ((PicSelect.PRIMARY, 0x30, 1 << 2), (PicSelect.SECONDARY, 0x38, 1 << 3)):
        elcr_mask = ELCR_MASKS[select]
        automatic = PicState(irq_base=base, imr=0xFF & ~mask, use_4_byte_icw=True, auto_eoi=True, elcr_mask=elcr_mask)
        chip.set_pic_state(select, automatic)
    with IrqLevelEvent() as event:
        chip.register_level_irq_event(11, event, SOURCE)
        for _ in range(2):
            event.trigger()
            assert machine.take(Eoi.NONE) == 0x3B
            assert event.clear_resample(PATIENCE)


def test_the_pics_reach_vcpu_0_only_and_after_it_is_there(vm: KvmVm, chip: KvmSplitIrqChip) -> None:
    program_pics(chip, primary_mask=0xFF & ~(1 << 5))
    chip.service_irq(5, True)
    with Machine(vm, chip, firmware=False) as machine:  # its first run comes back by itself: the interrupt follows
        other = vm.create_vcpu(1)
        chip.add_vcpu(1, other)
        chip.inject_interrupts(other)
        assert chip.get_pic_state(PicSelect.PRIMARY).irr == 1 << 5
        machine.cpu.enable_apic()
        assert machine.take(Eoi.PRIMARY) == 0x35


def test_looking_twice_between_runs_gives_one_interrupt(chip: KvmSplitIrqChip, machine: Machine) -> None:
    program_pics(chip, primary_mask=0xFF & ~(1 << 5 | 1 << 6))
    sleeping(machine)
    for line in (5, 6):
        chip.service_irq(line, True)
    for _ in range(3):
        chip.inject_interrupts(machine.vcpu)
    assert chip.get_pic_state(PicSelect.PRIMARY).isr == 1 << 5
    assert machine.take(Eoi.PRIMARY) == 0x35
    assert machine.take(Eoi.PRIMARY) == 0x36


def test_a_vector_that_kvm_refuses_is_given_again(
    chip: KvmSplitIrqChip, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    program_pics(chip, primary_mask=0xFF & ~(1 << 5))
    sleeping(machine)

    def refuse(vector: int) -> None:
        raise HypervisorError("not now", call="KVM_INTERRUPT", errno=11)

    chip.service_irq(5, True)
    chip.service_irq(5, False)
    with monkeypatch.context() as patch:
        patch.setattr(machine.vcpu, "interrupt", refuse)
        with pytest.raises(HypervisorError):
            chip.inject_interrupts(machine.vcpu)
    assert machine.take(Eoi.PRIMARY) == 0x35


# Many vCPUs


def test_300_vcpus_are_reached_by_messages(vm: KvmVm) -> None:
    count = 300
    if vm.max_vcpu_id() < count or vm.max_vcpus() < count:
        pytest.skip(f"this KVM has {vm.max_vcpus()} vCPUs at most")
    with KvmSplitIrqChip(vm, count) as chip:
        for vcpu_id in range(count):
            vcpu = vm.create_vcpu(vcpu_id)
            chip.add_vcpu(vcpu_id, vcpu)
            vcpu.set_cpuid(vm.supported_cpuid())
            state = chip.get_lapic_state(vcpu_id)
            assert state.apic_base is not None
            state.apic_base |= 3 << 10  # enabled, x2APIC mode
            state.regs[2] = vcpu_id
            state.regs[SPIV] |= 1 << 8
            chip.set_lapic_state(vcpu_id, state)
        chip.route_irq(IrqRoute.msi(30, 0x100 << 32 | LAPIC | (299 & 0xFF) << 12, 0x51))
        chip.route_irq(IrqRoute.msi(31, LAPIC | 255 << 12, 0x52))  # not a broadcast in x2APIC mode
        chip.service_irq(30, True)
        with IrqEdgeEvent() as event:
            chip.register_edge_irq_event(31, event, SOURCE)
            event.trigger()
            pending = {
                vcpu_id: {vector for vector in (0x51, 0x52) if irr(chip, vcpu_id) >> vector & 1}
                for vcpu_id in (0, 43, 44, 255, 256, 299)
            }
    assert pending == {0: set(), 43: set(), 44: set(), 255: {0x52}, 256: set(), 299: {0x51}}


def irr(chip: KvmSplitIrqChip, vcpu_id: int) -> int:
    """The interrupt request register as one number."""
    registers = chip.get_lapic_state(vcpu_id).regs[IRR : IRR + 8]
    return sum(register << 32 * at for at, register in enumerate(registers))


# Everything at once


@contextmanager
def threads(*targets: Callable[[], None]) -> Iterator[None]:
    running = [threading.Thread(target=target) for target in targets]
    for thread in running:
        thread.start()
    yield
    for thread in running:
        thread.join()


def test_stress_of_all_kinds_at_once(chip: KvmSplitIrqChip, machine: Machine) -> None:
    """Each device interrupts again as soon as its last interrupt was taken, and resampled if it is a level.

    One of low priority may wait for all others. It is lost if none at all is taken for a while.
    """
    rounds = 150
    program_pics(chip, primary_mask=0xFF & ~(1 << 3))
    program_ioapic(chip, {5: ioapic_entry(0x45), 10: ioapic_entry(0x4A, level=True)})
    chip.route_irq(IrqRoute.msi(30, LAPIC, 0x50))
    taken = {vector: threading.Semaphore(0) for vector in (0x33, 0x45, 0x4A, 0x50)}
    failed: list[str] = []
    with IrqEdgeEvent() as pic, IrqEdgeEvent() as edge, IrqLevelEvent() as level, IrqEdgeEvent() as message:
        for gsi, event in ((3, pic), (5, edge), (30, message)):
            chip.register_edge_irq_event(gsi, event, SOURCE)
        chip.register_level_irq_event(10, level, SOURCE)

        def device(event: IrqEdgeEvent | IrqLevelEvent, vector: int) -> None:
            for number in range(rounds):
                event.trigger()
                taken[vector].acquire()
                if isinstance(event, IrqLevelEvent) and not event.clear_resample(PATIENCE):
                    failed.append(f"{vector:#x} was not resampled after {number}")
                if failed:
                    return

        devices = [(pic, 0x33), (edge, 0x45), (level, 0x4A), (message, 0x50)]
        with threads(*(lambda event=event, vector=vector: device(event, vector) for event, vector in devices)):
            for _ in range(rounds * len(devices)):
                # Handlers do not nest, so an EOI to a controller that has nothing in service does nothing.
                vector = machine.cpu.take()
                if vector is None:
                    failed.append(f"no interrupt after {machine.cpu.taken[-9:]}")
                    for semaphore in taken.values():
                        semaphore.release()
                    break
                machine.cpu.end(Eoi.LAPIC | Eoi.PRIMARY)
                taken[vector].release()
        assert failed == []
        assert machine.take_until_marker() == []
