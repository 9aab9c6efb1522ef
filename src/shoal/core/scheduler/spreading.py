"""Copies that clients ask for: so many of each key (replicate), or the same share of memory everywhere (rebalance)."""

from __future__ import annotations

from typing import Final

from shoal.core.scheduler.amm import MemoryManager
from shoal.core.scheduler.copying import TRIES, Failure
from shoal.core.scheduler.retirement import Departures
from shoal.core.scheduler.roster import WorkerRecord
from shoal.core.scheduler.settings import Settings
from shoal.core.scheduler.task import Task, TaskState
from shoal.ids import ClientId
from shoal.messages import ManageMemory, Rebalance, Replicate

#: The part of the mean by which workers may differ after a rebalance, where there are no memory limits.
_UNEVEN: Final = 0.05


class Spread:
    """A request for copies: which keys are not there yet where they should be, and what could not be done.

    ``count`` is how many copies are wanted; None where every move is known from the start (rebalance).
    """

    __slots__ = ("branching", "client", "count", "failed", "left", "names", "refused", "rid", "why")

    def __init__(self, client: ClientId, rid: int, names: list[str] | None, count: int | None, branching: int) -> None:
        self.client, self.rid, self.names, self.count, self.branching = client, rid, names, count, branching
        self.left: dict[Task, None] = {}
        self.refused: dict[Task, dict[WorkerRecord, int]] = {}
        self.failed: dict[str, str] = {}
        #: Why the last copy did not come that did not.
        self.why = ""


