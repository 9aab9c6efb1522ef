"""Copies from worker to worker for their own sake, not for a task that needs them there.

A copy counts from the moment in which its new holder has told of it, and not before. It may come late, or never: its
target may pause, leave, die, or be unable to have it. Then the move is over, and whoever wanted it (a retirement, the
active memory manager, a client) finds it among the failures of that turn and decides anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from shoal.core.scheduler.roster import WorkerRecord
from shoal.core.scheduler.state import SchedulerState
from shoal.core.scheduler.task import Task, TaskState
from shoal.messages import AcquireCopies, Dep, NotCopied

#: Copies under way to one worker at the same time, in keys and in bytes, where many are to go there.
WINDOW_KEYS: Final = 10_000
WINDOW_BYTES: Final = 256_000_000
#: How often a worker that did not bring a key is asked for it.
TRIES: Final = 3
#: The share of the assumed bandwidth at which a transfer counts as one that goes on.
_SLOWEST: Final = 0.05


class Move:
    """One copy under way: where it goes, and which holder is to drop its own once it is there."""

    __slots__ = ("instead_of", "size", "target", "task")

    def __init__(self, task: Task, target: WorkerRecord, instead_of: WorkerRecord | None) -> None:
        self.task, self.target, self.instead_of = task, target, instead_of
        self.size = max(task.nbytes, 0)


class Failure(NamedTuple):
    """A copy that did not come; ``broken``: the value cannot travel at all. ``blame``: it is the target's fault."""

    task: Task
    target: WorkerRecord
    reason: str
    broken: bool = False
    blame: bool = True


class Copying:
    """All copies under way.

    Parameters
    ----------
    state
        The scheduler's tables.
    timeout
        Seconds without a copy after which a worker that was asked for some is not waited for any longer.
    """

    def __init__(self, state: SchedulerState, timeout: float) -> None:
        self.state, self.timeout = state, timeout
        self.moves: dict[Task, dict[WorkerRecord, Move]] = {}
        #: How often a worker was given up that brought nothing.
        self.timeouts = 0
        #: How many moves are over: each leaves room for another.
        self.ended = 0
        self._targets: dict[WorkerRecord, None] = {}
        self._failures: list[Failure] = []

    def watch(self) -> None:
        """Have the tables note whose copies change from now on."""
        if self.state.touched is None:
            self.state.touched = {}

    def has_window(self, target: WorkerRecord) -> bool:
        """Whether ``target`` may be asked for more now."""
        return target.incoming_nbytes < WINDOW_BYTES and len(target.incoming) < WINDOW_KEYS

    def projected(self, worker: WorkerRecord) -> int:
        """Bytes that ``worker`` holds once all that it was asked for is there."""
        return worker.nbytes + worker.incoming_nbytes

    def has_room(self, worker: WorkerRecord, size: int) -> bool:
        """Whether ``size`` bytes more fit into the memory that ``worker`` may fill with results."""
        limit = worker.memory_limit * self.state.settings.fill
        return not limit or self.projected(worker) + size <= limit

    def begin(self, task: Task, target: WorkerRecord, rank: int = 0, instead_of: WorkerRecord | None = None) -> None:
        """Ask ``target`` for a copy of ``task``; those of a lower ``rank`` are fetched first."""
        assert target.running, target
        assert target not in (task.who_has or ()), task
        self.watch()
        move = Move(task, target, instead_of)
        self.moves.setdefault(task, {})[target] = move
        if not target.incoming:
            self._targets[target] = None
            target.progress = self.state.now
        target.incoming[task] = move
        target.incoming_nbytes += move.size
        state = self.state
        if task.key in target.out_free:
            state.flush_free(target)
        last = target.out[-1] if target.out else None
        if type(last) is not AcquireCopies or last.rank != rank:
            last = AcquireCopies([], rank, {})
            state.tell(target, last)
        holders = [str(worker.id) for worker in task.who_has or ()]
        last.items.append(Dep(task.key, task.nbytes, holders, task.edition))
        state.introduce(target, holders, last.peers)

    def _end(self, move: Move) -> None:
        task, target = move.task, move.target
        self.ended += 1
        of_task = self.moves[task]
        del of_task[target], target.incoming[task]
        if not of_task:
            del self.moves[task]
        target.incoming_nbytes -= move.size
        if not target.incoming:
            del self._targets[target]

    def cancel(self, move: Move, reason: str, blame: bool) -> None:
        """``move`` is not wanted any more, or is not waited for."""
        self._end(move)
        known = self.state.tasks.get(move.task.key)
        if known is None or known.worker is not move.target:  # or it would drop what it was just asked to compute
            self.state.free(move.target, move.task.key)
        self._failures.append(Failure(move.task, move.target, reason, False, blame))

    def refused(self, worker: WorkerRecord, message: NotCopied) -> None:
        """``worker`` cannot have a copy."""
        task = self.state.tasks.get(message.key)
        move = worker.incoming.get(task) if task is not None else None
        if move is not None:
            self._end(move)
            self._failures.append(Failure(move.task, worker, message.reason, message.broken))

    def reconcile(self, touched: Iterable[Task], now: float) -> list[Failure]:
        """Find what came, and what will not come; return the latter."""
        for task in touched:
            for target, move in tuple(self.moves.get(task, {}).items()):
                if task.state is not TaskState.MEMORY:
                    self.cancel(move, f"{task.key!r} is {task.state.label}", False)
                elif target in (task.who_has or ()):
                    self._end(move)
                    target.progress = now
                    if move.instead_of is not None:
                        self.state.drop_copy(task, move.instead_of)
        for target in tuple(self._targets):
            if not target.running:
                reason = f"worker {target.name} is {target.state.label}"
            elif now >= self._due(target):
                reason = f"worker {target.name} brought nothing of it for {now - target.progress:.0f} s"
                self.timeouts += 1
            else:
                continue
            for move in tuple(target.incoming.values()):
                self.cancel(move, reason, target.running)
        failures, self._failures = self._failures, []
        return failures

    def _due(self, target: WorkerRecord) -> float:
        slowest = _SLOWEST * self.state.bandwidth
        return target.progress + self.timeout + target.incoming_nbytes / slowest

    def deadline(self) -> float | None:
        """When a target that brought nothing is given up."""
        return min((self._due(target) for target in self._targets), default=None)
