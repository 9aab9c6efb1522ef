"""Spans: tasks that were submitted under a name, and what they took together. They nest."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from shoal.core.scheduler.task import Task

#: Prefixes that a span counts apart.
_MOST_PREFIXES: Final = 1000


class Span:
    """Tasks that were submitted in one ``with span(name)``, and in those inside of it.

    Parameters
    ----------
    id
        The same for all tasks of one such block.
    name
        Its names, the outermost first.
    parent
        The span around it.
    enqueued
        When its first tasks came, seconds since 1970.
    """

    __slots__ = ("children", "enqueued", "failed", "id", "name", "nbytes_total", "own_tasks", "parent", "prefixes",
                 "seconds", "start", "stop")  # fmt: skip

    def __init__(self, id: str, name: tuple[str, ...], parent: Span | None, enqueued: float) -> None:
        self.id, self.name, self.parent, self.enqueued = id, name, parent, enqueued
        self.children: list[Span] = []
        #: When its first task began and its last one ended, seconds since 1970; 0 before that.
        self.start = self.stop = 0.0
        #: Its own tasks, without those of spans inside: how many, their threads' seconds, bytes, how many failed.
        self.own_tasks = 0
        self.seconds = 0.0
        self.nbytes_total = 0
        self.failed = 0
        #: Executions and seconds by task prefix.
        self.prefixes: dict[str, list[float]] = {}

    def traverse_spans(self) -> Iterator[Span]:
        """It, and all inside of it."""
        yield self
        for child in self.children:
            yield from child.traverse_spans()

    def merged(self) -> dict[str, Any]:
        """All of it and of what is inside of it, as plain values."""
        many = list(self.traverse_spans())
        starts = [one.start for one in many if one.start]
        prefixes: dict[str, list[float]] = {}
        for one in many:
            for prefix, (count, seconds) in one.prefixes.items():
                found = prefixes.setdefault(prefix, [0, 0.0])
                found[0] += count
                found[1] += seconds
        return {
            "id": self.id,
            "name": list(self.name),
            "parent": self.parent.id if self.parent is not None else None,
            "children": [child.id for child in self.children],
            "enqueued": self.enqueued,
            "start": min(starts, default=0.0),
            "stop": max((one.stop for one in many), default=0.0),
            "tasks": sum(one.own_tasks for one in many),
            "seconds": sum(one.seconds for one in many),
            "nbytes": sum(one.nbytes_total for one in many),
            "failed": sum(one.failed for one in many),
            "prefixes": prefixes,
        }

    def __repr__(self) -> str:
        return f"<Span {' / '.join(self.name)} tasks={self.own_tasks}>"


class Spans:
    """All spans, the oldest first; beyond ``most``, the oldest is forgotten."""

    def __init__(self, most: int = 1000) -> None:
        self._most = most
        self.spans: dict[str, Span] = {}

    def enter(self, names: list[str], ids: list[str], count: int, when: float) -> None:
        """``count`` tasks were submitted under these spans, the outermost first."""
        parent: Span | None = None
        for depth, id in enumerate(ids):
            span = self.spans.get(id)
            if span is None:
                span = self.spans[id] = Span(id, tuple(names[: depth + 1]), parent, when)
                if parent is not None:
                    parent.children.append(span)
            parent = span
        if parent is not None:
            parent.own_tasks += count
        while len(self.spans) > self._most:
            oldest = self.spans.pop(next(iter(self.spans)))
            if oldest.parent is not None and oldest in oldest.parent.children:
                oldest.parent.children.remove(oldest)

    def executed(self, task: Task, start: float, stop: float, nbytes: int, failed: bool = False) -> None:
        """One execution of a task ended."""
        ids = task.options.span_ids if task.options is not None else None
        span = self.spans.get(ids[-1]) if ids else None
        if span is None:
            return
        span.start = min(span.start, start) if span.start else start
        span.stop = max(span.stop, stop)
        span.seconds += stop - start
        span.nbytes_total += nbytes
        span.failed += failed
        name = task.group.prefix.name
        if name not in span.prefixes and len(span.prefixes) >= _MOST_PREFIXES:
            name = "others"
        found = span.prefixes.setdefault(name, [0, 0.0])
        found[0] += 1
        found[1] += stop - start

    def find_by_tags(self, *tags: str) -> list[Span]:
        """Spans that have all of these names, or are inside of one that has."""
        return [span for span in self.spans.values() if set(tags) <= set(span.name)]
