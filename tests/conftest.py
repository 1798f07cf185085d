"""What all tests share: the machine's abilities as markers, and a look for leaks.

A test marked with one of `NEEDS` is skipped where this machine lacks it, with the reason and the remedy. Names in
the environment variable IRQCHIP_REQUIRE (comma-separated) turn such a skip into a failure.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.nested import kernel


def _no_kvm() -> str | None:
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"/dev/kvm: {error.strerror}; load kvm_intel or kvm_amd, and be in group kvm"
    return None


def _missing(program: str, package: str) -> Callable[[], str | None]:
    return lambda: None if shutil.which(program) else f"{program} is not installed; apt-get install {package}"


NEEDS: dict[str, Callable[[], str | None]] = {
    "kvm": _no_kvm,
    "qemu": _missing("qemu-system-x86_64", "qemu-system-x86"),
    "linux": kernel.missing,
    "binutils": _missing("as", "binutils"),
    "gcc": _missing("gcc", "gcc libc6-dev linux-libc-dev"),
}


def pytest_configure(config: pytest.Config) -> None:
    for name in NEEDS:
        config.addinivalue_line("markers", f"{name}: needs {name}; skipped, with the reason, where it is missing")


def pytest_runtest_setup(item: pytest.Item) -> None:
    required = os.environ.get("IRQCHIP_REQUIRE", "").replace(",", " ").split()
    for name, missing in NEEDS.items():
        if item.get_closest_marker(name) and (reason := missing()):
            if name in required:
                pytest.fail(f"IRQCHIP_REQUIRE names {name}, but {reason}", pytrace=False)
            pytest.skip(reason)


def open_descriptors() -> set[tuple[str, str]]:
    """Number and target of every open descriptor of this process."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add((name, os.readlink(f"/proc/self/fd/{name}")))
        except OSError:
            continue  # the one listdir() itself had open
    return found


@pytest.fixture
def no_leaks() -> Iterator[None]:
    """Fail if the test leaves a thread or a descriptor behind."""
    threads, descriptors = set(threading.enumerate()), open_descriptors()
    yield
    left = [thread for thread in threading.enumerate() if thread not in threads]
    assert not left, f"threads left behind: {left}"
    leaked = open_descriptors() - descriptors
    assert not leaked, f"descriptors left behind: {leaked}"
