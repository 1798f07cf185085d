"""16550A UART, as COM1 has it (National Semiconductor PC16550D data sheet, 8.0).

    offset  DLAB=0            DLAB=1
    0       RBR (RO) THR (WO) DLL (RW)
    1       IER (RW)          DLM (RW)
    2       IIR (RO) FCR (WO)
    3       LCR (RW)          7  MSR (RO)
    4       MCR (RW)          5  LSR (RO)          6  SCR (RW)

What is sent leaves at once, so the transmitter is always empty. What the host sends waits outside until the guest has
room for it, so only loopback can overrun. The character timeout has passed as soon as less than the trigger level is
there. Interrupt output: as on a PC through OUT2, and as an edge when it rises. Not here: parity, framing and break.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from typing_extensions import override

from irqchip_core.bus import Access, BusDevice

COM1_PORT = 0x3F8
COM1_GSI = 4
LENGTH = 8

DATA, IER, IIR_FCR, LCR, MCR, LSR, MSR, SCR = range(8)
IER_RX, IER_THRE, IER_LINE, IER_MODEM = 1, 2, 4, 8
IIR_NONE, IIR_MODEM, IIR_THRE, IIR_RX, IIR_LINE, IIR_TIMEOUT = 0b0001, 0b0000, 0b0010, 0b0100, 0b0110, 0b1100
IIR_FIFOS = 0xC0
FCR_ENABLE, FCR_CLEAR_RX = 1, 2
FCR_TRIGGER_LEVELS = (1, 4, 8, 14)  # by bits 6-7
LCR_DLAB = 0x80
MCR_DTR, MCR_RTS, MCR_OUT1, MCR_OUT2, MCR_LOOP = 1, 2, 4, 8, 16
LSR_DR, LSR_OE, LSR_THRE, LSR_TEMT = 0x01, 0x02, 0x20, 0x40
MSR_DELTAS = 0x0F
MSR_TERI = 0x04
MSR_CTS, MSR_DSR, MSR_RI, MSR_DCD = 0x10, 0x20, 0x40, 0x80
LOOPBACK = ((MCR_RTS, MSR_CTS), (MCR_DTR, MSR_DSR), (MCR_OUT1, MSR_RI), (MCR_OUT2, MSR_DCD))
FIFO_SIZE = 16
DIVISOR_9600 = 12


class Uart(BusDevice):
    """One serial port.

    Args:
        interrupt: Called when the interrupt output rises.
        output: Takes each byte the guest sends, on the vCPU's thread.
    """

    debug_label = "uart"
    width = 1
    self_synchronized = True

    def __init__(self, interrupt: Callable[[], object], output: Callable[[bytes], object]) -> None:
        self._interrupt = interrupt
        self._output = output
        self._lock = threading.Lock()
        self._backlog: deque[int] = deque()  # from the host, not received yet
        self._line = False  # the interrupt output
        # Guest-visible state, as after master reset:
        self._rx: deque[int] = deque()
        self._divisor = DIVISOR_9600
        self._ier = 0
        self._fifos = False
        self._trigger_level = 1
        self._lcr = 0
        self._mcr = 0
        self._overrun = False
        self._thre_pending = False
        self._msr = MSR_CTS | MSR_DSR | MSR_DCD
        self._scr = 0

    @property
    def backlog(self) -> int:
        """Bytes of input that the guest has not received yet."""
        return len(self._backlog)

    def receive(self, data: bytes) -> None:
        """Input from the host. From any thread; it waits until the guest takes it."""
        with self._lock:
            self._backlog.extend(data)
            self._fill()
            self._update()

    @override
    def read(self, access: Access) -> int:
        with self._lock:
            value = self._read(access.offset)
            self._update()
        return value

    @override
    def write(self, access: Access, value: int) -> None:
        with self._lock:
            sent = self._write(access.offset, value & 0xFF)
            self._update()
        if sent is not None:
            self._output(sent)

    def _read(self, offset: int) -> int:
        dlab = self._lcr & LCR_DLAB
        match offset:
            case 0 if dlab:
                return self._divisor & 0xFF
            case 1 if dlab:
                return self._divisor >> 8
            case 0:
                value = self._rx.popleft() if self._rx else 0
                self._fill()
                return value
            case 1:
                return self._ier
            case 2:
                cause = self._cause()
                if cause == IIR_THRE:
                    self._thre_pending = False
                return cause | (IIR_FIFOS if self._fifos else 0)
            case 3:
                return self._lcr
            case 4:
                return self._mcr
            case 5:
                value = LSR_THRE | LSR_TEMT | (LSR_DR if self._rx else 0) | (LSR_OE if self._overrun else 0)
                self._overrun = False
                return value
            case 6:
                value = self._msr
                self._msr &= ~MSR_DELTAS
                return value
            case _:
                return self._scr

    def _write(self, offset: int, value: int) -> bytes | None:
        dlab = self._lcr & LCR_DLAB
        match offset:
            case 0 if dlab:
                self._divisor = self._divisor & 0xFF00 | value
            case 1 if dlab:
                self._divisor = self._divisor & 0x00FF | value << 8
            case 0:
                return self._send(value)
            case 1:
                if value & IER_THRE and not self._ier & IER_THRE:
                    self._thre_pending = True  # the holding register is empty already
                self._ier = value & 0x0F
            case 2:
                self._write_fcr(value)
            case 3:
                self._lcr = value
            case 4:
                self._mcr = value & 0x1F
                self._update_modem()
                self._fill()
            case 7:
                self._scr = value
        return None

    def _send(self, value: int) -> bytes | None:
        self._thre_pending = False
        self._update()  # the output falls, and rises again when the byte has left: a new edge
        self._thre_pending = True
        if not self._mcr & MCR_LOOP:
            return bytes((value,))
        if len(self._rx) < self._capacity():
            self._rx.append(value)
        else:
            self._overrun = True
            if not self._fifos:
                self._rx[0] = value  # RBR is overwritten; a full FIFO is not
        return None

    def _write_fcr(self, value: int) -> None:
        enable = bool(value & FCR_ENABLE)
        if enable != self._fifos or value & FCR_CLEAR_RX:
            self._rx.clear()
        self._fifos = enable
        self._trigger_level = FCR_TRIGGER_LEVELS[value >> 6] if enable else 1
        self._fill()

    def _capacity(self) -> int:
        return FIFO_SIZE if self._fifos else 1

    def _fill(self) -> None:
        if not self._mcr & MCR_LOOP:  # the receiver is disconnected from the line then
            while self._backlog and len(self._rx) < self._capacity():
                self._rx.append(self._backlog.popleft())

    def _update_modem(self) -> None:
        if self._mcr & MCR_LOOP:
            lines = sum(line for output, line in LOOPBACK if self._mcr & output)
        else:
            lines = MSR_CTS | MSR_DSR | MSR_DCD
        before = self._msr & ~MSR_DELTAS
        deltas = (before ^ lines) >> 4
        if lines & MSR_RI:
            deltas &= ~MSR_TERI  # only the trailing edge counts
        self._msr = lines | self._msr & MSR_DELTAS | deltas

    def _cause(self) -> int:
        """Bits 0-3 of IIR: the pending interrupt of the highest priority (data sheet, table IV)."""
        if self._ier & IER_LINE and self._overrun:
            return IIR_LINE
        if self._ier & IER_RX and self._rx:
            return IIR_RX if len(self._rx) >= self._trigger_level else IIR_TIMEOUT
        if self._ier & IER_THRE and self._thre_pending:
            return IIR_THRE
        if self._ier & IER_MODEM and self._msr & MSR_DELTAS:
            return IIR_MODEM
        return IIR_NONE

    def _update(self) -> None:
        # In loopback the OUT2 pin is inactive, whatever the bit says.
        gate = self._mcr & (MCR_OUT2 | MCR_LOOP) == MCR_OUT2
        line = gate and self._cause() != IIR_NONE
        if line and not self._line:
            self._interrupt()
        self._line = line
