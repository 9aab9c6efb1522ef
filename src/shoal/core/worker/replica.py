"""One copy of one value on this worker: absent, wanted, on its way, here.

A transfer is not aborted, so a copy in ``flight`` stays there until the transfer ends, whatever the goal has become.
"""

from __future__ import annotations

from enum import IntEnum, auto
from typing import Final

from shoal.core.machine import Table


class ReplicaState(IntEnum):
    """Where a copy is."""

    #: Not here, not asked for.
    ABSENT = 0
    #: Wanted, and peers that hold it are known.
    FETCH = auto()
    #: Wanted, and no reachable peer is known; the scheduler is asked.
    MISSING = auto()
    #: A transfer is under way.
    FLIGHT = auto()
    #: Here.
    HELD = auto()


class ReplicaEvent(IntEnum):
    """What happens to a copy."""

    #: It is needed here, and holders are known.
    WANT = 0
    #: It is needed here, and nobody is known to hold it; or those who did are gone.
    MISS = auto()
    #: A transfer began.
    DEPART = auto()
    #: The value came.
    ARRIVE = auto()
    #: The transfer ended without it, and it is still wanted.
    FALL_THROUGH = auto()
    #: It was computed or put here.
    STORE = auto()
    #: Not wanted any more.
    DROP = auto()


_S, _E = ReplicaState, ReplicaEvent
REPLICA: Final = Table(
    "replica",
    ReplicaState,
    ReplicaEvent,
    ReplicaState.ABSENT,
    {
        (_S.ABSENT, _E.WANT): _S.FETCH,
        (_S.ABSENT, _E.MISS): _S.MISSING,
        (_S.ABSENT, _E.STORE): _S.HELD,
        (_S.FETCH, _E.DEPART): _S.FLIGHT,
        (_S.FETCH, _E.MISS): _S.MISSING,
        (_S.FETCH, _E.STORE): _S.HELD,
        (_S.FETCH, _E.DROP): _S.ABSENT,
        (_S.MISSING, _E.WANT): _S.FETCH,
        (_S.MISSING, _E.STORE): _S.HELD,
        (_S.MISSING, _E.DROP): _S.ABSENT,
        (_S.FLIGHT, _E.ARRIVE): _S.HELD,
        (_S.FLIGHT, _E.FALL_THROUGH): _S.FETCH,
        (_S.FLIGHT, _E.STORE): _S.HELD,
        (_S.FLIGHT, _E.DROP): _S.ABSENT,
        (_S.HELD, _E.DROP): _S.ABSENT,
    },
)
