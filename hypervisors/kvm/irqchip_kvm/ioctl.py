"""How the kernel is called: ioctl, mmap, signals to threads. The only module here that uses ctypes.

Why ctypes and not fcntl.ioctl: KVM_RUN must release the GIL and must come back on EINTR, and CPython
3.14's fcntl.ioctl repeats an interrupted call, so that a kick would be lost. It is not slower either.
Python 3.11, best of 5 times 20,000 with ``timeit``: KVM_RUN of a guest in a loop of OUT takes 8.0 us with ctypes and
8.4 us with ``fcntl.ioctl(vcpu, KVM_RUN, 0)``; KVM_CHECK_EXTENSION 0.8 us and 1.0 us.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import signal
import threading
import weakref

from irqchip_core.errors import Closed, Unsupported
from irqchip_kvm.abi import Request
from irqchip_kvm.problems import failure

_libc = ctypes.CDLL(None, use_errno=True)

# ctypes releases the GIL around each of these and keeps errno per thread.
_ioctl = _libc.ioctl
_ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p]
_ioctl.restype = ctypes.c_int
_get_errno = ctypes.get_errno
_mmap = _libc.mmap
_mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_mmap.restype = ctypes.c_void_p
_munmap = _libc.munmap
_munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_munmap.restype = ctypes.c_int
_tgkill = _libc.tgkill
_tgkill.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int]
_sigaction = _libc.sigaction
_sigaction.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
_signal = _libc.signal
_signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
_signal.restype = ctypes.c_void_p

_MAP_NORESERVE = 0x4000  # <asm-generic/mman.h>; the mmap module has it from Python 3.13
_MAP_FAILED = ctypes.c_void_p(-1).value

Buffer = bytes | ctypes.Array[ctypes.c_char]
"""What a request may point at: bytes if the kernel only reads it, else a `buffer`."""


def buffer(size_or_data: int | bytes) -> ctypes.Array[ctypes.c_char]:
    """Memory the kernel may write to: zeroed, or with a copy of the data."""
    if isinstance(size_or_data, int):
        return ctypes.create_string_buffer(size_or_data)
    return ctypes.create_string_buffer(size_or_data, len(size_or_data))


def address_of(data: ctypes.Array[ctypes.c_char]) -> int:
    """Where `data` is, for a structure that points at it. Keep `data` alive meanwhile."""
    return ctypes.addressof(data)


class Handle:
    """A descriptor of KVM's, closed once and never while a call is using it.

    Args:
        fd: The descriptor, owned by this handle from now on.
        subject: What it is, for error messages.
    """

    __slots__ = ("_busy", "_closing", "_fd", "_lock", "subject")

    def __init__(self, fd: int, subject: str) -> None:
        self._fd = fd
        self.subject = subject
        self._closing = False
        # Calls in progress. A list, as append and pop are atomic: the last of {close, call} closes.
        self._busy: list[None] = []
        self._lock = threading.Lock()

    @property
    def closed(self) -> bool:
        return self._closing

    def try_call(self, request: Request, argument: int | Buffer = 0) -> int:
        """Make one ioctl; its result, or minus the errno. Raises `Closed`."""
        self._busy.append(None)
        try:
            if self._closing:
                raise Closed(f"{self.subject} is closed", subject=request.name)
            result: int = _ioctl(self._fd, request.number, argument)
            return result if result >= 0 else -_get_errno()
        finally:
            self._busy.pop()
            if self._closing:
                self._release()

    def call(self, request: Request, argument: int | Buffer = 0) -> int:
        """Make one ioctl; its result.

        Raises:
            Closed: The handle is closed.
            HypervisorError: It failed; or the more exact error that `problems` has for it.
        """
        result = self.try_call(request, argument)
        if result < 0:
            raise failure(request.name, -result, self.subject)
        return result

    def map(self, size: int) -> memoryview:
        """Memory shared with the kernel through this descriptor (the run area of a vCPU)."""
        return _map_pages(size, mmap.MAP_SHARED, self._fd)[1]

    def close(self) -> None:
        """Close the descriptor, or leave that to the call in progress. Closing twice is harmless."""
        self._closing = True
        self._release()

    def _release(self) -> None:
        with self._lock:
            if not self._busy and self._fd >= 0:
                fd, self._fd = self._fd, -1
                os.close(fd)

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:  # __init__ may not have got that far
            os.close(self._fd)


def open_device(path: str) -> Handle:
    """Open /dev/kvm. Raises a `HypervisorError` that says how to get there."""
    try:
        return Handle(os.open(path, os.O_RDWR | os.O_CLOEXEC), path)
    except OSError as error:
        raise failure("open", error.errno or 0, path) from None


def _map_pages(size: int, flags: int, fd: int) -> tuple[int, memoryview]:
    address = _mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, fd, 0)
    if address == _MAP_FAILED:
        raise failure("mmap", _get_errno(), f"{size} bytes")
    # Every view of this array, and every slice of one, keeps it alive; when the last is gone the pages go.
    # mmap.mmap cannot serve: it duplicates the descriptor, and must not be closed while a view exists.
    pages = (ctypes.c_ubyte * size).from_address(address)
    unmap = weakref.finalize(pages, _munmap, address, size)
    unmap.atexit = False  # daemon threads may still run the guest then
    return address, memoryview(pages).cast("B")


def anonymous_pages(size: int) -> tuple[int, memoryview]:
    """Zeroed memory: its address, and a view of it. It lives as long as any view does.

    Pages are taken when first touched (MAP_NORESERVE).
    """
    return _map_pages(size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE, -1)


class KickSignal:
    """The signal that gets a thread out of KVM_RUN. It does nothing else.

    Its handler is a function of the C library that is harmless at any time, not a Python one: those can
    only be installed, and would only run, on the main thread. It takes the first real-time signal without
    a handler.
    """

    def __init__(self) -> None:
        handler = ctypes.cast(_libc.getpid, ctypes.c_void_p).value
        for number in range(signal.SIGRTMIN, signal.SIGRTMAX + 1):
            old = buffer(256)  # more than struct sigaction; the handler comes first
            if _sigaction(number, None, old) == 0 and int.from_bytes(old.raw[:8], "little") in (0, handler):
                _signal(number, handler)
                self.number = number
                return
        raise Unsupported(
            "every real-time signal has a handler already",
            subject="KVM vCPU",
            remedy=f"leave one of SIGRTMIN to SIGRTMAX ({signal.SIGRTMIN}-{signal.SIGRTMAX}) at SIG_DFL",
        )

    def unblock(self) -> None:
        """Let the signal through to the calling thread."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [self.number])

    def send(self, native_id: int) -> None:
        """Interrupt thread `native_id` of this process. Harmless if it has ended or does something else."""
        _tgkill(os.getpid(), native_id, self.number)


class ThisThread(threading.local):
    """The calling thread: its number, without a system call after the first time.

    A thread that reads it can be kicked from then on.
    """

    def __init__(self, kick_signal: KickSignal) -> None:
        kick_signal.unblock()
        self.kick_signal = kick_signal
        self.native_id = threading.get_native_id()


@functools.cache
def this_thread() -> ThisThread:
    """The one `ThisThread` of the process."""
    return ThisThread(KickSignal())


os.register_at_fork(after_in_child=this_thread.cache_clear)  # the child's threads have other numbers
