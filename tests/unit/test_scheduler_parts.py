"""Queues and placement, record by record."""

from __future__ import annotations

from typing import Any

import pytest

from shoal.core.scheduler import placement
from shoal.core.scheduler.queues import OpenWorkers, TaskQueue
from shoal.core.scheduler.roster import WorkerRecord, WorkerState
from shoal.core.scheduler.settings import Settings
from shoal.core.scheduler.state import SchedulerState
from shoal.core.scheduler.task import Task, TaskGroup, TaskPrefix, TaskState
from shoal.core.scheduler.topics import Topics
from shoal.ids import SlotId, WorkerId
from shoal.messages import Options


def worker(name: str, nthreads: int = 1, **options: Any) -> WorkerRecord:
    record = WorkerRecord(WorkerId(name), name, SlotId(name), [f"tcp://{name}:1"], nthreads, 1.1, **options)
    record.state = WorkerState.RUNNING
    return record


def task(key: str, *deps: Task, state: TaskState = TaskState.WAITING, **options: Any) -> Task:
    record = Task(key, TaskGroup("t", TaskPrefix("t")))
    record.state, record.deps = state, deps
    record.options = Options(**options)
    for dep in deps:
        dep.dependents = {**(dep.dependents or {}), record: None}
    return record


def held(key: str, nbytes: int, *workers: WorkerRecord) -> Task:
    record = task(key, state=TaskState.MEMORY)
    record.nbytes = nbytes
    record.who_has = dict.fromkeys(workers)
    return record


@pytest.fixture
def state() -> SchedulerState:
    return SchedulerState(Settings(bandwidth=100e6, backlog=0.02))


def add(state: SchedulerState, *workers: WorkerRecord) -> None:
    for one in workers:
        state.workers[one.id] = one
        state.total_nthreads += one.nthreads
        state.open.note(one)


def test_the_queue_gives_by_priority_and_forgets_who_left() -> None:
    """An entry of a task that is queued no more, or was queued anew, is passed over."""
    queue = TaskQueue()
    tasks = [task(f"t-{n}", state=TaskState.QUEUED) for n in range(4)]
    for number, one in enumerate(tasks):
        one.priority = (0, 0, 10 - number)
        queue.push(one)
    assert queue.peek() is tasks[3]
    tasks[3].state = TaskState.RELEASED
    queue.discard(tasks[3])
    assert queue.peek() is tasks[2]
    assert (queue.size, set(queue.tasks())) == (3, set(tasks[:3]))
    queue.discard(tasks[2])
    queue.push(tasks[2])
    assert (queue.size, queue.peek()) == (3, tasks[2])


def test_open_workers_are_given_the_least_loaded_first() -> None:
    """Those who are full, by count and by time, are none of them."""
    workers = OpenWorkers(backlog=0.02)
    one, two = worker("one"), worker("two", nthreads=4)
    for record in (one, two):
        workers.note(record)
    assert workers.best() in (one, two)
    one.occupancy = 1.0
    assert workers.best() is two
    two.occupancy = 8.0
    assert workers.best() is one, "one has no task yet, so it has room whatever it is expected to take"
    one.processing = {task("a"): None, task("b"): None}
    two.processing = {task(f"c{n}"): None for n in range(5)}
    assert workers.best() is None
    one.occupancy = 0.001
    workers.note(one)
    assert workers.best() is one, "two short tasks are less than the backlog"


def test_a_task_goes_where_its_large_input_is(state: SchedulerState) -> None:
    """Unless the wait there is longer than the way."""
    near, idle = worker("near"), worker("idle")
    add(state, near, idle)
    near.occupancy = 0.5
    assert placement.choose(state, task("x", held("big", 200_000_000, near))) is near
    assert placement.choose(state, task("y", held("small", 1000, near))) is idle
    near.occupancy = 5.0
    assert placement.choose(state, task("z", held("big2", 200_000_000, near))) is idle


def test_restrictions_bind_and_preferences_do_not(state: SchedulerState) -> None:
    """By name, address or host; by resources; by both."""
    one, two = worker("one", host="h1"), worker("two", host="h2", resources={"GPU": 1})
    add(state, one, two)
    one.occupancy = 100.0
    for name in ("one", "h1", "tcp://one:1"):
        assert placement.choose(state, task("a", workers=[name])) is one
    assert placement.choose(state, task("b", workers=["nobody"])) is None
    assert placement.choose(state, task("c", workers=["nobody"], allow_other_workers=True)) is two
    assert placement.choose(state, task("d", resources={"GPU": 1})) is two
    assert placement.choose(state, task("e", resources={"GPU": 2})) is None
    assert placement.choose(state, task("f", resources={"GPU": 1}, workers=["one"])) is None


def test_what_is_assigned_ahead(state: SchedulerState) -> None:
    """Only what costs nothing: one worker computes all inputs, nothing else needs them, nobody is much less loaded."""
    one, two = worker("one"), worker("two")
    add(state, one, two)

    def running(key: str, where: WorkerRecord) -> Task:
        found = task(key, state=TaskState.PROCESSING)
        found.worker = where
        return found

    assert placement.ahead(state, task("a", running("x", one))) is one
    assert placement.ahead(state, task("b", running("x1", one), running("x2", one))) is one
    assert placement.ahead(state, task("c", running("x3", one), running("x4", two))) is None
    assert placement.ahead(state, task("d", running("x5", one), held("m", 10, one))) is one
    assert placement.ahead(state, task("e", running("x6", one), held("m2", 10, two))) is None
    assert placement.ahead(state, task("f", running("x7", one), workers=["one"])) is None
    shared = running("x8", one)
    task("g", shared)
    assert placement.ahead(state, task("h", shared)) is None
    one.occupancy = 3.0
    assert placement.ahead(state, task("i", running("x9", one))) is None


def test_events_of_those_who_left_are_forgotten_in_a_while() -> None:
    """And no more than so many are kept of each topic."""
    state = SchedulerState(Settings())
    topics = Topics(state, 2, 100.0, 10.0)
    for n in range(3):
        topics.log(["all", "tcp://w"], n)
    assert list(topics.events["tcp://w"]) == [(100.0, 1), (100.0, 2)]
    topics.expire("tcp://w")
    state.now = 5.0
    topics.log("all", 3)
    assert "tcp://w" in topics.events
    state.now = 10.0
    topics.log("all", 4, when=7.0)
    assert list(topics.events) == ["all"]
    assert list(topics.events["all"]) == [(105.0, 3), (7.0, 4)]
