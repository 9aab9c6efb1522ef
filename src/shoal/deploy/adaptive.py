"""How many workers a cluster is to have for the work that there is, thought over at intervals."""

from __future__ import annotations

import asyncio
import logging
import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Iterable
from datetime import UTC, datetime
from html import escape
from typing import TYPE_CHECKING, Any

from shoal import config
from shoal.errors import UsageError
from shoal.shell import doors

if TYPE_CHECKING:
    from shoal.deploy.cluster import Cluster

logger = logging.getLogger("shoal.adaptive")


class AdaptiveCore(ABC):
    """Decides from a target whether a cluster is to grow, to shrink, or to stay as it is.

    Parameters
    ----------
    minimum, maximum
        Workers, at least and at most.
    wait_count
        How often in a row a worker must be found needless before it goes.
    """

    def __init__(self, minimum: int = 0, maximum: float = math.inf, wait_count: int = 3) -> None:
        for name, value in (("minimum", minimum), ("maximum", maximum)):
            if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or math.isnan(value):
                raise UsageError(f"{name} must be a number of workers from 0 on, got {value!r}")
        if minimum > maximum:
            raise UsageError(f"minimum ({minimum}) must not be more than maximum ({maximum})")
        if not isinstance(wait_count, int) or wait_count < 1:
            raise UsageError(f"wait_count must be a number from 1 on, got {wait_count!r}")
        self.minimum, self.maximum, self.wait_count = int(minimum), maximum, wait_count
        #: How often in a row each worker was found needless.
        self.close_counts: dict[Any, int] = {}
        #: What was done and why: (when, what).
        self.log: deque[tuple[datetime, dict[str, Any]]] = deque(maxlen=config.log_length())

    @property
    @abstractmethod
    def plan(self) -> Collection[Any]:
        """Workers that there are to be."""

    @property
    @abstractmethod
    def requested(self) -> Collection[Any]:
        """Workers that were asked for."""

    @property
    @abstractmethod
    def observed(self) -> Collection[Any]:
        """Workers that are there."""

    @abstractmethod
    async def target(self) -> int:
        """How many workers the work calls for."""

    @abstractmethod
    async def workers_to_close(self, target: int) -> list[Any]:
        """Workers that may go, to come to ``target``."""

    @abstractmethod
    async def scale_up(self, n: int) -> None:
        """Have ``n`` workers, which is more than before."""

    @abstractmethod
    async def scale_down(self, workers: Iterable[Any]) -> None:
        """Let workers go."""

    async def safe_target(self) -> int:
        """The target, within the limits."""
        return int(min(max(await self.target(), self.minimum), self.maximum))

    async def recommendations(self, target: int) -> dict[str, Any]:
        """What to do to come to ``target``: ``{"status": "same" | "up" | "down", …}``.

        Workers that were asked for and have not come yet go first, and at once; others when they were found needless
        ``wait_count`` times in a row.
        """
        plan, requested, observed = set(self.plan), set(self.requested), set(self.observed)
        if target >= len(plan):
            self.close_counts.clear()
            if target > len(plan):
                return {"status": "up", "n": target}
            return {"status": "same"}
        going: dict[Any, None] = dict.fromkeys(sorted(requested - observed, key=str)[: len(plan) - target])
        needless = set()
        if len(plan) - len(going) > target:
            needless = set(await self.workers_to_close(target)) & plan
        for worker in needless:
            self.close_counts[worker] = self.close_counts.get(worker, 0) + 1
            if self.close_counts[worker] >= self.wait_count and len(plan) - len(going) > target:
                going[worker] = None
        for worker in tuple(self.close_counts):
            if worker in going or worker not in needless:
                del self.close_counts[worker]
        if going:
            return {"status": "down", "workers": list(going)}
        return {"status": "same"}

    def _note(self, what: dict[str, Any]) -> None:
        """Remember what was done, and why."""
        self.log.append((datetime.now(UTC), what))
        logger.info("adapts: %s", what)

    async def adapt(self) -> None:
        """Think it over once, and act."""
        target = await self.safe_target()
        told = await self.recommendations(target)
        status = told.pop("status")
        if status == "same":
            return
        self._note({"status": status, "target": target, "plan": len(self.plan), "observed": len(self.observed), **told})
        if status == "up":
            await self.scale_up(**told)
        else:
            await self.scale_down(**told)


