"""Locks, semaphores, queues and variables in the scheduler's core: whatever order things happen in."""

from __future__ import annotations

import random
from typing import Any

import pytest

from shoal.core.effects import Send
from shoal.core.events import Due, LinkLost, LinkOpened, Received
from shoal.core.scheduler.reactor import SchedulerCore
from shoal.core.scheduler.settings import Settings
from shoal.messages import (
    Answer,
    Finished,
    FireAndForget,
    Meet,
    Options,
    RegisterClient,
    RegisterWorker,
    Submit,
    TaskDone,
    TaskSpec,
    Took,
    Unwant,
    Want,
    Withdraw,
)


class Meetings:
    """A scheduler's core and clients that say what a test has them say."""

    def __init__(self, *clients: str) -> None:
        self.core = SchedulerCore("s", Settings(validate=True, lease_timeout=30.0, lease_check=10.0))
        self.now = 1.0
        self.answers: dict[tuple[str, int], Any] = {}
        self.errors: dict[tuple[str, int], str] = {}
        self.rid = 0
        for client in clients:
            self.join(client)

    def join(self, client: str) -> None:
        self.feed(LinkOpened("client", client), Received(client, [RegisterClient()]))

    def feed(self, *events: Any) -> None:
        for effect in self.core.handle(events, self.now):
            if isinstance(effect, Send) and isinstance(effect.message, Answer):
                where = (effect.to, effect.message.rid)
                assert where not in self.answers, "answered twice"
                self.answers[where] = effect.message.value
                if effect.message.error is not None:
                    self.errors[where] = effect.message.error

    def meet(
        self, client: str, what: str, name: str = "x", payload: Any = None, inside: tuple[str, ...] = (), **args: Any
    ) -> tuple[str, int]:
        self.rid += 1
        self.feed(Received(client, [Meet(self.rid, what, name, args, payload, list(inside))]))
        return client, self.rid

    def submits(self, client: str, *keys: str) -> None:
        specs = [TaskSpec(key, "f", b"", []) for key in keys]
        self.feed(Received(client, [Submit(specs, {"f": b"F"}, Options(), list(keys))]))

    def known(self) -> set[str]:
        return set(self.core.state.tasks)

    def wait(self, seconds: float) -> None:
        """Let time pass, with a turn whenever the core asked for one."""
        end = self.now + seconds
        while (due := self.core.deadline()) is not None and due <= end:
            self.now = max(self.now, due)
            self.feed(Due())
        self.now = end
        self.feed(Due())


def test_leases_are_granted_in_order_and_expire() -> None:
    """Who says nothing for too long loses it; who says that it holds it keeps it."""
    m = Meetings("a", "b", "c")
    first = m.meet("a", "semaphore-acquire", most=1, lease="1", timeout=None)
    second = m.meet("b", "semaphore-acquire", most=1, lease="2", timeout=None)
    third = m.meet("c", "semaphore-acquire", most=1, lease="3", timeout=None)
    assert m.answers == {first: 30.0}
    for _ in range(10):
        m.wait(10)
        m.meet("a", "lease-refresh", leases=["1"])
    assert second not in m.answers
    m.wait(45)
    assert m.answers[second] == 30.0
    assert third not in m.answers
    m.feed(LinkLost("client", "b", "gone"))
    assert m.answers[third] == 30.0


def test_a_scheduler_that_stood_still_takes_nothing_back() -> None:
    """Nobody could be heard while it did not listen."""
    m = Meetings("a", "b")
    m.meet("a", "semaphore-acquire", most=1, lease="1", timeout=None)
    second = m.meet("b", "semaphore-acquire", most=1, lease="2", timeout=None)
    m.now += 500
    m.feed(Due())
    assert second not in m.answers
    m.meet("a", "lease-refresh", leases=["1"])
    m.wait(20)
    assert second not in m.answers


def test_who_withdraws_or_is_late_is_passed_over() -> None:
    """The next in line gets it."""
    m = Meetings("a", "b", "c", "d")
    m.meet("a", "several-acquire", lease="1", names=["x", "y"], count=2, timeout=None)
    gone = m.meet("b", "several-acquire", lease="2", names=["x", "z"], count=2, timeout=None)
    late = m.meet("c", "several-acquire", lease="3", names=["z", "y"], count=2, timeout=5)
    last = m.meet("d", "several-acquire", lease="4", names=["z"], count=1, timeout=None)
    assert last not in m.answers, "those before it wait for z"
    m.feed(Received("b", [Withdraw(gone[1])]))
    assert m.answers[gone] is None
    assert last not in m.answers
    m.wait(6)
    assert m.answers[late] is None
    assert m.answers[last] == 30.0


