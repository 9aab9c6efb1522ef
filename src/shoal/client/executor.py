"""``client.get_executor()``: the cluster as an executor of :mod:`concurrent.futures`."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Iterable, Iterator
from time import monotonic
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from shoal.client.future import Future
from shoal.errors import FutureCancelledError

if TYPE_CHECKING:
    from shoal.client.client import Client

_OPTIONS = frozenset(
    {"allow_other_workers", "killable", "priority", "pure", "resources", "retries", "task_timeout", "workers"}
)


class _Call(concurrent.futures.Future[Any]):
    """A future of :mod:`concurrent.futures` that stands for one of shoal's."""

    def __init__(self, future: Future) -> None:
        super().__init__()
        self._future = future
        future.add_done_callback(self._on_done)

    def cancel(self) -> bool:
        """Cancel the task, running or not; return False if it is done."""
        if not self._set_cancelled():
            return False
        self._future.cancel()
        return True

    def _set_cancelled(self) -> bool:
        if self.cancelled():
            return True
        if not super().cancel():
            return False
        try:
            self.set_running_or_notify_cancel()
        except RuntimeError:
            pass  # another thread came first
        return True

    def _on_done(self, future: Future) -> None:
        try:
            error = future.exception()
            value = future.result() if error is None else None
        except BaseException as broken:  # it cannot be fetched or unpickled: whoever waits for it is told
            error, value = broken, None
        try:
            if isinstance(error, FutureCancelledError):
                self._set_cancelled()
            elif error is not None:
                self.set_exception(error)
            else:
                self.set_result(value)
        except concurrent.futures.InvalidStateError:
            pass  # it was cancelled here meanwhile


class ClientExecutor(concurrent.futures.Executor):
    """Run calls on the cluster, by the interface that the standard library's pools have.

    Parameters
    ----------
    client
        Of the cluster.
    **kwargs
        For all calls, as for :meth:`Client.submit`: ``workers``, ``resources``, ``retries``, ``priority``,
        ``allow_other_workers``, ``killable``, ``task_timeout``, ``pure`` (False, unless it is given).

    Raises
    ------
    TypeError
        If there is no such option.

    Examples
    --------
    >>> with client.get_executor() as executor:  # doctest: +SKIP
    ...     list(executor.map(str, range(3)))
    ['0', '1', '2']
    """

    def __init__(self, client: Client, **kwargs: Any) -> None:
        unknown = sorted(set(kwargs) - _OPTIONS)
        if unknown:
            raise TypeError(f"an executor does not know {unknown[0]!r}; options are {', '.join(sorted(_OPTIONS))}")
        self._client = client
        self._options = {"pure": False, **kwargs}
        self._calls: WeakSet[_Call] = WeakSet()
        self._shutdown = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[Any]:
        """Run ``fn(*args, **kwargs)`` on a worker.

        Raises
        ------
        RuntimeError
            After :meth:`shutdown`.
        """
        if self._shutdown:
            raise RuntimeError("cannot schedule new futures after shutdown")
        clash = sorted(set(kwargs) & (_OPTIONS | {"key", "actor", "actors", "fifo_timeout"}))
        if clash:
            # these are arguments of the user's function here, whatever Client.submit takes them for
            fn, kwargs = _Keywords(fn, kwargs), {}
        call = _Call(self._client.submit(fn, *args, **kwargs, **self._options))
        self._calls.add(call)
        return call

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
        **kwargs: Any,
    ) -> Iterator[Any]:
        """Run ``fn`` on the zipped iterables; iterate over the results in order.

        Parameters
        ----------
        timeout
            Seconds from now for each result to come.
        chunksize, buffersize
            Accepted: calls are sent together anyway.

        Raises
        ------
        TimeoutError
            From the iterator, when it is late; what is left is cancelled.
        """
        if kwargs:
            raise TypeError(f"map got unexpected arguments: {', '.join(sorted(kwargs))}")
        if self._shutdown:
            raise RuntimeError("cannot schedule new futures after shutdown")
        due = None if timeout is None else monotonic() + timeout
        futures = self._client.map(fn, *iterables, **self._options)
        calls = [_Call(future) for future in futures]
        self._calls.update(calls)

        def results() -> Iterator[Any]:
            try:
                while calls:
                    yield calls[0].result(None if due is None else due - monotonic())
                    del calls[0]
            finally:
                for call in calls:
                    call.cancel()

        return results()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; wait for those that are under way, or cancel them."""
        self._shutdown = True
        calls = list(self._calls)
        if cancel_futures:
            for call in calls:
                call.cancel()
        if wait:
            concurrent.futures.wait(calls)

    def __repr__(self) -> str:
        return f"<ClientExecutor of {self._client!r}>"


class _Keywords:
    """A function with keyword arguments of names that :meth:`Client.submit` has, too."""

    def __init__(self, fn: Callable[..., Any], kwargs: dict[str, Any]) -> None:
        self.fn, self.kwargs = fn, kwargs
        self.__name__ = str(getattr(fn, "__name__", type(fn).__name__))

    def __call__(self, *args: Any) -> Any:
        return self.fn(*args, **self.kwargs)
