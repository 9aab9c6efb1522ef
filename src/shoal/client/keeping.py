"""Futures inside of collections, and tasks that are to be run although nobody holds their future."""

from __future__ import annotations

from typing import Any

from shoal.client.future import Future
from shoal.errors import FutureCancelledError
from shoal.messages import FireAndForget


def futures_of(o: Any, client: Any = None) -> list[Future]:
    """The futures inside of dask collections, lists, tuples, sets and dicts.

    Parameters
    ----------
    o
        Where to look.
    client
        Given one, futures that were cancelled are an error.

    Raises
    ------
    FutureCancelledError
        If a ``client`` is given and one was cancelled.

    Examples
    --------
    >>> futures_of(dask.array.ones(10, chunks=5).persist())  # doctest: +SKIP
    [<Future: finished, ...>, <Future: finished, ...>]
    """
    from dask.base import is_dask_collection

    found: dict[Future, None] = {}
    seen: set[int] = set()
    stack = [o]
    while stack:
        one = stack.pop()
        if isinstance(one, Future):
            found[one] = None
        elif isinstance(one, list | tuple | set | frozenset | dict):
            if id(one) not in seen:
                seen.add(id(one))
                stack += one.values() if isinstance(one, dict) else one
        elif is_dask_collection(one):
            graph = one.__dask_graph__()
            stack += (dict(graph) if graph is not None else {}).values()
        else:
            inner = getattr(one, "value", None)  # dask's node around data
            if isinstance(inner, Future):
                found[inner] = None
    futures = list(found)[::-1]
    if client is not None:
        for future in futures:
            if future.cancelled():
                raise FutureCancelledError(future.key, future._record.reason)
    return futures


def fire_and_forget(obj: Any) -> None:
    """Have tasks run to their end even if no future of them is held any more.

    Their results are let go of then, if nobody else wants them.

    Parameters
    ----------
    obj
        A future, or collections of them.

    Examples
    --------
    >>> fire_and_forget(client.submit(print, "hello"))  # doctest: +SKIP
    """
    by_client: dict[Any, list[str]] = {}
    for future in futures_of(obj):
        by_client.setdefault(future.client, []).append(future._record.key)
    for client, keys in by_client.items():
        client._connection.say(FireAndForget(keys))
