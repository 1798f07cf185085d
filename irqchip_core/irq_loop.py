"""The irq loop: waits on a chip's tokens and lets the chip serve them.

`IrqLoop` does it on a thread, `AsyncIrqLoop` in an asyncio event loop, `SteppedIrqLoop` at each call of `step`. All
follow the chip: an event that is registered later is waited on, one that is unregistered is let go. A chip without
tokens (all in the kernel) is waited on for free.
"""

from __future__ import annotations

import asyncio
import logging
import selectors
import threading
from collections.abc import Callable, Iterable
from typing import Self

from irqchip_core.chip import IrqChip
from irqchip_core.errors import IrqChipError
from irqchip_core.eventfd import Event
from irqchip_core.events import IrqEventIndex, IrqEventToken
from irqchip_core.hookspecs import hookimpl

_log = logging.getLogger(__name__)

RETRY_SECONDS = 0.1
"""After how long a loop calls `irq_event_tokens` again when it failed (no descriptor was left, say)."""


class _Sources:
    """What a loop waits on: the chip's tokens, its delayed token, and the news that tokens changed."""

    def __init__(self, chip: IrqChip) -> None:
        self.chip = chip
        self.changed = Event()
        self._lock = threading.Lock()  # of `changed`: its closed number may become another file, not to be signaled
        self.delayed = chip.irq_delayed_event_token()
        self.tokens: dict[IrqEventIndex, IrqEventToken] = {}
        self.handled = 0
        """How many signals were served."""
        self.failed = 0
        """How many of them made the chip raise."""
        self.stale = False
        """`irq_event_tokens` failed: call it again in `RETRY_SECONDS`."""
        self.stopping = False
        chip.observers.add(self)
        self.changed.signal()

    @hookimpl
    def irqchip_event_registered(self, index: IrqEventIndex | None) -> None:
        if index is not None:
            self.wake()

    @hookimpl
    def irqchip_event_unregistered(self) -> None:
        self.wake()

    def wake(self) -> None:
        """Let the loop look at what has changed. Harmless once it has ended."""
        with self._lock:
            if not self.changed.closed:
                self.changed.signal()

    def refresh(self) -> tuple[list[IrqEventToken], list[IrqEventToken]]:
        """Take note of the chip's tokens: which are new, and which are gone (to be closed by the caller)."""
        self.changed.reset()
        try:
            tokens = self.chip.irq_event_tokens()
        except Exception:
            self.stale = True
            self.failed += 1
            _log.exception("%s: irq_event_tokens failed", self.chip.name)
            return [], []
        self.stale = False
        added, current = [], set()
        for token in tokens:
            current.add(token.index)
            if token.index in self.tokens:
                token.close()
            else:
                self.tokens[token.index] = token
                added.append(token)
        gone = [self.tokens.pop(index) for index in self.tokens.keys() - current]
        return added, gone

    def serve(self, token: IrqEventToken) -> None:
        """Let the chip serve a readable token. An error is logged, and its signal is used up."""
        try:
            self.chip.service_irq_event(token.index)
        except Exception:
            self.failed += 1
            _log.exception("%s: cannot serve %s (index %d)", self.chip.name, token.source.device_name, token.index)
            token.event.reset()  # or it would stay readable and keep the loop spinning
        self.handled += 1

    def serve_delayed(self) -> None:
        try:
            self.chip.process_delayed_irq_events()
        except Exception:
            self.failed += 1
            _log.exception("%s: cannot serve delayed events", self.chip.name)
            if self.delayed is not None:
                self.delayed.reset()
        self.handled += 1

    def close(self) -> None:
        self.chip.observers.remove(self)
        for token in self.tokens.values():
            token.close()
        self.tokens.clear()
        if self.delayed is not None:
            self.delayed.close()
        with self._lock:
            self.changed.close()


def _watch(sources: _Sources, selector: selectors.BaseSelector) -> None:
    selector.register(sources.changed, selectors.EVENT_READ)
    if sources.delayed is not None:
        selector.register(sources.delayed, selectors.EVENT_READ)


def _index(ready: tuple[selectors.SelectorKey, int]) -> int:
    token = ready[0].data
    return -1 if token is None else token.index


def _round(sources: _Sources, selector: selectors.BaseSelector, timeout: float | None) -> int:
    """Wait once and serve what is readable, by index; returns how many sources were."""
    ready = selector.select(timeout)
    changed = sources.stale and not ready
    if len(ready) > 1:
        ready.sort(key=_index)
    for key, _ in ready:
        if key.data is not None:
            sources.serve(key.data)
        elif key.fileobj is sources.delayed:
            sources.serve_delayed()
        else:
            changed = True
    if changed:
        added, gone = sources.refresh()
        for token in gone:
            selector.unregister(token.event)
            token.close()
        for token in added:
            selector.register(token.event, selectors.EVENT_READ, token)
    return len(ready)


