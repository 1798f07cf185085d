"""`RunLock`: which thread has a vCPU, the one that executes guest code or one that reads and sets its state.

KVM serves one request at a time for each vCPU, so a request beside KVM_RUN would wait until the guest exits by itself.

    the vCPU's thread                          another thread
    ─────────────────                          ──────────────
    take owner
    KVM_RUN                                    wanted; take queue; owner is taken: kick
       │ ◄──────────── kick ───────────────────┘
    release owner ──────────────────────────►  take owner
    wanted: wait for queue                     requests
       ┌──────────────────────────────────────  release owner, queue
    take owner
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class RunLock:
    """The lock of one vCPU.

    Attributes:
        owner: Held by the thread that has the vCPU.
        wanted: Not empty while others wait for it or have it. A lock of Python's is not fair: without this the vCPU's
            thread would be in KVM_RUN again before they wake up. A list, as append and pop are atomic.
    """

    __slots__ = ("_queue", "owner", "wanted")

    def __init__(self) -> None:
        self.owner = threading.Lock()
        self.wanted: list[None] = []
        self._queue = threading.Lock()  # before `owner`; KVM_RUN does not hold it

    def take_in_turn(self) -> bool:
        """Take `owner` after the threads that want it; False if another thread is in KVM_RUN."""
        with self._queue:
            return self.owner.acquire(False)

    @contextmanager
    def borrowed(self, kick: Callable[[], object], timeout: float) -> Iterator[bool]:
        """Have the vCPU meanwhile; gives False if that took longer than `timeout` seconds twice. Not to be nested.

        Args:
            kick: Gets it out of KVM_RUN.
            timeout: For the threads that came first, and then for KVM_RUN.
        """
        self.wanted.append(None)
        try:
            if not self._queue.acquire(timeout=timeout):
                yield False
                return
            try:
                if not self.owner.acquire(False):
                    kick()
                    if not self.owner.acquire(timeout=timeout):
                        yield False
                        return
                try:
                    yield True
                finally:
                    self.owner.release()
            finally:
                self._queue.release()
        finally:
            self.wanted.pop()
