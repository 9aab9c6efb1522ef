"""What ``Scheduler``, ``Worker`` and ``Nanny`` have in common as objects of an asynchronous program; ``Scheduler``.

async with Scheduler() as scheduler, Nanny(scheduler.address), Client(scheduler.address, asynchronous=True) as client:
    assert await client.submit(sum, [1, 2]) == 3
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from html import escape
from pathlib import Path
from typing import Any, Self

from shoal import config, private
from shoal.errors import UsageError
from shoal.programs.preloads import preloads
from shoal.programs.scheduler import SchedulerProgram
from shoal.programs.scheduler_calls import SchedulerCalls
from shoal.security import secret_of, write_scheduler_file
from shoal.shell import doors
from shoal.shell.addresses import listening, told
from shoal.shell.network import local_address


class Server(ABC):
    """What the three have in common: start, status, finish, close. What their program offers is theirs too."""

    def __init__(self) -> None:
        self.status = "created"
        self.program: Any = None
        self._ended = asyncio.Event()
        self._watcher: asyncio.Task[None] | None = None

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
            self._watcher = asyncio.create_task(self._close_when_finished())
        return self

    async def _close_when_finished(self) -> None:
        await self.program.finished.wait()
        await self.close(self.program.reason)

    @property
    @abstractmethod
    def address(self) -> str:
        """Where others reach it."""

    @property
    def exit_status(self) -> int:
        """Of a process that runs it: not 0 if it ended without that anybody wanted it to (see :attr:`end`)."""
        return 0 if self.program is None else int(self.program.ending.status)

    @property
    def end(self) -> str:
        """Why it ended, in words."""
        return "" if self.program is None else str(self.program.reason)

    async def finished(self) -> None:
        """Wait until it was closed, or told to end by another."""
        if self.program is not None:
            await self.program.finished.wait()

    async def close(self, reason: str = "closed by its user") -> None:
        """End it; whoever calls it returns once all that it started has ended."""
        if self.status in ("closing", "closed"):
            await self._ended.wait()
            return
        self.status = "closing"
        if self._watcher is not None and self._watcher is not asyncio.current_task():
            self._watcher.cancel()
        try:
            await self._end(reason)
        finally:
            self.status = "closed"
            if self.program is not None:
                self.program.finished.set()
            self._ended.set()

    async def retire(self, timeout: Any = None, reason: str = "its user closed it", restart: bool = False) -> None:
        """Close, having moved elsewhere what only it holds (a worker)."""
        await self.close(reason)

    async def _end(self, reason: str) -> None:
        if self.program is not None:
            await self.program.close(self.program.reason or reason)

    def log_event(self, topic: str | Sequence[str], msg: Any) -> None:
        """Log an event under one or more topics.

        Raises
        ------
        TypeError
            If the message cannot travel.
        """
        self.program.log_event(topic, msg)

    def __await__(self) -> Generator[Any, None, Self]:
        return self.start().__await__()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *args: object) -> None:
        await self.close()

    def __getattr__(self, name: str) -> Any:
        program = self.__dict__.get("program")
        if program is None or name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r} (status: {self.status})")
        return getattr(program, name)

    def __repr__(self) -> str:
        where = self.address if self.status == "running" else "not running"
        return f"<{type(self).__name__} {where}, {self.status}>"

    def _repr_html_(self) -> str:
        return f"<b>{type(self).__name__}</b> <span>{escape(repr(self))}</span>"


class Scheduler(Server, SchedulerCalls):
    """A scheduler on the current event loop.

    Parameters
    ----------
    host, port, interface, protocol
        Where it listens; this machine alone by default, at any free port. At an address that other machines can
        reach, it speaks TLS; everywhere, if ``protocol`` is ``"tls"``.
    contact_address
        What others are told, where that is another address.
    scheduler_file
        Where its address and secret are written (mode 0600), for others to find it.
    security
        :class:`Security` with the cluster's secret; this user's own by default.
    preload, preload_argv
        Modules to run here at the start (``distributed.scheduler.preload``), and their arguments.
    idle_timeout
        How long there may be no work, as ``"1 hour"``, before the cluster closes
        (``distributed.scheduler.idle-timeout``).
    allowed_failures, worker_ttl, validate
        Instead of ``distributed.scheduler.allowed-failures``, ``worker-ttl`` and ``validate``.
    plugins
        Plugins to install at the start.
    loop, dashboard, dashboard_address, http_prefix
        Accepted, and without effect (there is no dashboard).
    """

    def __init__(
        self,
        loop: Any = None,
        *,
        host: str | None = None,
        port: int = 0,
        scheduler_file: str | Path | None = None,
        security: Any = None,
        preload: Any = None,
        preload_argv: Any = None,
        idle_timeout: Any = None,
        interface: str | None = None,
        protocol: str | None = None,
        contact_address: str | None = None,
        allowed_failures: int | None = None,
        worker_ttl: Any = None,
        validate: bool | None = None,
        plugins: Sequence[Any] = (),
        dashboard: bool | None = None,
        dashboard_address: str | None = None,
        http_prefix: str | None = None,
    ) -> None:
        super().__init__()
        self.idle_timeout = config.seconds(idle_timeout, "idle_timeout")
        if allowed_failures is not None and (not isinstance(allowed_failures, int) or allowed_failures < 0):
            raise UsageError(f"allowed_failures must be a number from 0 on, got {allowed_failures!r}")
        given = {
            "idle_timeout": self.idle_timeout,
            "allowed_failures": allowed_failures,
            "worker_ttl": config.seconds(worker_ttl, "worker_ttl"),
            "validate": validate,
        }
        self._given = {name: value for name, value in given.items() if value is not None}
        self._plugins = list(plugins)
        self._secret = secret_of(security)
        self._preloads = preloads(preload, preload_argv, "distributed.scheduler")
        where = listening("tcp://127.0.0.1:0", host, port, interface, protocol, None, contact_address)
        self._listen, self._contact = where.candidates[0], where.contact
        self._scheduler_file = None if scheduler_file is None else Path(scheduler_file).expanduser()

    async def _launch(self) -> None:
        self.program = SchedulerProgram(self._secret, public=self)
        for name, value in self._given.items():
            setattr(self.program.core.settings, name, value)
        await self.program.start([self._listen, local_address()])
        if self._contact:
            self.program.addresses.insert(0, told(self._contact, self.program.addresses[0]))
        for plugin in self._plugins:
            await self.program.add_plugin(plugin, None, False)
        await self._preloads.start(self)
        if self._scheduler_file is not None:
            write_scheduler_file(self._scheduler_file, "Scheduler", self.program.addresses, self._secret)

    @property
    def address(self) -> str:
        found: str = self.program.addresses[0]
        return found

    async def close(self, reason: str = "closed by its user", timeout: Any = None) -> None:
        """End it; ``timeout`` has no effect, since nothing is waited for."""
        await super().close(reason)

    def stop(self) -> Any:
        """Begin to end it; to be awaited by who wants to know when it has."""
        return asyncio.ensure_future(self.close())

    async def _end(self, reason: str) -> None:
        if self._scheduler_file is not None and self.program is not None:
            private.remove(self._scheduler_file)
        await self._preloads.stop(self)
        await super()._end(reason)


async def run_until(servers: Sequence[Server], ended: asyncio.Event, leaving: asyncio.Event | None = None) -> None:
    """Start ``servers`` together, and close them when all have finished or ``ended`` is set.

    If ``leaving`` is set, they retire first (workers and nannies can).
    """
    starting = asyncio.ensure_future(asyncio.gather(*(server.start() for server in servers)))
    over = asyncio.ensure_future(ended.wait())
    told = asyncio.ensure_future((leaving or asyncio.Event()).wait())
    waits: set[asyncio.Future[Any]] = {starting, over, told}
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            return
        await starting
        finished: asyncio.Future[Any] = asyncio.ensure_future(
            asyncio.gather(*(server.finished() for server in servers))
        )
        waits.add(finished)
        await asyncio.wait({finished, over, told}, return_when=asyncio.FIRST_COMPLETED)
        if told.done() and not over.done():
            why = "its process was told to end (SIGTERM)"
            retired: asyncio.Future[Any] = asyncio.ensure_future(
                asyncio.gather(*(server.retire(None, why) for server in servers))
            )
            waits.add(retired)
            await asyncio.wait({retired, over}, return_when=asyncio.FIRST_COMPLETED)
    except BaseException as error:  # code of users stopped the loop, or cancelled what it did not start
        for server in servers:
            if server.program is not None:
                server.program.ending.stop(
                    f"its process was interrupted by an error: {doors.text_of(error)}", failed=True
                )
        raise
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
        await asyncio.gather(*(server.close() for server in servers))
