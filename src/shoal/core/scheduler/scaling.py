"""How many workers there should be, and which of them are needed least. Reads the state and changes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from shoal.core.scheduler.roster import WorkerRecord
from shoal.core.scheduler.task import TaskState
from shoal.errors import UsageError

if TYPE_CHECKING:
    from shoal.core.scheduler.fleet import Fleet
    from shoal.core.scheduler.tables import Tables

#: The share of all memory limits past which more workers are asked for.
_FULL: Final = 0.6
#: What is wanted beyond what was busy of late, so that there is room for a little more; executions that are looked at.
_SPARE: Final = 1.1
_ROWS: Final = 5_000
#: States of tasks that a further worker could take.
_READY: Final = (TaskState.PROCESSING, TaskState.QUEUED, TaskState.NO_WORKER)


def work(state: Tables) -> tuple[float, int]:
    """Seconds of work that could be done now or is being done, and the tasks that it consists of."""
    seconds, count = 0.0, 0
    unknown = state.settings.unknown_duration
    for group in state.groups.values():
        ready = sum(group.states[one] for one in _READY)
        count += ready
        seconds += ready * (unknown if group.prefix.duration is None else group.prefix.duration)
    return seconds, count


def load(state: Tables, seconds: float) -> float:
    """Threads that were busy, on average, within the last ``seconds``."""
    now = state.now + state.settings.epoch
    since = now - seconds
    busy = 0.0
    for count, row in enumerate(reversed(state.stream), 1):
        start, stop = row[4], row[5]
        busy += max(0.0, min(stop, now) - max(start, since))
        if stop < since:
            break
        if count >= _ROWS:  # so many short tasks: they stand for those before them
            return busy / max(now - start, 1e-3)
    return busy / seconds


def adaptive_target(core: Fleet, target_duration: float = 5.0) -> dict[str, Any]:
    """Return how many workers there should be, so that the work that is there is done within ``target_duration``.

    Returns
    -------
    dict
        ``target``, and what it follows from: ``seconds`` of work in ``tasks`` tasks, ``busy`` threads of late,
        ``nbytes`` of results, and the number of ``workers``.
    """
    state = core.state
    workers = [worker for worker in state.workers.values() if worker.stays]
    seconds, count = work(state)
    busy = load(state, 2 * target_duration)
    used = sum(worker.nbytes for worker in workers)
    threads = sum(worker.nthreads for worker in workers) / len(workers) if workers else 1.0
    # A few long tasks do not get faster by many workers.
    wanted = min(math.ceil(seconds / target_duration / threads), math.ceil(count / threads))
    if count:
        wanted = max(1, wanted)
    limits = [worker.memory_limit for worker in workers]
    if workers and all(limits) and used > _FULL * sum(limits):
        wanted = max(wanted, math.ceil(used / _FULL / (sum(limits) / len(limits))))
    if wanted < len(workers):
        # What was busy of late is not let go: on a steady load, the number of workers is steady.
        wanted = max(wanted, min(len(workers), math.ceil(_SPARE * busy / threads)))
        wanted = len(workers) - len(to_close(core, minimum=wanted))
    return {
        "target": wanted, "seconds": round(seconds, 3), "tasks": count, "busy": round(busy, 2), "nbytes": used,
        "workers": len(workers),
    }  # fmt: skip


def to_close(
    core: Fleet,
    memory_ratio: float | None = None,
    n: int | None = None,
    key: Any = None,
    minimum: int | None = None,
    target: int | None = None,
    attribute: str = "address",
) -> list[WorkerRecord]:
    """Return the workers that are needed least: the idle ones first, then those that hold the fewest bytes.

    Parameters
    ----------
    memory_ratio
        How many times as much memory as there are results is to be left (2), where ``n`` and ``target`` do not say.
    n, target
        How many are to go, or to stay. Without them, idle workers that there is no work for.
    key
        Groups of workers go together: a function of the worker, or the name of one of its attributes.
    minimum
        How many are to stay at least.
    attribute
        Only checked here; it is what others are told of each.

    Raises
    ------
    UsageError
        If an argument makes no sense, naming it.
    """
    state = core.state
    for name, value in (("n", n), ("target", target), ("minimum", minimum)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            raise UsageError(f"{name} must be a number of workers from 0 on, got {value!r}")
    if attribute not in WorkerRecord.__slots__ and attribute not in ("address", "host"):
        raise UsageError(f"attribute must be one of a worker's, as 'address', 'name' or 'host', got {attribute!r}")
    staying = [worker for worker in state.workers.values() if worker.stays]
    candidates = staying if core.downscaling is None else core.downscaling(staying)
    group_of = _grouping(key)
    groups: dict[Any, list[WorkerRecord]] = {}
    for worker in candidates:
        groups.setdefault(group_of(worker), []).append(worker)
    asked = n is not None or target is not None
    most = len(staying) - (minimum or 0)
    if n is not None:
        most = min(most, n)
    if target is not None:
        most = min(most, len(staying) - target)
    if not asked and (state.queue.size or (len(state.stranded) and not staying)):
        return []
    used = sum(worker.nbytes for worker in staying)
    limits = [worker.memory_limit for worker in staying]
    room = sum(limits) - (2.0 if memory_ratio is None else memory_ratio) * used
    by_need = sorted(groups.values(), key=lambda group: (_business(group), sum(w.nbytes for w in group), group[0].id))
    chosen: list[WorkerRecord] = []
    for group in by_need:
        if len(chosen) + len(group) > most:
            continue
        if not asked and _business(group):
            break
        room -= sum(worker.memory_limit for worker in group)
        if all(limits) and room < 0 and used and (memory_ratio is not None or not asked):
            break
        chosen += group
    return chosen


def _business(group: list[WorkerRecord]) -> int:
    """Tasks that a group of workers has."""
    return sum(len(worker.processing) for worker in group)


def _grouping(key: Any) -> Callable[[WorkerRecord], Any]:
    if key is None:
        return lambda worker: worker.id
    if callable(key):
        return key  # type: ignore[no-any-return]
    if isinstance(key, str) and (key in WorkerRecord.__slots__ or key == "address"):
        return lambda worker: getattr(worker, key)
    raise UsageError(f"key must be a function of a worker or the name of an attribute of one, got {key!r}")
