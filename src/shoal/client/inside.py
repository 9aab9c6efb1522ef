"""What code inside of a task can do: leave the pool of threads, come back, and submit tasks of its own."""

from __future__ import annotations

import builtins
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from shoal import checks
from shoal.client.current import chosen, get_client
from shoal.shell import serialize
from shoal.shell.current import home, process
from shoal.shell.executor import ThreadExecutor, current_pool

if TYPE_CHECKING:
    from shoal.client.client import Client

#: Characters that go to clients of what is printed at once.
_MOST_PRINTED = 1_000_000


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
def local_client(*args: Any, **kwargs: Any) -> Iterator[Client]:
    """The old name of :func:`worker_client`."""
    warnings.warn("local_client is called worker_client now", FutureWarning, stacklevel=3)
    with worker_client(*args, **kwargs) as client:
        yield client


def print(*args: Any, sep: str | None = " ", end: str | None = "\n", file: Any = None, flush: bool = False) -> None:
    """Print here and, from inside of a task, in the process of every client.

    Parameters
    ----------
    *args, sep, end, flush
        As for the built-in ``print``.
    file
        ``sys.stdout`` (the default) or ``sys.stderr``.

    Raises
    ------
    TypeError
        If it is another file, inside of a task.
    """
    here = home()
    builtins.print(*args, sep=sep, end=end, file=file, flush=flush)
    if here is None:
        return
    if file not in (None, sys.stdout, sys.stderr):
        raise TypeError(f"file must be sys.stdout or sys.stderr, got {file!r}")
    text = (" " if sep is None else sep).join(map(str, args)) + ("\n" if end is None else end)
    text = checks.text(text, _MOST_PRINTED)
    where = 2 if file is not None and file is sys.stderr else 1
    here.program.log_event("print", {"text": text, "file": where, "flush": flush, "from": process(), "id": uuid4().hex})


def warn(message: Any, category: type[Warning] = UserWarning, stacklevel: int = 1, source: Any = None) -> None:
    """Warn here and, from inside of a task, in the process of every client.

    Parameters
    ----------
    message, category, stacklevel, source
        As for :func:`warnings.warn`.
    """
    here = home()
    warnings.warn(message, category, stacklevel + 1, source)
    if here is None:
        return
    kind = type(message) if isinstance(message, Warning) else category
    sent = serialize.dumps_text((str(message), kind), "the warning")
    here.program.log_event(
        "warn", {"warning": sent, "text": checks.text(str(message)), "from": process(), "id": uuid4().hex}
    )


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
