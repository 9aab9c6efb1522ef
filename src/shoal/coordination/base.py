"""What locks, events, queues and variables have in common: a name that everybody knows them by, and a client."""

from __future__ import annotations

from collections.abc import Callable, Generator
from html import escape
from typing import TYPE_CHECKING, Any, Self
from uuid import uuid4

from shoal import checks, config
from shoal.client.current import get_client
from shoal.errors import UsageError

if TYPE_CHECKING:
    from shoal.client.client import Client


class Shared:
    """A thing of this name that lives in the scheduler: objects of the same name mean the same thing.

    It belongs to the client that is current when it is first used, inside of a task to that of the task. It can be
    pickled. With an asynchronous client, its methods are awaited.
    """

    def __init__(self, name: str | None = None, client: Any = None) -> None:
        given = None if name == "" else checks.optional_name(name, "name")
        self.name = given or f"{type(self).__name__.lower()}-{uuid4().hex}"
        self._client = client

    @property
    def client(self) -> Client:
        """The client that it speaks through."""
        if self._client is None:
            self._client = get_client()
        found: Client = self._client
        return found

    async def _meet(self, what: str, **args: Any) -> Any:
        """The scheduler's answer, from whatever loop this is called on."""
        client = self.client
        _, value = await client._await(client._connection.meet(what, self.name, **args))
        return value

    @property
    def asynchronous(self) -> bool:
        """Whether its methods are to be awaited here."""
        return self.client.asynchronous

    def sync(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a coroutine function on its client's event loop, as :meth:`Client.sync`."""
        return self.client.sync(func, *args, **kwargs)

    def __await__(self) -> Generator[Any, None, Self]:
        async def ready() -> Self:
            return self

        return ready().__await__()

    def __reduce__(self) -> Any:
        return type(self), (self.name,)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.name == self.name

    def __hash__(self) -> int:
        return hash((type(self), self.name))

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.name}>"

    def _repr_html_(self) -> str:
        return f"<b>{type(self).__name__}</b> <code>{escape(self.name)}</code>"


def limit(timeout: Any) -> float | None:
    """A timeout in seconds, from 0 on; None is for ever.

    Raises
    ------
    UsageError
        If it is no time.
    """
    found = config.seconds(timeout, "timeout")
    if found is not None and found < 0:
        raise UsageError(f"timeout must not be negative, got {timeout!r}")
    return found
