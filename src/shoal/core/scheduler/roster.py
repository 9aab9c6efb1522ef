"""Who is connected: workers, the slots that they live in, nannies and clients.

Rules: tables are keyed by id, never by address. A worker record that has left is never used again; a message that
still carries its id changes nothing.
"""

from __future__ import annotations

import math
from collections import deque
from enum import IntEnum, auto
from typing import TYPE_CHECKING, Any, Final

from shoal.core.amounts import offered
from shoal.core.machine import Table
from shoal.core.scheduler.task import Task
from shoal.ids import ClientId, SlotId, WorkerId
from shoal.messages import Submit

if TYPE_CHECKING:
    from shoal.core.scheduler.copying import Move
    from shoal.core.scheduler.owing import Owed
    from shoal.core.scheduler.scarce import Shape


class WorkerState(IntEnum):
    """Where a worker is in its life."""

    #: Its link is open; it has not registered.
    JOINING = 0
    #: Takes tasks.
    RUNNING = auto()
    #: Takes none for now (memory).
    PAUSED = auto()
    #: Told to go; its data is being moved.
    LEAVING = auto()
    #: Gone for good.
    LEFT = auto()

    @property
    def label(self) -> str:
        return {"joining": "init", "leaving": "closing_gracefully", "left": "closed"}.get(
            self.name.lower(), self.name.lower()
        )


class WorkerEvent(IntEnum):
    """What happens to a worker."""

    REGISTER = 0
    PAUSE = auto()
    RESUME = auto()
    RETIRE = auto()
    KEEP = auto()
    REMOVE = auto()


_S, _E = WorkerState, WorkerEvent
WORKER: Final = Table(
    "worker",
    WorkerState,
    WorkerEvent,
    WorkerState.JOINING,
    {
        (_S.JOINING, _E.REGISTER): _S.RUNNING,
        (_S.JOINING, _E.REMOVE): _S.LEFT,
        (_S.RUNNING, _E.PAUSE): _S.PAUSED,
        (_S.PAUSED, _E.RESUME): _S.RUNNING,
        (_S.RUNNING, _E.RETIRE): _S.LEAVING,
        (_S.PAUSED, _E.RETIRE): _S.LEAVING,
        (_S.LEAVING, _E.KEEP): _S.RUNNING,
        (_S.RUNNING, _E.REMOVE): _S.LEFT,
        (_S.PAUSED, _E.REMOVE): _S.LEFT,
        (_S.LEAVING, _E.REMOVE): _S.LEFT,
    },
    terminal=[_S.LEFT],
)


class WorkerRecord:
    """One worker process."""

    __slots__ = (
        "addresses", "announced", "capacity", "claims", "executors", "functions", "gone", "has_what", "heap_load",
        "host", "id", "in_use", "incoming", "incoming_nbytes", "last_seen", "lingering", "local_directory", "lowered",
        "memory_limit", "metrics", "n_ahead", "n_long_running", "n_needy", "n_pooled", "n_stealing", "n_stolen", "name",
        "nbytes", "nthreads", "occupancy", "out", "out_free", "paused", "peers", "pid", "pools_in_use", "postponed",
        "processing", "progress", "resources", "shut", "slot", "slots", "state",
    )  # fmt: skip

    def __init__(
        self,
        id: WorkerId,
        name: str,
        slot: SlotId,
        addresses: list[str],
        nthreads: int,
        saturation: float,
        memory_limit: int = 0,
        host: str = "",
        pid: int = 0,
        local_directory: str = "",
        resources: dict[str, float] | None = None,
        executors: dict[str, int] | None = None,
    ) -> None:
        self.id, self.name, self.slot = id, name, slot
        self.addresses, self.host, self.pid = addresses, host, pid
        self.nthreads, self.memory_limit = nthreads, memory_limit
        self.local_directory = local_directory
        self.resources = resources or {}
        #: The same in units, and how much of it is in use (see ``scarce.py``).
        self.capacity = {resource: offered(amount) for resource, amount in self.resources.items()}
        self.in_use: dict[str, int] = {}
        #: Whether it had more once, so that more may be in use than it has.
        self.lowered = False
        #: Threads of pools that it has beside the one that all tasks run in which ask for no other.
        self.executors = executors or {}
        #: How many threads of each of those are in use.
        self.pools_in_use: dict[str, int] = {}
        self.state = WorkerState.JOINING
        #: Tasks assigned at the same time, however long each takes.
        self.slots = 1_000_000_000 if math.isinf(saturation) else max(1, math.ceil(nthreads * saturation))
        self.processing: dict[Task, None] = {}
        self.has_what: dict[Task, None] = {}
        #: How many of these wait for an input that is to be computed here, and tasks that there was no room for.
        self.n_ahead = 0
        #: How many run outside of the pool of threads.
        self.n_long_running = 0
        #: Threads of the pool, and of others, that tasks which take something scarce are in.
        self.n_needy = self.n_pooled = 0
        #: What assignments still hold that were taken back, by number, and whether that includes a thread.
        self.claims: dict[int, tuple[Shape, bool]] = {}
        #: Shapes of tasks for which it had not enough free.
        self.shut: dict[Shape, None] = {}
        #: Tasks asked of others for it, and asked of it for others.
        self.n_stealing = self.n_stolen = 0
        self.postponed: list[Task] | None = None
        #: Seconds of work assigned, without those.
        self.occupancy = 0.0
        #: Assignments that were taken back and whose threads may be at work still, with the seconds counted for each.
        self.lingering: dict[int, float] = {}
        #: Bytes of results held.
        self.nbytes = 0
        #: How often it told of copies that it had not been assigned to compute.
        self.announced = 0
        #: Copies that it was asked for, with their bytes in all, and when the last of them came
        #: or the first was asked for.
        self.incoming: dict[Task, Move] = {}
        self.incoming_nbytes = 0
        self.progress = 0.0
        #: Whether it takes no tasks of its own accord.
        self.paused = False
        #: Functions and peers that it was told of, so that each is sent once.
        self.functions: set[str] = set()
        self.peers: set[str] = set()
        #: Peers that it was told of and that are gone since.
        self.gone: list[str] = []
        #: Messages of this turn, in order; keys to free go last.
        self.out: list[Any] = []
        self.out_free: dict[str, None] = {}
        #: The load under which it stands in the heap of open workers; None where it does not.
        self.heap_load: float | None = None
        self.metrics: dict[str, Any] = {}
        self.last_seen = 0.0

    @property
    def address(self) -> str:
        """The address that users see."""
        return self.addresses[0] if self.addresses else self.id

    @property
    def load(self) -> float:
        """Seconds until a thread is free."""
        return self.occupancy / self.nthreads

    @property
    def n_runnable(self) -> int:
        """Tasks that it runs in its pool of threads, or could run now."""
        return len(self.processing) - self.n_ahead - self.n_long_running + len(self.lingering) - self.n_pooled

    @property
    def running(self) -> bool:
        return self.state is WorkerState.RUNNING

    @property
    def stays(self) -> bool:
        """Whether a copy that it holds is safe from retirement."""
        return self.state is WorkerState.RUNNING or self.state is WorkerState.PAUSED

    def answers_to(self, name: str) -> bool:
        """Whether a user who writes ``name`` (name, address, host, id or slot) means this worker."""
        return name in (self.name, self.host, self.id, self.slot) or name in self.addresses

    def __lt__(self, other: WorkerRecord) -> bool:
        return self.id < other.id

    def __repr__(self) -> str:
        return (
            f"<Worker {self.name} {self.state.label} processing={len(self.processing)} "
            f"has={len(self.has_what)} occupancy={self.occupancy:.3g}s>"
        )


