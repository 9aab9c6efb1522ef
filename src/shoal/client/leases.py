"""Leases of locks that a client holds: it says so to the scheduler every now and then, while it is alive."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

from shoal.messages import Meet

logger = logging.getLogger("shoal.client")

_NONE: Final = object()


class Leases:
    """Those of one connection.

    Parameters
    ----------
    loop
        Where the connection lives.
    ask
        Sends a request that is made with its number; returns what its answer will resolve. Called on the loop.
    closed
        Tells why nothing can be said any more, or nothing.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        ask: Callable[[Callable[[int], Any]], asyncio.Future[Any]],
        closed: Callable[[], str],
    ) -> None:
        self._loop, self._ask, self._closed = loop, ask, closed
        #: The names of those that are held.
        self.held: dict[str, None] = {}
        self._refreshing: asyncio.TimerHandle | None = None

    def hold(self, lease: str, seconds: float) -> None:
        """Say every now and then that this lease is held, good for so many seconds at a time; in any thread."""
        self.held[lease] = None
        self._loop.call_soon_threadsafe(self._refresh_later, seconds)

    def _refresh_later(self, seconds: float) -> None:
        if self._refreshing is None and self.held and not self._closed():
            self._refreshing = self._loop.call_later(seconds / 5, self._refresh, seconds)

    def _refresh(self, seconds: float) -> None:
        self._refreshing = None
        if self.held and not self._closed():
            leases = list(self.held)
            told = self._ask(lambda rid: Meet(rid, "lease-refresh", "", {"leases": leases}))
            told.add_done_callback(self._on_refreshed)
            self._refresh_later(seconds)

    def _on_refreshed(self, told: asyncio.Future[Any]) -> None:
        """Those that are not held any more were taken back: this client was silent for too long."""
        gone = [] if told.cancelled() or told.exception() is not None else told.result()
        lost = [lease for lease in gone if self.held.pop(lease, _NONE) is not _NONE]
        if lost:
            logger.warning(
                "%d leases of locks that this client held were taken back: nothing was heard of it for too long "
                "(distributed.scheduler.locks.lease-timeout)",
                len(lost),
            )

    def close(self) -> None:
        """Nothing is said of them any more."""
        if self._refreshing is not None:
            self._refreshing.cancel()
