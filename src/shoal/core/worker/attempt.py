"""One execution of one task on this worker.

An attempt exists from the moment that the scheduler asks for the task until its end has been dealt with. Whether the
scheduler still wants it is not told here but by the key's goal: a thread cannot be stopped, so an attempt in
``executing`` or ``long-running`` always lives until its thread is done.
"""

from __future__ import annotations

from enum import IntEnum, auto
from typing import Final

from shoal.core.machine import Table


class AttemptState(IntEnum):
    """Where an execution is."""

    #: No execution.
    NONE = 0
    #: Some input is not here.
    WAITING = auto()
    #: Waits for a thread.
    READY = auto()
    #: Waits for abstract resources.
    CONSTRAINED = auto()
    #: A thread has it.
    EXECUTING = auto()
    #: A thread has it that has left the pool.
    LONG_RUNNING = auto()
    #: It raised, and the scheduler was told.
    FAILED = auto()


class AttemptEvent(IntEnum):
    """What happens to an execution."""

    #: Asked for, with inputs outstanding.
    AWAIT = 0
    #: All inputs are here.
    PREPARE = auto()
    #: All inputs are here, and it needs resources.
    CONSTRAIN = auto()
    #: Given to a thread.
    START = auto()
    #: Its thread left the pool.
    SECEDE = auto()
    #: Its thread is back in the pool.
    REJOIN = auto()
    #: It ended with a value, or its end does not matter any more.
    END = auto()
    #: It ended with an error that matters.
    FAIL = auto()
    #: Not wanted any more, and no thread has it.
    DROP = auto()


_S, _E = AttemptState, AttemptEvent
ATTEMPT: Final = Table(
    "attempt",
    AttemptState,
    AttemptEvent,
    AttemptState.NONE,
    {
        (_S.NONE, _E.AWAIT): _S.WAITING,
        (_S.WAITING, _E.PREPARE): _S.READY,
        (_S.WAITING, _E.CONSTRAIN): _S.CONSTRAINED,
        (_S.WAITING, _E.DROP): _S.NONE,
        (_S.WAITING, _E.FAIL): _S.FAILED,
        (_S.READY, _E.START): _S.EXECUTING,
        (_S.READY, _E.DROP): _S.NONE,
        (_S.CONSTRAINED, _E.START): _S.EXECUTING,
        (_S.CONSTRAINED, _E.DROP): _S.NONE,
        (_S.EXECUTING, _E.SECEDE): _S.LONG_RUNNING,
        (_S.EXECUTING, _E.END): _S.NONE,
        (_S.EXECUTING, _E.FAIL): _S.FAILED,
        (_S.LONG_RUNNING, _E.REJOIN): _S.EXECUTING,
        (_S.LONG_RUNNING, _E.END): _S.NONE,
        (_S.LONG_RUNNING, _E.FAIL): _S.FAILED,
        (_S.FAILED, _E.DROP): _S.NONE,
    },
)

#: A thread has it: the key is never forgotten before it ends.
RUNNING: Final = frozenset({_S.EXECUTING, _S.LONG_RUNNING})
#: No thread has it yet.
PENDING: Final = frozenset({_S.WAITING, _S.READY, _S.CONSTRAINED})
