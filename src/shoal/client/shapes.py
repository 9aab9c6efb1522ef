"""Nested containers of futures or keys: finding what is inside, and putting values in its place."""

from __future__ import annotations

from typing import Any, Final

from shoal.client.future import Future

#: Stands for a value that could not be had.
MISSING: Final = object()


def find_futures(shape: Any, found: dict[Future, None]) -> None:
    """Put the futures inside of nested containers into ``found``, in order."""
    if isinstance(shape, Future):
        found[shape] = None
    elif isinstance(shape, dict):
        for value in shape.values():
            find_futures(value, found)
    elif isinstance(shape, list | tuple | set | frozenset):
        for value in shape:
            find_futures(value, found)


def fill(shape: Any, values: dict[Future, Any]) -> Any:
    """``shape`` with its futures replaced by values; a future without one is left out of its container."""
    if isinstance(shape, Future):
        return values.get(shape)
    if isinstance(shape, dict):
        return {name: fill(value, values) for name, value in shape.items() if _filled(value, values)}
    if isinstance(shape, list | tuple | set | frozenset):
        kept = [fill(value, values) for value in shape if _filled(value, values)]
        return type(shape)(*kept) if hasattr(shape, "_fields") else type(shape)(kept)
    return shape


def _filled(value: Any, values: dict[Future, Any]) -> bool:
    return not isinstance(value, Future) or value in values


def flatten(keys: Any, found: dict[Any, None]) -> None:
    if isinstance(keys, list):
        for key in keys:
            flatten(key, found)
    else:
        found[keys] = None


def reshape(keys: Any, found: dict[Any, Any]) -> Any:
    return [reshape(key, found) for key in keys] if isinstance(keys, list) else found[keys]
