"""The two cores together, in every order of messages that a seed draws, with all invariants checked at each step."""

from __future__ import annotations

import random

import pytest

from shoal.core.scheduler.task import TaskState
from shoal.messages import Cancel, KeyErred, KeysDone, KilledTask, Unwant
from tests.machines.harness import Cluster


def graph(rng: random.Random, size: int) -> dict[str, list[str]]:
    keys: list[str] = []
    tasks: dict[str, list[str]] = {}
    for number in range(size):
        deps = rng.sample(keys, min(len(keys), rng.randint(0, 3)))
        tasks[f"t-{number}"] = deps
        keys.append(f"t-{number}")
    return tasks


@pytest.mark.parametrize("seed", range(60))
def test_random_graph_finishes_and_is_released(seed: int) -> None:
    """Whatever the order: each wanted key arrives, and nothing is left once all is let go."""
    rng = random.Random(seed)
    tasks = graph(rng, 40)
    wants = rng.sample(list(tasks), 5)
    cluster = Cluster(rng.randint(1, 4), seed, rng.randint(1, 3))
    cluster.submit(tasks, wants)
    cluster.settle()
    done = {item.key for message in cluster.inbox if isinstance(message, KeysDone) for item in message.items}
    assert set(wants) <= done
    assert max(cluster.executions.values()) == 1
    cluster.client(Unwant(wants))
    cluster.settle()
    assert cluster.states() == {}
    assert all(not worker.keys for worker in cluster.workers.values())
    assert all(not cluster.data[name] for name in cluster.workers)


@pytest.mark.parametrize("seed", range(60))
def test_workers_die_and_join_while_a_graph_runs(seed: int) -> None:
    """Results of dead workers are computed again, on whoever is there."""
    rng = random.Random(seed)
    tasks = graph(rng, 40)
    wants = rng.sample(list(tasks), 5)
    cluster = Cluster(3, seed, allowed_failures=100)
    cluster.submit(tasks, wants)
    for _ in range(6):
        for _ in range(rng.randint(5, 60)):
            cluster.step()
        cluster.kill(rng.choice(list(cluster.workers)))
        cluster.join()
    cluster.settle()
    states = cluster.states()
    assert {states[key] for key in wants} == {"memory"}


@pytest.mark.parametrize("seed", range(60))
def test_minds_change_while_a_graph_runs(seed: int) -> None:
    """Cancelled and submitted again at any moment: the last word counts."""
    rng = random.Random(seed)
    tasks = graph(rng, 25)
    wants = rng.sample(list(tasks), 4)
    cluster = Cluster(3, seed)
    for _ in range(5):
        cluster.submit(tasks, wants)
        for _ in range(rng.randint(1, 60)):
            cluster.step()
        cluster.client(Cancel(wants) if rng.random() < 0.5 else Unwant(wants))
        for _ in range(rng.randint(1, 30)):
            cluster.step()
    cluster.submit(tasks, wants)
    cluster.settle()
    states = cluster.states()
    assert {states[key] for key in wants} == {"memory"}


def test_failure_reaches_the_client_and_its_dependents() -> None:
    """A task that raises fails what needs it, and names itself as the cause."""
    cluster = Cluster(2)
    cluster.failing["a"] = 1
    cluster.submit({"a": [], "b": ["a"]}, ["b"])
    cluster.settle()
    errors = [message for message in cluster.inbox if isinstance(message, KeyErred)]
    assert [(error.key, error.origin, error.error.text) for error in errors] == [("b", "a", "ValueError: no")]


def test_retries() -> None:
    """A task with retries is run again until they are used up."""
    cluster = Cluster(2)
    cluster.failing["a"] = 2
    cluster.submit({"a": []}, ["a"], retries=2)
    cluster.settle()
    assert cluster.states() == {"a": "memory"}
    assert cluster.executions["a"] == 3


def test_allowed_failures_names_each_death() -> None:
    """A task that kills its workers is given up with a line for each death."""
    cluster = Cluster(1, allowed_failures=1)
    cluster.submit({"bad": []}, ["bad"])
    for _ in range(2):
        for name in list(cluster.workers):
            while not cluster.running[name]:
                assert cluster.step()
            cluster.kill(name)
            cluster.join()
    cluster.settle()
    killed = [message for message in cluster.inbox if isinstance(message, KilledTask)]
    assert [(message.key, len(message.deaths)) for message in killed] == [("bad", 2)]


def test_no_worker_then_one_joins() -> None:
    """Tasks wait without a worker, and run once one comes."""
    cluster = Cluster(0)
    cluster.submit({"a": []}, ["a"])
    cluster.settle()
    assert cluster.scheduler.state.tasks["a"].state is TaskState.NO_WORKER
    cluster.join()
    cluster.settle()
    assert cluster.states() == {"a": "memory"}
