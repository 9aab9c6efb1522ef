"""The active memory manager: policies that suggest which keys should have more copies, or fewer.

A policy is an object whose ``run()`` yields suggestions ``("replicate" | "drop", task, candidates)``; candidates are
workers, or None for any. It is sent the worker that was chosen, or None. The manager turns down what would harm: a drop
of the last copy on a worker that stays, or of one that a task needs there; a copy onto a worker that takes no data or
has one. A pass is spread over as many turns of the scheduler as it takes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Generator, Iterable
from heapq import heapify, heapreplace
from typing import Any, Final

from shoal.core.effects import ERROR
from shoal.core.scheduler.copying import Copying
from shoal.core.scheduler.roster import WorkerRecord
from shoal.core.scheduler.state import SchedulerState
from shoal.core.scheduler.task import Task, TaskState

#: Suggestions (or None, for looking on) that are taken in one turn.
_A_TURN: Final = 2_000

Suggestion = tuple[str, Task, Collection[WorkerRecord] | None]
Suggestions = Generator[Suggestion | None, WorkerRecord | None, None]


class ActiveMemoryManagerPolicy(ABC):
    """Suggests copies. Users derive their own from it, and add them where the scheduler runs.

    Examples
    --------
    >>> class Everywhere(ActiveMemoryManagerPolicy):
    ...     def run(self):
    ...         for task in list(self.manager.scheduler.tasks.values()):
    ...             yield "replicate", task, None
    >>> client.run_on_scheduler(  # doctest: +SKIP
    ...     lambda dask_scheduler: dask_scheduler.extensions["amm"].add_policy(Everywhere())
    ... )
    """

    #: Set when it is added.
    manager: MemoryManager

    @abstractmethod
    def run(self) -> Suggestions:
        """Yield suggestions; None where there is nothing to suggest yet, so that others have a turn."""


class ReduceReplicas(ActiveMemoryManagerPolicy):
    """Drop the copies that are left from fetching inputs: as many stay as there are tasks that will need the key."""

    def run(self) -> Suggestions:
        """Suggest a drop for each copy that is too many."""
        state = self.manager.state
        for task in list(state.replicated):
            copies = sum(worker.stays for worker in task.who_has or ())
            enough = max(1, task.n_waiters, state.wanted_copies.get(task, 1))
            if copies <= enough:
                yield None
            for _ in range(copies - enough):
                yield "drop", task, None


class MemoryManager:
    """Runs policies at intervals.

    Parameters
    ----------
    state, copying
        The tables, and how copies are made.
    log
        Called with a level and a text.
    interval
        Seconds between two passes.
    running
        Whether passes are made by themselves.
    """

    def __init__(
        self,
        state: SchedulerState,
        copying: Copying,
        log: Callable[[int, str], None],
        interval: float,
        running: bool,
    ) -> None:
        self.state, self._copying, self._log = state, copying, log
        self.interval, self.running = interval, running
        self.policies: dict[Any, None] = {}
        self.add_policy(ReduceReplicas())
        #: Suggestions that were carried out, by kind, and that were turned down.
        self.counts = {"replicate": 0, "drop": 0, "refused": 0}
        self._pass: Suggestions | None = None
        self._next: float | None = None
        self._emptiest: list[tuple[int, str, WorkerRecord]] = []

    @property
    def scheduler(self) -> SchedulerState:
        """The scheduler's tables: ``tasks`` and ``workers``, by key and id."""
        return self.state

    def add_policy(self, policy: Any) -> None:
        """Run ``policy`` in each pass from now on.

        Raises
        ------
        TypeError
            If it has no ``run``.
        """
        if not callable(getattr(policy, "run", None)):
            raise TypeError(f"a policy of the memory manager has a method run, got {policy!r}")
        policy.manager = self
        self.policies[policy] = None

    def remove_policy(self, policy: Any) -> None:
        self.policies.pop(policy, None)

    def start(self) -> None:
        """Make a pass at each interval."""
        self.running = True

    def stop(self) -> None:
        """Make no more passes by itself."""
        self.running, self._next = False, None

    def run_once(self) -> None:
        """Make a pass now; it ends within the next turns."""
        self._next = self.state.now
        if self._pass is None:
            self._begin()

    def _begin(self) -> None:
        workers = self.state.workers.values()
        self._emptiest = [(self._copying.projected(w), w.id, w) for w in workers if w.running]
        heapify(self._emptiest)
        self._pass = self._suggestions()

    def _suggestions(self) -> Suggestions:
        for policy in tuple(self.policies):
            try:
                yield from _generator(policy.run())
            except BaseException as error:  # a user's own: the others, and the scheduler, go on
                self._log(ERROR, f"the policy {_words(policy)} of the memory manager failed: {_words(error)}")
                if isinstance(error, GeneratorExit):
                    return  # it may be this generator that is closed

    def step(self, now: float) -> bool:
        """Go on with a pass, or begin one that is due; return whether there is more to do at once."""
        if self._pass is None:
            idle = not self.state.replicated and len(self.policies) == 1
            if not self.running or idle:
                self._next = None
                return False
            if self._next is None:
                self._next = now + self.interval
            if now < self._next:
                return False
            self._begin()
        assert self._pass is not None
        chosen: WorkerRecord | None = None
        try:
            for _ in range(_A_TURN):
                suggestion = self._pass.send(chosen)
                if suggestion is None:
                    chosen = None
                    continue
                sound = _checked(suggestion)
                if sound is None:
                    self._log(ERROR, f"a policy of the memory manager suggests {_words(suggestion)}: {_SOUND}")
                    chosen = None
                    continue
                chosen = self._carry_out(*sound)
                self.counts[suggestion[0] if chosen is not None else "refused"] += 1
        except StopIteration:
            self._pass = self._next = None  # the next event, whatever it is, sets the time for another
            return False
        return True

    def deadline(self) -> float | None:
        """When the next pass is due."""
        return self._next

    def _carry_out(self, what: str, task: Task, candidates: Collection[WorkerRecord] | None) -> WorkerRecord | None:
        if task.state is not TaskState.MEMORY or task.actor:
            return None
        if what == "drop":
            return self._drop(task, candidates)
        if what == "replicate":
            return self._replicate(task, candidates)
        self._log(ERROR, f"a policy of the memory manager suggests {what!r}; it may be 'replicate' or 'drop'")
        return None

    def _replicate(self, task: Task, candidates: Collection[WorkerRecord] | None) -> WorkerRecord | None:
        moves = self._copying.moves.get(task, {})
        size = max(task.nbytes, 0)

        def may(worker: WorkerRecord) -> bool:
            return (
                worker.running
                and worker not in (task.who_has or ())
                and worker not in moves
                and self._copying.has_room(worker, size)
            )

        target: WorkerRecord | None = None
        if candidates is None:
            heap = self._emptiest
            if heap and may(heap[0][2]):
                target = heap[0][2]
                self._copying.begin(task, target)
                heapreplace(heap, (self._copying.projected(target), target.id, target))
                return target
            candidates = [entry[2] for entry in heap]
        able = [worker for worker in candidates if may(worker)]
        target = min(able, key=lambda worker: (self._copying.projected(worker), worker.id), default=None)
        if target is not None:
            self._copying.begin(task, target)
        return target

    def _drop(self, task: Task, candidates: Collection[WorkerRecord] | None) -> WorkerRecord | None:
        needed = {dependent.worker for dependent in task.dependents or () if dependent.worker is not None}
        able = [
            worker
            for worker in task.who_has or ()
            if (candidates is None or worker in candidates) and worker.stays and worker not in needed
        ]
        source = max(able, key=lambda worker: (self._copying.projected(worker), worker.id), default=None)
        return source if source is not None and self.state.drop_copy(task, source) else None


_SOUND: Final = "it may be ('replicate' or 'drop', a task, workers or None)"


def _checked(suggestion: Any) -> Suggestion | None:
    """What a policy suggests, with its candidates in a list; None where it is something else."""
    try:
        what, task, candidates = suggestion
        named = None if candidates is None else list(candidates)
    except BaseException:  # what a user's own collection raises: it is told as no suggestion at all
        return None
    known = isinstance(task, Task) and all(isinstance(one, WorkerRecord) for one in named or ())
    return (what, task, named) if type(what) is str and known else None


def _words(thing: Any) -> str:
    try:
        return repr(thing)
    except BaseException:
        return f"(a {type(thing).__name__} whose __repr__ raises)"


def _generator(suggestions: Iterable[Suggestion | None]) -> Suggestions:
    """What may be sent to; a policy may also return a list."""
    if isinstance(suggestions, Generator):
        yield from suggestions
    else:
        yield from iter(suggestions)
