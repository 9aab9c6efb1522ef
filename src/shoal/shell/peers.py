"""A pool of links to workers, opened on first use, for requests that have one answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from shoal.errors import LinkClosedError
from shoal.shell.link import Identity, Link
from shoal.shell.network import dial

#: Seconds to try to reach a peer before it counts as unreachable.
CONNECT_TIMEOUT = 5.0


class PeerPool:
    """Links by peer id."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._links: dict[str, asyncio.Task[Link]] = {}
        self._waiting: dict[int, tuple[Link, asyncio.Future[Any]]] = {}
        self._rid = 0

    async def request(self, peer: str, addresses: list[str], make: Callable[[int], Any]) -> Any:
        """Send the message that ``make(rid)`` returns and wait for its answer.

        Raises
        ------
        LinkError
            If the peer cannot be reached, or its link breaks before it answered.
        """
        opening = self._links.get(peer)
        if opening is None or (opening.done() and (opening.exception() or opening.result().closed)):
            opening = self._links[peer] = asyncio.get_running_loop().create_task(self._open(addresses))
        link = await asyncio.shield(opening)
        self._rid += 1
        rid = self._rid
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[rid] = (link, future)
        try:
            link.send(make(rid))
            return await future
        finally:
            self._waiting.pop(rid, None)

    async def _open(self, addresses: list[str]) -> Link:
        return await dial(
            addresses,
            lambda: Link(self._identity, True, lambda link: None, self._on_messages, self._on_closed),
            CONNECT_TIMEOUT,
        )

    def _on_messages(self, link: Link, messages: list[Any]) -> None:
        for message in messages:
            waiting = self._waiting.get(getattr(message, "rid", -1))
            if waiting is not None and waiting[0] is link and not waiting[1].done():
                waiting[1].set_result(message)

    def _on_closed(self, link: Link, reason: str) -> None:
        for other, future in tuple(self._waiting.values()):
            if other is link and not future.done():
                future.set_exception(LinkClosedError(f"the peer's link closed: {reason}"))

    def close(self) -> None:
        for task in self._links.values():
            if not task.done():
                task.cancel()
            elif not task.cancelled() and task.exception() is None:
                task.result().close()
