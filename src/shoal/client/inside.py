"""What code inside of a task can do: leave the pool of threads, come back, and submit tasks of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from shoal.client.current import chosen, get_client
from shoal.shell.executor import ThreadExecutor, current_pool

if TYPE_CHECKING:
    from shoal.client.client import Client


def _executor() -> ThreadExecutor:
    pool = current_pool()
    if pool is None:
        raise ValueError("no worker runs this: secede and rejoin work inside of tasks only")
    return pool


def secede() -> None:
    """Leave the pool of the worker's threads: another task may start in this one's place.

    For tasks that wait for others; without it, tasks that wait for tasks can take all threads and wait for ever.

    Raises
    ------
    ValueError
        Outside of tasks.
    """
    _executor().secede()


def rejoin() -> None:
    """Come back into the pool after :func:`secede`; waits until a thread of the pool has made room.

    Raises
    ------
    ValueError
        Outside of tasks.
    """
    _executor().rejoin()


@contextmanager
def outside() -> Iterator[None]:
    """While this is entered, a task does not count as work of its worker's; nothing happens elsewhere."""
    executor = current_pool()
    if executor is None or executor.is_outside():
        yield
        return
    executor.secede()
    try:
        yield
    finally:
        executor.rejoin()


@contextmanager
def worker_client(timeout: float | None = None, separate_thread: bool = True) -> Iterator[Client]:
    """A client inside of a task, which is out of the pool meanwhile.

    Parameters
    ----------
    timeout
        Seconds to try to reach the scheduler.
    separate_thread
        Whether to leave the pool; without, a task that waits for others takes up its thread.

    Examples
    --------
    >>> def fib(n):  # doctest: +SKIP
    ...     if n < 2:
    ...         return n
    ...     with worker_client() as client:
    ...         a, b = client.map(fib, [n - 1, n - 2])
    ...         return sum(client.gather([a, b]))
    """
    executor = _executor()
    client = get_client(timeout=timeout)
    if separate_thread:
        executor.secede()
    token = chosen.set(client)
    try:
        yield client
    finally:
        chosen.reset(token)
        if separate_thread:
            executor.rejoin()
