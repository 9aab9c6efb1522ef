"""Clients in threads, in numbers, inside of tasks, after their end, and in programs that just stop."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from shoal import (
    Client,
    Event,
    Future,
    LocalCluster,
    Lock,
    Queue,
    Variable,
    as_completed,
    get_client,
    wait,
    worker_client,
)
from shoal.errors import ClosedClientError, ForeignFutureError
from tests.integration.functions import inc
from tests.integration.helpers import until


def _slow(x: int) -> int:
    time.sleep(0.02)
    return x


def test_one_client_in_many_threads(client: Client) -> None:
    """They submit, gather, scatter, wait, cancel, lock and ask at the same time; all of it is right."""
    errors: list[BaseException] = []
    lock = Lock("threads")
    inside = 0

    def work(number: int) -> None:
        nonlocal inside
        try:
            for turn in range(15):
                futures = client.map(inc, range(turn, turn + 10), pure=turn % 2 == 0)
                assert client.gather(futures) == list(range(turn + 1, turn + 11))
                data = client.scatter([number, turn], hash=False)
                assert client.submit(max, data).result() == max(number, turn)
                assert len(wait(futures).done) == 10
                assert {future.result() for future in as_completed(futures)} == set(range(turn + 1, turn + 11))
                gone = client.submit(_slow, number + turn / 100)
                gone.cancel()
                with lock.__class__("threads", client=client):
                    inside += 1
                    assert inside == 1
                    inside -= 1
                client.who_has(futures)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    until(lambda: not any(client.processing().values()))


_ran: list[int] = []


def _count(path: str, x: int) -> int:
    with open(path, "a") as file:
        file.write("x")
    return x


def test_many_clients_share_what_they_ask_for(cluster: LocalCluster, tmp_path: Path) -> None:
    """Twenty ask for the same: it runs once; each gets it; those that close take nothing from the others."""
    path = tmp_path / "ran"
    clients = [Client(cluster, set_as_default=False) for _ in range(20)]
    futures = [client.submit(_count, str(path), 5) for client in clients]
    assert [future.result() for future in futures] == [5] * 20
    assert path.read_text() == "x"
    for client in clients[:-1]:
        client.close()
    assert futures[-1].result() == 5
    assert clients[-1].submit(inc, futures[-1]).result() == 6
    with pytest.raises(ForeignFutureError):
        clients[-1].submit(inc, futures[0])
    clients[-1].close()


def test_two_clusters_in_one_process(nothing_is_left) -> None:
    """Each client has its own; what is current is what was chosen."""
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, name="one") as one,
        LocalCluster(n_workers=1, threads_per_worker=1, name="two") as two,
        Client(one) as first,
        Client(two) as second,
    ):
        assert get_client() is second
        Variable("x", client=first).set(1)
        Variable("x", client=second).set(2)
        with first.as_current():
            assert Variable("x").get() == 1
            assert get_client() is first
        assert Variable("x").get() == 2
        assert first.submit(inc, 1).result() + second.submit(inc, 2).result() == 5
        assert set(first.scheduler_info()["workers"]) != set(second.scheduler_info()["workers"])


def _nested(depth: int) -> int:
    if not depth:
        return 1
    with worker_client() as client:
        return sum(client.gather([client.submit(_nested, depth - 1, pure=False) for _ in range(2)]))


def _through_a_queue(name: str) -> int:
    client = get_client()
    Queue(name).put(client.submit(inc, 41))
    Event("there").set()
    return id(client)


def test_clients_of_tasks(client: Client) -> None:
    """One for each worker, at whatever depth; what they leave in a queue outlives their task."""
    assert client.submit(_nested, 4).result() == 16
    ids = client.gather(client.map(_through_a_queue, ["q"] * 6, pure=False))
    assert len(set(ids)) <= 2
    assert Event("there").wait(timeout=10)
    assert [future.result() for future in Queue("q").get(batch=6, timeout=20)] == [42] * 6


class _Holder:
    def __init__(self, future: Future) -> None:
        self.future, self.me = future, self


def test_futures_that_are_collected_are_let_go_of(client: Client) -> None:
    """Also those in cycles, in tracebacks, and while a callback waits for them."""
    holder = _Holder(client.submit(inc, 1))
    assert holder.future.result() == 2
    key = holder.future.key
    del holder
    gc.collect()
    until(lambda: key not in client.who_has())
    called: list[int] = []
    future = client.submit(_slow, 7)
    future.add_done_callback(lambda done: called.append(done.result()))
    del future
    gc.collect()
    until(lambda: called == [7])
    until(lambda: not client.who_has())
    for _ in range(50):
        client.map(inc, range(20), pure=False)
    until(lambda: not client.who_has() and not any(client.processing().values()))


def test_whatever_is_called_after_close_says_so(cluster: LocalCluster) -> None:
    """The client's methods, its futures, and what was made with it."""
    client = Client(cluster, set_as_default=False)
    done, pending = client.submit(inc, 1), client.submit(_slow, 1)
    assert done.result() == 2
    lock, queue = Lock("l", client=client), Queue("q", client=client)
    executor = client.get_executor()
    client.close()
    client.close()
    calls: list[Any] = [
        lambda: client.submit(inc, 1), lambda: client.map(inc, [1]), lambda: client.gather([done]),
        lambda: client.scatter(1), client.scheduler_info, client.who_has, client.profile, client.list_datasets,
        lambda: client.get_metadata("x"), lambda: client.run(inc, 1), lambda: client.cancel(done),
        lock.acquire, lambda: queue.put(1), queue.get, lambda: executor.submit(inc, 1),
        lambda: client.publish_dataset(x=1), client.restart, client.get_versions,
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(ClosedClientError, match="make a new one"):
            call()
    assert pending.cancelled()
    assert client.status == "closed"
    assert "closed" in repr(client)
    assert "closed" in client._repr_html_()


_PROGRAM = """
import os, sys
from shoal import Client, LocalCluster, Lock, Queue, worker_client, progress

def nested(n):
    with worker_client() as client:
        return client.submit(abs, n).result()

if __name__ == "__main__":
    cluster = LocalCluster(n_workers=2, threads_per_worker=1)
    client = Client(cluster)
    lock = Lock("l"); lock.acquire()
    Queue("q").put(client.submit(abs, -1))
    futures = client.map(nested, range(5))
    client.gather(futures)
    forever = client.submit(__import__("time").sleep, 600)
    print(*[child.pid for child in __import__("psutil").Process().children(recursive=True)], flush=True)
    {end}
"""


@pytest.mark.parametrize(
    ("end", "code"),
    [("pass", 0), ("sys.exit(3)", 3), ("raise ValueError('mine')", 1), ("os._exit(4)", 4), ("client.close()", 0)],
)
def test_a_program_that_ends_without_closing(tmp_path: Path, end: str, code: int) -> None:
    """However it ends: its status is its own, nothing hangs, nothing is left."""
    script = tmp_path / "program.py"
    script.write_text(_PROGRAM.replace("{end}", end))
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False, cwd=Path.cwd()
    )
    assert done.returncode == code, done.stderr
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) >= 3
    until(lambda: not any(psutil.pid_exists(pid) for pid in pids))
    assert "Traceback" not in done.stderr.replace("Traceback (most recent call last):\n  File", "", code == 1)
