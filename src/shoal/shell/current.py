"""Who runs this: the worker of the task in this thread, and how others of this process reach its scheduler."""

from __future__ import annotations

import os
import socket
import threading
from typing import Any

_local = threading.local()


class Home:
    """A worker as code inside of its tasks sees it."""

    __slots__ = ("program", "scheduler", "secret")

    def __init__(self, program: Any, scheduler: list[str], secret: bytes) -> None:
        self.program, self.scheduler, self.secret = program, scheduler, secret


def process() -> str:
    """What no other process has for a name, on this machine or another."""
    return f"{socket.gethostname()}:{os.getpid()}"


def enter(home: Home | None) -> None:
    """This thread runs tasks of ``home``."""
    _local.home = home


def home() -> Home | None:
    """The worker that runs this thread's task, or None outside of tasks."""
    return getattr(_local, "home", None)
