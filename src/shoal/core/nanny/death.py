"""Why a worker process ended, in a word and in words."""

from __future__ import annotations

from enum import Enum
from typing import Final

from shoal.core.events import ChildExited


class Cause(Enum):
    """What deaths are counted by."""

    #: By itself, with a status.
    EXIT = "exit"
    #: By a signal of somebody else's.
    SIGNAL = "signal"
    #: By its nanny, for its memory.
    MEMORY = "memory"
    #: Before it was ready, or because it never became so.
    START = "start"
    #: It had not been heard of for too long.
    SILENT = "silent"
    #: A user asked for a restart.
    RESTART = "restart"
    #: It was told to end.
    ASKED = "asked"


_NAMES: Final = {1: "SIGHUP", 2: "SIGINT", 3: "SIGQUIT", 4: "SIGILL", 6: "SIGABRT", 7: "SIGBUS", 8: "SIGFPE",
                 9: "SIGKILL", 11: "SIGSEGV", 13: "SIGPIPE", 15: "SIGTERM", 24: "SIGXCPU", 31: "SIGSYS"}  # fmt: skip
_HINTS: Final = {
    9: ", and not by its nanny: perhaps the kernel ran out of memory",
    4: ": native code that it ran is for another processor",
    6: ": native code that it ran gave up",
    7: ": native code that it ran crashed",
    8: ": native code that it ran crashed",
    11: ": native code that it ran crashed",
}


def describe_exit(event: ChildExited) -> str:
    """How a process ended, in words that follow its name."""
    peak = f" (its memory had peaked at {event.peak / 1e6:.0f} MB)" if event.peak else ""
    if event.signal is None:
        return f"exited with status {event.exitcode}{peak}"
    name = f" ({_NAMES[event.signal]})" if event.signal in _NAMES else ""
    return f"was killed by signal {event.signal}{name}{_HINTS.get(event.signal, '')}{peak}"
