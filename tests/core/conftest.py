"""Kinds of events (eventfd, socket pair): the tests of events and of loops run with both."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(params=["eventfd", "socket pair"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Eventfds, or what stands in for them where there are none."""
    name: str = request.param
    if name == "socket pair":
        monkeypatch.delattr(os, "eventfd", raising=False)
    elif not hasattr(os, "eventfd"):
        pytest.skip("there are no eventfds on this system")
    return name
