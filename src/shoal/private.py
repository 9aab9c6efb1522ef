"""Files and directories that no other user of the machine can put there first, read, replace, or turn elsewhere.

All that shoal creates, writes or removes on a disk goes through this module (a house rule, which a test holds). Its
rules: what is created is created exclusively, with mode 0600 or 0700 whatever the umask is; what is opened is looked at
after it was opened (owner, kind, mode), not before; a name is followed through a descriptor of its directory, and never
through a symbolic link that another user made; nothing is removed that does not belong to this user.

Directories above are trusted if no other user can replace what is in them (:func:`replaceable`).
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

FILE_MODE: Final = 0o600
DIRECTORY_MODE: Final = 0o700
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: The most symbolic links that are followed, one to the next.
_MOST_LINKS: Final = 20


class Directory:
    """An open directory that belongs to this user and that nobody else may enter.

    It stays the one that was opened, whatever its name comes to mean. It is closed when nobody holds it any more, so
    that no thread can come to use a descriptor that means something else by then.

    Parameters
    ----------
    path
        Where it is.
    create
        Whether it is made if it is not there.
    within
        The directory that ``path``, a mere name then, is in.

    Raises
    ------
    PermissionError
        If it belongs to another user, or others may write to it.
    NotADirectoryError
        If it is something else; a symbolic link is, too.
    OSError
        If it cannot be made or opened.
    """

    __slots__ = ("_descriptor", "owner", "path")

    path: Path
    owner: int

    def __init__(self, path: str | Path, create: bool = True, within: Directory | None = None) -> None:
        self._descriptor = -1
        at = None if within is None else within._descriptor
        self.path = Path(path) if within is None else within.path / path
        self._descriptor = _open_directory(path, at, create)
        try:
            self.owner = self._check(os.geteuid() if within is None else within.owner)
        except BaseException:
            self.close()
            raise

    @classmethod
    def temporary(cls, prefix: str, within: Path) -> Directory:
        """A new one with a name that nobody could foresee.

        What the file system says of its owner is believed: some know one owner for all, or keep no modes.
        """
        made = cls.__new__(cls)
        made._descriptor = -1
        made.path = within / f"{prefix}{secrets.token_hex(4)}"
        made._descriptor = _open_directory(made.path, None, True, exclusively=True)
        made.owner = os.fstat(made._descriptor).st_uid
        return made

    def _check(self, owner: int) -> int:
        """Raise unless it is private; return its owner."""
        info = os.fstat(self._descriptor)
        if info.st_uid != owner:
            raise _refusal(f"it belongs to another user (uid {info.st_uid})", self.path)
        if info.st_mode & 0o022:
            raise _refusal(f"others may write to it (mode {stat.S_IMODE(info.st_mode):04o})", self.path)
        if stat.S_IMODE(info.st_mode) & 0o7777 != DIRECTORY_MODE:
            os.fchmod(self._descriptor, DIRECTORY_MODE)
        return owner

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the descriptor; to be called only where no other thread has it."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def create(self, name: str) -> int:
        """Make a file that was not there; return a descriptor to write and read.

        Raises
        ------
        FileExistsError
            If there is something of that name.
        OSError
            If it cannot be made.
        """
        return _create(name, self._descriptor, os.O_RDWR)

    def open(self, name: str, flags: int = os.O_RDONLY) -> int:
        """Open a file that is there; return its descriptor.

        Raises
        ------
        PermissionError
            If it is no file of this user's.
        OSError
            If it cannot be opened.
        """
        return _open_own(name, flags, self._descriptor, self.owner, self.path / name)

    def open_or_create(self, name: str) -> int:
        """Open a file to read and write, and make it if it is not there; return its descriptor.

        Raises
        ------
        OSError
            As :meth:`open` and :meth:`create`.
        """
        while True:
            try:
                return self.open(name, os.O_RDWR)
            except FileNotFoundError:
                pass
            try:
                return self.create(name)
            except FileExistsError:
                pass  # another was faster

    def names(self) -> list[str]:
        """What is in it."""
        return os.listdir(self._descriptor)

    def status(self, name: str) -> os.stat_result:
        """Of what has that name; a symbolic link is not followed."""
        return os.stat(name, dir_fd=self._descriptor, follow_symlinks=False)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        try:
            os.unlink(name, dir_fd=self._descriptor)
        except FileNotFoundError:
            pass

    def remove_tree(self, name: str, complain: Callable[[str, BaseException], None]) -> None:
        """Remove a directory and all in it, following no symbolic link; ``complain`` hears of what stays."""
        if sys.version_info >= (3, 12):
            shutil.rmtree(name, dir_fd=self._descriptor, onexc=lambda _, path, error: complain(str(path), error))
        else:
            shutil.rmtree(name, dir_fd=self._descriptor, onerror=lambda _, path, info: complain(str(path), info[1]))


def _refusal(why: str, path: Any) -> PermissionError:
    return PermissionError(errno.EPERM, why, str(path))


def _open_directory(path: str | Path, at: int | None, create: bool, exclusively: bool = False) -> int:
    made = False
    if create:
        try:
            os.mkdir(path, DIRECTORY_MODE, dir_fd=at)
            made = True
        except FileExistsError:
            if exclusively:
                raise
    try:
        return os.open(path, _DIRECTORY, dir_fd=at)
    except PermissionError:
        if not made:
            raise
    # The umask takes the owner's own rights: they are given back to what was just made.
    held = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
    try:
        if os.fstat(held).st_uid == os.geteuid():
            os.chmod(f"/proc/self/fd/{held}", DIRECTORY_MODE)
    finally:
        os.close(held)
    return os.open(path, _DIRECTORY, dir_fd=at)


def _create(path: str | Path, at: int | None, flags: int) -> int:
    flags |= os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, FILE_MODE, dir_fd=at)
    if stat.S_IMODE(os.fstat(descriptor).st_mode) != FILE_MODE:  # by the umask, or by a list of the directory's
        try:
            os.fchmod(descriptor, FILE_MODE)
        except OSError:
            pass  # the file system keeps no modes
    return descriptor


def _open_own(path: str | Path, flags: int, at: int | None, owner: int, named: Any) -> int:
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=at)
    info = os.fstat(descriptor)
    if not stat.S_ISREG(info.st_mode) or info.st_uid != owner:
        os.close(descriptor)
        raise _refusal("it is no file of this user's", named)
    return descriptor


def make_directories(path: Path, mode: int = 0o755) -> None:
    """Make a directory that a user named, and those above, where they are not there; others may not write to them.

    Raises
    ------
    OSError
        If one cannot be made.
    """
    if not path.is_dir():
        make_directories(path.parent, mode)
        try:
            path.mkdir(mode=mode)
        except FileExistsError:
            if not path.is_dir():
                raise


def replaceable(path: Path) -> str:
    """Say who else can replace what this user makes in ``path``; empty if nobody can.

    That is who may write to it, or to a directory above it, unless the sticky bit is set; members of a group that is
    this user's own, and of which nobody else is told to be, are not others.
    """
    for directory in [path, *path.parents]:
        info = os.stat(directory)
        if info.st_uid not in (0, os.geteuid(), _nobody()):
            return f"{directory} belongs to another user (uid {info.st_uid})"
        if info.st_mode & stat.S_ISVTX:
            continue
        if info.st_mode & 0o002:
            return f"everybody may rename what is in {directory} (mode {stat.S_IMODE(info.st_mode):04o}, no sticky bit)"
        if info.st_mode & 0o020 and not _is_own_group(info.st_gid):
            return f"group {info.st_gid} may rename what is in {directory} (mode {stat.S_IMODE(info.st_mode):04o})"
    return ""


def _nobody() -> int:
    """The owner of what belongs to a user whom this container does not know; often of its root directory."""
    try:
        with open("/proc/sys/kernel/overflowuid") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 0


def _is_own_group(gid: int) -> bool:
    import grp
    import pwd

    if gid == 0:
        return True
    try:
        me = pwd.getpwuid(os.geteuid())
        return me.pw_gid == gid and set(grp.getgrgid(gid).gr_mem) <= {me.pw_name}
    except KeyError:
        return False


def _open_trusted(path: str | Path, flags: int) -> int:
    """Open what a user named, to read or to write, without waiting for another's pipe; return its descriptor."""
    held = os.open(path, (flags & os.O_NOFOLLOW) | os.O_PATH | os.O_CLOEXEC)  # nothing happens to it yet
    try:
        info = os.fstat(held)
        if info.st_uid not in (0, os.geteuid()):
            raise _refusal(f"it belongs to another user (uid {info.st_uid})", path)
        return os.open(f"/proc/self/fd/{held}", (flags & ~os.O_NOFOLLOW) | os.O_CLOEXEC)
    finally:
        os.close(held)


