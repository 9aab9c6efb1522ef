"""Where the worker's events meet its keys: scheduler messages, ended threads, ended transfers.

The rules of spec "worker's state machine", in the order in which they matter here: the goal is the scheduler's last
word on a key; a thread or a transfer that is under way is never forgotten, and its result serves whatever the goal
has become by then; an execution needs its inputs until it starts, not longer; nothing is dropped that a pending task
here still needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from shoal.core.effects import (
    Answered,
    CallUser,
    CancelRun,
    Effect,
    Functions,
    HandOver,
    InstallPlugin,
    Notify,
    Run,
    Send,
    Stop,
)
from shoal.core.events import (
    CallDone,
    Due,
    Event,
    FetchDone,
    FetchFailed,
    LinkLost,
    Offered,
    Outcome,
    Outcomes,
    Pressure,
    PutDone,
    Received,
    Rejoined,
    Seceded,
    Spilling,
    ValuesLost,
)
from shoal.core.worker.attempt import PENDING, RUNNING, AttemptEvent, AttemptState
from shoal.core.worker.copies import ON_THE_WAY, Copies
from shoal.core.worker.invariants import check
from shoal.core.worker.key import Goal, KeyRecord
from shoal.core.worker.replica import ReplicaEvent, ReplicaState
from shoal.core.worker.slots import Slots
from shoal.messages import (
    AcquireCopies,
    Answer,
    Call,
    ChangePlugin,
    Close,
    Compute,
    ComputeTask,
    DropFunctions,
    Failed,
    Finished,
    Freed,
    FreeKeys,
    Give,
    Given,
    GivenBack,
    Holders,
    Leave,
    Leaving,
    LongRunning,
    Missing,
    PutNoted,
    Rescheduled,
    Retired,
    Steal,
    StealAnswer,
    TaskDone,
    TaskError,
    ToWorker,
    Unknown,
    WorkerRegistered,
    WorkerRejected,
    WorkerResources,
    WorkerStatus,
)


class WorkerCore(Copies):
    """All decisions of a worker.

    Parameters
    ----------
    id
        Unique id of this worker process.
    nthreads
        Tasks that run at the same time.
    resources
        Abstract resources, by name.
    executors
        Threads of other pools, by name.
    story_length
        Transitions remembered.
    validate
        Check all invariants after every event.
    """

    def __init__(
        self,
        id: str,
        nthreads: int,
        resources: dict[str, float] | None = None,
        story_length: int = 10_000,
        validate: bool = False,
        executors: dict[str, int] | None = None,
    ) -> None:
        super().__init__(id, Slots(nthreads, resources or {}, executors), story_length)
        self.registered = False
        self.executed = 0
        self.validate = validate

    # -------------------------------------------------------------------------------------------- driving

    def handle(self, events: Sequence[Event], now: float) -> list[Effect]:
        """Take what happened; return what is to be done, in order."""
        self.now = now
        effects = self._effects = []
        for event in events:
            if type(event) is Received:
                self.stimulus = "scheduler"
                for message in event.messages:
                    self._on_message(message)
            elif type(event) is Outcomes:
                self.stimulus = "executed"
                for outcome in event.items:
                    self._on_outcome(outcome)
            elif type(event) is Seceded:
                self._on_seceded(event.key)
            elif type(event) is Rejoined:
                self._on_rejoined(event.key)
            elif type(event) is FetchDone:
                self._on_fetch_done(event)
            elif type(event) is FetchFailed:
                self._on_fetch_failed(event)
            elif type(event) is PutDone:
                self._on_put_done(event)
            elif type(event) is Spilling:
                self._on_spilling(event)
            elif type(event) is Offered:
                self._on_offered(event)
            elif type(event) is Pressure:
                self._on_pressure(event)
            elif type(event) is ValuesLost:
                self._on_values_lost(event)
            elif type(event) is CallDone:
                self._out.append(Answer(event.rid, event.payload))
            elif type(event) is LinkLost:
                effects.append(Stop(f"the link to the scheduler broke: {event.reason}", True))
            elif type(event) is not Due:
                raise TypeError(f"not an event of a worker's: {event!r}")
        self._ask_for_missing(now)
        self._flush_drops()  # before what starts now may bring the same keys anew
        self._start_tasks()
        self._start_fetches(now)
        self._flush_drops()
        effects.extend(Send("", message) for message in self._out)
        self._out.clear()
        if self.watched:
            effects.append(Notify("transition", tuple(self.watched)))
            self.watched.clear()
        if self.validate:
            check(self)
        return effects

    def deadline(self) -> float | None:
        """When :meth:`handle` is to be called even if nothing happens."""
        due = [at for at in (self._ask_at, None if self.paused else self.fetcher.deadline()) if at is not None]
        return min(due, default=None)

    def _on_message(self, message: ToWorker) -> None:
        match message:
            case Compute():
                self.fetcher.meet(message.peers)
                if message.functions:
                    self._effects.append(Functions(message.functions))
                for task in message.tasks:
                    self._on_compute(task)
            case FreeKeys():
                for key in message.keys:
                    self._on_free(key, message.seen)
            case AcquireCopies():
                self._on_acquire(message)
            case Leave():
                self._on_leave(message)
            case PutNoted():
                self._effects.append(Answered(message.number, "OK", None))
            case Retired():
                self._on_retired(message)
            case Unknown():
                for known in self.keys.values():
                    if known.replica is ReplicaState.HELD:
                        self._add_key(known)
            case Steal():
                self._on_steal(message)
            case Holders():
                self.fetcher.meet(message.peers)
                record = self.keys.get(message.key)
                if record is not None:
                    self._on_holders(record, message.holders)
            case Give():
                self._effects.append(HandOver(message.rid, message.keys, message.max_bytes))
            case Given():
                self._on_carried(message)
            case DropFunctions():
                self._effects.append(Functions(dict.fromkeys(message.fns)))
            case Call():
                self._effects.append(CallUser(message.rid, message.payload, message.wait))
            case ChangePlugin():
                self._effects.append(InstallPlugin(message.rid, message.name, message.payload))
            case Close():
                self._effects.append(Stop(message.reason, message.failed))
            case WorkerRegistered():
                self.registered = True
            case WorkerRejected():
                self._effects.append(Stop(f"the scheduler refused this worker: {message.reason}", True))
            case _:
                assert_never(message)

    # -------------------------------------------------------------------------------------------- computing

    def _on_compute(self, task: ComputeTask) -> None:
        record = self._record(task.key)
        if not (record.attempt in RUNNING and record.spec is not None and record.spec.resources) or (
            record.edition == task.edition
        ):
            self._report_freed(record)  # the thread counts for this assignment from now on
        if record.attempt in PENDING:
            self._drop_attempt(record)
        elif record.attempt is AttemptState.FAILED:
            self._attempt(record, AttemptEvent.DROP)
        record.goal, record.asked = Goal.COMPUTE, False
        record.spec = task
        record.priority = task.priority
        record.wanted = task.edition
        self._drop_if_stale(record)
        if record.replica is ReplicaState.HELD:
            self._report_done(record)
        elif record.attempt is AttemptState.LONG_RUNNING and record.edition == record.wanted:
            self._out.append(LongRunning(record.key, task.attempt))
        elif not record.busy:
            if record.replica is not ReplicaState.ABSENT:
                self._replica(record, ReplicaEvent.DROP)
            self._begin(record)

    def _begin(self, record: KeyRecord) -> None:
        """Start an attempt: find its inputs, or put it in line."""
        spec = record.spec
        assert spec is not None
        if self.paused or self.leaving or (spec.resources and not self.slots.could_run(spec.resources)):
            self._give_back(record)
            return
        self._attempt(record, AttemptEvent.AWAIT)
        missing = 0
        deps = []
        for item in spec.deps:
            dep = self._record(item.key)
            deps.append(dep)
            dep.waiters[record] = None
            dep.wanted = item.edition
            self._drop_if_stale(dep)
            if dep.goal is Goal.DROP:
                dep.goal = Goal.HOLD
                if dep.replica is ReplicaState.HELD:
                    self._add_key(dep)  # the scheduler had let go of it, and is to know that it is here
            if dep.replica is not ReplicaState.HELD:
                missing += 1
                dep.nbytes = item.nbytes
                if dep.priority > record.priority or not dep.busy:
                    dep.priority = record.priority
                self._seek(dep, item.holders)
        record.deps = tuple(deps)
        record.n_missing = missing
        if missing == 0:
            self._prepare(record)

    def _prepare(self, record: KeyRecord) -> None:
        assert record.spec is not None
        if record.spec.executor not in self.slots.pools:
            self._attempt(record, AttemptEvent.FAIL)
            text = f"UsageError: this worker has no executor {record.spec.executor!r}"
            self._out.append(Failed(record.key, record.spec.attempt, 0.0, 0.0, TaskError(None, None, text)))
            self._release_deps(record)
            return
        self._attempt(record, AttemptEvent.CONSTRAIN if record.spec.resources else AttemptEvent.PREPARE)
        self.slots.push(record)

    def _on_pressure(self, event: Pressure) -> None:
        """Memory runs short: start nothing, and hoard nothing that others could start; or go on."""
        if event.paused == self.paused:
            return
        self.paused = event.paused
        self.stimulus = "paused" if event.paused else "resumed"
        self._out.append(WorkerStatus(event.paused, event.reason))
        if event.paused:
            self._hand_back()

    def _on_offered(self, event: Offered) -> None:
        """Tell the scheduler, and let it place anew what was to have some of the resources there were before."""
        self.stimulus = "offered"
        self.slots.offer(event.resources)
        self._out.append(WorkerResources(dict(self.slots.total)))
        for record in list(self.keys.values()):
            if record.attempt in PENDING and record.spec is not None and record.spec.resources:
                self._drop_attempt(record)
                self._give_back(record)

    def _on_spilling(self, event: Spilling) -> None:
        self.slots.short = event.short
        for keys, on_disk in ((event.spilled, True), (event.loaded, False)):
            for key in keys:
                record = self.keys.get(key)
                if record is not None:
                    record.on_disk = on_disk

    def _hand_back(self) -> None:
        """Let others have what no thread has begun."""
        for record in list(self.keys.values()):
            if record.attempt in PENDING:
                self._drop_attempt(record)
                self._give_back(record)
        handed_out = [key for key in self.slots.running_keys() if self.keys[key].attempt is AttemptState.EXECUTING]
        if handed_out:
            self._effects.append(CancelRun(handed_out))  # those that a thread has begun go on

    def _on_leave(self, message: Leave) -> None:
        """Take nothing more, since this worker is to go; or go on."""
        self.stimulus = "leaving" if message.on else "staying"
        self.leaving = message.on
        if message.on:
            self._hand_back()
        self._out.append(Leaving(message.number))

    def _on_retired(self, message: Retired) -> None:
        """The scheduler has let go of this worker, after all that it held was elsewhere."""
        self.leaving = True
        for key in list(self.keys):
            self._on_free(key, self._announcements)
        if message.close:
            self._effects.append(Stop(message.reason))

    def _on_values_lost(self, event: ValuesLost) -> None:
        """Say so, and let the scheduler find other copies for the tasks here that need them, or compute them anew."""
        self.stimulus = "lost"
        for key in event.keys:
            record = self.keys.get(key)
            if record is None or record.replica is not ReplicaState.HELD:
                continue
            self._replica(record, ReplicaEvent.DROP)
            self._drop.append(key)
            for waiter in tuple(record.waiters):
                if waiter.attempt in PENDING:
                    self._drop_attempt(waiter)
                    self._give_back(waiter)
                    if waiter.waiters:
                        self._seek(waiter, ())
            self._out.append(Missing(key, [self.id], []))
            self._tidy(record)

    def _give_back(self, record: KeyRecord) -> None:
        """The scheduler may let another worker compute ``record``: here nothing is at work for it."""
        assert record.spec is not None
        item = (record.key, record.spec.attempt)
        if self._out and type(self._out[-1]) is GivenBack:
            self._out[-1].items.append(item)
        else:
            self._out.append(GivenBack([item]))
        record.goal = Goal.DROP
        self._tidy(record)

    def _start_tasks(self) -> None:
        while (record := self.slots.pop()) is not None:
            spec = record.spec
            assert spec is not None
            self._attempt(record, AttemptEvent.START)
            record.edition = spec.edition
            self.slots.take(record)
            deps = [dep.key for dep in record.deps]
            self._effects.append(Run(record.key, spec.fn, spec.payload, deps, spec.inline, spec.executor, spec.apart))
            self._release_deps(record)

    def _release_deps(self, record: KeyRecord) -> None:
        """``record`` needs its inputs no longer: it started, or will not."""
        deps, record.deps = record.deps, ()
        for dep in deps:
            dep.waiters.pop(record, None)
            if not dep.waiters:
                if dep.goal is Goal.HOLD and dep.replica in ON_THE_WAY and not dep.asked:
                    # The scheduler does not know of this copy, so it will not say when to let go of it.
                    dep.goal = Goal.DROP
                self._tidy(dep)

    def _drop_attempt(self, record: KeyRecord) -> None:
        self._attempt(record, AttemptEvent.DROP)
        self._release_deps(record)

    def _on_seceded(self, key: str) -> None:
        record = self.keys[key]
        if record.owed and self.slots.holds(key):
            self._out.append(LongRunning(key, record.owed))  # its resources are not free before it ends
        else:
            self._report_freed(record)
        self._attempt(record, AttemptEvent.SECEDE)
        self.slots.secede(record)
        if record.goal is Goal.COMPUTE and record.spec is not None:
            self._out.append(LongRunning(key, record.spec.attempt))

    def _on_rejoined(self, key: str) -> None:
        record = self.keys[key]
        self._attempt(record, AttemptEvent.REJOIN)
        self.slots.rejoin(record)

    def _on_outcome(self, outcome: Outcome) -> None:
        record = self.keys[outcome.key]
        spec = record.spec
        assert spec is not None
        began = outcome.status not in ("skipped", "killed")
        self.slots.give(record, outcome.stop - outcome.start if began else None)
        self.executed += began
        self._report_freed(record)
        if record.edition != record.wanted:
            if outcome.status == "ok":
                self._drop.append(record.key)
            self._attempt(record, AttemptEvent.END)
            self._resume(record)
        elif outcome.status == "ok":
            record.nbytes, record.type = outcome.nbytes, outcome.type
            self._attempt(record, AttemptEvent.END)
            if record.goal is Goal.DROP and not record.waiters:
                self._drop.append(record.key)
                self._tidy(record)
                return
            self._replica(record, ReplicaEvent.STORE)
            if record.goal is Goal.COMPUTE:
                self._report_done(record, outcome)
            elif record.goal is Goal.HOLD:
                self._add_key(record)
            self._stored(record)
        elif outcome.status == "error" and record.goal is Goal.COMPUTE:
            self._attempt(record, AttemptEvent.FAIL)
            self._out.append(
                Failed(
                    record.key,
                    spec.attempt,
                    outcome.start,
                    outcome.stop,
                    outcome.error,
                    outcome.thread,
                    outcome.peak,
                )
            )
        elif outcome.status == "reschedule" and record.goal is Goal.COMPUTE:
            self._attempt(record, AttemptEvent.END)
            record.goal = Goal.DROP
            self._out.append(Rescheduled(record.key, spec.attempt))
            self._resume(record)
        else:
            # It was not begun, or its failure matters to nobody: do what is wanted of the key by now.
            self._attempt(record, AttemptEvent.END)
            self._resume(record)

    def _resume(self, record: KeyRecord) -> None:
        """An activity ended without a value: do what is wanted of the key now."""
        if record.goal is Goal.COMPUTE:
            self._begin(record)
        elif record.waiters:
            self._seek(record, ())
        else:
            self._tidy(record)

    def _report_done(self, record: KeyRecord, outcome: Outcome | None = None) -> None:
        spec = record.spec
        assert spec is not None
        item = TaskDone(record.key, spec.attempt, record.nbytes, record.type, 0.0, 0.0)
        if outcome is not None:
            item.start, item.stop, item.thread = outcome.start, outcome.stop, outcome.thread
            item.peak = outcome.peak
            if spec.inline:
                item.value = outcome.value
        if self._out and type(self._out[-1]) is Finished:
            self._out[-1].items.append(item)
        else:
            self._out.append(Finished([item]))

    # -------------------------------------------------------------------------------------------- freeing

    def _on_free(self, key: str, seen: int) -> None:
        record = self.keys.get(key)
        if record is None:
            return
        assigned = record.goal is Goal.COMPUTE
        if record.replica is ReplicaState.HELD and record.announced > seen:
            # The scheduler did not know of this copy when it said so. It is about to hear of it, and will count on it.
            record.goal = Goal.HOLD
            return
        record.goal, record.asked = Goal.DROP, False
        if record.attempt in PENDING:
            self._drop_attempt(record)
            self._owe(record)
        elif record.attempt is AttemptState.FAILED:
            self._attempt(record, AttemptEvent.DROP)
        elif record.attempt is AttemptState.EXECUTING:
            self._effects.append(CancelRun([key], kill=True))
            if assigned:
                self._owe(record)
        elif (
            assigned
            and record.replica is not ReplicaState.HELD
            and (record.attempt is AttemptState.NONE or record.edition != record.wanted or self.slots.holds(key))
        ):
            # It waited for a transfer, or for the end of a task that left the pool: the latter was told, if it counts
            # and holds nothing else.
            self._owe(record)
        if record.attempt not in RUNNING or not (record.attempt is AttemptState.EXECUTING or self.slots.holds(key)):
            self._report_freed(record)
        if record.waiters and record.replica is ReplicaState.ABSENT:
            self._seek(record, ())
        self._tidy(record)

    def _owe(self, record: KeyRecord) -> None:
        """The assignment of ``record`` was taken back; the scheduler hears when what it holds is free."""
        assert record.spec is not None
        if record.owed:  # an earlier one has the thread, and this one has nothing
            self._say_freed(record.spec.attempt)
        else:
            record.owed = record.spec.attempt

    def _report_freed(self, record: KeyRecord) -> None:
        """The thread of an assignment that was taken back is free, if there was one, and so is what it held."""
        if record.owed:
            attempt, record.owed = record.owed, 0
            self._say_freed(attempt)

    def _say_freed(self, attempt: int) -> None:
        if self._out and type(self._out[-1]) is Freed:
            self._out[-1].attempts.append(attempt)
        else:
            self._out.append(Freed([attempt]))

    def _on_steal(self, message: Steal) -> None:
        """Another worker has a thread free: give the task up if it takes none here."""
        record = self.keys.get(message.key)
        granted = (
            record is not None
            and record.attempt in PENDING
            and record.spec is not None
            and record.spec.attempt == message.attempt
        )
        if granted:
            self._on_free(message.key, self._announcements)
        self._out.append(StealAnswer(message.key, message.attempt, granted))
