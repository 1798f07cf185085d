"""The thread that runs all vCPUs in virtual time.

Everything happens on that thread, in an order that depends on the guest alone: vCPUs take turns from the first to the
last, each to its next exit; after each turn the chip's events and the devices are served. What a guest executes moves
the clock on (see `irqchip_core.hookspecs.Hypervisor.create_vm_in_virtual_time`), an exit costs a fixed time, and when
all vCPUs sleep the clock jumps to its next alarm.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, closing

from typing_extensions import override

from irqchip_core.chip import MPState
from irqchip_core.clock import VirtualClock
from irqchip_core.irq_loop import SteppedIrqLoop
from irqchip_core.vcpu_loop import VcpuLoop
from irqchip_core.x86.chip import IrqChipX86_64
from irqchip_vmm import vcpu_end
from irqchip_vmm.device_loop import DeviceLoop
from irqchip_vmm.ending import Ending

EXIT_NS = 1_000
"""How long an exit takes in virtual time: about as long as an access to a device on an ISA bus."""


class VirtualTimeThread(threading.Thread):
    """All vCPUs, the chip's events and the devices, in virtual time.

    Args:
        make: For each vCPU, from 0: makes its loop (`VcpuLoop.made`) on this thread.
        barrier: Where the thread and the host meet before any guest code runs.
        ending: Where the end of the run is noted, by the guest's devices, the host, or this thread.
        chip: The chip of the vCPUs, which has MP states.
        devices: The devices' loop, which has no other thread.
        clock: The time of all of them.

    Attributes:
        loops: The loops of the vCPUs that are made.
    """

    def __init__(
        self,
        make: Sequence[Callable[[], AbstractContextManager[VcpuLoop]]],
        barrier: threading.Barrier,
        ending: Ending,
        *,
        chip: IrqChipX86_64,
        devices: DeviceLoop,
        clock: VirtualClock,
    ) -> None:
        super().__init__(name="virtual time", daemon=True)
        self.loops: list[VcpuLoop] = []
        self._make = make
        self._barrier = barrier
        self._ending = ending
        self._chip = chip
        self._devices = devices
        self._clock = clock
        self._vcpu_id = 0  # the vCPU that is made or runs

    def stop(self) -> None:
        """Let the run end soon; `ending` says that it has ended. From any thread."""
        for loop in self.loops:
            loop.kick()
        self._devices.wake()

    @override
    def run(self) -> None:
        with ExitStack() as stack:
            try:
                for self._vcpu_id, make in enumerate(self._make):  # noqa: B020
                    self.loops.append(stack.enter_context(make()))
                self._barrier.wait()
                self._run()
            except threading.BrokenBarrierError:
                return  # another part failed while starting, and has said so
            except Exception as error:
                loop = self.loops[self._vcpu_id] if self._vcpu_id < len(self.loops) else None
                vcpu_end.finish(self._ending, self._vcpu_id, loop, error)
                self._barrier.abort()

    def _run(self) -> None:
        with closing(SteppedIrqLoop(self._chip)) as irq_loop:
            while self._ending.end is None:
                if not self._take_turns(irq_loop):
                    self._sleep(irq_loop)
            self._serve(irq_loop)  # a last look: a guest's last EOI is counted although the guest has ended

    def _take_turns(self, irq_loop: SteppedIrqLoop) -> bool:
        """One turn for each vCPU that can run; False if none can."""
        some = False
        for self._vcpu_id, loop in enumerate(self.loops):  # noqa: B020
            if self._ending.end is not None:
                break
            self._chip.inject_interrupts(loop.vcpu)  # wakes it up, if there is something to inject
            if self._chip.get_mp_state(loop.vcpu.id) is MPState.RUNNABLE:
                some = True
                if (vm_exit := loop.step()) is not None:
                    vcpu_end.finish(self._ending, self._vcpu_id, loop, vm_exit)
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
