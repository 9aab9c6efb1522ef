"""Objects that live on a worker."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest

from shoal import Actor, Client, LocalCluster, get_client
from shoal.errors import LostActorError
from tests.integration.functions import inc, pid
from tests.integration.helpers import until


class Counter:
    kind = "counter"

    def __init__(self, start: int = 0) -> None:
        self.n = start
        self.order: list[int] = []

    def add(self, amount: int) -> int:
        before = self.n
        time.sleep(0.001)  # two at a time would lose one
        self.n = before + amount
        self.order.append(amount)
        return self.n

    def fail(self) -> None:
        raise ValueError("no")

    def where(self) -> int:
        return os.getpid()

    def outside(self, x: int) -> int:
        return get_client().submit(inc, x).result(20)

    async def later(self) -> str:
        await asyncio.sleep(0)
        return "later"


def use(actor: Actor, amount: int) -> int:
    return actor.add(amount).result(20)


def test_calls_are_made_where_it_is_one_after_another(client: Client) -> None:
    """From the client, from tasks anywhere, and of all kinds."""
    counter = client.submit(Counter, 10, actor=True).result(20)
    assert isinstance(counter, Actor)
    calls = [counter.add(n) for n in range(30)]
    assert calls[-1].result(20) == 10 + sum(range(30))
    assert counter.n == 10 + sum(range(30))
    assert counter.order == list(range(30))
    assert sum(client.gather(client.map(use, [counter] * 10, [1] * 10, pure=False))) > 0
    assert counter.n == 20 + sum(range(30))
    assert counter.where().result(20) in client.run(pid).values()
    assert counter.outside(5).result(20) == 6
    assert counter.later().result(20) == "later"
    with pytest.raises(ValueError, match="no"):
        counter.fail().result(20)
    with pytest.raises(AttributeError):
        counter.nothing
    assert "Counter" in repr(counter)
    assert len(client.who_has()[counter.key]) == 1


def test_it_lives_as_long_as_somebody_holds_it(client: Client) -> None:
    """A future, or what stands for it."""
    future = client.submit(Counter, actor=True)
    counter = future.result(20)
    key = future.key
    del future
    assert counter.add(1).result(20) == 1
    assert key in client.who_has()
    del counter
    until(lambda: key not in client.who_has())


def test_its_worker_dies() -> None:
    """It is not made anew in silence, calls and tasks that need it say so; asked for, another is made."""
    with LocalCluster(n_workers=2, threads_per_worker=1) as cluster, Client(cluster) as client:
        future = client.submit(Counter, actor=True)
        counter = future.result(20)
        assert counter.add(5).result(20) == 5
        os.kill(counter.where().result(20), signal.SIGKILL)
        with pytest.raises(LostActorError):
            counter.add(1).result(20)
        until(lambda: future.status == "error")
        with pytest.raises(LostActorError, match="its state with it"):
            future.result(20)
        with pytest.raises(LostActorError):
            client.submit(use, future, 1).result(20)
        client.retry([future])
        until(lambda: future.status == "finished")
        assert future.result(20).add(1).result(20) == 1


def test_in_a_coroutine() -> None:
    """Everything awaited, on the client's own loop."""

    async def work() -> None:
        async with (
            LocalCluster(n_workers=1, processes=False, asynchronous=True) as cluster,
            Client(cluster, asynchronous=True) as client,
        ):
            counter = await client.submit(Counter, 1, actor=True)
            assert await counter.add(2) == 3
            assert await counter.n == 3

    asyncio.run(asyncio.wait_for(work(), 30))
