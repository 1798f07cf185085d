"""One module of the bindings calls the kernel: ioctls, mappings and signals are in one place, to be checked there."""

from __future__ import annotations

import ast
from pathlib import Path

import irqchip_kvm


def imported_modules(path: Path) -> set[str]:
    """First parts of the names that a module imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name.partition(".")[0] for name in names}


def test_one_module_calls_the_kernel() -> None:
    assert irqchip_kvm.__file__
    callers = {
        path.name
        for path in Path(irqchip_kvm.__file__).parent.glob("**/*.py")
        if imported_modules(path) & {"ctypes", "fcntl", "mmap", "_ctypes", "cffi"}
    }
    assert callers == {"ioctl.py"}
