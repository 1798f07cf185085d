"""`irqchip run`: the arguments, the machine, the terminal, the exit status."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TextIO

from irqchip_core.capabilities import PC_CONTROLLERS, IrqChipCap
from irqchip_core.cli.json_option import check_file, prints_text, text_of, write
from irqchip_core.errors import InvalidArgument
from irqchip_core.eventfd import Event
from irqchip_core.plugins.discovery import installed
from irqchip_core.table import terminal_width
from irqchip_vmm import report
from irqchip_vmm.ending import Outcome, RunResult
from irqchip_vmm.guest import NAME, demonstration_guest
from irqchip_vmm.loaders import load_file
from irqchip_vmm.machine import Machine
from irqchip_vmm.output import Output
from irqchip_vmm.trace import HEADING

STATUS_FAILED, STATUS_TIMEOUT, STATUS_INTERRUPTED = 1, 124, 130
READ_SIZE = 1024
MAX_BACKLOG = 4096
"""Bytes of input to hold for a guest that does not read."""
MAX_INPUT = 64 << 20
"""Bytes of input that a deterministic run takes."""
RETRY_NS = 50_000_000
REPORT_SECONDS = 1.0
"""How long a reader that has held up the run beyond its time may hold up the report."""

_OUTCOME_STATUS = {
    Outcome.RESET: 0,
    Outcome.SHUTDOWN: 0,
    Outcome.TIMEOUT: STATUS_TIMEOUT,
    Outcome.STOPPED: STATUS_INTERRUPTED,
}


def run(args: argparse.Namespace) -> int:
    """Run a guest as `args` say; returns the exit status."""
    try:
        return _run(args)
    except KeyboardInterrupt:
        print("\nirqchip: interrupted", file=sys.stderr)
        return STATUS_INTERRUPTED


def _run(args: argparse.Namespace) -> int:
    if args.guest is None and args.append:
        raise InvalidArgument("the built-in guest takes no command line", argument="--append", remedy="name a guest")
    if args.guest is None and args.controllers is not None:
        raise InvalidArgument(
            "the built-in guest uses all controllers of a PC", argument="--controllers", remedy="name a guest"
        )
    memory_size = args.memory << 20
    if args.guest is None:
        image = demonstration_guest(memory_size=memory_size, vcpu_count=args.vcpus)
    else:
        image = load_file(args.guest, memory_size=memory_size, command_line=args.append)
    if args.trace is not None and not args.deterministic:
        raise InvalidArgument("it needs virtual time", argument="--trace", remedy="add --deterministic")
    out, err = Output(sys.stdout), Output(sys.stderr)
    check_file(args)
    console = out if prints_text(args) else err
    with (
        _trace_to(args.trace) as trace,
        Event() as ended,
        Machine(
            hypervisor=args.hypervisor,
            chip=args.chip,
            memory_size=memory_size,
            vcpu_count=args.vcpus,
            controllers=PC_CONTROLLERS if args.controllers is None else args.controllers,
            require={installed().capabilities[name] for name in args.require},
            console=lambda data: console.write(data, until=ended),
            on_end=ended.signal,
            deterministic=args.deterministic,
            trace=trace,
        ) as machine,
    ):
        machine.load(image)
        for line in _choice(args, machine):
            err.print(line)
        if args.guest is not None:
            _Input(machine).start()
        result = machine.run(args.timeout)
        problems = _problems(args, machine, result)
        _show(args, machine, result, problems, out, err)
    return STATUS_FAILED if _unwritten(out, err) else _status(args, result, problems)


@contextmanager
def _trace_to(path: str | None) -> Iterator[Callable[[object], object] | None]:
    """What writes each line of a trace to the file at `path`; None without one."""
    if path is None:
        yield None
        return
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open(path, "w", encoding="ascii"))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InvalidArgument(f"cannot write it: {reason}", subject=path, argument="--trace") from None
        written = _TraceFile(path, file)
        written.write(HEADING)
        yield written.write
        written.close()


def _choice(args: argparse.Namespace, machine: Machine) -> Iterator[str]:
    """What is run on what, after the hypervisors that come before it: why each was not taken."""
    choice = machine.choice
    assert choice is not None  # the machine has made the VM
    for name, reason in choice.passed_over.items():
        yield f"irqchip: not on hypervisor {name}: {reason}"
    required = f" with {', '.join(args.require)}" if args.require else ""
    yield (
        f"irqchip: {args.guest or NAME} on chip {machine.chip.name} ({choice.backend_reason}{required}), "
        f"hypervisor {machine.vm.hypervisor} ({choice.hypervisor_reason}), vCPUs: {machine.vcpu_count}"
    )


def _problems(args: argparse.Namespace, machine: Machine, result: RunResult) -> list[str]:
    end = result.end
    problems = []
    if end.outcome not in (Outcome.EXIT, Outcome.RESET, Outcome.SHUTDOWN):
        problems.append(": ".join(part for part in (end.outcome.value.replace("_", " "), end.detail) if part))
    if args.guest is None:
        tsc_deadline = machine.chip.check_capability(IrqChipCap.TSC_DEADLINE_TIMER)
        return problems + report.demonstration_problems(result, machine.vcpu_count, tsc_deadline)
    problems += report.row_problems(result.report or ())
    if result.report_error is not None:
        problems.append(f"the guest's report is none: {result.report_error}")
    return problems


def _show(
    args: argparse.Namespace, machine: Machine, result: RunResult, problems: list[str], out: Output, err: Output
) -> None:
    assert machine.choice is not None
    data = {"backend": machine.choice.candidate.backend.name} | report.as_json(
        result,
        chip=machine.chip.name,
        hypervisor=machine.vm.hypervisor,
        vcpu_count=machine.vcpu_count,
        problems=problems,
    )
    if prints_text(args):
        write(args, data)
        lines = report.totals(result, machine.vcpu_count)
        text = f"\n{report.table(lines, machine.vcpu_count, terminal_width())}"
        if args.guest is None and not problems:
            text += "\nEvery interrupt was taken exactly as often as it was raised."
    else:
        text = text_of(data)
    patience = REPORT_SECONDS if result.end.outcome is Outcome.TIMEOUT else None
    if not out.print(text, timeout=patience) and not out.gone:
        err.print(f"irqchip: standard output has no reader, so this comes here:\n{text}", timeout=patience)
    if prints_text(args):
        for problem in problems:
            err.print(f"irqchip: {problem}", timeout=patience)


def _unwritten(out: Output, err: Output) -> bool:
    """Whether something could not be written, for another reason than that its reader went away."""
    if out.failure is not None:
        err.print(f"irqchip: cannot write: {out.failure.strerror}", timeout=REPORT_SECONDS)
    return out.failure is not None or err.failure is not None


def _status(args: argparse.Namespace, result: RunResult, problems: list[str]) -> int:
    outcome = result.end.outcome
    if outcome in (Outcome.TIMEOUT, Outcome.STOPPED):
        return _OUTCOME_STATUS[outcome]
    if args.guest is None:
        return STATUS_FAILED if problems else 0
    if outcome is Outcome.EXIT and result.end.status is not None:
        return result.end.status & 0xFF  # all that a process can give
    return _OUTCOME_STATUS.get(outcome, STATUS_FAILED)


class _TraceFile:
    """Lines for the reader of a trace. The guest runs on if they cannot be written; `close` says so."""

    def __init__(self, path: str, file: TextIO) -> None:
        self._path = path
        self._file = file
        self._failure: OSError | None = None

    def write(self, line: object) -> None:
        if self._failure is None:
            self._try(lambda: print(line, file=self._file))

    def _try(self, action: Callable[[], object]) -> None:
        try:
            action()
        except OSError as error:
            self._failure = error

    def close(self) -> None:
        """Raises OSError with the file's name, unless all was written or the reader went away."""
        if self._failure is None:
            self._try(self._file.flush)
        with suppress(OSError):  # what could not be written cannot be flushed
            self._file.close()
        if self._failure is not None and not isinstance(self._failure, BrokenPipeError):
            raise OSError(self._failure.errno, self._failure.strerror, self._path)


