"""The calls that a nanny answers at an address of its own: start, kill, restart, close, run, plugins, logs.

Whoever calls has proven the cluster's secret, as on every link.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from shoal.errors import UsageError
from shoal.messages import Answer, FromCaller, Order
from shoal.shell import doors, serialize
from shoal.shell.addresses import Listening, listen_at_one
from shoal.shell.link import Identity, Link
from shoal.shell.network import Server
from shoal.shell.tasks import Tasks

if TYPE_CHECKING:
    from shoal.programs.nanny import NannyProgram


class Orders:
    """Listens for one nanny.

    Parameters
    ----------
    nanny
        Whom the calls are for.
    secret
        The cluster's secret.
    where
        Addresses to try.
    """

    def __init__(self, nanny: NannyProgram, secret: bytes, where: Listening) -> None:
        self._nanny, self._where = nanny, where
        self._identity = Identity("nanny", nanny.id, secret, {"client": FromCaller})
        self._servers: list[Server] = []
        self._links: set[Link] = set()
        self._tasks = Tasks("the nanny")
        self.address = "not running"
        self._calls: dict[str, Callable[..., Awaitable[Any]]] = {
            "instantiate": nanny.instantiate,
            "kill": nanny.kill,
            "restart": nanny.restart,
            "close_gracefully": nanny.close_gracefully,
            "terminate": self._terminate,
            "run": nanny.run,
            "plugin_add": nanny.plugin_add,
            "plugin_remove": nanny.plugin_remove,
            "get_logs": self._get_logs,
            "identity": self._identify,
        }

    async def start(self) -> None:
        """Listen.

        Raises
        ------
        ConfigurationError
            If none of the addresses is free.
        """
        self._servers, (self.address,) = await listen_at_one(self._where, self._make_link, self._identity.secret)

    def _make_link(self) -> Link:
        return Link(
            self._identity, False, self._links.add, self._on_messages, lambda link, _: self._links.discard(link)
        )

    def _on_messages(self, link: Link, messages: list[Any]) -> None:
        for message in messages:
            if isinstance(message, Order):
                self._tasks.spawn(self._obey(link, message))
            else:
                link.close()

    async def _obey(self, link: Link, order: Order) -> None:
        try:
            call = self._calls.get(order.what)
            if call is None:
                raise UsageError(f"a nanny cannot {order.what!r}; it can {', '.join(sorted(self._calls))}")
            payload = serialize.dumps_safely((True, await call(**serialize.loads(order.payload))), "the answer")
        except BaseException as error:
            if doors.is_for_us(error, awaiting=True):
                raise
            payload = serialize.dumps((False, serialize.error_parts(error)))
        link.send(Answer(order.rid, payload))

    async def _terminate(self, reason: str = "told to end") -> str:
        """Close; the caller hears that before it happens."""
        asyncio.get_running_loop().call_later(0.05, self._nanny.end, reason)
        return "OK"

    async def _get_logs(self, n: int | None = None) -> list[tuple[str, str]]:
        return self._nanny.get_logs(n)

    async def _identify(self) -> dict[str, Any]:
        nanny = self._nanny
        return {
            "type": "Nanny",
            "id": nanny.id,
            "name": nanny.name,
            "address": self.address,
            "worker": nanny.worker_address,
            "pid": nanny.pid,
            "memory_limit": nanny.memory_limit,
        }

    def close(self) -> None:
        """Stop listening."""
        for server in self._servers:
            server.close()
        for link in tuple(self._links):
            link.close("the nanny closed")
