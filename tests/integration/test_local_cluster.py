"""Real processes: submitted, killed, cut off, told nonsense."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import time
from typing import Any

import pytest

from shoal import Client, KilledWorker, LocalCluster, Security, as_completed, wait
from shoal.errors import (
    ClosedClientError,
    ConfigurationError,
    ConnectError,
    ForeignFutureError,
    HandshakeError,
    SerializationError,
)
from tests.integration.functions import add, fail, hoard, inc, leave, pid, slow_inc


def test_submit_map_gather_and_dependencies(client: Client) -> None:
    """Functions run on workers, with the results of others as inputs."""
    assert client.submit(inc, 1).result(30) == 2
    futures = client.map(inc, range(100))
    total = client.submit(add, futures)
    assert client.gather(futures) == list(range(1, 101))
    assert total.result(30) == 5050


def test_wait_and_as_completed(client: Client) -> None:
    """All of them, or the first, in the order of completion."""
    futures = client.map(slow_inc, range(20))
    first = wait(futures, 30, "FIRST_COMPLETED")
    assert first.done
    assert wait(futures, 30).not_done == set()
    again = client.map(slow_inc, range(100, 110))
    assert sorted(result for _, result in as_completed(again, with_results=True)) == list(range(101, 111))
    with pytest.raises(TimeoutError):
        wait(client.submit(time.sleep, 1), 0.05)


def test_scatter(client: Client) -> None:
    """Values put by a client are inputs, and come back."""
    one, two = client.scatter([[1, 2], [3]])
    assert client.submit(add, one).result(30) == 3
    assert client.gather([one, two]) == [[1, 2], [3]]
    named = client.scatter({"numbers": [4]}, broadcast=True)
    assert len(client.who_has([named["numbers"]])["numbers"]) == 2


def test_restart(client: Client) -> None:
    """Futures are cancelled, and every worker process is another one."""
    before = set(client.run(pid).values())
    future = client.submit(time.sleep, 100)
    client.restart(timeout=30)
    assert future.cancelled()
    assert not before & set(client.run(pid).values())
    assert client.submit(inc, 1).result(30) == 2


def test_dask_collections(client: Client) -> None:
    """An array, a delayed call and a raw graph; through compute, and with shoal as dask's scheduler."""
    import dask

    da = pytest.importorskip("dask.array")
    array = da.arange(100_000, chunks=10_000)
    assert client.compute((array**2).sum()).result(60) == sum(n * n for n in range(100_000))
    with dask.config.set(scheduler=client.get):
        assert dask.delayed(inc)(dask.delayed(inc)(1)).compute() == 3
        assert float(array.mean().compute()) == 49999.5
    assert client.get({"x": 1, "y": (inc, "x"), ("z", 0): (add, ["x", "y"])}, [["y"], ("z", 0)]) == [[2], 3]


def test_released_futures_free_memory(client: Client) -> None:
    """What nobody needs is forgotten by the scheduler and the workers."""
    futures = client.map(inc, range(50))
    client.gather(futures)
    del futures
    deadline = time.monotonic() + 10
    while any(client.has_what().values()):
        assert time.monotonic() < deadline, client.has_what()
        time.sleep(0.02)


def test_large_results_travel_between_workers_and_to_the_client(client: Client) -> None:
    """Buffers go out of band from worker to worker and to the client."""
    np = pytest.importorskip("numpy")
    names = list(client.nthreads())
    array = client.submit(np.arange, 2_000_000, workers=[names[0]])
    total = client.submit(np.sum, array, workers=[names[1]])
    assert total.result(30) == 1999999000000
    assert (array.result(30) == np.arange(2_000_000)).all()


def test_an_error_reaches_the_client_with_its_traceback(client: Client) -> None:
    """The exception is the task's own; its traceback names the function; dependents fail with it."""
    future = client.submit(fail, 7)
    with pytest.raises(ValueError, match="no 7"):
        future.result(30)
    frames = future.traceback(30)
    assert frames is not None
    while frames.tb_next:
        frames = frames.tb_next
    assert frames.tb_frame.f_code.co_name == "fail"
    assert isinstance(client.submit(inc, future).exception(30), ValueError)


