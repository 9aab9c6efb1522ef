"""The scheduler's tables, and the only code that changes them.

Theory: the reactor says what happened; the methods here carry it through the tables, one transition at a time. A
transition never recurses into another task: it puts tasks on one of two work-lists, ``_ready`` (inputs are there,
needs a worker) and ``_loose`` (perhaps nobody needs it), which :meth:`SchedulerState.settle` empties before the
turn ends. Messages are gathered on the record of their receiver and leave when the turn ends, many tasks in one.
"""

from __future__ import annotations

from typing import Any

from shoal.core.amounts import offered
from shoal.core.scheduler import explain, placement
from shoal.core.scheduler.assignment import Assignment
from shoal.core.scheduler.roster import (
    WORKER,
    ClientRecord,
    FunctionRecord,
    WorkerEvent,
    WorkerRecord,
    WorkerState,
)
from shoal.core.scheduler.task import Task, TaskEvent, TaskState
from shoal.messages import (
    Done,
    DropFunctions,
    KeyErred,
    KeysCancelled,
    KeysDone,
    KeysRestarted,
    KilledTask,
    Options,
    TaskError,
    TaskSpec,
)


def _lost_error(key: str) -> TaskError:
    return TaskError(None, None, f"LostDataError: its input {key!r} was scattered and its last copy is gone")


def _lost_actor(key: str, worker: WorkerRecord) -> TaskError:
    text = f"the actor {key!r} lived on worker {worker.name!r} ({worker.address}), which is gone, and its state with it"
    return TaskError(None, None, f"LostActorError: {text}. Client.retry makes a new one")


def _unknown_error(task: Task) -> TaskError:
    if task.unknown == task.key:
        return TaskError(None, None, f"UsageError: {task.key!r} needs its own result")
    text = f"LostDataError: its input {task.unknown!r} is not known here: it was cancelled or released"
    return TaskError(None, None, text)


