"""A pool of links to workers, opened on first use, for requests that have one answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from shoal.errors import ConfigurationError, ConnectError, LinkClosedError, LinkError
from shoal.messages import Blob, Data, GetData, Returned
from shoal.shell import direct
from shoal.shell.areas import AREAS
from shoal.shell.link import Identity, Link
from shoal.shell.network import dial

logger = logging.getLogger("shoal.peers")

#: Seconds to try to reach a peer before it counts as unreachable.
CONNECT_TIMEOUT = 5.0


class PeerPool:
    """Links by peer id."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._links: dict[str, asyncio.Task[Link]] = {}
        self._waiting: dict[int, tuple[Link, asyncio.Future[Any], bool]] = {}
        self._rid = 0
        #: Peers whose memory the kernel does not let us read.
        self._not_direct: set[str] = set()

    async def request(self, peer: str, addresses: list[str], make: Callable[[int], Any], patient: bool = False) -> Any:
        """Send the message that ``make(rid)`` returns and wait for its answer.

        Nothing is waited for from a machine that is gone; ``patient``: but for as long as it takes from a process that
        says nothing on a machine that answers, as one that is stopped, or whose task holds the interpreter lock. Others
        wait ``distributed.comm.timeouts.tcp`` for its next byte.

        Raises
        ------
        LinkError
            If the peer cannot be reached, or its link breaks before it answered.
        """
        link = await self._link(peer, addresses)
        self._rid += 1
        rid = self._rid
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[rid] = (link, future, patient)
        try:
            link.send(make(rid))
            return await future
        finally:
            self._waiting.pop(rid, None)

    async def _link(self, peer: str, addresses: list[str]) -> Link:
        opening = self._links.get(peer)
        if opening is None or (opening.done() and (opening.exception() or opening.result().closed)):
            opening = self._links[peer] = asyncio.get_running_loop().create_task(self._open(addresses))
        try:
            return await asyncio.shield(opening)
        except LinkError:
            self._forget(peer, opening)
            raise

    async def get(self, peer: str, addresses: list[str], keys: list[str], max_bytes: int = 0) -> Data:
        """Ask a worker for values; large ones on this machine are read from its memory.

        Raises
        ------
        LinkError
            If the peer cannot be reached, or its link breaks before it answered.
        """
        link = await self._link(peer, addresses)
        pid = None if peer in self._not_direct else link.peer_process
        answer: Data = await self.request(peer, addresses, lambda rid: GetData(rid, keys, max_bytes, pid is not None))
        if type(answer) is not Data or not (answer.items.keys() | answer.lent.keys()) <= set(keys):
            link.close("it answered what it was not asked for")
            raise LinkClosedError(f"{peer} answered what it was not asked for")
        if not answer.lent:
            return answer
        if pid is None:
            raise LinkClosedError(f"{peer} lent values to a process that cannot read them")
        try:
            found = {}
            for key, places in answer.lent.items():
                frames: list[bytes | memoryview] = []
                for place in places:
                    if isinstance(place, bytes):
                        frames.append(place)
                        continue
                    address, nbytes = place
                    area = AREAS.allocate(nbytes)
                    await direct.read(pid, address, area)
                    frames.append(area)
                found[key] = Blob(frames)
        except (OSError, ValueError, TypeError, OverflowError, MemoryError) as error:
            logger.info("memory of %s cannot be read, its values go over the link: %s", peer, error)
            self._not_direct.add(peer)
            await self.request(peer, addresses, lambda rid: Returned(rid, answer.rid))
            return await self.get(peer, addresses, keys, max_bytes)
        await self.request(peer, addresses, lambda rid: Returned(rid, answer.rid))
        answer.items.update(found)
        return answer

    async def _open(self, addresses: list[str]) -> Link:
        try:
            return await dial(addresses, self._make_link, CONNECT_TIMEOUT, self._identity)
        except ConfigurationError as error:  # as where one worker speaks without encryption and another may not
            raise ConnectError(str(error)) from error

    def _make_link(self) -> Link:
        return Link(
            self._identity,
            True,
            lambda link: None,
            self._on_messages,
            self._on_closed,
            on_silent=self._on_silent,
        )

    def _on_messages(self, link: Link, messages: list[Any]) -> None:
        for message in messages:
            waiting = self._waiting.get(getattr(message, "rid", -1))
            if waiting is not None and waiting[0] is link and not waiting[1].done():
                waiting[1].set_result(message)

    def _on_closed(self, link: Link, reason: str) -> None:
        for peer, opening in tuple(self._links.items()):
            if opening.done() and not opening.cancelled() and not opening.exception() and opening.result() is link:
                self._forget(peer, opening)
        for other, future, _ in tuple(self._waiting.values()):
            if other is link and not future.done():
                future.set_exception(LinkClosedError(f"the peer's link closed: {reason}"))

    def _on_silent(self, link: Link, reason: str) -> None:
        """Nothing is heard of a process: what can be had elsewhere is not waited for."""
        there = [(future, patient) for other, future, patient in self._waiting.values() if other is link]
        for future, patient in there:
            if not (patient or future.done()):
                future.set_exception(LinkClosedError(f"the peer did not answer: {reason}"))
        if there and not any(patient for _, patient in there):
            link.close(reason)  # or it would keep what it lends

    def _forget(self, peer: str, opening: asyncio.Task[Link]) -> None:
        """Nothing came of dialling a peer, or its link is closed: it may be gone for good."""
        if self._links.get(peer) is opening:
            del self._links[peer]
            self._not_direct.discard(peer)

    def close(self) -> None:
        for task in self._links.values():
            if not task.done():
                task.cancel()
            elif not task.cancelled() and task.exception() is None:
                task.result().close()
