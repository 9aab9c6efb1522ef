"""Files of spilled values in a worker's scratch directory: each the frames of a pickle, one after another."""

from __future__ import annotations

import itertools
import os
import struct
import threading
from pathlib import Path
from typing import Any

from shoal import private
from shoal.messages import Blob

_COUNT = struct.Struct("<Q")


class Spilled:
    """A value on disk. Its file is removed when nobody holds this object any more."""

    __slots__ = ("_directory", "_disk", "_name", "nbytes")

    def __init__(self, disk: Disk, directory: private.Directory, name: str, nbytes: int) -> None:
        self._disk, self._directory, self._name, self.nbytes = disk, directory, name, nbytes

    @property
    def path(self) -> str:
        """The name of its file."""
        return str(self._directory.path / self._name)

    def read(self) -> Blob:
        """Return the payload.

        Raises
        ------
        OSError
            If the file cannot be read, or is not the one that was written, naming it.
        """
        try:
            descriptor = self._directory.open(self._name)
        except OSError as error:
            raise OSError(error.errno, error.strerror, self.path) from error
        with os.fdopen(descriptor, "rb", buffering=0) as file:
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
            self._directory.remove(self._name)
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
        #: What was opened: files are written to and read from it, whatever its name comes to mean.
        self._opened: private.Directory | None = None
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
        name = str(next(self._numbers))
        try:
            directory, descriptor = self._create(name)
            try:
                for part in (head, *frames):
                    private.overwrite(descriptor, part)
            except OSError:
                directory.remove(name)
                raise
            finally:
                os.close(descriptor)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.directory / name)) from error
        nbytes = len(head) + sum(lengths)
        with self._lock:
            self.used += nbytes
            self.written += 1
            self.written_bytes += nbytes
        return Spilled(self, directory, name, nbytes)

    def _create(self, name: str) -> tuple[private.Directory, int]:
        """A new file, in the directory that is open, or in a new one if somebody removed that."""
        with self._lock:
            directory = self._opened
            if directory is None:
                directory = self._opened = private.Directory(self.directory)
        try:
            return directory, directory.create(name)
        except FileNotFoundError:
            with self._lock:
                directory = self._opened = private.Directory(self.directory)
            return directory, directory.create(name)

    def freed(self, nbytes: int) -> None:
        """A file is gone."""
        with self._lock:
            self.used -= nbytes


def _lengths(payload: Any) -> list[int]:
    frames = payload.frames if isinstance(payload, Blob) else [payload]
    return [len(frame) if isinstance(frame, bytes) else memoryview(frame).nbytes for frame in frames]
