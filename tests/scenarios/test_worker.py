"""Event orders that wedged other systems, told to the worker's core: the ids are those of the list they come from."""

from __future__ import annotations

from typing import Any

from shoal.core.effects import Drop, Effect, Fetch, Run, Send
from shoal.core.events import FetchDone, FetchFailed, Outcome, Outcomes, Received, Seceded, ValuesLost
from shoal.core.worker.key import Goal
from shoal.core.worker.reactor import WorkerCore
from shoal.messages import (
    AddKeys,
    Compute,
    ComputeTask,
    Dep,
    Failed,
    Finished,
    FreeKeys,
    GivenBack,
    LongRunning,
    Missing,
    Rescheduled,
    Steal,
    StealAnswer,
    TaskError,
)


class Script:
    """A worker's core, and what it was told and did."""

    def __init__(self, nthreads: int = 1, **resources: float) -> None:
        self.core = WorkerCore("w", nthreads, resources or None, validate=True)
        self.now = 0.0

    def __call__(self, *events: Any) -> list[Effect]:
        self.now += 0.01
        return self.core.handle(list(events), self.now)

    def hear(self, *messages: Any) -> list[Effect]:
        return self(Received("", list(messages)))

    def ended(self, key: str, status: str = "ok", seconds: float = 1.0) -> list[Effect]:
        error = TaskError(None, None, "ValueError: no") if status == "error" else None
        return self(Outcomes([Outcome(key, status, 8, "int", 0.0, seconds, b"v", error)]))


def compute(*tasks: ComputeTask, peers: dict[str, list[str]] | None = None) -> Compute:
    return Compute(list(tasks), {}, peers or {})


def task(key: str, attempt: int, deps: dict[str, list[str]] | None = None, **resources: float) -> ComputeTask:
    found = [Dep(dep, 8, holders) for dep, holders in (deps or {}).items()]
    return ComputeTask(key, attempt, "f", b"", found, (0, 0, 0), True, resources or None)


def said(effects: list[Effect], kind: Any) -> list[Any]:
    return [effect.message for effect in effects if isinstance(effect, Send) and isinstance(effect.message, kind)]


def runs(effects: list[Effect]) -> list[str]:
    return [effect.key for effect in effects if isinstance(effect, Run)]


def fetches(effects: list[Effect]) -> list[tuple[str, list[str]]]:
    return [(effect.peer, effect.keys) for effect in effects if isinstance(effect, Fetch)]


def test_w1_freed_in_flight_then_to_be_computed_and_the_peer_never_answers() -> None:
    """It is computed once the transfer has failed."""
    script = Script()
    effects = script.hear(compute(task("y", 1, {"x": ["p"]}), peers={"p": ["tcp://p"]}))
    assert fetches(effects) == [("p", ["x"])]
    script.hear(FreeKeys(["y", "x"]))
    assert script.core.keys["x"].label == "cancelled"
    assert runs(script.hear(compute(task("x", 2)))) == []
    assert script.core.keys["x"].label == "resumed"
    assert runs(script(FetchFailed("p", ["x"], "no answer"))) == ["x"]
    assert [item.attempt for message in said(script.ended("x"), Finished) for item in message.items] == [2]


def test_w1_the_transfer_succeeds_after_all() -> None:
    """The value serves, and nothing is run."""
    script = Script()
    script.hear(compute(task("y", 1, {"x": ["p"]}), peers={"p": ["tcp://p"]}))
    script.hear(FreeKeys(["y", "x"]))
    script.hear(compute(task("x", 2)))
    effects = script(FetchDone("p", [("x", 8, "int")], [], {}))
    assert runs(effects) == []
    assert [item.attempt for message in said(effects, Finished) for item in message.items] == [2]


def test_w2_a_steal_request_comes_between() -> None:
    """It is refused while the transfer is under way, and nothing is lost."""
    script = Script()
    script.hear(compute(task("y", 1, {"x": ["p"]}), peers={"p": ["tcp://p"]}))
    script.hear(FreeKeys(["y", "x"]))
    effects = script.hear(compute(task("x", 2)), Steal("x", 2))
    assert [answer.granted for answer in said(effects, StealAnswer)] == [False]
    assert runs(script(FetchFailed("p", ["x"], "no answer"))) == ["x"]


def test_w4_computed_freed_and_computed_before_the_loop_turns() -> None:
    """It runs once, for the second assignment."""
    script = Script()
    effects = script.hear(compute(task("x", 1)), FreeKeys(["x"]), compute(task("x", 2)))
    assert runs(effects) == ["x"]
    assert [item.attempt for message in said(script.ended("x"), Finished) for item in message.items] == [2]


def test_w5_a_seceded_task_is_freed_and_wanted_again() -> None:
    """Its result counts; its resources come back once."""
    script = Script(1, GPU=1)
    script.hear(compute(task("x", 1, GPU=1)))
    assert [message.attempt for message in said(script(Seceded("x")), LongRunning)] == [1]
    assert script.core.slots.available == {"GPU": 0}
    script.hear(FreeKeys(["x"]))
    assert [message.attempt for message in said(script.hear(compute(task("x", 2, GPU=1))), LongRunning)] == [2]
    effects = script.ended("x")
    assert [item.attempt for message in said(effects, Finished) for item in message.items] == [2]
    assert script.core.slots.available == {"GPU": 1}


def test_w6_rescheduled_and_sent_back_here() -> None:
    """It starts afresh."""
    script = Script()
    script.hear(compute(task("x", 1)))
    assert [message.attempt for message in said(script.ended("x", "reschedule"), Rescheduled)] == [1]
    assert "x" not in script.core.keys
    assert runs(script.hear(compute(task("x", 2)))) == ["x"]