class ClientRecord:
    """One client."""

    __slots__ = (
        "functions", "generation", "id", "name", "out", "owed", "pieces", "remote", "submitted", "wants", "wish",
    )  # fmt: skip

    def __init__(self, id: ClientId, name: str = "", remote: bool = True) -> None:
        self.id = id
        self.name = name
        #: Whether it is a client at all, and not the scheduler itself, which keeps what others left with it.
        self.remote = remote
        self.wants: dict[Task, None] = {}
        #: The last of its wishes that was heard.
        self.wish = 0
        #: Functions that it sent and may refer to.
        self.functions: set[str] = set()
        #: When it submitted something last, and the generation that those tasks are of.
        self.submitted, self.generation = 0.0, 0
        self.out: list[Any] = []
        #: What it is not told, as it does not read; None while it does.
        self.owed: Owed | None = None
        #: Of a submission that comes in pieces, what came so far.
        self.pieces: list[Submit] = []

    def __repr__(self) -> str:
        return f"<Client {self.id} wants={len(self.wants)}>"


class NannyRecord:
    """One nanny: a slot, the worker that lives there now, and how those before it ended."""

    __slots__ = (
        "address", "burdens", "deaths", "died_at", "host", "id", "last_death", "name", "parted", "pid", "recoveries",
        "restarts", "worker",
    )  # fmt: skip

    def __init__(self, id: SlotId, name: str, host: str, pid: int, address: str = "") -> None:
        self.id, self.name, self.host, self.pid, self.address = id, name, host, pid, address
        self.worker: WorkerId | None = None
        #: The last worker that said goodbye: its end is nobody's fault.
        self.parted: WorkerId | None = None
        #: The last worker that was gone, and the tasks whose inputs it may have been bringing (``burdens.py``).
        self.burdens: tuple[WorkerId, dict[str, str], bool] | None = None
        #: Workers that ended, by cause; how often another was started.
        self.deaths: dict[str, int] = {}
        self.restarts = 0
        #: Why the last one ended.
        self.last_death = ""
        #: Seconds from each of the last deaths until the next worker was there.
        self.recoveries: deque[float] = deque(maxlen=100)
        self.died_at: float | None = None

    def came(self, worker: WorkerId, now: float) -> None:
        """A worker registered."""
        self.worker = worker
        if self.died_at is not None:
            self.recoveries.append(now - self.died_at)
            self.died_at = None

    def died(self, cause: str, reason: str, restarting: bool, now: float) -> None:
        """A worker ended."""
        self.deaths[cause] = self.deaths.get(cause, 0) + 1
        self.last_death = reason
        self.restarts += restarting
        if self.died_at is None and restarting:
            self.died_at = now

    def __repr__(self) -> str:
        return f"<Nanny {self.name} worker={self.worker} restarts={self.restarts}>"


class FunctionRecord:
    """A function in its pickled form, kept while a client may refer to it or a task needs it."""

    __slots__ = ("clients", "n_tasks", "payload")

    def __init__(self, payload: Any) -> None:
        self.payload = payload
        self.clients: set[ClientId] = set()
        self.n_tasks = 0
