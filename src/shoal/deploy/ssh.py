"""A cluster of machines that are reached by SSH."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from shoal.deploy.commands import Command, Running, options_of, shell_line
from shoal.deploy.spec import SpecCluster
from shoal.deploy.subprocess import worker_options
from shoal.errors import StartError, UsageError
from shoal.security import secret_of


class _There(Running):
    def __init__(self, connection: Any, process: Any) -> None:
        super().__init__(process.stdin, process.stdout, process.stderr)
        self._connection, self._process = connection, process

    async def wait(self) -> Any:
        return await self._process.wait_closed()

    def kill(self) -> None:
        self._connection.abort()

    async def close(self) -> None:
        self._connection.close()
        await self._connection.wait_closed()


class _SshCommand(Command):
    """A command on a machine.

    Parameters
    ----------
    address
        Of the machine.
    connect_options
        For ``asyncssh.connect``, as ``{"username": "me", "known_hosts": None}``.
    kwargs
        Options of the command.
    remote_python
        The interpreter there, which has shoal.
    """

    def __init__(
        self,
        address: str,
        connect_options: Mapping[str, Any],
        kwargs: Mapping[str, Any],
        remote_python: str | None,
        secret: Any,
        scheduler: str | None = None,
        name: Any = None,
    ) -> None:
        super().__init__(secret_of(secret), scheduler, name)
        self._machine, self._connect, self._options = address, dict(connect_options), dict(kwargs)
        self._python = remote_python or sys.executable

    async def launch(self, arguments: Sequence[str]) -> Running:
        try:
            import asyncssh
        except ImportError as error:
            raise StartError("SSHCluster needs asyncssh: pip install 'shoal[ssh]'") from error
        try:
            connection = await asyncssh.connect(self._machine, **self._connect)
            process = await connection.create_process(shell_line(self._python, arguments), encoding=None)
        except (OSError, asyncssh.Error) as error:
            raise StartError(f"{self._machine} cannot be reached by SSH: {error}") from error
        return _There(connection, process)


class Scheduler(_SshCommand):
    """A scheduler on a machine that is reached by SSH."""

    def arguments(self) -> list[str]:
        """Of the command."""
        return ["scheduler", *options_of({"host": self._machine, "port": 0, **self._options})]


class Worker(_SshCommand):
    """A nanny, and its worker, on a machine that is reached by SSH."""

    def __init__(self, scheduler: str, worker_class: str = "shoal.Nanny", name: Any = None, **options: Any) -> None:
        super().__init__(scheduler=scheduler, name=name, **options)
        self._class = worker_class

    def arguments(self) -> list[str]:
        """Of the command."""
        options = {"host": self._machine, **self._options}
        return ["worker", str(self.scheduler), *worker_options(self.name, self._class, options)]


def SSHCluster(
    hosts: Sequence[str] | None = None,
    connect_options: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    worker_options: Mapping[str, Any] | None = None,
    scheduler_options: Mapping[str, Any] | None = None,
    worker_class: str = "shoal.Nanny",
    remote_python: str | Sequence[str] | None = None,
    security: Any = None,
    **kwargs: Any,
) -> SpecCluster:
    """A cluster of machines that are reached by SSH: the scheduler on the first, a worker on each of the others.

    The cluster's secret goes there within the connection; nothing is written there. Everything ends when the connection
    does. Needs asyncssh (``pip install 'shoal[ssh]'``), and shoal on every machine.

    Parameters
    ----------
    hosts
        Names or addresses: the scheduler's first, then the workers' (the same may stand there more than once).
    connect_options
        For ``asyncssh.connect``: one mapping for all, or one for each host.
    worker_options, scheduler_options
        Options of ``shoal worker`` and ``shoal scheduler``, as ``{"nthreads": 4}``.
    worker_class
        A subclass of :class:`~shoal.Worker`, as ``"package.module.Class"``.
    remote_python
        The interpreter there; one for all, or one for each host. This one's path by default.
    security
        :class:`~shoal.Security` with the cluster's secret; this user's own by default.
    **kwargs
        As for :class:`~shoal.SpecCluster`.

    Raises
    ------
    UsageError
        If there are fewer than two hosts, or the options are not for all of them.

    Examples
    --------
    >>> cluster = SSHCluster(["head", "node-1", "node-2"], connect_options={"known_hosts": None})  # doctest: +SKIP
    """
    if not hosts or isinstance(hosts, str) or len(hosts) < 2:
        raise UsageError(f"hosts must be a list: the scheduler's, and one or more of workers, got {hosts!r}")
    connects = _for_all(connect_options or {}, len(hosts), "connect_options", Mapping)
    pythons = _for_all(remote_python, len(hosts), "remote_python", (str, type(None)))
    secret = secret_of(security)

    def options(at: int, given: Mapping[str, Any] | None) -> dict[str, Any]:
        reached = {"address": hosts[at], "connect_options": connects[at], "remote_python": pythons[at]}
        return {**reached, "kwargs": given or {}, "secret": secret}

    scheduler = {"cls": partial(Scheduler, **options(0, scheduler_options)), "options": {}}
    workers = {
        at - 1: {"cls": partial(Worker, worker_class=worker_class, **options(at, worker_options)), "options": {}}
        for at in range(1, len(hosts))
    }
    kwargs.setdefault("name", "SSHCluster")
    return SpecCluster(workers, scheduler, security=secret, **kwargs)


def _for_all(given: Any, count: int, name: str, kind: Any) -> list[Any]:
    if isinstance(given, kind):
        return [given] * count
    if not isinstance(given, list | tuple) or len(given) != count:
        raise UsageError(f"{name} must be one for all, or a list of {count}, one for each host, got {given!r}")
    return list(given)
