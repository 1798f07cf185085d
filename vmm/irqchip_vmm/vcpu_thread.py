"""The threads that run vCPUs: in real time one for each vCPU, in virtual time one for all.

In virtual time everything happens on that thread, in an order that depends on the guest alone: vCPUs take turns from
the first to the last, each to its next exit; after each turn the chip's events and the devices are served. What a guest
executes moves the clock on (see `irqchip_core.hookspecs.Hypervisor.create_vm_in_virtual_time`), an exit costs a fixed
time, and when all vCPUs sleep the clock jumps to its next alarm.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing

from typing_extensions import override

from irqchip_core.chip import MPState
from irqchip_core.clock import VirtualClock
from irqchip_core.errors import IrqChipError
from irqchip_core.irq_loop import SteppedIrqLoop
from irqchip_core.vcpu import VcpuX86_64
from irqchip_core.x86.chip import IrqChipX86_64
from irqchip_vmm.device_loop import DeviceLoop
from irqchip_vmm.ending import Ending
from irqchip_vmm.vcpu_runner import VcpuRunner

EXIT_NS = 1_000
"""How long an exit takes in virtual time: about as long as an access to a device on an ISA bus."""


KICK_SECONDS = 0.2
"""How long a kicked vCPU may take before it is kicked again."""
JOIN_SECONDS = 10.0
"""How long all vCPUs may take to end before `join` gives up on them."""


class VcpuThread(threading.Thread):
    """Makes vCPUs, waits for all others at `barrier`, runs them to the end, closes them.

    Args:
        runners: Its vCPUs.
        barrier: Where all vCPUs and the host meet before any guest code runs.
        ending: Where the end of the run is looked up.
    """

    def __init__(self, runners: Sequence[VcpuRunner], barrier: threading.Barrier, ending: Ending) -> None:
        super().__init__(name=", ".join(f"vCPU {runner.vcpu_id}" for runner in runners), daemon=True)
        self._runners = runners
        self._running = runners[0]
        self._barrier = barrier
        self._ending = ending

    def kick(self) -> None:
        """Let the vCPUs leave guest code soon. From any thread."""
        for runner in self._runners:
            runner.kick()

    @override
    def run(self) -> None:
        try:
            with ExitStack() as made:
                vcpus = []
                for runner in self._runners:
                    self._running = runner
                    vcpus.append(made.enter_context(runner.made()))
                self._barrier.wait()
                self._run(vcpus)
        except threading.BrokenBarrierError:
            pass  # another part failed while starting, and has said so
        except Exception as error:
            self._running.failed(error)
            self._barrier.abort()

    def _run(self, vcpus: Sequence[VcpuX86_64]) -> None:
        (vcpu,) = vcpus
        while self._ending.end is None:
            self._running.step(vcpu)


class VirtualTimeThread(VcpuThread):
    """All vCPUs, the chip's events and the devices, in virtual time.

    Args:
        chip: The chip of the vCPUs, whose MP states it must tell.
        devices: The devices' loop, which has no other thread.
        clock: The time of all of them.
    """

    def __init__(
        self,
        runners: Sequence[VcpuRunner],
        barrier: threading.Barrier,
        ending: Ending,
        *,
        chip: IrqChipX86_64,
        devices: DeviceLoop,
        clock: VirtualClock,
    ) -> None:
        super().__init__(runners, barrier, ending)
        self.name = "virtual time"
        self._chip = chip
        self._devices = devices
        self._clock = clock

    @override
    def kick(self) -> None:
        super().kick()
        self._devices.wake()

    @override
    def _run(self, vcpus: Sequence[VcpuX86_64]) -> None:
        with closing(SteppedIrqLoop(self._chip)) as irq_loop:
            while self._ending.end is None:
                if not self._take_turns(vcpus, irq_loop):
                    self._sleep(irq_loop)
            self._serve(irq_loop)  # a last look: a guest's last EOI is counted although the guest has ended

    def _take_turns(self, vcpus: Sequence[VcpuX86_64], irq_loop: SteppedIrqLoop) -> bool:
        """One turn for each vCPU that can run; False if none can."""
        some = False
        for runner, vcpu in zip(self._runners, vcpus, strict=True):
            if self._ending.end is not None:
                break
            self._running = runner
            self._chip.inject_interrupts(vcpu)  # wakes it up, if there is something to inject
            if self._chip.get_mp_state(vcpu.id) is MPState.RUNNABLE:
                some = True
                runner.step(vcpu)
                self._clock.advance(EXIT_NS)
                self._serve(irq_loop)
        return some

    def _sleep(self, irq_loop: SteppedIrqLoop) -> None:
        alarm = self._clock.next_alarm()
        if alarm is None:
            self._devices.step(wait=True)  # only the host can wake the guest
        else:
            self._clock.advance(max(0, alarm - self._clock.now()))
        self._serve(irq_loop)

    def _serve(self, irq_loop: SteppedIrqLoop) -> None:
        while irq_loop.serve() + self._devices.step():
            pass


def join(threads: Sequence[VcpuThread], kick: Callable[[], object]) -> None:
    """Wait for the vCPUs to end; one that was busy when it was kicked is kicked again.

    Raises:
        IrqChipError: They do not.
    """
    deadline = time.monotonic() + JOIN_SECONDS
    waiting = [thread for thread in threads if thread.ident is not None]
    while waiting:
        waiting[0].join(KICK_SECONDS)
        waiting = [thread for thread in waiting if thread.is_alive()]
        if not waiting:
            break
        if time.monotonic() > deadline:
            names = ", ".join(thread.name for thread in waiting)
            raise IrqChipError(
                f"{names} did not end within {JOIN_SECONDS:g} seconds",
                subject="Machine",
                remedy="see that the console and devices return; on_end says when",
            )
        kick()