class IrqLoop:
    """A thread that serves a chip's events.

    Args:
        chip: The chip; it must outlive the loop.

    Use it as a context manager, or call `start` and `stop`.
    """

    def __init__(self, chip: IrqChip) -> None:
        self._chip = chip
        self._sources: _Sources | None = None
        self._thread: threading.Thread | None = None
        self._flushes: list[threading.Event] = []
        self._lock = threading.Lock()

    @property
    def handled(self) -> int:
        """How many signals were served since `start`."""
        return self._sources.handled if self._sources else 0

    @property
    def failed(self) -> int:
        """How many of them made the chip raise; each was logged."""
        return self._sources.failed if self._sources else 0

    def start(self) -> None:
        """Start the thread. Raises `IrqChipError` if it runs already."""
        if self._thread is not None:
            raise IrqChipError("the irq loop runs already", subject=self._chip.name, remedy="stop it first")
        self._sources = _Sources(self._chip)
        self._thread = threading.Thread(target=self._run, args=(self._sources,), name="irq loop", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread after what it is serving. Harmless if it does not run."""
        thread, self._thread = self._thread, None
        if thread is None or self._sources is None:
            return
        self._sources.stopping = True
        self._sources.wake()
        if thread is not threading.current_thread():
            thread.join()

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all that was signalled before this call is served, consequences included.

        Args:
            timeout: Seconds to wait at most.

        Returns:
            False if the time ran out, or the loop does not run.
        """
        sources = self._sources
        if self._thread is None or sources is None:
            return False
        done = threading.Event()
        with self._lock:
            self._flushes.append(done)
        sources.wake()
        return done.wait(timeout) and not sources.stopping

    def _run(self, sources: _Sources) -> None:
        try:
            self._serve(sources)
        finally:
            sources.close()
            if self._sources is sources:
                with self._lock:
                    flushes, self._flushes = self._flushes, []
                for done in flushes:  # flush() says False to these
                    done.set()

    def _serve(self, sources: _Sources) -> None:
        with selectors.DefaultSelector() as selector:
            _watch(sources, selector)
            while not sources.stopping:
                with self._lock:
                    flushes = list(self._flushes)
                quiet = bool(flushes) and not self._chip.events_delayed  # else the delayed token will be readable
                timeout = 0.0 if quiet else RETRY_SECONDS if sources.stale else None
                if _round(sources, selector, timeout) or not quiet:
                    continue
                with self._lock:  # a round without work: all that was signalled before them is served
                    self._flushes = [done for done in self._flushes if done not in flushes]
                for done in flushes:
                    done.set()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()


class SteppedIrqLoop:
    """Serves a chip's events on the thread and at the moments of the caller's choice: for a VMM in virtual time.

    Args:
        chip: The chip; it must outlive the loop.
    """

    def __init__(self, chip: IrqChip) -> None:
        self._sources = _Sources(chip)
        self._selector = selectors.DefaultSelector()
        _watch(self._sources, self._selector)

    def serve(self) -> int:
        """Serve all that is signalled now, consequences included, without waiting; returns how many signals.

        Those that are there at once are served in the order of their indices.
        """
        before = self._sources.handled
        while _round(self._sources, self._selector, 0):
            pass
        return self._sources.handled - before

    def close(self) -> None:
        """Let go of the chip. Closing twice is harmless."""
        if not self._sources.changed.closed:
            self._selector.close()
            self._sources.close()


class AsyncIrqLoop:
    """Serves a chip's events in the running asyncio event loop; an asynchronous context manager.

    The event loop must have `add_reader`; on Windows that is `asyncio.SelectorEventLoop`.

    Args:
        chip: The chip; it must outlive the loop.
    """

    def __init__(self, chip: IrqChip) -> None:
        self._chip = chip
        self._sources: _Sources | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def handled(self) -> int:
        """How many signals were served since the loop was entered."""
        return self._sources.handled if self._sources else 0

    def _watch(self, event: Event, serve: Callable[..., None], *args: object) -> None:
        assert self._loop is not None
        self._loop.add_reader(event.fileno(), serve, *args)

    def _unwatch(self, events: Iterable[Event]) -> None:
        assert self._loop is not None
        for event in events:
            self._loop.remove_reader(event.fileno())

    def _refresh(self) -> None:
        sources = self._sources
        assert sources is not None
        assert self._loop is not None
        if sources.changed.closed:  # a retry that came too late
            return
        added, gone = sources.refresh()
        for token in gone:
            self._unwatch([token.event])
            token.close()
        for token in added:
            self._watch(token.event, sources.serve, token)
        if sources.stale:
            self._loop.call_later(RETRY_SECONDS, self._refresh)

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._sources = _Sources(self._chip)
        self._watch(self._sources.changed, self._refresh)
        if self._sources.delayed is not None:
            self._watch(self._sources.delayed, self._sources.serve_delayed)
        self._refresh()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        sources = self._sources
        assert sources is not None
        self._unwatch([sources.changed, *(token.event for token in sources.tokens.values())])
        if sources.delayed is not None:
            self._unwatch([sources.delayed])
        sources.close()
