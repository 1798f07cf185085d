"""Process 1 of the machine: loads KVM, runs the command of /order.json, reports its exit status, ends the machine.

Imports nothing but the standard library: image.py copies it to /init. If it fails, the kernel panics, and the machine
ends without a status but with the traceback on its console.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import tty

REPORT = "/dev/ttyS1"
SYS_FINIT_MODULE, SYS_REBOOT = 313, 169  # x86-64
LINUX_REBOOT_MAGIC = (0xFEE1DEAD, 672274793)  # reboot(2)
LINUX_REBOOT_CMD_RESTART = 0x01234567

libc = ctypes.CDLL(None, use_errno=True)


def must(result: int, what: str) -> None:
    """Raise OSError if a call of the C library failed."""
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def main() -> None:
    """See the module."""
    for kind, target in ((b"proc", b"/proc"), (b"sysfs", b"/sys"), (b"devtmpfs", b"/dev")):
        must(libc.mount(kind, target, kind, 0, None), f"mount {target.decode()}")
    for name in sorted(os.listdir("/modules")):
        with open(f"/modules/{name}", "rb") as module:
            must(libc.syscall(SYS_FINIT_MODULE, module.fileno(), b"", 0), f"load {name}")
    with open("/order.json", "rb") as file:
        order = json.load(file)
    report = os.open(REPORT, os.O_WRONLY | os.O_NOCTTY)
    tty.setraw(report)
    try:
        status = subprocess.run(order["argv"], cwd=order["cwd"], env=order["env"], check=False).returncode
    except OSError as error:
        print(f"{order['argv'][0]}: {error.strerror}")
        status = 127
    os.write(report, json.dumps({"status": status}).encode() + b"\n")
    os.close(report)  # waits until all is sent
    libc.syscall(SYS_REBOOT, *map(ctypes.c_uint, LINUX_REBOOT_MAGIC), LINUX_REBOOT_CMD_RESTART, None)


main()
