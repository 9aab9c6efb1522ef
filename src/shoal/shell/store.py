"""Values by key: in memory, and on disk where memory runs short.

What came over a wire stays pickled until a task in a thread needs it. What was used least recently is spilled first; a
value that comes back from disk keeps its file, so that to spill it again costs nothing. A task that waits for a thread
has the :class:`Held` of its inputs: they may be spilled until it runs, and loaded also after their keys were dropped.
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


_NOTHING: Any = object()


class LostValueError(Exception):
    """A value that was spilled cannot be read any more: its key, and why."""


class Held:
    """A value that a worker holds, in memory (pickled or not), on disk, or both.

    Who has one can load the value, also when its key was dropped since.
    """

    __slots__ = ("file", "size", "stuck", "value")

    def __init__(self, value: Any, size: int) -> None:
        self.value, self.size = value, size
        #: Its copy on disk, once there was one.
        self.file: Spilled | None = None
        #: Whether it cannot be pickled, and stays in memory.
        self.stuck = False


class ValueStore:
    """The values that a worker holds.

    Parameters
    ----------
    disk
        Where values are spilled; None: they are not.
    """

    def __init__(self, disk: Disk | None = None) -> None:
        self.disk = disk
        #: Those in memory, the least recently used first; and those on disk only.
        self._fast: dict[str, Held] = {}
        self._slow: dict[str, Held] = {}
        self._lock = threading.Lock()
        #: Those that went to disk or came back since :meth:`moves` was asked.
        self.moved: dict[str, None] = {}
        #: Bytes of the values in memory, and of those on disk as they would be in memory.
        self.managed = self.spilled_memory = 0

    def __contains__(self, key: str) -> bool:
        return key in self._fast or key in self._slow

    def __len__(self) -> int:
        return len(self._fast) + len(self._slow)

    def put(self, key: str, value: Any, nbytes: int = 0) -> None:
        """Keep a value of ``nbytes``, in place of one that was there."""
        with self._lock:
            before = self._forget(key)
            self._fast[key] = Held(value, nbytes)
            self.managed += nbytes
        del before  # outside of the lock: a value's own __del__ may do anything

    def _forget(self, key: str) -> Held | None:
        held = self._fast.pop(key, None)
        if held is not None:
            self.managed -= held.size
        elif (held := self._slow.pop(key, None)) is not None:
            self.spilled_memory -= held.size
        return held

    def take(self, keys: Sequence[str]) -> dict[str, Held]:
        """Return what is held of some keys; what is on disk stays there until :meth:`load`."""
        if self.disk is None:
            return {key: self._fast[key] for key in keys}
        found = {}
        with self._lock:
            for key in keys:
                if key in self._fast:
                    found[key] = self._fast[key] = self._fast.pop(key)  # used most recently by now
                else:
                    found[key] = self._slow[key]
        return found

    def load(self, key: str, held: Held) -> Any:
        """Return the value, read and unpickled where that is still to be done. Called in threads.

        Raises
        ------
        LostValueError
            If its file cannot be read.
        """
        with self._lock:
            value, file = held.value, held.file
        if value is _NOTHING:
            assert file is not None
            try:
                content = file.read()
            except OSError as error:
                raise LostValueError(key, str(error)) from error
            loaded = serialize.loads(content)
        elif type(value) is Pickled:
            loaded = serialize.loads(value.payload)
        else:
            return value
        with self._lock:
            if held.value is not _NOTHING and type(held.value) is not Pickled:
                return held.value  # another thread was faster
            held.value = loaded
            if self._slow.get(key) is held:
                del self._slow[key]
                self._fast[key] = held
                self.moved[key] = None
                self.spilled_memory -= held.size
                self.managed += held.size
        return loaded

    def moves(self) -> tuple[list[str], list[str]]:
        """Return the keys that are on disk by now, and those that are in memory again, since this was asked last."""
        with self._lock:
            moved, self.moved = self.moved, {}
            return [key for key in moved if key in self._slow], [key for key in moved if key in self._fast]

    def is_on_disk(self, key: str) -> bool:
        """Whether :meth:`dump` would have to read a file."""
        return key in self._slow

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
            held = self._fast[key] if key in self._fast else self._slow[key]
            value, file = held.value, held.file
        if value is _NOTHING:
            assert file is not None
            return file.read()
        return value.payload if type(value) is Pickled else serialize.dumps_safely(value, f"the result of {key!r}")

    def drop(self, keys: Sequence[str]) -> None:
        """Let go of values."""
        with self._lock:
            gone = [self._forget(key) for key in keys]
        del gone  # outside of the lock, as above

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
                key, held = next(((key, held) for key, held in self._fast.items() if not held.stuck), ("", None))
                if held is None:
                    return None
                value, file = held.value, held.file
            if file is None:
                try:
                    payload = value.payload if type(value) is Pickled else serialize.dumps_safely(value)
                except SerializationError:
                    held.stuck = True
                    continue
                if not self.disk.has_room(payload):
                    return None
                file = self.disk.write(payload)
                del payload
            with self._lock:
                if self._fast.get(key) is held:
                    del self._fast[key]
                    self._slow[key] = held
                    self.moved[key] = None
                    held.value, held.file = _NOTHING, file
                    self.managed -= held.size
                    self.spilled_memory += held.size
                    return held.size

    def close(self) -> None:
        """Let go of all of it, files too."""
        self.drop([*self._fast, *self._slow])
