"""`irqchip` as on a system that is not Linux: what only Linux or only Unix has is hidden, then the command runs.

``python -m tests.vmm.elsewhere SYSTEM ARGUMENT...`` where SYSTEM is a name of `SYSTEMS`. Without arguments all modules
of irqchip but those of irqchip-kvm are imported.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import os
import pkgutil
import platform
import select
import signal
import socket
import sys
from collections.abc import Sequence
from types import ModuleType

UNIX_MODULES = {"fcntl", "grp", "pwd", "readline", "resource", "syslog", "termios", "tty"}
LINUX_ONLY: dict[ModuleType, list[str]] = {
    os: ["eventfd", "eventfd_read", "eventfd_write", "memfd_create", "pidfd_open", "sched_setaffinity", "splice"],
    select: ["epoll"],
    signal: ["pidfd_send_signal"],
}
UNIX_ONLY: dict[ModuleType, list[str]] = {
    os: ["fork"],
    select: ["poll"],
    signal: ["pthread_kill", "pthread_sigmask", "setitimer"],
    socket: ["AF_UNIX", "recv_fds", "send_fds"],
}
SYSTEMS = {
    "Linux": ({}, set()),
    "Darwin": (LINUX_ONLY, set()),
    "neither": ({module: LINUX_ONLY.get(module, []) + UNIX_ONLY[module] for module in UNIX_ONLY}, UNIX_MODULES),
}
"""By system: functions and modules it has not."""
PACKAGES = ["irqchip_core", "irqchip_unicorn", "irqchip_userspace", "irqchip_vmm"]


def tcp_socket_pair() -> tuple[socket.socket, socket.socket]:
    """What Python makes of `socket.socketpair` on Windows."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        return server.accept()[0], client


class Hider(importlib.abc.MetaPathFinder):
    """Finds some modules missing."""

    def __init__(self, hidden: set[str]) -> None:
        self._hidden = hidden

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name in self._hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


def hide(system: str) -> None:
    functions, modules = SYSTEMS[system]
    for module, names in functions.items():
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    for name in modules:
        sys.modules.pop(name, None)
    sys.meta_path.insert(0, Hider(modules))
    if modules:
        socket.socketpair = tcp_socket_pair  # type: ignore[assignment]
    if system != "Linux":
        platform.system = lambda: system


def import_all() -> None:
    for package in PACKAGES:
        path = importlib.import_module(package).__path__
        for module in pkgutil.walk_packages(path, f"{package}."):
            if not module.name.endswith(".__main__"):
                importlib.import_module(module.name)
                print(module.name)


def main() -> int:
    from irqchip_core.cli.main import main as irqchip

    if sys.argv[2:]:
        return irqchip(sys.argv[2:])
    import_all()
    return 0


if __name__ == "__main__":
    hide(sys.argv[1])
    sys.exit(main())
