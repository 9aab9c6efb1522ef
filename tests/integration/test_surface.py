"""Calls of the interface that no other test makes."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import pytest

from shoal import Client, DumpArtefact, Lock, as_completed, get_client, sync, wait
from shoal.errors import UsageError, WorkerStartTimeoutError
from tests.integration.functions import inc


def _mark(dask_worker) -> None:
    dask_worker.marked = "yes"


def _marks(dask_worker) -> str:
    return dask_worker.marked


def test_callbacks_on_workers(client: Client) -> None:
    """Now, and on those that join later."""
    client.register_worker_callbacks(_mark)
    assert set(client.run(_marks).values()) == {"yes"}
    client.cluster.scale(3)
    client.wait_for_workers(3, timeout=20)
    assert list(client.run(_marks).values()) == ["yes"] * 3
    with pytest.raises(UsageError, match="setup"):
        client.register_worker_callbacks(5)
    with pytest.raises(WorkerStartTimeoutError, match="3 of 9") as caught:
        client.wait_for_workers(9, timeout=0.1)
    assert (caught.value.available_workers, caught.value.expected_workers) == (3, 9)


def test_a_dump_that_the_scheduler_writes(client: Client, tmp_path: Path) -> None:
    """On its machine, with what was to be left out left out."""
    future = client.submit(inc, 1)
    assert future.result() == 2
    name = client.dump_cluster_state(str(tmp_path / "dump"), write_from_scheduler=True, exclude=["story"])
    assert future.key in DumpArtefact.from_url(name)["scheduler"]["tasks"]


def test_as_completed_in_all_its_modes(client: Client) -> None:
    """Added to, cleared, in batches, with results and errors, across threads, on an event loop of the user's."""
    many = as_completed(client.map(inc, range(3)), with_results=True)
    assert {value for _, value in many} == {1, 2, 3}
    late = client.submit(time.sleep, 20)
    pending = as_completed([late])
    assert (pending.count(), pending.has_ready(), pending.is_empty()) == (1, False, False)
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.extend(pending))
    thread.start()
    time.sleep(0.05)
    pending.clear()
    thread.join(10)
    assert found == []
    pending.add(client.submit(inc, 5))
    assert next(pending).result() == 6
    late.cancel()
    failing = client.submit(lambda: 1 / 0)
    ((future, (kind, error, _)),) = list(as_completed([failing], with_results=True, raise_errors=False))
    assert (future, kind) == (failing, ZeroDivisionError)
    assert isinstance(error, ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):
        list(as_completed([failing], with_results=True))
    twice = client.submit(inc, 7)
    assert list(as_completed([twice, twice])) == [twice, twice]
    batches = list(as_completed(client.map(inc, range(20))).batches())
    assert sum(map(len, batches)) == 20

    async def iterate() -> set[int]:
        return {value async for _, value in as_completed(client.map(inc, range(4)), with_results=True)}

    assert asyncio.run(iterate()) == {1, 2, 3, 4}
    with pytest.raises(TimeoutError):
        list(as_completed([client.submit(time.sleep, 21)], timeout="50 ms"))
    slow = client.submit(time.sleep, 22)
    done, left = wait([client.submit(inc, 9), slow], return_when="FIRST_COMPLETED")
    assert (len(done), left) == (1, {slow})
    slow.cancel()


def test_questions_as_coroutines(client: Client) -> None:
    """``client.scheduler``, ``client.loop``, ``sync``, ``await Lock()``."""
    future = client.submit(inc, 1)
    future.result()

    async def ask() -> tuple[str, int, list[str]]:
        holders = await client.scheduler.who_has(keys=[future.key])
        info = await client.scheduler.identity()
        return holders[future.key][0], info["n_workers"], list(await client.scheduler.ncores())

    holder, count, workers = sync(client.loop, ask, callback_timeout="10 s")
    assert count == 2
    assert holder in workers
    assert client.scheduler.address in repr(client.scheduler)
    called = threading.Event()
    client.loop.add_callback(called.set)
    assert called.wait(10)

    async def locked() -> bool:
        lock = await Lock("l", client=client)
        async with lock:
            return await lock.locked()

    assert client.sync(locked) is True
    assert get_client() is client
