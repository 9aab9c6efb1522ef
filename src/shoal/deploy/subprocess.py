"""A cluster of which the scheduler and each worker are processes of their own on this machine."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from subprocess import PIPE
from typing import Any

from shoal import config
from shoal.deploy.commands import Command, Running, options_of
from shoal.deploy.local import _shape
from shoal.deploy.spec import SpecCluster
from shoal.security import secret_of
from shoal.shell.interpreter import command


class _Here(Running):
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        super().__init__(process.stdin, process.stdout, process.stderr)
        self._process = process

    async def wait(self) -> Any:
        return await self._process.wait()

    def kill(self) -> None:
        if self._process.returncode is None:
            self._process.kill()


class _SubprocessCommand(Command):
    async def launch(self, arguments: Sequence[str]) -> Running:
        process = await asyncio.create_subprocess_exec(
            *command("shoal.cli", *arguments),
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            env=config.effective_environment({}),
            start_new_session=True,
        )
        return _Here(process)


class SubprocessScheduler(_SubprocessCommand):
    """A scheduler in a process of its own.

    Parameters
    ----------
    scheduler_kwargs
        Options of ``shoal scheduler``, as ``{"port": 8786}``.
    timeout
        Seconds until it must be up.
    secret
        The cluster's secret.
    """

    def __init__(self, scheduler_kwargs: dict[str, Any] | None = None, timeout: float = 30, secret: Any = None) -> None:
        super().__init__(secret_of(secret), timeout=timeout)
        self._options = {"port": 0, **(scheduler_kwargs or {})}

    def arguments(self) -> list[str]:
        """Of the command."""
        return ["scheduler", *options_of(self._options)]


class SubprocessWorker(_SubprocessCommand):
    """A nanny, and its worker, in processes of their own.

    Parameters
    ----------
    scheduler, name
        Its address, and the worker's name.
    worker_class
        A subclass of :class:`~shoal.Worker`, as ``"package.module.Class"``.
    worker_kwargs
        Options of ``shoal worker``, as ``{"nthreads": 2}``.
    secret
        The cluster's secret.
    """

    def __init__(
        self,
        scheduler: str,
        worker_class: str = "shoal.Nanny",
        name: Any = None,
        worker_kwargs: dict[str, Any] | None = None,
        secret: Any = None,
    ) -> None:
        super().__init__(secret_of(secret), scheduler, name)
        self._class, self._options = worker_class, worker_kwargs or {}

    def arguments(self) -> list[str]:
        """Of the command."""
        return ["worker", str(self.scheduler), *worker_options(self.name, self._class, self._options)]


def worker_options(name: Any, worker_class: str, options: dict[str, Any]) -> list[str]:
    """Options of ``shoal worker`` for a worker of that name and class."""
    kind = None if worker_class.rpartition(".")[2] in ("Nanny", "Worker") else worker_class
    nanny = False if worker_class.rpartition(".")[2] == "Worker" else None
    return options_of({"name": name, "worker_class": kind, "nanny": nanny, **options})


def SubprocessCluster(
    host: str | None = None,
    scheduler_port: int = 0,
    scheduler_kwargs: dict[str, Any] | None = None,
    dashboard_address: str | None = ":8787",
    worker_class: str = "shoal.Nanny",
    n_workers: int | None = None,
    threads_per_worker: int | None = None,
    worker_kwargs: dict[str, Any] | None = None,
    silence_logs: Any = 30,
    security: Any = None,
    **kwargs: Any,
) -> SpecCluster:
    """A cluster of which the scheduler and each worker are processes of their own on this machine.

    :class:`~shoal.LocalCluster` does the same with less, and starts faster; this one is started by the commands that
    other machines are started by.

    Parameters
    ----------
    host, scheduler_port
        Where the scheduler listens; this machine alone, and any free port, by default.
    scheduler_kwargs, worker_kwargs
        Further options of ``shoal scheduler`` and ``shoal worker``.
    dashboard_address, silence_logs
        Accepted, and without effect: what the processes log, ``cluster.get_logs`` gives.
    worker_class
        A subclass of :class:`~shoal.Worker`, as ``"package.module.Class"``.
    n_workers, threads_per_worker
        By default such that they fill the processors.
    security
        :class:`~shoal.Security` with the cluster's secret; this user's own by default.
    **kwargs
        As for :class:`~shoal.SpecCluster`.

    Examples
    --------
    >>> cluster = SubprocessCluster(n_workers=2)  # doctest: +SKIP
    """
    count, threads = _shape(n_workers, threads_per_worker, True)
    secret = secret_of(security)
    at = {"host": host or "127.0.0.1", "port": scheduler_port, **(scheduler_kwargs or {})}
    options = {"nthreads": threads, **(worker_kwargs or {})}
    worker = {
        "cls": partial(SubprocessWorker, worker_class=worker_class, worker_kwargs=options, secret=secret),
        "options": {},
    }
    scheduler = {"cls": partial(SubprocessScheduler, at, secret=secret), "options": {}}
    kwargs.setdefault("name", "SubprocessCluster")
    return SpecCluster(dict.fromkeys(range(count), worker), scheduler, worker, security=secret, **kwargs)
