"""Re-derive every index of the scheduler from first principles, and compare.

Run after every event in tests and simulation; on in production with ``distributed.scheduler.validate``.
"""

from __future__ import annotations

import math
from collections import Counter

from shoal.core.scheduler.roster import WorkerRecord
from shoal.core.scheduler.state import SchedulerState
from shoal.core.scheduler.task import Task, TaskState
from shoal.errors import InvariantViolation


def check(state: SchedulerState) -> None:
    """Compare all indexes with the records.

    Raises
    ------
    InvariantViolation
        At the first disagreement, with the story of the task concerned.
    """
    queued = 0
    functions: dict[str, int] = {}
    for key, task in state.tasks.items():
        _require(task.key == key, state, task, "is filed under another key")
        _check_task(state, task)
        queued += task.state is TaskState.QUEUED and task.shape is None
        if task.fn:
            functions[task.fn] = functions.get(task.fn, 0) + 1
    if queued != state.queue.size:
        raise InvariantViolation(f"{queued} tasks are queued, the queue counts {state.queue.size}")
    if queued and not state.running_nthreads:
        raise InvariantViolation(f"{queued} tasks are queued, and no worker takes any")
    for fn, record in state.functions.items():
        if record.n_tasks != functions.get(fn, 0):
            raise InvariantViolation(f"function {fn} counts {record.n_tasks} tasks, there are {functions.get(fn, 0)}")
    for task in state.stranded:
        _require(task.state is TaskState.NO_WORKER, state, task, "is stranded but not in no-worker")
    if state.running_nthreads != sum(w.nthreads for w in state.workers.values() if w.running):
        raise InvariantViolation(f"running_nthreads is {state.running_nthreads}")
    if state.total_nthreads != sum(w.nthreads for w in state.workers.values()):
        raise InvariantViolation(f"total_nthreads is {state.total_nthreads}")
    if set(state.by_slot.values()) != set(state.workers.values()) or set(state.by_name.values()) != set(
        state.workers.values()
    ):
        raise InvariantViolation("the workers by slot and by name are not the workers")
    thieves = Counter(task.thief.id for task in state.tasks.values() if task.thief is not None)
    for worker in state.workers.values():
        for task in worker.processing:
            _require(task.worker is worker, state, task, f"is in processing of {worker.name} but not assigned to it")
        for task in worker.has_what:
            _require(worker in (task.who_has or ()), state, task, f"is in has_what of {worker.name} only")
        nbytes = sum(max(task.nbytes, 0) for task in worker.has_what)
        ahead = sum(task.n_waiting > 0 for task in worker.processing)
        if worker.n_ahead != ahead:
            raise InvariantViolation(f"{worker!r} counts {worker.n_ahead} tasks ahead of their inputs, not {ahead}")
        seceded = sum(task.long_running for task in worker.processing)
        if worker.n_long_running != seceded:
            raise InvariantViolation(f"{worker!r} counts {worker.n_long_running} long-running tasks, not {seceded}")
        _check_claims(worker)
        stealing = thieves[worker.id]
        stolen = sum(task.thief is not None for task in worker.processing)
        if (worker.n_stealing, worker.n_stolen) != (stealing, stolen):
            raise InvariantViolation(
                f"{worker!r}: {worker.n_stealing} and {worker.n_stolen} thefts, {stealing}, {stolen}"
            )
        occupancy = sum(task.estimate for task in worker.processing) + sum(worker.lingering.values())
        if worker.nbytes != nbytes or not math.isclose(worker.occupancy, occupancy, abs_tol=1e-6):
            raise InvariantViolation(f"{worker!r}: nbytes should be {nbytes}, occupancy {occupancy}")
    _check_lines(state)
    for client in state.clients.values():
        for task in client.wants:
            _require(client in (task.who_wants or ()), state, task, f"is wanted by {client.id} on one side only")


def _check_claims(worker: WorkerRecord) -> None:
    """What is in use of a worker is what its tasks take, and not more than it has."""
    claims = [(t.shape, not t.long_running) for t in worker.processing if t.shape is not None]
    claims += worker.claims.values()
    in_use: Counter[str] = Counter()
    pools: Counter[str] = Counter()
    needy = 0
    for shape, in_thread in claims:
        in_use.update(dict(shape.needs))
        if in_thread and shape.executor:
            pools[shape.executor] += 1
        else:
            needy += in_thread
    if +Counter(worker.in_use) != in_use or +Counter(worker.pools_in_use) != pools:
        raise InvariantViolation(f"{worker!r} counts {worker.in_use}, {worker.pools_in_use}: {in_use}, {pools} in use")
    if (worker.n_needy, worker.n_pooled) != (needy, sum(pools.values())):
        raise InvariantViolation(f"{worker!r} counts {worker.n_needy}, {worker.n_pooled}: {needy} needy, {pools}")
    over = {name: units for name, units in in_use.items() if units > worker.capacity.get(name, 0)}
    if (over and not worker.lowered) or any(count > worker.executors.get(name, 0) for name, count in pools.items()):
        raise InvariantViolation(f"{worker!r} was given more than it has: {over or pools}")