@pytest.mark.parametrize("seed", range(40))
def test_semaphores_at_random(seed: int) -> None:
    """Never more leases than there are; who waits is served when all others have gone; nothing is left."""
    rng = random.Random(seed)
    clients = [f"c{number}" for number in range(4)]
    m = Meetings(*clients)
    asked: dict[str, tuple[str, int]] = {}
    held: dict[str, str] = {}

    def heard() -> None:
        for lease, where in list(asked.items()):
            if where in m.answers:
                del asked[lease]
                if m.answers[where] is not None:
                    held[lease] = where[0]

    for step in range(200):
        m.wait(rng.choice([0, 0, 1, 3]))
        for client in clients:
            m.meet(client, "lease-refresh", leases=[lease for lease, owner in held.items() if owner == client])
        client, what = rng.choice(clients), rng.random()
        if what < 0.5:
            limit = rng.choice([None, 0, 4])
            asked[str(step)] = m.meet(client, "semaphore-acquire", most=2, lease=str(step), timeout=limit)
        elif what < 0.8 and held:
            lease = rng.choice(list(held))
            m.meet(held.pop(lease), "lease-release", lease=lease)
        elif what < 0.9 and asked:
            lease = rng.choice(list(asked))
            m.feed(Received(asked[lease][0], [Withdraw(asked[lease][1])]))
        elif what < 0.93:
            m.feed(LinkLost("client", client, "gone"))
            for lease in [lease for lease, owner in held.items() if owner == client]:
                del held[lease]
            for lease in [lease for lease, where in asked.items() if where[0] == client]:
                del asked[lease]
            m.join(client)
        heard()
        assert len(held) <= 2
        assert len(m.core.locks.semaphores["x"].held if "x" in m.core.locks.semaphores else ()) == len(held)
    while asked or held:
        for lease, owner in list(held.items()):
            m.meet(owner, "lease-release", lease=lease)
            del held[lease]
        heard()
    assert not m.core.locks.leases
    assert not len(m.core.room)


@pytest.mark.parametrize("seed", range(40))
def test_queues_at_random(seed: int) -> None:
    """What was put comes out once, in order, and no more is in than may be; nothing waits while it could go on."""
    rng = random.Random(seed)
    m = Meetings("a", "b", "c")
    put: list[Any] = []
    got: list[Any] = []
    getting: list[tuple[str, int]] = []
    putting: list[tuple[tuple[str, int], Any]] = []
    for step in range(150):
        m.wait(rng.choice([0, 0, 1]))
        client = rng.choice("abc")
        if rng.random() < 0.5:
            limit = rng.choice([None, None, 0])
            putting.append((m.meet(client, "queue-put", payload=step, most=3, timeout=limit), step))
        else:
            count = rng.choice([1, 1, 2, 5, None])
            getting.append(m.meet(client, "queue-get", most=3, count=count, timeout=rng.choice([None, 2])))
        for where, value in list(putting):
            if where in m.answers:
                putting.remove((where, value))
                put += [value] if m.answers[where] else []
        for where in list(getting):
            if where in m.answers:
                getting.remove(where)
                got += [payload for payload, _ in m.answers[where] or ()]
                m.feed(Received(where[0], [Took(where[1])]))
        queue = m.core.boxes.queues["x"]
        assert len(queue.items) <= 5, "one who waits for more than there may be lets them in"
        assert not (queue.putters and not queue.full)
        assert not (queue.getters and queue.getters[0].what <= len(queue.items))
    inside = [payload for payload, _ in m.core.boxes.queues["x"].items]
    assert sorted(got + inside) == sorted(put)
    assert got == sorted(got)
    m.meet("a", "queue-close")
    assert not len(m.core.room)
    assert all("closed" in m.errors[where] for where, _ in putting)


