"""Work stealing: what is taken, what is not, and answers that cross with other news."""

from __future__ import annotations

from shoal.core.events import Received
from shoal.messages import Finished, Steal, StealAnswer, Unwant
from tests.machines.harness import Cluster


def crowded(n_tasks: int = 6, **options: object) -> Cluster:
    """A worker with many tasks on an input that only it has, and another one with nothing."""
    cluster = Cluster(1)
    cluster.submit({"big": []}, ["big"])
    cluster.settle()
    cluster.submit({f"t-{n}": ["big"] for n in range(n_tasks)}, [f"t-{n}" for n in range(n_tasks)], **options)
    while cluster.line("c", "s") or cluster.line("s", "w1"):
        assert cluster.step_lines()
    return cluster


def steals(cluster: Cluster) -> list[Steal]:
    return [message for message in cluster.line("s", "w1") if isinstance(message, Steal)]


def join_idle(cluster: Cluster) -> str:
    name = cluster.join()
    cluster.now += 1.0
    while cluster.line(name, "s"):
        cluster._step_line((name, "s"))
    return name


def test_an_idle_worker_is_given_what_waits_at_a_loaded_one() -> None:
    """And all of it is computed once."""
    cluster = crowded()
    thief = join_idle(cluster)
    assert steals(cluster)
    cluster.settle()
    assert set(cluster.states().values()) == {"memory"}
    assert cluster.workers[thief].executed > 0
    assert max(cluster.executions.values()) == 1


def test_what_runs_is_not_given_up() -> None:
    """The answer says so, and nothing changes."""
    cluster = crowded(2)
    join_idle(cluster)
    (running,) = cluster.running["w1"]
    attempt = cluster.scheduler.state.tasks[running.key].attempt
    cluster.tell("w1", Received("s", [Steal(running.key, attempt), Steal("t-1", 999), Steal("nothing", 1)]))
    answers = [message for message in cluster.line("w1", "s") if isinstance(message, StealAnswer)]
    assert [answer.granted for answer in answers] == [False, False, False]
    cluster.settle()
    assert max(cluster.executions.values()) == 1


def test_an_answer_that_comes_after_a_release_is_ignored() -> None:
    """S1: the key is let go of, and asked for again, while the request is out."""
    cluster = crowded()
    join_idle(cluster)
    key = steals(cluster)[0].key
    while cluster.line("s", "w1"):
        cluster._step_line(("s", "w1"))
    cluster.client(Unwant([key]))
    cluster.submit({key: ["big"]}, [key])
    while cluster.line("c", "s"):
        cluster._step_line(("c", "s"))
    cluster.settle()
    assert set(cluster.states().values()) == {"memory"}


def test_a_theft_and_the_end_of_a_task_cross() -> None:
    """S3: the finished result is used."""
    cluster = crowded(2)
    join_idle(cluster)
    wanted = steals(cluster)
    assert wanted
    while cluster.running["w1"]:
        cluster._step_run("w1")
    finished = [message for message in cluster.line("w1", "s") if isinstance(message, Finished)]
    assert finished
    cluster.settle()
    assert max(cluster.executions.values()) == 1
    assert set(cluster.states().values()) == {"memory"}


def test_victim_or_thief_dies_while_the_request_is_out() -> None:
    """S2: the task runs somewhere."""
    for victim_dies in (True, False):
        cluster = crowded(allow_other_workers=False)
        thief = join_idle(cluster)
        assert steals(cluster)
        cluster.kill("w1" if victim_dies else thief)
        cluster.settle()
        assert set(cluster.states().values()) == {"memory"}


def test_a_balanced_load_stands_still() -> None:
    """S4: two workers with the same work ask nothing of each other."""
    cluster = Cluster(2)
    cluster.submit({"a": [], "b": []}, ["a", "b"])
    cluster.settle()
    cluster.submit({f"t-{n}": [["a"], ["b"]][n % 2] for n in range(20)}, [f"t-{n}" for n in range(20)])
    asked = 0
    while cluster.step():
        asked += sum(isinstance(message, Steal) for line in cluster.lines.values() for message in line)
    assert asked == 0


def test_restricted_tasks_stay_where_they_may_run() -> None:
    """S5."""
    cluster = crowded(workers=["w1"])
    join_idle(cluster)
    assert not steals(cluster)
