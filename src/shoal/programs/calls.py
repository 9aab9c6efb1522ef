"""Functions that a user sends to be run at once, in a worker or the scheduler."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from shoal.shell import doors, serialize


async def call_user(payload: Any, **special: Any) -> Any:
    """Run a pickled ``(function, args, kwargs)`` and return the payload of ``(succeeded, value or error)``.

    ``special`` is as for :func:`call_function`.
    """
    try:
        value = await doors.settled(call_function(*serialize.loads(payload), **special))
        return serialize.dumps_safely((True, value), "the result of the function")
    except BaseException as error:  # whatever it raises is the answer, SystemExit too
        if doors.is_for_us(error, awaiting=True):
            raise
        return serialize.dumps((False, serialize.error_parts(error)))


async def call_function(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], **special: Any
) -> Any:
    """Call a function, and await it if it is a coroutine function.

    ``special`` holds what is passed if the function has a parameter of that name (``dask_worker``,
    ``dask_scheduler``).
    """
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        parameters = {}  # type: ignore[assignment]
    given = {name: value for name, value in special.items() if name in parameters}
    return await doors.settled(function(*args, **{**kwargs, **given}))
