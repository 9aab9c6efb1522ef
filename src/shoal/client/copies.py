"""What a client does with copies of results, and with workers that are to go."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from shoal import checks, config
from shoal.client.admin import AdminCalls
from shoal.errors import UsageError
from shoal.messages import ManageMemory, Rebalance, Replicate, Retire
from shoal.shell import serialize

logger = logging.getLogger("shoal.client")

#: What :meth:`CopyCalls.retire_workers` may be asked for where no workers are named.
_CRITERIA = ("memory_ratio", "n", "key", "minimum", "target", "attribute")


class AMMClientProxy:
    """The scheduler's active memory manager, from a client: ``client.amm``.

    Examples
    --------
    >>> client.amm.stop()  # doctest: +SKIP
    >>> client.amm.running()  # doctest: +SKIP
    False
    """

    def __init__(self, client: CopyCalls) -> None:
        self._client = client

    def start(self) -> Any:
        """Run the policies at each interval (``distributed.scheduler.active-memory-manager.interval``)."""
        return self._client._manage("start")

    def stop(self) -> Any:
        """Do not run the policies by themselves any more."""
        return self._client._manage("stop")

    def run_once(self) -> Any:
        """Run the policies now."""
        return self._client._manage("run_once")

    def running(self) -> Any:
        """Whether the policies are run by themselves."""
        return self._client._manage("running")


class CopyCalls(AdminCalls):
    """Copies, and workers that go."""

    # -------------------------------------------------------------------------------------------- retirement

    def retire_workers(
        self,
        workers: Any = None,
        close_workers: bool = True,
        *,
        names: Any = None,
        remove: bool = True,
        force: bool = False,
        timeout: Any = None,
        reason: str = "",
        **criteria: Any,
    ) -> Any:
        """Have workers leave, once all that only they hold is on others.

        Nothing is lost by it, and nothing is computed again: their running tasks are let finish. A worker that nobody
        can relieve of its data stays, and a warning says why.

        Parameters
        ----------
        workers, names
            Addresses, names, hosts or ids of those that are to go. Without any, ``criteria`` says who.
        close_workers
            End their processes. If not, they stay alive but idle, for whoever started them to end; they cannot rejoin.
        remove
            Have the scheduler forget them. If not, and not closed either, they stay known, without data or tasks.
        force
            Let them go even where data is lost by it; the answer names it under ``"lost"``.
        timeout
            How long running tasks may take to end, as ``"10 s"``; then they run elsewhere. By default as long as they
            take.
        reason
            Why, for logs and events.
        **criteria
            ``n`` (how many are to go), ``target`` (how many are to stay), ``minimum`` (how many are to stay at least),
            ``memory_ratio`` (how many times as much memory as there are results is to be left), ``key`` (a function of
            a worker, or the name of an attribute as ``"host"``: those for which it is the same go together),
            ``attribute`` (accepted).

        Returns
        -------
        dict
            What is known of each worker that left, by address.

        Raises
        ------
        UsageError
            If an argument makes no sense, naming it.
        """
        self._check_open()
        unknown = sorted(set(criteria) - set(_CRITERIA))
        if unknown:
            raise UsageError(f"retire_workers does not know {unknown[0]!r}; criteria are {', '.join(_CRITERIA)}")
        named = checks.workers(workers)
        if names is not None:
            named = [*(named or ()), *(checks.workers(names, "names") or ())]
        reason = checks.note(reason, "reason")
        for name, value in criteria.items():
            if not (name == "key" and callable(value)):
                serialize.check_plain(value, name)
        if named is not None and criteria:
            raise UsageError(f"give workers, or {next(iter(criteria))!r} to choose them by, not both")
        patience = config.seconds(timeout, "timeout")
        close, remove = checks.flag(close_workers, "close_workers"), checks.flag(remove, "remove")
        force = checks.flag(force, "force")
        return self._sync(self._retire(named, criteria, close, remove, force, patience, reason))

    async def _retire(
        self,
        workers: list[str] | None,
        criteria: dict[str, Any],
        close: bool,
        remove: bool,
        force: bool,
        patience: float | None,
        reason: str,
    ) -> dict[str, Any]:
        if workers is None and callable(criteria.get("key")):
            payload = serialize.dumps((_choose, (), {"criteria": criteria}), "the key function of retire_workers")
            workers, criteria = await self._run_on_scheduler(payload), {}
        told: dict[str, Any] = await self._connection.request(
            lambda rid: Retire(rid, workers, criteria, close, remove, force, patience, reason)
        )
        for address, why in told["kept"].items():
            logger.warning("worker %s could not retire, and stays: %s", address, why)
        for address, why in told["lost"].items():
            logger.warning("worker %s died before it could retire: %s", address, why)
        retired: dict[str, Any] = told["retired"]
        return retired

    # -------------------------------------------------------------------------------------------- copies

    def replicate(self, futures: Any, n: int | None = None, workers: Any = None, branching_factor: int = 2) -> Any:
        """Have the results of futures on several workers, and keep them there.

        Parameters
        ----------
        n
            On how many of them; on all by default.
        workers
            Addresses, names or hosts of the workers that may be used; all by default.
        branching_factor
            How many workers may copy from one at the same time.

        Raises
        ------
        UsageError
            If a copy cannot be made, saying why.
        """
        copies = None if n is None else checks.whole(n, "n", 1)
        branching = checks.whole(branching_factor, "branching_factor", 1)
        self._check_open()
        named = checks.workers(workers)
        keys = self._keys_of(futures)
        return self._sync(self._copy(keys, lambda rid: Replicate(rid, keys, copies, named, branching)))

    def rebalance(self, futures: Any = None, workers: Any = None) -> Any:
        """Move results from workers that hold much to workers that hold little, until each holds about its share.

        Parameters
        ----------
        futures
            What may be moved; all that is in memory, by default.
        workers
            Addresses, names or hosts between which it is moved; all by default.

        Raises
        ------
        UsageError
            If a result cannot be moved, saying why.
        """
        self._check_open()
        named = checks.workers(workers)
        keys = None if futures is None else self._keys_of(futures)
        return self._sync(self._copy(keys or [], lambda rid: Rebalance(rid, keys, named)))

    async def _copy(self, keys: list[str], make: Callable[[int], Any]) -> None:
        records = [self._connection.core.futures[key] for key in keys if key in self._connection.core.futures]
        await self._connection.all_done(records)
        told = await self._connection.request(make)
        if told["failed"]:
            key, why = next(iter(told["failed"].items()))
            more = f" (and {len(told['failed']) - 1} others)" if len(told["failed"]) > 1 else ""
            raise UsageError(f"{key!r} could not be copied: {why}{more}")

    @property
    def amm(self) -> AMMClientProxy:
        """The scheduler's active memory manager: start, stop, run once, or ask whether it runs."""
        return AMMClientProxy(self)

    def _manage(self, what: str) -> Any:
        self._check_open()
        return self._sync(self._ask_manager(what))

    async def _ask_manager(self, what: str) -> bool | None:
        running: bool = await self._connection.request(lambda rid: ManageMemory(rid, what))
        return running if what == "running" else None


def _choose(criteria: dict[str, Any], dask_scheduler: Any) -> list[str]:
    """In the scheduler's process: the workers that a function chooses."""
    return [str(worker.id) for worker in dask_scheduler.candidates_to_close(**criteria)]
