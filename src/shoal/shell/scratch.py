"""Directories for a process's own files, each with a lock that says that its owner lives.

``<local directory>/shoal-scratch-space-<user>/<name>-<random>`` with ``….lock`` beside it, which is locked as long as
the process lives, whatever way it ends. Who starts next on the machine removes those whose lock is free.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shoal import config
from shoal.errors import ConfigurationError

logger = logging.getLogger("shoal.scratch")


def space(local_directory: str | None = None) -> Path:
    """The directory in which all scratch directories of this user are, made where it is not there.

    Parameters
    ----------
    local_directory
        By default ``temporary-directory`` (configuration), or the system's.

    Raises
    ------
    ConfigurationError
        If it cannot be written to, naming it.
    """
    base = local_directory or config.get("temporary-directory") or tempfile.gettempdir()
    found = Path(str(base)).expanduser() / f"shoal-scratch-space-{os.getuid()}"
    try:
        found.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(found, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        advice = "set local_directory (--local-directory, or temporary-directory in the configuration)"
        raise ConfigurationError(
            f"cannot make scratch files in {found}: {error.strerror}; {advice} to a place that can be written to"
        ) from error
    return found


class Scratch:
    """A directory of this process's own.

    Parameters
    ----------
    name
        What its name begins with.
    local_directory
        As for :func:`space`.

    Raises
    ------
    ConfigurationError
        If it cannot be made.
    """

    def __init__(self, name: str, local_directory: str | None = None) -> None:
        within = space(local_directory)
        self._locking = bool(config.get("distributed.worker.use-file-locking", True))
        if self._locking:
            remove_orphans(within)
        self._descriptor: int | None = None
        while True:
            self.path = within / f"{name}-{secrets.token_hex(6)}"
            if not self._locking or self._lock():
                break
        self.path.mkdir(mode=0o700)

    def _lock(self) -> bool:
        """Take the lock; False where somebody took it for an orphan's in the same moment."""
        file = self.path.with_suffix(".lock")
        descriptor = os.open(file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is(descriptor, file):
                self._descriptor = descriptor
                return True
        except BlockingIOError:
            pass  # whoever removes orphans has it
        os.close(descriptor)
        return False

    def close(self) -> None:
        """Remove it and all that is in it."""
        remove_tree(self.path)
        if self._descriptor is not None:
            self.path.with_suffix(".lock").unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None


@contextmanager
def alone(name: str) -> Iterator[None]:
    """Be the only process of this user on this machine that does what is called ``name``; waits for others."""
    file = space() / f"{name}.lock"
    while True:
        descriptor = os.open(file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is(descriptor, file):
                yield
                file.unlink(missing_ok=True)
                return
        finally:
            os.close(descriptor)


def _is(descriptor: int, file: Path) -> bool:
    try:
        return os.stat(file).st_ino == os.fstat(descriptor).st_ino
    except FileNotFoundError:
        return False


def remove_orphans(within: Path) -> int:
    """Remove the directories of processes that are gone; return how many there were."""
    count = 0
    for file in within.glob("*.lock"):
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue  # another was faster
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)  # its owner lives
            continue
        remove_tree(file.with_suffix(""))
        file.unlink(missing_ok=True)
        os.close(descriptor)
        count += 1
    if count:
        logger.info("removed %d scratch directories in %s whose processes are gone", count, within)
    return count


def remove_tree(path: Path) -> None:
    """Remove a directory and all in it; what cannot be removed is told of in the log."""
    if path.exists():
        if sys.version_info >= (3, 12):
            shutil.rmtree(path, onexc=lambda function, name, error: _complain(name, error))
        else:
            shutil.rmtree(path, onerror=lambda function, name, info: _complain(name, info[1]))


def _complain(name: str, error: BaseException) -> None:
    if not isinstance(error, FileNotFoundError):
        logger.warning("could not remove %s: %s", name, error)
