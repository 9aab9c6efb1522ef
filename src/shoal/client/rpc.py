"""Calls to a nanny by its address."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Self
from uuid import uuid4

from shoal.messages import Order, ToCaller
from shoal.messages import TaskError as SentError
from shoal.security import secret_of
from shoal.shell import serialize
from shoal.shell.link import Identity
from shoal.shell.peers import PeerPool


class rpc:
    """What a nanny can be told from elsewhere: each attribute is a coroutine function of keyword arguments.

    ``instantiate``, ``kill``, ``restart``, ``close_gracefully``, ``terminate``, ``run``, ``plugin_add``,
    ``plugin_remove``, ``get_logs``, ``identity``.

    Parameters
    ----------
    address
        Of the nanny: ``nanny.address``, or ``["nanny"]`` of a worker in ``client.scheduler_info()``.
    security
        :class:`Security` with the cluster's secret; this user's own by default.

    Examples
    --------
    >>> async with rpc(address) as nanny:  # doctest: +SKIP
    ...     await nanny.restart(timeout=10)
    """

    def __init__(self, address: str, security: Any = None) -> None:
        self.address = address
        self._pool = PeerPool(Identity("client", f"Caller-{uuid4().hex}", secret_of(security), {"nanny": ToCaller}))

    def __getattr__(self, name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        if name.startswith("_"):
            raise AttributeError(name)

        async def call(**arguments: Any) -> Any:
            payload = serialize.dumps(arguments, f"an argument of {name}")
            answer = await self._pool.request(
                self.address, [self.address], lambda rid: Order(rid, name, payload), patient=True
            )
            good, value = serialize.loads(answer.value)
            if not good:
                raise serialize.load_error(SentError(*value))
            return value

        return call

    def close(self) -> None:
        """Close the link."""
        self._pool.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *args: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<rpc to {self.address}>"