def _check_lines(state: SchedulerState) -> None:
    """Each task that waits for something scarce is in its line, and the first of each has to wait."""
    waiting = Counter(t.shape for t in state.tasks.values() if t.state is TaskState.QUEUED and t.shape is not None)
    for shape in state.scarce:
        if shape.queue.size != waiting.pop(shape, 0):
            raise InvariantViolation(f"{shape.queue.size} tasks are counted in the line for {shape.needs}")
        able = {w for w in state.workers.values() if w.running and shape.allows(w)}
        if able != shape.able.keys() or not shape.free.keys() <= able:
            raise InvariantViolation(f"{able} may run what takes {shape.needs}, not {shape.able}")
        if any(w not in shape.free and shape not in w.shut for w in able):
            raise InvariantViolation(f"a worker is neither free nor full for what takes {shape.needs}")
        head = shape.queue.peek()
        if head is not None:
            free = [w for w in able if shape.fits(w)]
            _require(not free, state, head, f"waits, and {free} have all that it takes")
            _require(bool(able), state, head, "waits in line, and no worker may run it")
    if waiting:
        raise InvariantViolation(f"tasks wait in lines that are forgotten: {waiting}")


def _check_task(state: SchedulerState, task: Task) -> None:
    s = task.state
    _require(s is not TaskState.FORGOTTEN, state, task, "is forgotten but still known")
    _require((task.worker is not None) == (s is TaskState.PROCESSING), state, task, "assigned, or not processing")
    _require(bool(task.who_has) == (s is TaskState.MEMORY), state, task, "copies, or not in memory")
    _require((s is TaskState.ERRED) == (task.error is not None), state, task, "an error, or not erred")
    if task.worker is not None:
        _require(task in task.worker.processing, state, task, "is not in its worker's processing")
        _require(task.worker.id in state.workers, state, task, "is assigned to a worker that left")
    for worker in task.who_has or ():
        _require(task in worker.has_what, state, task, f"is not in has_what of {worker.name}")
    waiters = sum(1 for dependent in task.dependents or () if dependent.active)
    _require(task.n_waiters == waiters, state, task, f"counts {task.n_waiters} waiters, there are {waiters}")
    if task.active:
        missing = [dep.key for dep in task.deps if dep.state is not TaskState.MEMORY]
        if s is TaskState.WAITING:
            _require(task.n_waiting == len(missing), state, task, f"counts {task.n_waiting} missing, not {missing}")
            _require(bool(missing), state, task, "waits for nothing")
        elif s is TaskState.PROCESSING:
            _require(task.n_waiting == len(missing), state, task, f"counts {task.n_waiting} missing, not {missing}")
            for dep in task.deps:
                here = dep.worker is task.worker or dep.state is TaskState.MEMORY
                _require(here, state, task, f"was assigned ahead of {dep!r}, which is not computed there")
            _require(not missing or not task.estimate, state, task, "counts as work while it waits")
        else:
            _require(not missing, state, task, f"lacks {missing}")
        for dep in task.deps:
            _require(dep.active or dep.state is TaskState.MEMORY, state, task, f"needs {dep!r}, which is not under way")
    elif s is not TaskState.RELEASED:
        _require(task.needed, state, task, "is kept for nobody")
    else:
        _require(not task.needed, state, task, "is needed but released")
        _require(bool(task.dependents), state, task, "is released, and nothing depends on it")
    _require((s is TaskState.NO_WORKER) == (task in state.stranded), state, task, "stranded, or not in no-worker")
    for dep in task.deps:
        _require(task in (dep.dependents or ()), state, task, f"is not among the dependents of {dep.key}")


def _require(truth: bool, state: SchedulerState, task: Task, what: str) -> None:
    if not truth:
        told = "".join(f"\n  {row}" for row in state.story_of(task.key)[-20:])
        raise InvariantViolation(f"{task!r} {what}{told}")
