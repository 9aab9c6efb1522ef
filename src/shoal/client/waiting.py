"""Waiting for many futures: ``wait`` and ``as_completed``."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from functools import partial
from time import monotonic
from typing import Any, NamedTuple

from shoal import config
from shoal.client.future import Future, failure_of
from shoal.client.keeping import futures_of
from shoal.core.client.future import FutureStatus
from shoal.errors import FutureCancelledError, UsageError

ALL_COMPLETED = "ALL_COMPLETED"
FIRST_COMPLETED = "FIRST_COMPLETED"


class DoneAndNotDone(NamedTuple):
    """What :func:`wait` returns."""

    done: set[Future]
    not_done: set[Future]


def wait(fs: Any, timeout: Any = None, return_when: str = ALL_COMPLETED) -> Any:
    """Wait until all futures, or the first of them, are done; an awaitable for futures of an asynchronous client.

    Parameters
    ----------
    fs
        Futures in lists, tuples, sets, dicts, iterators, or collections that were persisted.
    timeout
        Seconds, or text as ``"5 minutes"``.
    return_when
        ``"ALL_COMPLETED"`` or ``"FIRST_COMPLETED"``.

    Returns
    -------
    DoneAndNotDone
        Two sets, ``done`` and ``not_done``.

    Raises
    ------
    TimeoutError
        After ``timeout`` (seconds, or text as ``"5 minutes"``).
    FutureCancelledError
        If one of those that are done was cancelled, or released.
    """
    if return_when not in (ALL_COMPLETED, FIRST_COMPLETED):
        raise UsageError(f"return_when must be {ALL_COMPLETED!r} or {FIRST_COMPLETED!r}, got {return_when!r}")
    if isinstance(fs, Iterator):
        fs = list(fs)
    futures = futures_of(fs)
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
    done = set()
    for future in futures:
        outcome = future.client._connection.outcome(future._known)
        if outcome.status is FutureStatus.CANCELLED:
            raise FutureCancelledError(future.key, outcome.reason)
        if outcome.status is not FutureStatus.PENDING:
            done.add(future)
    return DoneAndNotDone(done, set(futures) - done)


def _go_on(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class as_completed:
    """Iterate over futures in the order in which they are done, with ``for`` or ``async for``.

    Parameters
    ----------
    futures
        The first ones; more can be added while iterating.
    with_results
        Yield pairs of future and result.
    raise_errors
        With results: raise the error of a failed task; if not, its type, the error and the traceback are yielded.
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
        limit = config.seconds(timeout, "timeout")
        self.lock = threading.RLock()
        self._changed = threading.Condition(self.lock)
        #: How often each future is waited for that is not done yet.
        self.futures: dict[Future, int] = {}
        #: Those that are done and were not yielded yet, in order.
        self.queue: queue.SimpleQueue[Future] = queue.SimpleQueue()
        self._with_results, self._raise_errors = with_results, raise_errors
        self._due = None if limit is None else monotonic() + limit
        self._waiter: asyncio.Future[None] | None = None
        self.update(futures or ())

    @property
    def condition(self) -> threading.Condition:
        """Notified when a future is done."""
        return self._changed

    def add(self, future: Future) -> None:
        """Wait for one more."""
        self.update([future])

    def update(self, futures: Iterable[Future]) -> None:
        """Wait for these as well."""
        many = list(futures)
        by_client: dict[Any, list[Any]] = {}
        for future in many:
            if not isinstance(future, Future):
                raise TypeError(f"as_completed takes futures, got {type(future).__name__}")
            by_client.setdefault(future.client, []).append((future._known, partial(self._arrived, future)))
        with self.lock:
            for future in many:
                self.futures[future] = self.futures.get(future, 0) + 1
        for client, pairs in by_client.items():
            client._connection.when_done(pairs)

    def _arrived(self, future: Future) -> None:
        with self.lock:
            count = self.futures.pop(future, 0)
            if not count:
                return  # it was cleared
            if count > 1:
                self.futures[future] = count - 1
            self.queue.put(future)
            self._changed.notify_all()
            self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            waiter.get_loop().call_soon_threadsafe(_go_on, waiter)

    def clear(self) -> None:
        """Forget all futures that were not yielded yet."""
        with self.lock:
            self.futures.clear()
            while not self.queue.empty():
                self.queue.get()
            self._changed.notify_all()
            self._wake()

    def count(self) -> int:
        """How many have not been yielded."""
        with self.lock:
            return sum(self.futures.values()) + self.queue.qsize()

    def is_empty(self) -> bool:
        """Whether none is left."""
        return not self.count()

    def has_ready(self) -> bool:
        """Whether one can be had without waiting."""
        return not self.queue.empty()

    def _left(self) -> float | None:
        return None if self._due is None else max(0.0, self._due - monotonic())

    def _late(self) -> TimeoutError:
        return TimeoutError(f"{self.count()} futures are still pending")

    def next(self) -> Any:
        """The next one, waiting for it.

        Raises
        ------
        StopIteration
            If none is left.
        TimeoutError
            When the time is over.
        """
        with self.lock:
            while self.queue.empty():
                if not self.futures:
                    raise StopIteration
                if not self._changed.wait(self._left()) and self._left() == 0:
                    raise self._late()
            future = self.queue.get()
        if not self._with_results:
            return future
        error = failure_of(future._outcome(self._left()))
        return (future, future.result(self._left())) if error is None else self._failed(future, error)

    def _failed(self, future: Future, error: BaseException) -> tuple[Future, Any]:
        """What is yielded for a future that failed: with what ``sys.exc_info`` would say, or why it was cancelled."""
        if self._raise_errors:
            raise error
        if isinstance(error, FutureCancelledError):
            return future, error
        return future, (type(error), error, error.__traceback__)

    def next_batch(self, block: bool = True) -> list[Any]:
        """All that are ready, waiting for the first where ``block`` is True."""
        batch = [self.next()] if block and not self.is_empty() else []
        while self.has_ready():
            batch.append(self.next())
        return batch

    def batches(self) -> Iterator[list[Any]]:
        """Iterate over lists of all that are ready."""
        while not self.is_empty():
            yield self.next_batch()

    def __iter__(self) -> Iterator[Any]:
        return self

    __next__ = next

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        while True:
            with self.lock:
                if not self.queue.empty():
                    future = self.queue.get()
                    break
                if not self.futures:
                    raise StopAsyncIteration
                waiter = self._waiter = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(self._left()):
                    await waiter
            except TimeoutError:
                raise self._late() from None
        if not self._with_results:
            return future
        error = failure_of(await future._outcome_async(self._left()))
        return (future, await future) if error is None else self._failed(future, error)
