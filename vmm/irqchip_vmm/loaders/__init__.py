"""What a guest file says: which bytes belong where, and in which state the first vCPU starts."""

from __future__ import annotations

import os
from pathlib import Path

from irqchip_vmm.loaders.flat import load_flat
from irqchip_vmm.loaders.image import Image, LoadError
from irqchip_vmm.loaders.multiboot import find_header, load_multiboot
from irqchip_vmm.memory import check_size

__all__ = ["Image", "LoadError", "load_file", "load_image"]

ELF_MAGIC = b"\x7fELF"
MAX_STREAM = 64 << 20
"""Bytes to read from what has no size: a pipe, or a device that may have no end."""


def load_image(name: str, data: bytes, *, memory_size: int, command_line: str = "") -> Image:
    """Multiboot if `data` has such a header, else a flat binary.

    Args:
        name: For messages.
        data: The whole file.
        memory_size: Bytes of guest memory it has to fit in.
        command_line: For the guest; a flat binary has no way to get one.

    Raises:
        LoadError: The file is damaged, does not fit, or is of no kind that can be loaded.
        InvalidArgument: No machine can have that much memory, or that little.
    """
    check_size(memory_size)
    header = find_header(data)
    if header is not None:
        return load_multiboot(name, data, header, memory_size=memory_size, command_line=command_line)
    if data.startswith(ELF_MAGIC):
        raise LoadError(
            "it is an ELF file without a multiboot header in its first 8192 bytes",
            subject=name,
            remedy="link the header at the very start, or make a flat binary with objcopy -O binary",
        )
    if command_line:
        raise LoadError(
            "a flat binary cannot be given a command line", subject=name, remedy="leave it out, or use multiboot"
        )
    return load_flat(name, data, memory_size=memory_size)


def load_file(path: str | os.PathLike[str], *, memory_size: int, command_line: str = "") -> Image:
    """`load_image` of a file.

    Raises:
        LoadError: It cannot be read, or see `load_image`.
        InvalidArgument: See `load_image`.
    """
    check_size(memory_size)
    path = Path(path)
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            room = memory_size if size else min(memory_size, MAX_STREAM)
            data = file.read((size or room) + 1) if size <= room else b""
    except (OSError, ValueError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise LoadError(f"cannot read it: {reason}", subject=str(path), remedy="name a file that can be read") from None
    if max(size, len(data)) > room:
        what = "guest memory" if room == memory_size else "what is read of a pipe or device"
        raise LoadError(
            f"it is larger than the {room >> 20} MiB of {what}",
            subject=str(path),
            remedy="give the machine more memory, or name a smaller file",
        )
    return load_image(str(path), data, memory_size=memory_size, command_line=command_line)
