"""Workers that cannot reach each other while both reach the scheduler: whatever is wanted comes all the same."""

from __future__ import annotations

from typing import Any

import pytest

from shoal.core.effects import CloseLink, Send
from shoal.core.events import Received
from shoal.core.scheduler.cuts import REMEMBERED, Cuts
from shoal.messages import AcquireCopies, Answer, Carry, FreeKeys, Give, Given, Heartbeat
from shoal.sim.script import Script


def needs_what_is_on_the_other(*others: str, **settings: float | None) -> Script:
    """B holds x and C is to compute y of it; B and C cannot reach each other."""
    s = Script("B", "C", *others, **settings)
    s.computes("B", "x")
    s.parts("B", "C")
    s.submit("y < x", on="C")
    s.flow()
    assert s.fetches("C") == {"B": ["x"]}
    s.arrives("C", "B")
    return s


@pytest.mark.parametrize("others", [(), ("D",), ("D", "E")])
def test_a_value_behind_a_cut_comes_by_way_of_the_scheduler(others: tuple[str, ...]) -> None:
    """With two workers, three and four; nothing is computed twice."""
    s = needs_what_is_on_the_other(*others)
    assert [message.keys for message in s.waiting("C>s") if isinstance(message, Carry)] == [["x"]]
    s.finish()
    assert s.began == {"x": 1, "y": 1}


def test_why_says_from_whom_since_when_and_what_is_done() -> None:
    """While it is under way."""
    s = needs_what_is_on_the_other()
    s.flow("C>s")
    s.now += 7
    told = s.why("y")
    assert "'x' is on B, which C could not reach 1 times in 7 s" in told
    assert "by way of the scheduler" in told
    s.finish()


def test_the_next_value_behind_the_cut_is_not_tried_first() -> None:
    """And later it is tried again, in case that the cut is mended."""
    s = needs_what_is_on_the_other()
    s.finish()
    s.computes("B", "u")
    s.submit("v < u", on="C")
    s.flow()
    assert s.fetches("C") == {}
    s.finish()
    s.now += 1000
    s.computes("B", "m")
    s.submit("n < m", on="C")
    s.flow()
    assert s.fetches("C") == {"B": ["m"]}
    s.finish()


def test_scattered_data_behind_a_cut_comes_too() -> None:
    """It has no recipe, and is not lost."""
    s = Script("B", "C")
    s.scatters("B", "d")
    s.flow()
    s.parts("B", "C")
    s.submit("y < d", on="C")
    s.finish()
    assert s.future("d") == "finished"
    assert s.future("y") == "finished"


def test_a_task_goes_rather_to_where_its_input_can_be_reached() -> None:
    """Where nothing else is said: the holder itself, or a worker on this side of the cut."""
    s = needs_what_is_on_the_other()
    s.finish()
    s.submit("z < x")
    s.finish()  # C has a copy of x by now
    s.computes("B", "w")
    s.submit("v < w")
    s.flow()
    assert s.on("v") == ["B"]
    s.finish()


def test_the_holder_dies_while_its_value_is_under_way() -> None:
    """It is computed again, and the asker is told."""
    s = Script("B", "C")
    s.computes("B", "x", allow_other_workers=True)
    s.parts("B", "C")
    s.submit("y < x", on="C")
    s.flow()
    s.arrives("C", "B")
    s.flow("C>s")
    s.dies("B")
    s.finish()
    assert s.began == {"x": 2, "y": 1}


def test_the_asker_dies_while_a_value_is_under_way_to_it() -> None:
    """The holder's answer is passed over."""
    s = Script("B", "C")
    s.computes("B", "x")
    s.parts("B", "C")
    s.submit("y < x", on="C", allow_other_workers=True)
    s.flow()
    s.arrives("C", "B")
    s.flow("C>s", "s>B")
    s.dies("C")
    assert any(isinstance(message, Given) for message in s.waiting("B>s"))
    s.finish()


