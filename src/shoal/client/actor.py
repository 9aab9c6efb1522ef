"""Actors: objects that live on a worker, and what stands for them elsewhere."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from functools import partial
from typing import Any

from shoal import checks
from shoal.client.current import current_client, get_client
from shoal.client.future import Future
from shoal.client.loop import run_threadsafe
from shoal.errors import LinkError, LostActorError, SerializationError, UsageError
from shoal.ids import key_from_wire
from shoal.messages import ActorCall
from shoal.messages import TaskError as SentError
from shoal.shell import serialize
from shoal.shell.current import home
from shoal.shell.executor import current_key


class MakeActor:
    """What a worker runs for ``Client.submit(cls, actor=True)``."""

    def __init__(self, cls: Callable[..., Any]) -> None:
        self.cls = cls
        self.__name__ = str(getattr(cls, "__name__", type(cls).__name__))

    def __call__(self, *args: Any, **kwargs: Any) -> Actor:
        here, key = home(), current_key()
        assert here is not None
        assert key is not None
        instance = self.cls(*args, **kwargs)
        here.program.actors.add(key, instance)
        return Actor(type(instance), key, here.program.id, here.program.addresses)


class Actor:
    """Stands for an object on a worker: its methods are called there, one after another.

    A method returns an :class:`ActorFuture`; an attribute is read at once. The object is never copied and never made
    anew: when its worker is gone, so is it, and calls raise :class:`~shoal.errors.LostActorError`.

    >>> counter = client.submit(Counter, actor=True).result()  # doctest: +SKIP
    >>> counter.increment().result()  # doctest: +SKIP
    1
    """

    def __init__(self, cls: type, key: str, worker: str, addresses: list[str]) -> None:
        self._cls, self._key, self._worker, self._addresses = cls, key, worker, addresses
        #: Keeps the object alive, in the process of a user.
        self._future: Future | None = None

    @property
    def client(self) -> Any:
        """The client through which its methods are called."""
        return get_client()

    @property
    def key(self) -> Any:
        """The key of the task that made it."""
        return key_from_wire(self._key)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if callable(getattr(self._cls, name, None)):
            return partial(self._method, name)
        client = get_client()
        return client._sync(self._ask(client, checks.name(name, "name"), None))

    def _method(self, name: str, *args: Any, **kwargs: Any) -> ActorFuture:
        client = get_client()
        payload = serialize.dumps((args, kwargs), f"an argument of {name}")
        return ActorFuture(client, self._ask(client, name, payload))

    async def _ask(self, client: Any, name: str, payload: Any) -> Any:
        def make(rid: int) -> ActorCall:
            return ActorCall(rid, self._key, name, payload)

        try:
            answer = await client._connection.peers.request(self._worker, self._addresses, make, patient=True)
        except LinkError as error:
            raise LostActorError(f"the worker of actor {self._key!r} cannot be reached: {error}") from error
        if answer.error is not None:
            raise SerializationError(answer.error)
        good, value = serialize.loads(answer.value)
        if not good:
            raise serialize.load_error(SentError(*value))
        return value

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *dir(self._cls)]

    def __repr__(self) -> str:
        return f"<Actor: {self._cls.__name__}, key={self._key}>"

    def __reduce__(self) -> Any:
        return _revived, (self._cls, self._key, self._worker, self._addresses)


def _revived(cls: type, key: str, worker: str, addresses: list[str]) -> Actor:
    actor = Actor(cls, key, worker, addresses)
    if home() is None:
        actor._future = Future(key_from_wire(key), current_client())
    return actor


class BaseActorFuture(ABC):
    """The result of a call of an actor's method, which can be awaited."""

    @abstractmethod
    def result(self, timeout: float | None = None) -> Any:
        """Wait for the result."""

    @abstractmethod
    def done(self) -> bool:
        """Whether the call has ended."""

    @abstractmethod
    def __await__(self) -> Generator[Any, None, Any]:
        """Wait for the result on an event loop."""


class ActorFuture(BaseActorFuture):
    """The result of a call of an actor's method, which was sent when this was made."""

    def __init__(self, client: Any, coroutine: Any) -> None:
        self._client = client
        self._future = run_threadsafe(coroutine, client._connection.loop)

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the result.

        Raises
        ------
        TimeoutError
            After ``timeout`` seconds.
        UsageError
            On the event loop that would have to bring it; ``await`` it there.
        """
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is self._client._connection.loop and not self.done():
            raise UsageError("result() would wait for ever here; await the future instead")
        return self._future.result(timeout)

    def done(self) -> bool:
        """Whether the call has ended."""
        return self._future.done()

    def __await__(self) -> Generator[Any, None, Any]:
        return asyncio.wrap_future(self._future).__await__()

    def __repr__(self) -> str:
        return f"<ActorFuture: {'done' if self.done() else 'pending'}>"
