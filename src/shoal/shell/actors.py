"""Stateful objects that tasks made and left on this worker; calls of each run in a thread of its own, in order."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from types import CoroutineType
from typing import Any

from shoal.errors import LostActorError
from shoal.shell import current, serialize


class Actors:
    """The objects, by the key of the task that made each.

    Parameters
    ----------
    home
        What their methods find as their worker.
    """

    def __init__(self, home: current.Home) -> None:
        self._home = home
        self._held: dict[str, tuple[Any, ThreadPoolExecutor]] = {}

    def add(self, key: str, instance: Any) -> None:
        """Keep ``instance`` until the value of ``key`` is dropped; called in the thread of the task."""
        self.drop([key])  # one that was made before under this key
        thread = ThreadPoolExecutor(1, f"shoal-actor-{key}", initializer=current.enter, initargs=(self._home,))
        self._held[key] = (instance, thread)

    async def call(self, key: str, name: str, payload: Any) -> Any:
        """Call a method with the pickled arguments, or for None read an attribute; return a pickled pair of success
        and value."""
        held = self._held.get(key)
        if held is None:
            lost = LostActorError(f"there is no actor {key!r} here: everybody let go of it")
            return serialize.dumps((False, serialize.error_parts(lost)))
        return await asyncio.get_running_loop().run_in_executor(held[1], _call, held[0], name, payload)

    def drop(self, keys: Iterable[str]) -> None:
        for key in keys:
            held = self._held.pop(key, None)
            if held is not None:
                held[1].shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        self.drop(tuple(self._held))


def _call(instance: Any, name: str, payload: Any) -> Any:
    try:
        value = getattr(instance, name)
        if payload is not None:
            args, kwargs = serialize.loads(payload)
            value = value(*args, **kwargs)
            if type(value) is CoroutineType:
                value = asyncio.run(value)
        return serialize.dumps_safely((True, value), f"the result of {name}")
    except BaseException as error:  # it is the answer
        return serialize.dumps((False, serialize.error_parts(error)))
