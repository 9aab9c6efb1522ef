"""Events, queues and variables: what one part of a program leaves for another, wherever that runs."""

from __future__ import annotations

import asyncio
from typing import Any

from shoal import checks
from shoal.coordination.base import Shared, limit


class Event(Shared):
    """A flag that can be waited for, anywhere on the cluster.

    Parameters
    ----------
    name
        The same everywhere; a new one by default.
    client
        To speak through; the current one by default.

    Examples
    --------
    >>> Event("ready").set()  # doctest: +SKIP
    >>> Event("ready").wait(timeout="10 s")  # doctest: +SKIP
    True
    """

    def wait(self, timeout: Any = None) -> Any:
        """Wait until it is set; return whether it is (False after ``timeout``)."""

        async def wait() -> bool:
            return bool(await self._meet("event-wait", timeout=limit(timeout)))

        return self.client._sync(wait())

    def set(self) -> Any:
        """Set it: all who wait go on."""
        return self.client._sync(self._meet("event-set"))

    def clear(self) -> Any:
        """Unset it."""
        return self.client._sync(self._meet("event-clear"))

    def is_set(self) -> Any:
        """Whether it is set."""
        return self.client._sync(self._meet("event-is-set"))


class Queue(Shared):
    """A queue of futures and values, first in first out, anywhere on the cluster.

    Futures stay alive while they are in it. It lives until :meth:`close`, and takes whatever can be pickled; large
    values are better scattered, and their futures put here.

    Parameters
    ----------
    name
        The same everywhere; a new one by default.
    client
        To speak through; the current one by default.
    maxsize
        How many items it takes before :meth:`put` waits; 0 is no limit.

    Examples
    --------
    >>> Queue("results").put(client.submit(sum, [1, 2]))  # doctest: +SKIP
    >>> Queue("results").get().result()  # doctest: +SKIP
    3
    """

    def __init__(self, name: str | None = None, client: Any = None, maxsize: int = 0) -> None:
        super().__init__(name, client)
        self.maxsize = checks.whole(maxsize, "maxsize", 0)

    def put(self, value: Any, timeout: Any = None) -> Any:
        """Put a value in, waiting for room.

        Raises
        ------
        TimeoutError
            If there was none within ``timeout``.
        SerializationError
            If it cannot be pickled.
        """
        kept = self.client._pack_kept(value)

        async def put() -> None:
            args = {"timeout": limit(timeout), "most": self.maxsize}
            told = await self._meet("queue-put", payload=kept.payload, keys=kept.keys, **args)
            if told is None:
                raise TimeoutError(f"{self!r} had no room for {limit(timeout):g} s")

        return self.client._sync(put())

    def get(self, timeout: Any = None, batch: Any = False) -> Any:
        """Take the next value out, waiting for it.

        Parameters
        ----------
        timeout
            Seconds, or text as ``"10 s"``; for ever by default.
        batch
            A number: wait for so many, and return a list. True: return a list of all that are there now, be it empty.

        Raises
        ------
        TimeoutError
            If there was none (or not so many) within ``timeout``.
        """
        count = None if batch is True else 1 if batch is False else checks.whole(batch, "batch", 1)
        args = {"timeout": limit(timeout), "most": self.maxsize, "count": count}

        async def get() -> Any:
            found = await self._take("queue-get", undo=self._unget, **args)
            return found if batch is not False else found[0]

        return self.client._load_kept(get())

    def _unget(self, answer: tuple[int, Any]) -> None:
        """What came when nobody waited for it any more goes back to where it was."""
        rid, items = answer
        for payload, keys in reversed(items or []):
            self.client._connection.say_meet(
                "queue-put", self.name, payload=payload, keys=keys, most=self.maxsize, first=True
            )
        self.client._connection.took(rid)

    def qsize(self) -> Any:
        """How many values are in it."""
        return self.client._sync(self._meet("queue-size"))

    def close(self) -> Any:
        """Have the scheduler forget it, and let go of what is in it; who waits gets an error."""
        return self.client._sync(self._meet("queue-close"))

    async def _take(self, what: str, **args: Any) -> Any:
        return await take(self, what, **args)

    def __reduce__(self) -> Any:
        return type(self), (self.name, None, self.maxsize)


class Variable(Shared):
    """A place for one future or value, anywhere on the cluster. A future stays alive while it is in it.

    Parameters
    ----------
    name
        The same everywhere; a new one by default.
    client
        To speak through; the current one by default.

    Examples
    --------
    >>> Variable("best").set(0.93)  # doctest: +SKIP
    >>> Variable("best").get()  # doctest: +SKIP
    0.93
    """

    def set(self, value: Any, timeout: Any = "30 s") -> Any:
        """Put a value in, in place of the one before.

        Raises
        ------
        SerializationError
            If it cannot be pickled.
        TimeoutError
            If the scheduler does not answer within ``timeout``.
        """
        kept = self.client._pack_kept(value)

        async def put() -> None:
            async with asyncio.timeout(limit(timeout)):
                await self._meet("variable-set", payload=kept.payload, keys=kept.keys)

        return self.client._sync(put())

    def get(self, timeout: Any = None) -> Any:
        """The value, waiting until there is one.

        Raises
        ------
        TimeoutError
            If there was none within ``timeout``.
        """

        async def get() -> Any:
            return (await take(self, "variable-get", timeout=limit(timeout)))[0]

        return self.client._load_kept(get())

    def delete(self) -> Any:
        """Have the scheduler forget it; who waits for it gets an error."""
        return self.client._sync(self._meet("variable-delete"))


async def take(shared: Shared, what: str, **args: Any) -> list[Any]:
    """What the scheduler gives out, as it is packed: payloads, and futures that keep alive what is inside of them.

    Raises
    ------
    TimeoutError
        If nothing came in time.
    """
    client = shared.client
    found = await client._await(client._take_kept(what, shared.name, **args))
    if found is None:
        raise TimeoutError(f"nothing came from {shared!r} within {args['timeout']:g} s")
    taken: list[Any] = found
    return taken
