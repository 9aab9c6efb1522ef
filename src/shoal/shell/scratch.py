"""Directories for a process's own files, each with a lock that says that its owner lives.

``<local directory>/shoal-scratch-space-<user>/<name>-<random>`` with ``….lock`` beside it, which is locked as long as
the process lives, whatever way it ends. Who starts next on the machine removes those whose lock is free.
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import logging
import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from shoal import config, private
from shoal.errors import ConfigurationError

logger = logging.getLogger("shoal.scratch")

#: Names that directories of processes have here. What has another name is left alone, whatever it is.
_NAME: Final = re.compile(r"[a-z]+-[0-9a-f]{12}")
_LOCK: Final = ".lock"
_ADVICE: Final = "set local_directory (--local-directory, or temporary-directory in the configuration) to another place"
#: Those of this process: what is still there when the interpreter ends is removed then.
_open: set[Scratch] = set()
#: Bases of which was said that others may replace what is in them.
_warned: set[str] = set()


def space(local_directory: str | None = None) -> Path:
    """The directory in which all scratch directories of this user are, made where it is not there.

    It belongs to this user, and nobody else may enter it. Where somebody else was there first, it is another one, whose
    name nobody could foresee, and that is logged.

    Parameters
    ----------
    local_directory
        By default ``temporary-directory`` (configuration), or the system's.

    Raises
    ------
    ConfigurationError
        If it cannot be written to, or everybody may replace what is in it, naming it.
    """
    return _open_space(local_directory).path


def _open_space(local_directory: str | None = None) -> private.Directory:
    base = Path(".")
    try:
        named = local_directory or config.get("temporary-directory") or tempfile.gettempdir()
        base = Path(str(named)).expanduser().resolve()
        private.make_directories(base)
        _judge(base)
        found = _find_space(base)
        if not os.access(found.path, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied", str(found.path))
        return found
    except OSError as error:
        where = error.filename or base / _space_name()
        raise ConfigurationError(
            f"cannot make scratch files in {where}: {error.strerror or error}; {_ADVICE}"
        ) from error
    except (ValueError, RuntimeError) as error:  # no name of a file; "~" where there is no home
        raise ConfigurationError(f"cannot make scratch files in {str(named)!r}: {error}; {_ADVICE}") from error


def _space_name() -> str:
    return f"shoal-scratch-space-{os.geteuid()}"


def _judge(base: Path) -> None:
    """Refuse a base in which everybody, and warn of one in which somebody else can replace what is there."""
    reason = private.replaceable(base)
    if not reason:
        return
    if reason.startswith("everybody"):
        raise ConfigurationError(
            f"scratch files are not safe in {base}: {reason}; set the bit (chmod +t), or {_ADVICE}"
        )
    if reason not in _warned:
        _warned.add(reason)
        logger.warning("scratch files in %s can be replaced by another user: %s", base, reason)


def _find_space(base: Path) -> private.Directory:
    name = _space_name()
    try:
        return private.Directory(base / name)
    except (PermissionError, NotADirectoryError) as error:
        if not os.path.lexists(base / name):
            raise  # it is the base that cannot be written to
        refused = error
    again = re.compile(re.escape(name) + "-[a-z0-9_]{8}")
    for other in sorted(os.listdir(base)):
        if again.fullmatch(other):
            try:
                return private.Directory(base / other, create=False)
            except OSError:
                continue  # it is gone, or not this user's either
    made = private.Directory.temporary(f"{name}-", base)
    logger.warning("%s is not used for scratch files: %s; %s is", base / name, refused.strerror, made.path)
    return made


class Scratch:
    """A directory of this process's own.

    Parameters
    ----------
    name
        What its name begins with: letters.
    local_directory
        As for :func:`space`.

    Raises
    ------
    ConfigurationError
        If it cannot be made.
    """

    def __init__(self, name: str, local_directory: str | None = None) -> None:
        within = _open_space(local_directory)
        self._locking = bool(config.get("distributed.worker.use-file-locking", True))
        self._descriptor: int | None = None
        self._pid = os.getpid()
        try:
            if self._locking:
                _remove_orphans(within)
            while True:
                self.path = within.path / f"{name}-{secrets.token_hex(6)}"
                if not self._locking or self._lock(within):
                    break
            private.Directory(self.path.name, within=within)
        except OSError as error:
            self._unlock(within)
            text = f"cannot make scratch files in {within.path}: {error.strerror or error}; {_ADVICE}"
            raise ConfigurationError(text) from error

    def _lock(self, within: private.Directory) -> bool:
        """Take the lock; False where somebody took it for an orphan's in the same moment."""
        name = self.path.name + _LOCK
        descriptor = within.open_or_create(name)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is(descriptor, within, name):
                self._descriptor = descriptor
                _open.add(self)
                return True
        except BlockingIOError:
            pass  # whoever removes orphans has it
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return False

    def _unlock(self, within: private.Directory) -> None:
        if self._descriptor is not None:
            within.remove(self.path.name + _LOCK)
            self._let_go()

    def _let_go(self) -> None:
        _open.discard(self)
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    @property
    def is_own(self) -> bool:
        """Whether this process made it, and not one that it was forked from."""
        return self._pid == os.getpid()

    def renew(self) -> None:
        """Make it again if somebody has removed it, as those do who clear up the system's temporary files.

        Raises
        ------
        OSError
            If it cannot be made.
        """
        try:
            private.Directory(self.path, create=False)
            return
        except FileNotFoundError:
            pass
        private.make_directories(self.path.parent.parent)
        within = private.Directory(self.path.parent)
        if self._descriptor is not None and not _is(self._descriptor, within, self.path.name + _LOCK):
            os.close(self._descriptor)
            self._descriptor = None
            if not self._lock(within):
                raise BlockingIOError(errno.EAGAIN, "its lock is taken", str(self.path))
        private.Directory(self.path.name, within=within)
        logger.warning("%s was removed by somebody else, and is made again", self.path)

    def close(self) -> None:
        """Remove it and all that is in it."""
        try:
            within = private.Directory(self.path.parent, create=False)
        except OSError as error:
            _complain(str(self.path.parent), error)
            self._let_go()
            return
        within.remove_tree(self.path.name, _complain)
        self._unlock(within)


