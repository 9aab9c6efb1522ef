"""What is owed to the peer of one link: bytes that were said and that it has not taken, and when that is too much.

Past a mark the link is full: whoever has a source of messages for it is told, and slows it down; below half of the
mark it has room again. The end that listens reads nothing of a peer that does not read itself, so that requests
whose answers would be owed wait with the one who asks. The end that dialled always reads, so that no two ends wait
for each other.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

logger = logging.getLogger("shoal.link")

#: Seconds for which a link may be full before the log says so.
PATIENCE: Final = 5.0
#: A peer that took nothing for so many seconds, and is owed more than so many times the mark, is given up.
STALLED: Final = 30.0
MOST: Final = 64
#: Seconds in which a link that was closed must bring some of what is left to its peer.
LINGER: Final = 10.0


class Backlog:
    """The account of one link.

    Parameters
    ----------
    loop
        Where the warning is due.
    mark
        Bytes past which the link is full.
    changed
        Called with whether it is full, when that changes.
    """

    __slots__ = ("_changed", "_loop", "_said", "_taken", "_taken_at", "_timer", "_warned", "full", "mark", "since")

    def __init__(self, loop: asyncio.AbstractEventLoop, mark: int, changed: Callable[[bool], None]) -> None:
        self._loop, self._changed = loop, changed
        self.mark = mark
        self.full = False
        #: When it became full, by the clock of the loop.
        self.since = 0.0
        #: Bytes said while it was full, those of them that were taken, and when that became more.
        self._said = self._taken = 0
        self._taken_at = 0.0
        self._warned = False
        self._timer: asyncio.TimerHandle | None = None

    def fill(self, owed: int, name: str) -> None:
        """So much is owed now, which is over the mark."""
        self.full = True
        self.since = self._taken_at = self._loop.time()
        self._said, self._taken = owed, 0
        self._timer = self._loop.call_later(PATIENCE, self._warn, name)
        self._changed(True)

    def said(self, nbytes: int, owed: int) -> bool:
        """More was said on a full link; return whether the peer is to be given up."""
        self._said += nbytes
        taken = self._said - owed
        if taken > self._taken:
            self._taken, self._taken_at = taken, self._loop.time()
            return False
        return owed > MOST * self.mark and self._loop.time() - self._taken_at > STALLED

    def lower(self, owed: int, name: str) -> None:
        """So much is owed still."""
        if self.full and owed <= self.mark // 2:
            self.full = False
            if self._warned:
                logger.warning("the link with %s has room again, after %.1f s", name, self._loop.time() - self.since)
            self._settle()
            self._changed(False)

    def _warn(self, name: str) -> None:
        self._warned = True
        logger.warning(
            "the link with %s has been full for %g s: it does not read what is said to it (over %d bytes)",
            name,
            PATIENCE,
            self.mark,
        )

    def _settle(self) -> None:
        self._warned = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def close(self) -> None:
        """The link is no more: nobody is told anything."""
        self.full = False
        self._changed = _nobody
        self._settle()


def _nobody(full: bool) -> None:
    """Is told."""


def end_unless_taken(loop: asyncio.AbstractEventLoop, transport: asyncio.WriteTransport) -> None:
    """Have a transport that is closing dropped, with what it has not written, once its peer takes nothing any more."""
    before = transport.get_write_buffer_size()
    if before:
        loop.call_later(LINGER, _look, loop, transport, before)


def _look(loop: asyncio.AbstractEventLoop, transport: asyncio.WriteTransport, before: int) -> None:
    left = transport.get_write_buffer_size()
    if left and left >= before:
        transport.abort()
    elif left:
        loop.call_later(LINGER, _look, loop, transport, left)
