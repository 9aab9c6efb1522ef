"""Where the worker's events meet its keys: scheduler messages, ended threads, ended transfers.

The rules of spec "worker's state machine", in the order in which they matter here: the goal is the scheduler's last
word on a key; a thread or a transfer that is under way is never forgotten, and its result serves whatever the goal
has become by then; an execution needs its inputs until it starts, not longer; nothing is dropped that a pending task
here still needs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, assert_never

from shoal.core.effects import CallUser, CancelRun, Drop, Effect, Functions, Run, Send, Stop
from shoal.core.events import (
    CallDone,
    Due,
    Event,
    FetchDone,
    FetchFailed,
    LinkLost,
    Outcome,
    Outcomes,
    Pressure,
    PutDone,
    Received,
    Rejoined,
    Seceded,
)
from shoal.core.worker.attempt import ATTEMPT, PENDING, RUNNING, AttemptEvent, AttemptState
from shoal.core.worker.fetching import Fetcher
from shoal.core.worker.invariants import check
from shoal.core.worker.key import Goal, KeyRecord
from shoal.core.worker.replica import REPLICA, ReplicaEvent, ReplicaState
from shoal.core.worker.slots import Slots
from shoal.messages import (
    AddKeys,
    Answer,
    Call,
    Close,
    Compute,
    ComputeTask,
    DataPut,
    DropFunctions,
    Failed,
    Finished,
    FreeKeys,
    GivenBack,
    Holders,
    KeyInfo,
    LongRunning,
    Missing,
    Rescheduled,
    Steal,
    StealAnswer,
    TaskDone,
    TaskError,
    ToWorker,
    WorkerRegistered,
    WorkerRejected,
    WorkerStatus,
)

#: Seconds after which the scheduler is asked again for holders of a missing key.
ASK_AGAIN = 1.0


class WorkerCore:
    """All decisions of a worker.

    Parameters
    ----------
    id
        Unique id of this worker process.
    nthreads
        Tasks that run at the same time.
    resources
        Abstract resources, by name.
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
    ) -> None:
        self.id = id
        self.keys: dict[str, KeyRecord] = {}
        self.slots = Slots(nthreads, resources or {})
        self.fetcher = Fetcher()
        self.story: deque[tuple[str, str, str, str, str, float]] = deque(maxlen=story_length)
        self.registered = False
        self.paused = False
        self.executed = 0
        self.stimulus = ""
        self.now = 0.0
        self.validate = validate
        self._missing: dict[KeyRecord, None] = {}
        self._ask_at: float | None = None
        self._effects: list[Effect] = []
        self._out: list[Any] = []
        self._drop: list[str] = []

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
            elif type(event) is Pressure:
                self._on_pressure(event)
            elif type(event) is CallDone:
                self._out.append(Answer(event.rid, event.payload))
            elif type(event) is LinkLost:
                effects.append(Stop(f"the link to the scheduler broke: {event.reason}"))
            elif type(event) is not Due:
                raise TypeError(f"not an event of a worker's: {event!r}")
        self._ask_for_missing(now)
        self._flush_drops()  # before what starts now may bring the same keys anew
        self._start_tasks()
        self._start_fetches(now)
        self._flush_drops()
        effects.extend(Send("", message) for message in self._out)
        self._out.clear()
        if self.validate:
            check(self)
        return effects

    def _flush_drops(self) -> None:
        if self._drop:
            self._effects.append(Drop(self._drop))
            self._drop = []

    def deadline(self) -> float | None:
        """When :meth:`handle` is to be called even if nothing happens."""
        due = [at for at in (self._ask_at, None if self.paused else self.fetcher.deadline()) if at is not None]
        return min(due, default=None)

    def _on_message(self, message: ToWorker) -> None:
        match message:
            case Compute():
                self.fetcher.peers.update(message.peers)
                if message.functions:
                    self._effects.append(Functions(message.functions))
                for task in message.tasks:
                    self._on_compute(task)
            case FreeKeys():
                for key in message.keys:
                    self._on_free(key)
            case Steal():
                self._on_steal(message)
            case Holders():
                self.fetcher.peers.update(message.peers)
                record = self.keys.get(message.key)
                if record is not None:
                    self._on_holders(record, message.holders)
            case DropFunctions():
                self._effects.append(Functions(dict.fromkeys(message.fns)))
            case Call():
                self._effects.append(CallUser(message.rid, message.payload, message.wait))
            case Close():
                self._effects.append(Stop(message.reason))
            case WorkerRegistered():
                self.registered = True
            case WorkerRejected():
                self._effects.append(Stop(f"the scheduler refused this worker: {message.reason}"))
            case _:
                assert_never(message)

    # -------------------------------------------------------------------------------------------- transitions

    def _attempt(self, record: KeyRecord, event: AttemptEvent) -> None:
        before = record.attempt
        record.attempt = after = ATTEMPT.advance(before, event, record.key, self.story)
        self.story.append((record.key, before.name, event.name, after.name, self.stimulus, self.now))

    def _replica(self, record: KeyRecord, event: ReplicaEvent) -> None:
        before = record.replica
        record.replica = after = REPLICA.advance(before, event, record.key, self.story)
        self.story.append((record.key, before.name, event.name, after.name, self.stimulus, self.now))
        if before is ReplicaState.MISSING:
            self._missing.pop(record, None)
        if after is ReplicaState.MISSING:
            self._missing[record] = None

    def _record(self, key: str) -> KeyRecord:
        record = self.keys.get(key)
        if record is None:
            record = self.keys[key] = KeyRecord(key)
        return record

    # -------------------------------------------------------------------------------------------- computing

    def _on_compute(self, task: ComputeTask) -> None:
        record = self._record(task.key)
        if record.attempt in PENDING:
            self._drop_attempt(record)
        elif record.attempt is AttemptState.FAILED:
            self._attempt(record, AttemptEvent.DROP)
        record.goal = Goal.COMPUTE
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

    def _drop_if_stale(self, record: KeyRecord) -> None:
        """The value that is here was made by another definition of the key than the one that is meant."""
        if record.replica is ReplicaState.HELD and record.edition != record.wanted:
            self._replica(record, ReplicaEvent.DROP)
            self._drop.append(record.key)

    def _begin(self, record: KeyRecord) -> None:
        """Start an attempt: find its inputs, or put it in line."""
        spec = record.spec
        assert spec is not None
        if self.paused:
            self._give_back(record)
            return
        self._attempt(record, AttemptEvent.AWAIT)
        missing = 0
        deps = []
        for item in spec.deps:
            dep = self._record(item.key)
            deps.append(dep)
            dep.waiters[record] = None
            if dep.goal is Goal.DROP:
                dep.goal = Goal.HOLD
            dep.wanted = item.edition
            self._drop_if_stale(dep)
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
        self._attempt(record, AttemptEvent.CONSTRAIN if record.spec.resources else AttemptEvent.PREPARE)
        self.slots.push(record)

    def _on_pressure(self, event: Pressure) -> None:
        """Memory runs short: start nothing, and hoard nothing that others could start; or go on."""
        if event.paused == self.paused:
            return
        self.paused = event.paused
        self.stimulus = "paused" if event.paused else "resumed"
        self._out.append(WorkerStatus(event.paused, event.reason))
        if not event.paused:
            return
        for record in list(self.keys.values()):
            if record.attempt in PENDING:
                self._drop_attempt(record)
                self._give_back(record)
        handed_out = [key for key in self.slots.running_keys() if self.keys[key].attempt is AttemptState.EXECUTING]
        if handed_out:
            self._effects.append(CancelRun(handed_out))  # those that a thread has begun go on

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
            self._effects.append(Run(record.key, spec.fn, spec.payload, deps, spec.inline))
            self._release_deps(record)

    def _release_deps(self, record: KeyRecord) -> None:
        """``record`` needs its inputs no longer: it started, or will not."""
        deps, record.deps = record.deps, ()
        for dep in deps:
            dep.waiters.pop(record, None)
            if not dep.waiters:
                if dep.goal is Goal.HOLD and dep.replica in _ON_THE_WAY:
                    # The scheduler does not know of this copy, so it will not say when to let go of it.
                    dep.goal = Goal.DROP
                self._tidy(dep)

    def _drop_attempt(self, record: KeyRecord) -> None:
        self._attempt(record, AttemptEvent.DROP)
        self._release_deps(record)

    def _on_seceded(self, key: str) -> None:
        record = self.keys[key]
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
        began = outcome.status != "skipped"
        self.slots.give(record, outcome.stop - outcome.start if began else None)
        self.executed += began
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
            else:
                self._add_key(record)
            self._stored(record)
        elif outcome.status == "error" and record.goal is Goal.COMPUTE:
            self._attempt(record, AttemptEvent.FAIL)
            self._out.append(
                Failed(record.key, spec.attempt, outcome.start, outcome.stop, outcome.error, outcome.thread)
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
            if spec.inline:
                item.value = outcome.value
        if self._out and type(self._out[-1]) is Finished:
            self._out[-1].items.append(item)
        else:
            self._out.append(Finished([item]))

    def _stored(self, record: KeyRecord) -> None:
        """The value is here now: tasks that waited for it may be ready."""
        for waiter in record.waiters:
            waiter.n_missing -= 1
            if waiter.n_missing == 0:
                self._prepare(waiter)

    # -------------------------------------------------------------------------------------------- freeing

    def _on_free(self, key: str) -> None:
        record = self.keys.get(key)
        if record is None:
            return
        record.goal = Goal.DROP
        if record.attempt in PENDING:
            self._drop_attempt(record)
            if record.waiters and record.replica is ReplicaState.ABSENT:
                self._seek(record, ())
        elif record.attempt is AttemptState.FAILED:
            self._attempt(record, AttemptEvent.DROP)
        elif record.attempt is AttemptState.EXECUTING:
            self._effects.append(CancelRun([key]))
        self._tidy(record)

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
            self._on_free(message.key)
        self._out.append(StealAnswer(message.key, message.attempt, granted))

    def _tidy(self, record: KeyRecord) -> None:
        """Forget ``record`` if the scheduler lets it go, nothing is under way for it, and no task here needs it."""
        if record.goal is not Goal.DROP or record.waiters or record.busy or record.attempt in PENDING:
            return
        if record.replica is not ReplicaState.ABSENT:
            if record.replica is ReplicaState.HELD:
                self._drop.append(record.key)
            self._replica(record, ReplicaEvent.DROP)
        if self.keys.get(record.key) is record:
            del self.keys[record.key]

    # -------------------------------------------------------------------------------------------- copies

    def _seek(self, record: KeyRecord, holders: Sequence[str]) -> None:
        """A copy is needed here: fetch it, unless it is being computed or fetched already."""
        for holder in holders:
            if holder != self.id:
                record.holders[holder] = None
        if record.busy or record.attempt in PENDING:
            return
        if record.attempt is AttemptState.FAILED:
            self._attempt(record, AttemptEvent.DROP)
        if record.holders:
            if record.replica is not ReplicaState.FETCH:
                self._replica(record, ReplicaEvent.WANT)
            self.fetcher.want(record)
        elif record.replica is not ReplicaState.MISSING:
            self._replica(record, ReplicaEvent.MISS)
            self._report_missing(record)

    def _on_holders(self, record: KeyRecord, holders: list[str]) -> None:
        if record.replica is ReplicaState.MISSING or record.replica is ReplicaState.FETCH:
            self._seek(record, holders)

    def _start_fetches(self, now: float) -> None:
        if self.paused:
            return
        for fetch, records in self.fetcher.plan(now):
            for record in records:
                self._replica(record, ReplicaEvent.DEPART)
            self._effects.append(fetch)

    def _on_fetch_done(self, event: FetchDone) -> None:
        self.stimulus = f"fetched:{event.peer}"
        self.fetcher.reached(event.peer)
        records = self.fetcher.ended(event.peer)
        for key, nbytes, kind in event.got:
            record = records.pop(key, None)
            if record is None or record.replica is not ReplicaState.FLIGHT:
                continue
            if event.editions.get(key, 0) != record.wanted:
                self._drop.append(key)
                self._fall_through(record, event.peer, absent=True, unreachable=False)
                continue
            record.nbytes, record.type, record.edition = nbytes, kind, record.wanted
            if record.goal is Goal.DROP and not record.waiters:
                self._replica(record, ReplicaEvent.DROP)
                self._drop.append(key)
                self._tidy(record)
                continue
            self._replica(record, ReplicaEvent.ARRIVE)
            record.holders.clear()
            if record.goal is Goal.COMPUTE:
                self._report_done(record)
            else:
                self._add_key(record)
            self._stored(record)
        for key, reason in event.failed.items():
            record = records.pop(key, None)
            if record is not None:
                self._fail_waiters(record, f"SerializationError: {reason}")
        absent = set(event.missing)
        for record in records.values():
            # Neither sent nor said to be absent: it did not fit, and is asked for again.
            self._fall_through(record, event.peer, absent=record.key in absent, unreachable=False)

    def _on_fetch_failed(self, event: FetchFailed) -> None:
        self.stimulus = f"unreachable:{event.peer}"
        self.fetcher.unreachable(event.peer, self.now)
        for record in self.fetcher.ended(event.peer).values():
            self._fall_through(record, event.peer, absent=False, unreachable=True)

    def _fall_through(self, record: KeyRecord, peer: str, absent: bool, unreachable: bool) -> None:
        """A transfer ended without this key."""
        if record.replica is not ReplicaState.FLIGHT:
            return
        if absent or unreachable:
            record.holders.pop(peer, None)
            (record.tried_absent if absent else record.tried_unreachable).append(peer)
        if record.goal is Goal.COMPUTE or not record.waiters:
            self._replica(record, ReplicaEvent.DROP)
            self._resume(record)
            return
        self._replica(record, ReplicaEvent.FALL_THROUGH)
        if record.holders:
            self.fetcher.want(record)
        else:
            self._replica(record, ReplicaEvent.MISS)
            self._report_missing(record)

    def _fail_waiters(self, record: KeyRecord, text: str) -> None:
        """The value of ``record`` can never come here: the tasks that need it fail."""
        self._replica(record, ReplicaEvent.DROP)
        for waiter in tuple(record.waiters):
            spec = waiter.spec
            assert spec is not None
            self._attempt(waiter, AttemptEvent.FAIL)
            error = TaskError(None, None, f"{text} (it is an input of {waiter.key!r})")
            self._out.append(Failed(waiter.key, spec.attempt, 0.0, 0.0, error))
            self._release_deps(waiter)
        record.goal = Goal.DROP
        self._tidy(record)

    def _report_missing(self, record: KeyRecord) -> None:
        self._out.append(Missing(record.key, record.tried_absent, record.tried_unreachable))
        record.tried_absent, record.tried_unreachable = [], []
        if self._ask_at is None:
            self._ask_at = self.now + ASK_AGAIN

    def _ask_for_missing(self, now: float) -> None:
        if self._ask_at is None or now < self._ask_at:
            return
        self._ask_at = None
        for record in self._missing:
            self._report_missing(record)

    def _add_key(self, record: KeyRecord) -> None:
        item = KeyInfo(record.key, record.nbytes, record.type, record.edition)
        if self._out and type(self._out[-1]) is AddKeys:
            self._out[-1].items.append(item)
        else:
            self._out.append(AddKeys([item]))

    def _on_put_done(self, event: PutDone) -> None:
        self.stimulus = f"put:{event.client}"
        items = []
        for key, nbytes, kind in event.items:
            record = self._record(key)
            record.nbytes, record.type, record.wanted = nbytes, kind, 0
            items.append(KeyInfo(key, nbytes, kind))
            if record.goal is Goal.DROP:
                record.goal = Goal.HOLD
            if record.attempt in PENDING:
                self._drop_attempt(record)
            if record.replica is not ReplicaState.HELD and record.attempt not in RUNNING:
                self._replica(record, ReplicaEvent.STORE)
                record.edition = 0
                self._stored(record)
        self._out.append(DataPut(event.client, items))


_ON_THE_WAY = frozenset({ReplicaState.FETCH, ReplicaState.MISSING, ReplicaState.FLIGHT})
