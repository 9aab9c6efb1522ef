"""The scheduler's state as plain values, and back: what a dump holds, so that it can be asked as the live one is."""

from __future__ import annotations

from typing import Any

from shoal.core.amounts import offered
from shoal.core.scheduler.roster import ClientRecord, NannyRecord, WorkerRecord, WorkerState
from shoal.core.scheduler.scarce import Claims, Shape
from shoal.core.scheduler.settings import Settings
from shoal.core.scheduler.state import SchedulerState
from shoal.core.scheduler.task import Task, TaskState
from shoal.ids import ClientId, SlotId, WorkerId
from shoal.messages import Options, TaskError

_OPTIONS = ("priority", "retries", "workers", "allow_other_workers", "resources", "executor", "actor", "apart")
_PLAIN = (
    "unknown", "n_waiting", "n_waiters", "long_running", "attempt", "edition", "estimate", "nbytes", "type", "peak",
    "retries", "deaths", "origin",
)  # fmt: skip
_WORKER = (
    "name", "slot", "addresses", "host", "pid", "nthreads", "memory_limit", "local_directory", "resources",
    "executors", "slots", "n_ahead", "n_long_running", "n_stealing", "n_stolen", "occupancy", "nbytes",
    "metrics", "last_seen", "lingering", "lowered",
)  # fmt: skip


def save(state: SchedulerState) -> dict[str, Any]:
    """Return what ``state`` holds, without functions, arguments and results."""
    return {
        "now": state.now,
        "tasks": {task.key: _save_task(task) for task in state.tasks.values()},
        "workers": {worker.id: _save_worker(worker) for worker in state.workers.values()},
        "clients": {
            client.id: {"name": client.name, "wants": [task.key for task in client.wants]}
            for client in state.clients.values()
        },
        "nannies": {
            nanny.id: {"name": nanny.name, "host": nanny.host, "pid": nanny.pid, "worker": nanny.worker}
            for nanny in state.nannies.values()
        },
        "stranded": [[task.key, since] for task, since in state.stranded.items()],
        "story": [list(row) for row in state.story],
        "stream": [list(row) for row in state.stream],
        "transitions": state.transitions,
        "attempts": state.attempts,
    }


def _save_task(task: Task) -> dict[str, Any]:
    options = task.options
    return {
        "state": task.state.label,
        "function": task.fn,
        "options": None if options is None else {name: getattr(options, name) for name in _OPTIONS},
        "dependencies": [dep.key for dep in task.deps],
        "priority": list(task.priority),
        "worker": task.worker and task.worker.id,
        "thief": task.thief and task.thief.id,
        "who_has": [worker.id for worker in task.who_has or ()],
        "error": _save_error(task.error),
        **{name: getattr(task, name) for name in _PLAIN},
    }


def _save_error(error: Any) -> Any:
    if isinstance(error, TaskError):
        return {"text": error.text, "traceback": error.traceback_text}
    return error


def _save_worker(worker: WorkerRecord) -> dict[str, Any]:
    return {
        "state": worker.state.label,
        "processing": [task.key for task in worker.processing],
        "has_what": [task.key for task in worker.has_what],
        "claims": [
            [attempt, dict(shape.needs), shape.executor, in_thread]
            for attempt, (shape, in_thread) in worker.claims.items()
        ],
        **{name: getattr(worker, name) for name in _WORKER},
    }


def load(saved: dict[str, Any]) -> SchedulerState:
    """Return a state that answers questions as the saved one did. Nothing can be run on it."""
    state = SchedulerState(Settings(story_length=len(saved["story"]) or 1, stream_length=len(saved["stream"]) or 1))
    state.now, state.transitions, state.attempts = saved["now"], saved["transitions"], saved["attempts"]
    for id, values in saved["workers"].items():
        _load_worker(state, WorkerId(id), values)
    for key, values in saved["tasks"].items():
        _load_task(state, key, values)
    for key, values in saved["tasks"].items():
        _tie_task(state, state.tasks[key], values)
    for id, values in saved["workers"].items():
        worker = state.workers[WorkerId(id)]
        worker.processing = dict.fromkeys(state.tasks[key] for key in values["processing"])
        worker.has_what = dict.fromkeys(state.tasks[key] for key in values["has_what"])
        _load_claims(worker, values["claims"])
    for id, values in saved["clients"].items():
        client = state.clients[ClientId(id)] = ClientRecord(ClientId(id), values["name"])
        for key in values["wants"]:
            task = state.tasks[key]
            client.wants[task] = None
            task.who_wants = {**(task.who_wants or {}), client: None}
    for id, values in saved["nannies"].items():
        nanny = NannyRecord(SlotId(id), values["name"], values["host"], values["pid"])
        nanny.worker = values["worker"]
        state.nannies[nanny.id] = nanny
    for key, since in saved["stranded"]:
        state.stranded.add(state.tasks[key], since)
    state.story.extend(tuple(row) for row in saved["story"])
    state.stream.extend(tuple(row) for row in saved["stream"])
    return state


def _load_worker(state: SchedulerState, id: WorkerId, values: dict[str, Any]) -> None:
    worker = WorkerRecord(id, values["name"], SlotId(values["slot"]), values["addresses"], values["nthreads"], 1.0)
    for name in _WORKER:
        setattr(worker, name, values[name])
    worker.capacity = {resource: offered(amount) for resource, amount in worker.resources.items()}
    worker.state = next(one for one in WorkerState if one.label == values["state"])
    state.workers[id] = state.by_slot[worker.slot] = state.by_name[worker.name] = worker
    state.total_nthreads += worker.nthreads
    state.running_nthreads += worker.nthreads if worker.running else 0


def _load_claims(worker: WorkerRecord, claims: list[tuple[int, dict[str, int], str, bool]]) -> None:
    held = [(task.shape, not task.long_running) for task in worker.processing if task.shape is not None]
    for attempt, needs, executor, in_thread in claims:
        shape = Shape(tuple(needs.items()), executor, (), False)
        worker.claims[attempt] = (shape, in_thread)
        held.append((shape, in_thread))
    for shape, in_thread in held:
        Claims.take(worker, shape)
        if not in_thread:
            Claims.leave_thread(worker, shape)


def _load_task(state: SchedulerState, key: str, values: dict[str, Any]) -> None:
    task = state.add_task(key)
    for name in _PLAIN:
        setattr(task, name, values[name])
    task.fn = values["function"]
    task.options = None if values["options"] is None else Options(**values["options"])
    task.priority = tuple(values["priority"])
    if task.options is not None:
        task.shape = state.scarce.shape_of(task.options, state.workers.values())
    after = next(one for one in TaskState if one.label == values["state"])
    task.group.states[TaskState.RELEASED] -= 1
    task.group.states[after] += 1
    task.state = after
    error = values["error"]
    task.error = TaskError(None, None, error["text"], error["traceback"]) if isinstance(error, dict) else error
    if after is TaskState.QUEUED:
        (state.queue if task.shape is None else task.shape.queue).push(task)


def _tie_task(state: SchedulerState, task: Task, values: dict[str, Any]) -> None:
    task.deps = tuple(state.tasks[key] for key in values["dependencies"])
    for dep in task.deps:
        if dep.dependents is None:
            dep.dependents = {}
        dep.dependents[task] = None
    if values["worker"] is not None:
        task.worker = state.workers[WorkerId(values["worker"])]
    if values["thief"] is not None:
        task.thief = state.workers.get(WorkerId(values["thief"]))
    if values["who_has"]:
        task.who_has = dict.fromkeys(state.workers[WorkerId(id)] for id in values["who_has"])
