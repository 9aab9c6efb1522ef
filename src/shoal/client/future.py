"""A handle on one task's result."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from types import TracebackType
from typing import TYPE_CHECKING, Any

from shoal.errors import FutureCancelledError, KilledWorker, LostDataError
from shoal.ids import key_from_wire
from shoal.messages import KilledTask, TaskError
from shoal.shell import serialize

if TYPE_CHECKING:
    from shoal.client.client import Client


class FutureState:
    """What is known of one key, shared by all futures of it. Changed on the loop only, but for ``refs``."""

    __slots__ = ("callbacks", "error", "event", "key", "lost", "reason", "refs", "status", "type", "value")

    def __init__(self, key: str) -> None:
        self.key = key
        self.refs = 0
        self.status = "pending"
        #: The payload, where the result was small enough to come with the news.
        self.value: Any = None
        self.type = ""
        self.error: Any = None
        self.reason = ""
        self.lost = False
        self.event = threading.Event()
        self.callbacks: list[Callable[[], None]] = []

    def settle(self, status: str) -> None:
        """The key is done, one way or another."""
        self.status = status
        self.event.set()
        callbacks, self.callbacks = self.callbacks, []
        for callback in callbacks:
            callback()

    def restart(self) -> None:
        """The key is being computed again."""
        self.status, self.value, self.error = "pending", None, None
        self.event.clear()

    def failure(self) -> BaseException | None:
        """The exception that ``result`` raises, if any."""
        if self.status in ("cancelled", "lost"):
            key = key_from_wire(self.key)
            return LostDataError(self.reason) if self.lost else FutureCancelledError(key, self.reason)
        if self.status != "error":
            return None
        if isinstance(self.error, KilledTask):
            return KilledWorker(self.error.origin, self.error.deaths, self.error.allowed_failures)
        return serialize.load_error(self.error)


class Future:
    """The result of a task that runs, or ran, on the cluster.

    Released when the last reference to it goes away; the cluster then forgets what nobody else needs.
    """

    __slots__ = ("__weakref__", "_client", "_released", "_state", "key")

    def __init__(self, key: Any, client: Client, state: FutureState) -> None:
        self.key = key
        self._client = client
        self._state = state
        self._released = False

    @property
    def client(self) -> Client:
        return self._client

    @property
    def status(self) -> str:
        """``pending``, ``finished``, ``error``, ``cancelled`` or ``lost``."""
        return self._state.status

    @property
    def type(self) -> str:
        """Name of the result's type, once it is known."""
        return self._state.type

    def done(self) -> bool:
        """Whether it is not pending any more."""
        return self._state.status != "pending"

    def cancelled(self) -> bool:
        return self._state.status == "cancelled"

    def _wait(self, timeout: float | None) -> None:
        self._client._check_open()
        if not self._state.event.wait(timeout):
            raise TimeoutError(f"{self.key!r} was still pending after {timeout:g} s")

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the result and return it.

        Raises
        ------
        TimeoutError
            After ``timeout`` seconds.
        Exception
            Whatever the task raised, with its traceback.
        """
        self._wait(timeout)
        error = self._state.failure()
        if error is not None:
            raise error
        value = self._state.value
        return serialize.loads(value) if value is not None else self._client.gather(self)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait, then return what the task raised, or None."""
        self._wait(timeout)
        return self._state.failure()

    def traceback(self, timeout: float | None = None) -> TracebackType | None:
        """Wait, then return the traceback of what the task raised, or None."""
        self._wait(timeout)
        error = self._state.error
        return serialize.load_traceback(error) if isinstance(error, TaskError) else None

    def add_done_callback(self, fn: Callable[[Future], Any]) -> None:
        """Call ``fn(future)`` in a helper thread once it is done."""
        self._client._when_done(self._state, lambda: self._client._run_callback(fn, self))

    def cancel(self, reason: str | None = None, msg: str | None = None) -> None:
        """Cancel the task."""
        self._client.cancel(self, reason=reason, msg=msg)

    def retry(self) -> None:
        """Run it again if it failed."""
        self._client.retry(self)

    def release(self) -> None:
        """Let go of the result; it is freed when nobody else needs it."""
        if not self._released:
            self._released = True
            self._client._release(self._state)

    def __del__(self) -> None:
        self.release()

    def __await__(self) -> Generator[Any, None, Any]:
        return self._client._result(self).__await__()

    def __repr__(self) -> str:
        kind = f", type: {self.type}" if self.type else ""
        return f"<Future: {self.status}{kind}, key: {self.key!r}>"
