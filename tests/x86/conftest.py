"""The oracles, one of each for a test session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.oracles.qemu import Qemu


@pytest.fixture(scope="session")
def qemu() -> Iterator[Qemu]:
    with Qemu() as machine:
        yield machine
