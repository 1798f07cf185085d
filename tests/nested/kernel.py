"""Debian's kernel for clouds, installed or unpacked in the cache, and its modules in the order of loading.

It is unpacked rather than installed, since installing a kernel also runs the hooks of boot loaders and initramfs
tools. Fetching needs the network and Debian's apt-get and dpkg-deb, but not root; only `fetch` does it, no test.
"""

from __future__ import annotations

import lzma
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

PACKAGE = "linux-image-cloud-amd64"
REMEDY = f"python -m tests.nested --fetch-kernel (or apt-get install {PACKAGE})"


class Kernel(NamedTuple):
    """A kernel image and the folder of its modules."""

    image: Path
    modules: Path

    def load_order(self, *names: str) -> list[tuple[str, bytes]]:
        """File name and content of these modules, each after all that it depends on.

        Debian's package holds no modules.dep: depmod makes that where the package is installed. Each module names
        what it depends on in its section .modinfo.
        """
        paths = {path.name.split(".ko")[0].replace("-", "_"): path for path in self.modules.rglob("*.ko*")}
        order: dict[str, bytes] = {}

        def add(name: str) -> None:
            path = paths[name.replace("-", "_")]
            content = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
            depends = re.search(rb"\0depends=([^\0]*)\0", content)
            for needed in depends[1].decode().split(",") if depends and depends[1] else ():
                add(needed)
            order.setdefault(path.name.removesuffix(".xz"), content)

        for name in names:
            add(name)
        return list(order.items())


def cache() -> Path:
    """The folder that fetched kernels are unpacked in."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "irqchip-nested"


def find() -> Kernel | None:
    """The newest kernel that is installed, or else fetched; None if there is none."""
    for root in (Path("/"), cache()):
        kernels = []
        for image in root.glob("boot/vmlinuz-*-cloud-amd64"):
            release = image.name.removeprefix("vmlinuz-")
            for modules in (root / "lib/modules" / release, root / "usr/lib/modules" / release):
                if modules.is_dir() and os.access(image, os.R_OK):
                    version = [int(number) for number in re.findall(r"\d+", release)]
                    kernels.append((version, Kernel(image, modules)))
        if kernels:
            return max(kernels)[1]
    return None


def missing() -> str | None:
    """Why no kernel can be used, and the remedy; None if one can."""
    return None if find() else f"{PACKAGE} is neither installed nor in {cache()}; {REMEDY}"


def fetch() -> Kernel:
    """Download the kernel that Debian's package of today depends on, and unpack it in the cache.

    Raises:
        CalledProcessError: apt-get, apt-cache or dpkg-deb failed; apt-get update is needed once before.
    """
    depends = subprocess.run(
        ["apt-cache", "depends", "--important", PACKAGE], check=True, capture_output=True, text=True
    ).stdout
    [package] = set(re.findall(r"Depends: (linux-image-[\w.+-]+-cloud-amd64)$", depends, re.MULTILINE))
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["apt-get", "-q", "download", package], cwd=folder, check=True)
        [archive] = Path(folder).glob("*.deb")
        cache().mkdir(parents=True, exist_ok=True)
        subprocess.run(["dpkg-deb", "--extract", archive, cache()], check=True)
    kernel = find()
    assert kernel, f"{package} has no kernel that find() finds"
    return kernel
