"""The nanny program: its core, a worker process, a link to the scheduler."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from typing import Any
from uuid import uuid4

from shoal import config
from shoal.core.effects import CallUser, Effect, Log, Send, Signal, Spawn, Stop
from shoal.core.events import (
    CallDone,
    ChildExited,
    ChildFailed,
    ChildReady,
    Command,
    LinkLost,
    MemorySample,
    Received,
)
from shoal.core.nanny.reactor import NannyCore
from shoal.errors import StartError
from shoal.messages import RegisterNanny, ToNanny
from shoal.programs.calls import call_user
from shoal.shell.driver import Driver
from shoal.shell.link import Identity, Link
from shoal.shell.logs import LogKeeper
from shoal.shell.network import dial_lasting, local_address
from shoal.shell.recorder import Recorder
from shoal.shell.usage import resident_bytes

logger = logging.getLogger("shoal.nanny")


class NannyProgram:
    """Runs a :class:`NannyCore` on the current event loop.

    Parameters
    ----------
    scheduler
        Addresses of the scheduler.
    secret
        The cluster's secret.
    name, memory_limit
        Of the worker.
    listen
        Where the worker listens, beside an address that only this machine reaches.
    worker_options
        Handed to the worker.
    env
        Environment of the worker, over all else.
    """

    def __init__(
        self,
        scheduler: list[str],
        secret: bytes,
        name: str,
        listen: str,
        memory_limit: int = 0,
        worker_options: dict[str, Any] | None = None,
        env: dict[str, str] | None = None,
    ) -> None:
        self.id = f"Nanny-{uuid4().hex}"
        self.name = name
        self.scheduler, self.listen = scheduler, listen
        self.memory_limit = memory_limit
        self.env = config.effective_environment(env or {})
        self.finished = asyncio.Event()
        self.reason = ""
        self.process: subprocess.Popen[bytes] | None = None
        self._secret = secret
        self._options = worker_options or {}
        self._identity = Identity("nanny", self.id, secret, {"scheduler": ToNanny})
        self._link: Link | None = None
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._up = asyncio.Event()
        #: Where the worker listens now.
        self.worker_address = ""
        terminate = config.fraction(config.get("distributed.worker.memory.terminate", 0.95), "memory.terminate")
        self.core = NannyCore(
            name,
            memory_limit,
            terminate,
            config.seconds(config.get("shoal.nanny.start-timeout", 60.0), "shoal.nanny.start-timeout") or 60.0,
            int(config.get("shoal.nanny.crash-limit", 5)),
        )
        self.logs = LogKeeper(config.log_length(), f"worker {name} ")
        self.logs.attach("shoal.nanny")
        self.driver = Driver(self.core, self._perform, self._loop, lambda error: self.finished.set())

    @property
    def pid(self) -> int | None:
        """Process id of the worker."""
        return self.process.pid if self.process is not None and self.process.returncode is None else None

    async def start(self, timeout: float = 30.0) -> None:
        """Connect to the scheduler, register, and start the worker process."""
        self._link = await dial_lasting(self.scheduler, self._identity, self._on_messages, self._on_closed, timeout)
        self._link.send(RegisterNanny(self.name, socket.gethostname(), os.getpid()))
        self.driver.push(Command("start"))

    async def wait_until_up(self) -> None:
        """Wait until the scheduler knows the worker process.

        Raises
        ------
        StartError
            If the nanny gave up.
        """
        waits = {self._loop.create_task(event.wait()) for event in (self._up, self.finished)}
        _, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in pending:
            wait.cancel()
        if not self._up.is_set():
            raise StartError(self.reason)

    def _on_messages(self, link: Link, messages: list[Any]) -> None:
        self.driver.push(Received("", messages))

    def _on_closed(self, link: Link, reason: str) -> None:
        self.driver.push(LinkLost("scheduler", link.peer_id, reason))

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Spawn():
                self._spawn(effect.incarnation)
            case Signal():
                if self.process is not None and effect.incarnation == self.core.incarnation:
                    self.process.send_signal(signal.SIGKILL if effect.hard else signal.SIGTERM)
            case Send():
                if self._link is not None:
                    self._link.send(effect.message)
            case Log():
                logger.log(effect.level, "%s", effect.text)
            case CallUser():
                self._task(self._call(effect))
            case Stop():
                self.reason = effect.reason
                self.finished.set()

    def _task(self, coroutine: Any) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _call(self, effect: CallUser) -> None:
        self.driver.push(CallDone(effect.rid, effect.to, await call_user(effect.payload, dask_worker=self)))

    def _spawn(self, incarnation: int) -> None:
        options = {
            "scheduler": self.scheduler,
            "secret": self._secret.hex(),
            "listen": [self.listen, local_address()],
            "name": self.name,
            "slot": self.id,
            "memory_limit": self.memory_limit,
            "config": config.export(),
            "sys_path": config.import_path(),
            **self._options,
        }
        reader, writer = os.pipe()
        memory = os.memfd_create("shoal-running")
        threads = int(self._options.get("nthreads", 1)) + sum((self._options.get("executors") or {}).values())
        recorder = Recorder(memory, threads)
        options["recorder"] = memory
        command = [sys.executable, "-m", "shoal.programs.worker_main", "--report", str(writer)]
        try:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, env=self.env, pass_fds=[writer, memory])
        except OSError as error:
            os.close(reader)
            recorder.close()
            self._loop.call_soon(self.driver.push, ChildFailed(incarnation, f"could not be started: {error}"))
            self._loop.call_soon(self.driver.push, ChildExited(incarnation, None, None, []))
            return
        finally:
            os.close(writer)
            os.close(memory)
        self.process = process
        assert process.stdin is not None
        process.stdin.write(json.dumps(options).encode() + b"\n")
        process.stdin.flush()
        self._task(self._watch(process, incarnation, reader, recorder))

    async def _watch(self, process: subprocess.Popen[bytes], incarnation: int, report: int, recorder: Recorder) -> None:
        """Follow one process from its first word to its exit, which is noticed at once (a descriptor, no polling)."""
        loop = self._loop
        exited = asyncio.Event()
        descriptor = os.pidfd_open(process.pid)
        loop.add_reader(descriptor, exited.set)
        loop.add_reader(report, self._on_report, report, incarnation)
        interval = config.seconds(config.get("distributed.worker.memory.monitor-interval", 0.1), "monitor-interval")
        while not exited.is_set():
            try:
                await asyncio.wait_for(exited.wait(), interval or 0.1)
            except TimeoutError:
                self._sample(process.pid, incarnation)
        loop.remove_reader(descriptor)
        loop.remove_reader(report)
        self._on_report(report, incarnation)
        os.close(descriptor)
        os.close(report)
        status = process.wait()
        assert process.stdin is not None
        process.stdin.close()
        code, number = (None, -status) if status < 0 else (status, None)
        running = recorder.running()
        recorder.close()
        self.driver.push(ChildExited(incarnation, code, number, running))

    def _on_report(self, descriptor: int, incarnation: int) -> None:
        os.set_blocking(descriptor, False)
        try:
            data = os.read(descriptor, 65536)
        except BlockingIOError:
            return
        if not data:
            self._loop.remove_reader(descriptor)
        for line in data.splitlines():
            said = json.loads(line)
            if "error" in said:
                self.driver.push(ChildFailed(incarnation, said["error"]))
            elif "registered" in said:
                self._up.set()
            else:
                self.worker_address = said["address"]
                self.driver.push(ChildReady(incarnation, said["id"], said["address"], said["pid"]))

    def _sample(self, pid: int, incarnation: int) -> None:
        try:
            resident = resident_bytes(pid)
        except (OSError, IndexError):
            return  # it ended between the two; its exit is reported
        self.driver.push(MemorySample(incarnation, resident))

    async def close(self, reason: str = "closed") -> None:
        """End the worker process, then let go of the link."""
        self.driver.push(Command("close", reason))
        await self.finished.wait()
        if self._link is not None:
            self._link.close(reason)
        while self._tasks:
            await asyncio.wait(self._tasks)
        self.driver.close()
        self.logs.close()
