"""What this worker knows of one key: what is wanted of it (the goal), and the two machines below.

Intention and activity are apart. The *goal* is the scheduler's word and changes at any moment; the *attempt* and the
*replica* are what threads and transfers are doing, and end in their own time. The names that users know are readings
of the three (:attr:`KeyRecord.label`), not states of their own.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from shoal.core.worker.attempt import RUNNING, AttemptState
from shoal.core.worker.replica import ReplicaState
from shoal.messages import ComputeTask


class Goal(IntEnum):
    """What the scheduler wants of a key here."""

    #: Nothing: forget it once nothing is under way for it.
    DROP = 0
    #: A copy, for tasks that run here or because it was put here.
    HOLD = 1
    #: The result, computed here.
    COMPUTE = 2


_ATTEMPT_LABELS: Final = {
    AttemptState.WAITING: "waiting",
    AttemptState.READY: "ready",
    AttemptState.CONSTRAINED: "constrained",
    AttemptState.EXECUTING: "executing",
    AttemptState.LONG_RUNNING: "long-running",
    AttemptState.FAILED: "error",
}
_REPLICA_LABELS: Final = {
    ReplicaState.ABSENT: "released",
    ReplicaState.FETCH: "fetch",
    ReplicaState.MISSING: "missing",
    ReplicaState.FLIGHT: "flight",
    ReplicaState.HELD: "memory",
}


class KeyRecord:
    """The record of one key on one worker."""

    __slots__ = (
        "announced", "asked", "attempt", "deps", "edition", "goal", "holders", "key", "n_missing", "nbytes",
        "on_disk", "owed", "passed_over", "priority", "replica", "seq", "spec", "tried_absent",
        "tried_unreachable", "type", "waiters", "wanted",
    )  # fmt: skip

    def __init__(self, key: str) -> None:
        self.key = key
        self.goal = Goal.DROP
        self.attempt = AttemptState.NONE
        self.replica = ReplicaState.ABSENT
        #: What to run, and under which assignment number; replaced whole when the scheduler asks anew.
        self.spec: ComputeTask | None = None
        self.priority: tuple[int, int, int] = (0, 0, 0)
        #: The definition that made what is held here (or that the thread at work carries out), and the one meant.
        self.edition = self.wanted = 0
        #: The number of the assignment that was taken back while a thread was at work for it, of whose end the
        #: scheduler is to hear; 0 where there is none.
        self.owed = 0
        #: Whether the scheduler asked for a copy here, beside those that tasks here need.
        self.asked = False
        #: The number of the message in which the scheduler was last told of a copy here.
        self.announced = 0
        #: Inputs of the pending or running attempt.
        self.deps: tuple[KeyRecord, ...] = ()
        self.n_missing = 0
        #: Records whose attempt has this one as an input, as an ordered set.
        self.waiters: dict[KeyRecord, None] = {}
        #: Ids of peers that are said to hold it, as an ordered set.
        self.holders: dict[str, None] = {}
        self.tried_absent: list[str] = []
        self.tried_unreachable: list[str] = []
        #: Whether the value was spilled, as far as is known; and how often others were run before it for that reason.
        self.on_disk = False
        self.passed_over = 0
        self.nbytes = 0
        self.type = ""
        self.seq = 0

    @property
    def busy(self) -> bool:
        """Whether a thread or a transfer is at work for it."""
        return self.attempt in RUNNING or self.replica is ReplicaState.FLIGHT

    @property
    def label(self) -> str:
        """The state by the name that users know."""
        if self.busy:
            if self.goal is Goal.DROP and not self.waiters:
                return "cancelled"
            if self.attempt in RUNNING and self.goal is Goal.HOLD:
                return "resumed"
            if self.replica is ReplicaState.FLIGHT and self.goal is Goal.COMPUTE:
                return "resumed"
        if self.replica is ReplicaState.HELD:
            return "memory"
        if self.attempt is not AttemptState.NONE:
            return _ATTEMPT_LABELS[self.attempt]
        return _REPLICA_LABELS[self.replica]

    def __repr__(self) -> str:
        return f"<Key {self.key} {self.label} goal={self.goal.name.lower()}>"
