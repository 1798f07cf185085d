"""The interrupt generator: raises edge, level and message interrupts at the guest's request, and takes its report.

No other hardware has it. Registers have 32 bits and take aligned accesses of 4 bytes; all else reads 0 and is ignored.

    0x00 (RO)  ID             "IRQG"
    0x04 (RO)  VERSION        1
    0x08 (RO)  VCPUS          number of vCPUs; their APIC ids are 0 to VCPUS - 1
    0x0C (RO)  EDGE_GSI       GSI (IOAPIC pin, and 8259 line if below 16) of the edge line
    0x10 (RO)  LEVEL_GSI      the same of the level line
    0x14 (RO)  MSI_GSI        GSI that carries the message; of interest to the host only
    0x20 (WO)  EDGE_RAISE     any value: one pulse of the edge line
    0x24 (RW)  LEVEL_PENDING  how many services the device still needs. Writing adds to it (up to 65535); the level
                              line is asserted while it is not 0
    0x28 (WO)  LEVEL_ACK      any value: one service less. Acknowledge before the EOI: after it the device looks again
    0x30 (RW)  MSI_ADDRESS    low half of the message's address
    0x34 (RW)  MSI_ADDRESS_HIGH
    0x38 (RW)  MSI_DATA
    0x3C (WO)  MSI_RAISE      any value: sends the message
    0x40 (RW)  REPORT         written: physical address of the guest's report; read: 0 none yet, 1 taken, 2 refused

The report, little-endian: u32 magic "IRQR", u32 number of rows, 8 bytes unused; then each row: name in ASCII, padded
with zeros to 24 bytes, u32 vCPU, u32 raised, u32 taken, u32 ended.
"""

from __future__ import annotations

import struct
import threading
from typing import Protocol

from attrs import frozen
from typing_extensions import override

from irqchip_core.bus import Access, BusDevice
from irqchip_vmm.device_loop import Timers
from irqchip_vmm.interrupts import EdgeIrq, LevelIrq, MsiIrq
from irqchip_vmm.memory import GuestMemory

GENERATOR_BASE = 0xFEB00000
GENERATOR_LENGTH = 0x1000
ID, VERSION, VCPUS, EDGE_GSI, LEVEL_GSI, MSI_GSI = 0x00, 0x04, 0x08, 0x0C, 0x10, 0x14
EDGE_RAISE, LEVEL_PENDING, LEVEL_ACK = 0x20, 0x24, 0x28
MSI_ADDRESS, MSI_ADDRESS_HIGH, MSI_DATA, MSI_RAISE, REPORT = 0x30, 0x34, 0x38, 0x3C, 0x40
ID_VALUE = int.from_bytes(b"IRQG", "little")
MAX_PENDING = 0xFFFF
RETRY_NS = 100_000_000
REPORT_NONE, REPORT_TAKEN, REPORT_REFUSED = 0, 1, 2

REPORT_MAGIC = b"IRQR"
REPORT_HEADER = struct.Struct("<4sI8x")
REPORT_ROW = struct.Struct("<24s4I")
MAX_ROWS = 4096


@frozen
class ReportRow:
    """What the guest says of one source of interrupts on one vCPU."""

    name: str
    vcpu: int
    raised: int
    taken: int
    ended: int


def read_report(memory: GuestMemory, address: int, vcpu_count: int) -> list[ReportRow] | str:
    """The rows of the report at `address`, or one sentence saying why it is none."""
    header = memory.read(address, REPORT_HEADER.size)
    if header is None:
        return f"its header at {address:#x} is outside of memory"
    magic, count = REPORT_HEADER.unpack(header)
    if magic != REPORT_MAGIC:
        return f"it starts with {magic!r}, not with {REPORT_MAGIC!r}"
    if count > MAX_ROWS:
        return f"it has {count} rows, more than {MAX_ROWS}"
    table = memory.read(address + REPORT_HEADER.size, count * REPORT_ROW.size)
    if table is None:
        return f"its {count} rows reach beyond memory"
    rows: list[ReportRow] = []
    seen: set[tuple[bytes, int]] = set()
    for raw_name, vcpu, raised, taken, ended in REPORT_ROW.iter_unpack(table):
        name = raw_name.rstrip(b"\0")
        if not name or not all(0x20 <= byte < 0x7F for byte in name):
            return f"row {len(rows)} is called {name!r}, which is not printable ASCII"
        if vcpu >= vcpu_count:
            return f"row {len(rows)} is of vCPU {vcpu}, and there are {vcpu_count}"
        if (name, vcpu) in seen:
            return f"it has two rows for {name.decode('ascii')} on vCPU {vcpu}"
        seen.add((name, vcpu))
        rows.append(ReportRow(name.decode("ascii"), vcpu, raised, taken, ended))
    return rows


