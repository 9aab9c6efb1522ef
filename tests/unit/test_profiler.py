"""What looks at running tasks: what it counts, and that it holds on to nothing of theirs."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from typing import Any

from shoal.shell import profiler as profiler_module
from shoal.shell.profiler import Profiler, merge, new_tree


class _Thing:
    """Something that a task has in a variable."""


def _hold(ready: threading.Event, done: threading.Event, found: list[Any]) -> None:
    thing = _Thing()
    found.append(weakref.ref(thing))
    ready.set()
    done.wait(10)
    assert thing is not None


def test_looking_at_a_task_keeps_nothing_of_it_alive() -> None:
    """Not even until the garbage is collected, which may be long."""
    running: dict[int, str] = {}
    profiler = Profiler(lambda: dict(running), True, 0.001, 1.0)
    ready, done, found = threading.Event(), threading.Event(), []
    thread = threading.Thread(target=_hold, args=(ready, done, found))
    gc.disable()
    try:
        thread.start()
        ready.wait(10)
        assert thread.ident is not None
        running[thread.ident] = "hold-1"
        profiler.begin(thread.ident)
        deadline = time.monotonic() + 10
        while profiler.profile()["count"] < 20:
            assert time.monotonic() < deadline
            time.sleep(0.005)

        running.clear()
        done.set()
        thread.join()
        time.sleep(0.05)
        assert found[0]() is None
    finally:
        gc.enable()
        done.set()
        profiler.close()


def test_trees_are_merged() -> None:
    """Counts add up, branch by branch."""
    one = new_tree()
    one["count"] = 2
    one["children"]["f"] = {"count": 2, "identifier": "f", "description": {}, "children": {}}
    both = merge([one, one])
    assert both["count"] == 4
    assert both["children"]["f"]["count"] == 4
    assert one["children"]["f"]["count"] == 2


def test_what_was_seen_is_remembered_up_to_a_number_of_nodes(monkeypatch: Any) -> None:
    """Fresh names of tasks and deep stacks do not make a worker larger for an hour."""
    monkeypatch.setattr(profiler_module, "NODES", 100)
    me = threading.get_ident()
    running: dict[int, str] = {}
    profiler = Profiler(lambda: running, True, 0.001, 1.0)
    for number in range(200):
        running[me] = f"fresh{number}-1"
        profiler._look(running, 1000.0 + 2 * number)
    assert 50 < profiler.nodes <= 100
    assert profiler.nodes == sum(_nodes(tree) for _, trees, _ in profiler.history for tree in trees.values())
    assert profiler.profile("fresh199")["count"] == 1
    assert profiler.profile("fresh0")["count"] == 0


def _nodes(tree: dict[str, Any]) -> int:
    return 1 + sum(map(_nodes, tree["children"].values()))
