"""What a local cluster consists of: a head process with the scheduler and the nannies, or objects in this one."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import subprocess
from typing import Any

from shoal import config, errors
from shoal.deploy.spec import ProcessInterface
from shoal.programs.processes import closing_timeout, end_descendants
from shoal.programs.scheduler import SchedulerProgram
from shoal.programs.worker import WorkerProgram
from shoal.shell import standard
from shoal.shell.addresses import Listening
from shoal.shell.interpreter import command
from shoal.shell.loops import in_thread

logger = logging.getLogger("shoal.deploy")

#: Seconds that the head process has beyond its own limit, before it is killed.
_MARGIN = 5.0


class Head(ProcessInterface):
    """A process of its own with the scheduler in it, and the nannies of all workers.

    It ends when its stdin closes, however this process ends, and takes all it started with it. It is in a session of
    its own, so that Ctrl-C in the user's terminal interrupts the user's program and not the cluster.

    Parameters
    ----------
    options
        For ``programs/head.py``.
    env
        Environment over all else.
    """

    def __init__(self, options: dict[str, Any], env: dict[str, str]) -> None:
        super().__init__()
        self.addresses: list[str] = []
        #: Why it ended without that anybody wanted it to.
        self.failure = ""
        self.workers: dict[str, HeadWorker] = {}
        self._options, self._env = options, env
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count()
        self._asked: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._reading: asyncio.Task[None] | None = None
        self._transport: asyncio.ReadTransport | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Start it, and wait until the scheduler listens.

        Raises
        ------
        StartError
            With the reason that the process gave.
        """
        self.status = "starting"
        standard.ensure()
        self._process = subprocess.Popen(  # noqa: ASYNC220 - it is forked at once, and waited for elsewhere
            command("shoal.programs.head"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=standard.error(),
            env=config.effective_environment(self._env),
            start_new_session=True,
        )
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=1 << 24)
        self._transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), self._process.stdout
        )
        try:
            self._write(self._options)
            line = await reader.readline()
            if not line:
                raise errors.StartError("the head process of the cluster ended; see its log above")
            answer = json.loads(line)
            if "error" in answer:
                raise _error(answer, "the cluster did not start: ")
        except BaseException:
            await self.close()
            raise
        self.addresses = answer["addresses"]
        self.address = self.addresses[0]
        self.status = "running"
        self._reading = loop.create_task(self._read(reader))

    def _write(self, what: dict[str, Any]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what).encode() + b"\n")
        self._process.stdin.flush()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        """Hear what it says until it ends."""
        while line := await reader.readline():
            said = json.loads(line)
            if "ended" in said:
                worker = self.workers.pop(said["ended"], None)
                if worker is not None:
                    worker.has_ended(said["reason"])
            elif "failed" in said:
                self.status, self.failure = "failed", said["failed"]
                logger.error("the cluster's head process ends: %s", self.failure)
            else:
                future = self._asked.pop(said["rid"], None)
                if future is not None and not future.done():
                    future.set_result(said)
        self.status = "failed" if self.status == "running" else self.status
        for future in self._asked.values():
            if not future.done():
                future.set_exception(errors.StartError(self._why_ended()))
        for worker in self.workers.values():
            worker.has_ended(self._why_ended())
        self._ended.set()

    def _why_ended(self) -> str:
        return "the head process of the cluster ended" + (f": {self.failure}" if self.failure else "")

    async def ask(self, do: str, name: str) -> None:
        """Have a worker started or ended; returns once that is so.

        Raises
        ------
        StartError
            If it cannot be started, or the head process ends.
        """
        if self.status != "running":
            why = f" ({self.failure})" if self.failure else ""
            raise errors.StartError(f"the head process of the cluster is {self.status}{why}")
        rid = next(self._numbers)
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._asked[rid] = future
        try:
            self._write({"rid": rid, "do": do, "name": name})
        except BrokenPipeError:
            raise errors.StartError("the head process of the cluster ended") from None
        try:
            async with asyncio.timeout(closing_timeout() if do == "close" else None):
                said = await future
        except TimeoutError:
            self._asked.pop(rid, None)
            raise errors.StartError(f"the head process did not answer within {closing_timeout():g} s") from None
        if "error" in said:
            raise _error(said, "")

    async def close(self) -> None:
        """End it; returns once all its processes are gone."""
        process, self._process = self._process, None
        if process is None:
            return
        self.status = "closing"
        assert process.stdin is not None
        try:
            process.stdin.close()
        except BrokenPipeError:
            pass  # it has ended already
        limit = closing_timeout() + _MARGIN  # it ends itself, and all that it started, a little earlier
        try:
            await in_thread(process.wait, limit)
        except subprocess.TimeoutExpired:
            logger.warning("the processes of the cluster did not end within %g s, and are killed", limit)
            end_descendants(process.pid)
            process.kill()
            await in_thread(process.wait)
        if self._reading is not None:
            await self._reading
        if self._transport is not None:
            self._transport.close()
        await super().close()


