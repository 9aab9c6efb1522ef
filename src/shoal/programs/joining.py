"""``Worker`` as an object in an asynchronous program, and what it has in common with ``Nanny``.

async with Scheduler() as scheduler, Worker(scheduler.address), Client(scheduler.address, asynchronous=True) as client:
    assert await client.submit(sum, [1, 2]) == 3
"""

from __future__ import annotations

import asyncio
import logging
import warnings
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from pathlib import Path
from time import monotonic
from typing import Any
from uuid import uuid4

from shoal import checks, config
from shoal.errors import ConnectError, UsageError
from shoal.fields import MOST_THREADS
from shoal.ids import key_from_wire
from shoal.programs.lifetime import Lifetime
from shoal.programs.preloads import preloads
from shoal.programs.servers import Server
from shoal.programs.worker import Supervision, WorkerProgram
from shoal.security import read_scheduler_file, secret_of
from shoal.shell import doors
from shoal.shell.addresses import Listening, listening
from shoal.shell.executor import current_key

logger = logging.getLogger("shoal.worker")

#: What a worker that is made in a nanny's process gets from the nanny.
SUPERVISION: ContextVar[Supervision | None] = ContextVar("supervision", default=None)


class Joining(Server):
    """A scheduler to find, and the options of a worker."""

    #: Where the configuration of its preloads is.
    _section = "distributed.worker"

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
        services: Any = None,
        local_directory: str | Path | None = None,
        death_timeout: Any = None,
        validate: bool | None = None,
        preload: Any = None,
        preload_argv: Any = None,
        security: Any = None,
        host: str | None = None,
        port: Any = None,
        interface: str | None = None,
        protocol: str | None = None,
        listen_address: str | None = None,
        contact_address: str | None = None,
        silence_logs: Any = None,
        lifetime: Any = None,
        lifetime_stagger: Any = None,
        lifetime_restart: bool | None = None,
        loop: Any = None,
        heartbeat_interval: Any = None,
        metrics: dict[str, Callable[[Any], Any]] | None = None,
        plugins: Sequence[Any] = (),
        dashboard: bool | None = None,
        dashboard_address: str | None = None,
        http_prefix: str | None = None,
    ) -> None:
        super().__init__()
        self.heartbeat_interval = config.seconds(heartbeat_interval, "heartbeat_interval")
        for one, metric in (metrics or {}).items():
            checks.name(one, "a name in metrics")
            if not callable(metric):
                raise UsageError(f"metrics must map names to functions of the worker, got {metric!r} for {one!r}")
        self._metrics, self._plugins = dict(metrics or {}), list(plugins)
        if loop is not None:
            warnings.warn(f"loop= of {type(self).__name__} has no effect and will go", DeprecationWarning, stacklevel=3)
        self._scheduler_file = None if scheduler_file is None else Path(scheduler_file).expanduser()
        #: Addresses of the scheduler.
        self.scheduler: list[str] = []
        self._supervision = SUPERVISION.get()
        if self._supervision is not None:
            self.scheduler = self._supervision.scheduler
        elif self._scheduler_file is not None:
            if scheduler_ip is not None:
                raise UsageError("give the scheduler's address or a scheduler_file, not both")
        else:
            found = scheduler_ip or config.get("scheduler-address")
            if not found:
                raise UsageError("give the scheduler's address, a scheduler_file, or scheduler-address (configuration)")
            self.scheduler = [str(found) if scheduler_port is None else f"{found}:{scheduler_port}"]
        self._security = security
        self.nthreads = config.cpu_count() if nthreads is None else checks.whole(nthreads, "nthreads", 1, MOST_THREADS)
        self.memory_limit = config.memory_limit(memory_limit, self.nthreads)
        configured = config.get("distributed.worker.resources") or {}
        self.resources = checks.amounts(configured if resources is None else resources) or {}
        self.executors = config.executors(executors)
        self.services = services or {}
        self.name = checks.worker(name) if name is not None else f"{config.host_name()}-{uuid4().hex[:8]}"
        self._local_directory = None if local_directory is None else str(local_directory)
        self.death_timeout = config.seconds(death_timeout, "death_timeout")
        self.validate = bool(config.get("distributed.worker.validate", False)) if validate is None else validate
        self.silence_logs = silence_logs
        self._lifetime = Lifetime(lifetime, lifetime_stagger, lifetime_restart)
        self._preloads = preloads(preload, preload_argv, self._section)
        self._where = (host, port, interface, protocol, listen_address, contact_address)
        listening(self.scheduler[0] if self.scheduler else "tcp://127.0.0.1:0", *self._where)  # complain now

    async def _find_scheduler(self) -> tuple[bytes, Listening]:
        """Wait for the scheduler's file, if it is to be found by one; return the secret, and where to listen.

        Raises
        ------
        ConnectError
            If it does not appear within ``death_timeout``.
        """
        if self._supervision is not None:
            return self._supervision.secret, Listening(*self._supervision.listen)
        fallback = None
        if self._scheduler_file is not None:
            started = monotonic()
            while not self._scheduler_file.exists():
                if self.death_timeout is not None and monotonic() - started >= self.death_timeout:
                    raise ConnectError(
                        f"scheduler_file {str(self._scheduler_file)!r} did not appear within {self.death_timeout:g} s"
                    )
                await asyncio.sleep(0.02)
            self.scheduler, fallback = read_scheduler_file(self._scheduler_file)
        return secret_of(self._security, fallback), listening(self.scheduler[0], *self._where)

    @property
    def _patience(self) -> float:
        """Seconds to try to reach the scheduler."""
        if self.death_timeout is not None:
            return self.death_timeout
        return config.seconds(config.get("distributed.comm.timeouts.connect", 30.0), "timeouts.connect") or 30.0

    async def retire(self, timeout: Any = None, reason: str = "its user closed it", restart: bool = False) -> None:
        """Close, once all that only its worker holds is on others; those running tasks that take too long go, too.

        Parameters
        ----------
        timeout
            Seconds until it closes all the same (``shoal.worker.retire-timeout``).
        reason
            What the scheduler is told, for logs and events.
        restart
            Whether another worker is to take its place.
        """
        if self.status == "running" and not await self.program.retire(reason, retire_timeout(timeout), restart):
            logger.warning("%s could not move what only it holds: it closes all the same", self.name)
        await self.close(reason)

    async def _end(self, reason: str) -> None:
        await self._preloads.stop(self)
        await super()._end(reason)


