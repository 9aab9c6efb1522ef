"""Copies of values on a worker: wanted, brought from peers, held, given up.

:class:`Copies` keeps the records of all keys and the machine of their replicas; executions are in ``reactor.py``, which
builds on it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from shoal.core.effects import Drop, Effect, TakeOver
from shoal.core.events import FetchDone, FetchFailed, Outcome, PutDone
from shoal.core.worker.attempt import ATTEMPT, PENDING, AttemptEvent, AttemptState
from shoal.core.worker.fetching import Fetcher
from shoal.core.worker.key import Goal, KeyRecord
from shoal.core.worker.replica import REPLICA, ReplicaEvent, ReplicaState
from shoal.core.worker.slots import Slots
from shoal.messages import (
    AcquireCopies,
    AddKeys,
    Carry,
    DataPut,
    Failed,
    Given,
    KeyInfo,
    Missing,
    NotCopied,
    TaskError,
)

#: Seconds after which the scheduler is asked again for holders of a missing key.
ASK_AGAIN = 1.0
#: The priority of copies that no task here needs: they come after those that one does.
FOR_OTHERS: Final = 1 << 40
ON_THE_WAY = frozenset({ReplicaState.FETCH, ReplicaState.MISSING, ReplicaState.FLIGHT})

#: Names by number, since asking a member of an enum for its name takes longer than the transition.
_ATTEMPT_NAMES: Final = [state.name.lower() for state in AttemptState]
_ATTEMPT_EVENTS: Final = [event.name for event in AttemptEvent]
_REPLICA_NAMES: Final = [state.name.lower() for state in ReplicaState]
_REPLICA_EVENTS: Final = [event.name for event in ReplicaEvent]


class Copies(ABC):
    """The records of all keys, and what is done for their copies."""

    def __init__(self, id: str, slots: Slots, story_length: int) -> None:
        self.id = id
        self.keys: dict[str, KeyRecord] = {}
        self.slots = slots
        self.fetcher = Fetcher()
        self.story: deque[tuple[str, str, str, str, str, float]] = deque(maxlen=story_length)
        #: Transitions of this turn (key, before, after), where a plugin wants them.
        self.watched: list[tuple[str, str, str]] | None = None
        self.paused = False
        #: Whether it is to go, and takes nothing more.
        self.leaving = False
        #: Messages that told of copies here.
        self._announcements = 0
        self.stimulus = ""
        self.now = 0.0
        self._missing: dict[KeyRecord, None] = {}
        self._ask_at: float | None = None
        self._effects: list[Effect] = []
        self._out: list[Any] = []
        self._drop: list[str] = []

    @abstractmethod
    def _prepare(self, record: KeyRecord) -> None:
        """All inputs of ``record`` are here: it waits for a thread."""

    @abstractmethod
    def _resume(self, record: KeyRecord) -> None:
        """An activity ended without a value: do what is wanted of the key now."""

    @abstractmethod
    def _report_done(self, record: KeyRecord, outcome: Outcome | None = None) -> None:
        """Tell the scheduler that what it asked for is here."""

    @abstractmethod
    def _drop_attempt(self, record: KeyRecord) -> None:
        """Let go of an execution that no thread has."""

    @abstractmethod
    def _release_deps(self, record: KeyRecord) -> None:
        """``record`` needs its inputs no longer: it started, or will not."""

    # -------------------------------------------------------------------------------------------- transitions

    def _attempt(self, record: KeyRecord, event: AttemptEvent) -> None:
        before = record.attempt
        record.attempt = after = ATTEMPT.advance(before, event, record.key, self.story)
        names = _ATTEMPT_NAMES
        self.story.append((record.key, names[before], _ATTEMPT_EVENTS[event], names[after], self.stimulus, self.now))
        if self.watched is not None:
            self.watched.append((record.key, names[before], names[after]))

    def _replica(self, record: KeyRecord, event: ReplicaEvent) -> None:
        before = record.replica
        record.replica = after = REPLICA.advance(before, event, record.key, self.story)
        names = _REPLICA_NAMES
        self.story.append((record.key, names[before], _REPLICA_EVENTS[event], names[after], self.stimulus, self.now))
        if self.watched is not None:
            self.watched.append((record.key, names[before], names[after]))
        if before is ReplicaState.MISSING:
            self._missing.pop(record, None)
        if after is ReplicaState.MISSING:
            self._missing[record] = None

    def _record(self, key: str) -> KeyRecord:
        record = self.keys.get(key)
        if record is None:
            record = self.keys[key] = KeyRecord(key)
        return record

    def _drop_if_stale(self, record: KeyRecord) -> None:
        """The value that is here was made by another definition of the key than the one that is meant."""
        if record.replica is ReplicaState.HELD and record.edition != record.wanted:
            self._replica(record, ReplicaEvent.DROP)
            self._drop.append(record.key)

    def _stored(self, record: KeyRecord) -> None:
        """The value is here now: tasks that waited for it may be ready."""
        record.on_disk = False
        for waiter in record.waiters:
            waiter.n_missing -= 1
            if waiter.n_missing == 0:
                self._prepare(waiter)

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

    def _flush_drops(self) -> None:
        if self._drop:
            self._effects.append(Drop(self._drop))
            self._drop = []

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
            self._miss(record)

    def _miss(self, record: KeyRecord) -> None:
        """Nobody is known that holds it and can be reached."""
        self._replica(record, ReplicaEvent.MISS)
        self._report_missing(record)
        if not record.waiters:
            self._give_up(record, "none of those who were said to hold it gave it", False)

    def _on_acquire(self, message: AcquireCopies) -> None:
        """The scheduler wants copies here, whether or not a task here needs them."""
        self.fetcher.meet(message.peers)
        for item in message.items:
            record = self._record(item.key)
            if record.goal is Goal.COMPUTE:
                self._give_up(record, "it is to be computed here", False)
                continue
            record.goal, record.asked, record.wanted = Goal.HOLD, True, item.edition
            self._drop_if_stale(record)
            if record.replica is ReplicaState.HELD:
                self._add_key(record)
                continue
            record.nbytes = item.nbytes
            if not record.waiters:
                record.priority = (FOR_OTHERS, message.rank, 0)
            self._seek(record, item.holders)

    def _give_up(self, record: KeyRecord, reason: str, broken: bool) -> None:
        """A copy that the scheduler asked for will not come; it decides anew."""
        self._out.append(NotCopied(record.key, reason, broken))
        record.asked = False
        if record.goal is Goal.HOLD:
            record.goal = Goal.DROP
            self._tidy(record)

    def _on_holders(self, record: KeyRecord, holders: list[str]) -> None:
        if record.replica is ReplicaState.MISSING or record.replica is ReplicaState.FETCH:
            self._seek(record, holders)

    def _start_fetches(self, now: float) -> None:
        if self.paused:
            return
        for fetch, records in self.fetcher.plan(now):
            for record in records:
                self._replica(record, ReplicaEvent.DEPART)
            if self.fetcher.is_round(fetch.peer, now):
                rid = self.fetcher.begin_round(fetch.peer)
                self._out.append(Carry(rid, fetch.keys, fetch.max_bytes, fetch.peer))
            else:
                self._effects.append(fetch)

    def _on_carried(self, message: Given) -> None:
        """What a peer has that cannot be reached came by way of the scheduler, or will not."""
        peer = self.fetcher.came_round(message.rid)
        if peer is None:
            return
        if message.reason:
            self._on_fetch_failed(FetchFailed(peer, [], message.reason))
        else:
            self._effects.append(TakeOver(peer, message.items, message.missing, message.errors, message.editions))

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
            elif record.goal is Goal.HOLD:  # else it goes when those here that wait for it have it
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
        nowhere = self.fetcher.failed(event.peer, self.now)
        for record in self.fetcher.ended(event.peer).values():
            self._fall_through(record, event.peer, absent=False, unreachable=nowhere)

    def _fall_through(self, record: KeyRecord, peer: str, absent: bool, unreachable: bool) -> None:
        """A transfer ended without this key."""
        if record.replica is not ReplicaState.FLIGHT:
            return
        if absent or unreachable:
            record.holders.pop(peer, None)
            (record.tried_absent if absent else record.tried_unreachable).append(peer)
        if record.goal is Goal.COMPUTE or not (record.waiters or record.asked):
            self._replica(record, ReplicaEvent.DROP)
            self._resume(record)
            return
        self._replica(record, ReplicaEvent.FALL_THROUGH)
        if record.holders:
            self.fetcher.want(record)
        else:
            self._miss(record)

    def _fail_waiters(self, record: KeyRecord, text: str) -> None:
        """The value of ``record`` can never come here: it is computed, or the tasks that need it fail."""
        self._replica(record, ReplicaEvent.DROP)
        if record.goal is Goal.COMPUTE:
            self._resume(record)
            return
        for waiter in tuple(record.waiters):
            spec = waiter.spec
            assert spec is not None
            self._attempt(waiter, AttemptEvent.FAIL)
            error = TaskError(None, None, f"{text} (it is an input of {waiter.key!r})")
            self._out.append(Failed(waiter.key, spec.attempt, 0.0, 0.0, error))
            self._release_deps(waiter)
        if record.asked:
            self._give_up(record, text, True)
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
            self._announcements += 1
            self._out.append(AddKeys([item]))
        record.announced = self._announcements

    def takes(self, key: str) -> bool:
        """Whether data that a client puts here under ``key`` is to be stored: a task of that name counts for more."""
        if self.leaving:
            return False
        record = self.keys.get(key)
        if record is None:
            return True
        computed = record.goal is Goal.COMPUTE or record.attempt is not AttemptState.NONE
        return not computed and record.wanted == 0 and (record.replica is not ReplicaState.HELD or record.edition == 0)

    def _on_put_done(self, event: PutDone) -> None:
        self.stimulus = f"put:{event.client}"
        items = [KeyInfo(key, -1) for key in event.refused]
        self._announcements += 1
        for key, nbytes, kind in event.items:
            record = self._record(key)
            record.announced = self._announcements
            record.nbytes, record.type, record.edition = nbytes, kind, 0
            items.append(KeyInfo(key, nbytes, kind))
            if record.goal is Goal.DROP:
                record.goal = Goal.HOLD
            if record.replica is not ReplicaState.HELD:
                self._replica(record, ReplicaEvent.STORE)
                self._stored(record)
        self._out.append(DataPut(event.client, items, event.number))
