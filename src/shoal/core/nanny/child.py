"""The worker process as its nanny sees it."""

from __future__ import annotations

from enum import IntEnum, auto
from typing import Final

from shoal.core.machine import Table


class ChildState(IntEnum):
    """Where the process is."""

    #: None, and none is coming.
    DOWN = 0
    #: Spawned; it has not said that it is ready.
    STARTING = auto()
    #: Ready.
    UP = auto()
    #: Asked to end, or killed; it has not been joined.
    EXITING = auto()
    #: Gone; the next start is due at a known time.
    BACKOFF = auto()
    #: It failed to start too often. Nothing more happens.
    GIVEN_UP = auto()


class ChildEvent(IntEnum):
    """What happens to the process."""

    START = 0
    READY = auto()
    END = auto()
    EXIT = auto()
    EXIT_FOR_GOOD = auto()
    GIVE_UP = auto()


_S, _E = ChildState, ChildEvent
CHILD: Final = Table(
    "child",
    ChildState,
    ChildEvent,
    ChildState.DOWN,
    {
        (_S.DOWN, _E.START): _S.STARTING,
        (_S.BACKOFF, _E.START): _S.STARTING,
        (_S.BACKOFF, _E.EXIT_FOR_GOOD): _S.DOWN,
        (_S.BACKOFF, _E.GIVE_UP): _S.GIVEN_UP,
        (_S.STARTING, _E.READY): _S.UP,
        (_S.STARTING, _E.END): _S.EXITING,
        (_S.STARTING, _E.EXIT): _S.BACKOFF,
        (_S.STARTING, _E.EXIT_FOR_GOOD): _S.DOWN,
        (_S.UP, _E.END): _S.EXITING,
        (_S.UP, _E.EXIT): _S.BACKOFF,
        (_S.UP, _E.EXIT_FOR_GOOD): _S.DOWN,
        (_S.EXITING, _E.EXIT): _S.BACKOFF,
        (_S.EXITING, _E.EXIT_FOR_GOOD): _S.DOWN,
    },
    terminal=[_S.GIVEN_UP],
)
