"""The scheduler's containers: tasks, workers, nannies, clients, queues, and the story of all transitions."""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import Any, Final

from shoal.core.scheduler.cuts import Cuts
from shoal.core.scheduler.outbox import Outbox
from shoal.core.scheduler.queues import OpenWorkers, Stranded, TaskQueue
from shoal.core.scheduler.roster import (
    ClientRecord,
    FunctionRecord,
    NannyRecord,
    WorkerRecord,
)
from shoal.core.scheduler.scarce import Scarce
from shoal.core.scheduler.settings import Settings
from shoal.core.scheduler.task import TASK, Task, TaskEvent, TaskGroup, TaskPrefix, TaskState
from shoal.ids import ClientId, SlotId, WorkerId, key_group, key_prefix
from shoal.messages import Failed, TaskDone

#: Names by number, since asking a member of an enum for its name takes longer than the transition.
_LABELS: Final = [state.label for state in TaskState]
_EVENTS: Final = [event.name for event in TaskEvent]

#: Prefixes of tasks that are known; those that no task has are forgotten beyond that, the oldest first.
PREFIXES: Final = 10_000


class Tables(Outbox):
    """What the scheduler knows, and the one way in which a task's state changes."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.bandwidth = settings.bandwidth
        self.tasks: dict[str, Task] = {}
        self.prefixes: dict[str, TaskPrefix] = {}
        self.groups: dict[str, TaskGroup] = {}
        self.functions: dict[str, FunctionRecord] = {}
        self.workers: dict[WorkerId, WorkerRecord] = {}
        self.by_slot: dict[SlotId, WorkerRecord] = {}
        self.by_name: dict[str, WorkerRecord] = {}
        self.nannies: dict[SlotId, NannyRecord] = {}
        self.clients: dict[ClientId, ClientRecord] = {}
        self.queue = TaskQueue()
        self.open = OpenWorkers(settings.backlog)
        self.stranded = Stranded()
        self.scarce = Scarce()
        #: Workers that have more than they can run, as an ordered set; some may not any more.
        self.crowded: dict[WorkerRecord, None] = {}
        #: Workers that may run tasks with the same restrictions, and where the next comparison of some of them begins.
        self.able: dict[Any, list[WorkerRecord]] = {}
        self.rotation = 0
        #: Names of the pools of threads that any worker has, or had: a worker that died may come back with its own.
        self.pools: dict[str, None] = {}
        #: Who cannot reach whom.
        self.cuts = Cuts()
        self.total_nthreads = 0
        #: Threads of the workers that take tasks now.
        self.running_nthreads = 0
        self.generation = 0
        #: Assignments so far; numbers are never used twice, also not for a key that was forgotten and came again.
        self.attempts = 0
        #: (key, before, event, after, stimulus, when), the newest last.
        self.story: deque[tuple[str, str, str, str, str, float]] = deque(maxlen=settings.story_length)
        #: Transitions of this turn (key, before, after, stimulus), where a plugin wants them.
        self.watched: list[tuple[str, str, str, str]] | None = None
        #: Executions: (key, worker, thread, status, began, ended, bytes, type), the newest last.
        self.stream: deque[tuple[str, str, int, str, float, float, int, str, int]] = deque(
            maxlen=settings.stream_length
        )
        self.transitions = 0
        self.stimulus = ""
        self.now = 0.0
        #: Tasks whose copies are others than before, while anybody wants to know (see ``copying.py``); and those with
        #: more than one.
        self.touched: dict[Task, None] | None = None
        self.replicated: dict[Task, None] = {}
        #: How many copies users want of some.
        self.wanted_copies: dict[Task, int] = {}
        self._ready: list[Task] = []
        self._loose: list[Task] = []
        #: Waiting tasks that may perhaps be assigned ahead of time.
        self._hopeful: list[Task] = []

    # -------------------------------------------------------------------------------------------- transitions

    def _advance(self, task: Task, event: TaskEvent) -> None:
        before = task.state
        after = TASK.advance(before, event, task.key, self.story_of(task.key) if before is TaskState.FORGOTTEN else ())
        task.state = after
        states = task.group.states
        states[before] -= 1
        states[after] += 1
        self.transitions += 1
        self.story.append((task.key, _LABELS[before], _EVENTS[event], _LABELS[after], self.stimulus, self.now))
        if self.watched is not None:
            self.watched.append((task.key, _LABELS[before], _LABELS[after], self.stimulus))
        if before is TaskState.QUEUED:
            (self.queue if task.shape is None else task.shape.queue).discard(task)
        elif before is TaskState.NO_WORKER:
            self.stranded.discard(task)

    def record(self, done: TaskDone | Failed, worker: WorkerRecord, status: str, nbytes: int, type: str) -> None:
        """Remember an execution, unless the value was there and nothing was executed."""
        if done.stop:
            row = (done.key, worker.address, done.thread, status, done.start, done.stop, nbytes, type, done.peak)
            self.stream.append(row)

    def story_of(self, *keys_or_stimuli: str) -> list[tuple[str, str, str, str, str, float]]:
        """The rows of the story that concern these keys or stimuli."""
        wanted = set(keys_or_stimuli)
        return [row for row in self.story if row[0] in wanted or row[4] in wanted]

    def add_task(self, key: str) -> Task:
        """Make the record of a key that is not known."""
        task = self.tasks[key] = Task(key, self._group_of(key))
        task.group.states[TaskState.RELEASED] += 1
        return task

    def _remove_task(self, task: Task) -> None:
        """The record of ``task``, which is forgotten, goes."""
        del self.tasks[task.key]
        if not task.group.known:
            del self.groups[task.group.name]

    def _forget_prefixes(self) -> None:
        """Let go of what was learnt of the prefixes that no task has, those of the first half of the table."""
        used = {group.prefix.name for group in self.groups.values()}
        for name in [name for name in islice(self.prefixes, PREFIXES // 2) if name not in used]:
            del self.prefixes[name]

    def _group_of(self, key: str) -> TaskGroup:
        name = key_group(key) if key[:1] == "(" else key.rpartition("-")[0]
        found = self.groups.get(name)
        if found is not None:
            return found
        prefix_name = key_prefix(key)
        prefix = self.prefixes.get(prefix_name)
        if prefix is None:
            if len(self.prefixes) >= PREFIXES:
                self._forget_prefixes()
            prefix = self.prefixes[prefix_name] = TaskPrefix(prefix_name, self.settings.durations.get(prefix_name))
        if key[:1] != "(":
            name = prefix_name
            found = self.groups.get(name)
        if found is None:
            found = self.groups[name] = TaskGroup(name, prefix)
        return found
