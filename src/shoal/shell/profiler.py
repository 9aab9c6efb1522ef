"""A thread that looks at the tasks of a worker while they run: where their code is, and how much memory they take.

What it saw of stacks is kept as trees, one for each task prefix and stretch of time, for ``Client.profile``. A node of
a tree is a mapping: ``count`` (how often it was seen), ``identifier``, ``description`` (``name``, ``filename``,
``line_number``, ``line``) and ``children``, by identifier.
"""

from __future__ import annotations

import linecache
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Container, Iterable
from types import FrameType
from typing import Any, Final

from shoal.ids import key_prefix
from shoal.shell import doors
from shoal.shell.tasks import keep_running
from shoal.shell.usage import resident_bytes

Tree = dict[str, Any]

#: Stretches of time that are kept, nodes of all of their trees, and frames that are looked at from the outermost on.
KEPT: Final = 3600
NODES: Final = 20_000
_DEEPEST: Final = 400
#: Places in code whose texts all nodes share.
_TEXTS: Final = 5000
#: Looks at nothing until the thread sleeps.
_IDLE: Final = 50
#: Seconds between two looks at the memory.
_MEMORY: Final = 0.05
#: The outermost frames, of files with these in their names, are shoal's own, around a task's.
_OWN: Final = ("/shoal/shell/", "/threading.py")


def new_tree() -> Tree:
    """A tree of which nothing was seen yet."""
    return {"count": 0, "children": {}, "identifier": "root", "description": _describe_root()}


def _describe_root() -> dict[str, Any]:
    return {"filename": "", "name": "", "line_number": 0, "line": ""}


def frames_of(threads: Container[int]) -> dict[int, FrameType]:
    """Where some threads are now.

    The frame of who asks is not among them: that would hold itself, and with it what all the others have in their
    variables, until the garbage is collected.
    """
    return {thread: frame for thread, frame in sys._current_frames().items() if thread in threads}


_texts: dict[tuple[str, int], tuple[str, dict[str, Any]]] = {}


def _text_of(frame: FrameType, identifier: str) -> tuple[str, dict[str, Any]]:
    """The identifier and the description of a node, the same objects for all nodes of one place."""
    code, number = frame.f_code, frame.f_lineno or 0  # None between two lines
    found = _texts.get((identifier, number))
    if found is None:
        if len(_texts) >= _TEXTS:
            _texts.clear()
        line = linecache.getline(code.co_filename, number).strip()
        told = {"filename": code.co_filename, "name": code.co_name, "line_number": number, "line": line}
        found = _texts[identifier, number] = (identifier, told)
    return found


def add_stack(tree: Tree, frame: FrameType | None) -> int:
    """Count one stack, without the frames of shoal's own that are around a task's; how many nodes are new."""
    stack: list[FrameType] = []
    while frame is not None:
        stack.append(frame)
        frame = frame.f_back
    while stack and any(part in stack[-1].f_code.co_filename for part in _OWN):
        stack.pop()
    if not stack:
        return 0  # it is about to begin, or has just ended
    tree["count"] += 1
    new = 0
    for one in stack[::-1][:_DEEPEST]:
        code = one.f_code
        identifier = f"{code.co_qualname};{code.co_filename};{code.co_firstlineno}"
        child = tree["children"].get(identifier)
        if child is None:
            identifier, told = _text_of(one, identifier)
            child = tree["children"][identifier] = {
                "count": 0, "children": {}, "identifier": identifier, "description": told,
            }  # fmt: skip
            new += 1
        child["count"] += 1
        tree = child
    return new


def merge(trees: Iterable[Tree]) -> Tree:
    """All of them in one."""
    found = new_tree()
    for tree in trees:
        _merge_into(found, tree)
    return found


def _merge_into(target: Tree, tree: Tree) -> None:
    target["count"] += tree["count"]
    for identifier, child in tree["children"].items():
        known = target["children"].get(identifier)
        if known is None:
            known = target["children"][identifier] = {**child, "count": 0, "children": {}}
        _merge_into(known, child)