def test_futures_in_a_queue_are_in_good_hands_all_the_way() -> None:
    """Kept while they are in it, and after they were taken until the taker says that it wants them, or is gone."""
    m = Meetings("a", "b", "c")
    m.submits("a", "x1", "x2")
    put = m.meet("a", "queue-put", most=0, payload=b"1", inside=("x1",), timeout=None)
    m.meet("a", "queue-put", most=0, payload=b"2", inside=("x2",), timeout=None)
    assert m.answers[put] is True
    m.feed(Received("a", [Unwant(["x1", "x2"])]))
    assert m.known() == {"x1", "x2"}
    m.feed(LinkLost("client", "a", "gone"))
    assert m.known() == {"x1", "x2"}
    first = m.meet("b", "queue-get", most=0, count=1, timeout=None)
    assert m.answers[first] == [[b"1", ["x1"]]]
    assert m.known() == {"x1", "x2"}, "it is between two hands"
    m.feed(Received("b", [Want(["x1"])]))
    m.feed(Received("b", [Took(first[1])]))
    assert m.known() == {"x1", "x2"}
    m.feed(Received("b", [Unwant(["x1"])]))
    assert m.known() == {"x2"}
    m.meet("c", "queue-get", most=0, count=1, timeout=None)
    m.feed(LinkLost("client", "c", "gone"))
    assert m.known() == set(), "who took it is gone, and never said that it wants it"
    assert not m.core.state.clients.keys() - {"b"}


def test_futures_in_variables_and_datasets() -> None:
    """What is replaced, deleted or closed is let go of; what cannot be kept is refused, and what was there stays."""
    m = Meetings("a", "b")
    m.submits("a", "x1", "x2", "x3")
    m.meet("a", "variable-set", payload=b"1", inside=("x1",))
    m.meet("a", "dataset-publish", "d", payload=b"2", inside=("x1", "x2"), override=False)
    assert m.answers[m.meet("b", "dataset-publish", "d", payload=b"3", inside=("x3",), override=False)] is False
    m.feed(Received("a", [Unwant(["x1", "x2", "x3"])]))
    assert m.known() == {"x1", "x2"}
    refused = m.meet("b", "variable-set", payload=b"4", inside=("gone",))
    assert "not known" in m.errors[refused]
    got = m.meet("b", "variable-get", timeout=None)
    assert m.answers[got] == [[b"1", ["x1"]]]
    m.meet("b", "variable-set", payload=b"5")
    m.meet("b", "dataset-delete", "d")
    assert m.known() == {"x1"}, "b was given it, and has not said yet whether it wants it"
    m.feed(Received("b", [Took(got[1])]))
    assert m.known() == set()
    m.submits("a", "x4")
    waiting = m.meet("b", "variable-get", "later", timeout=None)
    m.meet("a", "variable-set", "later", payload=b"6", inside=("x4",))
    assert m.answers[waiting] == [[b"6", ["x4"]]]
    m.feed(Received("a", [Unwant(["x4"])]), Received("b", [Took(waiting[1])]))
    assert m.known() == {"x4"}
    m.meet("a", "variable-delete", "later")
    assert m.known() == set()


def test_what_waits_to_be_put_is_let_go_of_when_nobody_waits() -> None:
    """Withdrawn, late, or with its client gone."""
    m = Meetings("a", "b")
    m.meet("a", "queue-put", most=1, payload=b"0", timeout=None)
    m.submits("b", "x1", "x2", "x3")
    gone = m.meet("b", "queue-put", most=1, payload=b"1", inside=("x1",), timeout=None)
    late = m.meet("b", "queue-put", most=1, payload=b"2", inside=("x2",), timeout=3)
    m.meet("b", "queue-put", most=1, payload=b"3", inside=("x3",), timeout=None)
    m.feed(Received("b", [Unwant(["x1", "x2", "x3"])]))
    assert m.known() == {"x1", "x2", "x3"}
    m.feed(Received("b", [Withdraw(gone[1])]))
    assert m.known() == {"x2", "x3"}
    m.wait(4)
    assert m.answers[late] is None
    assert m.known() == {"x3"}
    m.feed(LinkLost("client", "b", "gone"))
    assert m.known() == set()
    assert len(m.core.boxes.queues["x"].items) == 1


