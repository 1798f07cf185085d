"""One engine at a time, in the order of requests: what makes guest instructions atomic between vCPUs."""

from __future__ import annotations

import threading
from collections import deque
from typing import Self


class Turns:
    """A lock that is handed over first come, first served, so that no vCPU starves. Not reentrant."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # of the two below
        self._taken = False
        self._waiting: deque[threading.Lock] = deque()

    def __enter__(self) -> Self:
        with self._lock:
            if not self._taken:
                self._taken = True
                return self
            gate = threading.Lock()
            gate.acquire()
            self._waiting.append(gate)
        try:
            gate.acquire()
        except BaseException:  # a signal handler raised; the thread that passed the turn on must not wait for this one
            with self._lock:
                ours = gate not in self._waiting
                if not ours:
                    self._waiting.remove(gate)
            if ours:
                self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._taken = False