class Spreading(Departures):
    """Requests for copies, the active memory manager, and the part of a turn that deals with all copies."""

    def __init__(self, id: str, settings: Settings | None = None) -> None:
        super().__init__(id, settings)
        self._spreads: list[Spread] = []
        told = self.settings
        self.amm = MemoryManager(self.state, self.copying, self._log, told.amm_interval, told.amm_running)

    def _step_copies(self, now: float) -> None:
        """Deal with what was copied, what was not, and with all who want copies."""
        state = self.state
        self._more = self.amm.step(now)
        if state.touched is None:
            return
        touched = list(state.touched)
        state.touched.clear()
        failures = self.copying.reconcile(touched, now)
        self._step_departures(failures, touched, now)
        for spread in tuple(self._spreads):
            self._step_spread(spread, failures, touched)
        if not (self.departures or self.copying.moves or self._spreads):
            state.touched = None
        else:
            self._more |= bool(state.touched)

    def _copies_due(self, now: float) -> float | None:
        """When :meth:`_step_copies` is to be called even if nothing happens."""
        due = [self.copying.deadline(), self.departures_due(), self.amm.deadline(), now if self._more else None]
        return min((at for at in due if at is not None), default=None)

    # -------------------------------------------------------------------------------------------- replicate

    def _on_replicate(self, client: ClientId, message: Replicate) -> None:
        spread = Spread(client, message.rid, message.workers, message.count, max(message.branching, 1))
        workers = self._targets(spread)
        if spread.count is None or spread.count > len(workers):
            spread.count = len(workers)
        for key in message.keys:
            task = self.state.tasks.get(key)
            if task is None or task.state is not TaskState.MEMORY or task.actor:
                what = "an actor" if task is not None and task.actor else "not in memory"
                spread.failed[key] = f"it is {what}"
            elif workers:
                spread.left[task] = None
                self.state.wanted_copies[task] = max(self.state.wanted_copies.get(task, 1), spread.count)
            else:
                spread.failed[key] = f"none of the workers {message.workers} is there and takes data"
        self._start_spread(spread)

    def _start_spread(self, spread: Spread) -> None:
        self.copying.watch()
        self._spreads.append(spread)
        for task in tuple(spread.left):
            self._spread(spread, task)
        self._end_spread(spread)

    def _targets(self, spread: Spread) -> list[WorkerRecord]:
        names = spread.names
        return [
            worker
            for worker in self.state.workers.values()
            if worker.running and (names is None or any(worker.answers_to(name) for name in names))
        ]

    def _step_spread(self, spread: Spread, failures: list[Failure], touched: list[Task]) -> None:
        concerned: dict[Task, None] = {}
        for failure in failures:
            if failure.task in spread.left:
                refused = spread.refused.setdefault(failure.task, {})
                refused[failure.target] = refused.get(failure.target, 0) + failure.blame
                spread.why = failure.reason
                concerned[failure.task] = None
                if failure.broken or spread.count is None:
                    spread.failed[failure.task.key] = failure.reason
        concerned.update((task, None) for task in touched if task in spread.left)
        for task in concerned:
            self._spread(spread, task)
        self._end_spread(spread)

    def _spread(self, spread: Spread, task: Task) -> None:
        """Begin as many copies of ``task`` as its holders can serve now; it is done when there are enough."""
        moves = self.copying.moves.get(task, {})
        if spread.count is None:
            if not moves:
                del spread.left[task]
            return
        targets = self._targets(spread)
        holders = [worker for worker in task.who_has or () if worker.stays]
        wanted = min(spread.count, len(targets))
        there = sum(worker in holders for worker in targets)
        flying = sum(target in targets for target in moves)
        if task.state is not TaskState.MEMORY or task.key in spread.failed:
            spread.failed.setdefault(task.key, "it is not in memory any more")
            del spread.left[task]
            return
        if there >= wanted:
            del spread.left[task]
            return
        refused = spread.refused.get(task, {})
        free = [w for w in targets if w not in (task.who_has or ()) and w not in moves and refused.get(w, 0) < TRIES]
        free.sort(key=lambda worker: (refused.get(worker, 0), self.copying.projected(worker), worker.id))
        for target in free[: max(0, min(wanted - there - flying, spread.branching * len(holders) - flying))]:
            self.copying.begin(task, target)
            flying += 1
        if not flying:
            why = f" ({spread.why})" if spread.why else ""
            spread.failed[task.key] = f"{there} of {wanted} copies are there, and no other worker can have one{why}"
            del spread.left[task]

    def _end_spread(self, spread: Spread) -> None:
        if spread.left or spread not in self._spreads:
            return
        self._spreads.remove(spread)
        self._answer(spread.client, spread.rid, {"failed": spread.failed})

    # -------------------------------------------------------------------------------------------- rebalance

    def _on_rebalance(self, client: ClientId, message: Rebalance) -> None:
        spread = Spread(client, message.rid, message.workers, None, 1)
        keys = None if message.keys is None else set(message.keys)
        for key in keys or ():
            task = self.state.tasks.get(key)
            if task is None or task.state is not TaskState.MEMORY:
                spread.failed[key] = "it is not in memory"
        for task, source, target in self._plan_rebalance(self._targets(spread), keys):
            self.copying.begin(task, target, 0, source)
            spread.left[task] = None
        self._start_spread(spread)

    def _plan_rebalance(
        self, workers: list[WorkerRecord], keys: set[str] | None
    ) -> list[tuple[Task, WorkerRecord, WorkerRecord]]:
        """Which key goes from which worker to which, so that each has about the same part of its memory in use."""
        if len(workers) < 2:
            return []
        from_share, to_share, gap = self.settings.rebalance
        limited = all(worker.memory_limit for worker in workers)
        size = {worker: worker.memory_limit if limited else 1 for worker in workers}
        used = {worker: self.copying.projected(worker) for worker in workers}
        mean = sum(used.values()) / sum(size.values())
        half = gap / 2 if limited else _UNEVEN * mean
        givers = [w for w in workers if used[w] / size[w] > max(mean + half, from_share if limited else 0.0)]
        plan: list[tuple[Task, WorkerRecord, WorkerRecord]] = []
        for giver in sorted(givers, key=lambda w: (-used[w] / size[w], w.id)):
            for task in giver.has_what:
                if used[giver] / size[giver] <= mean:
                    break
                if task.actor or task in self.copying.moves or (keys is not None and task.key not in keys):
                    continue
                nbytes = max(task.nbytes, 0)
                takers = [w for w in workers if w is not giver and w not in (task.who_has or ())]
                taker = min(takers, key=lambda w: (used[w] / size[w], w.id), default=None)
                if taker is None or used[taker] / size[taker] >= mean - half:
                    continue
                most = min(mean + half, to_share if limited else mean + half)
                if not nbytes or (used[taker] + nbytes) / size[taker] > most:
                    continue
                used[giver] -= nbytes
                used[taker] += nbytes
                plan.append((task, giver, taker))
        return plan

    # -------------------------------------------------------------------------------------------- memory manager

    def _on_manage(self, client: ClientId, message: ManageMemory) -> None:
        amm = self.amm
        if message.what == "start":
            amm.start()
        elif message.what == "stop":
            amm.stop()
        elif message.what == "run_once":
            amm.run_once()
        elif message.what != "running":
            self._answer(client, message.rid, None, f"the memory manager cannot {message.what!r}")
            return
        self._answer(client, message.rid, amm.running)
