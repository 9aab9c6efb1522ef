"""Connections over the network that break while the processes at both ends live: through a proxy that cuts them."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from typing import Any

import dask
import pytest

from shoal import Client, Scheduler, Worker
from shoal.errors import FutureCancelledError
from shoal.shell.link import Link
from tests.integration.functions import inc, slow_inc


class Proxy:
    """Passes bytes on, and breaks connections when told, or after so many bytes."""

    def __init__(self, target: str) -> None:
        host, port = target.removeprefix("tcp://").split(":")
        self.target = (host, int(port))
        self.pairs: list[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = []
        self.tasks: set[asyncio.Task[None]] = set()
        #: Bytes after which the next connection breaks, one after another.
        self.limits: list[int] = []
        self.connections = 0
        self.down = False

    async def __aenter__(self) -> Proxy:
        self.server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.address = f"tcp://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *error: object) -> None:
        self.server.close()
        self.cut()
        for task in tuple(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.down:
            writer.transport.abort()
            return
        self.connections += 1
        far_reader, far_writer = await asyncio.open_connection(*self.target)
        self.pairs.append((writer, far_writer))
        limit = [self.limits.pop(0)] if self.limits else [10**12]
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            task = asyncio.create_task(self._pump(source, sink, limit))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, limit: list[int]) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(4096):
                sink.write(data[: limit[0]])
                limit[0] -= len(data)
                await sink.drain()
                if limit[0] <= 0:
                    await asyncio.sleep(0)
                    self.cut()
                    return
        sink.close()

    def cut(self) -> None:
        """Break all connections now."""
        for pair in self.pairs:
            for writer in pair:
                writer.transport.abort()
        self.pairs.clear()


def test_w15_a_worker_is_cut_off_again_and_again() -> None:
    """Nothing is lost, nothing runs twice, and it is the same worker."""

    async def work() -> None:
        async with (
            Scheduler() as scheduler,
            Proxy(scheduler.address) as proxy,
            Worker(proxy.address, nthreads=2, memory_limit=0) as worker,
            Client(scheduler.address, asynchronous=True) as client,
        ):
            before = worker.program.id
            held = client.submit(inc, 1)
            assert await held == 2
            futures = client.map(slow_inc, range(60), pure=False)
            later = client.submit(sum, futures)
            for _ in range(6):
                await asyncio.sleep(0.08)
                proxy.cut()
            assert await later == sum(range(1, 61))
            assert await client.submit(inc, held) == 3
            assert worker.program.core.executed == 63
            assert list(scheduler.program.core.state.workers) == [before]
            assert proxy.connections == 7

    asyncio.run(asyncio.wait_for(work(), 60))


@pytest.mark.parametrize("seed", range(6))
def test_cut_at_any_byte(seed: int) -> None:
    """Of the worker's or the client's link, also in the middle of a frame or of the handshake."""

    async def work() -> None:
        rng = random.Random(seed)
        async with (
            Scheduler() as scheduler,
            Proxy(scheduler.address) as one,
            Proxy(scheduler.address) as two,
            Worker(one.address, nthreads=1, memory_limit=0) as worker,
            Client(two.address, asynchronous=True) as client,
        ):
            for proxy in (one, two):
                proxy.limits = [rng.randint(1, 20_000) for _ in range(5)]
                proxy.cut()
            futures = client.map(inc, range(400), pure=False)
            chain = client.submit(inc, futures[-1])
            for _ in range(20):
                chain = client.submit(inc, chain)
            assert await client.gather(futures) == list(range(1, 401))
            assert await chain == 421
            assert worker.program.core.executed == 421

    asyncio.run(asyncio.wait_for(work(), 60))


def test_f2_a_client_is_cut_off() -> None:
    """Its futures live on, what it asked for goes on, and what it says meanwhile arrives."""

    async def work() -> None:
        async with (
            Scheduler() as scheduler,
            Proxy(scheduler.address) as proxy,
            Worker(scheduler.address, nthreads=1, memory_limit=0) as worker,
            Client(proxy.address, asynchronous=True) as client,
        ):
            futures = client.map(slow_inc, range(10), pure=False)
            while not worker.program.core.keys:
                await asyncio.sleep(0.01)
            proxy.down = True
            proxy.cut()
            while not client._connection.cut:
                await asyncio.sleep(0.01)
            assert client.status == "connecting"
            more = client.submit(inc, 41)
            while worker.program.core.executed < 10:
                await asyncio.sleep(0.01)
            proxy.down = False
            assert await client.gather(futures) == list(range(1, 11))
            assert await more == 42
            assert client.status == "running"
            assert worker.program.core.executed == 11

    asyncio.run(asyncio.wait_for(work(), 60))


def test_a_cut_that_lasts_too_long() -> None:
    """The worker ends and the scheduler lets it go; the client says why its futures will not come."""

    async def work() -> None:
        with dask.config.set({"shoal.comm.resume-timeout": "300ms"}):
            async with (
                Scheduler() as scheduler,
                Proxy(scheduler.address) as proxy,
                Worker(proxy.address, nthreads=1, memory_limit=0) as worker,
                Client(proxy.address, asynchronous=True) as client,
                Client(scheduler.address, asynchronous=True) as other,
            ):
                mine, theirs = client.submit(slow_inc, 1), other.submit(slow_inc, 2)
                while not worker.program.core.keys:
                    await asyncio.sleep(0.01)
                proxy.down = True
                proxy.cut()
                with pytest.raises(FutureCancelledError, match=r"0\.3 s|reached"):
                    await mine
                await worker.finished()
                assert "link to the scheduler broke" in worker.program.reason
                while scheduler.program.core.state.workers:
                    await asyncio.sleep(0.01)
                async with Worker(scheduler.address, nthreads=1, memory_limit=0):
                    assert await theirs == 3

    asyncio.run(asyncio.wait_for(work(), 60))


def test_who_comes_back_to_another_scheduler_is_told() -> None:
    """One that was restarted at the same address knows nothing of what was going on."""

    async def work() -> None:
        reasons: list[Any] = []
        async with (
            Scheduler() as first,
            Proxy(first.address) as proxy,
            Worker(proxy.address, nthreads=1, memory_limit=0) as worker,
            Scheduler() as second,
        ):
            host, port = second.address.removeprefix("tcp://").split(":")
            proxy.target = (host, int(port))
            proxy.cut()
            await worker.finished()
            reasons.append(worker.program.reason)
        assert "was restarted" in reasons[0]

    asyncio.run(asyncio.wait_for(work(), 60))


@pytest.mark.parametrize("end", ["client", "scheduler"])
def test_what_is_said_between_the_cut_and_the_news_of_it(end: str) -> None:
    """The transport knows that it is broken before the link is told: what is said in between is not lost."""

    async def work() -> None:
        async with (
            Scheduler() as scheduler,
            Proxy(scheduler.address) as proxy,
            Worker(scheduler.address, nthreads=1, memory_limit=0),
            Client(proxy.address, asynchronous=True) as client,
        ):
            for n in range(20):
                mine = client._connection._link
                assert mine is not None
                link = mine if end == "client" else scheduler.program.links[mine._identity.id]

                def cut(link: Link = link, flush: Callable[[], None] = link.flush) -> None:
                    del link.flush
                    link._transport.abort()
                    flush()

                link.flush = cut  # type: ignore[method-assign]
                assert await client.submit(inc, n, pure=False) == n + 1

    asyncio.run(asyncio.wait_for(work(), 60))
