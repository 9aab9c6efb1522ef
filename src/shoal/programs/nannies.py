"""``Nanny`` as an object in an asynchronous program.

async with Scheduler() as scheduler, Nanny(scheduler.address), Client(scheduler.address, asynchronous=True) as client:
    assert await client.submit(sum, [1, 2]) == 3
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from shoal.errors import ConnectError, UsageError
from shoal.programs.joining import Joining, Worker
from shoal.programs.nanny import NannyProgram
from shoal.programs.preloads import preloads
from shoal.shell import serialize
from shoal.shell.addresses import Listening, ports


class Nanny(Joining):
    """A nanny on the current event loop, and its worker in a process of its own.

    Parameters as for :class:`Worker`, but for the following; what is known to neither is handed to the worker.

    Parameters
    ----------
    worker_port
        Where the worker listens: a port, ``"9000:9100"``, or a collection of ports.
    port
        Where the nanny itself listens, in the same forms.
    reconnect
        Whether another worker is started when one ended by itself; if not, the nanny closes then.
    preload, preload_argv
        Modules to run in the worker.
    preload_nanny, preload_nanny_argv
        Modules to run in the nanny.
    worker_class
        A subclass of :class:`Worker` to run in place of it.
    env
        Environment of the worker, over the nanny's own and ``distributed.nanny.environ``.
    config
        Configuration of the worker, over the nanny's own.
    quiet
        Have the worker say only what is an error.
    """

    _section = "distributed.nanny"

    def __init__(
        self,
        scheduler_ip: str | None = None,
        scheduler_port: int | None = None,
        *,
        worker_port: Any = 0,
        port: Any = None,
        reconnect: bool = True,
        preload: Any = None,
        preload_argv: Any = None,
        preload_nanny: Any = None,
        preload_nanny_argv: Any = None,
        worker_class: Any = None,
        env: dict[str, Any] | None = None,
        config: dict[str, Any] | None = None,
        quiet: bool = False,
        silence_logs: Any = None,
        scheduler_file: Any = None,
        nthreads: int | None = None,
        name: Any = None,
        memory_limit: Any = "auto",
        resources: dict[str, float] | None = None,
        executors: dict[str, int] | None = None,
        services: Any = None,
        local_directory: Any = None,
        death_timeout: Any = None,
        validate: bool | None = None,
        security: Any = None,
        host: str | None = None,
        interface: str | None = None,
        protocol: str | None = None,
        listen_address: str | None = None,
        contact_address: str | None = None,
        lifetime: Any = None,
        lifetime_stagger: Any = None,
        lifetime_restart: bool | None = None,
        loop: Any = None,
        **worker_kwargs: Any,
    ) -> None:
        ports(port, "port")
        self._port = port
        super().__init__(
            scheduler_ip,
            scheduler_port,
            scheduler_file=scheduler_file,
            nthreads=nthreads,
            name=name,
            memory_limit=memory_limit,
            resources=resources,
            executors=executors,
            services=services,
            local_directory=local_directory,
            death_timeout=death_timeout,
            validate=validate,
            preload=preload_nanny,
            preload_argv=preload_nanny_argv,
            security=security,
            host=host,
            port=worker_port,
            interface=interface,
            protocol=protocol,
            listen_address=listen_address,
            contact_address=contact_address,
            silence_logs=silence_logs,
            lifetime=lifetime,
            lifetime_stagger=lifetime_stagger,
            lifetime_restart=lifetime_restart,
            loop=loop,
        )
        preloads(preload, preload_argv, "distributed.worker")  # complain now
        if worker_class is not None and not (isinstance(worker_class, type) and issubclass(worker_class, Worker)):
            raise UsageError(f"worker_class must be a subclass of shoal.Worker, got {worker_class!r}")
        self.Worker = worker_class or Worker
        self._close_timeout = 5.0
        self._given = (env or {}, config, reconnect)
        self._options = {
            "resources": self.resources,
            "executors": self.executors,
            "validate": self.validate,
            "preload": preload,
            "preload_argv": preload_argv,
            "silence_logs": _level(quiet, silence_logs),
            "lifetime": self._lifetime.duration,
            "lifetime_stagger": self._lifetime.stagger,
            "lifetime_restart": self._lifetime.restart,
        }
        self._pickled = ""
        if worker_class is not None or worker_kwargs:
            what = "worker_class, or a further argument of the worker,"
            self._pickled = serialize.dumps_text((worker_class, worker_kwargs), what)

    async def _launch(self) -> None:
        secret, where = await self._find_scheduler()
        env, overlay, reconnect = self._given
        self.program = NannyProgram(
            self.scheduler,
            secret,
            self.name,
            where,
            memory_limit=self.memory_limit,
            nthreads=self.nthreads,
            worker_options=self._options,
            env=env,
            overlay=overlay,
            local_directory=self._local_directory,
            reconnect=reconnect,
            worker_class=self._pickled,
            listen_self=self._own_addresses(where),
            public=self,
        )
        await self._preloads.start(self)
        try:
            async with asyncio.timeout(self.death_timeout):
                await self.program.start(self._patience)
                await self.program.wait_until_up()
        except TimeoutError as error:
            if isinstance(error, ConnectError):
                raise
            raise TimeoutError(f"the worker was not up within death_timeout={self.death_timeout:g} s") from error

    def _own_addresses(self, where: Listening) -> Listening:
        """Where the nanny itself listens: at the host of its worker."""
        host = where.candidates[0].rpartition(":")[0]
        return Listening([f"{host}:{number}" for number in ports(self._port)])

    @property
    def address(self) -> str:
        """Where the nanny answers calls (see :class:`shoal.rpc`); its worker is at ``worker_address``."""
        found: str = self.program.address
        return found

    @property
    def pid(self) -> int | None:
        """Process id of its worker; None where there is none."""
        found: int | None = self.program.pid
        return found

    @property
    def worker_address(self) -> str | None:
        """Where its worker is."""
        found: str | None = self.program.worker_address
        return found

    @property
    def worker_dir(self) -> str:
        """Where the files of its worker are."""
        found: str = self.program.worker_dir
        return found

    def is_alive(self) -> bool:
        """Whether there is a worker process."""
        return bool(self.program is not None and self.program.is_alive())

    async def instantiate(self) -> str:
        """Start a worker if there is none; returns how that went, once it has registered."""
        found: str = await self.program.instantiate()
        return found

    async def kill(self, timeout: float = 5.0, reason: str = "nanny-kill") -> None:
        """End the worker process, and start no other until :meth:`instantiate`."""
        await self.program.kill(timeout, reason)

    async def restart(self, timeout: float = 30.0, reason: str = "nanny-restart") -> Any:
        """End the worker process and start another; returns how that went, within ``timeout`` seconds."""
        return await self.program.restart(timeout, reason)

    async def close_gracefully(self, reason: str = "nanny-close-gracefully") -> None:
        """Close as soon as the worker goes."""
        await self.program.close_gracefully(reason)

    async def plugin_add(self, plugin: Any, name: str | None = None) -> str:
        """Install a plugin in this nanny; return its name.

        Raises
        ------
        Exception
            What its set-up raised.
        """
        found: str = await self.program.plugin_add(plugin, name)
        return found

    async def plugin_remove(self, name: str) -> None:
        """Remove a plugin from this nanny.

        Raises
        ------
        KeyError
            If there is none of that name.
        """
        await self.program.plugin_remove(name)

    @property
    def port(self) -> int:
        """The port at which it listens."""
        return int(self.address.rpartition(":")[2])

    async def close(self, reason: str = "closed by its user", timeout: float = 5.0) -> None:
        """End the worker process and all else that it started; whoever calls it returns once that is done."""
        self._close_timeout = timeout
        await super().close(reason)

    async def _end(self, reason: str) -> None:
        await self._preloads.stop(self)
        if self.program is not None:
            await self.program.close(reason, self._close_timeout)


def _level(quiet: bool, silence_logs: Any) -> int | None:
    if silence_logs:
        return int(silence_logs) if not isinstance(silence_logs, str) else int(logging.getLevelName(silence_logs))
    return logging.ERROR if quiet else None
