"""The one thread of a process that runs the event loop of its clients and clusters."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import Any, Final, TypeVar

from shoal import config
from shoal.errors import ClosedClientError
from shoal.shell import doors, limits, standard
from shoal.shell.areas import AREAS, KEEP
from shoal.shell.loops import new_event_loop
from shoal.shell.tasks import Every

T = TypeVar("T")

#: Seconds between two looks whether the loop still runs, while something is waited for.
_LOOK: Final = 2.0
#: Open files that a loop, a local cluster and its client take; those of further links are not among them.
_FILES: Final = 18

_lock = threading.Lock()
_thread: LoopThread | None = None


class LoopThread:
    """An event loop in a daemon thread."""

    def __init__(self) -> None:
        standard.ensure()
        limits.require_more(_FILES, "a program with clients or clusters")
        self.loop = new_event_loop()
        self.pid = os.getpid()
        self._thread = threading.Thread(target=self._run, name="shoal-io", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.call_soon(self._begin_tidying)
        while True:
            try:
                self.loop.run_forever()
                return
            except BaseException as error:  # as SystemExit in a callback: others that live here go on
                doors.report("callback", error, "what ran on the event loop of shoal's clients")

    def _begin_tidying(self) -> None:
        Every(0.0, self._tidy, "tidying")

    def _tidy(self) -> float:
        AREAS.trim()
        return KEEP

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._thread.is_alive()

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
        found: T = _wait_for(asyncio.run_coroutine_threadsafe(_outcome(coroutine), self.loop), self.loop, timeout)
        return found

    def check(self) -> None:
        """Raise where the loop does not run any more, so that nothing would ever come of waiting for it.

        Raises
        ------
        ClosedClientError
            With the advice to begin anew.
        """
        if not self._thread.is_alive():
            raise ClosedClientError(
                "the thread of this process that speaks with clusters has ended; make a new cluster and client"
            )


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
    future = asyncio.run_coroutine_threadsafe(_outcome(func(*args, **kwargs)), running)
    found: T = _wait_for(future, running, config.seconds(callback_timeout, "callback_timeout"))
    return found


async def _outcome(coroutine: Coroutine[Any, Any, T]) -> tuple[Any, BaseException | None]:
    """What comes of a coroutine: its value, or what it raises.

    A loop ends when SystemExit or KeyboardInterrupt comes out of a task of it, and what a function raised elsewhere may
    be one of these. They are handed to the thread that waits.
    """
    try:
        return await coroutine, None
    except asyncio.CancelledError:
        raise
    except BaseException as error:
        return None, error


def _wait_for(future: concurrent.futures.Future[Any], loop: Any, timeout: float | None) -> Any:
    due = None if timeout is None else monotonic() + timeout
    try:
        while True:
            left = _LOOK if due is None else min(_LOOK, max(0.0, due - monotonic()))
            try:
                value, error = future.result(left)
                break
            except TimeoutError:
                if due is not None and monotonic() >= due:
                    raise
                check_running(loop)
    except BaseException:
        future.cancel()  # nobody waits for it any more: the time is over, or this thread was interrupted
        raise
    if error is not None:
        raise error
    return value


def run_threadsafe(coroutine: Coroutine[Any, Any, T], loop: Any) -> concurrent.futures.Future[T]:
    """As :func:`asyncio.run_coroutine_threadsafe`; whatever the coroutine raises, the loop goes on."""
    found: concurrent.futures.Future[T] = concurrent.futures.Future()
    inner = asyncio.run_coroutine_threadsafe(_outcome(coroutine), loop)

    def pass_on(_: Any) -> None:
        if inner.cancelled():
            found.cancel()
            found.set_running_or_notify_cancel()
        elif found.set_running_or_notify_cancel():
            value, error = inner.result()
            if error is None:
                found.set_result(value)
            else:
                found.set_exception(error)

    found.add_done_callback(lambda _: inner.cancel())
    inner.add_done_callback(pass_on)
    return found


def check_running(loop: Any) -> None:
    """As :meth:`LoopThread.check`, for the loop of this process; another loop is its owner's matter."""
    if _thread is not None and _thread.loop is loop:
        _thread.check()


def get_loop_thread() -> LoopThread:
    """The loop thread of this process, started on first use (and anew in a forked child)."""
    global _thread
    with _lock:
        if _thread is None or _thread.pid != os.getpid() or not _thread.alive:
            _thread = LoopThread()
        return _thread
