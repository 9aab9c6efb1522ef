"""Files of spilled values in a worker's scratch directory: each the frames of a pickle, one after another."""

from __future__ import annotations

import itertools
import os
import struct
import threading
from pathlib import Path
from typing import Any

from shoal.messages import Blob

_COUNT = struct.Struct("<Q")


class Spilled:
    """A value on disk. Its file is removed when nobody holds this object any more."""

    __slots__ = ("_disk", "nbytes", "path")

    def __init__(self, disk: Disk, path: str, nbytes: int) -> None:
        self._disk, self.path, self.nbytes = disk, path, nbytes

    def read(self) -> Blob:
        """Return the payload.

        Raises
        ------
        OSError
            If the file cannot be read, naming it.
        """
        with open(self.path, "rb", buffering=0) as file:
            content = memoryview(bytearray(self.nbytes))
            at = 0
            while at < self.nbytes:
                got = file.readinto(content[at:])
                if not got:
                    raise OSError(5, "a spilled value was cut short", self.path)
                at += got
        (count,) = _COUNT.unpack_from(content)
        lengths = struct.unpack_from(f"<{count}Q", content, _COUNT.size)
        at = _COUNT.size * (1 + count)
        frames: list[bytes | memoryview] = []
        for length in lengths:
            frames.append(content[at : at + length])
            at += length
        return Blob(frames)

    def __del__(self) -> None:
        try:
            os.unlink(self.path)
        except OSError:
            pass  # the directory went first
        self._disk.freed(self.nbytes)


class Disk:
    """Where a worker spills.

    Parameters
    ----------
    directory
        Made on first use.
    most
        Bytes that may be there; 0 is no limit.
    """

    def __init__(self, directory: Path, most: int = 0) -> None:
        self.directory, self.most = directory, most
        #: Bytes of all files.
        self.used = 0
        #: Values written and bytes of them, ever.
        self.written = self.written_bytes = 0
        self._numbers = itertools.count()
        self._lock = threading.Lock()

    def has_room(self, payload: Any) -> bool:
        """Whether a payload may be written without going over the limit."""
        return not self.most or self.used + sum(_lengths(payload)) <= self.most

    def write(self, payload: Any) -> Spilled:
        """Write a payload.

        Raises
        ------
        OSError
            If it cannot be written, naming the file; nothing is left of it.
        """
        frames = payload.frames if isinstance(payload, Blob) else [payload]
        lengths = _lengths(payload)
        head = _COUNT.pack(len(lengths)) + struct.pack(f"<{len(lengths)}Q", *lengths)
        self.directory.mkdir(mode=0o700, exist_ok=True)
        path = str(self.directory / str(next(self._numbers)))
        try:
            with open(path, "xb", buffering=0) as file:
                for part in (head, *frames):
                    rest = memoryview(part).cast("B")
                    while rest:
                        rest = rest[file.write(rest) :]
        except OSError as error:
            try:
                os.unlink(path)
            except OSError:
                pass  # it was not there yet
            raise OSError(error.errno, error.strerror, path) from error
        nbytes = len(head) + sum(lengths)
        with self._lock:
            self.used += nbytes
            self.written += 1
            self.written_bytes += nbytes
        return Spilled(self, path, nbytes)

    def freed(self, nbytes: int) -> None:
        """A file is gone."""
        with self._lock:
            self.used -= nbytes


def _lengths(payload: Any) -> list[int]:
    frames = payload.frames if isinstance(payload, Blob) else [payload]
    return [len(frame) if isinstance(frame, bytes) else memoryview(frame).nbytes for frame in frames]
