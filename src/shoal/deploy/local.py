"""A cluster on this machine."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import logging
import math
from functools import partial
from typing import TYPE_CHECKING, Any

from shoal import config
from shoal.deploy.backends import Head, HeadWorker, InnerScheduler, InnerWorker
from shoal.deploy.spec import SpecCluster
from shoal.errors import ConfigurationError, StartError
from shoal.security import Security, pack, secret_of
from shoal.shell import serialize
from shoal.shell.addresses import listening

if TYPE_CHECKING:
    from shoal.programs.joining import Worker


class LocalCluster(SpecCluster):
    """A scheduler and supervised workers on this machine.

    With ``processes=True`` neither lives in this interpreter: one head process runs the scheduler and the nannies, so
    that nothing that is done here (a long call that holds the GIL) is in the way of the tasks. It ends with this
    process, however that ends.

    Parameters
    ----------
    name
        Of the cluster, for its repr.
    n_workers
        Workers; by default such that with their threads they fill the processors.
    threads_per_worker
        Tasks that each runs at the same time.
    processes
        Whether workers are processes (the default) or threads of this one.
    host, scheduler_port
        Where the scheduler listens; this machine alone, and any free port, by default.
    silence_logs
        Level from which on the processes log to stderr; False for all of it.
    memory_limit
        Of each worker: bytes, ``"4 GiB"``, a fraction of the machine, ``"auto"``, or 0 for none.
    asynchronous
        ``async with LocalCluster(asynchronous=True) as cluster``, on the caller's event loop.
    security
        :class:`Security` with the cluster's secret; this user's own by default. True makes certificates for this
        cluster alone (:meth:`Security.temporary`).
    resources
        Abstract resources of each worker, by name.
    executors
        Threads of further pools of each worker, by name.
    env
        Environment of the worker processes.
    local_directory
        Where scratch directories are made (``temporary-directory``).
    timeout
        Seconds that the start may take.
    ip
        The same as ``host``.
    interface
        Network interface, as ``"lo"``, in place of the host.
    protocol
        ``"tcp"``, or ``"tls"`` for encryption within this machine, too; with ``processes=False`` also ``"inproc"``.
    worker_class
        A subclass of :class:`~shoal.Worker` for the workers; ``Nanny`` is what they have anyway.
    scheduler_kwargs
        ``allowed_failures``, ``idle_timeout``, ``validate``, ``worker_ttl`` of the scheduler.
    **worker_kwargs
        Further arguments of :class:`~shoal.Worker`, as ``lifetime`` or ``preload``.
    loop, start, dashboard_address, worker_dashboard_address, scheduler_sync_interval
        Accepted, and without effect: it has its own loop, starts at once, has no dashboard, and is told of changes.

    Raises
    ------
    ConfigurationError
        If an argument makes no sense, or the port is taken.
    StartError
        If a process does not come up, with the reason it gave.

    Examples
    --------
    >>> with LocalCluster(n_workers=2, threads_per_worker=1) as cluster:  # doctest: +SKIP
    ...     client = cluster.get_client()
    """

    def __init__(
        self,
        name: str | None = None,
        n_workers: int | None = None,
        threads_per_worker: int | None = None,
        processes: bool | None = None,
        host: str | None = None,
        scheduler_port: int = 0,
        silence_logs: int | bool = logging.WARNING,
        memory_limit: Any = "auto",
        asynchronous: bool = False,
        security: Any = None,
        resources: dict[str, float] | None = None,
        executors: dict[str, int] | None = None,
        env: dict[str, str] | None = None,
        local_directory: str | None = None,
        timeout: float = 60.0,
        loop: Any = None,
        start: bool | None = None,
        ip: str | None = None,
        dashboard_address: str | None = ":8787",
        worker_dashboard_address: str | None = None,
        protocol: str | None = None,
        interface: str | None = None,
        worker_class: Any = None,
        scheduler_kwargs: dict[str, Any] | None = None,
        scheduler_sync_interval: Any = 1,
        **worker_kwargs: Any,
    ) -> None:
        kind = None if worker_class is None else _worker_kind(worker_class)
        if worker_kwargs:
            _check_arguments(worker_kwargs, kind)
        self.processes = processes is not False
        n_workers, self.threads_per_worker = _shape(n_workers, threads_per_worker, self.processes)
        where = _where(host, ip, interface)
        known = ("tcp", "tls") if self.processes else ("tcp", "tls", "inproc")
        if protocol is not None and str(protocol).removesuffix("://") not in known:
            raise ConfigurationError(f"protocol must be 'tcp', 'tls' or without processes 'inproc', got {protocol!r}")
        if security is True:
            security = Security.temporary()  # here, and once: everybody is to have the same
        secret = secret_of(security)
        if not 0 <= scheduler_port <= 65535:
            raise ConfigurationError(f"scheduler_port must be a port or 0, got {scheduler_port!r}")
        self.memory_limit = config.memory_limit(memory_limit, self.threads_per_worker)
        options = {
            "workers": n_workers,
            "config": config.export(_scheduler_settings(scheduler_kwargs or {})),
            "sys_path": config.import_path(),
            "secret": pack(secret),
            "silence_logs": int(silence_logs) or logging.INFO,
            "at": f"{'tls' if (protocol or '').startswith('tls') else 'tcp'}://{where}",
            "port": scheduler_port,
            "nthreads": self.threads_per_worker,
            "memory_limit": self.memory_limit,
            "resources": resources,
            "executors": config.executors(executors),
            "env": {name: str(value) for name, value in (env or {}).items()},
            "local_directory": None if local_directory is None else str(local_directory),
            "worker_class": "",
        }
        if kind is not None or worker_kwargs:
            what = "worker_class, or a further argument of the workers,"
            options["worker_class"] = serialize.dumps_text((kind, worker_kwargs), what)
        self._timeout = timeout
        shape = {"nthreads": self.threads_per_worker, "memory_limit": self.memory_limit}
        if self.processes:
            self._head = Head(options, env or {})
            scheduler: Any = lambda: self._head  # noqa: E731
            worker: Any = partial(HeadWorker, self._head)
        else:
            inner = InnerScheduler(options, secret)
            scheduler, worker = (lambda: inner), partial(InnerWorker, inner, options, secret)
            if kind is not None or worker_kwargs:
                further = {name: options[name] for name in ("resources", "executors", "local_directory")}
                from shoal.programs.joining import Worker

                worker = partial(kind or Worker, **{**further, **worker_kwargs}, security=secret)
        spec = {"cls": worker, "options": shape}
        super().__init__(
            dict.fromkeys(range(n_workers), spec),
            {"cls": scheduler, "options": {}},
            spec,
            asynchronous=asynchronous,
            security=security,
            name=name or "LocalCluster",
        )

    async def _launch(self) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                await super()._launch()
        except TimeoutError:
            raise StartError(f"the cluster was not up within {self._timeout:g} s") from None

    def start_worker(self, *args: Any, **kwargs: Any) -> None:
        """There is :meth:`scale` for this.

        Raises
        ------
        NotImplementedError
            Always, with that advice.
        """
        raise NotImplementedError("use cluster.scale(n), or cluster.scale_up(n), to have more workers")

    @property
    def scheduler_pid(self) -> int | None:
        """Process id of the head process, in which the scheduler runs; None where there is none."""
        return self._head.pid if self.processes else None


def _worker_kind(worker_class: Any) -> type[Worker] | None:
    """The subclass of Worker that is asked for, if it is one."""
    from shoal.programs.joining import Worker
    from shoal.programs.nannies import Nanny

    if isinstance(worker_class, str):
        if worker_class.rpartition(".")[2] in ("Nanny", "Worker"):
            return None
        module, _, name = worker_class.rpartition(".")
        worker_class = getattr(importlib.import_module(module), name)
    if worker_class in (Nanny, Worker):
        return None
    if not (isinstance(worker_class, type) and issubclass(worker_class, Worker)):
        raise ConfigurationError(f"worker_class must be a subclass of shoal.Worker, got {worker_class!r}")
    return worker_class


def _check_arguments(given: dict[str, Any], asked: type[Worker] | None) -> None:
    from shoal.programs.joining import Worker

    kind = asked or Worker
    known: set[str] = set()
    for one in kind.__mro__:
        made = vars(one).get("__init__")
        known |= set(inspect.signature(made).parameters) if made is not None else set()
    for name in given:
        if name not in known:
            raise TypeError(f"LocalCluster got an unexpected argument {name!r}, nor does {kind.__name__} know it")


def _where(host: str | None, ip: str | None, interface: str | None) -> str:
    if sum(one is not None for one in (host, ip, interface)) > 1:
        raise ConfigurationError("give one of host, ip and interface")
    if interface is not None:
        return listening("tcp://127.0.0.1:0", interface=interface).candidates[0][len("tcp://") :].rpartition(":")[0]
    return host or ip or "127.0.0.1"


def _scheduler_settings(given: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a scheduler as the configuration of its process."""
    known = {name.replace("-", "_"): name for name in ("allowed-failures", "idle-timeout", "validate", "worker-ttl")}
    ignored = ("dashboard", "dashboard_address", "host", "port", "http_prefix")
    for name in given:
        if name not in known and name not in ignored:
            raise TypeError(f"scheduler_kwargs has an unexpected argument {name!r}; it may have {', '.join(known)}")
    settings = {known[name]: value for name, value in given.items() if name in known}
    return {"distributed": {"scheduler": settings}} if settings else {}


def _shape(n_workers: int | None, threads_per_worker: int | None, processes: bool) -> tuple[int, int]:
    """Workers and threads of each, filling the processors where one is not given.

    Raises
    ------
    ConfigurationError
        If there can be no such cluster.
    """
    for name, value, least in (("n_workers", n_workers, 0), ("threads_per_worker", threads_per_worker, 1)):
        if value is not None and (not isinstance(value, int) or value < least):
            raise ConfigurationError(f"{name} must be a number from {least} on, got {value!r}")
    cpus = config.cpu_count()
    if n_workers is None and threads_per_worker is None:
        if not processes:
            return 1, cpus
        # Few processors: one thread each. Many: about as many threads in a worker as there are workers.
        count = cpus if cpus <= 4 else min(n for n in range(1, cpus + 1) if cpus % n == 0 and n >= math.sqrt(cpus))
        return count, cpus // count
    if n_workers is None:
        assert threads_per_worker is not None
        return max(1, cpus // threads_per_worker), threads_per_worker
    if threads_per_worker is None:
        return n_workers, max(1, cpus // n_workers) if n_workers else 1
    return n_workers, threads_per_worker