def test_the_value_is_let_go_of_while_it_is_under_way() -> None:
    """Nothing is left of it anywhere."""
    s = needs_what_is_on_the_other()
    s.flow("C>s")
    s.release("y")
    s.flow("K>s")
    assert any(isinstance(message, FreeKeys) for message in s.waiting("s>C"))
    s.finish()
    assert list(s.workers["C"].values) == []


def test_a_holder_that_is_stopped_keeps_its_values_until_it_counts_as_dead() -> None:
    """The way by the scheduler ends without an answer several times; ``worker_ttl`` decides what becomes of it."""
    s = needs_what_is_on_the_other(worker_ttl=300.0)
    s.stopped.add("B")
    for _ in range(28):
        s.later(10.0)
        s.says("C", Heartbeat({}))
        if s.fetches("C"):
            s.arrives("C", "B")
        s.flow()
    assert s.began == {"x": 1}
    assert s.on("x") == ["B"]
    s.stopped.clear()
    s.flow()
    s.finish()
    assert s.began == {"x": 1, "y": 1}


def test_a_copy_for_its_own_sake_comes_over_a_cut() -> None:
    """As where a worker retires and only one that cannot reach it could take what it holds."""
    s = Script("B", "C")
    s.computes("B", "x")
    s.parts("B", "C")
    s.retire("B")
    s.flow()
    assert any(isinstance(message, AcquireCopies) for message in s.heard["C"])
    s.finish()
    assert s.on("x") == ["C"]
    assert s.began == {"x": 1}


def test_a_client_that_cannot_reach_a_worker_has_the_value_by_way_of_the_scheduler() -> None:
    """And is told at once where it cannot have it."""
    s = Script("B")
    s.computes("B", "x")
    s.says("K", Carry(7, ["x", "never"], holder="B"))
    s.says("K", Carry(8, ["x"], holder="nobody"))
    s.flow()
    answers = {message.rid: message for message in s.heard["K"] if isinstance(message, Answer)}
    assert answers[7].value["items"] == {"x": s.workers["B"].values["x"]}
    assert answers[7].value["missing"] == ["never"]
    assert answers[8].error == "that worker is gone"


def test_each_holder_is_asked_for_one_after_another() -> None:
    """So that the scheduler is no store: the others wait there as a few words."""
    s = Script("B", "C", "D", "E")
    s.computes("B", "x")
    for name in "CDE":
        s.parts("B", name)
        s.submit(f"y{name} < x", on=name)
    s.flow()
    for name in "CDE":
        s.arrives(name, "B")
    s.flow("C>s", "D>s", "E>s")
    assert len(s.waiting("s>B")) == 1
    s.finish()
    assert not any(isinstance(message, Given) and message.reason for name in "CDE" for message in s.heard[name])


@pytest.mark.parametrize("answer", [{"items": {"z": b""}}, {"missing": ["x", "z"]}, {"errors": {"z": "no"}}])
def test_a_holder_that_answers_what_it_was_not_asked_for_is_let_go_of(answer: dict[str, Any]) -> None:
    """Nothing of that comes to the asker, who gets the value from elsewhere."""
    s = needs_what_is_on_the_other("D")
    s.flow("C>s")
    (give,) = [message for message in s.waiting("s>B") if isinstance(message, Give)]
    effects = s.scheduler.handle([Received("B", [Given(give.rid, **answer)])], s.now)
    assert [effect.to for effect in effects if isinstance(effect, CloseLink)] == ["B"]
    assert not any(isinstance(effect, Send) and isinstance(effect.message, Given) for effect in effects)


def test_a_cut_is_forgotten_in_time() -> None:
    """After that placement looks at no pairs again."""
    cuts = Cuts()
    cuts.note("a", "b", 0.0)
    cuts.note("a", "b", 1.0)
    cut = cuts.between("a", "b", REMEMBERED)
    assert cut is not None
    assert (cut.since, cut.last, cut.times) == (0.0, 1.0, 2)
    assert cuts.between("a", "b", REMEMBERED + 1.5) is None
    assert not cuts
