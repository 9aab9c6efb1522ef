"""The scheduler's dealings with workers: one method for each of their messages, their deaths and silences."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, assert_never

from shoal.core.effects import ERROR, INFO, WARNING, Answered, CloseLink, Effect, Log, Notify, Send
from shoal.core.scheduler import explain
from shoal.core.scheduler.burdens import burdens
from shoal.core.scheduler.calls import PendingCalls
from shoal.core.scheduler.carrying import Carrying
from shoal.core.scheduler.copying import Copying
from shoal.core.scheduler.roster import WorkerRecord
from shoal.core.scheduler.settings import Settings
from shoal.core.scheduler.spans import Spans
from shoal.core.scheduler.state import SchedulerState
from shoal.core.scheduler.stealing import Balancer
from shoal.core.scheduler.task import Task, TaskState
from shoal.core.scheduler.topics import Topics
from shoal.errors import UsageError
from shoal.ids import ClientId, SlotId, WorkerId
from shoal.messages import (
    AddKeys,
    Answer,
    AskRetirement,
    Bye,
    Carry,
    DataPut,
    Failed,
    Finished,
    Freed,
    FromWorker,
    Given,
    GivenBack,
    Heartbeat,
    Holders,
    KeyInfo,
    KeysCancelled,
    Leaving,
    LogEvent,
    LongRunning,
    Missing,
    NotCopied,
    PutNoted,
    RegisterWorker,
    Rescheduled,
    RestartWorker,
    Retired,
    StealAnswer,
    Unknown,
    Warned,
    WorkerRegistered,
    WorkerRejected,
    WorkerResources,
    WorkerStatus,
)

#: A copy whose holder could not be reached this often by those who need it is given up.
UNREACHABLE_LIMIT = 5
#: Seconds after which users are told of tasks that no worker may run.
STRANDED_FOR = 5.0
#: Pairs of such a holder and a key from which on those are forgotten whose key is not known any more.
UNREACHABLE_PAIRS = 10_000


class Fleet(ABC):
    """Workers come, report, fall silent and die."""

    def __init__(self, id: str, settings: Settings | None = None) -> None:
        self.id = id
        self.settings = settings or Settings()
        self.state = SchedulerState(self.settings)
        self.balancer = Balancer(self.state)
        self.copying = Copying(self.state, self.settings.move_timeout)
        self.calls = PendingCalls()
        #: A holder that is stopped is given up by ``worker_ttl`` before its copies are by ``UNREACHABLE_LIMIT``.
        patience = max(self.settings.patience, (self.settings.worker_ttl or 0.0) / UNREACHABLE_LIMIT)
        self.carrying = Carrying(self.state, self._say, patience)
        told = self.settings
        #: Takes workers and returns those that may go when the cluster shrinks, where a plugin has a say.
        self.downscaling: Callable[[list[WorkerRecord]], list[WorkerRecord]] | None = None
        self.topics = Topics(self.state, told.events_length, told.epoch, told.events_keep)
        #: Plugins for those that join later, by kind and name, in the order of their coming.
        self.plugins: dict[str, dict[str, Any]] = {"worker": {}, "nanny": {}, "scheduler": {}}
        self.spans = Spans()
        #: How many worker processes ended, by cause (those without a nanny count as ``"lost"``).
        self.deaths: dict[str, int] = {}
        self._effects: list[Effect] = []
        self._ttl_check: float | None = None
        self._roles: dict[str, str] = {}
        self._unreachable: dict[tuple[str, str], int] = {}
        #: Why no worker may register in a slot any more, and why a worker whose link is open is none any more.
        self.left: dict[SlotId, str] = {}
        self.retired: dict[WorkerId, str] = {}
        #: Since when workers take no tasks of their own accord.
        self.paused: dict[WorkerRecord, float] = {}

    @abstractmethod
    def _on_leaving(self, peer: str, number: int) -> None:
        """A worker or a nanny heard that the worker is to go."""

    @abstractmethod
    def _on_ask_retirement(self, worker: WorkerRecord, message: AskRetirement) -> None:
        """A worker says that it has to go."""

    @abstractmethod
    def _leave_slot(self, slot: SlotId, reason: str) -> None:
        """No worker may register there again."""

    def _say(self, to: str, message: Any) -> None:
        """Send at once, ahead of what :meth:`SchedulerState.flush` gathers; for answers that wait for nothing."""
        if to in self._roles:
            self._effects.append(Send(to, message))

    def _log(self, level: int, text: str) -> None:
        self._effects.append(Log(level, text))

    def _answer(self, client: ClientId, rid: int, value: Any, error: str | None = None) -> None:
        """Answer a request of a client, or (without a name) of this program itself."""
        record = self.state.clients.get(client)
        if record is not None:
            self.state.tell(record, Answer(rid, value, error))
        elif not client:
            self._effects.append(Answered(rid, value, error))

    def _answer_calls(self, calls: list[Any]) -> None:
        for call in calls:
            if call.complete:
                self.calls.end(call)
                self._answer(call.client, call.rid, {"results": call.results, "errors": call.errors})

    # -------------------------------------------------------------------------------------------- workers

    def _on_worker_message(self, peer: str, message: FromWorker) -> None:
        state = self.state
        worker = state.workers.get(WorkerId(peer))
        if isinstance(message, RegisterWorker):
            self._on_register_worker(peer, message)
            return
        if worker is None:
            if isinstance(message, Heartbeat):
                reason = self.retired.get(WorkerId(peer))
                self._say(peer, Unknown() if reason is None else Retired(reason, False))
            return
        match message:
            case Finished():
                for item in message.items:
                    task = state.tasks.get(item.key)
                    if task is None or task.worker is not worker or task.attempt != item.attempt:
                        state.freed(worker, item.attempt)
                    else:
                        task.peak = item.peak
                        if item.stop and task.options is not None and task.options.span_ids:
                            self.spans.executed(task, item.start, item.stop, item.nbytes)
                        state.finish(task, worker, item.nbytes, item.type, item.value, max(item.stop - item.start, 0.0))
                        state.record(item, worker, "OK", item.nbytes, item.type)
            case Failed():
                self._on_failed(worker, message)
            case AddKeys():
                worker.announced += 1
                for info_item in message.items:
                    task = state.tasks.get(info_item.key)
                    if task is not None and _is_copy(task, worker, info_item):
                        state.add_replica(task, worker)
                    elif task is None or task.worker is not worker:
                        state.free(worker, info_item.key)
            case Heartbeat():
                worker.metrics = message.metrics
            case Missing():
                self._on_missing(worker, message)
            case DataPut():
                worker.announced += 1
                self._on_data_put(worker, message)
                self._say(peer, PutNoted(message.number))  # also where it is let go of in this turn
            case Carry():
                self.carrying.ask(peer, message)
            case Given():
                self.carrying.given(peer, message)
            case NotCopied():
                self.copying.refused(worker, message)
            case Leaving():
                self._on_leaving(peer, message.number)
            case AskRetirement():
                self._on_ask_retirement(worker, message)
            case Rescheduled():
                task = self._assigned(worker, message.key, message.attempt)
                if task is not None:
                    state.give_back(task)
            case GivenBack():
                for key, attempt in message.items:
                    task = self._assigned(worker, key, attempt)
                    if task is not None:
                        state.give_back(task)
            case Freed():
                for attempt in message.attempts:
                    state.freed(worker, attempt)
            case WorkerStatus():
                self._on_worker_status(worker, message)
            case WorkerResources():
                state.set_resources(worker, message.resources)
            case StealAnswer():
                self.balancer.answered(worker, message)
            case LongRunning():
                task = state.tasks.get(message.key)
                if task is None or task.worker is not worker or task.attempt != message.attempt:
                    state.left_pool(worker, message.attempt)
                else:
                    state.secede(task)
            case LogEvent():
                self.topics.log(message.topics, message.msg, message.when)
            case Answer():
                self._answer_calls(self.calls.answered(peer, message))
            case Bye():
                if worker.slot in state.nannies:
                    state.nannies[worker.slot].parted = worker.id
                self._remove_worker(worker, message.reason or "it closed", expected=not message.failed)
            case _:
                assert_never(message)

    def _assigned(self, worker: WorkerRecord, key: str, attempt: int) -> Task | None:
        """The task of this assignment; None where it was taken back since, and then its thread is free now."""
        task = self.state.tasks.get(key)
        if task is None or task.worker is not worker or task.attempt != attempt:
            self.state.freed(worker, attempt)
            return None
        return task

    def _on_register_worker(self, peer: str, message: RegisterWorker) -> None:
        state = self.state
        if WorkerId(peer) in state.workers:
            return
        before = state.by_slot.get(SlotId(message.slot))
        if before is not None:
            self._remove_worker(before, "another worker process took its place", expected=False)
        if message.slot in self.left:
            reason = f"it has left, and may not come back: {self.left[SlotId(message.slot)]}"
            self._log(INFO, f"refused worker {peer}: {reason}")
            self._say(peer, WorkerRejected(reason))
            return
        namesake = state.by_name.get(message.name)
        if namesake is not None:
            reason = f"a worker named {message.name!r} is here already, at {namesake.address}"
            self._log(WARNING, f"refused worker {peer}: {reason}")
            self._say(peer, WorkerRejected(reason))
            return
        worker = WorkerRecord(
            WorkerId(peer),
            message.name,
            SlotId(message.slot),
            message.addresses,
            message.nthreads,
            self.settings.saturation,
            message.memory_limit,
            message.host,
            message.pid,
            message.local_directory,
            message.resources,
            message.executors,
        )
        worker.last_seen = state.now
        state.add_worker(worker)
        nanny = state.nannies.get(worker.slot)
        if nanny is not None:
            nanny.came(worker.id, state.now)
        if self.settings.worker_ttl is not None and self._ttl_check is None:
            self._ttl_check = state.now + self.settings.worker_ttl / 4
        interval, ttl = self.settings.heartbeat_interval, self.settings.worker_ttl
        if ttl is not None:
            interval = min(interval, ttl / 4)  # or a healthy worker would be taken for dead
        self._say(peer, WorkerRegistered(self.id, interval, dict(self.plugins["worker"])))
        self._log(INFO, f"worker {worker.name} joined from {worker.address}, {worker.nthreads} threads")
        known = {"nthreads": worker.nthreads, "memory_limit": worker.memory_limit, "pid": worker.pid}
        self._tell_of_worker(worker, "add-worker", known)
        self._notify("add_worker", worker.address)

    def _tell_of_worker(self, worker: WorkerRecord, action: str, more: dict[str, Any]) -> None:
        """Log an event of a worker."""
        self.topics.log(
            ["all", worker.address], {"action": action, "worker": worker.address, "name": worker.name, **more}
        )

    def _notify(self, hook: str, *args: Any) -> None:
        """Have a hook of the scheduler's plugins called."""
        if self.plugins["scheduler"]:
            self._effects.append(Notify(hook, args))

    def _on_worker_status(self, worker: WorkerRecord, message: WorkerStatus) -> None:
        self._tell_of_worker(
            worker, "worker-status-change", {"status": "paused" if message.paused else "running", "why": message.reason}
        )
        worker.paused = message.paused
        if message.paused:
            self.paused[worker] = self.state.now
        else:
            self.paused.pop(worker, None)
        if message.paused:
            self._log(WARNING, f"worker {worker.name} takes no tasks: {message.reason}")
            self.state.pause(worker)
        else:
            self._log(INFO, f"worker {worker.name} takes tasks again: {message.reason}")
            self.state.resume(worker)

    def _on_failed(self, worker: WorkerRecord, message: Failed) -> None:
        state = self.state
        task = self._assigned(worker, message.key, message.attempt)
        if task is None:
            return
        task.group.prefix.failures += 1
        task.peak = message.peak
        if task.options is not None and task.options.span_ids:
            self.spans.executed(task, message.start, message.stop, 0, failed=True)
        state.record(message, worker, "error", 0, "")
        if task.retries > 0:
            task.retries -= 1
            state.give_back(task)
            return
        state.fail(task, message.error, task.key)
        state.free(worker, task.key)

    def _on_missing(self, worker: WorkerRecord, message: Missing) -> None:
        state = self.state
        task = state.tasks.get(message.key)
        if task is None:
            state.free(worker, message.key)
            return
        for holder_id in message.absent:
            holder = state.workers.get(WorkerId(holder_id))
            if holder is not None:
                state.lose_replica(task, holder)
                if task.worker is not holder:
                    state.free(holder, task.key)  # so that both agree, whatever it is that it has
        for holder_id in message.unreachable:
            holder = state.workers.get(WorkerId(holder_id))
            if holder is None:
                continue
            count = self._unreachable[(holder_id, task.key)] = self._unreachable.get((holder_id, task.key), 0) + 1
            if len(self._unreachable) > UNREACHABLE_PAIRS:
                self._unreachable = {pair: n for pair, n in self._unreachable.items() if pair[1] in state.tasks}
            if count >= UNREACHABLE_LIMIT:
                del self._unreachable[(holder_id, task.key)]
                self._log(WARNING, f"{worker.name} cannot reach {holder.name} for {task.key!r}: that copy is given up")
                state.lose_replica(task, holder)
                state.free(holder, task.key)
        if task.state is TaskState.MEMORY:
            holders = [str(w.id) for w in task.who_has or () if w is not worker]
            peers: dict[str, list[str]] = {}
            state.introduce(worker, holders, peers)
            state.tell(worker, Holders(task.key, list(holders), peers))

    def _on_data_put(self, worker: WorkerRecord, message: DataPut) -> None:
        state = self.state
        client = state.clients.get(ClientId(message.client))
        if client is not None and not client.remote:
            raise UsageError(f"data was put in the name of {client.name}")
        for item in message.items:
            task = state.tasks.get(item.key)
            stored = item.nbytes >= 0
            if task is None and stored and client is not None:
                task = state.add_task(item.key)
            if task is None or task.fn is not None or (client is None and task.state is not TaskState.MEMORY):
                # Nobody wants it any more, or there is a recipe for it, which counts.
                if stored and (task is None or task.worker is not worker):
                    state.free(worker, item.key)
            elif stored:
                state.scatter(task, worker, item.nbytes, item.type)
            if client is None:
                continue
            if task is not None:
                state.want(client, task)
            else:
                text = f"{item.key!r} was not stored: a task of that name was being let go of. Scatter it again"
                state.tell(client, KeysCancelled([item.key], text))

    def _remove_worker(
        self,
        worker: WorkerRecord,
        reason: str,
        expected: bool,
        running: list[str] | None = None,
        safe: bool = False,
        by: str = "",
    ) -> None:
        """``safe``: nothing is lost by it; ``by``: who wanted it to retire."""
        state = self.state
        nanny = state.nannies.get(worker.slot)
        has_nanny = nanny is not None
        if nanny is not None and not expected:
            nanny.burdens = (worker.id, *burdens(worker))
        assigned = state.remove_worker(worker)
        self.paused.pop(worker, None)
        for pair in [pair for pair in self._unreachable if pair[0] == worker.id]:
            del self._unreachable[pair]
        level = INFO if expected else WARNING
        self._log(level, f"worker {worker.name} ({worker.address}) left: {reason}")
        self.carrying.lost(worker.id)
        self._answer_calls(self.calls.peer_lost(worker.id, f"worker {worker.name} left: {reason}"))
        if worker.id not in self.retired:
            self._effects.append(CloseLink(worker.id, reason))
        told = {"reason": reason, "expected": expected, "safe": safe, "by": by, "tasks": len(assigned)}
        self._tell_of_worker(worker, "remove-worker", told)
        self.topics.expire(worker.address)
        self._notify("remove_worker", worker.address, reason, expected, safe)
        if not expected and not has_nanny:
            self.deaths["lost"] = self.deaths.get("lost", 0) + 1
        if running is None and not expected and not has_nanny:
            running = [task.key for task in assigned[: worker.nthreads]]
        if running and not expected:
            self._blame(worker.name, worker.address, reason, running)

    def _blame(
        self, name: str, address: str, reason: str, running: list[str], brought: dict[str, str] | None = None
    ) -> None:
        """Count a death against the tasks that were in its threads; give up those that had too many.

        ``brought``: also against those whose inputs it was bringing together, with words for each.
        """
        state = self.state
        brought = brought or {}
        for key in (*running, *brought):
            task = state.tasks.get(key)
            if task is None:
                continue
            beside = [other for other in running if other != key]
            line = f"worker {name} ({address}): {reason}"
            if key in brought:
                line += f"; {brought[key]}"
            if beside:
                line += f"; beside it ran {', '.join(beside[:5])}{' …' if len(beside) > 5 else ''}"
            task.deaths = [*(task.deaths or ()), line]
            if len(task.deaths) > self.settings.allowed_failures and task.active:
                worker = task.worker
                self._log(ERROR, f"task {key!r} is given up: its workers died {len(task.deaths)} times")
                state.fail(task, task.deaths, key)
                if worker is not None:
                    state.free(worker, key)

    def _strand_check(self) -> float | None:
        """When users are told of tasks that wait for a worker that may run them, or the longest of them is given up."""
        untold, due = self.state.stranded.untold_since(), self._give_up_at()
        told = None if untold is None else untold + STRANDED_FOR
        return told if due is None else due if told is None else min(told, due)

    def _give_up_at(self) -> float | None:
        timeout = self.settings.no_workers_timeout
        first = None if timeout is None else self.state.stranded.first()
        return None if first is None or timeout is None else first + timeout

    def _tell_of_stranded(self, now: float) -> None:
        """Say what tasks wait for; where there is no worker at all, that is plain to see."""
        untold, timeout, state = self.state.stranded.untold_since(), self.settings.no_workers_timeout, self.state
        if untold is None or now < untold + STRANDED_FOR:
            return
        for task in state.stranded.tell(now, STRANDED_FOR):
            if not state.workers:
                continue
            limit = "for as long as it takes" if timeout is None else f"for up to {timeout:g} s"
            text = (
                f"{task.key!r} waits for a worker: {explain.no_worker(state, task)}; it waits for one that may come, "
                f"{limit} (distributed.scheduler.no-workers-timeout)"
            )
            self._log(WARNING, text)
            for client in task.who_wants or ():
                state.tell(client, Warned(text))

    def _check_stranded(self, now: float) -> None:
        self._tell_of_stranded(now)
        due, timeout = self._give_up_at(), self.settings.no_workers_timeout
        if due is not None and timeout is not None and now >= due:
            count = self.state.fail_stranded(timeout)
            self._log(ERROR, f"{count} tasks are given up: no worker could run them for {timeout:g} s")
            self.topics.log("scheduler", {"action": "no-workers-timeout-exceeded", "tasks": count})

    def _check_ttl(self, now: float) -> None:
        due, ttl = self._ttl_check, self.settings.worker_ttl
        if due is None or now < due:
            return
        if ttl is None:  # it was switched off
            self._ttl_check = None
            return
        late = now - due
        self._ttl_check = now + ttl / 4 if self.state.workers else None
        if late > ttl / 4:
            # This process was stalled, or the machine was suspended: nobody could be heard. Everyone gets a new lease.
            for worker in self.state.workers.values():
                worker.last_seen = max(worker.last_seen, now - ttl / 2)
            return
        for worker in tuple(self.state.workers.values()):
            silent = now - worker.last_seen
            if silent > ttl:
                nanny = self.state.nannies.get(worker.slot)
                reason = f"it was not heard of for {silent:.0f} s (worker-ttl is {ttl:g} s)"
                self.topics.log("scheduler", {"action": "worker-ttl-timed-out", "worker": worker.address})
                if nanny is not None:
                    self._say(nanny.id, RestartWorker(0, reason, 30.0, True, worker.id))
                self._remove_worker(worker, reason, expected=False)


def _is_copy(task: Task, worker: WorkerRecord, item: KeyInfo) -> bool:
    """Whether what ``worker`` holds under the key of ``task`` is its result; what stands for an actor is not."""
    if task.actor and worker not in (task.who_has or ()):
        return False
    return task.state is TaskState.MEMORY and task.edition == item.edition
