"""Runs in virtual time: the same guest, the same interrupts, at the same instructions, every time."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest
from typing_extensions import override

from irqchip_core.capabilities import IrqChipCap
from irqchip_core.clock import VirtualClock
from irqchip_core.errors import InvalidArgument, NothingSuitable
from irqchip_core.events import IrqEdgeEvent, IrqEventSource, PlatformDeviceId
from irqchip_core.hypervisor.registers import Regs
from irqchip_core.hypervisor.vcpu import VcpuX86_64
from irqchip_core.routes import IrqRoute, default_routes
from irqchip_core.selection import create_vm
from irqchip_core.testing import FakeVcpu, FakeVm
from irqchip_vmm import Machine, Outcome, RunResult, load_file
from irqchip_vmm.guest import demonstration_guest
from irqchip_vmm.machine import VIRTUAL_WALL_TIME
from irqchip_vmm.report import demonstration_problems, totals
from irqchip_vmm.trace import HEADING, ChipChange, InjectedInterrupt, Trace
from tests.core.table_chip import TableChip
from tests.guests.assemble import GUESTS

pytestmark = [pytest.mark.usefixtures("no_leaks"), pytest.mark.timeout(300)]
TIMEOUT = 50
REPEAT = int(os.environ.get("IRQCHIP_REPEAT", "10"))
"""How often the demonstration guest is run; 100 takes a minute or two."""
COMMAND = [sys.executable, "-m", "irqchip_core", "run"]


def run(vcpu_count: int) -> tuple[str, RunResult, int]:
    """Run the demonstration guest; returns its trace, the result, and how much time has passed for it."""
    lines = []
    with Machine(vcpu_count=vcpu_count, deterministic=True, trace=lambda line: lines.append(str(line))) as machine:
        machine.load(demonstration_guest(memory_size=machine.memory.size, vcpu_count=vcpu_count))
        result = machine.run(TIMEOUT)
        assert demonstration_problems(result, vcpu_count, tsc_deadline=True) == []
        return "\n".join(lines), result, machine.vm.clock.now()


@pytest.mark.parametrize("vcpu_count", [1, 2])
def test_a_run_repeats_exactly(vcpu_count: int) -> None:
    lines, result, time = run(vcpu_count)
    for _ in range(REPEAT - 1):
        lines_again, result_again, time_again = run(vcpu_count)
        assert lines_again == lines
        assert (result_again.exits, result_again.report, time_again) == (result.exits, result.report, time)


def run_rtc() -> tuple[list[str], int, int]:
    """The guest takes periodic interrupts of the RTC. Returns the trace, how many were raised, and the time."""
    lines: list[str] = []

    def keep(line: InjectedInterrupt | ChipChange) -> None:
        if isinstance(line, InjectedInterrupt):
            lines.append(str(line))

    with loaded(Machine(deterministic=True, trace=keep), "real/rtc") as machine:
        result = machine.run(TIMEOUT)
        assert result.end.outcome is Outcome.EXIT
        raised = next(count.raised for count in result.interrupts if count.name == "rtc")
        return lines, raised, machine.vm.clock.now()


def test_the_real_time_clock_keeps_virtual_time() -> None:
    lines, raised, time = run_rtc()
    assert len(lines) == raised == 20
    assert 20 * 10**9 / 1024 <= time < 21 * 10**9 / 1024
    assert run_rtc() == (lines, raised, time)


def test_four_vcpus_repeat_too() -> None:
    assert len({run(4)[0] for _ in range(3)}) == 1


@pytest.mark.parametrize("vcpu_count", [1, 2])
def test_the_trace_has_every_interrupt(vcpu_count: int) -> None:
    text, result, time = run(vcpu_count)
    lines = [line.split() for line in text.splitlines() if not line.startswith("#")]
    times = [int(line[0]) for line in lines]
    assert times == sorted(times)
    assert times[-1] < time
    for vcpu in range(vcpu_count):
        # Beside those that the guest counts there are the timers by which it limits its waiting.
        taken = sum(line.taken_by_vcpu[vcpu] for line in totals(result, vcpu_count) if line.taken_by_vcpu)
        injected = sum(1 for line in lines if line[1] == str(vcpu))
        assert taken <= injected <= taken + 20
    assert {line[2] for line in lines} == {"irq"}


class OneVcpu(FakeVm):
    """A VM in virtual time, 5 ns after its start, with a vCPU that the test looks at."""

    def __init__(self, vcpu: FakeVcpu) -> None:
        super().__init__()
        self.clock = self.time = VirtualClock(5)
        self.vcpu = vcpu

    @override
    def create_vcpu(self, vcpu_id: int) -> FakeVcpu:
        return self.vcpu


def test_a_trace_tells_irqs_and_nmis() -> None:
    lines: list[str] = []
    fake = FakeVcpu(3)
    vcpu = Trace(OneVcpu(fake), lambda line: lines.append(str(line))).create_vcpu(3)
    assert isinstance(vcpu, VcpuX86_64)
    vcpu.set_regs(Regs(rip=0x7C00))
    vcpu.cr8 = 7
    vcpu.interrupt(0x41)
    vcpu.inject_nmi()
    assert lines == ["5 3 irq 0x41 0x7c00", "5 3 nmi 0x02 0x7c00"]
    assert (fake.injected, fake.nmis, fake.cr8, vcpu.cr8) == ([0x41], 1, 7, 7)


def test_a_trace_shows_events_and_routes() -> None:
    lines: list[str] = []
    vm = OneVcpu(FakeVcpu())
    chip = TableChip()
    chip.observers.add(Trace(vm, lambda line: lines.append(str(line))))
    with chip, IrqEdgeEvent() as event:
        chip.register_edge_irq_event(4, event, IrqEventSource(PlatformDeviceId.SERIAL, 0, "com1"))
        vm.time.advance(10)
        chip.set_irq_routes([*default_routes(), IrqRoute.msi(30, 0xFEE00000, 0x41)])
        chip.set_irq_routes([route for route in default_routes() if route.gsi])
        chip.unregister_edge_irq_event(4, event)
    assert lines == [
        "# 5 GSI 4 event registered: com1",
        "# 15 GSI 30 routed: message 0xfee00000 0x41",
        "# 15 GSI 0 routed: nowhere",
        "# 15 GSI 30 routed: nowhere",
        "# 15 GSI 4 event unregistered",
    ]


def test_the_trace_of_a_run_shows_the_life_of_its_chip() -> None:
    text, result, _ = run(1)
    changes = [line.split(" ", 2)[2] for line in text.splitlines() if line.startswith("#")]
    for irq in result.interrupts:
        assert f"GSI {irq.gsi} event registered: {irq.name}" in changes
    messages = {irq.gsi for irq in result.interrupts if irq.kind == "msi"}
    assert messages
    assert {int(change.split()[1]) for change in changes if "routed: message 0xfee" in change} == messages


@pytest.mark.parametrize("vcpus", ["1", "2"])
def test_processes_repeat_each_other(tmp_path: Path, vcpus: str) -> None:
    traces = []
    for seed in ("0", "1"):
        path = tmp_path / seed
        done = subprocess.run(
            [*COMMAND, "--vcpus", vcpus, "--deterministic", "--trace", path],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            timeout=TIMEOUT,
        )
        assert done.returncode == 0, done
        traces.append((path.read_bytes(), done.stdout))
    assert traces[0] == traces[1]
    heading, *lines = traces[0][0].decode().splitlines()
    assert heading == HEADING
    comments = [line for line in lines if line.startswith("#")]
    assert {len(line.split()) for line in lines if line not in comments} == {len(heading.split()) - 1}
    assert "# 0 GSI 8 event registered: rtc" in comments


def test_standard_input_comes_at_once(tmp_path: Path) -> None:
    text = b"x" * 5000 + b"q"
    outputs = []
    for pieces in ([text], [text[:10], text[10:]]):
        process = subprocess.Popen(
            [*COMMAND, GUESTS / "real/echo.bin", "--deterministic", "--trace", tmp_path / "trace"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert process.stdin is not None
        for piece in pieces:
            process.stdin.write(piece)
            process.stdin.flush()
        out, _ = process.communicate(timeout=TIMEOUT)
        outputs.append((process.returncode, out, (tmp_path / "trace").read_bytes()))
    assert outputs[0] == outputs[1]
    assert outputs[0][1].startswith(text[:-1] + b"\n")


def loaded(machine: Machine, guest: str) -> Machine:
    machine.load(load_file(GUESTS / f"{guest}.bin", memory_size=machine.memory.size))
    return machine


@pytest.mark.parametrize("guest", ["real/loop", "real/halt"])
def test_a_guest_that_never_ends_is_ended(guest: str) -> None:
    with loaded(Machine(deterministic=True), guest) as machine:
        assert machine.run(0.2).end.outcome is Outcome.TIMEOUT


def test_the_host_can_stop_a_guest_that_sleeps_for_ever() -> None:
    with loaded(Machine(deterministic=True), "real/halt") as machine:
        timer = threading.Timer(0, machine.stop)
        timer.start()
        assert machine.run(TIMEOUT).end.outcome is Outcome.STOPPED
        timer.join()


def test_timers_of_devices_ring_in_virtual_time() -> None:
    # The guest halts for ever: only timers move the clock.
    seen = []
    with loaded(Machine(deterministic=True), "real/halt") as machine:

        def ring(number: int) -> None:
            seen.append((number, machine.vm.clock.now()))
            if number == 3:
                machine.stop()

        for number, seconds in ((3, 86_400), (1, 5), (2, 5), (4, 90_000)):
            machine.call_later(seconds * 10**9, partial(ring, number))
        assert machine.run(TIMEOUT).end.outcome is Outcome.STOPPED
    assert seen == [(1, 5 * 10**9), (2, 5 * 10**9), (3, 86_400 * 10**9)]


def test_a_device_that_fails_ends_the_run() -> None:
    with loaded(Machine(deterministic=True), "real/halt") as machine:
        machine.call_later(1, lambda: 1 // 0)
        end = machine.run(TIMEOUT).end
    assert (end.outcome, end.detail.split(":")[0]) == (Outcome.ERROR, "a device failed")


def test_a_trace_that_cannot_be_written_ends_the_run() -> None:
    def full(interrupt: object) -> None:
        raise OSError(28, "No space left on device")

    with Machine(deterministic=True, trace=full) as machine:
        machine.load(demonstration_guest(memory_size=machine.memory.size, vcpu_count=1))
        end = machine.run(TIMEOUT).end
    assert end.outcome is Outcome.ERROR
    assert "No space left" in end.detail


def test_the_calendar_is_the_same_each_time() -> None:
    with Machine(deterministic=True) as machine:
        assert machine.rtc._epoch == VIRTUAL_WALL_TIME


def test_a_vm_in_virtual_time_makes_the_machine_deterministic() -> None:
    with create_vm(clock=VirtualClock(7)) as vm, loaded(Machine(hypervisor=vm), "real/exit") as machine:
        assert machine.chip.check_capability(IrqChipCap.MP_STATE_GET_SET)
        assert machine.run(TIMEOUT).end.outcome is Outcome.EXIT
        assert vm.clock.now() > 7


@pytest.mark.parametrize("arguments", [{"deterministic": True}, {"trace": print}])
def test_a_vm_in_real_time_is_refused(arguments: dict[str, object]) -> None:
    with create_vm("unicorn") as vm, pytest.raises(InvalidArgument, match="lives in real time"):
        Machine(hypervisor=vm, **arguments)  # type: ignore[arg-type]


def test_kvm_is_refused_with_the_reason() -> None:
    for arguments in ({"hypervisor": "kvm"}, {"chip": "kvm_kernel"}):
        with pytest.raises(NothingSuitable, match="kvm: its guests run in real time, which never repeats"):
            Machine(deterministic=True, **arguments)  # type: ignore[arg-type]


def test_a_trace_without_virtual_time_is_a_mistake(capfd: pytest.CaptureFixture[str]) -> None:
    from irqchip_core.cli.main import main

    assert main(["run", "--trace", "x"]) == 2
    assert "--trace: it needs virtual time; add --deterministic" in capfd.readouterr().err


def test_a_trace_that_cannot_be_opened_is_a_mistake(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from irqchip_core.cli.main import main

    assert main(["run", "--deterministic", "--trace", str(tmp_path)]) == 2
    assert "--trace: cannot write it: Is a directory" in capfd.readouterr().err
