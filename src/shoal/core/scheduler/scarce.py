"""Tasks that take what workers have little of: abstract resources, and threads of named pools.

Tasks that take the same of the same workers have one *shape*, and one line in which they wait, by priority. A shape
knows which running workers may run such tasks at all (``able``), and which of them may have enough free at the moment
(``free``). The second is lazy: a worker that turns out to have too little is taken off, and comes back once anything is
given back there. So a worker that becomes free concerns the shapes that it was too full for, never the tasks in line.

A task is given to a worker only if what it takes is free there now, a thread included, and nobody's work is waited
for. What it takes is counted from the assignment until its worker says that it is free again, also where the task was
taken back and its thread is still at work (``WorkerRecord.claims``), and where it left its pool of threads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Final

from shoal.core.amounts import needs_of
from shoal.core.scheduler.queues import TaskQueue
from shoal.core.scheduler.roster import WorkerRecord
from shoal.core.scheduler.task import Task
from shoal.messages import Options

#: Workers that have enough free, of which one is chosen.
COMPARED: Final = 32
#: Shapes that are kept though nothing waits.
SHAPES_REMEMBERED: Final = 1000


class Shape:
    """What some tasks take, of which workers; those of them that wait; where they may go."""

    __slots__ = ("able", "executor", "forgotten", "free", "loose", "names", "needs", "preferred", "queue")

    def __init__(self, needs: tuple[tuple[str, int], ...], executor: str, names: tuple[str, ...], loose: bool) -> None:
        self.needs, self.executor = needs, executor
        #: Workers that may run them, or are preferred where ``loose``.
        self.names, self.loose = names, loose
        self.queue = TaskQueue()
        self.able: dict[WorkerRecord, None] = {}
        self.free: dict[WorkerRecord, None] = {}
        self.preferred: dict[WorkerRecord, None] = {}
        self.forgotten = False

    def allows(self, worker: WorkerRecord, pools: bool = True) -> bool:
        """Whether ``worker`` could run such a task if nothing else ran (``pools=False``: whatever pools it has)."""
        if any(worker.capacity.get(name, 0) < units for name, units in self.needs):
            return False
        if pools and self.executor and worker.executors.get(self.executor, 0) < 1:
            return False
        return not self.names or self.loose or any(worker.answers_to(name) for name in self.names)

    def fits(self, worker: WorkerRecord) -> bool:
        """Whether ``worker`` has enough free now, a thread included."""
        for name, units in self.needs:
            if worker.in_use.get(name, 0) + units > worker.capacity.get(name, 0):
                return False
        if self.executor:
            return worker.pools_in_use.get(self.executor, 0) < worker.executors.get(self.executor, 0)
        return worker.n_needy < worker.nthreads

    def enter(self, worker: WorkerRecord) -> None:
        """``worker`` takes tasks, and may run such."""
        self.able[worker] = self.free[worker] = None
        if self.loose and any(worker.answers_to(name) for name in self.names):
            self.preferred[worker] = None

    def leave(self, worker: WorkerRecord) -> None:
        """``worker`` takes no tasks."""
        self.able.pop(worker, None)
        self.free.pop(worker, None)
        self.preferred.pop(worker, None)


class Claims:
    """What tasks take of a worker, added and given back. All of it is on the worker's record."""

    @staticmethod
    def take(worker: WorkerRecord, shape: Shape) -> None:
        """A task of ``shape`` was assigned to ``worker``."""
        for name, units in shape.needs:
            worker.in_use[name] = worker.in_use.get(name, 0) + units
        if shape.executor:
            worker.pools_in_use[shape.executor] = worker.pools_in_use.get(shape.executor, 0) + 1
            worker.n_pooled += 1
        else:
            worker.n_needy += 1

    @staticmethod
    def leave_thread(worker: WorkerRecord, shape: Shape) -> None:
        """The task goes on outside of its pool: its thread is free, its resources are not."""
        if shape.executor:
            worker.pools_in_use[shape.executor] -= 1
            worker.n_pooled -= 1
        else:
            worker.n_needy -= 1

    @staticmethod
    def give(worker: WorkerRecord, shape: Shape, in_thread: bool) -> None:
        """The task holds nothing any more."""
        for name, units in shape.needs:
            worker.in_use[name] -= units
        if in_thread:
            Claims.leave_thread(worker, shape)


class Scarce:
    """All shapes, and the tasks that wait in their lines."""

    __slots__ = ("_shapes", "changed")

    def __init__(self) -> None:
        self._shapes: dict[Any, Shape] = {}
        #: Shapes of which some task may perhaps be assigned now.
        self.changed: dict[Shape, None] = {}

    def __iter__(self) -> Iterator[Shape]:
        return iter(self._shapes.values())

    @property
    def size(self) -> int:
        """Tasks in all lines."""
        return sum(shape.queue.size for shape in self._shapes.values())

    def shape_of(self, options: Options, workers: Iterable[WorkerRecord]) -> Shape | None:
        """The shape of tasks with these options; None where they take nothing of which there is little."""
        needs = needs_of(options.resources)
        if not needs and not options.executor:
            return None
        names = tuple(options.workers or ())
        kind = (needs, options.executor, names, options.allow_other_workers)
        shape = self._shapes.get(kind)
        if shape is None:
            if len(self._shapes) >= SHAPES_REMEMBERED:
                self._forget()
            shape = self._shapes[kind] = Shape(needs, options.executor, names, bool(names) and kind[3])
            for worker in workers:
                if worker.running and shape.allows(worker):
                    shape.enter(worker)
        return shape

    def _forget(self) -> None:
        kept = {kind: shape for kind, shape in self._shapes.items() if shape.queue.size}
        for shape in self._shapes.values():
            shape.forgotten = not shape.queue.size
        self._shapes = kept

    def push(self, task: Task) -> None:
        """``task``, which is queued, waits in the line of its shape."""
        assert task.shape is not None
        task.shape.queue.push(task)
        self.changed[task.shape] = None

    def enter(self, worker: WorkerRecord) -> None:
        """``worker`` takes tasks."""
        for shape in self._shapes.values():
            if shape.allows(worker):
                shape.enter(worker)
                self.changed[shape] = None

    def leave(self, worker: WorkerRecord) -> list[Task]:
        """``worker`` takes no tasks; return those that no other may run."""
        worker.shut.clear()
        alone: list[Task] = []
        for shape in self._shapes.values():
            shape.leave(worker)
            if not shape.able and shape.queue.size:
                alone += shape.queue.tasks()
        return alone

    def note(self, worker: WorkerRecord) -> None:
        """Something was given back on ``worker``."""
        if worker.shut:
            for shape in worker.shut:
                if not shape.forgotten:
                    shape.free[worker] = None
                    if shape.queue.size:
                        self.changed[shape] = None
            worker.shut.clear()

    def candidates(self, task: Task, shape: Shape) -> dict[WorkerRecord, None]:
        """Workers that have enough free for ``task``, with those that hold its inputs; or those that it prefers."""
        free = shape.free
        if shape.preferred:
            found = dict.fromkeys(w for w in shape.preferred if w in free and shape.fits(w))
            if found:
                return found
        found = {}
        for dep in task.deps:
            for worker in islice(dep.who_has or (), COMPARED):
                if worker in free and shape.fits(worker):
                    found[worker] = None
        full = []
        for worker in free:
            if not shape.fits(worker):
                full.append(worker)
            else:
                found[worker] = None
                if len(found) >= COMPARED:
                    break
        for worker in full:
            del free[worker]
            worker.shut[shape] = None
        return found