def test_what_is_fired_and_forgotten_is_forgotten_once_it_is_done() -> None:
    """Not before, whoever lets go of it."""
    m = Meetings("a")
    m.submits("a", "x1")
    m.feed(Received("a", [FireAndForget(["x1", "unknown"])]))
    m.feed(Received("a", [Unwant(["x1"])]), LinkLost("client", "a", "gone"))
    assert m.known() == {"x1"}
    m.feed(LinkOpened("worker", "w"), Received("w", [RegisterWorker("w", "w", ["tcp://w"], 1, 0, 1, "host")]))
    task = m.core.state.tasks["x1"]
    m.feed(Received("w", [Finished([TaskDone("x1", task.attempt, 8, "int", 1.0, 2.0)])]))
    assert m.known() == set()
    assert not m.core.state.clients


def test_events_and_metadata() -> None:
    """Set for those who wait and those who come later; nested, with nothing in the way."""
    m = Meetings("a", "b")
    first, late = m.meet("a", "event-wait", timeout=None), m.meet("b", "event-wait", timeout=2)
    m.wait(3)
    assert m.answers[late] is None
    m.meet("b", "event-set")
    assert m.answers[first] is True
    assert m.answers[m.meet("b", "event-wait", timeout=0)] is True
    m.meet("b", "event-clear")
    assert m.answers[m.meet("b", "event-is-set")] is False
    m.meet("a", "metadata-set", names=["x"], value=1)
    m.meet("a", "metadata-set", names=["x", "y"], value=2)
    assert m.answers[m.meet("a", "metadata-get", names=["x"])] == [{"y": 2}]
    assert m.answers[m.meet("a", "metadata-get", names=["x", "y", "z"])] == []
    assert "cannot do" in m.errors[m.meet("a", "nonsense")]


def test_progress_counts_what_is_left() -> None:
    """Of the keys, and of what they are made of; a client that goes takes its view with it."""
    m = Meetings("a")
    specs = [TaskSpec("load-1", "f", b"", []), TaskSpec("sum-1", "f", b"", ["load-1"])]
    m.feed(Received("a", [Submit(specs, {"f": b"F"}, Options(), ["sum-1"])]))
    number = m.answers[m.meet("a", "progress-begin", inside=("sum-1",), complete=True, by="prefix")]
    counts = m.answers[m.meet("a", "progress-look", number=number)]
    assert {name: (one["all"], one["done"]) for name, one in counts.items()} == {"load": (1, 0), "sum": (1, 0)}
    m.feed(LinkOpened("worker", "w"), Received("w", [RegisterWorker("w", "w", ["tcp://w"], 1, 0, 1, "host")]))
    task = m.core.state.tasks["load-1"]
    m.feed(Received("w", [Finished([TaskDone("load-1", task.attempt, 8, "int", 1.0, 2.0)])]))
    counts = m.answers[m.meet("a", "progress-look", number=number)]
    assert counts["load"]["done"] == 1
    assert counts["sum"] == {"all": 1, "done": 0, "failed": 0, "processing": 1}
    m.feed(LinkLost("client", "a", "gone"))
    assert not m.core.watches._watches


def test_who_stands_behind_one_that_goes_is_served() -> None:
    """One wants more than there is; when it gives up, the next one gets what is there, at once."""
    m = Meetings("a", "b", "c")
    greedy = m.meet("a", "queue-get", most=0, count=5, timeout=None)
    modest = m.meet("b", "queue-get", most=0, count=1, timeout=None)
    m.meet("c", "queue-put", most=0, payload=b"1", timeout=None)
    assert modest not in m.answers
    m.feed(Received("a", [Withdraw(greedy[1])]))
    assert m.answers[modest] == [[b"1", []]]


def test_a_dataset_that_is_replaced_is_let_go_of() -> None:
    """Its futures with it, unless the new one has them, too."""
    m = Meetings("a")
    m.submits("a", "x1", "x2")
    m.meet("a", "dataset-publish", "d", payload=b"1", inside=("x1", "x2"), override=False)
    m.feed(Received("a", [Unwant(["x1", "x2"])]))
    assert m.answers[m.meet("a", "dataset-publish", "d", payload=b"2", inside=("x2",), override=True)] is True
    assert m.known() == {"x2"}
    assert m.answers[m.meet("a", "dataset-list", "")] == ["d"]