class HeadWorker(ProcessInterface):
    """A worker of which the nanny is in the head process."""

    def __init__(self, head: Head, scheduler: str, name: Any, **options: Any) -> None:
        super().__init__(scheduler, name)
        self._head = head
        self.reason = ""

    async def start(self) -> None:
        self.status = "starting"
        self._head.workers[str(self.name)] = self
        await self._head.ask("start", str(self.name))
        await super().start()

    async def close(self) -> None:
        if not self._ended.is_set() and self._head.status == "running":
            self.status = "closing"
            await self._head.ask("close", str(self.name))
        self._head.workers.pop(str(self.name), None)
        await super().close()

    def has_ended(self, reason: str) -> None:
        """Its nanny has ended, and its process with it."""
        self.reason = reason
        self.status = "closed"
        self._ended.set()


class InnerScheduler(ProcessInterface):
    """A scheduler on this event loop, which workers here reach by memory.

    Parameters
    ----------
    options
        As for the head process.
    secret
        The cluster's secret.
    """

    def __init__(self, options: dict[str, Any], secret: bytes) -> None:
        super().__init__()
        self._options, self._secret = options, secret
        self.addresses: list[str] = []
        self.program: SchedulerProgram | None = None

    async def start(self) -> None:
        self.program = SchedulerProgram(self._secret)
        where = f"{self._options['at']}:{self._options['port']}"
        try:
            await self.program.start(["inproc://", where])
        except BaseException:
            await self.close()
            raise
        self.addresses = self.program.addresses
        self.address = self.addresses[0]
        await super().start()

    async def finished(self) -> None:
        assert self.program is not None
        await self.program.finished.wait()

    async def close(self) -> None:
        if self.program is not None:
            await self.program.close("the cluster closed")
        await super().close()


class InnerWorker(ProcessInterface):
    """A worker on this event loop, joined to the others by memory; its tasks run in threads."""

    def __init__(
        self, inner: InnerScheduler, options: dict[str, Any], secret: bytes, scheduler: str, name: Any, **shape: Any
    ) -> None:
        super().__init__(scheduler, name)
        self._inner, self._options, self._secret, self._shape = inner, options, secret, shape
        self.program: WorkerProgram | None = None

    async def start(self) -> None:
        options = self._options
        self.program = WorkerProgram(
            self._inner.addresses,
            self._secret,
            name=str(self.name),
            **self._shape,
            resources=options["resources"],
            executors=options["executors"],
            local_directory=options["local_directory"],
        )
        await self.program.start(Listening(["inproc://"]), also=[f"{options['at']}:0"])
        await super().start()

    async def finished(self) -> None:
        assert self.program is not None
        await self.program.finished.wait()

    async def close(self) -> None:
        if self.program is not None and self.status != "closed":
            await self.program.close(self.program.reason or "the cluster closed")
        await super().close()


def _error(answer: dict[str, Any], prefix: str) -> Exception:
    kind = getattr(errors, answer.get("kind", ""), errors.StartError)
    error: Exception = kind(f"{prefix}{answer['error']}")
    return error
