"""What a client that does not read is not told, and is told later."""

from __future__ import annotations

from typing import Any

from shoal.core.events import Due, LinkDrained, LinkFull
from shoal.core.scheduler.explain import why
from shoal.core.scheduler.owing import EVENTS
from shoal.messages import (
    Cancel,
    KeyErred,
    KeysCancelled,
    KeysDone,
    KeysRestarted,
    LogEvent,
    Logged,
    Subscribe,
    Unwant,
    Warned,
)
from tests.machines.harness import Cluster


def told(cluster: Cluster, *kinds: Any) -> list[Any]:
    """What the client was told since the last time."""
    line = cluster.line("s", "c")
    found = [message for message in line if not kinds or isinstance(message, kinds)]
    line.clear()
    return found


def run(cluster: Cluster, tasks: dict[str, list[str]], wants: list[str]) -> None:
    cluster.submit(tasks, wants)
    settle(cluster)


def settle(cluster: Cluster) -> None:
    """Let all happen, but for the client's reading."""
    kept: list[Any] = []
    while True:
        line = cluster.line("s", "c")
        kept += line
        line.clear()
        if not cluster.step():
            break
    cluster.line("s", "c").extend(kept)


def test_results_wait_without_their_values_and_are_told_once_there_is_room() -> None:
    cluster = Cluster(1)
    settle(cluster)
    told(cluster)
    cluster.feed(LinkFull("c", 9))
    cluster.failing["bad"] = 1
    run(cluster, {"a": [], "b": ["a"], "bad": [], "never": []}, ["a", "b", "bad", "never"])
    cluster.client(Unwant(["never"]))
    settle(cluster)
    assert told(cluster) == []
    assert "The link of client c has been full for" in why(
        cluster.scheduler.state, "b", cluster.now, cluster.scheduler.owing.peers
    )
    cluster.feed(LinkDrained("c"))
    news = told(cluster)
    assert [item.key for message in news if isinstance(message, KeysDone) for item in message.items] == ["a", "b"]
    assert all(item.value is None for message in news if isinstance(message, KeysDone) for item in message.items)
    assert [message.key for message in news if isinstance(message, KeyErred)] == ["bad"]
    run(cluster, {"c": []}, ["c"])
    assert [message.items[0].key for message in told(cluster, KeysDone)] == ["c"]


def test_what_is_told_is_how_it_stands_then() -> None:
    """A result that was lost meanwhile is said to be computed again; a cancellation keeps its reason."""
    cluster = Cluster(1)
    run(cluster, {"a": [], "b": []}, ["a", "b"])
    told(cluster)
    cluster.feed(LinkFull("c", 9))
    cluster.kill("w1")
    cluster.client(Cancel(["b"], reason="enough"))
    settle(cluster)
    cluster.feed(LinkDrained("c"))
    news = told(cluster)
    assert [message.keys for message in news if isinstance(message, KeysRestarted)] == [["a"]]
    assert [(message.keys, message.reason) for message in news if isinstance(message, KeysCancelled)] == [
        (["b"], "enough")
    ]


def test_news_are_told_a_slice_at_a_time_and_stop_when_the_link_is_full_again() -> None:
    cluster = Cluster(1)
    settle(cluster)
    cluster.scheduler.owing.keys_a_turn = 2
    cluster.feed(LinkFull("c", 9))
    names = [f"k{n}" for n in range(5)]
    run(cluster, {name: [] for name in names}, names)
    told(cluster)
    cluster.feed(LinkDrained("c"))
    assert len(told(cluster, KeysDone)[0].items) == 2
    assert cluster.scheduler.deadline() == cluster.now
    cluster.feed(LinkFull("c", 9))
    cluster.feed(Due())
    assert told(cluster) == []
    cluster.feed(LinkDrained("c"))
    for _ in range(5):
        cluster.feed(Due())
    assert sorted(item.key for message in told(cluster, KeysDone) for item in message.items)[-1] == "k4"
    assert cluster.scheduler.state.clients["c"].owed is None


def test_events_are_dropped_the_oldest_first_and_their_number_is_said() -> None:
    cluster = Cluster(0)
    cluster.client(Subscribe("t"))
    settle(cluster)
    told(cluster)
    cluster.feed(LinkFull("c", 9))
    for number in range(EVENTS + 7):
        cluster.client(LogEvent(["t"], number, 1.0))
    settle(cluster)
    assert told(cluster) == []
    cluster.feed(LinkDrained("c"))
    for _ in range(20):
        cluster.feed(Due())
    news = told(cluster)
    assert [message.msg for message in news if isinstance(message, Logged)] == list(range(7, EVENTS + 7))
    assert next(message.text for message in news if isinstance(message, Warned)).startswith("7 events were dropped")
