"""Tasks that wait for a free worker, workers that have room, and tasks that no worker may run.

The first two are heaps, and lazy: an entry that has become wrong is dropped or corrected when it comes to the top, so
that no change elsewhere has to find it. Each operation is O(log n).
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush, heapreplace
from typing import Any, Final

from shoal.core.scheduler import placement
from shoal.core.scheduler.roster import WorkerRecord
from shoal.core.scheduler.task import Task, TaskState

#: Entries of tasks that left a queue which may stay in it, beside as many as there are others.
_STALE: Final = 64


class TaskQueue:
    """Tasks in state ``queued``, by priority."""

    __slots__ = ("_heap", "_seq", "size")

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[int, int, int], int, Task]] = []
        self._seq = 0
        self.size = 0

    def push(self, task: Task) -> None:
        self._seq += 1
        task.seq = self._seq
        self.size += 1
        heappush(self._heap, (task.priority, self._seq, task))

    def discard(self, task: Task) -> None:
        """Take note that ``task`` has left the queued state; its entry goes when it surfaces."""
        task.seq = 0
        self.size -= 1
        if len(self._heap) > 2 * self.size + _STALE:
            self._heap = [entry for entry in self._heap if entry[2].seq == entry[1]]
            heapify(self._heap)

    def peek(self) -> Task | None:
        heap = self._heap
        while heap:
            _, seq, task = heap[0]
            if task.seq == seq and task.state is TaskState.QUEUED:
                return task
            heappop(heap)
        return None

    def tasks(self) -> list[Task]:
        """All queued tasks, in no particular order."""
        return [task for _, seq, task in self._heap if task.seq == seq and task.state is TaskState.QUEUED]


class OpenWorkers:
    """Running workers that may be given more tasks, the least loaded first.

    A worker has room while it has fewer tasks than ``worker-saturation`` asks for, or would have no more work than
    ``backlog`` seconds with what it is given: short tasks are sent ahead in bulk, long ones wait on the scheduler for
    whoever is free first.
    """

    __slots__ = ("_heap", "_limit", "backlog")

    def __init__(self, backlog: float) -> None:
        #: By load when they were noted; those whose load was noted anew since are stale.
        self._heap: list[tuple[float, str, WorkerRecord]] = []
        #: How many entries there may be before the stale ones are swept.
        self._limit = _STALE
        self.backlog = backlog

    def has_room(self, worker: WorkerRecord, expected: float = 0.0) -> bool:
        """Whether ``worker`` may be given one more task, which is expected to take so many seconds."""
        if not worker.running:
            return False
        return worker.n_runnable < worker.slots or worker.occupancy + expected < self.backlog * worker.nthreads

    def note(self, worker: WorkerRecord) -> None:
        """Take note that ``worker`` may have room now, or has become idle."""
        load = worker.load
        if (worker.heap_load is None or load < 0.5 * worker.heap_load) and self.has_room(worker):
            worker.heap_load = load
            heappush(self._heap, (load, worker.id, worker))
            if len(self._heap) > self._limit:
                self._sweep()

    def _sweep(self, gone: WorkerRecord | None = None) -> None:
        """Keep one entry of each worker: stale ones that are behind the least loaded worker are not come by else."""
        kept = {entry[2]: entry for entry in self._heap if entry[2].heap_load == entry[0] and entry[2] is not gone}
        self._heap = list(kept.values())
        heapify(self._heap)
        self._limit = 2 * len(kept) + _STALE

    def forget(self, worker: WorkerRecord) -> None:
        """``worker`` is gone."""
        self._sweep(worker)

    def best(self, expected: float = 0.0) -> WorkerRecord | None:
        """The least loaded worker with room for a task that is expected to take so many seconds, or None."""
        heap = self._heap
        while heap:
            load, _, worker = heap[0]
            if worker.heap_load != load:
                heappop(heap)
            elif not self.has_room(worker, expected):
                heappop(heap)
                worker.heap_load = None
            elif load != (now := worker.load):
                worker.heap_load = now
                heapreplace(heap, (now, worker.id, worker))
            else:
                return worker
        return None


class Stranded:
    """Tasks in state ``no-worker``, with the time since when; those with the same restrictions stand together, so
    that a worker that comes is compared with each kind of task once."""

    __slots__ = ("_groups", "_untold")

    def __init__(self) -> None:
        self._groups: dict[Any, dict[Task, float]] = {}
        #: Kinds of which nobody was told, with the time since when there are any; the oldest first.
        self._untold: dict[Any, float] = {}

    def add(self, task: Task, now: float) -> None:
        kind = placement.restrictions(task)
        if kind not in self._groups:
            self._groups[kind] = {}
            self._untold[kind] = now
        self._groups[kind][task] = now

    def discard(self, task: Task) -> None:
        kind = placement.restrictions(task)
        group = self._groups[kind]
        del group[task]
        if not group:
            del self._groups[kind]
            self._untold.pop(kind, None)

    def untold_since(self) -> float | None:
        """Since when there are some of which nobody was told."""
        return next(iter(self._untold.values()), None)

    def tell(self, now: float, after: float) -> list[Task]:
        """One task of each kind of which nobody was told, and that has been there for so long; now somebody is."""
        kinds = [kind for kind, since in self._untold.items() if since + after <= now]
        for kind in kinds:
            del self._untold[kind]
        return [next(iter(self._groups[kind])) for kind in kinds]

    def __contains__(self, task: Task) -> bool:
        return task in self._groups.get(placement.restrictions(task), ())

    def __len__(self) -> int:
        return sum(len(group) for group in self._groups.values())

    def __iter__(self) -> Iterator[Task]:
        for group in self._groups.values():
            yield from group

    def items(self) -> Iterator[tuple[Task, float]]:
        """Each, with the time since when."""
        for group in self._groups.values():
            yield from group.items()

    def candidates(self, worker: WorkerRecord) -> list[Task]:
        """Those that ``worker`` may run, or could if it had the pool of threads that they ask for."""
        return [
            task
            for group in self._groups.values()
            if placement.allowed(next(iter(group)), worker, pools=False)
            for task in group
        ]

    def first(self) -> float | None:
        """Since when the one that has waited longest has been here."""
        return min((next(iter(group.values())) for group in self._groups.values()), default=None)

    def overdue(self, now: float, timeout: float) -> list[list[Task]]:
        """Those that have been here for ``timeout``, by kind."""
        found = []
        for group in self._groups.values():
            kind = []
            for task, entered in group.items():  # in the order in which they came
                if entered + timeout > now:
                    break
                kind.append(task)
            if kind:
                found.append(kind)
        return found
