"""A local cluster's own process: the scheduler and the nannies, so that the user's interpreter is on no critical path.

Started by ``LocalCluster`` with its options as the first line of stdin; answers with one line on stdout once the
scheduler listens. Further lines ask for workers to be started and ended; each is answered, and each worker that has
ended by itself is told of. It ends, and takes all it started with it, when stdin closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import signal
import socket
import sys
from typing import Any, Final

from shoal import config
from shoal.errors import StartError
from shoal.programs.deadline import Deadline
from shoal.programs.fork_server import plant
from shoal.programs.nanny import NannyProgram
from shoal.programs.preparing import expect_imports, take_title
from shoal.programs.processes import ForkServer, closing_timeout, fork_imports, start_method
from shoal.programs.scheduler import SchedulerProgram
from shoal.security import unpack
from shoal.shell import doors, limits, standard
from shoal.shell.logs import print_from
from shoal.shell.loops import new_event_loop
from shoal.shell.network import local_address
from shoal.shell.tasks import Tasks

#: Open files of this process (a scheduler with a few clients), and those that it has for each worker while that starts.
OWN_FILES: Final = 26
FILES_OF_A_WORKER: Final = 14
#: Those of a worker, without those of its peers (two each) and its tasks.
FILES_IN_A_WORKER: Final = 28


def main() -> None:
    """Read the options, run until stdin closes."""
    standard.take_over()
    line = sys.stdin.buffer.readline()
    if not line.endswith(b"\n"):
        return  # who started it has ended before it had said what is wanted
    options = json.loads(line)
    config.inherit(options.pop("config"))
    config.hide_secret(unpack(options["secret"]))
    config.extend_import_path(options.pop("sys_path"))
    print_from(options.pop("silence_logs"))
    expect_imports()
    answer = os.dup(1)
    os.dup2(2, 1)  # what tasks and libraries print must not be taken for the answer
    workers = options.pop("workers")
    try:
        _allow_files(workers)
    except StartError as error:
        _say(answer, {"kind": "StartError", "error": str(error)})
        return
    # This process was executed with the environment of the workers: what it has imported is what they need.
    forking = plant(fork_imports()) if start_method() == "forkserver" else None
    limits.allow()
    deadline = Deadline(closing_timeout())
    take_title("shoal cluster")
    gc.set_threshold(50_000, 20, 100)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(_run(options, answer, forking, deadline))


def _say(answer: int, what: dict[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(answer, json.dumps(what).encode() + b"\n")


def _files(workers: int) -> int:
    return OWN_FILES + FILES_OF_A_WORKER * workers


def _allow_files(workers: int) -> None:
    """See that there can be so many open files, here and in the workers, which keep the limit of the user's program.

    Raises
    ------
    StartError
        If there cannot be, naming the limit.
    """
    before = limits.limit()
    limits.allow()
    limits.require(_files(workers), f"a local cluster of {workers} workers", "; or start fewer workers")
    theirs = max(before, FILES_IN_A_WORKER + 2 * workers)
    if theirs < limits.limit():
        limits.lower(theirs)


class _Nannies:
    """The nannies of this process: started and ended as the owner of the cluster asks, line by line."""

    def __init__(self, options: dict[str, Any], local: str, answer: int) -> None:
        self._options, self.local, self._answer = options, local, answer
        self._nannies: dict[str, NannyProgram] = {}
        self._tasks = Tasks("the local cluster")

    def say(self, what: dict[str, Any]) -> None:
        """One line for the owner, who may be gone."""
        _say(self._answer, what)

    async def serve(self, pipe: asyncio.StreamReader) -> None:
        """Do what is asked until nobody asks any more."""
        while line := await pipe.readline():
            asked = json.loads(line)
            work = self._start if asked["do"] == "start" else self._close
            self._tasks.spawn(self._do(work, asked["rid"], asked["name"]))

    async def _do(self, work: Any, rid: int, name: str) -> None:
        try:
            await work(name)
        except BaseException as error:
            if doors.is_for_us(error, awaiting=True):
                raise
            self.say({"rid": rid, "kind": type(error).__name__, "error": str(error) or doors.text_of(error)})
        else:
            self.say({"rid": rid})

    async def _start(self, name: str) -> None:
        options = self._options
        if name in self._nannies:
            raise StartError(f"there is a worker {name!r} already")
        count = len(self._nannies) + 1
        limits.require(
            max(_files(count), limits.open_files() + FILES_OF_A_WORKER), f"a local cluster of {count} workers"
        )
        nanny = self._nannies[name] = NannyProgram(
            [self.local],
            unpack(options["secret"]),
            name,
            ([f"{options['at']}:0"], ""),
            memory_limit=options["memory_limit"],
            nthreads=options["nthreads"],
            worker_options={name: options[name] for name in ("resources", "executors")},
            env=options["env"],
            local_directory=options["local_directory"],
            worker_class=options["worker_class"],
        )
        try:
            await nanny.start()
            await nanny.wait_until_up()
        except BaseException:
            del self._nannies[name]
            await nanny.close("it did not start")
            raise
        self._tasks.spawn(self._watch(name, nanny))

    async def _watch(self, name: str, nanny: NannyProgram) -> None:
        await nanny.finished.wait()
        if self._nannies.get(name) is nanny:  # it was not closed here
            del self._nannies[name]
            await nanny.close(nanny.reason)
            self.say({"ended": name, "reason": nanny.reason})

    async def _close(self, name: str) -> None:
        nanny = self._nannies.pop(name, None)
        if nanny is not None:
            await nanny.close("the cluster ended it")

    async def close(self) -> None:
        """End all of them."""
        while self._tasks or self._nannies:
            nannies, self._nannies = self._nannies, {}
            await asyncio.gather(*(nanny.close("the cluster closed") for nanny in nannies.values()))
            await self._tasks.end(closing_timeout())  # each ends with its nanny


async def _run(
    options: dict[str, Any], answer: int, forking: tuple[socket.socket, int] | None, deadline: Deadline
) -> None:
    loop = asyncio.get_running_loop()
    server = None
    if forking is not None:
        server = ForkServer.adopt(config.effective_environment(options["env"]), *forking)
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    pipe = asyncio.StreamReader()
    asked, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(pipe), sys.stdin)
    scheduler = SchedulerProgram(unpack(options["secret"]))
    nannies = _Nannies(options, local_address(), answer)
    serving: asyncio.Task[None] | None = None
    try:
        try:
            await scheduler.start([f"{options['at']}:{options['port']}", nannies.local])
        except Exception as error:
            nannies.say({"kind": type(error).__name__, "error": str(error)})
            return
        nannies.say({"addresses": scheduler.addresses})
        serving = loop.create_task(nannies.serve(pipe))
        waits = {serving, loop.create_task(ended.wait()), loop.create_task(scheduler.finished.wait())}
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if scheduler.ending.status:
            nannies.say({"failed": scheduler.reason})
        if serving.done():
            serving.result()
    finally:
        deadline.begin()
        if serving is not None:
            serving.cancel()
        await nannies.close()
        await scheduler.close("the cluster closed")
        asked.close()
        if server is not None:
            server.end()
            await server.gone()
    if scheduler.ending.status:
        sys.stderr.write(f"scheduler ended: {scheduler.reason}\n")
        raise SystemExit(scheduler.ending.status)


if __name__ == "__main__":
    main()
