"""Calls of plugin code, each with a time limit.

The code runs on a thread of its own. If it does not come to an end in time, the thread is left behind, as Python
cannot stop it, and the caller goes on with an error. What this cannot help against is compiled code that never
lets other threads run.
"""

from __future__ import annotations

import contextvars
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from irqchip_core.errors import InvalidArgument, TimedOut

TIMEOUT_VARIABLE = "IRQCHIP_PLUGIN_TIMEOUT"
DEFAULT_SECONDS = 10.0
"""How long the import of a plugin, and each call of it, may take unless `TIMEOUT_VARIABLE` says otherwise."""
NOTICE_SECONDS = 2.0
"""After how long a notice in the log names the call that is waited for."""
NESTED_SHARE = 0.9
"""The share of a call's remaining time that a nested call of another plugin gets: so the error names the inner one."""

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_deadline: contextvars.ContextVar[float] = contextvars.ContextVar("deadline")


def time_limit() -> float:
    """Seconds that `TIMEOUT_VARIABLE` grants, or `DEFAULT_SECONDS`.

    Raises:
        InvalidArgument: `TIMEOUT_VARIABLE` is set, but not to a number of seconds above 0.
    """
    text = os.environ.get(TIMEOUT_VARIABLE, "")
    try:
        seconds = float(text) if text else DEFAULT_SECONDS
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= threading.TIMEOUT_MAX:
        raise InvalidArgument(
            f"{text!r} is not a time to wait", argument=TIMEOUT_VARIABLE, remedy="give seconds, more than 0"
        )
    return seconds


def run_with_timeout(
    seconds: float, what: str, function: Callable[[], _T], *, discard: Callable[[_T], object] = lambda result: None
) -> _T:
    """What `function` returns or raises.

    Args:
        seconds: How long to wait; less if the calling code runs in such a call and has less left.
        what: The call in words, for the notice and the error.
        function: The call. It must not need a module whose import is under way in the caller: each would wait for
            the other. It has the caller's context variables.
        discard: Takes a result that comes too late, on the thread that was left behind.

    Raises:
        TimedOut: `function` has not ended in time.
    """
    results: list[_T] = []
    errors: list[BaseException] = []
    abandoned = False
    lock = threading.Lock()
    now = time.monotonic()
    seconds = min(seconds, NESTED_SHARE * max(0.0, _deadline.get(now + threading.TIMEOUT_MAX) - now))
    context = contextvars.copy_context()
    context.run(_deadline.set, now + seconds)

    def work() -> None:
        try:
            result = context.run(function)
        except BaseException as error:  # for the caller to judge, SystemExit too
            errors.append(error)
            return
        with lock:
            if not abandoned:
                results.append(result)
                return
        discard(result)

    thread = threading.Thread(target=work, name=what, daemon=True)
    thread.start()
    try:
        thread.join(min(seconds, NOTICE_SECONDS))
        if thread.is_alive() and seconds > NOTICE_SECONDS:
            _log.warning("irqchip: still waiting for %s, up to %.3g seconds", what, seconds)
            thread.join(seconds - NOTICE_SECONDS)
    finally:  # Ctrl-C too
        with lock:
            abandoned = not results
    if errors:
        raise errors[0]
    if not results:
        raise TimedOut(
            f"{what} has not ended in {seconds:.3g} seconds",
            remedy=f"repair or uninstall it, or give it more time: {TIMEOUT_VARIABLE}",
        )
    return results[0]


def run_in_time(what: str, function: Callable[[], _T]) -> _T:
    """`run_with_timeout` with the `time_limit` of now."""
    return run_with_timeout(time_limit(), what, function)
