"""The worker process: ``python -m shoal.programs.worker_main``, started by a supervisor with its options on stdin.

It ends when its pipe from the supervisor closes: no orphans, whatever way the supervisor ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import os
import signal
import sys
from typing import Any

from shoal import config
from shoal.programs.worker import WorkerProgram
from shoal.shell.logs import print_from
from shoal.shell.loops import new_event_loop


def main() -> None:
    """Read the options from the first line of stdin, run until told to stop."""
    _die_with_parent()
    options = json.loads(sys.stdin.buffer.readline())
    config.inherit(options.pop("config"))
    config.extend_import_path(options.pop("sys_path"))
    print_from(logging.WARNING)
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(_run(options))


def _die_with_parent() -> None:
    """Have the kernel kill this process when its supervisor dies, even while a task holds the GIL for ever."""
    if sys.platform == "linux":
        import ctypes

        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


async def _run(options: dict[str, Any]) -> None:
    loop = asyncio.get_running_loop()
    listen_at = options.pop("listen")
    worker = WorkerProgram(options.pop("scheduler"), bytes.fromhex(options.pop("secret")), **options)
    worker.logs.attach("")  # and what tasks log themselves
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, worker.finished.set)
    pipe = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(pipe), sys.stdin)
    orphaned = loop.create_task(pipe.read())
    orphaned.add_done_callback(lambda task: worker.finished.set())
    report = int(sys.argv[sys.argv.index("--report") + 1]) if "--report" in sys.argv else None
    try:
        await worker.start(
            listen_at,
            on_connected=lambda: _say(report, {"id": worker.id, "address": worker.addresses[0], "pid": os.getpid()}),
        )
    except Exception as error:
        _say(report, {"error": f"could not start: {type(error).__name__}: {error}"})
        raise
    _say(report, {"registered": True})
    await worker.finished.wait()
    await worker.close(worker.reason or "the process was told to end")
    orphaned.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await orphaned


def _say(descriptor: int | None, what: dict[str, Any]) -> None:
    """Tell the supervisor, if there is one."""
    if descriptor is not None:
        os.write(descriptor, json.dumps(what).encode() + b"\n")


if __name__ == "__main__":
    main()
