"""What a program leaves behind that ends by a bug of shoal's: its story in a file, and how it ended."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
import traceback
from collections.abc import Iterable
from typing import Any, Final
from uuid import uuid4

from shoal import private
from shoal.checks import text
from shoal.shell.scratch import space

logger = logging.getLogger("shoal.driver")

#: Exit status of a program that a bug of shoal's ended (EX_SOFTWARE), and of one that lost its scheduler.
BROKEN: Final = 70
LOST: Final = 1
#: Transitions, and characters of each event, that a story has.
_MOST_ROWS: Final = 1000
_MOST_EVENT: Final = 4000


class Ending:
    """How a program ends: when, why, and with which exit status.

    Attributes
    ----------
    reason
        In words.
    status
        0 where it was asked to end.
    """

    def __init__(self) -> None:
        self.finished = asyncio.Event()
        self.reason = ""
        self.status = 0

    def stop(self, reason: str, failed: bool = False) -> None:
        """It ends, by the decision of its core; what was said first counts."""
        if not self.finished.is_set():
            self.reason = reason
            self.status = LOST if failed else 0
            self.finished.set()

    def broke(self, program: str, error: BaseException, events: Iterable[Any], rows: Iterable[Any]) -> None:
        """It ends by a bug: its story goes into a file."""
        path = write(program, error, events, rows)
        told = f"the {program} failed, which is a bug in shoal: {type(error).__name__}: {error}"
        self.reason = text(told.splitlines()[0], 1000) + f" (its story is in {path})"
        self.status = BROKEN
        logger.critical("%s", self.reason)
        self.finished.set()


def write(program: str, error: BaseException, events: Iterable[Any], rows: Iterable[Any]) -> str:
    """Write the story of an error into a file of this user's alone; return where, or why it could not be written.

    Parameters
    ----------
    program
        Which program it is.
    events
        What its core was told in the turn that failed.
    rows
        Transitions, the oldest first.
    """
    when = time.strftime("%Y-%m-%d %H:%M:%S %z")
    lines = [
        f"shoal {program} (Python {sys.version.split()[0]}), process {os.getpid()}, {when}",
        "",
        *traceback.format_exception(error),
        "what it was told in this turn:",
        *(_shown(event) for event in events),
        "",
        "transitions, the last one last:",
        *(_shown(row) for row in list(rows)[-_MOST_ROWS:]),
    ]
    try:
        path = space() / f"story-{program}-{os.getpid()}-{uuid4().hex[:8]}.txt"
        private.create_once(path, "\n".join(lines).encode("utf-8", "backslashreplace"))
    except Exception as failure:
        logger.error("the story could not be written (%s): %s", failure, "\n".join(lines))
        return f"the log: no file could be written, {failure}"
    return str(path)


def _shown(thing: Any) -> str:
    try:
        return repr(thing)[:_MOST_EVENT]
    except Exception as error:
        return f"<{type(thing).__name__} that cannot be shown: {type(error).__name__}>"
