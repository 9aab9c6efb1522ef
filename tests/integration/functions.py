"""Functions that the tests submit."""

from __future__ import annotations

import logging
import os
import time


def inc(x: int) -> int:
    return x + 1


def slow_inc(x: int) -> int:
    time.sleep(0.02)
    return x + 1


def add(values: list[int]) -> int:
    return sum(values)


def fail(x: int) -> int:
    raise ValueError(f"no {x}")


def leave(x: int) -> int:
    os._exit(x)


def pid() -> int:
    return os.getpid()


def hoard() -> int:
    """Take more and more memory."""
    held = []
    for _ in range(300):
        held.append(bytearray(os.urandom(1000) * 5000))
        time.sleep(0.01)
    return len(held)


_HELD: list[bytearray] = []


def grab(nbytes: int) -> int:
    """Hold memory beyond the end of the task."""
    _HELD.append(bytearray(os.urandom(1)) * nbytes)
    return os.getpid()


def let_go() -> None:
    _HELD.clear()


def warn(text: str) -> None:
    logging.getLogger("my.module").warning(text)
