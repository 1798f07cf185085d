"""What an x86 chip can do beyond the 22 methods: give and take its controllers' state.

A chip need not have all controllers (`IrqChipCap`). What belongs to one that it does not have is left as it is here: it
raises `Unsupported`, and a snapshot has no record of it.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NoReturn

from irqchip_core.arguments import check_int, check_type
from irqchip_core.capabilities import IrqChipCap
from irqchip_core.chip import IrqChip
from irqchip_core.errors import Unsupported
from irqchip_core.hypervisor.exits import MsrExit
from irqchip_core.hypervisor.vcpu import Vcpu, VcpuX86_64
from irqchip_core.x86.counters import ChipCounters
from irqchip_core.x86.state import ChipSnapshot, IoapicState, LapicState, PicSelect, PicState, PitState
from irqchip_core.x86.state_checks import check_snapshot


class IrqChipX86_64(IrqChip):  # noqa: N801
    """An interrupt chip of an x86 machine: of 8259 pair, IOAPIC, 8254 and local APICs those that it says it has."""

    def _lacks(self, controller: IrqChipCap) -> NoReturn:
        raise Unsupported(
            f"the chip has no {controller.value}",
            subject=self.name,
            remedy=f"choose one with it: require={{IrqChipCap.{controller.name}}}",
        )

    def get_pic_state(self, select: PicSelect) -> PicState:
        """State of one 8259."""
        self._lacks(IrqChipCap.PIC)

    def set_pic_state(self, select: PicSelect, state: PicState) -> None:
        """Set the state of one 8259.

        Raises:
            WrongType, InvalidArgument: `state_checks.check_pic` refuses it. Nothing has changed, here as below.
        """
        self._lacks(IrqChipCap.PIC)

    def get_ioapic_state(self) -> IoapicState:
        """State of the IOAPIC."""
        self._lacks(IrqChipCap.IOAPIC)

    def set_ioapic_state(self, state: IoapicState) -> None:
        """Set the state of the IOAPIC.

        Raises:
            WrongType, InvalidArgument: `state_checks.check_ioapic` refuses it.
        """
        self._lacks(IrqChipCap.IOAPIC)

    def get_lapic_state(self, vcpu_id: int) -> LapicState:
        """State of a local APIC.

        Raises:
            UnknownVcpu: Out of range, or not added.
        """
        self._lacks(IrqChipCap.LOCAL_APIC)

    def set_lapic_state(self, vcpu_id: int, state: LapicState) -> None:
        """Set the state of a local APIC; its timer goes on from the current count.

        Raises:
            WrongType, InvalidArgument: `state_checks.check_lapic` refuses it.
            UnknownVcpu: Out of range, or not added.
        """
        self._lacks(IrqChipCap.LOCAL_APIC)

    def get_pit(self) -> PitState:
        """State of the 8254."""
        self._lacks(IrqChipCap.PIT)

    def set_pit(self, state: PitState) -> None:
        """Set the state of the 8254, which counts from then on.

        Raises:
            WrongType, InvalidArgument: `state_checks.check_pit` refuses it.
        """
        self._lacks(IrqChipCap.PIT)

    def lapic_frequency(self) -> int:
        """Input clock of the local APIC timers in Hz, for CPUID leaf 0x15."""
        self._lacks(IrqChipCap.LOCAL_APIC)

    def pit_uses_speaker_port(self) -> bool:
        """Whether `finalize_devices` puts port 0x61 on the I/O bus, so that no other device may be there.

        False where the hypervisor answers the port, and where the chip has no such port.
        """
        return False

    def lapics_in_hypervisor(self) -> bool:
        """Whether the local APICs are the hypervisor's, so that it can interrupt, kick and halt vCPUs by itself.

        `vcpu_cpuid` then announces what the hypervisor offers with them.
        """
        return False

    def counters(self) -> ChipCounters:
        """What became of the interrupts so far; empty where all controllers are in the hypervisor."""
        return ChipCounters()

    def handle_msr(self, vcpu: VcpuX86_64, access: MsrExit) -> bool:
        """Answer an access to an MSR that the hypervisor left to user space, if it is one of the chip's.

        The chip has the MSRs of the local APIC, and those whose writes it must follow: the time-stamp counter.

        Returns:
            False if it is no MSR of this chip's; then nothing was done.
        """
        check_type(vcpu, Vcpu, subject=self.name, argument="vcpu")
        check_type(access, MsrExit, subject=self.name, argument="access")
        return False

    @abstractmethod
    def snapshot_chip_specific(self) -> Any:
        """What `snapshot` must keep beside the common records."""

    @abstractmethod
    def check_chip_specific(self, data: Any, vcpu_count: int) -> None:
        """Refuse what `restore_chip_specific` would refuse. `restore` calls it before it changes anything.

        Raises:
            InvalidArgument: `data` is not what `snapshot_chip_specific` gives for a chip of `vcpu_count` vCPUs, or
                this is not such a chip.
        """

    @abstractmethod
    def restore_chip_specific(self, data: Any) -> None:
        """Take what `snapshot_chip_specific` gave."""

    def snapshot(self, vcpu_count: int) -> ChipSnapshot:
        """All state of the controllers that the chip has, while vCPUs and devices are stopped.

        Any error of a getter is raised.
        """
        check_int(vcpu_count, 0, (1 << 32) - 1, subject=self.name, argument="vcpu_count")
        has = self.check_capability
        return ChipSnapshot(
            ioapic=self.get_ioapic_state() if has(IrqChipCap.IOAPIC) else None,
            lapics=[self.get_lapic_state(vcpu_id) for vcpu_id in range(vcpu_count)]
            if has(IrqChipCap.LOCAL_APIC)
            else [],
            pic_primary=self.get_pic_state(PicSelect.PRIMARY) if has(IrqChipCap.PIC) else None,
            pic_secondary=self.get_pic_state(PicSelect.SECONDARY) if has(IrqChipCap.PIC) else None,
            pit=self.get_pit() if has(IrqChipCap.PIT) else None,
            chip_specific=self.snapshot_chip_specific(),
            mp_states=[self.get_mp_state(vcpu_id) for vcpu_id in range(vcpu_count)]
            if has(IrqChipCap.MP_STATE_GET_SET)
            else [],
        )

    def restore(self, snapshot: ChipSnapshot, vcpu_count: int) -> None:
        """Set all state.

        Every record is checked whole before anything changes. After that the first error of a hypervisor stops all.

        Raises:
            WrongType, InvalidArgument: The snapshot is not one of `vcpu_count` vCPUs, or not one of such a chip, or
                something in it is what no controller can have.
            UnknownVcpu: A vCPU was not added.
        """
        has = self.check_capability
        check_snapshot(
            snapshot,
            vcpu_count,
            has=has,
            pins=len(self.get_ioapic_state().redirect_table) if has(IrqChipCap.IOAPIC) else 0,
            subject=self.name,
        )
        self.check_chip_specific(snapshot.chip_specific, vcpu_count)
        for vcpu_id in range(len(snapshot.lapics)):
            self.get_lapic_state(vcpu_id)  # raises if the vCPU is missing
        self.restore_chip_specific(snapshot.chip_specific)  # the routes first: a pin's level belongs to its GSIs
        if snapshot.pit is not None:
            self.set_pit(snapshot.pit)
        # The secondary first: its output is an edge for the primary, which the primary's record already contains.
        if snapshot.pic_secondary is not None:
            self.set_pic_state(PicSelect.SECONDARY, snapshot.pic_secondary)
        if snapshot.pic_primary is not None:
            self.set_pic_state(PicSelect.PRIMARY, snapshot.pic_primary)
        if snapshot.ioapic is not None:
            self.set_ioapic_state(snapshot.ioapic)
        for vcpu_id, lapic in enumerate(snapshot.lapics):
            self.set_lapic_state(vcpu_id, lapic)
        for vcpu_id, mp_state in enumerate(snapshot.mp_states):
            self.set_mp_state(vcpu_id, mp_state)
