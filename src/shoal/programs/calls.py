"""Functions that a user sends to be run at once, in a worker or the scheduler."""

from __future__ import annotations

import inspect
from typing import Any

from shoal.shell import serialize


async def call_user(payload: Any, **special: Any) -> Any:
    """Run a pickled ``(function, args, kwargs)`` and return the payload of ``(succeeded, value or error)``.

    ``special`` holds what is passed if the function has a parameter of that name (``dask_worker``,
    ``dask_scheduler``). Coroutine functions are awaited.
    """
    try:
        function, args, kwargs = serialize.loads(payload)
        try:
            parameters = inspect.signature(function).parameters
        except (TypeError, ValueError):
            parameters = {}  # type: ignore[assignment]
        kwargs = {**kwargs, **{name: value for name, value in special.items() if name in parameters}}
        value = function(*args, **kwargs)
        if inspect.isawaitable(value):
            value = await value
        return serialize.dumps((True, value), "the result of the function")
    except Exception as error:
        return serialize.dumps((False, serialize.error_parts(error)))
