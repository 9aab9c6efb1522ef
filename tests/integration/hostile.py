"""Objects whose methods misbehave, and how they do: what tests of code outside of tasks throw at shoal."""

from __future__ import annotations

import _thread
import asyncio
from collections.abc import Callable
from typing import Any


class Rude(BaseException):
    """An exception that derives from nothing usual."""


class Index:
    """A number that raises when it is used as one."""

    def __index__(self) -> int:
        raise Rude("no index")

    __int__ = __index__


def recurse() -> Any:
    """Call itself without end."""
    return recurse()


def _raiser(error: Callable[[], BaseException]) -> Callable[[], Any]:
    def act() -> Any:
        raise error()

    return act


#: What a method may do instead of its work, by name: raise, or return what makes no sense.
DEEDS: dict[str, Callable[[], Any]] = {
    "Exception": _raiser(lambda: KeyError("nbytes")),
    "BaseException": _raiser(lambda: Rude("not usual")),
    "SystemExit": _raiser(lambda: SystemExit(3)),
    "KeyboardInterrupt": _raiser(KeyboardInterrupt),
    "GeneratorExit": _raiser(GeneratorExit),
    "StopIteration": _raiser(StopIteration),
    "StopAsyncIteration": _raiser(StopAsyncIteration),
    "CancelledError": _raiser(asyncio.CancelledError),
    "MemoryError": _raiser(MemoryError),
    "recursion": recurse,
    "end of thread": _thread.exit,
    "huge": lambda: 10**30,
    "negative": lambda: -1,
    "None": lambda: None,
    "text": lambda: "text",
    "nan": lambda: float("nan"),
    "index": Index,
}

#: Methods that a result is asked for by somebody other than its task.
METHODS = (
    "__sizeof__", "__repr__", "__str__", "__eq__", "__hash__", "__bool__", "__len__", "__iter__", "__reduce__",
    "__reduce_ex__", "__getstate__", "__del__", "__getattr__",
)  # fmt: skip


def make(method: str, deed: str, base: type = object) -> Any:
    """An object of which one method does one of :data:`DEEDS`."""
    act = DEEDS[deed]
    body: dict[str, Any] = {"nbytes" if method == "nbytes" else method: lambda self, *args: act()}
    if method in ("nbytes", "__class__"):
        body = {method: property(lambda self: act())}
    return type("Hostile", (base,), body)()


def fail(method: str, deed: str) -> None:
    """Raise an exception of which one method misbehaves."""
    raise make(method, deed, Exception)


def deed(name: str) -> Any:
    """Do it."""
    return DEEDS[name]()
