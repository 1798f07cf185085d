"""Threads that take turns at each operation on a lock, in every order there is: for protocols between threads.

Real threads run the real code, one at a time; which one goes on at a lock is the explorer's choice.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

from attrs import define, field

TURN_SECONDS = 20.0
"""After which a thread hangs that should come to its next turn."""


@define(eq=False)
class _Actor:
    act: Callable[[], object]
    may_go: Callable[[], bool] = lambda: True
    go: threading.Semaphore = field(factory=lambda: threading.Semaphore(0))
    done: bool = False
    error: BaseException | None = None


class Turns:
    """One run. `choices` are the numbers of the threads that go on, by turn; the rest goes on with the first it can.

    Attributes:
        options: How many threads could go on, by turn.
    """

    def __init__(self, choices: list[int], switches: int) -> None:
        self._choices = choices
        self._switches = switches
        self._actors: list[_Actor] = []
        self._current: _Actor | None = None
        self._back = threading.Semaphore(0)
        self.options: list[int] = []

    def lock(self, *, inner: bool = False) -> TurnLock:
        """A lock. Threads do nothing that has turns while they hold an inner one: its release is no turn of its own."""
        return TurnLock(self, inner)

    def pause(self, may_go: Callable[[], bool] = lambda: True) -> None:
        """Another thread's turn may come here; this one's, once `may_go` is true. Without effect outside of `run`."""
        actor = self._current
        if actor is None:
            return
        actor.may_go = may_go
        self._back.release()
        assert actor.go.acquire(timeout=TURN_SECONDS)

    def left(self) -> int:
        """How many threads have not come to their ends."""
        return sum(not actor.done for actor in self._actors)

    def run(self, *acts: Callable[[], object]) -> None:
        """Let each act on a thread of its own. Raises what one of them raises, and if they wait for one another."""
        self._actors = [_Actor(act) for act in acts]
        threads = [threading.Thread(target=self._perform, args=(actor,), daemon=True) for actor in self._actors]
        for thread in threads:
            thread.start()
        while ready := [actor for actor in self._actors if not actor.done and actor.may_go()]:
            if self._current in ready:
                ready.remove(self._current)
                ready.insert(0, self._current)
                if self._switches == 0:
                    ready = ready[:1]
            turn = len(self.options)
            self.options.append(len(ready))
            choice = self._choices[turn] if turn < len(self._choices) else 0
            if choice and self._current in ready:
                self._switches -= 1
            self._current = ready[choice]
            self._current.go.release()
            assert self._back.acquire(timeout=TURN_SECONDS)
        self._current = None
        for actor in self._actors:
            if actor.error is not None:
                raise actor.error
        assert not self.left(), "the threads wait for one another"
        for thread in threads:
            thread.join()

    def _perform(self, actor: _Actor) -> None:
        assert actor.go.acquire(timeout=TURN_SECONDS)
        try:
            actor.act()
        except BaseException as error:
            actor.error = error
        actor.done = True
        self._back.release()


class TurnLock:
    """A lock at which turns change. `waits` counts the calls of `acquire` that may wait; a timeout is over at once."""

    def __init__(self, turns: Turns, inner: bool) -> None:
        self._turns = turns
        self._inner = inner
        self.held = False
        self.waits = 0
        self.releases = 0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        blocking = blocking and timeout < 0
        self.waits += blocking
        self._turns.pause((lambda: not self.held) if blocking else (lambda: True))
        if self.held:
            assert not blocking
            return False
        self.held = True
        return True

    def release(self) -> None:
        if not self._inner:
            self._turns.pause()
        self.held = False
        self.releases += 1
        if not self._inner:
            self._turns.pause()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *exc_info: object) -> None:
        self.release()


def every_order(switches: int) -> Iterator[Turns]:
    """A `Turns` for each order in which threads are interrupted up to `switches` times; use one before the next."""
    choices: list[int] = []
    while True:
        turns = Turns(choices, switches)
        yield turns
        choices = [*choices, *[0] * (len(turns.options) - len(choices))]
        while choices and choices[-1] + 1 >= turns.options[len(choices) - 1]:
            choices.pop()
        if not choices:
            return
        choices[-1] += 1


def patch(target: Any, **attributes: Any) -> None:
    """Give an object other attributes, whatever their types."""
    for name, value in attributes.items():
        setattr(target, name, value)
