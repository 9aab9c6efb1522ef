"""The two cores together, in every order of messages that a seed draws, with all invariants checked at each step."""

from __future__ import annotations

import random

import pytest

from shoal.core.effects import Log
from shoal.core.events import Received
from shoal.core.scheduler.task import TaskState
from shoal.messages import Cancel, Finished, KeyErred, KeysDone, KilledTask, Options, Retry, Submit, TaskSpec, Unwant
from tests.machines.harness import Cluster


def graph(rng: random.Random, size: int) -> dict[str, list[str]]:
    """Chains, a tree, or whatever comes."""
    shape = rng.choice(["chains", "tree", "any", "any"])
    if shape == "chains":
        count = rng.randint(1, 4)
        return {f"t-{n}": [f"t-{n - count}"] if n >= count else [] for n in range(size)}
    if shape == "tree":
        half = size // 2
        inner = {f"t-{n}": [f"t-{2 * (n - half)}", f"t-{2 * (n - half) + 1}"] for n in range(half, 2 * half - 1)}
        return {f"t-{n}": [] for n in range(half)} | inner
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
    cluster.failing = {key: 1 for key in tasks if rng.random() < 0.2}
    cluster.submit(tasks, wants, retries=1)
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


def test_a_report_of_an_earlier_life_of_a_key_changes_nothing() -> None:
    """A key that was forgotten and submitted again has assignments of other numbers."""
    cluster = Cluster(1)
    cluster.submit({"a": []}, ["a"])
    while not cluster.running["w1"]:
        assert cluster.step()
    cluster._step_run("w1")
    late = [message for message in cluster.line("w1", "s") if isinstance(message, Finished)]
    cluster.client(Unwant(["a"]))
    cluster._step_line(("c", "s"))
    assert cluster.states() == {}
    cluster.submit({"a": []}, ["a"])
    cluster._step_line(("c", "s"))
    assert cluster.states() == {"a": "processing"}
    cluster.feed(Received("w1", late))
    assert cluster.states() == {"a": "processing"}
    cluster.settle()
    assert cluster.states() == {"a": "memory"}


def test_a_chain_is_assigned_ahead_and_taken_back_when_its_worker_dies() -> None:
    """All of it goes to one worker at once; after its death, to the other."""
    cluster = Cluster(2)
    chain = {f"t-{n}": [f"t-{n - 1}"] if n else [] for n in range(20)}
    cluster.submit(chain, ["t-19"])
    while "processing" not in cluster.states().values():
        assert cluster.step()
    assert set(cluster.states().values()) == {"processing"}
    (holder,) = {task.worker.id for task in cluster.scheduler.state.tasks.values() if task.worker}
    cluster.kill(holder)
    cluster.settle()
    assert cluster.states()["t-19"] == "memory"


def test_what_fans_out_is_not_assigned_ahead() -> None:
    """Many tasks on one input spread over the workers."""
    cluster = Cluster(4)
    cluster.submit({"root": []} | {f"leaf-{n}": ["root"] for n in range(40)}, [f"leaf-{n}" for n in range(40)])
    while not any(cluster.running.values()):
        assert cluster.step()
    assert set(cluster.states().values()) == {"processing", "waiting"}
    cluster.settle()
    assert all(worker.executed for worker in cluster.workers.values())


def test_a_task_that_needs_itself_fails() -> None:
    """In place of waiting for ever."""
    cluster = Cluster(1)
    cluster.submit({"a": ["a"]}, ["a"])
    cluster.settle()
    assert [message.error.text for message in cluster.inbox if isinstance(message, KeyErred)] == [
        "UsageError: 'a' needs its own result"
    ]


def test_a_task_whose_input_was_unknown_cannot_be_retried_into_running_without_it() -> None:
    """It stays erred until it is submitted with its input."""
    cluster = Cluster(1)
    cluster.submit({"b": ["a"]}, ["b"])
    cluster.settle()
    cluster.client(Retry(["b"]))
    cluster.settle()
    assert cluster.states() == {"b": "erred"}
    assert cluster.executions == {}
    cluster.submit({"a": [], "b": ["a"]}, ["b"])
    cluster.settle()
    assert cluster.states()["b"] == "memory"


def test_a_key_that_comes_with_another_definition_is_warned_of_and_keeps_the_first() -> None:
    """W21: both are named; after it was let go of, the second one counts."""
    cluster = Cluster(1)
    cluster.settle()

    def submit(fn: str, payload: bytes = b"") -> list[str]:
        spec = TaskSpec("k", fn, payload, [])
        effects = cluster.scheduler.handle([Received("c", [Submit([spec], {fn: b"F"}, Options(), ["k"])])], cluster.now)
        return [effect.text for effect in effects if isinstance(effect, Log)]

    assert submit("inc:1") == []
    assert submit("inc:1") == []
    (text,) = submit("dec:2")
    assert "inc:1" in text
    assert "dec:2" in text
    assert len(submit("inc:1", b"other arguments")) == 1
    assert cluster.scheduler.state.tasks["k"].fn == "inc:1"
    cluster.feed(Received("c", [Unwant(["k"])]))
    assert submit("dec:2") == []
    assert cluster.scheduler.state.tasks["k"].fn == "dec:2"
