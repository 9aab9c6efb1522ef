"""A process that runs tasks for a worker, one at a time: ``python -m shoal.programs.cell SOCKET``.

See ``shell/cells.py``. It answers each request ``(key, fn, function or None, payload, inputs)`` with a pair: a mapping
that says how it went (``ok``, ``type``, ``nbytes``, ``start``, ``stop``, ``peak``, ``error``), and the payload of the
value.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from time import time
from types import CoroutineType
from typing import Any

from shoal import config
from shoal.errors import Reschedule
from shoal.ids import key_from_wire
from shoal.programs.preparing import expect_tasks, take_title
from shoal.shell import current, doors, serialize, standard
from shoal.shell.cells import receive, send
from shoal.shell.current import Home
from shoal.shell.usage import most_resident_bytes, reset_most_resident, resident_bytes


class CellWorker:
    """What ``get_worker`` gives in such a process: who the worker is, and nothing of what it holds."""

    def __init__(self, id: str, name: str, address: str) -> None:
        self.id, self.name, self.address = id, name, address

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"a worker's {name!r} cannot be reached here: this task was given a process of its own (killable=True, or "
            "task_timeout=). Run it without, to have it run in the worker"
        )


def main() -> None:
    """Serve until the other side closes."""
    standard.take_over()
    sock = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    id, name, address, scheduler, secret, tree, paths = receive(sock)
    config.inherit(tree)
    config.hide_secret(secret)
    config.extend_import_path(paths)
    expect_tasks()
    current.enter(Home(CellWorker(id, name, address), scheduler, secret))
    take_title(f"shoal task of worker {name}")
    functions: dict[str, Any] = {}
    send(sock, serialize.dumps("ready"))
    while True:
        try:
            _, fn, function, payload, inputs = receive(sock)
        except EOFError:
            return
        if function is not None:
            functions[fn] = function
        how, value = _run(fn, functions, payload, inputs)
        del inputs
        try:
            send(sock, serialize.dumps((how, value)))
        except OSError:
            os._exit(1)  # the worker is gone


def _run(fn: str, functions: dict[str, Any], payload: Any, inputs: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    reset_most_resident()
    before, start = resident_bytes(), time()
    try:
        if fn:
            args, kwargs = serialize.loads_with_inputs(payload, inputs)
            value = serialize.loads(functions[fn])(*args, **kwargs)
        else:
            node = serialize.loads_with_inputs(payload, inputs)
            value = node({key_from_wire(key): found for key, found in inputs.items()})
        if type(value) is CoroutineType:
            value = asyncio.run(value)
        stop = time()
        sent = serialize.dumps_safely(value, "the result")
    except Reschedule:
        return {"ok": False, "again": True, "start": start, "stop": time(), "peak": 0, "error": None}, None
    except BaseException as error:
        parts = serialize.error_parts(error)
        peak = max(0, most_resident_bytes() - before)
        return {"ok": False, "again": False, "start": start, "stop": time(), "peak": peak, "error": parts}, None
    told = {"ok": True, "type": doors.named(value), "nbytes": serialize.sizeof(value), "start": start, "stop": stop}
    return {**told, "peak": max(0, most_resident_bytes() - before)}, sent


if __name__ == "__main__":
    main()
