"""`VcpuSlots`: the vCPUs of a chip whose local APICs are in the kernel, and what such a chip does with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from irqchip_core.arguments import check_int, check_type
from irqchip_core.capabilities import PC_CONTROLLERS, IrqChipCap
from irqchip_core.chip import MPState
from irqchip_core.errors import InvalidArgument, UnknownVcpu, WrongType
from irqchip_core.hookspecs import Probe
from irqchip_core.hypervisor.vcpu import Vcpu, Vm
from irqchip_core.x86.lapic.registers import IA32_APIC_BASE, IA32_TSC_DEADLINE
from irqchip_core.x86.state import LapicState
from irqchip_core.x86.state_checks import check_lapic, check_mp_state
from irqchip_kvm.abi import Cap
from irqchip_kvm.vcpu import KvmVcpu
from irqchip_kvm.vm import KvmVm


def lapic_capabilities(vm: KvmVm) -> frozenset[IrqChipCap]:
    """What chips have whose local APICs are KVM's, besides the controllers."""
    capabilities = {IrqChipCap.X2APIC, IrqChipCap.MP_STATE_GET_SET}
    if vm.check_extension(Cap.TSC_DEADLINE_TIMER) == 1:
        capabilities.add(IrqChipCap.TSC_DEADLINE_TIMER)
    return frozenset(capabilities)


def probe_vm(vm: Vm, needed: Mapping[Cap, str], remedy: str) -> Probe:
    """Whether `vm` can have a PC's chip with local APICs of KVM, which needs these capabilities of it.

    Args:
        vm: Any VM.
        needed: What each is for, as the refusal is to say it.
        remedy: What helps where one is missing.
    """
    if not isinstance(vm, KvmVm):
        return Probe(f"it needs a VM of irqchip-kvm, not {type(vm).__name__}")
    missing = [what for capability, what in needed.items() if not vm.check_extension(capability)]
    if missing:
        return Probe(f"this kernel's KVM lacks {', '.join(missing)}; {remedy}")
    return Probe(capabilities=PC_CONTROLLERS | lapic_capabilities(vm))


