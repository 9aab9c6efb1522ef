"""Values by key: in memory, and on disk where memory runs short.

What came over a wire stays pickled until a task in a thread needs it. What was used least recently is spilled first; a
value that comes back from disk keeps its file, so that to spill it again costs nothing. A file lives as long as anybody
holds its :class:`Spilled`: a task that was handed it can load it also after the key was dropped.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from shoal.errors import SerializationError
from shoal.shell import serialize
from shoal.shell.spill import Disk, Spilled


class Pickled:
    """A value that has not been unpickled here."""

    __slots__ = ("payload",)

    def __init__(self, payload: Any) -> None:
        self.payload = payload


class ValueStore:
    """The values that a worker holds.

    Parameters
    ----------
    disk
        Where values are spilled; None: they are not.
    """

    def __init__(self, disk: Disk | None = None) -> None:
        self.disk = disk
        #: In memory, the least recently used first.
        self._values: dict[str, Any] = {}
        self._sizes: dict[str, int] = {}
        #: On disk only.
        self._spilled: dict[str, Spilled] = {}
        #: On disk too, while they are in memory.
        self._clean: dict[str, Spilled] = {}
        #: Values that cannot be pickled, and stay.
        self._stuck: set[str] = set()
        self._lock = threading.Lock()
        #: Bytes of the values in memory, and of those on disk as they would be in memory.
        self.managed = self.spilled_memory = 0

    def __contains__(self, key: str) -> bool:
        return key in self._values or key in self._spilled

    def __len__(self) -> int:
        return len(self._values) + len(self._spilled)

    def put(self, key: str, value: Any, nbytes: int = 0) -> None:
        """Keep a value of ``nbytes``, in place of one that was there."""
        with self._lock:
            self._forget(key)
            self._values[key] = value
            self._sizes[key] = nbytes
            self.managed += nbytes

    def _forget(self, key: str) -> None:
        size = self._sizes.pop(key, 0)
        if key in self._values:
            del self._values[key]
            self.managed -= size
            self._clean.pop(key, None)
            self._stuck.discard(key)
        elif self._spilled.pop(key, None) is not None:
            self.spilled_memory -= size

    def take(self, keys: Sequence[str]) -> dict[str, Any]:
        """Return values as they are here, pickled or spilled or not: they cannot be dropped any more by then."""
        if self.disk is None:
            return {key: self._values[key] for key in keys}
        found = {}
        with self._lock:
            for key in keys:
                if key in self._values:
                    found[key] = self._values[key] = self._values.pop(key)  # used most recently by now
                else:
                    found[key] = self._spilled[key]
        return found

    def load(self, key: str, value: Any) -> Any:
        """Return what :meth:`take` gave for ``key``, read and unpickled on first use. Called in threads.

        Raises
        ------
        OSError
            If a file cannot be read.
        """
        if type(value) is Pickled:
            loaded = serialize.loads(value.payload)
            with self._lock:
                if self._values.get(key) is value:
                    self._values[key] = loaded
            return loaded
        if type(value) is Spilled:
            return self._unspill(key, value)
        return value

    def _unspill(self, key: str, spilled: Spilled) -> Any:
        with self._lock:
            if self._clean.get(key) is spilled:  # another thread was faster
                return self._values[key]
        loaded = serialize.loads(spilled.read())
        with self._lock:
            if self._spilled.get(key) is spilled:
                del self._spilled[key]
                size = self._sizes[key]
                self.spilled_memory -= size
                self.managed += size
                self._values[key] = loaded
                self._clean[key] = spilled
        return loaded

    def is_on_disk(self, key: str) -> bool:
        """Whether :meth:`dump` would have to read a file."""
        return key in self._spilled

    def dump(self, key: str) -> Any:
        """Return the payload of the value.

        Raises
        ------
        KeyError
            If it is not here (any more).
        SerializationError
            If it cannot be pickled.
        OSError
            If its file cannot be read.
        """
        with self._lock:
            value = self._values[key] if key in self._values else self._spilled[key]
        if type(value) is Spilled:
            return value.read()
        return value.payload if type(value) is Pickled else serialize.dumps_safely(value, f"the result of {key!r}")

    def drop(self, keys: Sequence[str]) -> None:
        """Let go of values."""
        with self._lock:
            for key in keys:
                self._forget(key)

    def evict(self) -> int | None:
        """Spill the value that was used least recently; return its bytes, or None if none can be spilled.

        Raises
        ------
        OSError
            If it cannot be written, naming the file. The value stays where it is.
        """
        assert self.disk is not None
        while True:
            with self._lock:
                key = next((key for key in self._values if key not in self._stuck), None)
                if key is None:
                    return None
                value, size, spilled = self._values[key], self._sizes[key], self._clean.get(key)
            if spilled is None:
                try:
                    payload = value.payload if type(value) is Pickled else serialize.dumps_safely(value)
                except SerializationError:
                    with self._lock:
                        self._stuck.add(key)
                    continue
                if not self.disk.has_room(payload):
                    return None
                spilled = self.disk.write(payload)
            with self._lock:
                if self._values.get(key) is value:
                    del self._values[key]
                    self._clean.pop(key, None)
                    self._spilled[key] = spilled
                    self.managed -= size
                    self.spilled_memory += size
                    return size

    def close(self) -> None:
        """Let go of all of it, files too."""
        self.drop([*self._values, *self._spilled])
