"""The worker process: ``python -m shoal.programs.worker_main``, started by a supervisor with its options on stdin.

It ends when its pipe from the supervisor closes: no orphans, whatever way the supervisor ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import signal
import sys
from typing import Any

from shoal import config
from shoal.programs.worker import WorkerProgram


def main() -> None:
    """Read the options from the first line of stdin, run until told to stop."""
    options = json.loads(sys.stdin.buffer.readline())
    config.inherit(options.pop("config"))
    config.extend_import_path(options.pop("sys_path"))
    try:
        import uvloop

        runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    except ImportError:
        runner = asyncio.Runner()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    with runner:
        runner.run(_run(options))


async def _run(options: dict[str, Any]) -> None:
    loop = asyncio.get_running_loop()
    listen_at = options.pop("listen")
    worker = WorkerProgram(options.pop("scheduler"), bytes.fromhex(options.pop("secret")), **options)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, worker.finished.set)
    pipe = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(pipe), sys.stdin)
    orphaned = loop.create_task(pipe.read())
    orphaned.add_done_callback(lambda task: worker.finished.set())
    report = int(sys.argv[sys.argv.index("--report") + 1]) if "--report" in sys.argv else None
    try:
        await worker.start(listen_at)
    except Exception as error:
        _say(report, {"error": f"could not start: {type(error).__name__}: {error}"})
        raise
    _say(report, {"id": worker.id, "address": worker.addresses[0], "pid": os.getpid()})
    await worker.finished.wait()
    await worker.close(worker.reason or "the process was told to end")
    orphaned.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await orphaned


def _say(descriptor: int | None, what: dict[str, Any]) -> None:
    """Tell the supervisor, if there is one."""
    if descriptor is not None:
        os.write(descriptor, json.dumps(what).encode() + b"\n")
        os.close(descriptor)


if __name__ == "__main__":
    main()
