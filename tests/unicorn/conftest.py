"""A VM for each test, and a look for threads and descriptors it leaves behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from irqchip_unicorn import UnicornVm


@pytest.fixture
def vm(no_leaks: None) -> Iterator[UnicornVm]:
    with UnicornVm() as vm:
        yield vm
