"""Data from workers and to them; by way of the scheduler where a worker cannot be reached from here."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any, Final

from shoal.errors import ConnectError, LinkError, SerializationError, UsageError
from shoal.messages import Carry, PutData, Query
from shoal.shell.peers import PeerPool
from shoal.shell.serialize import payload_nbytes

logger = logging.getLogger("shoal.client")

#: Bytes that are put on a worker in one message (a single larger value is put all the same).
PUT_BYTES: Final = 64 << 20
#: Seconds for which what is on a worker that could not be reached comes by way of the scheduler.
ROUND_SECONDS: Final = 30.0


class Transfers:
    """What a client brings and takes.

    Parameters
    ----------
    id
        Of the client.
    peers
        Links to workers.
    request
        Sends the message that it is given a maker of, and waits for the scheduler's answer.
    """

    def __init__(self, id: str, peers: PeerPool, request: Callable[[Callable[[int], Any]], Awaitable[Any]]) -> None:
        self._id, self._peers, self._request = id, peers, request
        #: Until when the values of workers that could not be reached come by way of the scheduler.
        self._round: dict[str, float] = {}

    async def _ask(self, what: str, **args: Any) -> Any:
        return await self._request(lambda rid: Query(rid, what, args))

    async def fetch(self, keys: list[str]) -> dict[str, Any]:
        """Get payloads from the workers that hold them; those whose holder went away are not among them.

        Raises
        ------
        SerializationError
            If a worker cannot pickle a value.
        """
        plan: dict[str, tuple[list[str], list[str]]] = {}
        for key, holders in (await self._ask("holders", keys=keys)).items():
            if holders:
                plan.setdefault(holders[0][0], (holders[0][1], []))[1].append(key)
        values: dict[str, Any] = {}
        for found in await asyncio.gather(*(self._fetch_from(peer, *plan[peer]) for peer in plan)):
            values.update(found)
        return values

    async def _fetch_from(self, peer: str, addresses: list[str], keys: list[str]) -> dict[str, Any]:
        """Get payloads from one worker, which gives as many in one answer as are not too large together."""
        found: dict[str, Any] = {}
        left = keys
        while left:
            answer = await self._ask_for(peer, addresses, left)
            if answer is None:
                return found
            items, missing, errors = answer
            for why in errors.values():
                raise SerializationError(why)
            found.update(items)
            before, known = len(left), items.keys() | set(missing)
            left = [key for key in left if key not in known]
            if len(left) == before:
                return found  # nothing of it can be had there now
        return found

    async def _ask_for(
        self, peer: str, addresses: list[str], keys: list[str]
    ) -> tuple[dict[str, Any], list[str], dict[str, str]] | None:
        """What a worker gives, what it lacks, and what it cannot give; None where there is no way to it."""
        if monotonic() >= self._round.get(peer, 0.0):
            try:
                data = await self._peers.get(peer, addresses, keys)
            except LinkError as error:
                logger.info("%s cannot be reached, its values come by way of the scheduler: %s", peer, error)
                self._round = {one: until for one, until in self._round.items() if until > monotonic()}
                self._round[peer] = monotonic() + ROUND_SECONDS
            else:
                return data.items, data.missing, data.errors
        try:
            carried = await self._request(lambda rid: Carry(rid, keys, holder=peer))
        except UsageError as error:
            logger.info("%s cannot be reached by way of the scheduler: %s", peer, error)
            return None
        return carried["items"], carried["missing"], carried["errors"]

    async def put(self, payloads: dict[str, Any], workers: list[str] | None, broadcast: bool) -> None:
        """Put values on workers, in turn or on all; what one cannot take that goes or is gone, another gets.

        Raises
        ------
        UsageError
            If there is no such worker.
        ConnectError
            If none of them can be reached from here.
        """
        left = payloads
        unreached: dict[str, str] = {}
        while left:
            targets = await self._ask("put_targets", workers=workers)
            if not targets:
                raise UsageError(f"no running worker to scatter to (workers={workers!r})")
            reached = [target for target in targets if target[0] not in unreached]
            if not reached:
                tried = ", ".join(f"{target[1][0]}: {unreached[target[0]]}" for target in targets[:5])
                raise ConnectError(f"none of {len(targets)} workers to scatter to can be reached from here ({tried})")
            shares: dict[str, dict[str, Any]] = {}
            for number, (key, payload) in enumerate(left.items()):
                for target in reached if broadcast else [reached[number % len(reached)]]:
                    shares.setdefault(target[0], {})[key] = payload
            addresses = {target[0]: target[1] for target in reached}
            taken = await asyncio.gather(
                *(self._put_on(peer, addresses[peer], items, unreached) for peer, items in shares.items())
            )
            there = set().union(*taken)
            left = {key: payload for key, payload in left.items() if key not in there}
            if left:
                await asyncio.sleep(0.05)

    async def _put_on(
        self, peer: str, addresses: list[str], items: dict[str, Any], unreached: dict[str, str]
    ) -> set[str]:
        """Put values on one worker, not too much at a time; return what it took, and the scheduler knows of."""
        taken: set[str] = set()
        left = deque(items.items())
        while left:
            part: dict[str, Any] = {}
            size = 0
            while left and (not part or size + payload_nbytes(left[0][1]) <= PUT_BYTES):
                key, part[key] = left.popleft()
                size += payload_nbytes(part[key])
            try:
                if not await self._put_part(peer, addresses, part):
                    return taken
            except LinkError as error:
                logger.info("%s takes no data: %s", peer, error)
                unreached[peer] = str(error)
                return taken
            taken |= part.keys()
        return taken

    async def _put_part(self, peer: str, addresses: list[str], items: dict[str, Any]) -> bool:
        answer = await self._peers.request(peer, addresses, lambda rid: PutData(rid, self._id, items))
        if answer.error is not None:
            raise SerializationError(answer.error)
        return bool(answer.value == "OK")
