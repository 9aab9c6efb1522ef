"""Why a task is where it is."""

from __future__ import annotations

from shoal.core.scheduler.explain import why
from tests.machines.harness import Cluster


def ask(cluster: Cluster, key: str) -> str:
    return why(cluster.scheduler.state, key, cluster.now)


def until(cluster: Cluster, key: str, state: str) -> None:
    while cluster.states().get(key) != state:
        assert cluster.step_lines(), cluster.states()


def test_every_state_is_told() -> None:
    """With what it waits for, where and since when."""
    cluster = Cluster(0)
    assert "not known" in ask(cluster, "x")
    cluster.submit({"a": [], "b": ["a"], "c": ["b", "a"]}, ["c"])
    until(cluster, "a", "no-worker")
    assert "there is no worker at all" in ask(cluster, "a")
    told = ask(cluster, "c")
    assert "2 of 2 inputs" in told
    assert "no worker at all" in told
    cluster.join()
    cluster.settle()
    assert "is done" in ask(cluster, "c")
    assert "w1" in ask(cluster, "c")
    cluster.failing["bad"] = 1
    cluster.submit({"bad": [], "worse": ["bad"]}, ["worse"])
    cluster.settle()
    assert ask(cluster, "worse") == "'worse' failed: its input 'bad' failed: ValueError: no"
    cluster.submit({"gpu": []}, ["gpu"], resources={"GPU": 1.0})
    cluster.settle()
    assert "none of 1 workers has {'GPU': 1.0}" in ask(cluster, "gpu")


def test_queued_and_processing() -> None:
    """How many are before it, and how loaded its worker is."""
    cluster = Cluster(1)
    cluster.submit({f"t-{n}": [] for n in range(9)}, [f"t-{n}" for n in range(9)])
    until(cluster, "t-8", "queued")
    assert "6 of 7 queued tasks are before it" in ask(cluster, "t-8")
    assert "is with worker w1" in ask(cluster, "t-0")
    assert "2 tasks for 1 threads" in ask(cluster, "t-0")
    cluster.submit({"x": [], "y": ["x"]}, ["y"], priority=5)
    cluster.settle()
    assert "is done" in ask(cluster, "y")


def test_assigned_ahead() -> None:
    """Whose inputs are to be computed there first."""
    cluster = Cluster(1)
    cluster.submit({"x": [], "y": ["x"]}, ["y"])
    until(cluster, "y", "processing")
    assert "is to compute 1 of its inputs first" in ask(cluster, "y")
