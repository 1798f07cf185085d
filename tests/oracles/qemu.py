"""QEMU's PC as an oracle: its devices over the qtest protocol, its clock and processor over QMP.

The machine is stopped, and its time with it, except while `run_until` or `take_interrupt` let it run. Its
processor does nothing but wait in HLT with interrupts off: `take_interrupt` sends it an NMI, whose handler opens
a window of one instruction, so that the 8259s see real INTA cycles and memory shows the vector.

Protocols: QEMU's docs/devel/testing (qtest) and docs/interop/qmp-spec.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

EXECUTABLE = "qemu-system-x86_64"

HPET = 0xFED00000
HPET_CONFIGURATION = HPET + 0x10
HPET_ENABLE = 0x1
HPET_LEGACY = 0x2  # takes IRQ 0 away from the PIT
HPET_COUNTER = HPET + 0xF0
HPET_PERIOD_NS = 10

MOST_POSTED = 500
"""Commands whose answers together fit into a pipe."""

# The guest, in real mode. Reset: cs:ip = F000:FFF0, in the ROM.
_ROM_SIZE = 0x10000
_ROM_MAIN = bytes.fromhex(
    "fa"  # cli
    "31c0 8ed8 8ed0"  # xor ax,ax; mov ds,ax; mov ss,ax
    "bc0080"  # mov sp,0x8000
    "f4"  # hlt, from which only an NMI wakes
    "ebfd"  # jmp to the hlt
)
_ROM_RESET = bytes.fromhex("ea000000f0")  # jmp F000:0000
_RESULT = 0x500  # vector, then progress: 1 no interrupt came, 2 one came
_STUBS = 0x1000  # 8 bytes for each vector
_COMMON = 0x1800
_NMI = 0x1810
_NMI_VECTOR = 2
_COMMON_CODE = bytes.fromhex(
    "83c406"  # add sp,6: drop the interrupt's frame; what follows returns from the NMI
    "c606010502"  # mov byte [0x501],2
    "cf"  # iret
)
_NMI_CODE = bytes.fromhex(
    "fb 90 90 fa"  # sti; nop; nop; cli
    "c606010501"  # mov byte [0x501],1
    "cf"  # iret
)


def available() -> bool:
    """Whether QEMU is installed."""
    return shutil.which(EXECUTABLE) is not None


class Qemu:
    """A stopped PC. Use it as a context manager, or call `close`.

    Attributes:
        accesses: How many there were: to registers and lines, and interrupts taken.

    Raises:
        RuntimeError: QEMU ended, or refused a command.
    """

    def __init__(self) -> None:
        rom = bytearray(_ROM_SIZE)
        rom[: len(_ROM_MAIN)] = _ROM_MAIN
        rom[0xFFF0 : 0xFFF0 + len(_ROM_RESET)] = _ROM_RESET
        self._directory = tempfile.TemporaryDirectory(prefix="irqchip-qemu-")
        rom_path = Path(self._directory.name, "rom.bin")
        rom_path.write_bytes(rom)
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [
                    EXECUTABLE, "-accel", "tcg", "-S", "-machine", "pc", "-cpu", "qemu64,-apic", "-m", "2",
                    "-display", "none", "-nodefaults", "-bios", str(rom_path),
                    "-qtest", "stdio", "-qtest-log", "none",
                    "-chardev", f"socket,id=qmp,fd={theirs.fileno()}", "-mon", "chardev=qmp,mode=control",
                ],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )  # fmt: skip
        self.accesses = 0
        self._posted: list[str] = []
        self._qmp_socket = ours
        self._qmp = ours.makefile("rw", encoding="utf-8")
        self._qmp.readline()  # greeting
        self.qmp("qmp_capabilities")
        self.pics = self._devices("isa-i8259")
        self._load_guest()
        self.set_pit_interrupts(enabled=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End QEMU."""
        self._process.kill()
        self._process.communicate()
        self._qmp.close()
        self._qmp_socket.close()
        self._directory.cleanup()

    # Protocols

    def qtest(self, *commands: str) -> list[int]:
        """Send qtest commands, all before the first answer is read; returns the values read, 0 for a write."""
        self.accesses += len(commands)
        return self._exchange(*commands)

    def post(self, *commands: str) -> None:
        """Send qtest commands whose answers have no information: later, but before the next command with one."""
        self.accesses += len(commands)
        self._posted += commands
        if len(self._posted) >= MOST_POSTED:
            self._exchange()

    def _exchange(self, *commands: str) -> list[int]:
        unanswered = len(self._posted)
        commands = (*self._posted, *commands)
        self._posted.clear()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("".join(command + "\n" for command in commands).encode())
        self._process.stdin.flush()
        answers: list[int] = []
        while len(answers) < len(commands):
            line = self._process.stdout.readline().decode().split()
            if not line or line[0] in ("FAIL", "ERR"):
                raise RuntimeError(f"QEMU answered {line!r} to one of {commands!r}")
            if line[0] == "OK":
                answers.append(int(line[1], 16) if len(line) > 1 else 0)
        return answers[unanswered:]

    def qmp(self, command: str, **arguments: Any) -> Any:
        """Execute a QMP command and return its result."""
        if self._posted:
            self._exchange()
        self._qmp.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self._qmp.flush()
        for line in self._qmp:
            answer = json.loads(line)
            if "error" in answer:
                raise RuntimeError(f"QEMU refused {command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]
        raise RuntimeError(f"QEMU ended during {command}")

    def _devices(self, kind: str) -> list[str]:
        """QOM paths of all devices of a kind, in the order of their making."""
        found = [
            entry["name"]
            for entry in self.qmp("qom-list", path="/machine/unattached")
            if entry["type"] == f"child<{kind}>"
        ]
        return [f"/machine/unattached/{name}" for name in sorted(found, key=lambda name: int(name[7:-1]))]

    def timed(self, command: str) -> tuple[int, tuple[int, int]]:
        """Send one qtest command; returns the value read, and between which two times."""
        self.accesses += 1
        clock = f"readq {HPET_COUNTER:#x}"
        before, value, after = self._exchange(clock, command, clock)
        return value, (before * HPET_PERIOD_NS, (after + 1) * HPET_PERIOD_NS)

    # Ports, lines, memory

    def inb(self, port: int) -> int:
        return self.qtest(f"inb {port:#x}")[0]

    def outb(self, port: int, value: int) -> None:
        self.post(f"outb {port:#x} {value:#x}")

    def set_line(self, line: int, high: bool) -> None:
        """Drive input 0-15 of the 8259 pair."""
        self.post(f"set_irq_in {self.pics[line // 8]} unnamed-gpio-in {line % 8} {int(high)}")

    def _load_guest(self) -> None:
        vectors = b"".join((_STUBS + 8 * v if v != _NMI_VECTOR else _NMI).to_bytes(4, "little") for v in range(256))
        stubs = b"".join(
            bytes((0xB0, v, 0xA2)) + _RESULT.to_bytes(2, "little")  # mov al,v; mov [_RESULT],al
            + b"\xe9" + (_COMMON - (_STUBS + 8 * v + 8) & 0xFFFF).to_bytes(2, "little")  # jmp _COMMON
            for v in range(256)
        )  # fmt: skip
        for address, data in ((0, vectors), (_STUBS, stubs), (_COMMON, _COMMON_CODE), (_NMI, _NMI_CODE)):
            self._exchange(f"write {address:#x} {len(data):#x} 0x{data.hex()}")

    # Processor and time

    def take_interrupt(self) -> int | None:
        """Let the processor take an interrupt if INT is high; returns the vector, or None.

        Vector 2 is that of the NMI, and cannot be distinguished from it.
        """
        self.accesses += 1
        self._exchange(f"writew {_RESULT:#x} 0")
        self.qmp("cont")
        self.qmp("inject-nmi")
        while not (result := self._exchange(f"readw {_RESULT:#x}")[0]) >> 8:
            pass
        self.qmp("stop")
        return result & 0xFF if result >> 8 == 2 else None

    def set_pit_interrupts(self, *, enabled: bool) -> None:
        """Connect or disconnect the PIT's counter 0 and line 0."""
        self._exchange(f"writel {HPET_CONFIGURATION:#x} {HPET_ENABLE | (0 if enabled else HPET_LEGACY):#x}")

    def clock(self) -> int:
        """Nanoseconds since the machine was made, rounded down to `HPET_PERIOD_NS`."""
        return self._exchange(f"readq {HPET_COUNTER:#x}")[0] * HPET_PERIOD_NS

    def run_until(self, time: int) -> int:
        """Let time pass until `time` or some later; returns `clock()`."""
        self.qmp("cont")
        while self.clock() < time:
            pass
        self.qmp("stop")
        return self.clock()
