"""Values by key. What came over a wire stays pickled until a task in a thread needs it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shoal.shell import serialize


class Pickled:
    """A value that has not been unpickled here."""

    __slots__ = ("payload",)

    def __init__(self, payload: Any) -> None:
        self.payload = payload


class ValueStore:
    """The values that a worker holds, in memory."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __len__(self) -> int:
        return len(self._values)

    def put(self, key: str, value: Any) -> None:
        self._values[key] = value

    def take(self, keys: Sequence[str]) -> dict[str, Any]:
        """Return values as they are here, pickled or not: they cannot be dropped any more by then."""
        return {key: self._values[key] for key in keys}

    def load(self, key: str, value: Any) -> Any:
        """Return what :meth:`take` gave for ``key``, unpickled on first use."""
        if type(value) is Pickled:
            held = self._values.get(key)
            loaded = serialize.loads(value.payload)
            if held is value:
                self._values[key] = loaded
            return loaded
        return value

    def dump(self, key: str) -> Any:
        """Return the payload of the value.

        Raises
        ------
        SerializationError
            If it cannot be pickled.
        """
        value = self._values[key]
        return value.payload if type(value) is Pickled else serialize.dumps_safely(value, f"the result of {key!r}")

    def drop(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._values.pop(key, None)
