"""A task as the scheduler sees it: its states, its table, its record.

A task that a client or another task needs is on its way: ``released`` → ``waiting`` (inputs are missing) →
``processing`` (a worker has it), with ``queued`` (all workers are busy) and ``no-worker`` (none may run it) between →
``memory`` or ``erred``. What nobody needs goes back to ``released``, and is ``forgotten`` once nothing could be
recomputed from it. A task in waiting, queued, no-worker or processing is called *active*.
"""

from __future__ import annotations

from enum import IntEnum, auto
from typing import TYPE_CHECKING, Any, Final

from shoal.core.machine import Table
from shoal.messages import Options

if TYPE_CHECKING:
    from shoal.core.scheduler.roster import ClientRecord, WorkerRecord
    from shoal.core.scheduler.scarce import Shape


class TaskState(IntEnum):
    """Where a task is; ``label`` is the name that users see."""

    #: Known, and neither held nor under way.
    RELEASED = 0
    #: Needed; some input is not in memory yet.
    WAITING = auto()
    #: Inputs are there; no worker may run it.
    NO_WORKER = auto()
    #: Inputs are there; every worker has enough to do.
    QUEUED = auto()
    #: Assigned to a worker.
    PROCESSING = auto()
    #: At least one worker holds the result.
    MEMORY = auto()
    #: It failed, or an input did.
    ERRED = auto()
    #: The record is gone.
    FORGOTTEN = auto()

    @property
    def label(self) -> str:
        return self.name.lower().replace("_", "-")


class TaskEvent(IntEnum):
    """What happens to a task."""

    #: A client or another task needs it.
    REQUIRE = 0
    #: A worker was chosen.
    ASSIGN = auto()
    #: All workers have enough to do.
    ENQUEUE = auto()
    #: No worker may run it.
    STRAND = auto()
    #: An input that was there is gone.
    BLOCK = auto()
    #: The worker that had it is gone, gave it back, or it is tried again.
    RETURN = auto()
    #: The assigned worker has the result.
    FINISH = auto()
    #: It, or an input, failed.
    FAIL = auto()
    #: A client put the value.
    SCATTER = auto()
    #: The last copy is gone.
    LOSE = auto()
    #: Nobody needs it any more.
    RELEASE = auto()
    #: Nothing could be recomputed from it.
    FORGET = auto()


_S, _E = TaskState, TaskEvent
TASK: Final = Table(
    "task",
    TaskState,
    TaskEvent,
    TaskState.RELEASED,
    {
        (_S.RELEASED, _E.REQUIRE): _S.WAITING,
        (_S.RELEASED, _E.SCATTER): _S.MEMORY,
        (_S.RELEASED, _E.FORGET): _S.FORGOTTEN,
        (_S.WAITING, _E.ASSIGN): _S.PROCESSING,
        (_S.WAITING, _E.ENQUEUE): _S.QUEUED,
        (_S.WAITING, _E.STRAND): _S.NO_WORKER,
        (_S.WAITING, _E.FAIL): _S.ERRED,
        (_S.WAITING, _E.RELEASE): _S.RELEASED,
        (_S.QUEUED, _E.ASSIGN): _S.PROCESSING,
        (_S.QUEUED, _E.STRAND): _S.NO_WORKER,
        (_S.QUEUED, _E.BLOCK): _S.WAITING,
        (_S.QUEUED, _E.FAIL): _S.ERRED,
        (_S.QUEUED, _E.RELEASE): _S.RELEASED,
        (_S.NO_WORKER, _E.ASSIGN): _S.PROCESSING,
        (_S.NO_WORKER, _E.ENQUEUE): _S.QUEUED,
        (_S.NO_WORKER, _E.BLOCK): _S.WAITING,
        (_S.NO_WORKER, _E.FAIL): _S.ERRED,
        (_S.NO_WORKER, _E.RELEASE): _S.RELEASED,
        (_S.PROCESSING, _E.FINISH): _S.MEMORY,
        (_S.PROCESSING, _E.FAIL): _S.ERRED,
        (_S.PROCESSING, _E.RETURN): _S.WAITING,
        (_S.PROCESSING, _E.RELEASE): _S.RELEASED,
        (_S.MEMORY, _E.LOSE): _S.RELEASED,
        (_S.MEMORY, _E.RELEASE): _S.RELEASED,
        (_S.ERRED, _E.RELEASE): _S.RELEASED,
    },
    terminal=[_S.FORGOTTEN],
)

#: States in which a task counts as a waiter of its inputs.
ACTIVE: Final = frozenset({_S.WAITING, _S.NO_WORKER, _S.QUEUED, _S.PROCESSING})


