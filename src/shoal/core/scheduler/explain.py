"""Why a task is where it is, in words. Nothing here changes anything."""

from __future__ import annotations

from shoal.core.amounts import amount_of
from shoal.core.scheduler.placement import allowed, is_cut_off
from shoal.core.scheduler.scarce import Shape
from shoal.core.scheduler.tables import Tables
from shoal.core.scheduler.task import Task, TaskState
from shoal.ids import is_digest
from shoal.messages import TaskError, TaskSpec

#: Inputs that are named.
_NAMED = 3
#: Tasks of a chain of causes that are told.
_DEEP = 5


def why(state: Tables, key: str, now: float, full: dict[str, tuple[float, int]] | None = None) -> str:
    """Say how a task stands, what it waits for, where, and since when.

    ``full`` are peers that do not read what they are told, with the time since when and the bytes that were owed then.
    """
    task = state.tasks.get(key)
    if task is None:
        return f"{key!r} is not known here: it was never submitted, or everybody let go of it."
    lines = []
    for _ in range(_DEEP):
        lines.append(_one(state, task, now))
        if task.state is not TaskState.WAITING:
            break
        task = min((dep for dep in task.deps if dep.state is not TaskState.MEMORY), key=_progress)
    return " ".join([*lines, *_deaf(task, now, full or {})])


def _deaf(task: Task, now: float, full: dict[str, tuple[float, int]]) -> list[str]:
    """Who is concerned with ``task`` and does not read what it is told."""
    concerned = [(str(client.id), f"client {client.id}") for client in task.who_wants or ()]
    if task.worker is not None:
        concerned.append((task.worker.id, f"worker {task.worker.name}"))
    return [
        f"The link of {name} has been full for {now - full[peer][0]:.1f} s: it does not read, {full[peer][1]} bytes "
        "and more are owed to it."
        for peer, name in concerned
        if peer in full
    ]


def _progress(task: Task) -> tuple[bool, str]:
    """Inputs that have not started are the more telling ones."""
    return task.state is TaskState.PROCESSING, task.key


def _since(state: Tables, task: Task, now: float) -> str:
    for row in reversed(state.story):
        if row[0] == task.key:
            return f"for {max(0.0, now - row[5]):.1f} s"
    return "for longer than is remembered"


def _one(state: Tables, task: Task, now: float) -> str:
    since = _since(state, task, now)
    match task.state:
        case TaskState.MEMORY:
            where = ", ".join(w.name for w in task.who_has or ())
            return f"{task.key!r} is done, {since}: its result ({task.nbytes} bytes) is on {where}."
        case TaskState.ERRED:
            text = task.error.text if isinstance(task.error, TaskError) else f"its workers died: {task.error}"
            cause = "" if task.origin == task.key else f" its input {task.origin!r} failed:"
            return f"{task.key!r} failed:{cause} {text}"
        case TaskState.PROCESSING:
            return _processing(task, since) + _cut_off(state, task, now)
        case TaskState.QUEUED if task.shape is not None:
            return f"{task.key!r} waits, {since}: {_in_line(task, task.shape)}."
        case TaskState.QUEUED:
            before = sum(other < task for other in state.queue.tasks())
            return (
                f"{task.key!r} waits, {since}, until one of {len(state.workers)} workers has room; {before} of "
                f"{state.queue.size} queued tasks are before it."
            )
        case TaskState.NO_WORKER:
            return f"{task.key!r} waits, {since}: {no_worker(state, task)}."
        case TaskState.WAITING:
            missing = [dep for dep in task.deps if dep.state is not TaskState.MEMORY]
            named = ", ".join(f"{dep.key!r} ({dep.state.label})" for dep in missing[:_NAMED])
            more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
            return f"{task.key!r} waits, {since}, for {len(missing)} of {len(task.deps)} inputs: {named}{more}."
        case _:
            return f"{task.key!r} is wanted by nobody, {since}; it is known because others were made of it."


def _cut_off(state: Tables, task: Task, now: float) -> str:
    """Which inputs the worker of ``task`` cannot fetch from those that hold them, and what is done about it."""
    worker, told = task.worker, []
    assert worker is not None
    for dep in task.deps if state.cuts else ():
        if dep.state is not TaskState.MEMORY or worker in (dep.who_has or ()) or not is_cut_off(state, worker, dep):
            continue
        for holder in dep.who_has or ():
            cut = state.cuts.between(worker.id, holder.id, now)
            if cut is not None:
                told.append(
                    f" Its input {dep.key!r} is on {holder.name}, which {worker.name} could not reach "
                    f"{cut.times} times in {now - cut.since:.0f} s, the last time {now - cut.last:.0f} s ago: it "
                    "comes by way of the scheduler; if that fails, from other holders, and then it is computed again."
                )
    return "".join(told[:_NAMED])