@atexit.register
def _close_all() -> None:
    for scratch in tuple(_open):
        if scratch.is_own:
            scratch.close()


@contextmanager
def alone(name: str) -> Iterator[None]:
    """Be the only process of this user on this machine that does what is called ``name``; waits for others."""
    within = _open_space()
    name += _LOCK
    while True:
        descriptor = within.open_or_create(name)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is(descriptor, within, name):
                yield
                within.remove(name)
                return
        finally:
            os.close(descriptor)


def _is(descriptor: int, within: private.Directory, name: str) -> bool:
    try:
        return os.path.samestat(within.status(name), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def remove_orphans(within: Path) -> int:
    """Remove the directories of processes that are gone; return how many there were.

    Raises
    ------
    OSError
        If ``within`` is not this user's own.
    """
    return _remove_orphans(private.Directory(within, create=False))


def _remove_orphans(within: private.Directory) -> int:
    count = 0
    for file in within.names():
        name = file.removesuffix(_LOCK)
        if name == file or not (_NAME.fullmatch(name) or name == "installing"):
            continue
        try:
            descriptor = within.open(file, os.O_RDWR)
        except OSError:
            continue  # another was faster
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)  # its owner lives
            continue
        if _NAME.fullmatch(name):
            within.remove_tree(name, _complain)
        within.remove(file)
        os.close(descriptor)
        count += 1
    if count:
        logger.info("removed %d scratch directories in %s whose processes are gone", count, within.path)
    return count


def remove_tree(path: Path) -> None:
    """Remove a directory that is in one of this user's own, and all in it; what stays is told of in the log."""
    try:
        private.Directory(path.parent, create=False).remove_tree(path.name, _complain)
    except OSError as error:
        _complain(str(path), error)


def _complain(name: str, error: BaseException) -> None:
    if not isinstance(error, FileNotFoundError):
        logger.warning("could not remove %s: %s", name, error)
