"""The client's core, without a link."""

from __future__ import annotations

from typing import Any

from shoal.core.client.future import FutureRecord, FutureStatus
from shoal.core.client.reactor import ClientCore
from shoal.core.effects import Answered, Effect, Registered, Send, Settled
from shoal.core.events import LinkLost, Received, Released, Said
from shoal.messages import (
    Answer,
    Cancel,
    ClientRegistered,
    Done,
    KeyErred,
    KeysCancelled,
    KeysDone,
    KeysRestarted,
    TaskError,
    Unwant,
    Want,
)


def core_with(*keys: str) -> tuple[ClientCore, list[FutureRecord]]:
    core = ClientCore("c")
    records = [core.hold(key) for key in keys]
    core.handle([Said(Want(list(keys)), records)], 0.0)
    for record in records:
        record.wish = 0  # the news of these tests say nothing of wishes
    return core, records


def hear(core: ClientCore, *messages: Any) -> list[Effect]:
    return core.handle([Received("", list(messages))], 0.0)


def test_news_settles_the_records_that_are_known() -> None:
    """In one effect for all of a turn; news of other keys is nothing."""
    core, (a, b, c, d) = core_with("a", "b", "c", "d")
    effects = hear(
        core,
        KeysDone([Done("a", 1, "int", b"v"), Done("x", 1, "int")]),
        KeyErred("b", "z", TaskError(None, None, "no")),
        KeysCancelled(["c"], "changed my mind"),
        KeysCancelled(["d"], "gone", True),
    )
    assert effects == [Settled([a, b, c, d])]
    assert [r.status.label for r in (a, b, c, d)] == ["finished", "error", "cancelled", "lost"]
    assert (a.value, c.reason) == (b"v", "changed my mind")


def test_a_key_that_is_computed_again_is_pending() -> None:
    """And its old value is not given out."""
    core, (a,) = core_with("a")
    hear(core, KeysDone([Done("a", 1, "int", b"old")]), KeysRestarted(["a"]))
    assert a.status is FutureStatus.PENDING
    assert a.value is None
    hear(core, KeysDone([Done("a", 1, "int", b"new")]))
    assert a.value == b"new"


def test_nothing_happens_to_a_cancelled_key() -> None:
    """News that was under way is late."""
    core, (a,) = core_with("a")
    hear(core, KeysCancelled(["a"], "no"))
    assert hear(core, KeysDone([Done("a", 1, "int")]), KeysRestarted(["a"]), KeysCancelled(["a"], "again")) == []
    assert a.reason == "no"


def test_the_last_release_is_told_in_order_with_what_is_said() -> None:
    """Several in one message; never after a message that stands behind them."""
    core, (a, b, c) = core_with("a", "b", "c")
    core.hold("a")
    a.handles.pop()
    b.handles.pop()
    effects = core.handle([Released(a), Released(b), Said(Cancel(["d"]))], 0.0)
    assert effects == [Send("", Unwant(["b"])), Send("", Cancel(["d"])), Settled([b])]
    a.handles.pop()
    c.handles.pop()
    assert core.handle([Released(a), Released(c)], 0.0) == [Send("", Unwant(["a", "c"])), Settled([a, c])]
    assert [record.status.label for record in (a, b, c)] == ["cancelled"] * 3
    assert core.futures == {}


def test_a_broken_link_ends_what_is_pending_and_says_why() -> None:
    """Once; what is finished and here stays finished, what would have to be fetched is cancelled as well."""
    core, (a, b, c) = core_with("a", "b", "c")
    hear(core, KeysDone([Done("a", 1, "int", b"v"), Done("c", 1, "int")]))
    effects = core.handle([LinkLost("scheduler", "s", "cable cut")], 0.0)
    assert effects == [Answered(0, None, "cable cut"), Settled([b, c])]
    assert (a.status, b.status, b.reason) == (FutureStatus.FINISHED, FutureStatus.CANCELLED, c.reason)
    assert c.status is FutureStatus.CANCELLED
    assert "cable cut" in c.reason
    assert core.handle([LinkLost("scheduler", "s", "again")], 0.0) == []


def test_answers_and_registration_are_passed_on() -> None:
    """In the order of arrival."""
    core, _ = core_with()
    assert hear(core, ClientRegistered("s", {}), Answer(3, "yes"), Answer(4, None, "no")) == [
        Registered(),
        Answered(3, "yes", None),
        Answered(4, None, "no"),
    ]
