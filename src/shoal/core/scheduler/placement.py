"""Where a task goes: a pure choice that reads the state and changes nothing.

A task without inputs of any size goes to the least loaded worker with room. One with inputs goes where it would start
soonest:
the wait for a thread there plus the time to bring the inputs that are not there. Only the holders of its inputs and
the least loaded worker are compared, never all workers. Ties go by bytes held, then by id.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from shoal.core.scheduler.roster import WorkerRecord
from shoal.core.scheduler.task import Task, TaskState

if TYPE_CHECKING:
    from shoal.core.scheduler.tables import Tables

#: Holders of one input that are looked at; an input with more copies than this is nearly everywhere.
HOLDERS_COMPARED: Final = 16
#: Workers that are compared for a restricted task, and kinds of restrictions whose workers are remembered.
ABLE_COMPARED: Final = 32
KINDS_REMEMBERED: Final = 1000
#: Bytes to be brought for a task that may run anywhere, at most.
ROOTISH_BYTES: Final = 50_000
#: Seconds that one transfer takes before its first byte.
TRANSFER_LATENCY: Final = 0.001


#: Seconds that an input costs at least which has to come by way of the scheduler.
ROUND_LATENCY: Final = 0.5


def is_cut_off(state: Tables, worker: WorkerRecord, task: Task) -> bool:
    """Whether ``worker`` can reach none of those that hold ``task``."""
    return all(state.cuts.between(worker.id, holder.id, state.now) for holder in task.who_has or ())


def is_restricted(task: Task) -> bool:
    """Whether not every worker may run ``task``."""
    options = task.options
    return options is not None and bool(options.workers or options.resources or options.executor)


def allowed(task: Task, worker: WorkerRecord, pools: bool = True) -> bool:
    """Whether ``worker`` may run ``task``, by its restrictions, the worker's pools and its total resources.

    ``pools=False``: whatever pools of threads it has.
    """
    options = task.options
    if options is None:
        return True
    if task.shape is not None:
        return task.shape.allows(worker, pools)
    if options.resources and any(worker.resources.get(name, 0) < need for name, need in options.resources.items()):
        return False
    if pools and options.executor and options.executor not in worker.executors:
        return False
    return (
        not options.workers or options.allow_other_workers or any(worker.answers_to(name) for name in options.workers)
    )


def lacks_pool(state: Tables, task: Task) -> bool:
    """Whether ``task`` asks for a pool of threads that no worker has or ever had, and nothing else is in its way."""
    options = task.options
    if options is None or not options.executor or options.executor in state.pools:
        return False
    return any(allowed(task, worker, pools=False) for worker in state.workers.values())


def is_rootish(state: Tables, task: Task) -> bool:
    """Whether it matters little where ``task`` runs: it has no inputs, or only such as cost next to nothing to bring.

    Those are a few that very many tasks share, if what it takes to bring them to all workers is little for each of
    those tasks. What splits a large value into many parts is not among them: it stays with the value.
    """
    if not task.deps:
        return True
    if len(task.deps) > 4:
        return False
    many = 2 * state.total_nthreads + 4
    size = 0.0
    for dep in task.deps:
        sharing = len(dep.dependents or ())
        if sharing <= many:
            return False
        if 2 * sharing < task.group.known:
            size += dep.nbytes  # one of many that such tasks have: each is brought for some of them only
        else:
            size += dep.nbytes * max(0, len(state.workers) - len(dep.who_has or ())) / sharing
    return size <= ROOTISH_BYTES


def ahead(state: Tables, task: Task) -> WorkerRecord | None:
    """Return the worker that is to compute all inputs which a waiting task lacks, where it may have the task at once.

    Only where nothing is given up by it: the inputs that are there are there, no input has other tasks that need it
    (those should spread), and no other worker is much less loaded.
    """
    if is_restricted(task):
        return None
    worker: WorkerRecord | None = None
    for dep in task.deps:
        if dep.state is TaskState.PROCESSING:
            if (worker is not None and dep.worker is not worker) or len(dep.dependents or ()) > 1:
                return None
            worker = dep.worker
        elif dep.state is not TaskState.MEMORY:
            return None
    if worker is None or not worker.running:
        return None
    if any(dep.state is TaskState.MEMORY and worker not in (dep.who_has or ()) for dep in task.deps):
        return None
    least = state.open.best()
    if least is not None and worker.load > least.load + state.settings.backlog + TRANSFER_LATENCY:
        return None
    return worker


def choose(state: Tables, task: Task) -> WorkerRecord | None:
    """Return the worker for a task with inputs or restrictions, or None where none may run it."""
    if is_restricted(task):
        return soonest(state, task, _some_allowed(state, task))
    found: dict[WorkerRecord, None] = {}
    for dep in task.deps:
        for worker in islice(dep.who_has or (), HOLDERS_COMPARED):
            if worker.running:
                found[worker] = None
    least = state.open.best()
    if least is not None:
        found[least] = None
    if not found:
        found = dict.fromkeys(w for w in state.workers.values() if w.running)
    return soonest(state, task, found)


def _some_allowed(state: Tables, task: Task) -> Iterable[WorkerRecord]:
    """Workers that may run a restricted task: all, or where they are many those that hold its inputs and some others.

    Tasks with the same restrictions share one list, which lasts until a worker comes, goes or pauses.
    """
    kind = restrictions(task)
    able = state.able.get(kind)
    if able is None:
        able = [w for w in state.workers.values() if w.running and allowed(task, w)]
        options = task.options
        if options is not None and options.workers and options.allow_other_workers:
            able = [w for w in able if any(w.answers_to(name) for name in options.workers)] or able
        if len(state.able) >= KINDS_REMEMBERED:
            state.able.clear()
        state.able[kind] = able
    if len(able) <= 2 * ABLE_COMPARED:
        return able
    at = state.rotation = (state.rotation + ABLE_COMPARED) % len(able)
    found = dict.fromkeys(able[at : at + ABLE_COMPARED])
    for dep in task.deps:
        for worker in islice(dep.who_has or (), HOLDERS_COMPARED):
            if worker.running and allowed(task, worker):
                found[worker] = None
    return found


def restrictions(task: Task) -> Any:
    """What the tasks have in common that the same workers may run; None for those that all may."""
    options = task.options
    if options is None or not is_restricted(task):
        return None
    workers = tuple(options.workers or ())
    return workers, tuple((options.resources or {}).items()), options.allow_other_workers, options.executor


def soonest(state: Tables, task: Task, candidates: Iterable[WorkerRecord]) -> WorkerRecord | None:
    """The one of some workers where ``task`` would start soonest."""
    best: WorkerRecord | None = None
    best_cost: tuple[float, int, str] = (0.0, 0, "")
    cuts = state.cuts or None
    for worker in candidates:
        wait = worker.occupancy / worker.nthreads
        for dep in task.deps:
            if worker not in (dep.who_has or ()):
                wait += TRANSFER_LATENCY + max(dep.nbytes, 0) / state.bandwidth
                if cuts is not None and is_cut_off(state, worker, dep):
                    wait += ROUND_LATENCY + max(dep.nbytes, 0) / state.bandwidth
        cost = (wait, worker.nbytes, worker.id)
        if best is None or cost < best_cost:
            best, best_cost = worker, cost
    return best
