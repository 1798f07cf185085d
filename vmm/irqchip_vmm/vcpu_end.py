"""What the end of a vCPU's loop means for the run: from an exit or an error to an `Outcome` and a sentence."""

from __future__ import annotations

from irqchip_core.errors import IrqChipError
from irqchip_core.hypervisor.exits import (
    Exit,
    FailEntryExit,
    InternalErrorExit,
    ShutdownExit,
    SystemEventExit,
    UnknownExit,
)
from irqchip_core.vcpu_loop import VcpuLoop
from irqchip_vmm.ending import Ending, Outcome

SYSTEM_EVENTS = {1: Outcome.SHUTDOWN, 2: Outcome.RESET}  # KVM_SYSTEM_EVENT_*
CANNOT_EMULATE = 1  # KVM_INTERNAL_ERROR_EMULATION
HAS_INSTRUCTION = 1  # KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES


def finish(ending: Ending, vcpu_id: int, loop: VcpuLoop | None, outcome: Exit | Exception) -> None:
    """End the run, because the loop of a vCPU ended with `outcome`.

    Args:
        ending: Where the end is noted.
        vcpu_id: Number of the vCPU.
        loop: Its loop; None if the vCPU could not be made.
        outcome: The exit that `VcpuLoop.step` did not serve, or the error.
    """
    what, detail = Outcome.ERROR, ""
    if isinstance(outcome, Exception):
        detail = str(outcome) if isinstance(outcome, IrqChipError) else f"{type(outcome).__name__}: {outcome}"
        if loop is not None and loop.last_exit is not None:
            detail += f", after {loop.last_exit}"
    elif isinstance(outcome, ShutdownExit):
        # Where it happened is not known: SVM leaves the guest's state undefined (AMD APM volume 2, 15.14.3).
        what = Outcome.TRIPLE_FAULT
    elif isinstance(outcome, SystemEventExit):
        what = SYSTEM_EVENTS.get(outcome.type, Outcome.ERROR)
        detail = f"the guest asked for KVM_SYSTEM_EVENT {outcome.type}"
    else:
        detail = _failure(outcome) + _where(loop)
    ending.finish(what, vcpu_id=vcpu_id, detail=f"vCPU {vcpu_id}: {detail}" if detail else f"vCPU {vcpu_id}")


def _failure(vm_exit: Exit) -> str:
    if isinstance(vm_exit, FailEntryExit):
        return f"the processor refused to enter the guest, for reason {vm_exit.reason:#x}"
    if isinstance(vm_exit, InternalErrorExit):
        if vm_exit.suberror == CANNOT_EMULATE:
            return f"the hypervisor cannot emulate the guest's instruction{_instruction(vm_exit.data)}"
        data = ", ".join(f"{word:#x}" for word in vm_exit.data) or "none"
        return f"the hypervisor cannot go on, for KVM_INTERNAL_ERROR {vm_exit.suberror} with data {data}"
    if isinstance(vm_exit, UnknownExit):
        return f"the hypervisor returned exit {vm_exit.reason}, which irqchip cannot serve"
    return str(vm_exit)


def _instruction(data: tuple[int, ...]) -> str:
    """Its bytes, where KVM gives them: flags, then a byte of length and 15 bytes (KVM API, emulation_failure)."""
    if len(data) < 3 or not data[0] & HAS_INSTRUCTION:
        return ""
    size, *code = data[1].to_bytes(8, "little") + data[2].to_bytes(8, "little")
    return f" ({bytes(code[:size]).hex(' ')} ...)"


def _where(loop: VcpuLoop | None) -> str:
    try:
        return "" if loop is None else f", at RIP {loop.vcpu.get_regs().rip:#x}"
    except IrqChipError:
        return ""
