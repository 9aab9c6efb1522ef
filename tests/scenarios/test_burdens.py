"""Workers whose memory is too small for the inputs of a task, told by hand: they die with nothing in their threads."""

from __future__ import annotations

import pytest

from shoal.messages import WorkerDied
from shoal.sim.script import Script

#: Bytes that a worker may use; each value has 8.
LIMIT = 20


def cluster(limit: int = LIMIT) -> Script:
    """``B`` has the inputs ``x y z``; workers in the slot of nanny ``N`` have to fetch them."""
    s = Script("B", allowed_failures=2)
    s.nanny("N")
    s.computes("B", "x y z")
    s.join("A0", slot="N")
    s.flow()
    s.scheduler.state.workers["A0"].memory_limit = limit
    return s


def die(s: Script, number: int, cause: str, running: list[str], link_first: bool, limit: int = LIMIT) -> None:
    """The worker of ``N`` dies; the link or the nanny tells of it first; another one comes."""
    name = f"A{number}"
    if link_first:
        s.dies(name)
    s.says("N", WorkerDied(name, "it used too much", running, cause=cause))
    if not link_first:
        s.dies(name)
    s.join(f"A{number + 1}", slot="N")
    s.flow()
    s.scheduler.state.workers[f"A{number + 1}"].memory_limit = limit


@pytest.mark.parametrize("link_first", [True, False])
@pytest.mark.parametrize("limit", [LIMIT, 1000, 0])
def test_inputs_that_are_too_much_for_a_worker_end_in_an_error(limit: int, link_first: bool) -> None:
    """Its inputs kill the worker before a thread has the task: that counts, also where their sizes are wrong."""
    s = cluster(limit)
    s.submit("t < x y z", on="N")
    s.flow()
    for number in range(3):
        assert s.future("t") == "pending"
        assert s.fetches(f"A{number}"), "the inputs are not fetched"
        die(s, number, "memory", [], link_first, limit)
    assert s.future("t") == "error"
    assert "its inputs of" in s.scheduler.state.tasks["t"].error[0]


def test_large_inputs_count_beside_other_tasks_that_run() -> None:
    """Else each death would be held against another small task, and the large one would be tried for ever."""
    s = cluster()
    for number in range(3):
        s.submit(f"small{number}", on="N")
        s.flow()
        if not number:
            s.submit("t < x y z", on="N")
            s.flow()
        die(s, number, "memory", [f"small{number}"], True)
    assert s.future("t") == "error"
    assert s.future("small2") == "pending"


@pytest.mark.parametrize(("cause", "running"), [("signal", []), ("memory", ["small"])])
def test_others_are_not_blamed(cause: str, running: list[str]) -> None:
    """A death of another kind, or one that a task in a thread explains, does not count against small inputs."""
    s = cluster(1000)
    s.submit("small", on="N")
    s.submit("t < x y z", on="N")
    s.flow()
    for number in range(4):
        die(s, number, cause, running, True, 1000)
    assert s.future("t") == "pending"
