"""`Irqfds`: the events that the kernel turns into interrupts by itself (KVM_IRQFD), for a chip that is in the kernel.

Edge and level events are alike here; which may be connected to what is the chip's business.
"""

from __future__ import annotations

import errno
import threading

from attrs import frozen

from irqchip_core.errors import Closed, HypervisorError
from irqchip_core.eventfd import Event
from irqchip_core.events import IrqEdgeEvent, IrqEventSource, IrqLevelEvent
from irqchip_kvm.vm import KvmVm


@frozen(eq=False)
class Irqfd:
    """An event the kernel waits for. Its clone of the trigger keeps it connected when the device closes its own."""

    gsi: int
    trigger: Event
    source: IrqEventSource


class Irqfds:
    """The connections of one VM. Safe for use by threads."""

    def __init__(self, vm: KvmVm) -> None:
        self._vm = vm
        self._irqfds: list[Irqfd] = []
        self._lock = threading.Lock()

    def connect(self, gsi: int, event: IrqEdgeEvent | IrqLevelEvent, source: IrqEventSource) -> None:
        """Let the kernel wait for a clone of `event`; raises as `KvmVm.assign_irqfd` does."""
        trigger = event.get_trigger().clone()
        try:
            with self._lock:
                resample = event.get_resample() if isinstance(event, IrqLevelEvent) else None
                self._vm.assign_irqfd(gsi, trigger, resample)
                self._irqfds.append(Irqfd(gsi, trigger, source))
        except BaseException:
            trigger.close()
            raise

    def disconnect(self, gsi: int, trigger: Event) -> bool:
        """Undo one `connect` of this event, or of a clone of it, on `gsi`; False if there is none."""
        with self._lock:
            found = next((one for one in self._irqfds if one.gsi == gsi and one.trigger == trigger), None)
            if found is None:
                return False
            self._release(found)
            self._irqfds.remove(found)
        found.trigger.close()
        return True

    def connections(self) -> list[Irqfd]:
        """All that are connected now. Their triggers are closed when they are disconnected."""
        with self._lock:
            return list(self._irqfds)

    def close(self) -> None:
        """Disconnect all."""
        with self._lock:
            irqfds, self._irqfds = self._irqfds, []
        for irqfd in irqfds:
            self._release(irqfd)
            irqfd.trigger.close()

    def _release(self, irqfd: Irqfd) -> None:
        try:
            self._vm.deassign_irqfd(irqfd.gsi, irqfd.trigger)
        except Closed:
            pass  # the VM is, and its irqfds went with it
        except HypervisorError as error:
            if error.errno != errno.EIO:  # else the VM, with its irqfds, belongs to the process we were forked from
                raise
