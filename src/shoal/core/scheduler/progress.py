"""How far computations are, for those who show it: tasks by name, and how many of them are done."""

from __future__ import annotations

from typing import Any

from shoal.core.scheduler.state import SchedulerState
from shoal.core.scheduler.task import Task, TaskState
from shoal.ids import ClientId, key_prefix


class Watch:
    """Some keys and all that they are made of, by name."""

    __slots__ = ("client", "counts", "failed", "left")

    def __init__(self, client: ClientId) -> None:
        self.client = client
        #: By name: how many tasks, and how many of them are done.
        self.counts: dict[str, list[int]] = {}
        #: Tasks that were not done when they were looked at last, with their names.
        self.left: dict[Task, str] = {}
        #: Keys that failed, by name.
        self.failed: dict[str, int] = {}


class Watches:
    """All that is watched. Each look costs as much as there are tasks that are not done yet."""

    def __init__(self, state: SchedulerState) -> None:
        self._state = state
        self._watches: dict[int, Watch] = {}
        self._next = 0

    def begin(self, client: ClientId, keys: list[str], complete: bool, by: str) -> int:
        """Watch ``keys`` and what they are made of, by ``prefix``, ``group`` or ``span``.

        Where ``complete`` is False, what is done already does not count.
        """
        watch = Watch(client)
        stack = [self._state.tasks[key] for key in keys if key in self._state.tasks]
        seen = set(stack)
        while stack:
            task = stack.pop()
            for dep in task.deps:
                if dep not in seen and (complete or dep.active):
                    seen.add(dep)
                    stack.append(dep)
            if not task.active and not complete:
                continue
            name = _name(task, by)
            watch.counts.setdefault(name, [0, 0])[0] += 1
            watch.left[task] = name
        self._next += 1
        self._watches[self._next] = watch
        return self._next

    def look(self, number: int) -> dict[str, Any] | None:
        """For each name: how many tasks, how many of them are done, failed, or are with a worker now."""
        watch = self._watches.get(number)
        if watch is None:
            return None
        busy: dict[str, int] = {}
        for task, name in list(watch.left.items()):
            if task.active:
                if task.state is TaskState.PROCESSING:
                    busy[name] = busy.get(name, 0) + 1
                continue
            del watch.left[task]
            watch.counts[name][1] += 1
            if task.state is TaskState.ERRED:
                watch.failed[name] = watch.failed.get(name, 0) + 1
        return {
            name: {"all": total, "done": done, "failed": watch.failed.get(name, 0), "processing": busy.get(name, 0)}
            for name, (total, done) in watch.counts.items()
        }

    def end(self, number: int) -> None:
        """Nobody looks any more."""
        self._watches.pop(number, None)

    def client_lost(self, client: ClientId) -> None:
        """``client`` looks at nothing any more."""
        for number in [number for number, watch in self._watches.items() if watch.client == client]:
            del self._watches[number]


def _name(task: Task, by: str) -> str:
    if by == "group":
        return task.group.name
    if by == "spans":
        return " / ".join(task.options.span) if task.options is not None and task.options.span else "no span"
    return key_prefix(task.key)
