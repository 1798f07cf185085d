"""KVM as an oracle: its interrupt controllers, made to do single accesses by a guest that serves a mailbox.

Lines, messages and state go through ioctls; ports, MMIO, MSRs, CR8 and the taking of interrupts through the
guest in ``mailbox.S``, whose bytes are in ``mailbox.bin``.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Self

import attrs

from irqchip_core.hypervisor.exits import Exit, InterruptedExit, IoExit
from irqchip_core.hypervisor.registers import CpuidEntry, DescriptorTable, Regs, Segment, Sregs
from irqchip_core.x86.state import IOAPIC_BASE, LAPIC_BASE, IoapicState, LapicState
from irqchip_kvm import Kvm, KvmVcpu

_PML4, _PDPT, _PD, _GDT, _IDT, _STUBS, _CODE, _MAILBOX = 0x1000, 0x2000, 0x3000, 0x7000, 0x8000, 0x9000, 0xA000, 0x10000
_PAGE = 0x1000
_DONE_PORT, _PAUSE_PORT = 0xF4, 0xF5
_GP = 13
_INTERRUPT, _GENERAL_PROTECTION = _CODE + 0x60, _CODE + 0x80  # labels of mailbox.S

_IN, _OUT, _READ, _WRITE, _RDMSR, _WRMSR, _GET_CR8, _SET_CR8, _TAKE, _RDTSC = 0, 3, 6, 10, 14, 15, 16, 17, 18, 19
_SIZE = {1: 0, 2: 1, 4: 2, 8: 3}
_COMMAND = struct.Struct("<6Q")
_NO_VECTOR = 0xFFFF

_SPIV, _ISR, _IRR = 0x0F, 0x10, 0x20  # indices in LapicState.regs
_SPIV_SOFTWARE_ENABLE = 1 << 8
_MASKED = 1 << 16  # in a redirection entry

_X2APIC, _TSC_DEADLINE = 1 << 21, 1 << 24  # CPUID leaf 1, ECX


class KvmMachine:
    """A VM whose chips are all in the kernel, and vCPUs that execute one requested access at a time.

    Args:
        vcpus: How many; APIC ids from 0.
        pit: Whether there is a PIT, too.

    Attributes:
        accesses: How many there were: to registers and lines, messages sent, and interrupts taken.
    """

    def __init__(self, vcpus: int = 1, *, pit: bool = False) -> None:
        self.accesses = 0
        self._asserted: set[int] = set()
        with Kvm() as kvm:
            self.vm = kvm.create_vm()
        try:
            self.vm.create_irqchip()
            self.vm.enable_x2apic_api()
            if pit:
                self.vm.create_pit2()
            self._memory = self.vm.map_memory(0, _MAILBOX + _PAGE * vcpus)
            self._load()
            self.vcpus = [self._create_vcpu(number) for number in range(vcpus)]
        except BaseException:
            self.vm.close()
            raise

    def close(self) -> None:
        self.vm.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # Setting up

    def _put(self, address: int, data: bytes) -> None:
        self._memory[address : address + len(data)] = data

    def _load(self) -> None:
        table = 0x3  # present, writable
        self._put(_PML4, struct.pack("<Q", _PDPT | table))
        self._put(_PDPT, struct.pack("<4Q", *(_PD + n * _PAGE | table for n in range(4))))
        self._put(_PD, struct.pack("<2048Q", *(n << 21 | 0x83 for n in range(2048))))  # 4 GiB in pages of 2 MiB
        self._put(_GDT, struct.pack("<3Q", 0, 0x00209B0000000000, 0x00CF93000000FFFF))
        for vector in range(256):
            stub = _STUBS + 16 * vector
            gate = struct.pack("<HHHHII", stub & 0xFFFF, 8, 0x8E00, stub >> 16, 0, 0)
            self._put(_IDT + 16 * vector, gate)
            if vector == _GP:
                self._put(stub, b"\xe9" + struct.pack("<i", _GENERAL_PROTECTION - (stub + 5)))
            else:
                self._put(
                    stub, struct.pack("<Bi", 0x68, vector) + b"\xe9" + struct.pack("<i", _INTERRUPT - (stub + 10))
                )
        self._put(_CODE, Path(__file__).with_name("mailbox.bin").read_bytes())

    def _create_vcpu(self, number: int) -> KvmVcpu:
        vcpu = self.vm.create_vcpu(number)
        vcpu.set_cpuid([_with_apic_features(entry, number) for entry in self.vm.supported_cpuid()])
        code = Segment(base=0, limit=0xFFFFFFFF, selector=8, type=11, l=1, g=1)
        data = Segment(base=0, limit=0xFFFFFFFF, selector=16, type=3, db=1, g=1)
        old = vcpu.get_sregs()
        vcpu.set_sregs(
            Sregs(
                cs=code, ds=data, es=data, fs=data, gs=data, ss=data, tr=old.tr, ldt=old.ldt,
                gdt=DescriptorTable(_GDT, 23), idt=DescriptorTable(_IDT, _PAGE - 1),
                cr0=0x80000031, cr3=_PML4, cr4=0x20, efer=0x500, apic_base=old.apic_base,
            )
        )  # fmt: skip
        mailbox = _MAILBOX + _PAGE * number
        vcpu.set_regs(Regs(rip=_CODE, rsp=mailbox + _PAGE, r15=mailbox))
        self.revive(vcpu)
        self._run(vcpu)
        return vcpu

    @staticmethod
    def revive(vcpu: KvmVcpu) -> None:
        """Let a vCPU run that an INIT, or never having got a start-up IPI, keeps waiting."""
        vcpu.set_mp_state(type(vcpu.get_mp_state()).RUNNABLE)

    def _run(self, vcpu: KvmVcpu) -> None:
        while isinstance(exit_ := vcpu.run(), InterruptedExit) or _is_pause(exit_):
            pass
        assert isinstance(exit_, IoExit), exit_
        assert exit_.port == _DONE_PORT, exit_

    def _do(self, number: int, operation: int, address: int = 0, value: int = 0) -> tuple[int, bool, int]:
        self.accesses += 1
        mailbox = _MAILBOX + _PAGE * number
        self._put(mailbox, _COMMAND.pack(operation, address, value, 0, 0, _NO_VECTOR))
        self._run(self.vcpus[number])
        result = _COMMAND.unpack_from(self._memory, mailbox)
        return result[3], result[4] != 0, result[5]

    # What a guest can do

    def port_in(self, port: int, size: int = 1, vcpu: int = 0) -> int:
        """IN of 1, 2 or 4 bytes."""
        return self._do(vcpu, _IN + _SIZE[size], port)[0]

    def port_out(self, port: int, value: int, size: int = 1, vcpu: int = 0) -> None:
        """OUT of 1, 2 or 4 bytes."""
        self._do(vcpu, _OUT + _SIZE[size], port, value)

    def read(self, address: int, size: int = 4, vcpu: int = 0) -> int:
        """MOV from memory, below 4 GiB, of 1, 2, 4 or 8 bytes."""
        return self._do(vcpu, _READ + _SIZE[size], address)[0]

    def write(self, address: int, value: int, size: int = 4, vcpu: int = 0) -> None:
        """MOV to memory."""
        self._do(vcpu, _WRITE + _SIZE[size], address, value)

    def rdmsr(self, index: int, vcpu: int = 0) -> int | None:
        """RDMSR; None for #GP."""
        value, fault, _ = self._do(vcpu, _RDMSR, index)
        return None if fault else value

    def wrmsr(self, index: int, value: int, vcpu: int = 0) -> bool:
        """WRMSR; False for #GP."""
        return not self._do(vcpu, _WRMSR, index, value)[1]

    def get_cr8(self, vcpu: int = 0) -> int:
        return self._do(vcpu, _GET_CR8)[0]

    def set_cr8(self, value: int, vcpu: int = 0) -> None:
        self._do(vcpu, _SET_CR8, value=value)

    def rdtsc(self, vcpu: int = 0) -> int:
        return self._do(vcpu, _RDTSC)[0]

    def take_interrupt(self, vcpu: int = 0) -> int | None:
        """Let the processor take one interrupt; its vector, or None if there was none."""
        before = [each.get_lapic_state() for each in self.vcpus]
        ioapic = self.vm.get_ioapic_state()
        vector = self._do(vcpu, _TAKE)[2]
        if vector == _NO_VECTOR:
            return None
        if _has(before[vcpu], _IRR, vector) and not _has(self.vcpus[vcpu].get_lapic_state(), _ISR, vector):
            _move_to_service(before[vcpu], vector)
            self._undo_eoi(before, ioapic)
        return vector

    def _undo_eoi(self, lapics: list[LapicState], ioapic: IoapicState) -> None:
        """Put everything back to where it was when the interrupt was taken.

        Where KVM runs on PVM (kvm_pvm, Linux 6.18) an interrupt is also ended as it is taken, and a level
        that is still asserted fires again. Other KVMs do not get here.
        """
        if self.vm.get_ioapic_state().redirect_table != ioapic.redirect_table:
            # Of disabled APICs, so that what none of them had accepted is refused again.
            for each, state in zip(self.vcpus, lapics, strict=True):
                each.set_lapic_state(_software_disabled(state))
            self._put_back(ioapic)
        for each, state in zip(self.vcpus, lapics, strict=True):
            each.set_lapic_state(state)

    def _put_back(self, ioapic: IoapicState) -> None:
        accesses = self.accesses
        # Setting the IOAPIC's state forgets asserted lines, or fires them: so let it see them while masked.
        masked = [entry | _MASKED for entry in ioapic.redirect_table]
        levels = sum(1 << line for line in self._asserted)
        self.vm.set_ioapic_state(attrs.evolve(ioapic, redirect_table=masked, current_interrupt_level_bitmap=levels))
        for pin, entry in enumerate(ioapic.redirect_table):
            if not entry & _MASKED:
                self.write(IOAPIC_BASE, 0x10 + 2 * pin)
                self.write(IOAPIC_BASE + 0x10, entry & 0xFFFFFFFF)
        self.write(IOAPIC_BASE, ioapic.ioregsel)
        self.accesses = accesses

    # Lines and messages

    def set_line(self, gsi: int, level: bool) -> None:
        """Drive a line, as `KvmVm.irq_line` does, and remember its level."""
        self.accesses += 1
        if level:
            self._asserted.add(gsi)
        else:
            self._asserted.discard(gsi)
        self.vm.irq_line(gsi, level)

    def signal_msi(self, address: int, data: int) -> None:
        """Write a message, as `KvmVm.signal_msi` does."""
        self.accesses += 1
        self.vm.signal_msi(address, data)

    # Short names for the local APIC's page

    def lapic_read(self, offset: int, size: int = 4, vcpu: int = 0) -> int:
        return self.read(LAPIC_BASE + offset, size, vcpu)

    def lapic_write(self, offset: int, value: int, size: int = 4, vcpu: int = 0) -> None:
        self.write(LAPIC_BASE + offset, value, size, vcpu)


def _has(lapic: LapicState, first: int, vector: int) -> bool:
    return lapic.regs[first + vector // 32] >> vector % 32 & 1 != 0


def _software_disabled(lapic: LapicState) -> LapicState:
    regs = list(lapic.regs)
    regs[_SPIV] &= ~_SPIV_SOFTWARE_ENABLE
    return attrs.evolve(lapic, regs=regs)


def _move_to_service(lapic: LapicState, vector: int) -> None:
    lapic.regs[_IRR + vector // 32] &= ~(1 << vector % 32)
    lapic.regs[_ISR + vector // 32] |= 1 << vector % 32


def _is_pause(exit_: Exit) -> bool:
    return isinstance(exit_, IoExit) and exit_.port == _PAUSE_PORT


def _with_apic_features(entry: CpuidEntry, number: int) -> CpuidEntry:
    if entry.function == 1:
        entry.ebx = entry.ebx & 0xFFFFFF | number << 24
        entry.ecx |= _X2APIC | _TSC_DEADLINE
    return entry