class Profiler:
    """Looks at the threads that run tasks.

    Parameters
    ----------
    running
        Says which key each thread is in, by the identity of the thread.
    enabled
        Whether stacks are looked at; memory always is.
    interval, cycle
        Seconds between two looks, and of one stretch of time.
    """

    def __init__(self, running: Callable[[], dict[int, str]], enabled: bool, interval: float, cycle: float) -> None:
        self._running, self._interval, self._cycle = running, interval if enabled else _MEMORY, cycle
        self.enabled = enabled
        #: When a stretch of time began (seconds since 1970), its trees, by prefix, and how many nodes they have.
        self.history: deque[tuple[float, dict[str, Tree], int]] = deque()
        self.nodes = 0
        self._current: dict[str, Tree] = {}
        self._new = 0
        self._since = 0.0
        #: What the process held when it was looked at last; by thread, what it held at the beginning, and at the most.
        self._held = resident_bytes()
        self._seen: dict[int, list[int]] = {}
        self._awake = threading.Event()
        self._thread: threading.Thread | None = None
        self._closed = False

    # -------------------------------------------------------------------------------------------- in tasks' threads

    def begin(self, thread: int) -> None:
        """A thread begins a task."""
        self._seen[thread] = [self._held, 0]
        if not self._awake.is_set():
            if self._thread is None:
                self._thread = keep_running("shoal-profiler", self._work, lambda: self._closed)
            self._awake.set()

    def end(self, thread: int) -> int:
        """The task has ended: by how many bytes the process grew meanwhile; 0 where it was too short to tell."""
        first, most = self._seen.pop(thread)
        if not most:
            return 0
        self._held = held = resident_bytes()
        return max(0, max(most, held) - first)

    # -------------------------------------------------------------------------------------------- in its own

    def _work(self) -> None:
        looked, idle = 0.0, 0
        while not self._closed:
            time.sleep(self._interval)  # before each look, or short tasks would wake this thread again and again
            running = self._running()
            if not running:
                idle += 1
                if idle > _IDLE:
                    self._held = resident_bytes()
                    self._awake.clear()
                    if not self._running():
                        self._awake.wait()
                continue
            idle, now = 0, time.time()
            if self.enabled:
                doors.call("source", self._look, running, now)
            if now - looked >= _MEMORY:
                looked = now
                self._held = held = resident_bytes()
                for seen in tuple(self._seen.values()):
                    seen[1] = max(seen[1], held)

    def _look(self, running: dict[int, str], now: float) -> None:
        if now - self._since >= self._cycle:
            self._keep()
            self._current, self._since, self._new = {}, now, 0
        for thread, frame in frames_of(running).items():
            prefix = key_prefix(running[thread])
            tree = self._current.get(prefix)
            if tree is None:
                tree = self._current[prefix] = new_tree()
                self._new += 1
            self._new += add_stack(tree, frame)

    def _keep(self) -> None:
        """The current stretch of time is over: keep it, and forget the oldest if that is too much together."""
        if self._current:
            self.history.append((self._since, self._current, self._new))
            self.nodes += self._new
        while len(self.history) > 1 and (len(self.history) > KEPT or self.nodes > NODES):
            self.nodes -= self.history.popleft()[2]

    # -------------------------------------------------------------------------------------------- for others

    def look(self) -> None:
        """Look at the stacks of all running tasks now."""
        self._look(self._running(), time.time())

    def profile(self, prefix: str | None = None, start: float | None = None, stop: float | None = None) -> Tree:
        """What was seen, of one prefix or all, between two times (seconds since 1970)."""
        chosen = [
            trees
            for since, trees, _ in [*self.history, (self._since, self._current, 0)]
            if (start is None or since + self._cycle >= start) and (stop is None or since <= stop)
        ]
        return merge(tree for trees in chosen for name, tree in list(trees.items()) if prefix is None or name == prefix)

    def close(self) -> None:
        """Stop looking."""
        self._closed = True
        self._awake.set()