@contextmanager
def replacing(path: str | Path, keep_mode: bool = True) -> Iterator[IO[bytes]]:
    """Write the file that a user named: a new one (mode 0600) takes its name once it is whole.

    A file that was there keeps its mode if it is this user's (and ``keep_mode``). A symbolic link is followed if this
    user or root made it; what is no file, as a terminal or a pipe, is written to if it is this user's or root's.

    Raises
    ------
    PermissionError
        If it is another user's pipe, who would read what is written.
    OSError
        If it cannot be written; what was there is still there then.
    """
    target = _follow(Path(path))
    try:
        known = os.lstat(target)
    except FileNotFoundError:
        known = None
    if known is not None and not stat.S_ISREG(known.st_mode) and not stat.S_ISDIR(known.st_mode):
        with os.fdopen(_open_trusted(target, os.O_WRONLY | os.O_NOFOLLOW), "wb") as file:
            yield file
        return
    if known is not None and stat.S_ISDIR(known.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    draft = target.with_name(f".shoal-{secrets.token_hex(8)}.draft")
    try:
        descriptor = _create(draft, None, os.O_WRONLY)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(path)) from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            if keep_mode and known is not None and known.st_uid == os.geteuid():
                os.fchmod(file.fileno(), stat.S_IMODE(known.st_mode))
        os.replace(draft, target)
    except BaseException:
        os.unlink(draft)
        raise


