"""Tasks with processes of their own, as the worker's core sees them."""

from __future__ import annotations

from typing import Any

from shoal.core.effects import CancelRun, Run, Send
from shoal.core.events import Outcome, Outcomes, Received
from shoal.core.worker.reactor import WorkerCore
from shoal.messages import Compute, ComputeTask, Freed, FreeKeys, Leave


def _task(attempt: int) -> ComputeTask:
    return ComputeTask("x-1", attempt, "f", b"", [], (0, 0, 0), apart=0.0)


def _worker() -> WorkerCore:
    return WorkerCore("w", 1, validate=True)


def _said(effects: list[Any], kind: type) -> list[Any]:
    return [effect.message for effect in effects if isinstance(effect, Send) and type(effect.message) is kind]


def test_its_process_is_ended_when_nobody_wants_it_and_not_when_the_worker_leaves() -> None:
    """What runs is let finish by a worker that goes."""
    worker = _worker()
    effects = worker.handle([Received("", [Compute([_task(1)], {}, {})])], 1.0)
    (run,) = [effect for effect in effects if isinstance(effect, Run)]
    assert run.apart == 0.0
    effects = worker.handle([Received("", [Leave(1)])], 2.0)
    assert [effect.kill for effect in effects if isinstance(effect, CancelRun)] == [False]
    worker.handle([Received("", [Leave(2, on=False)])], 2.5)
    effects = worker.handle([Received("", [FreeKeys(["x-1"])])], 3.0)
    assert [effect.kill for effect in effects if isinstance(effect, CancelRun)] == [True]
    effects = worker.handle([Outcomes([Outcome("x-1", "killed", start=3.0, stop=3.0)])], 3.1)
    assert _said(effects, Freed)
    assert not worker.keys


def test_one_that_was_ended_is_begun_anew_if_it_is_wanted_again() -> None:
    """It says nothing about what its like takes, and does not count as an execution."""
    worker = _worker()
    worker.handle([Received("", [Compute([_task(1)], {}, {})])], 1.0)
    worker.handle([Received("", [FreeKeys(["x-1"])])], 2.0)
    assert not [e for e in worker.handle([Received("", [Compute([_task(2)], {}, {})])], 2.1) if isinstance(e, Run)]
    effects = worker.handle([Outcomes([Outcome("x-1", "killed", start=2.2, stop=2.2)])], 2.2)
    assert [effect.key for effect in effects if isinstance(effect, Run)] == ["x-1"]
    assert worker.executed == 0
    assert not worker.slots._durations
