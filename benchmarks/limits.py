"""`limits.c` as a library, where there is a C compiler."""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measuring import C, Way, timed

_LIBRARY = "IRQCHIP_BENCHMARKS_LIBRARY"
NO_COMPILER = "there is no gcc"


def start_with_library(arguments: Sequence[str]) -> None:
    """Compile the library, run this program again with it in LD_PRELOAD, and exit as that does; once."""
    if _LIBRARY in os.environ or shutil.which("gcc") is None:
        return
    with tempfile.TemporaryDirectory() as scratch:
        library = Path(scratch, "limits.so")
        source = Path(__file__).with_name("limits.c")
        subprocess.run(["gcc", "-O2", "-Wall", "-shared", "-fPIC", "-o", library, source], check=True)
        environment = {**os.environ, "LD_PRELOAD": str(library), _LIBRARY: str(library)}
        sys.stdout.flush()
        sys.exit(subprocess.run([sys.executable, "-m", *arguments], env=environment).returncode)


def path_of_library() -> str | None:
    """Where the library is, for LD_PRELOAD of another program; None without a compiler."""
    return os.environ.get(_LIBRARY)


@functools.cache
def library() -> ctypes.CDLL | None:
    """The library; None without a compiler."""
    path = path_of_library()
    if path is None:
        return None
    os.environ.pop("LD_PRELOAD", None)  # not for the programs that this one starts
    loaded = ctypes.CDLL(path, use_errno=True)
    pointer, integer, long = ctypes.c_void_p, ctypes.c_int, ctypes.c_long
    for name, types in {
        "repeat_ioctl": [integer, ctypes.c_ulong, pointer, long],
        "repeat_copy": [integer, integer, long],
        "repeat_irqfd": [integer, integer, ctypes.c_uint, integer, long],
        "signal_to_handler": [integer, pointer, long, pointer],
        "create_and_close": [integer, integer],
    }.items():
        function = getattr(loaded, name)
        function.argtypes, function.restype = types, ctypes.c_double
    return loaded


def in_c(name: str, *arguments: object) -> dict[str, Way]:
    """The way ``C`` to do it: a function of the library, or none without it.

    Raises:
        OSError: A system call in it failed.
    """
    loaded = library()
    if loaded is None:
        return {}

    def way() -> float:
        seconds: float = getattr(loaded, name)(*arguments)
        if seconds < 0:
            raise OSError(-int(seconds), f"{name}: {os.strerror(-int(seconds))}")
        return seconds

    return {C: way}


def descriptor(kind: str) -> int:
    """The newest descriptor of this process that leads to a `kind`, such as ``kvm-vm`` or ``kvm-vcpu:0``."""
    return max(
        int(name)
        for name in os.listdir("/proc/self/fd")
        if os.path.lexists(f"/proc/self/fd/{name}") and os.readlink(f"/proc/self/fd/{name}") == f"anon_inode:{kind}"
    )


_ioctl = ctypes.CDLL(None, use_errno=True).ioctl
_ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p]


def bare_ioctl(fd: int, request: int, argument: object, times: int) -> Way:
    """The way ``ioctl``: the call alone, from Python."""
    return timed(functools.partial(_ioctl, fd, request, argument), times)


def repeat_exit(on: bool) -> None:
    """Let KVM_RUN return at once, with the run area as it is, or not. Needs `library`."""
    ctypes.CDLL(None).repeat_exit(on)
