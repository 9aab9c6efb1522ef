"""Everything on one event loop: asynchronous clients and clusters, and the parts as objects."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from shoal import Client, LocalCluster, Nanny, Scheduler, Security, Worker, as_completed, wait
from shoal.errors import ClosedClientError, HandshakeError, StartError, UsageError
from tests.integration.functions import add, fail, inc, pid, slow_inc
from tests.integration.helpers import until


def run(main: Callable[[], Awaitable[None]]) -> None:
    """Run a test on a loop of its own."""
    asyncio.run(asyncio.wait_for(main(), 60))


@pytest.mark.parametrize("processes", [True, False])
def test_the_whole_client_with_await(processes: bool) -> None:
    """Submit, map, gather, scatter, wait, as_completed, run, cancel, restart and the questions."""

    async def main() -> None:
        async with (
            LocalCluster(n_workers=2, threads_per_worker=1, processes=processes, asynchronous=True) as cluster,
            Client(cluster, asynchronous=True) as client,
        ):
            assert await client.submit(inc, 1) == 2
            assert await client.submit(inc, 1).result() == 2
            futures = client.map(inc, range(20))
            assert await client.gather({"all": futures}) == {"all": list(range(1, 21))}
            done = await wait(futures)
            assert done.done == set(futures)
            assert sorted([result async for _, result in as_completed(futures, with_results=True)]) == [*range(1, 21)]
            scattered = await client.scatter([10, 20])
            assert await client.submit(add, scattered) == 30
            error = await client.submit(fail, 1).exception()
            assert isinstance(error, ValueError)
            assert (await client.submit(fail, 1).traceback()) is not None
            assert len(set((await client.run(pid)).values())) == (2 if processes else 1)
            assert sum((await client.nthreads()).values()) == 2
            assert len((await client.scheduler_info())["workers"]) == 2
            assert len(await client.who_has(futures)) == 20
            slow = client.submit(asyncio.sleep, 0, pure=False)
            await client.cancel(slow)
            with pytest.raises(TimeoutError, match="still pending"):
                await client.submit(slow_inc, 5, key="never", workers=["nobody"]).result(timeout=0.1)
            if processes:
                await client.restart(timeout=30)
                assert await client.submit(inc, 5) == 6
        with pytest.raises(ClosedClientError):
            client.submit(inc, 1)

    run(main)


def test_an_asynchronous_client_starts_and_ends_a_cluster_of_its_own() -> None:
    """Without an address."""

    async def main() -> None:
        client = Client(n_workers=1, threads_per_worker=1, processes=False, asynchronous=True)
        with pytest.raises(UsageError, match="awaited"):
            client.submit(inc, 1)
        await client
        assert await client.submit(inc, 1) == 2
        await client.close()
        assert client.cluster.status == "closed"

    run(main)


def test_scheduler_worker_and_nanny_find_each_other_without_a_word() -> None:
    """As objects of one user in one program."""

    async def main() -> None:
        async with Scheduler() as scheduler, Worker(scheduler.address, nthreads=1, name="thread") as worker:
            async with (
                Nanny(scheduler.address, nthreads=1, name="process", memory_limit="1 GiB") as nanny,
                Client(scheduler.address, asynchronous=True) as client,
            ):
                info = (await client.scheduler_info())["workers"]
                assert {w["name"] for w in info.values()} == {"thread", "process"}
                assert set(info) == {worker.address, nanny.worker_address}
                where = client.submit(pid, workers=["process"])
                assert await where == nanny.pid
                assert await client.submit(pid, workers=["thread"], pure=False) != nanny.pid
                with pytest.raises(StartError, match="'thread' is here already"):
                    await Worker(scheduler.address, nthreads=1, name="thread")
            assert "running" in repr(scheduler)
        assert "not running" in repr(scheduler)

    run(main)


def test_a_secret_of_its_own_keeps_others_out() -> None:
    """A cluster with its own secret is closed to those with the user's."""

    async def main() -> None:
        ours = Security(secret="for the four of us")
        async with Scheduler(security=ours) as scheduler, Worker(scheduler.address, nthreads=1, security=ours):
            async with Client(scheduler.address, asynchronous=True, security=ours) as client:
                assert await client.submit(inc, 1) == 2
            with pytest.raises(HandshakeError, match="secret"):
                await Client(scheduler.address, asynchronous=True)
            with pytest.raises(HandshakeError, match="secret"):
                await Worker(scheduler.address, nthreads=1)

    run(main)


def test_futures_of_a_synchronous_client_can_be_awaited() -> None:
    """From whatever loop."""
    with LocalCluster(n_workers=1, threads_per_worker=2, processes=False) as cluster, Client(cluster) as client:

        async def main() -> None:
            assert await client.submit(inc, 1) == 2
            assert await client.gather(client.map(inc, [1, 2]), asynchronous=True) == [2, 3]

        run(main)


def test_a_callback_that_raises_is_logged_and_the_rest_are_called(caplog: Any) -> None:
    """Callbacks run in a helper thread, one after another."""
    called = []
    with LocalCluster(n_workers=1, threads_per_worker=1, processes=False) as cluster, Client(cluster) as client:
        future = client.submit(inc, 1)
        future.add_done_callback(lambda f: fail(0))
        future.add_done_callback(lambda f: called.append(f.result()))
        until(lambda: called)
        assert called == [2]
    assert "a callback failed" in caplog.text
