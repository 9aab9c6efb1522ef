"""``client.scheduler``: the scheduler's questions as coroutines, as code knows them that spoke to it by itself."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from shoal.ids import key_from_wire, key_to_wire

if TYPE_CHECKING:
    from shoal.client.client import Client

_BY_KEY = frozenset({"who_has"})
_OF_KEYS = frozenset({"has_what", "processing"})
_NAMES = {"ncores": "nthreads"}


class RemoteScheduler:
    """The scheduler of a client; each attribute is a coroutine function, as ``await client.scheduler.identity()``.

    Parameters
    ----------
    client
        To speak through.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    @property
    def address(self) -> str:
        """Where the scheduler is."""
        return self._client.scheduler_address

    def __getattr__(self, name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        if name.startswith("_"):
            raise AttributeError(name)

        async def ask(**args: Any) -> Any:
            client = self._client
            if args.get("keys") is not None:
                args["keys"] = [key_to_wire(key) for key in args["keys"]]
            found = await client._await(client._connection.ask(_NAMES.get(name, name), **args))
            if name in _BY_KEY:
                return {key_from_wire(key): tuple(where) for key, where in found.items()}
            if name in _OF_KEYS:
                return {where: tuple(map(key_from_wire, keys)) for where, keys in found.items()}
            return {**found, "address": self.address} if name == "identity" else found

        return ask

    def __repr__(self) -> str:
        return f"<the scheduler at {self.address}>"
