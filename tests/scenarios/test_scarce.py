"""Tasks that take resources or threads of named pools: they go where that is free, and wait in line elsewhere."""

from __future__ import annotations

import pytest

from shoal.core.scheduler.explain import why
from shoal.core.scheduler.task import TaskState
from shoal.sim.script import Script

GPU = {"GPU": 1.0}


def many(s: Script, count: int, name: str = "t", **options: object) -> list[str]:
    """Submit tasks without inputs; return their keys."""
    keys = [f"{name}{n}" for n in range(count)]
    s.submit("; ".join(keys), " ".join(keys), **options)
    s.flow()
    return keys


def waiting(s: Script) -> list[str]:
    return [task.key for task in s.scheduler.state.tasks.values() if task.state is TaskState.QUEUED]


def test_short_ones_do_not_wait_behind_a_long_one() -> None:
    """a-05: they go to the other worker one after another, though the first has eight threads."""
    s = Script("A", "B", nthreads=8, resources=GPU)
    many(s, 1, "long", resources=GPU)
    (busy,) = [name for name in "AB" if s.runs(name)]
    other = "B" if busy == "A" else "A"
    many(s, 7, resources=GPU)
    for _ in range(7):
        (key,) = s.runs(other)
        s.ends(other, key)
        s.flow()
    assert s.runs(busy) == ["long0"]
    assert not waiting(s)


def test_those_that_wait_go_to_a_worker_that_joins() -> None:
    """a-05: at once, and not those alone that come later."""
    s = Script("A", nthreads=8, resources=GPU)
    many(s, 4, resources=GPU)
    s.join("B", 8, GPU)
    s.flow()
    assert (s.runs("A"), s.runs("B")) == (["t0"], ["t1"])
    s.finish()


def test_why_says_whose_it_is() -> None:
    """What it needs, who has it, and how many are before it."""
    s = Script("A", resources={"GPU": 2.0})
    many(s, 3, resources={"GPU": 2.0})
    told = why(s.scheduler.state, "t2", s.now)
    assert "needs GPU: 2" in told
    assert "2 of 2 GPU" in told
    assert "taken by t0" in told
    assert "1 of 2 tasks that need the same are before it" in told


def test_tenths_add_up_to_one() -> None:
    """Ten times 0.1 fit into 1, at the scheduler and at the worker; three thirds do too."""
    s = Script("A", nthreads=20, resources={"R": 1.0})
    assert len(many(s, 11, resources={"R": 0.1})) - 1 == len(s.runs("A"))
    s.finish()
    s = Script("A", nthreads=20, resources={"R": 1.0})
    many(s, 4, resources={"R": 1 / 3})
    assert len(s.runs("A")) == 3
    s.finish()


def test_nothing_of_a_resource_is_had_everywhere() -> None:
    """Zero is no restriction."""
    s = Script("A")
    many(s, 1, resources={"GPU": 0.0})
    assert s.runs("A") == ["t0"]


def test_too_much_for_every_worker() -> None:
    """It waits as what no worker may run, and goes to the first that may."""
    s = Script("A", resources=GPU)
    many(s, 1, resources={"GPU": 2.0})
    assert s.scheduler.state.tasks["t0"].state is TaskState.NO_WORKER
    s.join("B", 1, {"GPU": 2.0})
    s.flow()
    assert s.runs("B") == ["t0"]


def test_the_last_that_has_it_goes() -> None:
    """Those in line are told to wait for a worker, and go to one that comes."""
    s = Script("A", "C", resources=None)
    s.join("B", 1, GPU)
    many(s, 3, resources=GPU)
    s.dies("B")
    assert {task.state for task in s.scheduler.state.tasks.values()} == {TaskState.NO_WORKER}
    s.join("D", 1, GPU)
    s.flow()
    assert s.runs("D") == ["t0"]
    s.finish()


def test_a_paused_worker_gives_none_and_a_resumed_one_does() -> None:
    """Those that wait are placed when it goes on."""
    s = Script("A", "B", resources=GPU)
    s.pauses("B")
    s.flow()
    many(s, 2, resources=GPU)
    assert (s.runs("A"), s.runs("B")) == (["t0"], [])
    s.resumes("B")
    s.flow()
    assert s.runs("B") == ["t1"]


def test_the_more_important_one_is_first() -> None:
    """Among those that wait, of the same shape or not, and beside tasks that need nothing."""
    s = Script("A", resources={"GPU": 1.0, "R": 1.0}, saturation=1.0, backlog=0.0)
    many(s, 1, "first", resources=GPU)
    many(s, 1, "low", resources=GPU)
    many(s, 1, "middle", priority=1)
    many(s, 1, "high", resources={"R": 1.0}, priority=5)
    many(s, 1, "higher", resources=GPU, priority=7)
    for expected in ["first0", "higher0", "high0", "middle0", "low0"]:
        assert s.runs("A") == [expected]
        s.ends("A", expected)
        s.flow()


def test_what_left_its_pool_holds_its_resources() -> None:
    """Its thread is free for others, its GPU is not, before it ends."""
    s = Script("A", resources=GPU, saturation=1.0, backlog=0.0)
    many(s, 2, resources=GPU)
    s.secedes("A", "t0")
    s.flow()
    many(s, 1, "plain")
    assert s.runs("A") == ["t0", "plain0"]
    s.ends("A", "t0")
    s.ends("A", "plain0")
    s.flow()
    assert s.runs("A") == ["t1"]