def test_sigkill_of_a_worker_in_the_middle_of_a_graph(client: Client) -> None:
    """Its tasks and results are computed again; the nanny starts another."""
    futures = client.map(slow_inc, range(200))
    total = client.submit(add, futures)
    victim = next(iter(client.scheduler_info()["workers"].values()))["pid"]
    time.sleep(0.3)
    os.kill(victim, signal.SIGKILL)
    assert total.result(60) == sum(range(1, 201))
    deadline = time.monotonic() + 30
    while len(client.nthreads()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert victim not in client.run(pid).values()


def test_a_task_that_ends_its_worker_is_given_up(client: Client) -> None:
    """KilledWorker names each death with its exit status, and the cluster goes on."""
    future = client.submit(leave, 3)
    with pytest.raises(KilledWorker) as info:
        future.result(60)
    assert len(info.value.deaths) == 4
    assert client.submit(inc, 1).result(30) == 2


def test_bad_input_is_an_error_at_the_call(client: Client, cluster: LocalCluster) -> None:
    """What cannot be pickled is said where it was given; the cluster goes on."""
    with pytest.raises(SerializationError, match="argument of inc"):
        client.submit(inc, socket.socket())
    lock = client.submit(__import__("threading").Lock)
    with pytest.raises(SerializationError, match="result of"):
        lock.result(30)
    with Client(cluster) as other, pytest.raises(ForeignFutureError):
        client.submit(inc, other.submit(inc, 1))
    with pytest.raises(ClosedClientError):
        other.submit(inc, 1)
    assert client.submit(inc, 1).result(30) == 2


def test_strangers_are_turned_away(client: Client, cluster: LocalCluster) -> None:
    """Random bytes, a huge length and a wrong secret close that link and disturb nothing."""
    host, port = cluster.scheduler_address.removeprefix("tcp://").split(":")
    for data in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(5000), b"HS\x00\x00\xff\xff\xff\xff" + b"\0" * 32):
        with socket.create_connection((host, int(port)), 5) as stranger:
            stranger.settimeout(10)
            stranger.sendall(data)
            try:
                assert stranger.recv(100) == b""
            except ConnectionResetError:
                pass
    with pytest.raises(HandshakeError, match="secret"):
        Client(cluster.scheduler_address, security=Security(secret="another one than theirs"))
    assert client.submit(inc, 1).result(30) == 2


def test_a_wrong_address_says_what_was_tried() -> None:
    """The error names the address and the time."""
    with pytest.raises(ConnectError, match=r"tcp://127.0.0.1:1 within 0.3 s"):
        Client("tcp://127.0.0.1:1", timeout=0.3)


@pytest.mark.parametrize("limit", ["12 parsecs", -1, "1 kB"])
def test_a_memory_limit_that_makes_no_sense(limit: object) -> None:
    """It is refused by name before anything is started."""
    with pytest.raises(ConfigurationError, match="memory_limit"):
        LocalCluster(n_workers=1, memory_limit=limit)


def watch(dask_scheduler: Any) -> Any:
    """For 5 seconds, note the longest silence of a worker and the ids of all that were there."""

    async def sample() -> tuple[float, int]:
        silence, seen = 0.0, set()
        for _ in range(100):
            await asyncio.sleep(0.05)
            for worker in dask_scheduler.core.state.workers.values():
                silence = max(silence, time.monotonic() - worker.last_seen)
                seen.add(worker.id)
        return silence, len(seen)

    return sample()


def test_the_cluster_goes_on_while_this_process_holds_the_gil() -> None:
    """Graphs run, memory limits are watched, heartbeats are heard: the scheduler and the nannies live elsewhere."""
    with LocalCluster(n_workers=2, threads_per_worker=1, memory_limit="300 MB") as cluster, Client(cluster) as client:
        futures = client.map(slow_inc, range(100), workers=["0"])
        ended = client.submit(lambda _: time.time(), client.submit(add, futures), pure=False)
        bomb = client.submit(hoard, workers=["1"])
        watched: list[Any] = []
        watcher = threading.Thread(target=lambda: watched.append(client.run_on_scheduler(watch)))
        watcher.start()
        time.sleep(0.2)
        import ctypes

        ctypes.PyDLL(None).sleep(6)  # PyDLL keeps the GIL
        free_again = time.time()
        watcher.join()
        ((silence, workers),) = watched
        assert silence < 2.5
        assert workers >= 3, "the bomb's worker was not replaced meanwhile"
        assert free_again - ended.result(30) > 2
        bomb.cancel()


def test_a_memory_bomb_is_killed_with_the_figures() -> None:
    """The nanny ends a worker over its limit, and the error says so."""
    with LocalCluster(n_workers=1, threads_per_worker=1, memory_limit="200 MB") as cluster, Client(cluster) as client:
        future = client.submit(hoard)
        with pytest.raises(KilledWorker):
            future.result(60)
