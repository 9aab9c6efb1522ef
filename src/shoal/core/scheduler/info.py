"""Questions about the scheduler's state, answered with plain values. Nothing here changes anything.

How to add one: write a function ``(core, **args) -> msgpack-able value`` and put it into :data:`QUESTIONS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

from shoal.core.scheduler import arguments, explain, scaling
from shoal.core.scheduler.roster import NannyRecord, WorkerRecord
from shoal.core.scheduler.snapshot import save
from shoal.core.scheduler.task import Task, TaskState
from shoal.errors import UsageError

if TYPE_CHECKING:
    from shoal.core.scheduler.fleet import Fleet
    from shoal.core.scheduler.reactor import SchedulerCore


def answer(core: SchedulerCore, what: str, args: dict[str, Any]) -> Any:
    """Answer the question ``what``.

    Raises
    ------
    UsageError
        If there is no such question.
    """
    function = QUESTIONS.get(what)
    if function is None:
        raise UsageError(f"the scheduler cannot be asked for {what!r}; it knows {', '.join(sorted(QUESTIONS))}")
    return function(core, **arguments.check(args))


def _workers(core: SchedulerCore, names: Iterable[str] | None) -> list[WorkerRecord]:
    workers = core.state.workers.values()
    if names is None:
        return list(workers)
    wanted = list(names)
    return [w for w in workers if any(w.answers_to(name) for name in wanted)]


def _tasks(core: SchedulerCore, keys: Iterable[str] | None) -> Iterable[Task]:
    if keys is None:
        return core.state.tasks.values()
    return [core.state.tasks[key] for key in keys if key in core.state.tasks]


def identity(core: SchedulerCore, n_workers: int = -1) -> dict[str, Any]:
    """Who the scheduler is, which workers it has, how workers ended (by cause), and its nannies by name."""
    workers = list(core.state.workers.values())
    if n_workers >= 0:
        workers = workers[:n_workers]
    return {
        "type": "Scheduler",
        "id": core.id,
        "started": core.started,
        "n_workers": len(core.state.workers),
        "total_threads": core.state.total_nthreads,
        "total_memory": sum(w.memory_limit for w in core.state.workers.values()),
        "workers": {w.address: worker_identity(core, w) for w in workers},
        "deaths": dict(core.deaths),
        "full_links": core.owing.told(core.state.now),
        "nannies": {nanny.name: nanny_identity(core, nanny) for nanny in core.state.nannies.values()},
    }


def nanny_identity(core: SchedulerCore, nanny: NannyRecord) -> dict[str, Any]:
    """How the workers of a nanny ended, by cause, and seconds from each death until the next worker was there."""
    return {
        "address": nanny.address,
        "host": nanny.host,
        "pid": nanny.pid,
        "worker": core.state.workers[nanny.worker].address if nanny.worker in core.state.workers else None,
        "restarts": nanny.restarts,
        "deaths": dict(nanny.deaths),
        "last_death": nanny.last_death,
        "recoveries": list(nanny.recoveries),
    }


def worker_identity(core: Fleet, worker: WorkerRecord) -> dict[str, Any]:
    return {
        "type": "Worker",
        "id": worker.name,
        "server_id": worker.id,
        "name": worker.name,
        "host": worker.host,
        "pid": worker.pid,
        "nthreads": worker.nthreads,
        "memory_limit": worker.memory_limit,
        "resources": dict(worker.resources),
        "executors": dict(worker.executors),
        "local_directory": worker.local_directory,
        "last_seen": worker.last_seen,
        "status": worker.state.label,
        "nanny": core.state.nannies[worker.slot].address if worker.slot in core.state.nannies else None,
        "metrics": worker.metrics,
        "nbytes": worker.nbytes,
        "processing": len(worker.processing),
        "lingering": len(worker.lingering),
        "in_memory": len(worker.has_what),
        "occupancy": worker.occupancy,
    }


def who_has(core: SchedulerCore, keys: list[str] | None = None) -> dict[str, list[str]]:
    """Addresses of the workers that hold each key."""
    found = {task.key: [w.address for w in task.who_has or ()] for task in _tasks(core, keys)}
    for key in keys or ():
        found.setdefault(key, [])
    return found


def holders(core: SchedulerCore, keys: list[str]) -> dict[str, list[list[Any]]]:
    """As :func:`who_has`, with ids and all addresses, for those who will fetch."""
    return {task.key: [[w.id, w.addresses] for w in task.who_has or ()] for task in _tasks(core, keys)}


def has_what(core: SchedulerCore, workers: list[str] | None = None) -> dict[str, list[str]]:
    return {w.address: [task.key for task in w.has_what] for w in _workers(core, workers)}


def nthreads(core: SchedulerCore, workers: list[str] | None = None) -> dict[str, int]:
    return {w.address: w.nthreads for w in _workers(core, workers)}


def processing(core: SchedulerCore, workers: list[str] | None = None) -> dict[str, list[str]]:
    return {w.address: [task.key for task in w.processing] for w in _workers(core, workers)}


def nbytes(core: SchedulerCore, keys: list[str] | None = None, summary: bool = True) -> dict[str, int]:
    found: dict[str, int] = {}
    for task in _tasks(core, keys):
        if task.nbytes >= 0:
            name = task.group.prefix.name if summary else task.key
            found[name] = found.get(name, 0) + task.nbytes
    return found


def put_targets(core: SchedulerCore, workers: list[str] | None = None) -> list[list[Any]]:
    """Workers that may be given data, the emptiest first: id, addresses, threads."""
    usable = sorted((w for w in _workers(core, workers) if w.running), key=lambda w: (w.nbytes, w.id))
    return [[w.id, w.addresses, w.nthreads] for w in usable]


def adaptive_target(core: SchedulerCore, target_duration: float = 5.0) -> dict[str, Any]:
    """See :func:`shoal.core.scheduler.scaling.adaptive_target`."""
    return scaling.adaptive_target(core, target_duration)


def workers_to_close(core: SchedulerCore, attribute: str = "address", **criteria: Any) -> list[Any]:
    """See :func:`shoal.core.scheduler.scaling.to_close`: an attribute of each."""
    return [getattr(worker, attribute) for worker in scaling.to_close(core, attribute=attribute, **criteria)]


def events(core: SchedulerCore, topic: str | None = None) -> Any:
    """Events of a topic as (seconds since 1970, message), or of all topics, by topic."""
    if topic is not None:
        return list(core.topics.events.get(topic, ()))
    return {name: list(kept) for name, kept in core.topics.events.items()}


def groups(core: SchedulerCore) -> dict[str, dict[str, Any]]:
    """What is known of each task group: its prefix, tasks in each state, bytes and seconds in all."""
    return {
        group.name: {
            "prefix": group.prefix.name,
            "states": {state.label: group.states[state] for state in TaskState if group.states[state]},
            "nbytes": group.nbytes,
            "seconds": group.seconds,
        }
        for group in core.state.groups.values()
    }


def prefixes(core: SchedulerCore) -> dict[str, dict[str, Any]]:
    """What was learned of each task prefix: averages of seconds and bytes, how many finished and failed."""
    return {
        prefix.name: {
            "duration": prefix.duration,
            "nbytes": prefix.nbytes,
            "finished": prefix.finished,
            "failures": prefix.failures,
        }
        for prefix in core.state.prefixes.values()
    }


def task_stream(
    core: SchedulerCore, start: float | None = None, stop: float | None = None, count: int | None = None
) -> list[list[Any]]:
    """Executions that ended between two times (seconds since 1970), the last ``count`` of them, oldest first."""
    rows = [
        list(row)
        for row in core.state.stream
        if (start is None or row[5] >= start) and (stop is None or row[4] <= stop)
    ]
    return rows if count is None else rows[max(0, len(rows) - count) :]


def spans(core: SchedulerCore) -> list[dict[str, Any]]:
    """All spans, the oldest first, each with what is inside of it."""
    return [span.merged() for span in core.spans.spans.values()]


def memory(core: SchedulerCore) -> dict[str, int]:
    """Bytes of all workers together: of their processes, of results in memory, the rest, and of what is on disk."""
    told = [worker.metrics.get("memory", {}) for worker in core.state.workers.values() if worker.metrics]
    names = {"process": "process", "managed": "managed", "unmanaged": "unmanaged", "spilled": "disk"}
    found = {name: sum(one.get(field, 0) for one in told) for name, field in names.items()}
    found["optimistic"] = found["managed"] + found["unmanaged"]
    return found


def snapshot(core: SchedulerCore) -> dict[str, Any]:
    """All that the scheduler knows, as plain values; see :mod:`shoal.core.scheduler.snapshot`."""
    return save(core.state)


def story(core: SchedulerCore, keys: list[str]) -> list[list[Any]]:
    return [list(row) for row in core.state.story_of(*keys)]


def why(core: SchedulerCore, key: str) -> str:
    """How a task stands, in words."""
    return explain.why(core.state, key, core.state.now, core.owing.peers)


QUESTIONS: Final[dict[str, Callable[..., Any]]] = {
    "identity": identity,
    "who_has": who_has,
    "holders": holders,
    "has_what": has_what,
    "nthreads": nthreads,
    "processing": processing,
    "nbytes": nbytes,
    "put_targets": put_targets,
    "groups": groups,
    "prefixes": prefixes,
    "task_stream": task_stream,
    "adaptive_target": adaptive_target,
    "workers_to_close": workers_to_close,
    "events": events,
    "snapshot": snapshot,
    "spans": spans,
    "memory": memory,
    "story": story,
    "why": why,
}
