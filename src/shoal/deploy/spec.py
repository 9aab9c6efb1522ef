"""Clusters made of objects: one for the scheduler, one for each worker, made from a class and its options.

A manager of machines writes a class that starts one of its machines (:class:`ProcessInterface`) and gives it to
:class:`SpecCluster`, which does the rest: it starts what is to be there, replaces what fails, and lets workers retire
before their machines end. ``examples/delayed_machines.py`` is one such manager.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Iterable
from html import escape
from typing import Any, Self

from shoal import config
from shoal.client.loop import get_loop_thread
from shoal.deploy.adaptive import Adaptive
from shoal.deploy.cluster import Cluster
from shoal.errors import StartError, UsageError
from shoal.programs.servers import Scheduler, Server
from shoal.security import Security
from shoal.shell import doors

#: Starts of one worker that may fail in a row before it is given up, and the pauses between (seconds).
_TRIES = 5
#: Hundredths of a second that it may take to hear why a worker left.
_DECIDED = 500
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0


class ProcessInterface:
    """One process or machine, as :class:`SpecCluster` sees it. Derive from it, and extend ``start`` and ``close``.

    Parameters
    ----------
    scheduler
        The scheduler's address; None for the scheduler itself.
    name
        The name under which the worker is to register.

    Attributes
    ----------
    address
        Where it can be reached, once that is known.
    status
        ``"created"``, ``"starting"``, ``"running"``, ``"closing"``, ``"closed"`` or ``"failed"``.
    """

    def __init__(self, scheduler: str | None = None, name: Any = None) -> None:
        self.address: str | None = None
        self.external_address: str | None = None
        self.scheduler = scheduler
        self.name = name
        self.status = "created"
        self._ended = asyncio.Event()

    async def start(self) -> None:
        """Start the process, or order the machine; a worker may register long afterwards."""
        self.status = "running"

    async def close(self) -> None:
        """End the process or machine; returns once that is done."""
        self.status = "closed"
        self._ended.set()

    async def finished(self) -> None:
        """Wait until it has ended, whoever ended it."""
        await self._ended.wait()

    def __await__(self) -> Any:
        return self._begin().__await__()

    async def _begin(self) -> Self:
        if self.status == "created":
            await self.start()
        return self

    async def __aenter__(self) -> Self:
        return await self._begin()

    async def __aexit__(self, *args: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name if self.name is not None else ''}: {self.status}>"

    def _repr_html_(self) -> str:
        return f"<b>{type(self).__name__}</b> <span>{escape(repr(self))}</span>"


class SpecCluster(Cluster):
    """A cluster of objects made from specifications ``{"cls": class, "options": {…}}``.

    An object is made as ``cls(scheduler_address, name=name, **options)`` (the scheduler's as ``cls(**options)``), is
    awaited to start it, has ``close()`` and ``finished()``: :class:`shoal.Nanny`, :class:`shoal.Worker`, or what
    derives from :class:`ProcessInterface`.

    Parameters
    ----------
    workers
        Specifications of the first workers, by name. One with ``"group": ["-0", "-1"]`` stands for several workers,
        whose names are its own and these.
    scheduler
        Specification of the scheduler; a :class:`shoal.Scheduler` here by default.
    worker
        Specification of further workers, for ``scale`` and ``adapt``.
    asynchronous
        ``async with SpecCluster(…, asynchronous=True) as cluster``, on the caller's event loop.
    security
        :class:`Security` with the cluster's secret; this user's own by default. Handed to what is made of shoal's own
        classes.
    name
        Of the cluster.
    shutdown_on_close
        Whether ``close`` ends workers and scheduler; if not, they are left running.
    shutdown_scheduler
        Whether ``close`` ends the scheduler.

    Raises
    ------
    UsageError
        If a specification makes no sense.
    StartError
        If one of the first workers cannot be started, with its reason.

    Examples
    --------
    >>> workers = {"a": {"cls": Nanny, "options": {"nthreads": 1}}}  # doctest: +SKIP
    >>> cluster = SpecCluster(workers, worker={"cls": Nanny, "options": {"nthreads": 2}})  # doctest: +SKIP
    >>> cluster.scale(4)  # doctest: +SKIP
    """

    def __init__(
        self,
        workers: dict[Any, dict[str, Any]] | None = None,
        scheduler: dict[str, Any] | None = None,
        worker: dict[str, Any] | None = None,
        asynchronous: bool = False,
        loop: Any = None,
        security: Any = None,
        silence_logs: Any = False,
        name: str | None = None,
        shutdown_on_close: bool = True,
        scheduler_sync_interval: Any = 1,
        shutdown_scheduler: bool = True,
    ) -> None:
        super().__init__(asynchronous, loop, False, name, scheduler_sync_interval, security)
        #: What is to be there, by name; what was made of it; and how further ones are made.
        self.worker_spec: dict[Any, dict[str, Any]] = dict(workers or {})
        self.workers: dict[Any, Any] = {}
        self.new_spec = worker
        self.scheduler_spec = scheduler or {"cls": Scheduler, "options": {}}
        self.scheduler: Any = None
        for what, spec in [*self.worker_spec.items(), ("scheduler", self.scheduler_spec), ("worker", worker)]:
            if spec is not None and not (isinstance(spec, dict) and callable(spec.get("cls"))):
                raise UsageError(f"the specification of {what!r} must have a class under 'cls', got {spec!r}")
        self.shutdown_on_close, self.shutdown_scheduler = shutdown_on_close, shutdown_scheduler
        self._next = 0
        self._changing = asyncio.Lock()
        self._wanted: int | None = None
        #: How often in a row the start of a worker failed, and who waits before it is tried again.
        self._failed: dict[Any, int] = {}
        self._resting: set[Any] = set()
        #: Those that are being scaled down: not to be replaced when they have ended.
        self._going: set[Any] = set()
        self._watchers: dict[Any, asyncio.Task[Any]] = {}
        if not asynchronous:
            get_loop_thread().sync(self._start())

    # -------------------------------------------------------------------------------------------- starting

    async def _launch(self) -> None:
        self.scheduler = self._make(self.scheduler_spec)
        self.scheduler = await self.scheduler
        self._addresses = getattr(self.scheduler, "addresses", None) or [self.scheduler.address]
        await self._join()
        self._spawn(self._watch_scheduler())
        await self._correct(first=True)

    def _make(self, spec: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        cls, options = spec["cls"], dict(spec.get("options") or {})
        if isinstance(cls, type) and issubclass(cls, Server):
            options.setdefault("security", Security(secret=self._secret))
        return cls(*args, **kwargs, **options)

    async def _correct(self, first: bool = False) -> None:
        """Make and end objects until there is what the specifications ask for."""
        async with self._changing:
            if self.status not in ("starting", "running"):
                return
            surplus = {name: self.workers.pop(name) for name in tuple(self.workers) if name not in self.worker_spec}
            waiting = self._resting | self._going
            missing = [name for name in self.worker_spec if name not in self.workers and name not in waiting]
            made = {}
            for name in missing:
                try:
                    spec = self.worker_spec[name]
                    made[name] = self.workers[name] = self._make(spec, self._addresses[0], name=name)
                except BaseException as error:
                    if doors.is_for_us(error):
                        raise
                    if first:
                        raise
                    self._has_failed(name, error)
            ends = asyncio.gather(*(self._end(name, worker) for name, worker in surplus.items()))
            starts = await asyncio.gather(*(_awaited(worker) for worker in made.values()), return_exceptions=True)
            await ends
            for (name, worker), started in zip(made.items(), starts, strict=True):
                if isinstance(started, BaseException):
                    self.workers.pop(name, None)
                    await self._end(name, worker)
                    if first or not isinstance(started, Exception):
                        raise StartError(f"worker {name!r} could not be started: {started}") from started
                    self._has_failed(name, started)
                else:
                    self._failed.pop(name, None)
                    self._watchers[name] = self._spawn(self._watch(name, worker))

    async def _watch_scheduler(self) -> None:
        """Without a scheduler there is nothing to keep up."""
        await self.scheduler.finished()
        if self.status == "running":
            self.status = "failed"
            self._note("the scheduler has ended: the cluster is to be closed", logging.WARNING)
            self._stop_adapting("the scheduler has ended")

    async def _end(self, name: Any, worker: Any) -> None:
        watcher = self._watchers.pop(name, None)
        if watcher is not None:
            watcher.cancel()
        try:
            await worker.close()
        except BaseException as error:  # of a manager's own class: the others are ended all the same
            if doors.is_for_us(error, awaiting=True):
                raise
            self._note(f"worker {name} could not be ended: {doors.text_of(error)}", logging.WARNING)

    def _has_failed(self, name: Any, error: BaseException) -> None:
        """The start of a worker failed: it is tried again in a while, and given up in the end."""
        count = self._failed[name] = self._failed.get(name, 0) + 1
        if count >= _TRIES:
            del self._failed[name]
            self.worker_spec.pop(name, None)
            self._note(f"worker {name} is given up: it could not be started {count} times: {error}", logging.ERROR)
            return
        pause = min(_FIRST_PAUSE * 2 ** (count - 1), _LONGEST_PAUSE)
        self._note(f"worker {name} could not be started, and is tried again in {pause:g} s: {error}", logging.WARNING)
        self._resting.add(name)
        self._spawn(self._again(name, pause))

    async def _again(self, name: Any, pause: float) -> None:
        await asyncio.sleep(pause)
        self._resting.discard(name)
        await self._correct()

    async def _watch(self, name: Any, worker: Any) -> None:
        """Replace a worker whose process or machine has ended, unless it was to end."""
        await worker.finished()
        if self.workers.get(name) is not worker:
            return
        del self.workers[name], self._watchers[name]
        self._spawn(self._after(name, worker))

    async def _after(self, name: Any, worker: Any) -> None:
        await self._end(name, worker)
        # One that retired may be known to have ended before it is known who wanted it to: whether it is to come back.
        for _ in range(_DECIDED):
            if name not in self._going and not self._names_of(name) & self._retiring:
                break
            await asyncio.sleep(0.01)
        if name in self.worker_spec and self.status == "running":
            why = getattr(getattr(worker, "program", None), "reason", "") or getattr(worker, "reason", "")
            self._note(f"worker {name} has ended and is replaced{f': {why}' if why else ''}", logging.WARNING)
            await self._correct()

    def _left(self, name: str, told: dict[str, Any]) -> None:
        """A worker is gone: one that a client retired is not to come back; one that does not come back is replaced."""
        spec = self._spec_of(name)
        if spec is None:
            return
        if told.get("safe") and told.get("by") == "client":
            group = self.worker_spec[spec].get("group")
            if not group or not (self._names_of(spec) & set(self._workers)):
                del self.worker_spec[spec]
                self._spawn(self._correct())
            return
        self._spawn(self._replace_if_lost(name, spec, self.workers.get(spec)))

    async def _replace_if_lost(self, name: str, spec: Any, worker: Any) -> None:
        key = "distributed.deploy.lost-worker-timeout"
        timeout = config.seconds(config.get(key, 15.0), key) or 15.0
        await asyncio.sleep(timeout)
        if name in self._workers or worker is None or self.workers.get(spec) is not worker:
            return
        self._note(f"worker {name} has been gone for {timeout:g} s, and is replaced", logging.WARNING)
        del self.workers[spec]
        await self._end(spec, worker)
        await self._correct()

    # -------------------------------------------------------------------------------------------- names

    def _names_of(self, name: Any) -> set[str]:
        """The names under which the workers of a specification register."""
        group = self.worker_spec.get(name, {}).get("group")
        return {f"{name}{suffix}" for suffix in group} if group else {str(name)}

    def _spec_of(self, name: str) -> Any:
        """The specification that a worker of this name comes from, or None."""
        return next((spec for spec in self.worker_spec if name in self._names_of(spec)), None)

    @property
    def plan(self) -> set[Any]:
        """Names of the workers that there are to be."""
        return set(self.worker_spec)

    @property
    def requested(self) -> set[Any]:
        """Names of the workers that were made."""
        return set(self.workers)

    @property
    def observed(self) -> set[Any]:
        """Names of those, all of whose workers the scheduler knows."""
        return {name for name in self.worker_spec if self._names_of(name) <= self._workers.keys()}

    # -------------------------------------------------------------------------------------------- scaling

    def new_worker_spec(self) -> dict[Any, dict[str, Any]]:
        """The name and the specification of the next worker.

        Raises
        ------
        UsageError
            If the cluster was made without ``worker``.
        """
        if self.new_spec is None:
            raise UsageError(f"{self.name} knows no specification of further workers: give worker={{'cls': …}}")
        while self._next in self.worker_spec or str(self._next) in self._workers:
            self._next += 1
        self._next += 1
        return {self._next - 1: self.new_spec}

    def _how_many(self, n: Any, memory: Any, cores: Any) -> int:
        if isinstance(n, bool) or not isinstance(n, int) or n < 0:
            raise UsageError(f"n must be a number of workers from 0 on, got {n!r}")
        count: int = n
        options = (self.new_spec or {}).get("options") or {}
        size = len((self.new_spec or {}).get("group") or [""])
        if cores is not None:
            count = max(count, math.ceil(_positive(cores, "cores") / (self._threads_per_worker(options) * size)))
        if memory is not None:
            limit = options.get("memory_limit")
            if not limit or limit == "auto":
                raise UsageError("memory= needs workers with a memory_limit in their options")
            nthreads = self._threads_per_worker(options)
            count = max(
                count, math.ceil(config.nbytes(memory, "memory") / (config.memory_limit(limit, nthreads) * size))
            )
        return count

    def _threads_per_worker(self, options: dict[str, Any]) -> int:
        given = options.get("nthreads")
        count: int = config.cpu_count() if given is None else given
        return count

    def scale(self, n: int = 0, memory: Any = None, cores: int | None = None) -> Any:
        """Have ``n`` workers, or as many as have ``memory`` (``"64 GiB"``) or ``cores`` in all.

        Workers that are too many retire: what only they hold is moved first, and one that nobody can relieve of its
        data stays. It begins at once and goes on by itself; ``wait_for_workers`` waits for workers that are to come.

        Raises
        ------
        UsageError
            If an argument makes no sense, naming it.
        """
        n = self._how_many(n, memory, cores)
        if n > len(self.plan):
            self._check_growth()
        self._stop_adapting("cluster.scale was called")
        self._wanted = n
        self._soon(self._scale)
        return _nothing() if self.asynchronous else None

    def _check_growth(self) -> None:
        """Complain where there can be no further workers."""
        if self.new_spec is None:
            self.new_worker_spec()

    async def _scale(self) -> None:
        """Come to the number of workers that was wanted last."""
        n = self._wanted
        if n is None or self.status != "running":
            return
        if n > len(self.plan):
            await self._scale_up(n)
            return
        surplus = len(self.plan) - n
        if not surplus:
            return
        going = sorted(self.plan - self.observed, key=str)[:surplus]
        if len(going) < surplus:
            going += [name for name in await self._needless(n, None) if name not in going][: surplus - len(going)]
        await self._scale_down(going, f"the cluster is scaled to {n} workers")

    def scale_up(self, n: int = 0, memory: Any = None, cores: int | None = None) -> Any:
        """Have ``n`` workers, where that is more than there are."""
        n = self._how_many(n, memory, cores)
        if n > len(self.plan):
            self._check_growth()
        self._soon(lambda: self._scale_up(n))
        return _nothing() if self.asynchronous else None

    async def _scale_up(self, n: int) -> None:
        while len(self.worker_spec) < n:
            self.worker_spec.update(self.new_worker_spec())
        await self._correct()

    def scale_down(self, workers: Iterable[Any]) -> Any:
        """Have the workers that are named retire."""
        return self.sync(self._scale_down, list(workers), "the cluster is scaled down")

    async def _scale_down(self, names: list[Any], reason: str) -> None:
        """Let workers retire; those that cannot, stay."""
        named = [name for name in names if name in self.worker_spec]
        if not named:
            return
        self._going.update(named)
        try:
            await self._retire(named, reason)
        finally:
            self._going.difference_update(named)
        await self._correct()

    async def _retire(self, named: list[Any], reason: str) -> None:
        registered = {one for name in named for one in self._names_of(name)}
        kept: set[str] = set()
        there = registered & self._workers.keys()
        if there:
            told = await self._manager._retire(sorted(registered), {}, True, True, False, None, reason)
            kept = there & self._workers.keys() - {info["name"] for info in told.values()}
        for name in named:
            if not (self._names_of(name) & kept):
                self.worker_spec.pop(name, None)

    async def _needless(self, target: int, key: Any) -> list[Any]:
        found = await super()._needless(target, key)
        specs = dict.fromkeys(self._spec_of(name) for name in found)
        # Of a group, all have to be found.
        return [spec for spec in specs if spec is not None and self._names_of(spec) <= set(found)]

    def adapt(
        self,
        Adaptive: type[Adaptive] = Adaptive,
        minimum: float = 0,
        maximum: float = math.inf,
        minimum_cores: int | None = None,
        maximum_cores: int | None = None,
        minimum_memory: Any = None,
        maximum_memory: Any = None,
        **kwargs: Any,
    ) -> Adaptive:
        """Have as many workers as the work calls for: between ``minimum`` and ``maximum``, in workers, cores or memory.

        See :class:`~shoal.deploy.adaptive.Adaptive` for further arguments.
        """
        least, most = minimum, maximum
        if minimum_cores is not None or minimum_memory is not None:
            least = max(least, self._how_many(0, minimum_memory, minimum_cores))
        if maximum_cores is not None or maximum_memory is not None:
            most = min(most, self._at_most(maximum_memory, maximum_cores))
        if most > len(self.plan):
            self._check_growth()
        return super().adapt(Adaptive, minimum=int(least), maximum=most, **kwargs)

    def _at_most(self, memory: Any, cores: Any) -> float:
        options = (self.new_spec or {}).get("options") or {}
        most = math.inf
        if cores is not None:
            most = _positive(cores, "maximum_cores") // self._threads_per_worker(options)
        if memory is not None:
            limit = config.memory_limit(options.get("memory_limit", "auto"), self._threads_per_worker(options))
            most = min(most, config.nbytes(memory, "maximum_memory") // max(limit, 1))
        return most

    # -------------------------------------------------------------------------------------------- the end

    async def _shut(self) -> None:
        if self.shutdown_on_close:
            workers, self.workers = self.workers, {}
            await asyncio.gather(*(self._end(name, worker) for name, worker in workers.items()))
            if self.scheduler is not None and self.shutdown_scheduler:
                await self.scheduler.close()

    @classmethod
    def from_name(cls, name: str) -> Self:
        """Return a cluster that runs already; for managers that can find theirs by name.

        Raises
        ------
        NotImplementedError
            Here.
        """
        raise NotImplementedError(f"{cls.__name__} cannot be found by name")


async def _awaited(worker: Any) -> Any:
    try:
        return await worker
    except BaseException as error:
        if isinstance(error, Exception) or doors.is_for_us(error, awaiting=True):
            raise
        raise StartError(f"it raised {doors.text_of(error)}") from error  # or the loop would end


async def _nothing() -> None:
    pass


def _positive(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UsageError(f"{name} must be a number from 0 on, got {value!r}")
    return value
