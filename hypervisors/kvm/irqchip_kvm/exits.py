"""From the run area of a vCPU to the typed exits of ``irqchip_core.hypervisor.exits``: one decoder for each reason.

`DECODERS` is the table; a reason without a decoder is an `UnknownExit`. Exits without content are shared.
"""

from __future__ import annotations

from collections.abc import Callable

from irqchip_core.hypervisor.exits import (
    Exit,
    FailEntryExit,
    HltExit,
    InternalErrorExit,
    InterruptedExit,
    IoapicEoiExit,
    IoExit,
    IrqWindowExit,
    MmioExit,
    MsrExit,
    SetTprExit,
    ShutdownExit,
    SystemEventExit,
)
from irqchip_kvm import abi
from irqchip_kvm.abi import ExitReason

INTERRUPTED = InterruptedExit()
_HLT = HltExit()
_IRQ_WINDOW = IrqWindowExit()
_SHUTDOWN = ShutdownExit()
_SET_TPR = SetTprExit()

_EXIT = abi.RUN_EXIT
_OUT = abi.EXIT_IO_OUT
_MMIO_DATA = abi.RUN_MMIO_DATA
_unpack_io = abi.RUN_IO.unpack_from
_unpack_mmio = abi.RUN_MMIO.unpack_from


def _io(run: memoryview) -> Exit:
    direction, size, port, count, offset = _unpack_io(run, _EXIT)
    return IoExit(port, size, run[offset : offset + size * count], direction == _OUT)


def _mmio(run: memoryview) -> Exit:
    address, length, is_write = _unpack_mmio(run, _EXIT)
    return MmioExit(address, run[_MMIO_DATA : _MMIO_DATA + length], is_write != 0)


def _rdmsr(run: memoryview) -> Exit:
    run[abi.RUN_MSR_ERROR] = 1  # #GP unless complete_msr says otherwise
    _reason, index, _data = abi.RUN_MSR.unpack_from(run, _EXIT)
    return MsrExit(index, 0, is_write=False)


def _wrmsr(run: memoryview) -> Exit:
    run[abi.RUN_MSR_ERROR] = 1
    _reason, index, data = abi.RUN_MSR.unpack_from(run, _EXIT)
    return MsrExit(index, data, is_write=True)


def _internal_error(run: memoryview) -> Exit:
    suberror, ndata, *data = abi.RUN_INTERNAL.unpack_from(run, _EXIT)
    return InternalErrorExit(suberror, tuple(data[:ndata]))


def _fail_entry(run: memoryview) -> Exit:
    return FailEntryExit(*abi.RUN_U64.unpack_from(run, _EXIT))


def _system_event(run: memoryview) -> Exit:
    return SystemEventExit(*abi.RUN_U32.unpack_from(run, _EXIT))


DECODERS: dict[int, Callable[[memoryview], Exit]] = {
    ExitReason.IO: _io,
    ExitReason.MMIO: _mmio,
    ExitReason.X86_RDMSR: _rdmsr,
    ExitReason.X86_WRMSR: _wrmsr,
    ExitReason.HLT: lambda run: _HLT,
    ExitReason.IRQ_WINDOW_OPEN: lambda run: _IRQ_WINDOW,
    ExitReason.INTR: lambda run: INTERRUPTED,
    ExitReason.SHUTDOWN: lambda run: _SHUTDOWN,
    ExitReason.SET_TPR: lambda run: _SET_TPR,
    ExitReason.IOAPIC_EOI: lambda run: IoapicEoiExit(run[_EXIT]),
    ExitReason.INTERNAL_ERROR: _internal_error,
    ExitReason.FAIL_ENTRY: _fail_entry,
    ExitReason.SYSTEM_EVENT: _system_event,
}
