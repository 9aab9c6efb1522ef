"""A client's life: finding the scheduler, connecting, being the current one, closing."""

from __future__ import annotations

import asyncio
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any, Self, TypeVar
from uuid import uuid4

from shoal import checks, config
from shoal.client import collections, current
from shoal.client.connection import Connection
from shoal.client.io_loop import IOLoop
from shoal.client.loop import LoopThread, get_loop_thread, run_threadsafe
from shoal.client.packing import FunctionCache
from shoal.errors import ClosedClientError, ShoalError, UsageError
from shoal.messages import Shutdown
from shoal.security import read_scheduler_file, secret_of
from shoal.shell import doors

logger = logging.getLogger("shoal.client")
T = TypeVar("T")

#: Seconds to wait for what a repr would like to show.
_GLANCE = 0.5


class ClientBase(ABC):
    """What every method of a client stands on."""

    def __init__(
        self,
        address: Any = None,
        loop: Any = None,
        timeout: Any = None,
        set_as_default: bool = True,
        scheduler_file: str | Path | None = None,
        security: Any = None,
        asynchronous: bool = False,
        name: str | None = None,
        heartbeat_interval: Any = None,
        serializers: Sequence[str] | None = None,
        deserializers: Sequence[str] | None = None,
        extensions: dict[str, Callable[[Any], Any]] | None = None,
        direct_to_workers: bool | None = None,
        connection_limit: int = 512,
        **kwargs: Any,
    ) -> None:
        name = None if name is None or name == "" else checks.name(name, "name", 200, for_process=True)
        self.id = f"Client-{name + '-' if name else ''}{uuid4().hex}"
        self.name = name
        self._asynchronous = asynchronous
        config.seconds(heartbeat_interval, "heartbeat_interval")
        for which, given in (("serializers", serializers), ("deserializers", deserializers)):
            if given is not None and "pickle" not in given:
                raise UsageError(
                    f"{which} must have 'pickle' among them, which is what values travel by, got {given!r}"
                )
        if not isinstance(connection_limit, int) or connection_limit < 1:
            raise UsageError(f"connection_limit must be a number from 1 on, got {connection_limit!r}")
        self.direct_to_workers = direct_to_workers
        #: The cluster that was given or started, if any.
        self.cluster: Any = None
        self._status = "newly-created"
        self._owns_cluster = False
        limit = timeout if timeout is not None else config.get("distributed.comm.timeouts.connect", 30.0)
        self._timeout = config.seconds(limit, "timeout") or 30.0
        self._set_as_default = set_as_default
        self._security = security
        self._address, self._scheduler_file, self._cluster_options = address, scheduler_file, kwargs
        if kwargs and (address is not None or scheduler_file is not None):
            raise TypeError(f"Client got unexpected arguments: {', '.join(sorted(kwargs))}")
        if (
            loop is not None
            and not isinstance(loop, asyncio.AbstractEventLoop | IOLoop)
            and not hasattr(loop, "add_callback")
        ):
            raise UsageError(f"loop must be None or an asyncio event loop, got {loop!r}")
        self._functions = FunctionCache()
        self._callbacks: ThreadPoolExecutor | None = None
        #: What is called for events, by topic; and what of that is under way.
        self._handlers: dict[str, Callable[..., Any]] = {}
        self._handling: set[asyncio.Task[Any]] = set()
        self._took_over = False
        self._connection: Connection = None  # type: ignore[assignment]  # made by _start
        self._io_loop: IOLoop | None = None
        self._pid = os.getpid()
        if not asynchronous:
            self._thread: LoopThread = get_loop_thread()
            self._find_cluster()
            try:
                self._thread.sync(self._start(self._thread.loop))
            except BaseException:
                self._close_own_cluster()
                raise

    # -------------------------------------------------------------------------------------------- connecting

    def _find_cluster(self) -> None:
        """Turn what the constructor was given into addresses and a secret; start a cluster where nothing was."""
        address, fallback = self._address, None
        if address is None and self._scheduler_file is None:
            address = config.get("scheduler-address")
        if self._scheduler_file is not None:
            if address is not None:
                raise UsageError("give an address or a scheduler_file, not both")
            addresses, fallback = read_scheduler_file(Path(self._scheduler_file))
        elif address is None:
            from shoal.deploy.local import LocalCluster

            self.cluster = LocalCluster(
                asynchronous=self._asynchronous, security=self._security, **self._cluster_options
            )
            self._owns_cluster = True
        elif isinstance(address, str):
            addresses = [address]
        elif isinstance(address, list) and address and all(isinstance(one, str) for one in address):
            addresses = address
        elif hasattr(address, "scheduler_address"):
            self.cluster = address
        else:
            raise UsageError(f"address must be text, as 'tcp://127.0.0.1:8786', or a cluster, got {address!r}")
        if self.cluster is None:
            self._addresses = addresses
        self._fallback = fallback

    async def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        if self.cluster is not None:
            if self._asynchronous and self._owns_cluster:
                await self.cluster
            self._addresses = getattr(self.cluster, "_addresses", None) or [self.cluster.scheduler_address]
            self._fallback = getattr(self.cluster, "_secret", None)
        given = None if self._owns_cluster else self._security
        secret = secret_of(given, self._fallback)
        connection = Connection(self.id, secret, self._addresses, loop, self.name or "")
        await connection.open(self._timeout)
        self._connection = connection
        self._status = "running"
        self._listen()
        current.remember(self, self._set_as_default)
        if self._set_as_default:
            collections.take_over()
            self._took_over = True

    @abstractmethod
    def _listen(self) -> None:
        """Hear of what tasks tell all clients."""

    @abstractmethod
    def get(self, dsk: Any, keys: Any, **kwargs: Any) -> Any:
        """Run a dask graph."""

    @property
    def scheduler_address(self) -> str:
        """Where the scheduler is, as users write it."""
        return self._addresses[0] if getattr(self, "_addresses", None) else "not connected"

    @property
    def dashboard_link(self) -> str:
        """Where the cluster's dashboard is: nowhere, so far."""
        return ""

    @property
    def loop(self) -> IOLoop:
        """The event loop that this client runs on; it has ``add_callback``, too, as tornado's loops do."""
        if self._io_loop is None:
            self._io_loop = IOLoop(self._connection.loop)
        return self._io_loop

    @property
    def asynchronous(self) -> bool:
        """Whether what waits is to be awaited: it was made so, or this is called on its event loop."""
        if self._asynchronous:
            return True
        thread: LoopThread | None = getattr(self, "_thread", None)
        return thread is not None and thread.here

    def sync(
        self,
        func: Callable[..., Any],
        *args: Any,
        asynchronous: bool | None = None,
        callback_timeout: float | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run a coroutine function on the client's event loop and wait for it; or return what is to be awaited.

        Parameters
        ----------
        asynchronous
            Whether it is to be awaited; by default, whether the client is asynchronous here.
        callback_timeout
            Seconds to wait.

        Raises
        ------
        TimeoutError
            After ``callback_timeout``.
        """
        if self.asynchronous if asynchronous is None else asynchronous:
            return func(*args, **kwargs)
        return self._thread.sync(func(*args, **kwargs), callback_timeout)

    def _sync(self, coroutine: Coroutine[Any, Any, T]) -> Any:
        """The result of ``coroutine``, or, for an asynchronous client, the coroutine."""
        return coroutine if self.asynchronous else self._thread.sync(coroutine)

    def _await(self, coroutine: Coroutine[Any, Any, T]) -> Any:
        """What code on any event loop awaits to have ``coroutine`` run on this client's."""
        if asyncio.get_running_loop() is self._connection.loop:
            return coroutine
        return asyncio.wrap_future(run_threadsafe(coroutine, self._connection.loop))

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            raise ClosedClientError(
                "this client was made before this process was forked, and belongs to the other one: make a new Client "
                "here, or start processes by 'spawn' or 'forkserver'"
            )

    def _check_open(self) -> None:
        self._check_process()
        if self._connection is None:
            raise UsageError("an asynchronous client must be awaited before it is used: client = await Client(...)")
        self._connection.check_open()

    @classmethod
    def current(cls, allow_global: bool = True) -> Any:
        """The client chosen with :meth:`as_current`, or else the newest default one.

        Raises
        ------
        UsageError
            If there is none.
        """
        found = current.current_client(allow_global)
        if found is None:
            raise UsageError("no client is open here; make one with Client(...)")
        return found

    @contextmanager
    def as_current(self) -> Iterator[Self]:
        """Have this client found by :meth:`current` and ``get_client`` in this thread or task."""
        token = current.chosen.set(self)
        try:
            yield self
        finally:
            current.chosen.reset(token)

    # -------------------------------------------------------------------------------------------- the end

    def _run_callback(self, fn: Callable[[Any], Any], argument: Any, place: str = "callback") -> None:
        pool = self._callbacks
        if self._status == "closed":  # a callback that was added to what had ended: the thread ends with it
            pool = ThreadPoolExecutor(1, "shoal-callbacks")
        elif pool is None:
            pool = self._callbacks = ThreadPoolExecutor(1, "shoal-callbacks")
        pool.submit(doors.call, place, fn, argument)
        if self._status == "closed":
            pool.shutdown(wait=False)

    def shutdown(self) -> Any:
        """Close the workers and the scheduler, and this client."""
        return self._sync(self._shutdown())

    async def _shutdown(self) -> None:
        await self._connection.request(Shutdown)
        await self._close("the cluster was shut down")

    def close(self, timeout: Any = None) -> Any:
        """Disconnect; futures that are still pending are cancelled. A cluster that the client started is closed."""
        if self._pid != os.getpid():
            return None  # the process that made it closes it
        if self.asynchronous:
            return self._close("closed by its user")
        if self._status != "closed":
            self._thread.sync(self._close("closed by its user"))
            self._close_own_cluster()
        return None

    def _close_own_cluster(self) -> Any:
        """Close the cluster that this client started, if it did; to be awaited by an asynchronous client."""
        return self.cluster.close() if self._owns_cluster else None

    async def _close(self, reason: str) -> None:
        if self._status == "closed":
            return
        self._status = "closed"
        current.forget(self)
        if self._took_over:
            collections.hand_back()
        if self._connection is not None:
            await self._connection.close(reason)
        if self._callbacks is not None:
            self._callbacks.shutdown(wait=False)
        if self._owns_cluster and self._asynchronous:
            await self.cluster.close()

    def __enter__(self) -> Self:
        if self._asynchronous:
            raise TypeError("use 'async with' with an asynchronous client")
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def __await__(self) -> Generator[Any, None, Self]:
        return self._begin().__await__()

    def start(self, **kwargs: Any) -> Any:
        """Begin to connect, which making or awaiting a client does anyway."""
        return self._begin() if self.asynchronous else None

    async def _begin(self) -> Self:
        if self._asynchronous and self._status == "newly-created":
            self._find_cluster()
            await self._start(asyncio.get_running_loop())
        return self

    async def __aenter__(self) -> Self:
        return await self._begin()

    async def __aexit__(self, *args: object) -> None:
        await self._close("closed by its user")

    @property
    def status(self) -> str:
        """``"running"``, ``"connecting"`` (the connection broke and is being opened again), ``"closed"``, …"""
        if self._status == "running" and self._connection.cut:
            return "connecting"
        return self._status

    def _facts(self) -> dict[str, str]:
        """What is to be seen at a glance: the cluster is asked, and not waited for long."""
        facts = {"scheduler": self.scheduler_address, "status": self.status}
        if self._connection is None or self.status != "running":
            return facts
        futures: dict[str, int] = {}
        for record in tuple(self._connection.core.futures.values()):
            futures[record.status.label] = futures.get(record.status.label, 0) + 1
        facts["futures"] = ", ".join(f"{count} {name}" for name, count in futures.items()) or "none"
        if not self.asynchronous and self._pid == os.getpid():
            try:
                info = self._thread.sync(self._connection.ask("identity", n_workers=0), _GLANCE)
            except (TimeoutError, ShoalError):
                return facts  # it does not answer now: what is known here is shown
            facts["workers"], facts["threads"] = str(info["n_workers"]), str(info["total_threads"])
            facts["memory"] = f"{info['total_memory'] / 2**30:.2f} GiB" if info["total_memory"] else "no limit"
        return facts

    def __repr__(self) -> str:
        facts = self._facts()
        rest = "".join(f", {name}={value}" for name, value in facts.items() if name not in ("scheduler", "status"))
        return f"<Client: {facts['scheduler']} {facts['status']}{rest}>"

    def _repr_html_(self) -> str:
        rows = self._facts().items()
        body = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows)
        return f"<b>Client</b><table>{body}</table>"