def _follow(path: Path) -> Path:
    """Where a symbolic link leads to, if it is one that this user or root made."""
    for _ in range(_MOST_LINKS):
        try:
            info = os.lstat(path)
        except FileNotFoundError:
            return path
        if not stat.S_ISLNK(info.st_mode):
            return path
        if str(path).startswith(("/proc/", "/dev/fd/")):
            return path.resolve()
        if info.st_uid not in (0, os.geteuid()):
            raise _refusal(f"it is a symbolic link that another user made (uid {info.st_uid})", path)
        path = path.parent / os.readlink(path)
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))


def write(path: str | Path, data: bytes, keep_mode: bool = True) -> None:
    """Write a file that a user named; see :func:`replacing`.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    with replacing(path, keep_mode) as file:
        file.write(data)


def create_once(path: Path, data: bytes) -> None:
    """Write a file unless there is one by then: of several processes that do this at a time, one counts.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    draft = path.with_name(f".shoal-{secrets.token_hex(8)}.draft")
    descriptor = _create(draft, None, os.O_WRONLY)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.link(draft, path)  # unlike a renaming, this fails if there is one
    except FileExistsError:
        pass
    finally:
        os.unlink(draft)


def read(path: Path) -> tuple[bytes, int]:
    """Return what a file holds that a user named, and its mode.

    Raises
    ------
    PermissionError
        If it belongs to another user than this one or root, so that it may say what that one likes.
    OSError
        If it cannot be read.
    """
    with os.fdopen(_open_trusted(path, os.O_RDONLY), "rb") as file:
        return file.read(), stat.S_IMODE(os.fstat(file.fileno()).st_mode)


def remove(path: Path) -> None:
    """Remove a file that this user wrote, if it is still there."""
    try:
        info = os.lstat(path)
        if info.st_uid == os.geteuid() and not stat.S_ISDIR(info.st_mode):
            os.unlink(path)
    except FileNotFoundError:
        pass


def remove_socket(path: str) -> None:
    """Remove the file of a socket that this user bound, if it is still there."""
    try:
        info = os.lstat(path)
        if stat.S_ISSOCK(info.st_mode) and info.st_uid == os.geteuid():
            os.unlink(path)
    except FileNotFoundError:
        pass


def overwrite(descriptor: int, data: Any) -> None:
    """Write all of ``data``, whatever the kernel takes at a time.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    rest = memoryview(data).cast("B")
    while rest:
        rest = rest[os.write(descriptor, rest) :]
