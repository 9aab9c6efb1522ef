"""The one thread of a process that runs the event loop of its clients and clusters."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from shoal import config
from shoal.shell.areas import AREAS, KEEP
from shoal.shell.loops import new_event_loop

T = TypeVar("T")

_lock = threading.Lock()
_thread: LoopThread | None = None


class LoopThread:
    """An event loop in a daemon thread."""

    def __init__(self) -> None:
        self.loop = new_event_loop()
        self.pid = os.getpid()
        self._thread = threading.Thread(target=self._run, name="shoal-io", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self._tidy()
        self.loop.run_forever()

    def _tidy(self) -> None:
        AREAS.trim()
        self.loop.call_later(KEEP, self._tidy)

    @property
    def here(self) -> bool:
        """Whether this is called on the loop."""
        return threading.current_thread() is self._thread

    def sync(self, coroutine: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Run ``coroutine`` on the loop and wait for it here.

        Raises
        ------
        RuntimeError
            If called on the loop itself, where waiting would never end.
        """
        if self.here:
            coroutine.close()
            raise RuntimeError("a blocking call was made on the event loop; await the asynchronous form instead")
        future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        try:
            return future.result(timeout)
        except BaseException:
            future.cancel()  # nobody waits for it any more, if this thread was interrupted
            raise


def sync(
    loop: Any,
    func: Callable[..., Coroutine[Any, Any, T]],
    *args: Any,
    callback_timeout: float | None = None,
    **kwargs: Any,
) -> T:
    """Run a coroutine function on an event loop that runs in another thread, and wait for it.

    Parameters
    ----------
    loop
        The event loop, as ``client.loop``.
    func, *args, **kwargs
        What to call there.
    callback_timeout
        Seconds, or text as ``"10 s"``, to wait.

    Raises
    ------
    TimeoutError
        After ``callback_timeout``.
    RuntimeError
        If this is called on that loop, where waiting would never end.
    """
    running: asyncio.AbstractEventLoop = getattr(loop, "asyncio_loop", loop)
    try:
        here = asyncio.get_running_loop() is running
    except RuntimeError:
        here = False
    if here:
        raise RuntimeError("sync was called on the event loop that it would wait for; await the coroutine instead")
    future = asyncio.run_coroutine_threadsafe(func(*args, **kwargs), running)
    try:
        return future.result(config.seconds(callback_timeout, "callback_timeout"))
    except BaseException:
        future.cancel()
        raise


def get_loop_thread() -> LoopThread:
    """The loop thread of this process, started on first use (and anew in a forked child)."""
    global _thread
    with _lock:
        if _thread is None or _thread.pid != os.getpid():
            _thread = LoopThread()
        return _thread
