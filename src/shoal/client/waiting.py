"""Waiting for many futures: ``wait`` and ``as_completed``."""

from __future__ import annotations

import queue
from collections.abc import Iterable, Iterator
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


def wait(
    fs: Iterable[Future] | Future, timeout: float | None = None, return_when: str = ALL_COMPLETED
) -> DoneAndNotDone:
    """Wait until all futures, or the first of them, are done.

    Raises
    ------
    TimeoutError
        After ``timeout`` seconds.
    """
    if return_when not in (ALL_COMPLETED, FIRST_COMPLETED):
        raise UsageError(f"return_when must be {ALL_COMPLETED!r} or {FIRST_COMPLETED!r}, got {return_when!r}")
    futures = [fs] if isinstance(fs, Future) else list(fs)
    needed = len(futures) if return_when == ALL_COMPLETED else min(1, len(futures))
    completed = as_completed(futures, timeout=timeout)
    for _ in range(needed):
        completed.next()
    done = {future for future in futures if future.done()}
    return DoneAndNotDone(done, set(futures) - done)


class as_completed:
    """Iterate over futures in the order in which they are done.

    Parameters
    ----------
    futures
        The first ones; more can be added while iterating.
    with_results
        Yield pairs of future and result.
    raise_errors
        With results: raise the error of a failed task, in place of yielding it.
    timeout
        Seconds for the whole iteration.
    """

    def __init__(
        self,
        futures: Iterable[Future] | None = None,
        with_results: bool = False,
        raise_errors: bool = True,
        *,
        timeout: float | None = None,
    ) -> None:
        self._queue: queue.SimpleQueue[Future] = queue.SimpleQueue()
        self._left = 0
        self._with_results, self._raise_errors = with_results, raise_errors
        self._due = None if timeout is None else monotonic() + timeout
        self.update(futures or ())

    def add(self, future: Future) -> None:
        """Wait for one more."""
        if not isinstance(future, Future):
            raise TypeError(f"as_completed takes futures, got {type(future).__name__}")
        self._left += 1
        future.client._when_done(future._state, lambda: self._queue.put(future))

    def update(self, futures: Iterable[Future]) -> None:
        """Wait for these as well."""
        for future in futures:
            self.add(future)

    def count(self) -> int:
        """How many have not been yielded."""
        return self._left

    def is_empty(self) -> bool:
        return self._left == 0

    def has_ready(self) -> bool:
        """Whether one can be had without waiting."""
        return not self._queue.empty()

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
            future = self._queue.get(timeout=None if self._due is None else max(0.0, self._due - monotonic()))
        except queue.Empty:
            raise TimeoutError(f"{self._left} futures are still pending") from None
        self._left -= 1
        if not self._with_results:
            return future
        error = future.exception()
        if error is None:
            return future, future.result()
        if self._raise_errors:
            raise error
        return future, error

    def __iter__(self) -> Iterator[Any]:
        return self

    __next__ = next
