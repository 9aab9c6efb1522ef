"""``Scheduler``, ``Worker`` and ``Nanny`` as objects in an asynchronous program, and for the command line.

async with Scheduler() as scheduler, Nanny(scheduler.address), Client(scheduler.address, asynchronous=True) as client:
    assert await client.submit(sum, [1, 2]) == 3
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Generator
from html import escape
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from shoal import config
from shoal.errors import UsageError
from shoal.programs.nanny import NannyProgram
from shoal.programs.scheduler import SchedulerProgram
from shoal.programs.worker import WorkerProgram
from shoal.security import read_scheduler_file, secret_of, write_scheduler_file
from shoal.shell.network import local_address


class Server(ABC):
    """What the three have in common: start, status, finish, close."""

    def __init__(self) -> None:
        self.status = "created"
        self.program: Any = None

    @abstractmethod
    async def _launch(self) -> None:
        """Make the program, and start it."""

    async def start(self) -> Self:
        """Start it, unless that was done already.

        Raises
        ------
        ConfigurationError
            If an address is taken, or open to strangers.
        ConnectError
            If the scheduler cannot be reached.
        """
        if self.status == "created":
            self.status = "starting"
            try:
                await self._launch()
            except BaseException:
                await self.close()
                raise
            self.status = "running"
        return self

    @property
    @abstractmethod
    def address(self) -> str:
        """Where others reach it."""

    async def finished(self) -> None:
        """Wait until it was closed, or told to end by another."""
        if self.program is not None:
            await self.program.finished.wait()

    async def close(self, reason: str = "closed by its user") -> None:
        """End it; returns once all that it started has ended."""
        if self.status == "closed":
            return
        self.status = "closed"
        if self.program is not None:
            await self.program.close(self.program.reason or reason)
            self.program.finished.set()

    def __await__(self) -> Generator[Any, None, Self]:
        return self.start().__await__()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *args: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        where = self.address if self.status == "running" else "not running"
        return f"<{type(self).__name__} {where}, {self.status}>"

    def _repr_html_(self) -> str:
        return f"<b>{type(self).__name__}</b> <span>{escape(repr(self))}</span>"


class Scheduler(Server):
    """A scheduler on the current event loop.

    Parameters
    ----------
    host, port
        Where it listens; this machine alone by default, at any free port.
    scheduler_file
        Where its address and secret are written (mode 0600), for others to find it.
    security
        :class:`Security` with the cluster's secret; this user's own by default.
    """

    def __init__(
        self,
        *,
        host: str | None = None,
        port: int = 0,
        scheduler_file: str | Path | None = None,
        security: Any = None,
    ) -> None:
        super().__init__()
        self._secret = secret_of(security)
        self._listen = f"tcp://{host or '127.0.0.1'}:{port}"
        self._scheduler_file = None if scheduler_file is None else Path(scheduler_file).expanduser()

    async def _launch(self) -> None:
        self.program = SchedulerProgram(self._secret)
        await self.program.start([self._listen, local_address()])
        if self._scheduler_file is not None:
            write_scheduler_file(self._scheduler_file, "Scheduler", self.program.addresses, self._secret)

    @property
    def address(self) -> str:
        found: str = self.program.addresses[0]
        return found

    async def close(self, reason: str = "closed by its user") -> None:
        """End it: workers, nannies and clients are told."""
        if self._scheduler_file is not None and self.status == "running":
            self._scheduler_file.unlink(missing_ok=True)
        await super().close(reason)


class _Joining(Server):
    """What a worker and a nanny have in common: a scheduler to find, and the worker's options."""

    def __init__(
        self,
        scheduler_ip: str | None = None,
        scheduler_port: int | None = None,
        *,
        scheduler_file: str | Path | None = None,
        nthreads: int | None = None,
        name: Any = None,
        memory_limit: Any = "auto",
        resources: dict[str, float] | None = None,
        executors: dict[str, int] | None = None,
        host: str | None = None,
        port: int = 0,
        security: Any = None,
    ) -> None:
        super().__init__()
        fallback = None
        if scheduler_file is not None:
            if scheduler_ip is not None:
                raise UsageError("give the scheduler's address or a scheduler_file, not both")
            self.scheduler, fallback = read_scheduler_file(Path(scheduler_file))
        else:
            found = scheduler_ip or config.get("scheduler-address")
            if not found:
                raise UsageError("give the scheduler's address, a scheduler_file, or scheduler-address (configuration)")
            self.scheduler = [str(found) if scheduler_port is None else f"tcp://{found}:{scheduler_port}"]
        self._secret = secret_of(security, fallback)
        self.nthreads = config.cpu_count() if nthreads is None else nthreads
        if not isinstance(self.nthreads, int) or self.nthreads < 1:
            raise UsageError(f"nthreads must be a number from 1 on, got {nthreads!r}")
        self.memory_limit = config.memory_limit(memory_limit, self.nthreads)
        self.resources = resources
        self.executors = config.executors(executors)
        self.name = str(name) if name is not None else f"{config.host_name()}-{uuid4().hex[:8]}"
        self._listen = f"tcp://{host or '127.0.0.1'}:{port}"


class Worker(_Joining):
    """A worker on the current event loop, without a nanny.

    Parameters
    ----------
    scheduler_ip, scheduler_port
        The scheduler's address, whole (``"tcp://host:port"``) or in two parts.
    scheduler_file
        File that the scheduler wrote, in place of the address.
    nthreads
        Tasks that it runs at the same time; as many as there are processors by default.
    name
        Its name, for restrictions and logs.
    memory_limit
        Bytes, ``"4 GiB"``, a fraction of the machine, ``"auto"``, or 0 for none.
    resources
        Abstract resources, by name.
    executors
        Threads of further pools, by name, for tasks that were submitted under ``dask.annotate(executor=name)``.
    host, port
        Where it listens for its peers.
    security
        :class:`Security` with the cluster's secret; this user's own by default.
    """

    async def _launch(self) -> None:
        self.program = WorkerProgram(
            self.scheduler,
            self._secret,
            name=self.name,
            nthreads=self.nthreads,
            memory_limit=self.memory_limit,
            resources=self.resources,
            executors=self.executors,
        )
        await self.program.start([self._listen, local_address()])

    @property
    def address(self) -> str:
        found: str = self.program.addresses[0]
        return found


class Nanny(_Joining):
    """A nanny on the current event loop, and its worker in a process of its own. Parameters as for :class:`Worker`.

    ``env`` is the environment of the worker process, over all else.
    """

    def __init__(
        self,
        scheduler_ip: str | None = None,
        scheduler_port: int | None = None,
        *,
        env: dict[str, str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(scheduler_ip, scheduler_port, **options)
        self._env = env

    async def _launch(self) -> None:
        self.program = NannyProgram(
            self.scheduler,
            self._secret,
            self.name,
            self._listen,
            self.memory_limit,
            {"nthreads": self.nthreads, "resources": self.resources, "executors": self.executors},
            self._env,
        )
        await self.program.start()
        await self.program.wait_until_up()

    @property
    def address(self) -> str:
        """The address of its worker."""
        return self.worker_address

    @property
    def worker_address(self) -> str:
        """Where the worker listens now."""
        found: str = self.program.worker_address
        return found

    @property
    def pid(self) -> int | None:
        """Process id of the worker."""
        found: int | None = self.program.pid
        return found


async def run_until(server: Server, ended: asyncio.Event) -> None:
    """Start ``server``, and close it when it has finished or ``ended`` is set."""
    async with server:
        waits = {asyncio.ensure_future(ended.wait()), asyncio.ensure_future(server.finished())}
        _, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in pending:
            wait.cancel()
