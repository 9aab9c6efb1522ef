"""Open files: how many a process may have, and an error that says so before they run out halfway through a start."""

from __future__ import annotations

import errno
import os
import resource
from typing import Final

from shoal.errors import StartError

#: The most that a process allows itself: more is of no use, and costs programs that walk through all numbers.
_MOST: Final = 1 << 20


def open_files() -> int:
    """How many this process has open."""
    try:
        return len(os.listdir("/proc/self/fd")) - 1  # that of the listing itself
    except OSError as error:
        if error.errno == errno.EMFILE:
            return limit()
    count = 0
    for descriptor in range(min(limit(), 4096)):
        try:
            os.fstat(descriptor)
            count += 1
        except OSError:
            pass
    return count


def limit() -> int:
    """How many it may have (the soft limit)."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST if soft == resource.RLIM_INFINITY else soft


def allow(wanted: int = _MOST) -> None:
    """Raise the soft limit to ``wanted``, or to the hard limit if that is less; nothing happens if it is higher."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    possible = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    if possible > limit():
        resource.setrlimit(resource.RLIMIT_NOFILE, (possible, hard))


def lower(wanted: int) -> None:
    """Set the soft limit to ``wanted``, which is less than it is."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def require(wanted: int, what: str, advice: str = "") -> None:
    """Make sure that this process may have ``wanted`` open files.

    Raises
    ------
    StartError
        If it may not, with both numbers and how the limit is raised.
    """
    if wanted > limit():
        raise StartError(
            f"{what} takes up to {wanted} open files, and this process may have {limit()} (RLIMIT_NOFILE). Raise that "
            f"limit: ulimit -n {max(1024, 2 * wanted)}, or LimitNOFILE= of a systemd unit{advice}"
        )


def require_more(wanted: int, what: str) -> None:
    """As :func:`require`, for ``wanted`` open files beside those that there are.

    Raises
    ------
    StartError
        If it may not have them.
    """
    require(open_files() + wanted, what)
