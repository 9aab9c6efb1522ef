"""What shoal's processes expect to inherit, and a program may have been started without, as daemons and services are.

What a process opens next gets the lowest free number. If that is 0, 1 or 2, a socket or a pipe of shoal's stands where
processes and libraries expect the standard files, and what they print goes into it. So they are made to be there before
shoal opens anything.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys


def take_over() -> None:
    """Be a process of shoal's own: standard files, and signals that are neither blocked nor ignored.

    Where the program ignored SIGCHLD, the system would join children, and nobody could learn how they ended.
    """
    ensure()
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def ensure() -> None:
    """Have ``/dev/null`` stand where standard input, output or error is closed."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != descriptor:  # another thread was faster
                os.close(opened)
            else:
                os.set_inheritable(descriptor, True)


def output() -> int | None:
    """What a child is given as its standard output: this process's own, unless it was started without."""
    return None if sys.__stdout__ is not None else subprocess.DEVNULL


def error() -> int | None:
    """What a child is given as its standard error: this process's own, unless it was started without."""
    return None if sys.__stderr__ is not None else subprocess.DEVNULL


def pass_on(data: bytes) -> None:
    """Write to this process's standard error; what nobody reads is let go."""
    if sys.__stderr__ is None:
        return  # the number may mean a file of the program's
    try:
        os.write(2, data)
    except OSError:
        pass  # nobody reads it