class SchedulerState(Assignment):
    """The methods that carry what happened through the tables."""

    def define(self, spec: TaskSpec, options: Options, generation: int) -> tuple[Task, bool]:
        """Return the task for ``spec``, and whether its recipe was taken from it."""
        task = self.tasks.get(spec.key)
        if task is None:
            task = self.add_task(spec.key)
        elif task.unknown and task.state in (TaskState.ERRED, TaskState.RELEASED):
            self._redefine(task)
        elif task.fn is not None or task.state is not TaskState.RELEASED:
            return task, False
        task.fn = spec.fn
        task.payload = spec.payload
        task.options = options
        needy = options.resources or options.executor
        task.shape = self.scarce.shape_of(options, self.workers.values()) if needy else None
        task.retries = options.retries
        task.priority = (-options.priority, generation, spec.order)
        if spec.fn:
            function = self.functions.get(spec.fn)
            if function is not None:
                function.n_tasks += 1
        return task, True

    def abandon(self, task: Task, kept: set[Task]) -> bool:
        """Forget ``task`` and all that was made of it now, if nobody wants any of it; return whether it is so.

        ``kept`` are tasks for which it is not so, as found before; ``task`` joins them.
        """
        found = {task: None}
        stack = [task]
        while stack:
            t = stack.pop()
            if t.who_wants or t in kept:
                kept.add(task)
                return False
            for dependent in t.dependents or ():
                if dependent not in found:
                    found[dependent] = None
                    stack.append(dependent)
        stack = [t for t in found if not t.dependents]
        while stack:
            t = stack.pop()
            self._release(t)  # forgets it, since who depended on it was forgotten before
            stack += [dep for dep in t.deps if dep in found and not dep.dependents]
        return True

    def _redefine(self, task: Task) -> None:
        """``task`` could not run for want of an input; now its recipe comes again."""
        if task.state is TaskState.ERRED:
            self._advance(task, TaskEvent.RELEASE)
            for client in task.who_wants or ():
                self.tell_keys(client, KeysRestarted, task.key)
        task.error, task.origin, task.unknown, task.edition = None, "", "", 0
        self._forget_function(task)

    def link(self, task: Task, deps: list[str]) -> None:
        """Tie a newly defined task to its inputs; where one is not known, it will fail once it is needed."""
        found = []
        for key in dict.fromkeys(deps):
            dep = self.tasks.get(key)
            if dep is None or dep.lost or dep is task:
                task.unknown = key
                return
            found.append(dep)
        task.deps = tuple(found)
        for dep in found:
            if dep.dependents is None:
                dep.dependents = {}
            dep.dependents[task] = None

    def require(self, task: Task) -> None:
        """See to it that a released task, and all that it needs, is on its way."""
        stack = [task]
        while stack:
            t = stack.pop()
            if t.state is not TaskState.RELEASED:
                continue
            self._advance(t, TaskEvent.REQUIRE)
            if t.unknown:
                self.fail(t, _unknown_error(t), t.unknown)
                continue
            missing = 0
            failed: Task | None = None
            for dep in t.deps:
                dep.n_waiters += 1
                if dep.state is not TaskState.MEMORY:
                    missing += 1
                    if dep.state is TaskState.ERRED or dep.lost:
                        failed = dep
                    elif dep.state is TaskState.RELEASED:
                        stack.append(dep)
            t.n_waiting = missing
            if failed is not None:
                self.fail(t, failed.error or _lost_error(failed.key), failed.origin or failed.key)
            elif missing == 0:
                self._ready.append(t)
            else:
                self._hopeful.append(t)

    def finish(
        self, task: Task, worker: WorkerRecord, nbytes: int, type: str, value: Any = None, seconds: float | None = None
    ) -> None:
        """The worker that ``task`` is assigned to holds its result."""
        if task.long_running:
            seconds = None  # it waited for others, so it says nothing about what its like takes
        self._unassign(task)
        self._advance(task, TaskEvent.FINISH)
        group = task.group
        group.prefix.learn(seconds, nbytes)
        group.seconds += seconds or 0.0
        group.nbytes += nbytes
        task.nbytes, task.type = nbytes, type
        self.add_replica(task, worker)
        self._announce(task, value)
        for dependent in task.dependents or ():
            if dependent.state is TaskState.WAITING:
                dependent.n_waiting -= 1
                if dependent.n_waiting == 0:
                    self._ready.append(dependent)
            elif dependent.state is TaskState.PROCESSING:
                dependent.n_waiting -= 1
                if dependent.n_waiting == 0:
                    self._catch_up(dependent)
        self._leave_active(task)
        if not task.needed:
            self._loose.append(task)

    def scatter(self, task: Task, worker: WorkerRecord, nbytes: int, type: str) -> None:
        """A client put the value of ``task`` on ``worker``."""
        if task.state is TaskState.RELEASED:
            self._advance(task, TaskEvent.SCATTER)
            task.nbytes, task.type = nbytes, type
        before = len(task.who_has or ())
        self.add_replica(task, worker)
        if len(task.who_has or ()) > max(before, 1):  # it was put on several, on purpose
            self.wanted_copies[task] = max(self.wanted_copies.get(task, 1), len(task.who_has or ()))
        self._announce(task, None)

    def fail(self, task: Task, error: Any, origin: str) -> None:
        """``task`` failed, and so do all active tasks that need it."""
        stack = [task]
        while stack:
            t = stack.pop()
            if not t.active:
                continue
            if t.state is TaskState.PROCESSING:
                worker = t.worker
                self._unassign(t)
                if t is not task and worker is not None:
                    self.free(worker, t.key)
            self._advance(t, TaskEvent.FAIL)
            t.error, t.origin = error, origin
            self._leave_active(t)
            for client in t.who_wants or ():
                self.tell(client, self.bad_news(t))
            stack.extend(t.dependents or ())
            if not t.needed:
                self._loose.append(t)

    def bad_news(self, task: Task) -> Any:
        """What a client is told of an erred task."""
        error = task.error
        if isinstance(error, TaskError):
            return KeyErred(task.key, task.origin, error)
        return KilledTask(task.key, task.origin, error, self.settings.allowed_failures)

    def give_back(self, task: Task, lingers: bool = False) -> None:
        """Take a processing task from its worker, with those assigned ahead of it; they wait anew.

        ``lingers``: a thread may be at work for it, and is counted until its worker says that it is free.
        """
        found, known = [task], {task}
        for t in found:  # grows while it is walked
            for dependent in t.dependents or ():
                if dependent.state is TaskState.PROCESSING and dependent.n_waiting and dependent not in known:
                    known.add(dependent)
                    found.append(dependent)
        for t in reversed(found):
            if lingers:
                self._take_back(t)
            else:
                worker = t.worker
                assert worker is not None
                self._unassign(t)
                self.free(worker, t.key)
            self._advance(t, TaskEvent.RETURN)
            t.n_waiting = sum(dep.state is not TaskState.MEMORY for dep in t.deps)
        for t in found:
            if t.n_waiting == 0:
                self._ready.append(t)
            for dep in t.deps:
                if dep.state is TaskState.RELEASED and not dep.lost:
                    self.require(dep)

    def lose_replica(self, task: Task, worker: WorkerRecord) -> None:
        """``worker`` does not hold ``task`` any more; if nobody does, it is recomputed where that is possible."""
        if task.who_has is None or worker not in task.who_has:
            return
        self._forget_replica(task, worker)
        if task.who_has or task.state is not TaskState.MEMORY:
            return
        self._advance(task, TaskEvent.LOSE)
        if not task.lost and not task.actor:
            for client in task.who_wants or ():
                self.tell_keys(client, KeysRestarted, task.key)
        processing = []
        for dependent in task.dependents or ():
            if dependent.state is TaskState.WAITING:
                dependent.n_waiting += 1
            elif dependent.state in (TaskState.QUEUED, TaskState.NO_WORKER):
                self._advance(dependent, TaskEvent.BLOCK)
                dependent.n_waiting = 1
            elif dependent.state is TaskState.PROCESSING:
                processing.append(dependent)
        for dependent in processing:
            if dependent.state is TaskState.PROCESSING:  # or it was given back with one that it was assigned ahead of
                self.give_back(dependent, lingers=True)
        if task.lost:
            self._lose_scattered(task, worker)
        elif task.needed and task.actor:
            task.edition += 1  # what stood for it is not taken for one that may be made in its place
            self.require(task)
            self.fail(task, _lost_actor(task.key, worker), task.key)
        elif task.needed:
            self.require(task)
        else:
            self._loose.append(task)

    def _lose_scattered(self, task: Task, worker: WorkerRecord) -> None:
        reason = (
            f"scattered data {task.key!r} is lost: its last copy was on worker {worker.name!r} ({worker.address}), "
            "which is gone. Scatter it again; broadcast=True keeps more copies"
        )
        for client in tuple(task.who_wants or ()):
            self.unwant(client, task)
            self.tell(client, KeysCancelled([task.key], reason, True))
        for dependent in tuple(task.dependents or ()):
            if dependent.active:
                self.fail(dependent, _lost_error(task.key), task.key)
        self._loose.append(task)

    def _announce(self, task: Task, value: Any) -> None:
        if task.who_wants:
            for client in task.who_wants:
                done = Done(task.key, task.nbytes, task.type, value, task.peak)
                if client.owed is not None:
                    client.owed.keys[task.key] = None
                    continue
                last = client.out[-1] if client.out else None
                if type(last) is KeysDone and last.wish == client.wish:
                    last.items.append(done)
                else:
                    self.tell(client, KeysDone([done]))

    def _leave_active(self, task: Task) -> None:
        self.end_theft(task)
        for dep in task.deps:
            dep.n_waiters -= 1
            if dep.n_waiters == 0 and not dep.who_wants:
                self._loose.append(dep)

    # -------------------------------------------------------------------------------------------- wants

    def want(self, client: ClientRecord, task: Task) -> None:
        """``client`` wants ``task``: start it, or say how it stands."""
        if task.who_wants is None:
            task.who_wants = {}
        again = client in task.who_wants
        task.who_wants[client] = None
        client.wants[task] = None
        if client.owed is not None:
            client.owed.wished(task.key)
        if task.lost:
            self.unwant(client, task)
            self.tell(client, KeysCancelled([task.key], f"scattered data {task.key!r} is lost", True))
        elif task.state is TaskState.RELEASED:
            self.require(task)
        elif task.state is TaskState.MEMORY:
            self.tell(client, KeysDone([Done(task.key, task.nbytes, task.type, None, task.peak)]))
        elif task.state is TaskState.ERRED:
            self.tell(client, self.bad_news(task))
        elif again:
            self.tell_keys(client, KeysRestarted, task.key)  # it may have been told otherwise, before this wish

    def unwant(self, client: ClientRecord, task: Task) -> None:
        """``client`` does not want ``task`` any more."""
        client.wants.pop(task, None)
        if task.who_wants:
            task.who_wants.pop(client, None)
        if not task.needed:
            self._loose.append(task)

    def cancel(self, client: ClientRecord, task: Task, force: bool, reason: str) -> None:
        """Cancel ``task`` and what depends on it, for this client, or by force for all."""
        stack, seen = [task], {task}
        while stack:
            t = stack.pop()
            for other in tuple(t.who_wants or ()):
                if force or other is client:
                    self.unwant(other, t)
                    self.tell(other, KeysCancelled([t.key], reason))
            for dependent in t.dependents or ():
                if dependent not in seen and dependent.state is not TaskState.MEMORY:
                    seen.add(dependent)
                    stack.append(dependent)

    def retry(self, task: Task) -> None:
        """Run an erred task again, and the erred inputs that made it fail."""
        stack: list[Task] = [task]
        erred: dict[Task, None] = {}
        while stack:
            t = stack.pop()
            if t.state is TaskState.ERRED and t not in erred:
                erred[t] = None
                stack.extend(t.deps)
        for t in erred:
            self._advance(t, TaskEvent.RELEASE)
            t.error, t.origin, t.deaths = None, "", None
            t.retries = t.options.retries if t.options else 0
            for client in t.who_wants or ():
                self.tell_keys(client, KeysRestarted, t.key)
        for t in erred:
            if t.needed:
                self.require(t)
            else:
                self._loose.append(t)

    def _release(self, task: Task) -> None:
        """Nobody needs ``task``: free it, and forget it if nothing could be recomputed from it."""
        state = task.state
        if state is TaskState.PROCESSING:
            self._take_back(task)
        if state is TaskState.MEMORY:
            for worker in tuple(task.who_has or ()):
                self.free(worker, task.key)
                self._forget_replica(task, worker)
        if state is not TaskState.RELEASED:
            was_active = task.active
            self._advance(task, TaskEvent.RELEASE)
            task.error, task.origin = None, ""
            if was_active:
                self._leave_active(task)
        if task.dependents:
            return
        self._advance(task, TaskEvent.FORGET)
        self.wanted_copies.pop(task, None)
        self._remove_task(task)
        for dep in task.deps:
            assert dep.dependents is not None
            del dep.dependents[task]
            if not dep.dependents and not dep.needed:
                self._loose.append(dep)
        self._forget_function(task)

    def _forget_function(self, task: Task) -> None:
        function = self.functions.get(task.fn) if task.fn else None
        if task.fn and function is not None:
            function.n_tasks -= 1
            self._drop_function(task.fn, function)

    def _drop_function(self, fn: str, function: FunctionRecord) -> None:
        if function.n_tasks <= 0 and not function.clients:
            del self.functions[fn]
            for worker in self.workers.values():
                if fn in worker.functions:
                    worker.functions.discard(fn)
                    self.flush_free(worker)  # what was to be computed with it is dropped before
                    last = worker.out[-1] if worker.out else None
                    if type(last) is DropFunctions:
                        last.fns.append(fn)
                    else:
                        self.tell(worker, DropFunctions([fn]))

    def drop_functions(self, client: ClientRecord, fns: list[str]) -> None:
        """``client`` will not refer to these functions again without sending them."""
        for fn in fns:
            client.functions.discard(fn)
            function = self.functions.get(fn)
            if function is not None:
                function.clients.discard(client.id)
                self._drop_function(fn, function)

    # -------------------------------------------------------------------------------------------- replicas, workers

    def add_replica(self, task: Task, worker: WorkerRecord) -> None:
        if task.who_has is None:
            task.who_has = {}
        if worker not in task.who_has:
            task.who_has[worker] = None
            worker.has_what[task] = None
            worker.nbytes += max(task.nbytes, 0)
            if len(task.who_has) > 1:
                self.replicated[task] = None
            if self.touched is not None:
                self.touched[task] = None

    def _forget_replica(self, task: Task, worker: WorkerRecord) -> None:
        assert task.who_has is not None
        del task.who_has[worker]
        del worker.has_what[task]
        worker.nbytes -= max(task.nbytes, 0)
        if len(task.who_has) == 1:
            self.replicated.pop(task, None)
        if self.touched is not None:
            self.touched[task] = None

    def drop_copy(self, task: Task, worker: WorkerRecord) -> bool:
        """Have ``worker`` drop its copy, unless it is the last that is on a worker which stays."""
        who_has = task.who_has or {}
        if worker not in who_has or not any(other is not worker and other.stays for other in who_has):
            return False
        self._forget_replica(task, worker)
        self.free(worker, task.key)
        return True

    def add_worker(self, worker: WorkerRecord) -> None:
        """A worker registered: it may be given tasks."""
        self.workers[worker.id] = self.by_slot[worker.slot] = self.by_name[worker.name] = worker
        worker.state = WORKER.advance(worker.state, WorkerEvent.REGISTER, worker.id)
        self.total_nthreads += worker.nthreads
        self.pools.update(dict.fromkeys(worker.executors))
        self._takes_tasks(worker)

    def _takes_tasks(self, worker: WorkerRecord) -> None:
        self.running_nthreads += worker.nthreads
        self.able.clear()
        self.scarce.enter(worker)
        self.open.note(worker)
        self._ready += self.stranded.candidates(worker)

    def _takes_none(self, worker: WorkerRecord) -> None:
        self.running_nthreads -= worker.nthreads
        self.able.clear()
        self.crowded.pop(worker, None)
        for task in self.scarce.leave(worker):
            self._strand(task)
        if not self.running_nthreads:
            for task in self.queue.tasks():
                self._strand(task)

    def set_resources(self, worker: WorkerRecord, resources: dict[str, float]) -> None:
        """``worker`` has other resources than before; those that wait are placed by these."""
        before, worker.resources = worker.capacity, dict(resources)
        worker.capacity = {name: offered(amount) for name, amount in resources.items()}
        worker.lowered |= any(worker.capacity.get(name, 0) < units for name, units in before.items())
        if worker.running:
            self.able.clear()
            alone = self.scarce.leave(worker)
            self.scarce.enter(worker)
            for task in alone:
                if task.shape is not None and not task.shape.able:
                    self._strand(task)
            self._ready += self.stranded.candidates(worker)

    def pause(self, worker: WorkerRecord) -> None:
        """``worker`` takes no tasks for now; it gives back what no thread of it has."""
        if worker.state is WorkerState.RUNNING:
            worker.state = WORKER.advance(worker.state, WorkerEvent.PAUSE, worker.id)
            self._takes_none(worker)

    def resume(self, worker: WorkerRecord) -> None:
        """``worker`` takes tasks again."""
        if worker.state is WorkerState.PAUSED:
            worker.state = WORKER.advance(worker.state, WorkerEvent.RESUME, worker.id)
            self._takes_tasks(worker)

    def retire(self, worker: WorkerRecord) -> None:
        """``worker`` is to go: it takes no tasks."""
        if worker.running:
            self._takes_none(worker)
        worker.state = WORKER.advance(worker.state, WorkerEvent.RETIRE, worker.id)

    def keep(self, worker: WorkerRecord) -> None:
        """``worker`` is not to go, after all."""
        worker.state = WORKER.advance(worker.state, WorkerEvent.KEEP, worker.id)
        if worker.paused:
            worker.state = WORKER.advance(worker.state, WorkerEvent.PAUSE, worker.id)
        else:
            self._takes_tasks(worker)

    def fail_stranded(self, timeout: float) -> int:
        """Give up the tasks that no worker could run for ``timeout`` seconds; return how many."""
        count = 0
        for kind in self.stranded.overdue(self.now, timeout):
            cause = explain.no_worker(self, kind[0])
            for task in kind:
                if task.state is TaskState.NO_WORKER:
                    text = f"NoValidWorkerError: {task.key!r} waited for {timeout:g} s, and {cause}"
                    self.fail(task, TaskError(None, None, text), task.key)
                    count += 1
        return count

    def remove_worker(self, worker: WorkerRecord) -> list[Task]:
        """A worker is gone: its tasks go back, its results are found elsewhere or computed again.

        Returns the tasks that it could have been running.
        """
        if worker.running:
            self._takes_none(worker)
        worker.state = WORKER.advance(worker.state, WorkerEvent.REMOVE, worker.id)
        del self.workers[worker.id], self.by_slot[worker.slot], self.by_name[worker.name]
        self.total_nthreads -= worker.nthreads
        self.silence(worker)
        self.open.forget(worker)
        for other in self.workers.values():
            if worker.id in other.peers:
                other.peers.discard(worker.id)
                other.gone.append(worker.id)
        worker.postponed = None
        assigned = [task for task in sorted(worker.processing) if not task.n_waiting]
        for task in tuple(worker.processing):
            if task.worker is worker:
                self.give_back(task)
        for task in tuple(worker.has_what):
            self.lose_replica(task, worker)
        return assigned

    def settle(self) -> None:
        """Carry everything through until nothing is left to decide in this turn."""
        while True:
            while self._loose or self._ready:
                while self._loose:
                    task = self._loose.pop()
                    if not task.needed and task.state is not TaskState.FORGOTTEN:
                        self._release(task)
                ready, self._ready = self._ready, []
                if len(ready) > 1:
                    ready.sort()
                for task in ready:
                    if task.n_waiting == 0 and task.state in (TaskState.WAITING, TaskState.NO_WORKER):
                        if placement.lacks_pool(self, task):
                            self.fail(task, TaskError(None, None, explain.no_pool(self, task)), task.key)
                        else:
                            self._place(task)
            if self.scarce.changed:
                self._serve_lines()
            self._drain_queue()
            if not self._hopeful:
                return
            hopeful, self._hopeful = self._hopeful, []
            for task in hopeful:
                if task.n_waiting and task.state is TaskState.WAITING:
                    self._assign_ahead(task)
