"""Locks, semaphores, queues and variables in the scheduler's core: whatever order things happen in."""

from __future__ import annotations

import random
from typing import Any

import pytest

from shoal.core.effects import Send
from shoal.core.events import Due, LinkLost, LinkOpened, Received
from shoal.core.scheduler.reactor import SchedulerCore
from shoal.core.scheduler.settings import Settings
from shoal.messages import Answer, Meet, Refresh, RegisterClient, Took, Withdraw


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

    def meet(self, client: str, what: str, name: str = "x", payload: Any = None, **args: Any) -> tuple[str, int]:
        self.rid += 1
        self.feed(Received(client, [Meet(self.rid, what, name, args, payload)]))
        return client, self.rid

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
        m.feed(Received("a", [Refresh(["1"])]))
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
    m.feed(Received("a", [Refresh(["1"])]))
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
            m.feed(Received(client, [Refresh([lease for lease, owner in held.items() if owner == client])]))
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
