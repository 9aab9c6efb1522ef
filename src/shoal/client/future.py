"""A handle on one task's result."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from html import escape
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any

from shoal.core.client.future import FutureRecord, FutureStatus, Outcome
from shoal.errors import FutureCancelledError, KilledWorker, LostDataError, UsageError
from shoal.ids import key_from_wire, key_to_wire
from shoal.messages import KilledTask
from shoal.shell import serialize

if TYPE_CHECKING:
    from shoal.client.client import Client


def failure_of(outcome: Outcome) -> BaseException | None:
    """The exception that ``result`` raises for this outcome, if any."""
    if outcome.status is FutureStatus.CANCELLED:
        return FutureCancelledError(key_from_wire(outcome.key), outcome.reason)
    if outcome.status is FutureStatus.LOST:
        return LostDataError(outcome.reason)
    if outcome.status is not FutureStatus.ERROR:
        return None
    if isinstance(outcome.error, KilledTask):
        return KilledWorker(outcome.error.origin, outcome.error.deaths, outcome.error.allowed_failures)
    return serialize.load_error(outcome.error.error)


class Future:
    """The result of a task that runs, or ran, on the cluster.

    Released when the last reference to it goes away; the cluster then forgets what nobody else needs. With an
    asynchronous client, the methods that wait return awaitables. A future can be pickled: inside of a task it belongs
    to the task's own client.

    Parameters
    ----------
    key
        Of a task that the scheduler knows.
    client
        Whose future it is; by default the current client's (``get_client``), once it is needed.
    """

    #: dask takes it for a reference to a task where it stands in a graph.
    __dask_future__ = True
    __slots__ = ("__weakref__", "_client", "_held", "_record", "key")

    def __init__(
        self, key: Any, client: Client | None = None, state: FutureRecord | None = None, _id: Any = None
    ) -> None:
        self.key = key
        self._client: Client | None = None
        #: Deleted when it is released, which is one step whatever thread does it.
        self._held = True
        if state is not None:
            self._client, self._record = client, state
        elif client is not None:
            self.bind_client(client)

    def bind_client(self, client: Client) -> None:
        """Attach a client to a future that was made without one, and ask for the key.

        Raises
        ------
        UsageError
            If it has another client already.
        """
        if self._client is client:
            return
        if self._client is not None:
            raise UsageError(f"{self!r} belongs to another client")
        self._record = client._adopt(self.key)
        self._client = client

    @property
    def client(self) -> Client:
        """The client that it belongs to."""
        if self._client is None:
            from shoal.client.current import get_client

            self.bind_client(get_client())
        assert self._client is not None
        return self._client

    executor = client

    @property
    def _known(self) -> FutureRecord:
        """The record, bound to a client if need be."""
        assert self.client is not None
        return self._record

    @property
    def status(self) -> str:
        """``pending``, ``finished``, ``error``, ``cancelled`` or ``lost``."""
        return self._known.status.label

    @property
    def type(self) -> str:
        """Name of the result's type, once it is known."""
        return self._known.type

    @property
    def peak_memory(self) -> int | None:
        """By how many bytes the task's process grew while it ran, once it is done; None where that was not seen.

        Tasks that take less than 50 ms are not looked at. Those that run in the same worker at the same time count for
        each other, but for tasks with a process of their own (``killable=True``), of which it is exact.
        """
        return self._known.peak or None

    def done(self) -> bool:
        """Whether it is not pending any more."""
        return not self._known.pending

    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        return self._known.status is FutureStatus.CANCELLED

    def _late(self, timeout: float | None) -> TimeoutError:
        return TimeoutError(f"{self.key!r} was still pending after {timeout:g} s")

    def _outcome(self, timeout: float | None = None) -> Outcome:
        """Wait until it is done, and say how it ended.

        Raises
        ------
        TimeoutError
            After ``timeout`` seconds.
        """
        client = self.client
        connection, record = client._connection, self._record
        if record.pending:
            client._check_process()
        due = None if timeout is None else monotonic() + timeout
        while connection.wait(record, None if due is None else max(0.0, due - monotonic())):
            outcome = connection.outcome(record)
            if outcome.status is not FutureStatus.PENDING:
                return outcome
        raise self._late(timeout)

    async def _outcome_async(self, timeout: float | None = None) -> Outcome:
        try:
            return await self.client._connection.done(self._known, timeout)
        except TimeoutError:
            raise self._late(timeout) from None

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the result and return it.

        Raises
        ------
        TimeoutError
            After ``timeout`` seconds.
        FutureCancelledError
            If it was cancelled or released, or its client is closed or lost its scheduler; it says which.
        Exception
            Whatever the task raised, with its traceback.
        """
        client = self.client
        if client.asynchronous:
            return self._result(timeout)
        began = monotonic()
        outcome = self._outcome(timeout)
        if outcome.status is not FutureStatus.FINISHED or outcome.value is not None:
            return client._pick([outcome], "raise")[0]
        return client._pick(client._thread.sync(self._fetched(self._record, began, timeout)), "raise")[0]

    async def _result(self, timeout: float | None = None) -> Any:
        began = monotonic()
        await self._outcome_async(timeout)
        return self.client._pick(await self._fetched(self._known, began, timeout), "raise")[0]

    async def _fetched(self, record: FutureRecord, began: float, timeout: float | None) -> list[Outcome]:
        """How it ended, with its value, which is fetched in what is left of ``timeout``."""
        left = None if timeout is None else max(0.0, began + timeout - monotonic())
        try:
            async with asyncio.timeout(left):
                return await self.client._connection.outcomes([record], to_the_end=False)
        except TimeoutError:
            if timeout is None:
                raise
            raise TimeoutError(f"{self.key!r} is done, and its value was not here after {timeout:g} s") from None

    def exception(self, timeout: float | None = None, **kwargs: Any) -> Any:
        """Wait, then return what :meth:`result` would raise, or None."""
        if self.client.asynchronous:
            return self._exception(timeout)
        return failure_of(self._outcome(timeout))

    async def _exception(self, timeout: float | None) -> BaseException | None:
        return failure_of(await self._outcome_async(timeout))

    def traceback(self, timeout: float | None = None, **kwargs: Any) -> Any:
        """Wait, then return the traceback of what the task raised, or None."""
        if self.client.asynchronous:
            return self._traceback(timeout)
        return _traceback_of(self._outcome(timeout))

    async def _traceback(self, timeout: float | None) -> TracebackType | None:
        return _traceback_of(await self._outcome_async(timeout))

    def add_done_callback(self, fn: Callable[[Future], Any]) -> None:
        """Call ``fn(future)`` in a helper thread once it is done; what it raises is logged."""
        client = self.client
        client._connection.when_done([(self._record, lambda: client._run_callback(fn, self))])

    def cancel(self, reason: str | None = None, msg: str | None = None, **kwargs: Any) -> Any:
        """Cancel the task; ``force=True`` as for :meth:`Client.cancel`."""
        return self.client.cancel(self, reason=reason, msg=msg, **kwargs)

    def retry(self, **kwargs: Any) -> Any:
        """Run it again if it failed; it is pending then, until that has ended."""
        return self.client.retry(self)

    # What functions of concurrent.futures (wait, as_completed) look for: a lock, a state, and who waits.

    def running(self) -> bool:
        """Whether it cannot be cancelled any more: never, since what runs can be cancelled too."""
        return False

    @property
    def _condition(self) -> Any:
        return self.client._connection.lock

    @property
    def _state(self) -> str:
        if not self.done():
            return "PENDING"
        return "CANCELLED_AND_NOTIFIED" if self.cancelled() else "FINISHED"

    @property
    def _waiters(self) -> _Waiters:
        return _Waiters(self)

    def release(self) -> None:
        """Let go of the result; it is freed when nobody else needs it.

        The last future of its key to be released by this client is cancelled by that.
        """
        if self._let_go():
            assert self._client is not None
            self._client._connection.release(self._record)

    def _let_go(self) -> bool:
        """Whether it was held until now."""
        if self._client is None:
            return False
        try:
            del self._held
        except AttributeError:
            return False
        return True

    def __del__(self) -> None:
        if self._let_go():
            assert self._client is not None
            self._client._connection.drop(self._record)

    def __await__(self) -> Generator[Any, None, Any]:
        found: Generator[Any, None, Any] = self.client._await(self._result()).__await__()
        return found

    def __reduce__(self) -> Any:
        if serialize.found_inside(self):
            return serialize.input_value, (key_to_wire(self.key),)
        return _revived, (key_to_wire(self.key),)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Future):
            return NotImplemented
        return self.key == other.key and (self._client is other._client or None in (self._client, other._client))

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        if self._client is None:
            return f"<Future: no client yet, key: {self.key!r}>"
        kind = f", type: {self.type}" if self._record.type else ""
        return f"<Future: {self.status}{kind}, key: {self.key!r}>"

    def _repr_html_(self) -> str:
        kind = f" <span>type: {escape(self.type)}</span>" if self._client is not None and self.type else ""
        status = self.status if self._client is not None else "no client yet"
        return f"<b>Future: {escape(str(self.key))}</b> <span>status: {status}</span>{kind}"


class _Waiters:
    """What :mod:`concurrent.futures` takes for the list of those who wait for a future."""

    __slots__ = ("_future",)

    def __init__(self, future: Future) -> None:
        self._future = future

    def append(self, waiter: Any) -> None:
        """Tell ``waiter`` when the future is done, unless it is."""
        future = self._future
        if not future.done():
            future.client._connection.when_done([(future._record, lambda: _tell(waiter, future))])

    def remove(self, waiter: Any) -> None:
        """``waiter`` waits no longer: what it is told from now on, it passes over."""


def _tell(waiter: Any, future: Future) -> None:
    error = failure_of(future.client._connection.outcome(future._record))
    if error is None:
        waiter.add_result(future)
    elif isinstance(error, FutureCancelledError):
        waiter.add_cancelled(future)
    else:
        waiter.add_exception(future)


def _traceback_of(outcome: Outcome) -> TracebackType | None:
    if outcome.status is not FutureStatus.ERROR or isinstance(outcome.error, KilledTask):
        return None
    return serialize.load_traceback(outcome.error.error)


def _revived(wire: str) -> Future:
    """A future that came out of a pickle: the current client's, where there is one."""
    from shoal.client.current import current_client, get_client
    from shoal.shell.current import home

    key = key_from_wire(wire)
    client = current_client() if home() is None else get_client()
    return Future(key, client)
