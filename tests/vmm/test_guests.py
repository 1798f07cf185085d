"""Small guests on a real hypervisor, each for one thing the machine must do or survive."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from irqchip_vmm import Machine, Outcome, RunResult, load_file
from tests.guests.assemble import GUESTS, assemble, binary_of, sources

pytestmark = [pytest.mark.usefixtures("no_leaks"), pytest.mark.timeout(60)]
TIMEOUT = 20


@pytest.mark.binutils
@pytest.mark.parametrize("source", sources(), ids=lambda source: source.stem)
def test_the_bytes_are_what_the_source_says(source: Path) -> None:
    assert binary_of(source).read_bytes() == assemble(source), "run python -m tests.guests.assemble"


def run(
    guest: str,
    *,
    command_line: str = "",
    vcpu_count: int = 1,
    timeout: float = TIMEOUT,
    prepare: Callable[[Machine], object] = lambda machine: None,
) -> tuple[RunResult, bytes]:
    """Run a guest of tests/guests; returns what became of it, and what it sent on COM1."""
    sent = bytearray()
    with Machine(console=sent.extend, vcpu_count=vcpu_count) as machine:
        machine.load(load_file(GUESTS / f"{guest}.bin", memory_size=machine.memory.size, command_line=command_line))
        prepare(machine)
        result = machine.run(timeout)
    return result, bytes(sent)


def raised(result: RunResult, name: str) -> int:
    return next(count.raised for count in result.interrupts if count.name == name)


@pytest.mark.kvm
@pytest.mark.parametrize(
    ("guest", "outcome", "status"),
    [
        ("real/exit", Outcome.EXIT, 8 << 1 | 1),
        ("real/reset", Outcome.RESET, None),
        ("multiboot/triple_fault", Outcome.TRIPLE_FAULT, None),
        ("real/ports", Outcome.EXIT, 5 << 1 | 1),
        ("multiboot/registers", Outcome.EXIT, 6 << 1 | 1),
    ],
)
def test_end(guest: str, outcome: Outcome, status: int | None) -> None:
    result, _ = run(guest)
    assert (result.end.outcome, result.end.status, result.end.vcpu_id) == (outcome, status, 0)
    assert result.device_errors == 0


@pytest.mark.kvm
@pytest.mark.parametrize("guest", ["real/loop", "real/halt"])
@pytest.mark.parametrize("vcpu_count", [1, 3])
def test_timeout_ends_a_guest_that_does_not_end(guest: str, vcpu_count: int) -> None:
    result, _ = run(guest, vcpu_count=vcpu_count, timeout=0.1)
    assert result.end.outcome is Outcome.TIMEOUT
    assert "0.1 seconds" in result.end.detail


@pytest.mark.kvm
def test_stop_ends_the_run_from_another_thread() -> None:
    stopper: list[threading.Thread] = []

    def prepare(machine: Machine) -> None:
        stopper.append(threading.Timer(0.1, machine.stop))
        stopper[0].start()

    result, _ = run("real/loop", prepare=prepare)
    stopper[0].join()
    assert result.end.outcome is Outcome.STOPPED


@pytest.mark.kvm
def test_multiboot_guest_reads_its_command_line_and_memory_map() -> None:
    result, sent = run("multiboot/hello", command_line="console=ttyS0 quiet")
    assert sent == b"irqchip-vmm\nconsole=ttyS0 quiet\n"
    assert result.end.status == 3 << 1 | 1


@pytest.mark.kvm
def test_com1_interrupts_for_each_piece_of_input() -> None:
    sent = bytearray()
    arrived = threading.Condition()

    def console(data: bytes) -> None:
        with arrived:
            sent.extend(data)
            arrived.notify()

    def has_sent(count: int) -> bool:
        return len(sent) == count

    def type_slowly(machine: Machine) -> None:
        for number, piece in enumerate((b"a", b"b", b"c"), 1):
            machine.com1.receive(piece)
            with arrived:
                assert arrived.wait_for(partial(has_sent, number), TIMEOUT)
        machine.com1.receive(b"q")

    with Machine(console=console) as machine:
        machine.load(load_file(GUESTS / "real/echo.bin", memory_size=machine.memory.size))
        typist = threading.Thread(target=type_slowly, args=(machine,))
        typist.start()
        result = machine.run(TIMEOUT)
        typist.join()
    assert sent == b"abc"
    assert result.end.outcome is Outcome.EXIT
    # A byte that comes while the handler still looks is read without an interrupt of its own being taken.
    assert result.end.status is not None
    assert 1 <= result.end.status >> 1 <= raised(result, "com1") <= 4


@pytest.mark.kvm
def test_com1_input_that_is_there_before_the_guest_is_not_lost() -> None:
    result, sent = run("real/echo", prepare=lambda machine: machine.com1.receive(bytes(range(97, 113)) * 20 + b"q"))
    assert sent == (bytes(range(97, 113)) * 20).replace(b"q", b"")
    assert result.end.outcome is Outcome.EXIT


@pytest.mark.kvm
def test_rtc_ticks_in_time() -> None:
    start = time.monotonic()
    result, _ = run("real/rtc")
    assert result.end.status == 20 << 1 | 1
    # The guest lets the 21st come, by reading C, before it requests the end.
    assert 20 <= raised(result, "rtc") <= 21
    assert time.monotonic() - start >= 20 / 1024


@pytest.mark.kvm
def test_a_report_that_does_not_add_up_is_kept_as_it_is() -> None:
    result, _ = run("multiboot/liar")
    assert result.report is not None
    assert [(row.name, row.raised, row.taken) for row in result.report] == [("made-up", 8, 7)]


@pytest.mark.kvm
def test_a_report_that_is_none_is_refused() -> None:
    result, _ = run("multiboot/registers")
    assert result.report is None
    assert "outside of memory" in (result.report_error or "")


@pytest.mark.qemu
def test_qemu_agrees_about_multiboot() -> None:
    """QEMU loads the same file the same way; it puts the file's name before the command line, and has its own name."""
    qemu = shutil.which("qemu-system-x86_64")
    assert qemu is not None
    guest = str(GUESTS / "multiboot/hello.bin")
    exit_device = "isa-debug-exit,iobase=0xf4,iosize=4"
    machine = ["-accel", "tcg", "-display", "none", "-no-reboot", "-serial", "stdio", "-device", exit_device]
    done = subprocess.run(
        [qemu, *machine, "-kernel", guest, "-append", "quiet"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=50,
    )
    name, command_line = done.stdout.decode().splitlines()
    assert name == "qemu"
    assert command_line == f"{guest} quiet"
    assert done.returncode % 2 == 1
    assert done.returncode > 1
