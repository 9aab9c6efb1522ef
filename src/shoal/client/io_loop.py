"""An event loop with the methods that code written for tornado's loops calls."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

from shoal.shell import doors


class IOLoop:
    """An asyncio event loop: all its methods, and a few of tornado's, of which :meth:`add_callback` is the usual one.

    Parameters
    ----------
    asyncio_loop
        The loop that it stands for.
    """

    def __init__(self, asyncio_loop: asyncio.AbstractEventLoop) -> None:
        self.asyncio_loop = asyncio_loop
        self._tasks: set[asyncio.Task[Any]] = set()

    def add_callback(self, callback: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Call ``callback`` on the loop soon, from any thread; a coroutine function is awaited there."""
        self.asyncio_loop.call_soon_threadsafe(self._call, callback, args, kwargs)

    spawn_callback = add_callback_from_signal = add_callback

    def _call(self, callback: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found = doors.call("callback", callback, *args, **kwargs)
        if inspect.isawaitable(found):
            task = asyncio.get_running_loop().create_task(doors.wait("callback", lambda: found))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.asyncio_loop, name)

    def __eq__(self, other: object) -> bool:
        return other is self.asyncio_loop or (isinstance(other, IOLoop) and other.asyncio_loop is self.asyncio_loop)

    def __hash__(self) -> int:
        return hash(self.asyncio_loop)

    def __repr__(self) -> str:
        return f"<IOLoop of {self.asyncio_loop!r}>"
