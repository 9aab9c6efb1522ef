"""What threads of tasks have a worker say of their own accord, as events: no faster than the scheduler reads it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from shoal.shell.link import Link

#: Messages that threads may be ahead of the loop.
_AHEAD: Final = 100
#: Seconds between two looks at whether there is room.
_LOOK: Final = 0.01


class Speech:
    """Passes messages of threads on to a link, and has the threads wait while it is full.

    Parameters
    ----------
    link
        Tells which link it is, if there is one.
    """

    def __init__(self, link: Callable[[], Link | None]) -> None:
        self._link = link
        self._lock = threading.Lock()
        self._ahead = 0

    def say(self, message: Any, loop: asyncio.AbstractEventLoop) -> None:
        """Say it on the loop; a thread waits for room first, but not for a link that is closed."""
        while not self._has_room() and not _is_on(loop):
            time.sleep(_LOOK)
        with self._lock:
            self._ahead += 1
        loop.call_soon_threadsafe(self._send, message)

    def _has_room(self) -> bool:
        link = self._link()
        return link is None or link.closed or (self._ahead < _AHEAD and not link.full)

    def _send(self, message: Any) -> None:
        with self._lock:
            self._ahead -= 1
        link = self._link()
        if link is not None:
            link.send(message)


def _is_on(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False
