"""Where submissions wait while too much is owed to the scheduler: threads block, coroutines sleep.

What counts is what is in line in this process and what the link has written or kept, as far as the scheduler has not
taken it. A thread that waits is let go by room, by the end of the connection, or by an exception such as
``KeyboardInterrupt``. The loop's own thread cannot wait, since it is the one that makes room.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Final

logger = logging.getLogger("shoal.client")

#: Seconds between two looks at whether there is room.
_LOOK: Final = 0.01
#: Seconds that somebody may wait before the log says so.
_PATIENCE: Final = 5.0


class Gate:
    """The account of one connection.

    Parameters
    ----------
    loop
        Where the connection lives.
    most
        Bytes past which whoever wants to say more waits.
    owed
        Tells what the link owes to the scheduler; called on the loop.
    closed
        Tells why nothing can be said any more, or nothing.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, most: int, owed: Callable[[], int], closed: Callable[[], str]
    ) -> None:
        self._loop, self._most, self._owed, self._closed = loop, most, owed, closed
        self._room = threading.Condition()
        #: Bytes that the loop has not put on the link yet, and what was owed there when it looked last.
        self._line = self._link = 0
        self._waiting = 0
        self._looking = False
        #: The thread of the loop.
        self.thread = 0

    @property
    def open(self) -> bool:
        """Whether more may be said."""
        return self._line + self._link < self._most or bool(self._closed())

    @property
    def busy(self) -> bool:
        """Whether anything is in line, or somebody waits."""
        return bool(self._line or self._waiting)

    def add(self, nbytes: int) -> None:
        """So much was put in line."""
        with self._room:
            self._line += nbytes

    def emptied(self) -> None:
        """All that was in line is on the link; called on the loop."""
        with self._room:
            self._line = 0
            self._link = self._owed()
            if self._waiting and self.open:
                self._room.notify_all()

    def wait(self) -> None:
        """Block this thread until more may be said."""
        if self.open or threading.get_ident() == self.thread:
            return
        patience: float | None = _PATIENCE
        with self._room:
            self._waiting += 1
            try:
                if not self._looking:
                    self._looking = True
                    self._loop.call_soon_threadsafe(self._look)
                while not self.open:
                    if not self._room.wait(patience) and patience is not None:
                        self._warn()
                        patience = None
            finally:
                self._waiting -= 1

    async def pause(self) -> None:
        """As :meth:`wait`, on the loop."""
        began = self._loop.time()
        while not self.open:
            await asyncio.sleep(_LOOK)
            if began and self._loop.time() - began > _PATIENCE:
                self._warn()
                began = 0.0
            self._link = self._owed()

    def _warn(self) -> None:
        logger.warning(
            "submissions have waited for %g s: %d bytes are owed to the scheduler, which does not take them "
            "(shoal.client.owed-bytes)",
            _PATIENCE,
            self._line + self._link,
        )

    def _look(self) -> None:
        """See how much the link owes, while somebody waits."""
        with self._room:
            self._link = self._owed()
            if self.open:
                self._room.notify_all()
            self._looking = bool(self._waiting) and not self.open
            if self._looking:
                self._loop.call_later(_LOOK, self._look)

    def close(self) -> None:
        """Nothing can be said any more: nobody waits for it."""
        with self._room:
            self._room.notify_all()
