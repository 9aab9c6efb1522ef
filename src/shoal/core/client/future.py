"""What a client knows of one key, shared by all futures of it."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum, auto
from typing import Any, Final, NamedTuple

from shoal.core.machine import Table


class FutureStatus(IntEnum):
    """Where a key is, as far as the client was told; ``label`` is the name that users see."""

    #: Not done yet.
    PENDING = 0
    #: The result is in memory on the cluster.
    FINISHED = auto()
    #: It failed.
    ERROR = auto()
    #: It will not come: somebody cancelled it, or the cluster is gone.
    CANCELLED = auto()
    #: It was scattered, and its last copy is gone.
    LOST = auto()

    @property
    def label(self) -> str:
        return self.name.lower()


class FutureEvent(IntEnum):
    """What a client hears of a key."""

    FINISH = 0
    FAIL = auto()
    CANCEL = auto()
    LOSE = auto()
    #: It is being computed again.
    RESTART = auto()


_S, _E = FutureStatus, FutureEvent
#: News may be told twice (a second submission of the same key asks again), so FINISH and FAIL repeat; and news of a
#: restart that was sent before a wish was heard is passed over, so each may follow the other.
FUTURE: Final = Table(
    "future",
    FutureStatus,
    FutureEvent,
    FutureStatus.PENDING,
    {
        (_S.PENDING, _E.FINISH): _S.FINISHED,
        (_S.PENDING, _E.FAIL): _S.ERROR,
        (_S.PENDING, _E.CANCEL): _S.CANCELLED,
        (_S.PENDING, _E.LOSE): _S.LOST,
        (_S.PENDING, _E.RESTART): _S.PENDING,
        (_S.FINISHED, _E.FINISH): _S.FINISHED,
        (_S.FINISHED, _E.FAIL): _S.ERROR,
        (_S.FINISHED, _E.CANCEL): _S.CANCELLED,
        (_S.FINISHED, _E.LOSE): _S.LOST,
        (_S.FINISHED, _E.RESTART): _S.PENDING,
        (_S.ERROR, _E.FAIL): _S.ERROR,
        (_S.ERROR, _E.FINISH): _S.FINISHED,
        (_S.ERROR, _E.CANCEL): _S.CANCELLED,
        (_S.ERROR, _E.RESTART): _S.PENDING,
    },
    terminal=[_S.CANCELLED, _S.LOST],
)


#: Why a future that was let go of is cancelled.
RELEASED: Final = "it was released, and no other future of this client held it"


class Outcome(NamedTuple):
    """How a key stood at one moment: what is read together belongs together."""

    key: str
    status: FutureStatus
    value: Any
    error: Any
    reason: str


class FutureRecord:
    """The record of one key, shared by all futures of it. ``event``, ``callbacks`` and ``held`` are the shell's."""

    __slots__ = (
        "callbacks", "error", "event", "handles", "held", "key", "peak", "reason", "status", "type", "value", "wanted",
        "wish",
    )  # fmt: skip

    def __init__(self, key: str) -> None:
        self.key = key
        self.status = FutureStatus.PENDING
        #: The payload, where the result was small enough to come with the news.
        self.value: Any = None
        self.type = ""
        #: By how many bytes its process grew while it ran; 0 where that was not seen.
        self.peak = 0
        #: What failed: a message ``KeyErred`` or ``KilledTask``.
        self.error: Any = None
        #: Why it was cancelled or lost.
        self.reason = ""
        #: One entry for each future of the user's that points here. A list, because futures are let go of in any
        #: thread at any moment, also by the garbage collector, where no lock may be taken: ``pop`` is one step.
        self.handles: list[None] = []
        #: Whether the scheduler, once it has heard all that was said, wants the key in this client's name because of
        #: this record; and the number of the last wish for it: news that was sent before it was heard says nothing.
        self.wanted = False
        self.wish = 0
        #: Set when it is done; made by the first who waits.
        self.event: Any = None
        self.callbacks: list[Callable[[], None]] | None = None
        #: What must live until it is done (futures inside of its arguments).
        self.held: Any = None

    @property
    def pending(self) -> bool:
        return self.status is FutureStatus.PENDING

    @property
    def over(self) -> bool:
        """Whether nothing can happen to it any more."""
        return self.status in FUTURE.terminal

    @property
    def refs(self) -> int:
        """How many futures point here."""
        return len(self.handles)

    def concerned(self, wish: int) -> bool:
        """Whether news that was sent after ``wish`` had been heard is about this record as it is now."""
        return self.wanted and wish >= self.wish and not self.over

    def outcome(self) -> Outcome:
        """How it stands now."""
        return Outcome(self.key, self.status, self.value, self.error, self.reason)

    def __repr__(self) -> str:
        return f"<FutureRecord {self.key} {self.status.label} refs={self.refs}>"
