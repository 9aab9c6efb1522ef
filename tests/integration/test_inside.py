"""Tasks that launch tasks and wait for them."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import dask
import pytest

from shoal import Client, LocalCluster, get_client, rejoin, secede, worker_client
from shoal.errors import ConfigurationError
from tests.integration.functions import inc
from tests.integration.helpers import until


def fib(n: int) -> int:
    if n < 2:
        return n
    with worker_client() as client:
        return sum(client.gather(client.map(fib, [n - 1, n - 2], pure=False)))


def deep(n: int) -> int:
    secede()
    return 0 if n == 0 else 1 + get_client().submit(deep, n - 1).result(60)


def out_and_in(seconds: float) -> int:
    secede()
    secede()
    time.sleep(seconds)
    rejoin()
    rejoin()
    return 1


def test_tasks_that_wait_for_tasks_do_not_deadlock_at_any_depth() -> None:
    """More levels than there are threads, on one thread."""
    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster, Client(cluster) as client:
        assert client.submit(deep, 20).result(60) == 20
        assert client.submit(fib, 7).result(60) == 13
        assert client.submit(inc, 1).result(30) == 2


def test_who_left_the_pool_makes_room_and_comes_back(client: Client) -> None:
    """Others run meanwhile; afterwards the pool is as large as before."""
    waiting = client.map(out_and_in, [0.5] * 6, pure=False)
    time.sleep(0.2)
    assert client.gather(client.map(inc, range(20))) == list(range(1, 21))
    assert sum(client.gather(waiting)) == 6
    busy = client.map(time.sleep, [0.05] * 8, pure=False)
    client.gather(busy)
    threads = client.run(lambda dask_worker: dask_worker.executor._size)
    assert set(threads.values()) == {1}


def test_outside_of_tasks_it_says_so() -> None:
    """Each of the three."""
    for call in (secede, rejoin, worker_client().__enter__):
        with pytest.raises(ValueError, match="inside of tasks"):
            call()


def thread_and_linger(seconds: float) -> str:
    time.sleep(seconds)
    return threading.current_thread().name


def wait_for(path: str) -> str:
    until(lambda: Path(path).exists())
    return path


def test_pools_of_threads_by_name(tmp_path: Path) -> None:
    """Tasks of one do not wait for those of another; who asks for one that nobody has is told."""
    with LocalCluster(n_workers=1, threads_per_worker=1, executors={"io": 2}) as cluster, Client(cluster) as client:
        slow = client.submit(wait_for, str(tmp_path / "go on"))
        with dask.annotate(executor="io"):
            quick = client.map(thread_and_linger, [0.0, 0.1, 0.2], pure=False)
            assert len(set(client.gather(quick))) == 2
        assert not slow.done()
        (tmp_path / "go on").touch()
        with dask.annotate(executor="gpu", retries=2):
            stuck = client.submit(thread_and_linger, 0.0)
        with pytest.raises(ValueError, match=r"invalid executor 'gpu'.*'default', 'io'"):
            stuck.result(20)
        assert "invalid executor" in client.why(stuck)
        assert slow.result(20)
    with pytest.raises(ConfigurationError, match="executors"):
        LocalCluster(n_workers=1, executors={"io": 0})
