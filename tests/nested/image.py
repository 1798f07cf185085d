"""The initramfs: an interpreter, its packages, this repository and KVM's modules, in a cpio archive.

What runs here runs inside in the same way, since each file lies at the path that it has here, and `sys.path` and the
distributions' metadata are the same. There is no shell and no package of the system.
"""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions, entry_points
from pathlib import Path

from tests.nested.kernel import Kernel

ROOT = Path(__file__).parents[2]
"""Of this repository."""
SOURCES = (
    "pyproject.toml",
    "README.md",
    "docs",
    "irqchip_core",
    "pytest_irqchip.py",
    "hypervisors",
    "plugins",
    "vmm",
    "tests",
)
DISTRIBUTIONS = ("pytest", "pytest-timeout", "hypothesis")
"""What is taken beside the distributions whose name begins with `irqchip-`; each with all that it requires."""
LEFT_OUT = (
    *("__pycache__", "config-", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "test", "tkinter", "turtledemo"),
    *("site-packages", "dist-packages"),
)
"""Beginnings of the names of the standard library's folders that no test imports."""
INIT = Path(__file__).parent / "init.py"


def standard_library() -> Iterator[Path]:
    """The standard library's files."""
    for folder, folders, names in os.walk(os.path.realpath(sysconfig.get_path("stdlib"))):
        folders[:] = [name for name in folders if not name.startswith(LEFT_OUT)]
        for name in names:
            if not name.startswith(("_test", "_tkinter", "_ctypes_test")) and not name.endswith((".a", ".o")):
                yield from with_compiled(Path(folder, name))


def with_compiled(path: Path) -> Iterator[Path]:
    """`path`, and what this interpreter and its pytest have compiled it to, which saves much time inside."""
    yield path
    if path.suffix == ".py":
        for kind in ("", "-pytest-*"):
            yield from (path.parent / "__pycache__").glob(f"{path.stem}.{sys.implementation.cache_tag}{kind}.pyc")


def required(names: tuple[str, ...]) -> dict[str, Distribution]:
    """These installed distributions and all that they require, optional parts left out."""
    found: dict[str, Distribution] = {}
    wanted = list(names)
    while wanted:
        name = re.sub(r"[-_.]+", "-", wanted.pop()).lower()
        if name in found:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            continue  # for another system or interpreter
        needed = [text for text in found[name].requires or () if "extra ==" not in text]
        wanted += [re.split(r"[^\w.-]", text, maxsplit=1)[0] for text in needed]
    return found


def packages() -> Iterator[Path]:
    """The files of all distributions that tests need, their metadata included."""
    ours = tuple({dist.name for dist in distributions() if dist.name.startswith("irqchip-")})
    for dist in required((*ours, *DISTRIBUTIONS)).values():
        for file in dist.files or ():
            path = Path(os.path.normpath(str(dist.locate_file(file))))
            if path.is_file() and path.is_relative_to(str(dist.locate_file(""))):  # scripts are not
                yield path


def search_path() -> list[str]:
    """Where the interpreter inside finds more than its standard library."""
    own = sysconfig.get_path("stdlib")
    return [str(ROOT), *(path for path in sys.path if os.path.isdir(path) and os.path.dirname(path) != own != path)]


def repository() -> Iterator[Path]:
    """This repository's sources and tests."""
    for name in SOURCES:
        if (ROOT / name).is_file():
            yield ROOT / name
        for folder, folders, names in os.walk(ROOT / name):
            folders[:] = [name for name in folders if not name.startswith((".", "__pycache__", "_build"))]
            for name in names:
                yield from with_compiled(Path(folder, name))


def shared_libraries(files: set[Path]) -> set[Path]:
    """What the interpreter and these extension modules are linked to, the dynamic linker included."""
    linked = [str(path) for path in files if re.search(r"\.so(\.|$)", path.name)]
    lines = subprocess.run(["ldd", interpreter(), *linked], check=True, capture_output=True, text=True).stdout
    found = {Path(path) for path in re.findall(r"^\t(?:\S+ => )?(/\S+) \(0x", lines, re.MULTILINE)}
    for libc in [path for path in found if path.name.startswith("libc.so")]:
        unwinder = libc.with_name("libgcc_s.so.1")  # libc loads it by name when a thread is canceled or exits
        found |= {unwinder} if unwinder.exists() else set()
    return found


def interpreter() -> str:
    """The path of the interpreter itself, not of a virtual environment's link to it."""
    return os.path.realpath(sys.executable)


class Cpio:
    """An archive in the format newc, as the kernel unpacks it (Linux, Documentation/driver-api/early-userspace)."""

    def __init__(self) -> None:
        self._out = bytearray()
        self._names: set[str] = set()

    def add(self, name: str, mode: int, content: bytes = b"", mtime: int = 0) -> None:
        """Add an entry with this absolute path, and before it the folders that it lies in."""
        if name in self._names:
            return
        if name != "/":
            self.add(os.path.dirname(name), stat.S_IFDIR | 0o755)
        self._names.add(name)
        self._append(name.lstrip("/") or ".", mode, content, mtime)

    def finish(self) -> bytes:
        """The whole archive."""
        self._append("TRAILER!!!", 0, b"", 0)
        return bytes(self._out)

    def _append(self, name: str, mode: int, content: bytes, mtime: int) -> None:
        encoded = os.fsencode(name) + b"\0"
        # ino, mode, uid, gid, nlink, mtime, size, 2 numbers of the device, 2 of a device file, name's size, check
        fields = (0, mode, 0, 0, 1, mtime, len(content), 0, 0, 0, 0, len(encoded), 0)
        self._out += b"070701" + b"".join(b"%08x" % field for field in fields) + encoded
        self._out += bytes(-len(self._out) % 4) + content
        self._out += bytes(-len(self._out) % 4)


def build(kernel: Kernel, order: bytes) -> bytes:
    """The initramfs whose process 1 is init.py; `order` is what that is to do, as JSON."""
    archive = Cpio()
    for folder in ("/proc", "/sys", "/dev", "/tmp", "/root"):
        archive.add(folder, stat.S_IFDIR | 0o755)
    files = {*standard_library(), *packages(), *repository()}
    for path in sorted(files | shared_libraries(files) | {Path(interpreter())}):
        status = path.stat()
        archive.add(str(path), stat.S_IFREG | status.st_mode & 0o777, path.read_bytes(), int(status.st_mtime))
    archive.add("/bin/python", stat.S_IFLNK | 0o777, interpreter().encode())
    for point in entry_points(group="console_scripts"):
        if point.dist and point.dist.name.startswith("irqchip-"):
            script = f"#!{interpreter()}\nfrom {point.module} import {point.attr}\nraise SystemExit({point.attr}())\n"
            archive.add(f"/bin/{point.name}", stat.S_IFREG | 0o755, script.encode())
    for number, (name, content) in enumerate(kernel.load_order("kvm-amd")):
        archive.add(f"/modules/{number:02}-{name}", stat.S_IFREG | 0o644, content)
    archive.add("/order.json", stat.S_IFREG | 0o644, order)
    archive.add("/init", stat.S_IFREG | 0o755, f"#!{interpreter()} -I\n".encode() + INIT.read_bytes())
    return archive.finish()
