"""Which event loop is used (uvloop's where it is installed), and a thread for what would stop it."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any

from shoal import config
from shoal.errors import ConfigurationError
from shoal.shell import doors


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Return a new event loop of the kind that ``distributed.admin.event-loop`` names.

    Raises
    ------
    ConfigurationError
        If there is no such kind here.
    """
    kind = str(config.get("distributed.admin.event-loop", "auto"))
    if kind not in ("auto", "uvloop", "asyncio", "tornado"):
        raise ConfigurationError(f"distributed.admin.event-loop must be auto, uvloop or asyncio, got {kind!r}")
    if kind in ("auto", "uvloop"):
        try:
            import uvloop

            return _reporting(uvloop.new_event_loop())
        except ImportError as error:
            if kind == "uvloop":
                raise ConfigurationError("distributed.admin.event-loop is uvloop, which is not installed") from error
    return _reporting(asyncio.new_event_loop())


def _reporting(loop: asyncio.AbstractEventLoop) -> asyncio.AbstractEventLoop:
    """Have what nobody caught (in callbacks, protocols, tasks) counted, and logged as shoal's own failure."""
    loop.set_exception_handler(_on_unhandled)
    return loop


def _on_unhandled(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    error = context.get("exception")
    what = str(context.get("message") or "something on the event loop")
    if error is None:
        doors.say(logging.ERROR, what)
    else:
        doors.report("program", error, f"{what}: it")


async def in_thread(function: Callable[..., Any], *args: Any) -> Any:
    """As ``asyncio.to_thread``, in a thread that is gone afterwards."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()

    def work() -> None:
        try:
            value = function(*args)
        except BaseException as error:
            loop.call_soon_threadsafe(done.set_exception, _carried(error))
        else:
            loop.call_soon_threadsafe(done.set_result, value)

    thread = threading.Thread(target=work, name="shoal-helper", daemon=True)
    thread.start()
    try:
        return await asyncio.shield(done)
    finally:
        if done.done():
            thread.join()  # it has nothing left to do


def _carried(error: BaseException) -> BaseException:
    """The error, or (a future holds no StopIteration) one that says it."""
    return RuntimeError(doors.text_of(error)) if isinstance(error, StopIteration) else error


async def first_of(timeout: float | None, *events: asyncio.Event) -> None:
    """Wait until one of ``events`` is set, or ``timeout`` seconds are over."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
