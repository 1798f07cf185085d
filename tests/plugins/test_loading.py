"""Code that may not come to an end."""

from __future__ import annotations

import logging
import threading

import pytest

from irqchip_core.errors import InvalidArgument, PluginError
from irqchip_core.plugins import loading
from irqchip_core.plugins.loading import DEFAULT_SECONDS, TIMEOUT_VARIABLE, run_with_timeout, time_limit

PATIENCE = 30.0


def test_what_ends_gives_its_result_or_its_error() -> None:
    assert run_with_timeout(PATIENCE, "this", lambda: 5) == 5
    assert run_with_timeout(PATIENCE, "this", lambda: None) is None
    with pytest.raises(ZeroDivisionError):
        run_with_timeout(PATIENCE, "this", lambda: 1 / 0)
    with pytest.raises(SystemExit):
        run_with_timeout(PATIENCE, "this", lambda: exit(3))


def test_what_does_not_end_is_left_behind_and_named() -> None:
    go_on = threading.Event()
    with pytest.raises(PluginError, match=r"^this has not ended in 0\.01 seconds; .* IRQCHIP_PLUGIN_TIMEOUT$"):
        run_with_timeout(0.01, "this", go_on.wait)
    (left,) = [thread for thread in threading.enumerate() if thread.name == "this"]
    assert left.daemon
    go_on.set()
    left.join(PATIENCE)
    assert not left.is_alive()


def test_what_takes_long_is_named_before_it_is_given_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    noticed = threading.Event()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            noticed.set()

    listener = Listener()
    logging.getLogger(loading.__name__).addHandler(listener)
    try:
        monkeypatch.setattr(loading, "NOTICE_SECONDS", 0.01)
        assert run_with_timeout(PATIENCE, "this", lambda: noticed.wait(PATIENCE))
    finally:
        logging.getLogger(loading.__name__).removeHandler(listener)
    assert caplog.messages == ["irqchip: still waiting for this, up to 30 seconds"]


def test_the_user_grants_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TIMEOUT_VARIABLE, raising=False)
    assert time_limit() == DEFAULT_SECONDS
    monkeypatch.setenv(TIMEOUT_VARIABLE, "2.5")
    assert time_limit() == 2.5
    for text in ("soon", "0", "-1", "nan", "inf", "1e300"):
        monkeypatch.setenv(TIMEOUT_VARIABLE, text)
        with pytest.raises(InvalidArgument, match=r"IRQCHIP_PLUGIN_TIMEOUT: .* is not a time to wait"):
            time_limit()