class _Input:
    """Hands standard input to COM1, no faster than the guest reads."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        try:
            self._fd = sys.stdin.fileno()
        except (AttributeError, OSError, ValueError):  # there is none
            self._fd = -1

    def start(self) -> None:
        if self._fd < 0:
            return
        if self._machine.virtual_clock is None:
            self._machine.watch(self._fd, self._read)
        elif not os.isatty(self._fd):
            self._machine.com1.receive(self._read_all())

    def _read_all(self) -> bytes:
        # Which byte the host has at which moment must not matter.
        data = bytearray()
        while some := self._read_some():
            data += some
            if len(data) > MAX_INPUT:
                raise InvalidArgument(
                    f"it has more than {MAX_INPUT >> 20} MiB", argument="standard input", remedy="give the guest less"
                )
        return bytes(data)

    def _read_some(self) -> bytes:
        try:
            return os.read(self._fd, READ_SIZE)
        except OSError:
            return b""

    def _read(self) -> None:
        data = self._read_some()
        if data:
            self._machine.com1.receive(data)
        if not data or self._machine.com1.backlog > MAX_BACKLOG:
            self._machine.unwatch(self._fd)
            if data:
                self._machine.call_later(RETRY_NS, self._retry)

    def _retry(self) -> None:
        if self._machine.com1.backlog > MAX_BACKLOG:
            self._machine.call_later(RETRY_NS, self._retry)
        else:
            self.start()