class Worker(Joining):
    """A worker on the current event loop, without a nanny.

    Parameters
    ----------
    scheduler_ip, scheduler_port
        The scheduler's address, whole (``"tcp://host:port"``) or in two parts.
    scheduler_file
        File that the scheduler writes, in place of the address; it may appear late.
    nthreads
        Tasks that it runs at the same time; as many as there are processors by default.
    name
        Its name, for restrictions and logs.
    memory_limit
        Bytes, ``"4 GiB"``, a fraction of the machine, ``"auto"``, or 0 for none.
    resources
        Abstract resources, by name (``distributed.worker.resources``).
    executors
        Threads of further pools, by name, for tasks that were submitted under ``dask.annotate(executor=name)``.
    services
        Accepted, and kept as an attribute.
    local_directory
        Where its scratch directory is made, for values that are spilled.
    death_timeout
        Seconds to try to find and reach a scheduler.
    validate
        Check every invariant after every event; slow.
    preload, preload_argv
        Modules to run here at the start (see ``programs/preloads.py``), and their arguments.
    security
        :class:`Security` with the cluster's secret, or a mapping of its arguments; this user's own by default.
    host, port
        Where it listens for its peers: a port, ``"9000:9100"``, or a collection of ports, of which the first that is
        free is taken. By default the address from which the scheduler is reached, and any free port.
    interface
        Network interface, as ``"eth0"``, in place of the host.
    protocol
        ``"tcp"``.
    listen_address, contact_address
        Where to listen, whole; and what others are told, where that is another address.
    silence_logs
        Level from which on its log is printed.
    lifetime, lifetime_stagger, lifetime_restart
        How long it lives, as ``"2 hours"``, until it is retired: what only it holds is moved first. Up to the second so
        much earlier or later; with the third its nanny starts another then.
    heartbeat_interval
        Seconds between two heartbeats; what the scheduler says by default.
    metrics
        Functions of the worker whose values go with each heartbeat, by name.
    plugins
        Plugins to install at the start.
    loop, dashboard, dashboard_address, http_prefix
        Accepted, and without effect.

    Raises
    ------
    UsageError
        If an argument makes no sense, naming it.
    """

    async def _launch(self) -> None:
        secret, where = await self._find_scheduler()
        self.program = WorkerProgram(
            self.scheduler,
            secret,
            name=self.name,
            nthreads=self.nthreads,
            memory_limit=self.memory_limit,
            resources=self.resources,
            executors=self.executors,
            local_directory=self._local_directory,
            supervision=self._supervision,
            validate=self.validate,
            lifetime=self._lifetime,
            heartbeat_interval=self.heartbeat_interval,
            metrics=self._metrics,
            public=self,
        )
        await self._preloads.start(self)
        for plugin in self._plugins:
            await self.program.plugin_add(plugin)
        await self.program.start(where, self._patience)

    async def close_gracefully(self, restart: bool | None = None, reason: str = "its user closed it") -> None:
        """As :meth:`retire`; its nanny starts another if ``restart``, which follows ``lifetime_restart`` by default."""
        await self.retire(None, reason, self._lifetime.restart if restart is None else restart)

    async def close(
        self,
        reason: str = "closed by its user",
        timeout: Any = 30,
        executor_wait: bool = True,
        nanny: bool = True,
    ) -> None:
        """End it at once; what only it holds is lost (see :meth:`close_gracefully`).

        Running tasks are not waited for, so ``timeout`` and ``executor_wait`` have no effect; and whether another takes
        its place, its ``nanny`` knows.
        """
        await super().close(reason)

    async def plugin_add(self, plugin: Any, name: str | None = None, catch_errors: bool = True) -> dict[str, Any]:
        """Install a plugin in this worker.

        Returns
        -------
        dict
            ``{"status": "OK"}``, or (where errors are caught) ``{"status": "error", "exception": …}``.
        """
        try:
            await self.program.plugin_add(plugin, name)
        except BaseException as error:
            if not catch_errors or doors.is_for_us(error, awaiting=True):
                raise
            return {"status": "error", "exception": error}
        return {"status": "OK"}

    async def plugin_remove(self, name: str) -> dict[str, Any]:
        """Remove a plugin from this worker, which tears it down.

        Raises
        ------
        KeyError
            If there is none of that name.
        """
        await self.program.plugin_remove(name)
        return {"status": "OK"}

    def get_current_task(self) -> Any:
        """The key of the task that runs in this thread.

        Raises
        ------
        ValueError
            Outside of tasks.
        """
        key = current_key()
        if key is None:
            raise ValueError("no task runs in this thread")
        return key_from_wire(key)

    async def set_resources(self, **resources: float) -> None:
        """Have other amounts of some abstract resources from now on.

        What runs goes on; where less is there than is in use, nothing that needs it starts before that has ended.

        Raises
        ------
        UsageError
            If a name or an amount makes no sense.
        """
        await self.program.set_resources(**resources)

    async def get_metrics(self) -> dict[str, Any]:
        """How it is, as it tells the scheduler with each heartbeat."""
        found: dict[str, Any] = self.program.metrics()
        return found

    def trigger_profile(self) -> None:
        """Look at the stacks of its tasks now, beside the looks that are taken anyway."""
        self.program.profiler.look()

    @property
    def address(self) -> str:
        found: str = self.program.addresses[0]
        return found


def retire_timeout(given: Any = None) -> float:
    """Seconds that a worker may take to leave when its process is told to end."""
    name = "shoal.worker.retire-timeout"
    return config.seconds(config.get(name, 25.0) if given is None else given, "timeout") or 0.0