def _processing(task: Task, since: str) -> str:
    worker = task.worker
    assert worker is not None
    tries = f"; {len(task.deaths)} workers died under it before" if task.deaths else ""
    where = f"worker {worker.name} ({worker.address})"
    if task.n_waiting:
        return f"{task.key!r} was given to {where}, {since}, which is to compute {task.n_waiting} of its inputs first."
    if task.long_running:
        return f"{task.key!r} runs on {where}, {since}, outside of the pool of threads{tries}."
    count = len(worker.lingering)
    lingering = f" ({count} of them cancelled, but perhaps still running)" if count else ""
    asked = f"; it is being asked back for {task.thief.name}" if task.thief is not None else ""
    return (
        f"{task.key!r} is with {where}, {since}, which has {worker.n_runnable} tasks for {worker.nthreads} threads"
        f"{lingering}{tries}{asked}."
    )


def _in_line(task: Task, shape: Shape) -> str:
    """What a task takes, who has that, and whose it is now."""
    takes = [f"{name}: {amount_of(units):g}" for name, units in shape.needs]
    takes += [f"a thread of the executor {shape.executor!r}" if shape.executor else "a thread"]
    told = []
    for worker in list(shape.able)[:_NAMED]:
        short = [
            f"{amount_of(worker.in_use.get(name, 0)):g} of {worker.resources.get(name, 0):g} {name}"
            for name, units in shape.needs
            if worker.in_use.get(name, 0) + units > worker.capacity.get(name, 0)
        ]
        if shape.executor and worker.pools_in_use.get(shape.executor, 0) >= worker.executors[shape.executor]:
            short.append(f"all {worker.executors[shape.executor]} threads of {shape.executor!r}")
        if not shape.executor and worker.n_needy >= worker.nthreads:
            short.append(f"all {worker.nthreads} threads, by such tasks")
        holders = [other.key for other in worker.processing if other.shape is not None]
        if worker.claims:
            holders.append(f"{len(worker.claims)} that were cancelled and still run")
        taken = " and ".join(short) or "nothing"
        told.append(f"on {worker.name} {taken} is taken by {', '.join(map(str, holders[:_NAMED])) or 'nobody'}")
    more = f", and {len(shape.able) - _NAMED} more workers are as full" if len(shape.able) > _NAMED else ""
    before = sum(other < task for other in shape.queue.tasks())
    return (
        f"it needs {' and '.join(takes)}, which {len(shape.able)} workers have, and none has free ({'; '.join(told)}"
        f"{more}); {before} of {shape.queue.size} tasks that need the same are before it"
    )


def no_worker(state: Tables, task: Task) -> str:
    """Why no worker may run ``task`` now."""
    options = task.options
    if not state.workers:
        return "there is no worker at all"
    able = [w for w in state.workers.values() if allowed(task, w)]
    if able:
        stopped = ", ".join(f"{w.name} is {w.state.label}" for w in able[:_NAMED])
        return f"the {len(able)} workers that may run it take no tasks now ({stopped})"
    needs = []
    if options is not None and options.workers:
        needs.append(f"is called one of {options.workers}")
    if options is not None and options.resources:
        needs.append(f"has {options.resources}")
    if options is not None and options.executor:
        needs.append(f"has an executor {options.executor!r}")
    return f"none of {len(state.workers)} workers {' and '.join(needs)}"


def no_pool(state: Tables, task: Task) -> str:
    """The error of a task that asks for a pool of threads which no worker has."""
    asked = task.options.executor if task.options is not None else ""
    found = ", ".join(repr(name) for name in ("default", *state.pools))
    return f"UsageError: invalid executor {asked!r}: no worker has a pool of threads of that name, only {found}"


def redefinition(task: Task, spec: TaskSpec) -> str:
    """What to warn of where ``spec`` came for a key that is known with another recipe, or nothing."""
    same_call = task.payload == spec.payload or not isinstance(spec.payload, bytes)
    if task.fn == spec.fn and same_call and [dep.key for dep in task.deps] == list(dict.fromkeys(spec.deps)):
        return ""
    if task.fn == spec.fn == "" and is_digest(task.key):
        return ""  # dask names a value by what it is made of, and fuses its tasks now this way, now that way
    before = "data that was put there" if task.fn is None else f"a call of {task.fn or 'a graph node'}"
    return (
        f"key {task.key!r} was submitted again with another definition: {before} then, a call of "
        f"{spec.fn or 'a graph node'} now. The first one counts until everybody has let go of it; give the second one "
        "another key, or release the first"
    )
