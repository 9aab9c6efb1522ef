"""Waiting for many futures: ``wait`` and ``as_completed``."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Iterable, Iterator
from time import monotonic
from typing import Any, NamedTuple

from shoal.client.future import Future
from shoal.errors import UsageError

ALL_COMPLETED = "ALL_COMPLETED"
FIRST_COMPLETED = "FIRST_COMPLETED"


class DoneAndNotDone(NamedTuple):
    """What :func:`wait` returns."""

    done: set[Future]
    not_done: set[Future]


def wait(fs: Iterable[Future] | Future, timeout: Any = None, return_when: str = ALL_COMPLETED) -> Any:
    """Wait until all futures, or the first of them, are done; an awaitable for futures of an asynchronous client.

    Returns
    -------
    DoneAndNotDone
        Two sets, ``done`` and ``not_done``.

    Raises
    ------
    TimeoutError
        After ``timeout`` (seconds, or text as ``"5 minutes"``).
    """
    if return_when not in (ALL_COMPLETED, FIRST_COMPLETED):
        raise UsageError(f"return_when must be {ALL_COMPLETED!r} or {FIRST_COMPLETED!r}, got {return_when!r}")
    futures = [fs] if isinstance(fs, Future) else list(fs)
    needed = len(futures) if return_when == ALL_COMPLETED else min(1, len(futures))
    completed = as_completed(futures, timeout=timeout)
    if futures and futures[0].client.asynchronous:
        return _wait_async(futures, completed, needed)
    for _ in range(needed):
        completed.next()
    return _split(futures)


async def _wait_async(futures: list[Future], completed: as_completed, needed: int) -> DoneAndNotDone:
    for _ in range(needed):
        await completed.__anext__()
    return _split(futures)


def _split(futures: list[Future]) -> DoneAndNotDone:
    done = {future for future in futures if future.done()}
    return DoneAndNotDone(done, set(futures) - done)


class as_completed:
    """Iterate over futures in the order in which they are done, with ``for`` or ``async for``.

    Parameters
    ----------
    futures
        The first ones; more can be added while iterating.
    with_results
        Yield pairs of future and result.
    raise_errors
        With results: raise the error of a failed task, in place of yielding it.
    timeout
        For the whole iteration: seconds, or text as ``"5 minutes"``.
    """

    def __init__(
        self,
        futures: Iterable[Future] | None = None,
        loop: Any = None,
        with_results: bool = False,
        raise_errors: bool = True,
        *,
        timeout: Any = None,
    ) -> None:
        from shoal.config import seconds

        limit = seconds(timeout, "timeout")
        self._queue: queue.SimpleQueue[tuple[int, Future]] = queue.SimpleQueue()
        self._left = 0
        self._round = 0
        self._with_results, self._raise_errors = with_results, raise_errors
        self._due = None if limit is None else monotonic() + limit
        self._waiter: asyncio.Future[None] | None = None
        self.update(futures or ())

    def add(self, future: Future) -> None:
        """Wait for one more."""
        self.update([future])

    def update(self, futures: Iterable[Future]) -> None:
        """Wait for these as well."""
        many = list(futures)
        for future in many:
            if not isinstance(future, Future):
                raise TypeError(f"as_completed takes futures, got {type(future).__name__}")
        self._left += len(many)
        turn = self._round
        by_client: dict[Any, list[Any]] = {}
        for future in many:
            pair = (future._known, lambda f=future: self._arrived(turn, f))
            by_client.setdefault(future.client, []).append(pair)
        for client, pairs in by_client.items():
            client._connection.when_done(pairs)

    def _arrived(self, turn: int, future: Future) -> None:
        self._queue.put((turn, future))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def clear(self) -> None:
        """Forget all futures that were not yielded yet."""
        self._round += 1
        self._left = 0

    def count(self) -> int:
        """How many have not been yielded."""
        return self._left

    def is_empty(self) -> bool:
        """Whether none is left."""
        return self._left == 0

    def has_ready(self) -> bool:
        """Whether one can be had without waiting."""
        return not self._queue.empty()

    def _take(self, block: bool) -> Future:
        while True:
            left = None if self._due is None else max(0.0, self._due - monotonic())
            turn, future = self._queue.get(block, left)
            if turn == self._round:
                self._left -= 1
                return future

    def _late(self) -> TimeoutError:
        return TimeoutError(f"{self._left} futures are still pending")

    def next(self) -> Any:
        """The next one, waiting for it.

        Raises
        ------
        StopIteration
            If none is left.
        TimeoutError
            When the time is over.
        """
        if not self._left:
            raise StopIteration
        try:
            future = self._take(True)
        except queue.Empty:
            raise self._late() from None
        if not self._with_results:
            return future
        error = future.exception()
        if error is None:
            return future, future.result()
        if self._raise_errors:
            raise error
        return future, error

    def next_batch(self, block: bool = True) -> list[Any]:
        """All that are ready, waiting for the first where ``block`` is True."""
        batch = [self.next()] if block and self._left else []
        while self._left and self.has_ready():
            batch.append(self.next())
        return batch

    def batches(self) -> Iterator[list[Any]]:
        """Iterate over lists of all that are ready."""
        while self._left:
            yield self.next_batch()

    def __iter__(self) -> Iterator[Any]:
        return self

    __next__ = next

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        if not self._left:
            raise StopAsyncIteration
        while True:
            try:
                future = self._take(False)
                break
            except queue.Empty:
                self._waiter = asyncio.get_running_loop().create_future()
            left = None if self._due is None else max(0.0, self._due - monotonic())
            try:
                async with asyncio.timeout(left):
                    await self._waiter
            except TimeoutError:
                raise self._late() from None
        if not self._with_results:
            return future
        error = await future._exception(None)
        if error is None:
            return future, await future._result()
        if self._raise_errors:
            raise error
        return future, error
