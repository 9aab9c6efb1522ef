"""Which client is meant where none is named."""

from __future__ import annotations

import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from shoal.errors import UsageError
from shoal.shell.current import home

if TYPE_CHECKING:
    from shoal.client.client import Client

#: Set by ``Client.as_current``.
chosen: ContextVar[Any] = ContextVar("shoal_client", default=None)
_lock = threading.Lock()
_defaults: list[Client] = []
_in_tasks: dict[tuple[str, ...], Client] = {}
#: All open clients of this process.
everyone: WeakSet[Client] = WeakSet()


def remember(client: Any, default: bool) -> None:
    """A client was opened."""
    with _lock:
        everyone.add(client)
        if default:
            _defaults.append(client)


def forget(client: Any) -> None:
    """A client was closed."""
    with _lock:
        everyone.discard(client)
        if client in _defaults:
            _defaults.remove(client)
        for place, other in tuple(_in_tasks.items()):
            if other is client:
                del _in_tasks[place]


def current_client(allow_global: bool = True) -> Client | None:
    """The client chosen here, or the newest that is the default."""
    client: Client | None = chosen.get()
    if client is None and allow_global:
        with _lock:
            client = next((one for one in reversed(_defaults) if not one._connection.closed), None)
    return client


def default_client(c: Client | None = None) -> Client:
    """Return ``c``, or else the newest client that is the default.

    Raises
    ------
    UsageError
        If there is none.
    """
    found = c or current_client()
    if found is None:
        raise UsageError("no client is open; make one with Client(...)")
    return found


def get_client(address: Any = None, timeout: float | None = None, resolve_address: bool = True) -> Client:
    """Return a client: inside of a task one for the task's own cluster, elsewhere the current one.

    Parameters
    ----------
    address
        Of another scheduler than that.
    timeout
        Seconds to try to reach it.

    Raises
    ------
    UsageError
        Outside of tasks, if no client is open.
    """
    from shoal.client.client import Client

    here = home()
    if here is None:
        if address is None:
            return default_client()
        return Client(address, timeout=timeout)
    addresses = here.scheduler if address is None else [address]
    place = tuple(addresses)
    with _lock:
        known = _in_tasks.get(place)
        if known is not None and not known._connection.closed:
            return known
    client = Client(addresses, timeout=timeout, set_as_default=False, security=here.secret)
    with _lock:
        return _in_tasks.setdefault(place, client)


def get_worker() -> Any:
    """Return the worker that runs the current task.

    Raises
    ------
    ValueError
        Outside of tasks.
    """
    here = home()
    if here is None:
        raise ValueError("no worker runs this: get_worker works inside of tasks only")
    return here.program