class VcpuSlots:
    """Room for the vCPUs of one VM.

    Args:
        subject: Name of the chip, for error messages.
        vm: Their VM.
        count: How many there will be at most: 1 to `KvmVm.max_vcpu_id`.

    Raises:
        InvalidArgument: `count` is out of range.
    """

    def __init__(self, subject: str, vm: KvmVm, count: int) -> None:
        check_int(count, 1, vm.max_vcpu_id(), subject=subject, argument="vcpu_count")
        self._subject = subject
        self._vm = vm
        self._vcpus: list[KvmVcpu | None] = [None] * count

    def __len__(self) -> int:
        return len(self._vcpus)

    def add(self, vcpu_id: int, vcpu: Vcpu) -> KvmVcpu:
        """Put a vCPU into its slot; raises as `IrqChip.add_vcpu` does."""
        check_type(vcpu_id, int, subject=self._subject, argument="vcpu_id")
        if not 0 <= vcpu_id < len(self._vcpus):
            raise UnknownVcpu(
                f"vCPU {vcpu_id} is beyond the {len(self._vcpus)} the chip was made for",
                subject=self._subject,
                argument="vcpu_id",
                remedy="make the chip with a larger vcpu_count",
            )
        if not isinstance(vcpu, KvmVcpu):
            raise WrongType(
                f"it is a {type(vcpu).__name__}",
                subject=self._subject,
                argument="vcpu",
                remedy="give an irqchip_kvm.KvmVcpu",
            )
        if vcpu.vm is not self._vm:
            raise InvalidArgument(
                "it is of another VM",
                subject=self._subject,
                argument="vcpu",
                remedy="give a vCPU of the VM the chip was made for",
            )
        if vcpu.id != vcpu_id:
            raise InvalidArgument(
                f"it is vCPU {vcpu.id}, not {vcpu_id}",
                subject=self._subject,
                argument="vcpu",
                remedy="add it as its own number",
            )
        self._vcpus[vcpu_id] = vcpu
        return vcpu

    def __getitem__(self, vcpu_id: int) -> KvmVcpu:
        """The vCPU of that number. Raises `UnknownVcpu` if it is out of range or was not added."""
        check_type(vcpu_id, int, subject=self._subject, argument="vcpu_id")
        vcpu = self._vcpus[vcpu_id] if 0 <= vcpu_id < len(self._vcpus) else None
        if vcpu is None:
            raise UnknownVcpu(
                f"there is no vCPU {vcpu_id}",
                subject=self._subject,
                argument="vcpu_id",
                remedy="give it to add_vcpu first",
            )
        return vcpu

    def own(self, vcpu: Vcpu) -> KvmVcpu:
        """`vcpu`, which must be one of these. Raises `WrongType` or `UnknownVcpu` if it is not."""
        try:
            if (own := self._vcpus[vcpu.id]) is vcpu and own is not None:  # one look: this is done twice an exit
                return own
        except (AttributeError, TypeError, IndexError):
            pass
        check_type(vcpu, KvmVcpu, subject=self._subject, argument="vcpu")
        _ = self[vcpu.id]
        raise UnknownVcpu(
            f"this vCPU {vcpu.id} is not the chip's",
            subject=self._subject,
            argument="vcpu",
            remedy="give it to add_vcpu first",
        )

    def all(self) -> list[KvmVcpu]:
        """Every vCPU, by number. Raises `UnknownVcpu` if one was not added."""
        return [self[vcpu_id] for vcpu_id in range(len(self._vcpus))]

    # State, from any thread: a vCPU that executes is stopped for it.

    def get_mp_state(self, vcpu_id: int) -> MPState:
        with self[vcpu_id].stopped() as vcpu:
            return vcpu.get_mp_state()

    def set_mp_state(self, vcpu_id: int, state: MPState) -> None:
        vcpu = self[vcpu_id]
        check_mp_state(state, subject=self._subject)
        with vcpu.stopped():
            vcpu.set_mp_state(state)

    # The local APIC's record includes what KVM keeps in MSRs.

    def get_lapic_state(self, vcpu_id: int) -> LapicState:
        with self[vcpu_id].stopped() as vcpu:
            state = vcpu.get_lapic_state()
            msrs = vcpu.get_msrs([IA32_APIC_BASE, IA32_TSC_DEADLINE])
        state.apic_base, state.tsc_deadline = msrs[IA32_APIC_BASE], msrs[IA32_TSC_DEADLINE]
        return state

    def set_lapic_state(self, vcpu_id: int, state: LapicState) -> None:
        vcpu = self[vcpu_id]
        check_lapic(state, vcpu_id, x2apic=True, subject=self._subject)
        with vcpu.stopped():
            if state.apic_base is not None:  # first: it says in which mode the registers are
                vcpu.set_msrs({IA32_APIC_BASE: state.apic_base})
            vcpu.set_lapic_state(state)
            if state.tsc_deadline:
                vcpu.set_msrs({IA32_TSC_DEADLINE: state.tsc_deadline})

    # The vector that is injected and not yet delivered is in no record of a controller.

    def interrupt_bitmaps(self) -> tuple[int, ...]:
        """Of each vCPU, as a bit, the vector that is injected but not yet delivered."""
        bitmaps = []
        for one in self.all():
            with one.stopped() as vcpu:
                bitmaps.append(vcpu.get_sregs().interrupt_bitmap)
        return tuple(bitmaps)

    def check_chip_specific(self, data: Any, kind: type[Any], vcpu_count: int) -> None:
        """Refuse what is no `kind` with `interrupt_bitmaps` of `vcpu_count` vCPUs, or if there are not as many here."""
        check_type(vcpu_count, int, subject=self._subject, argument="vcpu_count")
        bitmaps = data.interrupt_bitmaps if isinstance(data, kind) else None
        if not isinstance(bitmaps, tuple) or not len(bitmaps) == vcpu_count == len(self):
            raise InvalidArgument(
                f"it is not the state of a {self._subject} chip of {len(self)} vCPUs",
                subject=self._subject,
                argument="chip_specific",
                remedy="restore what a chip of this backend gave that was made for as many vCPUs",
            )
        for bitmap in bitmaps:
            argument = "chip_specific.interrupt_bitmaps"
            check_int(bitmap, 0, (1 << 256) - 1, subject=self._subject, argument=argument)
            if bitmap & bitmap - 1:  # KVM would take the first, and lose the others
                raise InvalidArgument(
                    f"{bitmap:#x} has several vectors", subject=self._subject, argument=argument, remedy="give one bit"
                )

    def set_interrupt_bitmaps(self, bitmaps: Sequence[int]) -> None:
        """Inject again what was not delivered."""
        for one, bitmap in zip(self.all(), bitmaps, strict=True):
            with one.stopped() as vcpu:
                sregs = vcpu.get_sregs()
                sregs.interrupt_bitmap = bitmap
                vcpu.set_sregs(sregs)
