"""Where dask's collections compute: with the client that is current, wherever the code runs."""

from __future__ import annotations

import threading
from importlib import import_module
from typing import Any

from shoal.client.current import current_client, get_client
from shoal.shell.current import home


class Computing:
    """dask's scheduler while a client is the default, and inside of tasks.

    It is called, asked to persist, and asked whose method it is, as the ``get`` of a client would be; which client that
    is, is settled each time.
    """

    def __call__(self, dsk: Any, keys: Any, **kwargs: Any) -> Any:
        """Compute ``keys`` of a graph."""
        client = self._client()
        if client is not None and client.asynchronous:
            raise RuntimeError(
                "an asynchronous client cannot compute here, where nobody awaits it: write "
                "'await client.compute(collection)', or '(scheduler=\"threads\")' to compute in this process"
            )
        if client is None:
            import dask.threaded

            return dask.threaded.get(dsk, keys, **kwargs)
        return client.get(dsk, keys, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name in ("persist", "__self__") and (client := self._client()) is not None:
            return client.persist if name == "persist" else client
        raise AttributeError(name)

    def _client(self) -> Any:
        return get_client() if home() is not None else current_client()

    def __eq__(self, other: object) -> bool:
        """dask asks whether it is the ``get`` of the current client, to know where a lock has to hold."""
        if other is self:
            return True
        client = getattr(other, "__self__", None)
        return client is not None and getattr(other, "__name__", "") == "get" and client is self._client()

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        return "<dask's scheduler: shoal's current client>"


#: The one of this process.
COMPUTING = Computing()

_lock = threading.Lock()
_users = 0
_settings: Any = None


def take_over() -> None:
    """Have dask compute with shoal's current client from now on."""
    global _users, _settings
    dask_config = import_module("dask.config")  # which may be all that there is of dask at this moment
    with _lock:
        _users += 1
        if _users == 1:
            methods = {"dataframe.shuffle.method": "tasks", "array.rechunk.method": "tasks"}
            _settings = dask_config.set({"scheduler": COMPUTING, **methods})


def hand_back() -> None:
    """One who called :func:`take_over` has gone; after the last, dask computes as it did before."""
    global _users, _settings
    with _lock:
        _users -= 1
        if not _users:
            settings, _settings = _settings, None
            settings.__exit__(None, None, None)
