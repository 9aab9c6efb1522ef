"""What one message costs that a core cannot handle, told step by step."""

from __future__ import annotations

from typing import Any

import pytest

from shoal.core.effects import CloseLink, Log, Send
from shoal.core.events import LinkOpened, Received
from shoal.core.scheduler.reactor import SchedulerCore
from shoal.errors import InternalError, InvariantViolation
from shoal.ids import WorkerId
from shoal.messages import (
    Answer,
    Bye,
    Cancel,
    DataPut,
    FireAndForget,
    KeyInfo,
    KeysCancelled,
    Meet,
    Options,
    Query,
    RegisterClient,
    RegisterNanny,
    RegisterWorker,
    Submit,
    TaskSpec,
    Want,
    WorkerDied,
)


def core_with(*clients: str) -> SchedulerCore:
    core = SchedulerCore("s")
    for client in clients:
        core.handle([LinkOpened("client", client), Received(client, [RegisterClient()])], 1.0)
    return core


TASK = Submit([TaskSpec("a", "f", b"", [])], {"f": b""}, Options(), ["a"])


def said(effects: list[Any], to: str) -> list[Any]:
    return [effect.message for effect in effects if isinstance(effect, Send) and effect.to == to]


def test_one_bad_message_costs_its_peer_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told why, and let go of; what others say in the same turn is heard."""
    core = core_with("bad", "good")
    core.handle([Received("good", [TASK])], 1.0)
    monkeypatch.setattr(core.state, "cancel", lambda *args: 1 / 0, raising=False)
    effects = core.handle([Received("bad", [Cancel(["a"])]), Received("good", [Want(["b"])])], 2.0)
    assert [effect.to for effect in effects if isinstance(effect, CloseLink)] == ["bad"]
    assert any(isinstance(word, Bye) and word.failed and "Cancel" in word.reason for word in said(effects, "bad"))
    assert any("Traceback" in effect.text for effect in effects if isinstance(effect, Log))
    assert isinstance(said(effects, "good")[0], KeysCancelled)
    assert core.handle([Received("bad", [Want(["b"])])], 2.0) == []  # it is not heard any more


def test_nobody_speaks_for_the_scheduler_or_for_the_nanny_of_another() -> None:
    """Data in the name of what the scheduler itself keeps, the death of another's worker: each ends its own link."""
    core = core_with("good")
    core.handle([Received("good", [TASK, FireAndForget(["a"])])], 1.0)
    register = RegisterWorker("w", "slot", ["tcp://h:1"], 1, 0, 1, "h")
    core.handle([LinkOpened("worker", "w"), Received("w", [register])], 1.0)
    core.handle([LinkOpened("nanny", "n"), Received("n", [RegisterNanny("n", "h", 1)])], 1.0)
    effects = core.handle([Received("n", [WorkerDied("w", "it says so", ["a"])])], 2.0)
    assert [effect.to for effect in effects if isinstance(effect, CloseLink)] == ["n"]
    assert WorkerId("w") in core.state.workers
    (own,) = [client for client in core.state.clients.values() if not client.remote]
    effects = core.handle([Received("w", [DataPut(own.id, [KeyInfo("x", 5)], 1)])], 3.0)
    assert [effect.to for effect in effects if isinstance(effect, CloseLink)] == ["w"]
    assert "x" not in core.state.tasks


def test_a_state_that_is_wrong_afterwards_ends_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """With both errors: what was caught, and what is wrong by it."""
    core = core_with("bad")

    def cancel(*args: Any) -> None:
        core.state.total_nthreads += 1
        raise ZeroDivisionError

    monkeypatch.setattr(core.state, "cancel", cancel, raising=False)
    core.handle([Received("bad", [TASK])], 1.0)
    with pytest.raises(InternalError, match="total_nthreads") as told:
        core.handle([Received("bad", [Cancel(["a"])])], 2.0)
    assert isinstance(told.value.__cause__, ZeroDivisionError)
    assert not isinstance(told.value, InvariantViolation)


@pytest.mark.parametrize(
    "args",
    [{"timeout": float("nan")}, {"timeout": "x"}, {"most": -1}, {"most": "x"}, {"lease": []}, {"names": [[]]},
     {"count": 1.5}, {"leases": 5}, {"timeout": float("inf")}],
)  # fmt: skip
@pytest.mark.parametrize(
    "what",
    ["semaphore-acquire", "event-wait", "queue-get", "queue-put", "several-acquire", "metadata-set", "variable-get"],
)
def test_arguments_of_requests_are_checked(what: str, args: dict[str, Any]) -> None:
    """The request is answered with an error, and nothing else happens."""
    core = core_with("c")
    good = {"timeout": 1.0, "most": 1, "lease": "l", "names": ["n"], "count": 1, "value": 1}
    effects = core.handle([Received("c", [Meet(5, what, "name", {**good, **args}, b"")])], 2.0)
    (answer,) = said(effects, "c")
    assert isinstance(answer, Answer)
    assert answer.rid == 5
    assert "bad argument" in str(answer.error)
    assert not any(isinstance(effect, CloseLink) for effect in effects)


@pytest.mark.parametrize(
    ("what", "args"),
    [("who_has", {"keys": 5}), ("why", {}), ("why", {"key": 5}), ("story", {"keys": [[]]}), ("identity", {"x": 1}),
     ("adaptive_target", {"target_duration": 0.0}), ("task_stream", {"count": "x"}), ("nonsense", {})],
)  # fmt: skip
def test_questions_are_answered_with_an_error(what: str, args: dict[str, Any]) -> None:
    """Whatever they are asked with."""
    core = core_with("c")
    effects = core.handle([Received("c", [Query(6, what, args)])], 2.0)
    (answer,) = said(effects, "c")
    assert (answer.rid, answer.value) == (6, None)
    assert answer.error


def test_a_submission_in_pieces_is_one() -> None:
    """Nothing is let go of before the last piece says what is wanted."""
    core = core_with("c")
    first = Submit([TaskSpec("a", "f", b"", [])], {"f": b""}, Options(), [], 1, 0.0, True)
    last = Submit([TaskSpec("b", "f", b"", ["a"])], {}, Options(), ["b"], 1)
    core.handle([Received("c", [first])], 2.0)
    assert not core.state.tasks
    core.handle([Received("c", [last])], 2.0)
    assert sorted(core.state.tasks) == ["a", "b"]
