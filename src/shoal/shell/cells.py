"""Processes for tasks that may have to be ended: one task at a time each, used again as long as none has to be.

A thread cannot be ended, a process can. A worker keeps as many idle ones as it has threads; the thread of the task
waits for the answer, and ends the process when it takes too long, or when nobody wants the result any more.
"""

from __future__ import annotations

import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

from shoal.errors import StartError, TaskProcessDied, TaskTimeoutError
from shoal.messages import Blob
from shoal.shell import serialize, standard
from shoal.shell.interpreter import command

#: Seconds that a process may take to be ready.
_START = 60.0


class Killed(Exception):
    """The process was ended on purpose: nobody wants what it was at."""


class Cell:
    """One process."""

    def __init__(self, home: tuple[Any, ...]) -> None:
        standard.ensure()
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                command("shoal.programs.cell", str(theirs.fileno())),
                stdin=subprocess.DEVNULL, stdout=standard.output(), stderr=standard.error(),
                pass_fds=[theirs.fileno()],
            )  # fmt: skip
        self._socket = ours
        self.killed = False
        #: Functions that it has.
        self.functions: set[str] = set()
        try:
            self._socket.settimeout(_START)
            send(self._socket, serialize.dumps(home))
            receive(self._socket)
        except (OSError, EOFError) as error:
            self.end()
            raise StartError(f"a process for a task could not be started: {error!r}") from error

    def ask(self, request: Any, timeout: float) -> Any:
        """Have it run something; return what it answers.

        Raises
        ------
        TimeoutError
            After ``timeout`` seconds (0: never).
        EOFError
            If it ended.
        """
        due = monotonic() + timeout if timeout else None
        self._socket.settimeout(None)
        send(self._socket, request)
        return receive(self._socket, due)

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def kill(self) -> None:
        """End it and what it started; callable in any thread."""
        import psutil

        try:
            process = psutil.Process(self._process.pid)
            for one in [process, *process.children(recursive=True)]:
                one.kill()
        except psutil.NoSuchProcess:
            pass  # it, or one that it started, has ended by itself

    def end(self) -> str:
        """End it, what it started, and the connection with it; return how it ended."""
        self.kill()
        code = self._process.wait()
        self._socket.close()
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with status {code}"


class Cells:
    """The processes of one worker.

    Parameters
    ----------
    home
        Says what tasks in them find of their worker: its id, name, address, and how to reach the scheduler.
    """

    def __init__(self, home: Callable[[], tuple[Any, ...]]) -> None:
        self._home = home
        self._lock = threading.Lock()
        self._idle: list[Cell] = []
        self._busy: dict[str, Cell | None] = {}
        self._unwanted: set[str] = set()
        self._closed = False

    def run(self, key: str, fn: str, function: Any, payload: Any, inputs: dict[str, Any], timeout: float) -> Any:
        """Run a task in a process of its own; return what that says of it (see ``programs/cell.py``).

        Raises
        ------
        Killed
            If it was ended because nobody wants its result.
        TaskTimeoutError
            If it took longer than ``timeout`` seconds (0: no limit).
        TaskProcessDied
            If the process ended by itself.
        StartError
            If there cannot be a process.
        """
        with self._lock:
            if self._closed:
                raise Killed
            self._busy[key] = cell = self._idle.pop() if self._idle else None
        broken = True
        try:
            if cell is not None and not cell.alive:  # it ended while it was idle, which is not this task's fault
                cell.end()
                cell = None
            if cell is None:
                cell = Cell(self._home())
                with self._lock:
                    self._busy[key] = cell
                    if key in self._unwanted or self._closed:
                        raise Killed
            known = None if fn in cell.functions else function
            answer = cell.ask(serialize.dumps((key, fn, known, payload, inputs)), timeout)
            cell.functions.add(fn)
            broken = False
            return answer
        except TimeoutError:
            raise TaskTimeoutError(f"the task took longer than its timeout of {timeout:g} s, and was ended") from None
        except (EOFError, OSError):
            if cell is None or cell.killed:
                raise Killed from None
            how = cell.end()
            raise TaskProcessDied(f"the process of the task {how}; its worker goes on") from None
        finally:
            with self._lock:
                del self._busy[key]
                self._unwanted.discard(key)
                if not broken and not self._closed:
                    assert cell is not None
                    self._idle.append(cell)
                    cell = None
            if cell is not None:
                cell.end()

    def kill(self, keys: Sequence[str]) -> None:
        """End the processes that are at these, if any are; callable in any thread."""
        with self._lock:
            for key in keys:
                if key not in self._busy:
                    continue
                self._unwanted.add(key)
                cell = self._busy[key]
                if cell is not None:
                    cell.killed = True
                    cell.kill()  # its thread hears of it, and clears up

    def close(self) -> None:
        """End them all."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            busy = list(self._busy)
        self.kill(busy)
        for cell in idle:
            cell.end()


def send(sock: socket.socket, payload: Any) -> None:
    """Write one payload."""
    frames = payload.frames if isinstance(payload, Blob) else [payload]
    sizes = [len(frame) if isinstance(frame, bytes) else frame.nbytes for frame in frames]
    sock.sendall(struct.pack(f"<I{len(frames)}Q", len(frames), *sizes))
    for frame in frames:
        sock.sendall(frame)


def receive(sock: socket.socket, due: float | None = None) -> Any:
    """Read one payload, and return its value.

    Raises
    ------
    TimeoutError
        When ``due`` has come.
    EOFError
        If the other side has ended.
    """
    (count,) = struct.unpack("<I", _read(sock, 4, due))
    sizes = struct.unpack(f"<{count}Q", _read(sock, 8 * count, due))
    return serialize.loads(Blob([_read(sock, size, due) for size in sizes]))


def _read(sock: socket.socket, size: int, due: float | None) -> memoryview:
    found = memoryview(bytearray(size))
    at = 0
    while at < size:
        if due is not None:
            left = due - monotonic()
            if left <= 0:
                raise TimeoutError
            sock.settimeout(left)
        got = sock.recv_into(found[at:])
        if not got:
            raise EOFError
        at += got
    return found
