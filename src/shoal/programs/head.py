"""A local cluster's own process: the scheduler and the nannies, so that the user's interpreter is on no critical path.

Started by ``LocalCluster`` with its options as the first line of stdin; answers with one line on stdout once all
workers are up; ends, and takes all it started with it, when stdin closes.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import socket
import sys
from typing import Any

from shoal import config
from shoal.errors import StartError
from shoal.programs.fork_server import plant
from shoal.programs.nanny import NannyProgram
from shoal.programs.processes import ForkServer, fork_imports, start_method
from shoal.programs.scheduler import SchedulerProgram
from shoal.programs.worker_main import take_title
from shoal.shell.logs import print_from
from shoal.shell.loops import new_event_loop
from shoal.shell.network import local_address


def main() -> None:
    """Read the options, run until stdin closes."""
    options = json.loads(sys.stdin.buffer.readline())
    config.inherit(options.pop("config"))
    config.extend_import_path(options.pop("sys_path"))
    print_from(options.pop("silence_logs"))
    # This process was executed with the environment of the workers: what it has imported is what they need.
    forking = plant(fork_imports()) if options["names"] and start_method() == "forkserver" else None
    take_title(f"shoal cluster, {len(options['names'])} workers")
    answer = os.dup(1)
    os.dup2(2, 1)  # what tasks and libraries print must not be taken for the answer
    gc.set_threshold(50_000, 20, 100)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(_run(options, answer, forking))


async def _run(options: dict[str, Any], answer: int, forking: tuple[socket.socket, int] | None) -> None:
    loop = asyncio.get_running_loop()
    server = None
    if forking is not None:
        server = ForkServer.adopt(config.effective_environment(options["env"]), *forking)
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    pipe = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(pipe), sys.stdin)
    orphaned = loop.create_task(pipe.read())
    orphaned.add_done_callback(lambda task: ended.set())
    secret = bytes.fromhex(options["secret"])
    scheduler = SchedulerProgram(secret)
    nannies: list[NannyProgram] = []
    try:
        try:
            local = local_address()
            await scheduler.start([f"tcp://{options['host']}:{options['port']}", local])
            for name in options["names"]:
                nanny = NannyProgram(
                    [local],
                    secret,
                    name,
                    ([f"tcp://{options['host']}:0"], ""),
                    memory_limit=options["memory_limit"],
                    nthreads=options["nthreads"],
                    worker_options={name: options[name] for name in ("resources", "executors")},
                    env=options["env"],
                    local_directory=options["local_directory"],
                )
                nannies.append(nanny)
            await asyncio.gather(*(nanny.start() for nanny in nannies))
            while len(scheduler.core.state.workers) < len(nannies) and not ended.is_set():
                if any(nanny.finished.is_set() for nanny in nannies):
                    raise StartError(next(nanny.reason for nanny in nannies if nanny.finished.is_set()))
                await asyncio.sleep(0.005)
        except Exception as error:
            os.write(answer, json.dumps({"kind": type(error).__name__, "error": str(error)}).encode() + b"\n")
            return
        os.write(answer, json.dumps({"addresses": scheduler.addresses}).encode() + b"\n")
        stopped = loop.create_task(scheduler.finished.wait())
        await asyncio.wait([loop.create_task(ended.wait()), stopped], return_when=asyncio.FIRST_COMPLETED)
    finally:
        await asyncio.gather(*(nanny.close("the cluster closed") for nanny in nannies))
        await scheduler.close("the cluster closed")
        if server is not None:
            server.end()
            await server.exited
        orphaned.cancel()


if __name__ == "__main__":
    main()