class GeneratorIrqs(Protocol):
    """Gives the generator its interrupts, as a `Machine` does."""

    def edge_irq(self, gsi: int | None = None, *, name: str) -> EdgeIrq: ...
    def level_irq(self, gsi: int | None = None, *, name: str) -> LevelIrq: ...
    def msi_irq(self, *, name: str) -> MsiIrq: ...


class InterruptGenerator(BusDevice):
    """The device.

    Attributes:
        edge, level, msi: Its interrupts, which count what was raised.
        report: The guest's report once it was taken.
        report_error: Why the last report was refused; None if none was.
    """

    debug_label = "interrupt generator"
    self_synchronized = True

    def __init__(self, irqs: GeneratorIrqs, timers: Timers, memory: GuestMemory, vcpu_count: int) -> None:
        self.edge = irqs.edge_irq(name="generator-edge")
        self.level = irqs.level_irq(name="generator-level")
        self.level.on_resample = self._resampled
        self.msi = irqs.msi_irq(name="generator-msi")
        self.report: list[ReportRow] | None = None
        self.report_error: str | None = None
        self._timers = timers
        self._memory = memory
        self._vcpu_count = vcpu_count
        self._lock = threading.Lock()
        self._pending = 0
        self._line = False  # from the trigger until the chip says that the line is low
        self._acknowledged = True  # the guest has acknowledged the last trigger
        self._message = {MSI_ADDRESS: 0, MSI_ADDRESS_HIGH: 0, MSI_DATA: 0}
        self._message_routed = False
        self._constants = {
            ID: ID_VALUE,
            VERSION: 1,
            VCPUS: vcpu_count,
            EDGE_GSI: self.edge.gsi,
            LEVEL_GSI: self.level.gsi,
            MSI_GSI: self.msi.gsi,
        }
        self._actions = {
            EDGE_RAISE: self._raise_edge,
            LEVEL_PENDING: self._add_pending,
            LEVEL_ACK: self._acknowledge,
            MSI_RAISE: self._send,
            REPORT: self._take_report,
        }

    @override
    def read(self, access: Access) -> int:
        if access.size != 4:
            return 0
        if access.offset == LEVEL_PENDING:
            return self._pending
        if access.offset == REPORT:
            return REPORT_REFUSED if self.report_error else REPORT_NONE if self.report is None else REPORT_TAKEN
        return self._constants.get(access.offset, self._message.get(access.offset, 0))

    @override
    def write(self, access: Access, value: int) -> None:
        if access.size != 4:
            return
        with self._lock:
            if action := self._actions.get(access.offset):
                action(value)
            elif access.offset in self._message:
                self._message[access.offset] = value
                self._message_routed = False

    def _raise_edge(self, _value: int) -> None:
        self.edge.trigger()

    # The level line. The device asserts it again once the guest has acknowledged the service before and the chip has
    # said that the line is low, in either order: KVM resamples early when a pending line is unmasked, for one. If the
    # interrupt was dropped then, no acknowledgment comes, and the device tries again after a while.

    def _add_pending(self, value: int) -> None:
        self._pending = min(self._pending + value, MAX_PENDING)
        self._drive_level()

    def _acknowledge(self, _value: int) -> None:
        self._pending = max(self._pending - 1, 0)
        self._acknowledged = True
        self._drive_level()

    def _resampled(self) -> None:
        with self._lock:
            self._line = False
            self._drive_level()
            if not self._acknowledged:
                attempt = self.level.raised
                self._timers.call_at(self._timers.now() + RETRY_NS, lambda: self._retry(attempt))

    def _retry(self, attempt: int) -> None:
        with self._lock:
            if attempt == self.level.raised and not self._line:
                self._acknowledged = True
                self._drive_level()

    def _drive_level(self) -> None:
        if self._pending and self._acknowledged and not self._line:
            self._line, self._acknowledged = True, False
            self.level.trigger()

    def _send(self, _value: int) -> None:
        if not self._message_routed:
            address = self._message[MSI_ADDRESS_HIGH] << 32 | self._message[MSI_ADDRESS]
            self._message_routed = self.msi.set_message(address, self._message[MSI_DATA])
        if self._message_routed:
            self.msi.trigger()

    def _take_report(self, address: int) -> None:
        report = read_report(self._memory, address, self._vcpu_count)
        if isinstance(report, str):
            self.report_error = report
        else:
            self.report, self.report_error = report, None
