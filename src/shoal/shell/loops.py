"""Which event loop is used (uvloop's where it is installed), and a thread for what would stop it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Return a new event loop."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


async def in_thread(function: Callable[..., Any], *args: Any) -> Any:
    """As ``asyncio.to_thread``, in a thread that is gone afterwards."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()

    def work() -> None:
        try:
            value = function(*args)
        except BaseException as error:
            loop.call_soon_threadsafe(done.set_exception, error)
        else:
            loop.call_soon_threadsafe(done.set_result, value)

    thread = threading.Thread(target=work, name="shoal-helper", daemon=True)
    thread.start()
    try:
        return await asyncio.shield(done)
    finally:
        if done.done():
            thread.join()  # it has nothing left to do