class TaskPrefix:
    """What tasks of one name have in common; what they take is learned here."""

    __slots__ = ("duration", "failures", "finished", "name", "nbytes")

    def __init__(self, name: str, duration: float | None = None) -> None:
        self.name = name
        #: Moving average of the seconds that one execution takes; None until one has ended.
        self.duration = duration
        #: Moving average of the bytes of one result; None until there is one.
        self.nbytes: float | None = None
        self.finished = 0
        self.failures = 0

    def learn(self, seconds: float | None, nbytes: int) -> None:
        """One more has finished: ``seconds`` is None where its time says nothing about others."""
        self.finished += 1
        if seconds is not None:
            self.duration = seconds if self.duration is None else 0.5 * self.duration + 0.5 * seconds
        self.nbytes = nbytes if self.nbytes is None else 0.5 * self.nbytes + 0.5 * nbytes

    def __repr__(self) -> str:
        took = "?" if self.duration is None else f"{self.duration:.3g}s"
        return f"<TaskPrefix {self.name} {took} n={self.finished}>"


class TaskGroup:
    """Tasks of one step of one computation: those whose keys are tuples that begin alike, or all of a prefix."""

    __slots__ = ("name", "nbytes", "prefix", "seconds", "states")

    def __init__(self, name: str, prefix: TaskPrefix) -> None:
        self.name, self.prefix = name, prefix
        #: How many are in each state, by the number of the state.
        self.states = [0] * len(TaskState)
        #: Bytes that results of it took, and seconds that threads worked on it, in all.
        self.nbytes = 0
        self.seconds = 0.0

    @property
    def known(self) -> int:
        """How many there are."""
        return sum(self.states) - self.states[TaskState.FORGOTTEN]

    def __repr__(self) -> str:
        counts = " ".join(f"{state.label}={self.states[state]}" for state in TaskState if self.states[state])
        return f"<TaskGroup {self.name} {counts}>"


class Task:
    """The record of one key. Only :class:`~shoal.core.scheduler.state.SchedulerState` changes it."""

    __slots__ = (
        "attempt", "deaths", "dependents", "deps", "edition", "error", "estimate", "fn", "group", "key", "long_running",
        "n_waiters", "n_waiting", "nbytes", "options", "origin", "payload", "peak", "priority", "retries", "seq",
        "shape", "state", "thief", "type", "unknown", "who_has", "who_wants", "worker",
    )  # fmt: skip

    def __init__(self, key: str, group: TaskGroup) -> None:
        self.key = key
        self.group = group
        self.state = TaskState.RELEASED
        #: The id of the function, "" for a graph node, None where there is no recipe (scattered data).
        self.fn: str | None = None
        self.payload: Any = None
        self.options: Options | None = None
        #: What it takes of which there is little, if anything.
        self.shape: Shape | None = None
        self.deps: tuple[Task, ...] = ()
        #: The key of an input that was not known when it was submitted: it cannot run, however often it is tried.
        self.unknown = ""
        #: Known tasks that have this one as an input, as an ordered set; made on first use.
        self.dependents: dict[Task, None] | None = None
        #: How many inputs are not in memory; kept while active. A processing task that lacks some was assigned ahead
        #: of time: its worker computes them.
        self.n_waiting = 0
        #: How many dependents are active.
        self.n_waiters = 0
        self.priority: tuple[int, int, int] = (0, 0, 0)
        #: The worker it is assigned to, while processing.
        self.worker: WorkerRecord | None = None
        #: Whether it left the pool of its worker's threads.
        self.long_running = False
        #: Digest of the definition, with those of all inputs; 0 until it is assigned the first time.
        self.edition = 0
        #: Number of the assignment; a report about another one is stale.
        self.attempt = 0
        #: The worker for which it was asked of its own, or for which its own has given it up.
        self.thief: WorkerRecord | None = None
        #: Seconds that the assignment is expected to take, as counted in the worker's occupancy.
        self.estimate = 0.0
        #: Entry number in the queue, so that an old entry is known for what it is.
        self.seq = 0
        self.who_has: dict[WorkerRecord, None] | None = None
        self.who_wants: dict[ClientRecord, None] | None = None
        self.nbytes = -1
        self.type = ""
        #: By how many bytes its process grew while it ran; 0 where that was not seen.
        self.peak = 0
        self.retries = 0
        #: One line for each death of a worker that was running it.
        self.deaths: list[str] | None = None
        #: What to tell clients while erred: a KeyErred or KilledTask.
        self.error: Any = None
        #: The key whose failure made this one err.
        self.origin = ""

    @property
    def needed(self) -> bool:
        return bool(self.who_wants) or self.n_waiters > 0

    @property
    def actor(self) -> bool:
        """Whether its result is an object that lives where it was made: never copied, stolen or made anew."""
        return self.options is not None and self.options.actor

    @property
    def lost(self) -> bool:
        """Whether it is scattered data without a copy: nothing can bring it back."""
        return self.fn is None and self.state is TaskState.RELEASED

    @property
    def active(self) -> bool:
        return self.state in ACTIVE

    def __lt__(self, other: Task) -> bool:
        return (self.priority, self.key) < (other.priority, other.key)

    def __repr__(self) -> str:
        where = f" on {self.worker.name}" if self.worker else ""
        return f"<Task {self.key} {self.state.label}{where}>"