@pytest.mark.parametrize("leaves", ["never", "before", "after", "at the same time"])
def test_what_was_cancelled_holds_its_resources_until_its_thread_ends(leaves: str) -> None:
    """Also where it leaves the pool of threads, before its worker hears of it or after that."""
    s = Script("A", resources=GPU)
    many(s, 2, resources=GPU)
    if leaves in ("before", "at the same time"):
        s.secedes("A", "t0")
    if leaves == "before":
        s.flow()
    s.release("t0")
    s.flow()
    if leaves == "after":
        s.secedes("A", "t0")
        s.flow()
    assert waiting(s) == ["t1"]
    assert s.runs("A") == ["t0"]
    s.ends("A", "t0")
    s.flow()
    assert s.runs("A") == ["t1"]
    s.finish()
    assert not any(worker.claims for worker in s.scheduler.state.workers.values())


def test_another_definition_waits_for_the_thread_of_the_first() -> None:
    """What the first takes is not free before it ends, though the second takes nothing."""
    s = Script("A", nthreads=2, resources=GPU)
    many(s, 2, resources=GPU)
    s.release("t0")
    s.flow()
    s.submit("t0", payload=b"other")
    s.flow()
    assert waiting(s) == ["t1"]
    s.ends("A", "t0")
    s.finish()


def test_preferred_workers_are_no_reason_to_wait() -> None:
    """It goes to the preferred one while that has it free, then to another; one that is bound waits."""
    s = Script("A", "B", nthreads=4, resources=GPU)
    many(s, 2, "loose", on="A", allow_other_workers=True, resources=GPU)
    assert (s.runs("A"), s.runs("B")) == (["loose0"], ["loose1"])
    s.ends("B", "loose1")
    s.flow()
    many(s, 1, "bound", on="A", resources=GPU)
    assert s.runs("B") == []
    assert waiting(s) == ["bound0"]
    s.finish()


def test_what_is_stolen_goes_where_its_resources_are_free() -> None:
    """A thief whose resource was taken meanwhile does not get it."""
    s = Script("A", nthreads=1, resources={"R": 4.0})
    s.computes("A", "big")
    s.submit("x < big; y < big", "x y", resources={"R": 1.0}, on="A")
    s.flow()
    assert s.runs("A") == ["x"]
    assert waiting(s) == ["y"]
    s.finish()


def test_a_task_with_inputs_goes_where_its_resource_is() -> None:
    """Its inputs follow; of two that have it, to the one with the inputs."""
    s = Script("A", "B", "C")
    s.join("D", 1, GPU)
    s.join("E", 1, GPU)
    s.flow()
    s.computes("E", "x")
    s.submit("y < x", resources=GPU)
    s.flow()
    assert s.runs("E") == ["y"]
    s.submit("z < x", resources=GPU)
    s.flow()
    assert s.fetches("D") == {"E": ["x"]}
    s.finish()


def test_other_resources_are_for_those_that_wait() -> None:
    """More lets them start; less takes back what had not begun, and stops nothing."""
    s = Script("A", nthreads=4, resources=GPU)
    s.submit("big", resources={"GPU": 3.0})
    many(s, 3, resources=GPU)
    assert s.state("big") == "no-worker"
    s.offers("A", {"GPU": 2.0})
    s.flow()
    assert s.runs("A") == ["t0", "t1"]
    s.offers("A", {"GPU": 1.0})
    s.flow()
    s.ends("A", "t0")
    s.flow()
    assert s.runs("A") == ["t1"]
    s.ends("A", "t1")
    s.flow()
    assert s.runs("A") == ["t2"]
    s.offers("A", {"GPU": 3.0})
    s.finish()


def test_what_is_on_its_way_to_a_worker_that_has_less_by_then() -> None:
    """It comes back, and goes to another."""
    s = Script("A", resources=GPU)
    s.submit("x", resources=GPU)
    s.offers("A", {"GPU": 0.0})
    s.flow()
    assert s.state("x") == "no-worker"
    s.join("B", 1, GPU)
    s.flow()
    assert s.runs("B") == ["x"]


def test_a_pool_that_no_worker_ever_had_is_an_error() -> None:
    """At once, since nothing else is in the way; also where it takes a resource that is there."""
    s = Script("A", resources=GPU)
    s.submit("x", executor="unknown")
    s.submit("y", executor="unknown", resources=GPU)
    s.flow()
    assert (s.future("x"), s.future("y")) == ("error", "error")


def test_what_waits_for_its_inputs_on_a_worker_that_has_less_by_then() -> None:
    """It is taken back, and goes to another."""
    s = Script("B")
    s.join("A", 1, GPU)
    s.computes("B", "x")
    s.submit("y < x", resources=GPU)
    s.flow()
    assert s.fetches("A") == {"B": ["x"]}
    s.offers("A", {"GPU": 0.0})
    s.flow()
    assert s.state("y") == "no-worker"
    s.join("C", 1, GPU)
    s.finish()
