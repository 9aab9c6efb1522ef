"""What every cluster has: a scheduler to talk to, workers that come and go, a log, adaptive scaling, reprs."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator
from datetime import UTC, datetime
from html import escape
from typing import TYPE_CHECKING, Any, Self
from uuid import uuid4

from shoal import checks, config
from shoal.client.loop import get_loop_thread
from shoal.deploy.adaptive import Adaptive
from shoal.errors import UsageError
from shoal.security import Security, secret_of
from shoal.shell.tasks import Tasks

if TYPE_CHECKING:
    from shoal.client.client import Client

logger = logging.getLogger("shoal.cluster")


class Logs(dict[str, str]):
    """Texts by who wrote them."""

    def _repr_html_(self) -> str:
        blocks = (
            f"<details><summary>{escape(name)}</summary><pre>{escape(text)}</pre></details>"
            for name, text in self.items()
        )
        return "".join(blocks)


#: Seconds that what was begun may take to end when it is cancelled.
_ENDING = 5.0


class Cluster(ABC):
    """A scheduler, and workers whose number can be changed.

    Parameters
    ----------
    asynchronous
        Whether it lives on the caller's event loop, and is awaited.
    name
        Of the cluster, for its repr and its log.
    security
        :class:`Security` with the cluster's secret; this user's own by default.
    quiet
        Have it log nothing but warnings.
    """

    def __init__(
        self,
        asynchronous: bool = False,
        loop: Any = None,
        quiet: bool = False,
        name: str | None = None,
        scheduler_sync_interval: Any = 1,
        security: Any = None,
    ) -> None:
        self._name = checks.worker(name) if name is not None else f"{type(self).__name__}-{uuid4().hex[:8]}"
        self._asynchronous = asynchronous
        self.quiet = quiet
        self.status = "created"
        self._secret = secret_of(security)
        #: What clients elsewhere need: the secret and the certificates.
        self.security = Security(secret=self._secret)
        self._addresses: list[str] = []
        #: Workers that the scheduler knows, by name: their address, threads and memory limit.
        self._workers: dict[str, dict[str, Any]] = {}
        #: Names of those that are about to leave.
        self._retiring: set[str] = set()
        self._client: Client | None = None
        self._adaptive: Adaptive | None = None
        self._lines: deque[tuple[datetime, str]] = deque(maxlen=config.log_length())
        self._tasks = Tasks("the cluster")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing: asyncio.Task[None] | None = None

    # -------------------------------------------------------------------------------------------- starting

    async def _start(self) -> None:
        """Start what there is to be; then :meth:`_join`."""
        self._loop = asyncio.get_running_loop()
        if self.status != "created":
            return
        self.status = "starting"
        try:
            await self._launch()
        except BaseException:
            await self._close()
            raise
        self.status = "running"

    @abstractmethod
    async def _launch(self) -> None:
        """Start the scheduler, :meth:`_join` it, and start the first workers."""

    async def _join(self) -> None:
        """Connect to the scheduler, and learn of its workers from now on."""
        from shoal.client.client import Client

        client = Client(
            self._addresses,
            security=Security(secret=self._secret),
            asynchronous=True,
            set_as_default=False,
            name=self.name,
        )
        self._client = await client
        await client.subscribe_topic("all", self._on_event)
        for address, info in (await client.scheduler_info())["workers"].items():
            self._workers[info["name"]] = {"address": address, **_facts(info)}

    async def _on_event(self, event: tuple[float, Any]) -> None:
        """Something happened in the cluster."""
        msg = event[1]
        action = msg.get("action") if isinstance(msg, dict) else None
        if action == "add-worker":
            self._workers[msg["name"]] = {"address": msg["worker"], **_facts(msg)}
        elif action == "remove-worker":
            self._workers.pop(msg["name"], None)
            self._left(msg["name"], msg)
            self._retiring.discard(msg["name"])
        elif action == "retiring":
            self._retiring.add(msg["name"])
        elif action == "retired":
            seconds = f"{msg['keys_moved']} keys ({msg['bytes_moved']:,} bytes) moved in {msg['seconds']:.2f} s"
            self._note(f"worker {msg['name']} retired: {msg['reason']}; {seconds}")
        elif action == "could-not-retire":
            self._retiring.discard(msg["name"])
            self._note(f"worker {msg['name']} could not retire: {msg['why']}", logging.WARNING)

    def _left(self, name: str, told: dict[str, Any]) -> None:  # noqa: B027
        """A worker left, or was lost."""

    def _note(self, text: str, level: int = logging.INFO) -> None:
        """Write a line into the cluster's own log."""
        self._lines.append((datetime.now(UTC), text))
        logger.log(level, "%s: %s", self.name, text)

    def _spawn(self, coroutine: Any) -> asyncio.Task[Any]:
        return self._tasks.spawn(coroutine)

    # -------------------------------------------------------------------------------------------- threads and loops

    @property
    def name(self) -> str:
        """Of the cluster, for its repr and its log."""
        return self._name

    @name.setter
    def name(self, name: Any) -> None:
        self._name = checks.worker(name)

    @property
    def asynchronous(self) -> bool:
        """Whether what waits is to be awaited: it was made so, or this is called on its event loop."""
        return self._asynchronous or self.called_from_running_loop

    @property
    def dashboard_link(self) -> str:
        """Where its dashboard is: nowhere, so far."""
        return ""

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop on which the cluster lives."""
        if self._loop is None:
            return get_loop_thread().loop
        return self._loop

    @property
    def called_from_running_loop(self) -> bool:
        """Whether the caller is on the cluster's own event loop."""
        try:
            return asyncio.get_running_loop() is self.loop
        except RuntimeError:
            return False

    def sync(
        self,
        func: Callable[..., Any],
        *args: Any,
        asynchronous: bool | None = None,
        callback_timeout: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Call a coroutine function on the cluster's loop and wait for it, or return what is to be awaited.

        Raises
        ------
        TimeoutError
            After ``callback_timeout``: seconds, or text as ``"10 s"``.
        """
        if self.asynchronous if asynchronous is None else asynchronous:
            return func(*args, **kwargs)
        return get_loop_thread().sync(func(*args, **kwargs), config.seconds(callback_timeout, "callback_timeout"))

    def _soon(self, make: Callable[[], Any]) -> None:
        """Begin a coroutine on the cluster's loop, from any thread."""
        if self.called_from_running_loop:
            self._spawn(make())
        else:
            self.loop.call_soon_threadsafe(lambda: self._spawn(make()))

    # -------------------------------------------------------------------------------------------- what users do

    @property
    def scheduler_address(self) -> str:
        """The address to connect to."""
        return self._addresses[0] if self._addresses else "not running"

    @property
    def scheduler_info(self) -> dict[str, Any]:
        """The workers that the scheduler knows, by address."""
        return {"workers": {info["address"]: {"name": name, **info} for name, info in self._workers.items()}}

    def get_client(self) -> Client:
        """A new client of this cluster."""
        from shoal.client.client import Client

        return Client(self, asynchronous=self._asynchronous)

    @property
    def observed(self) -> set[Any]:
        """Names of the workers that the scheduler knows."""
        return set(self._workers)

    @property
    def requested(self) -> set[Any]:
        """Names of the workers that were asked for."""
        return self.observed

    @property
    def plan(self) -> set[Any]:
        """Names of the workers that there are to be."""
        return self.requested

    def scale(self, n: int) -> Any:
        """Have ``n`` workers."""
        raise NotImplementedError(f"{type(self).__name__} cannot be scaled")

    async def _ask(self, what: str, **args: Any) -> Any:
        """Ask the scheduler a question."""
        return await self._manager._connection.ask(what, **args)

    async def _needless(self, target: int, key: Any) -> list[Any]:
        """Names of the workers that are needed least, so many that ``target`` are left."""
        criteria: dict[str, Any] = {"target": target, "attribute": "name"}
        if key is None:
            found: list[Any] = await self._ask("workers_to_close", **criteria)
        else:
            found = await self._manager.run_on_scheduler(_to_close, {**criteria, "key": key})
        return found

    async def _scale_up(self, n: int) -> None:
        """Have ``n`` workers, which is more than before."""
        told = self.scale(n)
        if told is not None:
            await told

    async def _scale_down(self, names: list[Any], reason: str) -> None:
        """Let workers retire; those that cannot, stay."""
        await self._manager._retire([str(name) for name in names], {}, True, True, False, None, reason)

    def adapt(self, Adaptive: type[Adaptive] = Adaptive, **kwargs: Any) -> Adaptive:
        """Have as many workers as the work calls for, within limits; see :class:`~shoal.deploy.adaptive.Adaptive`.

        Called again, the new limits take the place of the old ones. ``cluster.scale`` ends it.
        """
        self._stop_adapting("adapt was called again")
        self._adaptive = Adaptive(self, **kwargs)
        self._note(f"adapts: {self._adaptive}")
        return self._adaptive

    def _stop_adapting(self, why: str) -> None:
        if self._adaptive is not None:
            adaptive, self._adaptive = self._adaptive, None
            adaptive.stop(why)

    def wait_for_workers(self, n_workers: int, timeout: Any = None) -> Any:
        """Wait until ``n_workers`` are running.

        Raises
        ------
        TimeoutError
            After ``timeout`` seconds, saying how many there are.
        """
        return self.sync(self._wait_for_workers, n_workers, timeout)

    async def _wait_for_workers(self, n_workers: int, timeout: Any) -> None:
        if n_workers:
            await self._manager.wait_for_workers(n_workers, timeout)

    @property
    def _manager(self) -> Client:
        """The client with which the cluster asks the scheduler for things."""
        if self._client is None:
            raise UsageError(f"{self.name} is {self.status}")
        return self._client

    def get_logs(self, cluster: bool = True, scheduler: bool = True, workers: Any = True) -> Any:
        """What the cluster, the scheduler and workers (all, or those named) have logged.

        Returns
        -------
        Logs
            Texts by ``"Cluster"``, ``"Scheduler"`` and the workers' addresses.
        """
        return self.sync(self._get_logs, cluster, scheduler, workers)

    def logs(self, cluster: bool = True, scheduler: bool = True, workers: Any = True) -> Any:
        """As :meth:`get_logs`."""
        return self.get_logs(cluster, scheduler, workers)

    async def _get_logs(self, cluster: bool, scheduler: bool, workers: Any) -> Logs:
        found = Logs()
        if cluster:
            found["Cluster"] = "\n".join(f"{when:%Y-%m-%d %H:%M:%S} {text}" for when, text in self._lines)
        if scheduler:
            lines = await self._manager.get_scheduler_logs()
            found["Scheduler"] = "\n".join(line for _, line in lines)
        if workers:
            named = None if workers is True else workers
            for address, lines in (await self._manager.get_worker_logs(workers=named)).items():
                found[address] = "\n".join(line for _, line in lines)
        return found

    # -------------------------------------------------------------------------------------------- the end

    def close(self, timeout: Any = None) -> Any:
        """End the workers and the scheduler; returns once all that the cluster started is gone."""
        if self.asynchronous:
            return self._close()
        if self.status in ("created", "closed"):
            self.status = "closed"
            return None
        return get_loop_thread().sync(self._close())

    async def _close(self) -> None:
        if self.status in ("created", "closed"):
            self.status = "closed"
            return
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close_once())
        await asyncio.shield(self._closing)

    async def _close_once(self) -> None:
        self.status = "closing"
        self._stop_adapting("the cluster closes")
        self._tasks.cancel()
        await self._tasks.end(_ENDING)
        try:
            await self._shut()
        finally:
            if self._client is not None:
                client, self._client = self._client, None
                await client.close()
            self._workers.clear()
            self.status = "closed"

    @abstractmethod
    async def _shut(self) -> None:
        """End the workers, then the scheduler."""

    def __enter__(self) -> Self:
        if self._asynchronous:
            raise TypeError("use 'async with' with an asynchronous cluster")
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def __await__(self) -> Generator[Any, None, Self]:
        return self._started().__await__()

    async def _started(self) -> Self:
        await self._start()
        return self

    async def __aenter__(self) -> Self:
        return await self._started()

    async def __aexit__(self, *args: object) -> None:
        await self._close()

    # -------------------------------------------------------------------------------------------- what users see

    def _summary(self) -> dict[str, str]:
        workers = self._workers.values()
        limits = [info["memory_limit"] for info in workers]
        facts = {
            "scheduler": self.scheduler_address if self.status == "running" else self.status,
            "workers": str(len(self._workers)),
            "threads": str(sum(info["nthreads"] for info in workers)),
            "memory": f"{sum(limits) / 2**30:.2f} GiB" if all(limits) and limits else "no limit",
        }
        if self._adaptive is not None:
            facts["adaptive"] = str(self._adaptive)
        return facts

    def __repr__(self) -> str:
        facts = self._summary()
        where = facts.pop("scheduler")
        rest = ", ".join(f"{name}={value}" for name, value in facts.items())
        return f"{type(self).__name__}({self.name!r}, {where!r}, {rest})"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in self._summary().items()
        )
        each = "".join(
            f"<tr><td>{escape(name)}</td><td>{escape(info['address'])}</td><td>{info['nthreads']}</td></tr>"
            for name, info in sorted(self._workers.items())
        )
        workers = (
            f"<details><summary>Workers</summary><table><tr><th>name</th><th>address</th><th>threads</th></tr>{each}"
            "</table></details>"
        )
        title = f"{type(self).__name__} {self.name}"
        return f"<b>{escape(title)}</b><table>{rows}</table>{workers}"

    def _ipython_display_(self, **kwargs: Any) -> None:
        from shoal.deploy.widget import display

        display(self)


def _facts(info: dict[str, Any]) -> dict[str, Any]:
    return {"nthreads": info.get("nthreads", 0), "memory_limit": info.get("memory_limit", 0)}


def _to_close(criteria: dict[str, Any], dask_scheduler: Any) -> list[Any]:
    """In the scheduler's process: names of the workers that a function groups, and that are needed least."""
    return list(dask_scheduler.workers_to_close(**criteria))
