"""What a process uses of its machine."""

from __future__ import annotations

import os
from typing import Final

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


def resident_bytes(pid: int | str = "self") -> int:
    """Bytes of physical memory that a process holds.

    Raises
    ------
    OSError
        If there is no such process.
    """
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * _PAGE


def reset_most_resident() -> None:
    """Have :func:`most_resident_bytes` of this process count from now on."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def most_resident_bytes(pid: int | str = "self") -> int:
    """The most bytes of physical memory that a process has held so far.

    Raises
    ------
    OSError
        If there is no such process.
    """
    with open(f"/proc/{pid}/status") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0
