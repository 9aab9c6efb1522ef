"""What a client knows of one key, shared by all futures of it."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum, auto
from typing import Any, Final

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


class FutureRecord:
    """The record of one key. The core changes it; ``refs``, ``wished``, ``event`` and ``callbacks`` are the shell's."""

    __slots__ = (
        "callbacks", "error", "event", "held", "key", "peak", "reason", "refs", "said", "status", "type", "value",
        "wish", "wished",
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
        #: Futures of the user's that point here.
        self.refs = 0
        #: How often it was wished for, how many of these wishes were told, and the number of the last one: news that
        #: the scheduler sent before it heard of that one say nothing about it.
        self.wished = self.said = self.wish = 0
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

    def concerned(self, wish: int) -> bool:
        """Whether news that was sent after ``wish`` had been heard is about this record as it is now."""
        return not self.over and self.wished == self.said and wish >= self.wish

    def __repr__(self) -> str:
        return f"<FutureRecord {self.key} {self.status.label} refs={self.refs}>"
