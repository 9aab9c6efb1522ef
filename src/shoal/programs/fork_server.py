"""A process that has imported what a worker needs, and forks workers when its nanny asks.

``python -m shoal.programs.fork_server SOCKET [MODULE ...]``. Each packet on the socket brings the descriptors of one
worker; the answers are its process id and, when it is gone, its status. It ends when the socket closes.
"""

from __future__ import annotations

import errno
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from shoal import config
from shoal.programs.worker_main import become, die_with_parent
from shoal.shell import standard

_DESCRIPTORS = 5


def main() -> None:
    """Be the fork server that a command line asks for."""
    standard.take_over()
    serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])


def plant(imports: Sequence[str]) -> tuple[socket.socket, int]:
    """Fork this process, which runs neither a thread nor a loop yet, into a fork server of its own environment.

    Returns
    -------
    tuple
        The socket on which it is asked, and its process id.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid:
        theirs.close()
        return ours, pid
    status = 1
    try:
        ours.close()
        os.dup2(2, 1)
        os.setpgid(0, 0)
        serve(theirs, imports)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def serve(asking: socket.socket, imports: Sequence[str]) -> None:
    """Serve until nobody asks any more."""
    die_with_parent()
    # Whoever ends all processes of a machine ends the workers with it. What is blocked here is not lost for those that
    # are forked: it waits until they are ready for it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    for name in imports:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # so that the collector does not write into what is shared with the workers
    with selectors.DefaultSelector() as selector:
        selector.register(asking, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.data is not None:
                    selector.unregister(key.fileobj)
                    _join(asking, key.fd, key.data)
                elif not _fork(asking, selector):
                    return


def _fork(asking: socket.socket, selector: selectors.BaseSelector) -> bool:
    """Fork one worker; False if none is asked for any more."""
    data, descriptors, _, _ = socket.recv_fds(asking, 1 << 20, _DESCRIPTORS)
    if not data:
        return False
    try:
        answer: dict[str, Any] = {"pid": _start(data, descriptors, selector)}
    except OSError as error:  # this process goes on: others were forked by it, and end with it
        answer = {"error": f"the process that forks workers says: {error}"}
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    return _say(asking, answer)


def _start(data: bytes, descriptors: Sequence[int], selector: selectors.BaseSelector) -> int:
    if len(descriptors) < _DESCRIPTORS:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    pid = os.fork()
    if not pid:
        config.extend_import_path(json.loads(data))
        become(descriptors)
    try:
        selector.register(os.pidfd_open(pid), selectors.EVENT_READ, pid)
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    return pid


def _say(asking: socket.socket, what: dict[str, Any]) -> bool:
    try:
        asking.send(json.dumps(what).encode())
    except OSError:
        return False  # nobody asks any more
    return True


def _join(asking: socket.socket, descriptor: int, pid: int) -> None:
    os.close(descriptor)
    _, status, usage = os.wait4(pid, 0)
    _say(asking, {"pid": pid, "status": status, "peak": usage.ru_maxrss * 1024})


if __name__ == "__main__":
    main()