class Adaptive(AdaptiveCore):
    """Has a cluster grow and shrink with its work.

    Parameters
    ----------
    cluster
        What is scaled: it has ``scale_up(n)`` and ``scale_down(workers)``, or ``scale(n)``.
    interval
        How often it is thought over (``distributed.adaptive.interval``).
    minimum, maximum
        Workers, at least and at most.
    wait_count
        How often in a row a worker must be found needless before it goes.
    target_duration
        How long the work that is there should take; more workers are asked for where it would take longer.
    worker_key
        A function of a worker: those for which it is the same go together.

    Examples
    --------
    >>> cluster.adapt(minimum=0, maximum=10)  # doctest: +SKIP
    """

    def __init__(
        self,
        cluster: Cluster,
        interval: Any = None,
        minimum: int | None = None,
        maximum: float | None = None,
        wait_count: int | None = None,
        target_duration: Any = None,
        worker_key: Callable[[Any], Any] | None = None,
        **kwargs: Any,
    ) -> None:
        name = "distributed.adaptive."
        super().__init__(
            config.get(name + "minimum", 0) if minimum is None else minimum,
            config.get(name + "maximum", math.inf) if maximum is None else maximum,
            config.get(name + "wait-count", 3) if wait_count is None else wait_count,
        )
        if kwargs:
            raise UsageError(f"adapt does not know {next(iter(kwargs))!r}")
        if worker_key is not None and not callable(worker_key):
            raise UsageError(f"worker_key must be a function of a worker, got {worker_key!r}")
        self.cluster = cluster
        self.interval = config.seconds(config.get(name + "interval", 1.0) if interval is None else interval, "interval")
        given = config.get(name + "target-duration", 5.0) if target_duration is None else target_duration
        self.target_duration = config.seconds(given, "target_duration") or 5.0
        self.worker_key = worker_key
        self.stopped = ""
        #: What the last target follows from.
        self.why: dict[str, Any] = {}
        self._task: asyncio.Task[None] | None = None
        if self.interval:
            cluster.loop.call_soon_threadsafe(self._begin)

    def _begin(self) -> None:
        if not self.stopped:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        assert self.interval is not None
        while not self.stopped:
            try:
                await self.adapt()
            except BaseException as error:
                if doors.is_for_us(error, awaiting=True):
                    raise
                # A worker that dies on the way, a scheduler that is busy, or a user's own method that fails is no
                # reason to stop for good.
                self.log.append((datetime.now(UTC), {"status": "failed", "why": doors.text_of(error)}))
                doors.report("adaptive", error, "adapting (it goes on)")
            await asyncio.sleep(self.interval)

    def stop(self, reason: str = "unknown") -> None:
        """Leave the cluster as it is."""
        if self.stopped:
            return
        self.stopped = reason
        self.log.append((datetime.now(UTC), {"status": "stopped", "why": reason}))
        try:
            self.cluster.loop.call_soon_threadsafe(self._cancel)
        except RuntimeError:
            pass  # the loop is closed, and the task with it

    def _cancel(self) -> None:
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()

    def _note(self, what: dict[str, Any]) -> None:
        why = {name: value for name, value in self.why.items() if name != "target"}
        super()._note({**what, "why": why})
        facts = ", ".join(f"{name}={value}" for name, value in why.items())
        self.cluster._note(f"adapts {what['status']} to {what['target']} workers: {facts}")

    @property
    def scheduler(self) -> Any:
        """The scheduler, to ask questions of it in coroutines."""
        return self.cluster._manager.scheduler

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop of the cluster."""
        return self.cluster.loop

    @property
    def plan(self) -> Collection[Any]:
        return self.cluster.plan

    @property
    def requested(self) -> Collection[Any]:
        return self.cluster.requested

    @property
    def observed(self) -> Collection[Any]:
        return self.cluster.observed

    async def target(self) -> int:
        """What the scheduler takes for right."""
        self.why = await self.cluster._ask("adaptive_target", target_duration=self.target_duration)
        found: int = self.why["target"]
        return found

    async def workers_to_close(self, target: int) -> list[Any]:
        return await self.cluster._needless(target, self.worker_key)

    async def scale_up(self, n: int) -> None:
        await self.cluster._scale_up(n)

    async def scale_down(self, workers: Iterable[Any]) -> None:
        await self.cluster._scale_down(list(workers), "the work calls for fewer workers (adaptive)")

    def __repr__(self) -> str:
        most = "any number of" if math.isinf(self.maximum) else f"{self.maximum:g}"
        state = f", stopped: {self.stopped}" if self.stopped else ""
        return f"<Adaptive: {self.minimum} to {most} workers, each {self.interval:g} s{state}>"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{when:%H:%M:%S}</td><td>{escape(str(what))}</td></tr>" for when, what in list(self.log)[-10:]
        )
        return f"<b>{escape(repr(self))}</b><table>{rows}</table>"