def test_a_reschedule_that_nobody_waits_for_is_not_reported() -> None:
    """The goal is no longer to compute it."""
    script = Script()
    script.hear(compute(task("x", 1)))
    script.hear(FreeKeys(["x"]))
    assert said(script.ended("x", "reschedule"), Rescheduled) == []
    assert script.core.keys == {}


def test_w7_one_of_a_batch_is_freed_while_it_is_in_flight() -> None:
    """The others arrive."""
    script = Script()
    effects = script.hear(compute(task("y", 1, {"a": ["p"]}), task("z", 2, {"b": ["p"]}), peers={"p": ["tcp://p"]}))
    assert fetches(effects) == [("p", ["a", "b"])]
    script.hear(FreeKeys(["y"]))
    effects = script(FetchDone("p", [("a", 8, "int"), ("b", 8, "int")], [], {}))
    assert runs(effects) == ["z"]
    assert [item.key for message in said(effects, AddKeys) for item in message.items] == ["b"]
    assert [effect.keys for effect in effects if isinstance(effect, Drop)] == [["a"]]


def test_w8_the_peer_has_only_some_of_the_keys() -> None:
    """The rest is sought elsewhere, or reported missing with who was asked."""
    script = Script()
    peers = {"p": ["tcp://p"], "q": ["tcp://q"]}
    script.hear(compute(task("y", 1, {"a": ["p"], "b": ["p", "q"]}), peers=peers))
    flying = {peer: list(records) for peer, records in script.core.fetcher.in_flight.items()}
    effects = script(FetchDone("p", [], flying["p"], {}))
    assert [(message.key, message.absent) for message in said(effects, Missing)] == [("a", ["p"])]
    assert ("b" in flying.get("q", [])) or fetches(effects) == [("q", ["b"])]


def test_w10_a_value_that_cannot_be_had_is_an_error_and_no_loop() -> None:
    """The task that needs it fails with the reason."""
    script = Script()
    script.hear(compute(task("y", 1, {"x": ["p"]}), peers={"p": ["tcp://p"]}))
    effects = script(FetchDone("p", [], [], {"x": "cannot be pickled"}))
    (failed,) = said(effects, Failed)
    assert failed.key == "y"
    assert "cannot be pickled" in failed.error.text
    assert script.core.deadline() is None


def test_w12_a_task_that_erred_leaves_nothing_that_blocks() -> None:
    """The same key runs again."""
    script = Script()
    script.hear(compute(task("x", 1)))
    assert said(script.ended("x", "error"), Failed)
    assert runs(script.hear(compute(task("x", 2)))) == ["x"]
    assert said(script.ended("x"), Finished)


def test_executing_then_only_a_copy_is_wanted_and_it_fails() -> None:
    """The failure is no error of the task's: the copy is fetched."""
    script = Script(2)
    script.hear(compute(task("x", 1)))
    script.hear(FreeKeys(["x"]), compute(task("y", 2, {"x": ["p"]}), peers={"p": ["tcp://p"]}))
    assert script.core.keys["x"].goal is Goal.HOLD
    assert script.core.keys["x"].label == "resumed"
    effects = script.ended("x", "error")
    assert said(effects, Failed) == []
    assert fetches(effects) == [("p", ["x"])]


def test_w19_resources_through_changes_of_mind() -> None:
    """They are never negative and never leak."""
    script = Script(2, GPU=1)
    script.hear(compute(task("x", 1, GPU=1), task("y", 2, GPU=1)))
    script.hear(FreeKeys(["x"]), compute(task("x", 3, GPU=1)), Steal("y", 2), compute(task("y", 4, GPU=1)))
    assert script.core.slots.available == {"GPU": 0}
    assert runs(script.ended("x")) == ["y"]
    script.hear(FreeKeys(["x", "y"]))
    assert script.core.slots.available == {"GPU": 0}
    script.ended("y")
    assert script.core.slots.available == {"GPU": 1}
    assert script.core.keys == {}


def test_a_copy_that_was_let_go_of_while_it_was_on_its_way_is_not_announced() -> None:
    """It serves the task that waits for it, and is dropped; the scheduler never takes this worker for a holder."""
    script = Script()
    script.hear(compute(task("y", 1, {"x": ["p"]}), peers={"p": ["tcp://p"]}))
    script.hear(FreeKeys(["x"]))
    effects = script(FetchDone("p", [("x", 8, "int")], [], {}))
    assert runs(effects) == ["y"]
    assert said(effects, AddKeys) == []
    assert any(isinstance(effect, Drop) and effect.keys == ["x"] for effect in effects)
    assert said(script.ended("y"), Finished)


def test_a_value_whose_file_is_broken_is_given_up_with_what_needs_it_here() -> None:
    """The scheduler hears that the copy is gone, and gets back what cannot be computed here now."""
    script = Script(nthreads=1)
    script.hear(compute(task("x", 1)))
    script.ended("x")
    script.hear(compute(task("busy", 2), task("y", 3, {"x": ["w"]})))
    effects = script(ValuesLost(["x", "unknown"]))
    assert [(message.key, message.absent) for message in said(effects, Missing)] == [("x", ["w"])]
    assert [message.items for message in said(effects, GivenBack)] == [[("y", 3)]]
    assert runs(script.ended("busy")) == []
    assert runs(script.hear(FreeKeys(["x"]), compute(task("x", 4)))) == ["x"]
    assert said(script.ended("x"), Finished)
