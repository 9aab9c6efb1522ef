"""What a program needs of the outside world, as protocols: the real ones and the simulated ones have the same shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from shoal.core.effects import Effect
from shoal.core.events import Event


class Core(Protocol):
    """A machine without IO: events in, effects out."""

    def handle(self, events: Sequence[Event], now: float) -> list[Effect]: ...

    def deadline(self) -> float | None: ...


class Clock(Protocol):
    """Monotonic seconds."""

    def __call__(self) -> float: ...


class Connection(Protocol):
    """An open link to a peer."""

    @property
    def peer_id(self) -> str: ...

    def send(self, message: Any) -> None: ...

    def close(self, reason: str = "") -> None: ...


class Executor(Protocol):
    """Threads that run tasks."""

    def submit(self, run: Any) -> None: ...

    def cancel(self, keys: Sequence[str]) -> None: ...

    def close(self) -> None: ...


class Store(Protocol):
    """Values by key."""

    def put(self, key: str, value: Any) -> None: ...

    def drop(self, keys: Sequence[str]) -> None: ...


OnMessages = Callable[[Any, list[Any]], None]
OnClosed = Callable[[Any, str], None]
